"""The two checkpoints of a run: that of its best epoch and that of its last step or epoch."""

import shutil
import time
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.utilities.seed import _collect_rng_states
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer

from training.engine.checkpoint_files import load_weights, refuse_nan_weights
from training.engine.files import replacing
from training.engine.interrupts import warn
from training.engine.metrics_file import MetricsFile
from training.engine.plain_values import make_plain
from training.engine.processes import agree, gather
from training.engine.run_folder import LOGS


class Checkpoints(Checkpoint):
    """Callback that saves `best.ckpt` and `last.ckpt`. The training loop calls it when a step or an epoch is complete.

    Args:
        folder: Folder for both files.
        monitor: Metric that selects the best epoch; None selects the last one.
        mode: "min" or "max".
        minutes: Time after which `last.ckpt` is also saved within an epoch.
        given: Values that the data module provides for arguments of the model's class; every checkpoint holds them.
    """

    def __init__(self, folder: Path, monitor: str | None, mode: str, minutes: float, given: dict[str, Any]) -> None:
        self.best, self.last = folder / "best.ckpt", folder / "last.ckpt"
        self.best_model_path, self.last_model_path = str(self.best), str(self.last)  # as ModelCheckpoint names them
        self.monitor, self.mode, self.minutes, self.given = monitor, mode, minutes, given
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.saved_at = time.monotonic()
        self.validated = self.warned = False
        self.extended = False  # whether a resumed run is to be longer than before
        self.averages = False  # whether metrics are summed over the epoch; the resumed checkpoint lacks these sums
        self.loss: Tensor | None = None  # sum of the losses of the step
        self.pending = False  # whether accumulated gradients wait for an optimizer
        self.val_batches: dict[int, int] = {}  # logging steps of validation, until it starts
        self.frozen: list[str] | None = None  # parameters that the resumed checkpoint had frozen
        self.random: dict[str, Any] | None = None  # random state of the checkpoint, until the loop takes it

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best_score", "best_epoch", "best_step")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        logged = [metric.meta for metric in trainer.fit_loop.epoch_loop._results.values()]
        averages = any(meta.on_epoch and meta.fx != "on_train_epoch_end" for meta in logged)
        averages = averages or is_overridden("on_train_epoch_end", pl_module)
        checkpoint["run"] = {"given": self.given, "stopped": trainer.should_stop, "averages": averages}
        checkpoint["run"]["frozen"] = [n for n, weights in pl_module.named_parameters() if not weights.requires_grad]
        checkpoint["run"]["rows"] = sum(each.rows for each in trainer.loggers if isinstance(each, MetricsFile))
        checkpoint["run"]["val_batches"] = dict(trainer.fit_loop.epoch_loop.val_loop._seen_batches_per_dataloader)
        checkpoint["epoch"] = trainer.fit_loop.epoch_progress.current.started - 1  # the last begun, finished or not
        checkpoint["random"] = gather(trainer, make_plain(_collect_rng_states()))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if len(checkpoint["random"]) == trainer.world_size:
            self.random = checkpoint["random"][trainer.global_rank]
        trainer.should_stop = checkpoint["run"]["stopped"] and not self.extended
        self.averages, self.frozen = checkpoint["run"]["averages"], checkpoint["run"]["frozen"]
        self.val_batches = checkpoint["run"]["val_batches"]
        for schedule in checkpoint["lr_schedulers"]:
            for key in ("total_steps", "_schedule_phases"):  # of OneCycleLR: the run may be resumed with more epochs
                schedule.pop(key, None)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()
        self.pending = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.pending = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at = time.monotonic()
        for optimizer in trainer.optimizers:  # whose `step` may be called without Lightning's hooks
            optimizer.register_step_post_hook(lambda *_: setattr(self, "pending", False))
        if self.frozen is not None:
            for name, weights in pl_module.named_parameters():
                weights.requires_grad = name not in self.frozen

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor and self.monitor.startswith("val") and trainer.callback_metrics:
            self._warn_of_missing_metric(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.val_batches and not trainer.sanity_checking:
            trainer.fit_loop.epoch_loop.val_loop._seen_batches_per_dataloader |= self.val_batches
            self.val_batches = {}

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        for metric in (trainer._results or {}).values():
            if trainer.world_size > 1 and metric.is_tensor and metric.meta.is_mean_reduction:
                # Lightning averages this count over the processes, which would round an integer.
                metric.cumulated_batch_size = metric.cumulated_batch_size.float()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = not trainer.sanity_checking

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        averages = [each for each in trainer.callbacks if isinstance(each, StochasticWeightAveraging)]
        if any(trainer.current_epoch > each.swa_end for each in averages):  # the model now has its averaged weights
            self._save(trainer, self.best)
            if trainer.is_global_zero:
                print("best.ckpt holds the averaged weights of StochasticWeightAveraging, not the best epoch")
        elif self.best_score is None and trainer.is_global_zero:
            self._take_last(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:
            load_weights(pl_module, self.best)  # not before, as layers may be made in setup
            pl_module.to(trainer.strategy.root_device)

    @property
    def best_model_score(self) -> float | None:
        return self.best_score

    @property
    def run(self) -> str:
        """Value for `--resume`: the name of the run folder if it is in logs/, otherwise its path."""
        folder = self.last.parents[1]
        return folder.name if folder.parent == LOGS else str(folder)

    @property
    def is_due(self) -> bool:
        """Return whether a checkpoint within the epoch is due."""
        return time.monotonic() - self.saved_at >= 60 * self.minutes

    def save_last(self, trainer: Trainer) -> None:
        self._save(trainer, self.last)
        self.saved_at = time.monotonic()

    def keep_best(self, trainer: Trainer) -> None:
        """Save `best.ckpt` if the monitored metric has improved.

        Raises:
            FloatingPointError: The validation loss is NaN or infinite.
        """
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        losses = [name for name in metrics if self.validated and name.startswith("val") and "loss" in name]
        wrong = [name for name in losses if not isfinite(metrics[name])]
        self.validated = False
        score, best = metrics.get(self.monitor or "", nan), self.best_score
        improved = not isnan(score) and (best is None or (score > best if self.mode == "max" else score < best))
        failed, improved = agree(trainer, bool(wrong), improved)
        if failed:
            names = ", ".join(f"{name} is {metrics[name]}" for name in wrong) or "another process has no finite loss"
            raise FloatingPointError(f"{names} after step {trainer.global_step}: check the validation data")
        if improved:
            self.best_score, self.best_epoch = score, trainer.fit_loop.epoch_progress.current.started - 1
            self.best_step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self._save(trainer, self.best)

    def finish(self, trainer: Trainer) -> None:
        """Copy last.ckpt to best.ckpt if the run was killed before it did so.

        Raises:
            OSError: There was no batch to train on.
        """
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        if not self.last.exists():
            raise OSError("no batch to train on: use more samples or drop_last=False, and limit_train_batches above 0")
        if not self.best.exists():
            self._take_last(trainer)

    def _take_last(self, trainer: Trainer) -> None:
        self._warn_of_missing_metric(trainer)
        with replacing(self.best) as partial:
            shutil.copyfile(self.last, partial)

    def _warn_of_missing_metric(self, trainer: Trainer) -> None:
        logged = sorted(trainer.callback_metrics)
        if self.monitor and self.monitor not in logged and trainer.is_global_zero and not self.warned:
            self.warned = True
            names = ", ".join(logged) or "none"
            warn(f"no metric is named {self.monitor!r}, so best.ckpt is the last epoch; choose --monitor from: {names}")

    def _save(self, trainer: Trainer, file: Path) -> None:
        if trainer.fast_dev_run:
            return
        refuse_nan_weights(trainer.lightning_module, trainer.global_step)
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(file)
