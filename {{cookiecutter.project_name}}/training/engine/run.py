"""Starting and resuming a run."""

import atexit
import os
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from training.engine.checkpoints import (
    Checkpoints,
    SafeCheckpointIO,
    is_plain,
    keep_plain_hyperparameters,
    make_plain,
    read_checkpoint,
)
from training.engine.command_line import ProjectCLI, flag_value, make_evaluator, read_config
from training.engine.files import read_json, replacing, write_json
from training.engine.interrupts import Interrupts, is_first_process
from training.engine.loops import install_loops
from training.engine.metrics_file import MetricsFile
from training.engine.reports import LossLogger
from training.engine.run_folder import LOGS, ROOT, describe_run, discard_run, find_run, lock_run, new_run, requeued_run

# Settings that may differ from those of the run that is resumed.
TRAINER_MAY_CHANGE = (
    *("accelerator", "devices", "enable_progress_bar", "log_every_n_steps"),
    *("max_epochs", "max_steps", "max_time", "num_nodes", "strategy"),
)
MAY_CHANGE = ["checkpoint_minutes", "data.num_workers", *(f"trainer.{key}" for key in TRAINER_MAY_CHANGE)]
FINDERS = (LearningRateFinder, BatchSizeFinder)


class RunRecord(Callback):
    """Writes `config.yaml` and `run.json` when a run starts, and locks its folder."""

    def __init__(self, cli: "RunCLI") -> None:
        self.cli = cli

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.use_found_rate(trainer)
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        cli = self.cli
        config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
        describe_run(cli.run_dir, ROOT, config, cli.allow_changed_data)
        with replacing(cli.run_dir / "config.yaml") as partial:
            partial.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        for logger in trainer.loggers:
            if not cli.resumed:
                logger.log_hyperparams(config)

    def use_found_rate(self, trainer: Trainer) -> None:
        """Makes optimizers and schedules anew with the rate that a learning-rate finder has found."""
        for finder in trainer.callbacks:
            if isinstance(finder, LearningRateFinder) and finder.optimal_lr and not self.cli.resumed:
                rate = finder.optimal_lr.suggestion()
                trainer.strategy.setup_optimizers(trainer)
                print(f"learning rate found: {rate:.3g}", flush=True)
                if "lr" in self.cli.config.model:
                    self.cli.config.model.lr = rate


class RunCLI(ProjectCLI):
    """Starts or resumes a run.

    Attributes:
        run_dir: Folder of the run.
        checkpoint: File to resume from, or None.
        checkpoints: Keeps the checkpoints of the run.
    """

    description = "Fit a model, then test its best checkpoint."

    def __init__(
        self, model_class: type[LightningModule], data_class: type[LightningDataModule], args: list[str] | None = None
    ) -> None:
        name = flag_value("--resume", sys.argv[1:] if args is None else args)
        earlier = requeued_run(LOGS) if name is None else find_run(LOGS, name)
        self.resumed, self.run_dir = earlier is not None, earlier or new_run(LOGS)
        if self.resumed and is_first_process():
            self.lock = lock_run(self.run_dir)
        last = self.run_dir / "checkpoints" / "last.ckpt"
        self.checkpoint = last if last.exists() else None
        self.state = read_checkpoint(last) if self.checkpoint else {}
        try:
            progress = self.state["loops"]["fit_loop"] if self.state else None
            self.step = progress["epoch_loop.state_dict"]["_batches_that_stepped"] if progress else 0
        except (KeyError, TypeError) as error:
            raise OSError(f"{last} is not a checkpoint of this project: it lacks {error}") from error
        file = (self.run_dir if self.resumed else ROOT / "configs") / "config.yaml"
        self.interrupts = Interrupts()
        self.interrupts.listen()
        super().__init__(model_class, data_class, args, (read_config(file), file), {})

    def add_options(self, parser: LightningArgumentParser) -> None:
        help_ = "Resume the newest unfinished run, or RUN, a name in logs/ or a path, with the run's settings."
        parser.add_argument("--resume", nargs="?", const=True, metavar="RUN", help=help_)
        help_ = "Resume even though files that data.* options name have changed."
        parser.add_argument("--allow_changed_data", type=bool, default=False, help=help_)
        help_ = "Metric whose best value selects best.ckpt; null selects the last epoch."
        parser.add_argument("--monitor", type=str | None, default=None, help=help_)
        help_ = "Whether the lowest or the highest value is best."
        parser.add_argument("--monitor_mode", type=Literal["min", "max"], default="min", help=help_)
        help_ = "Also save last.ckpt every so many minutes within an epoch."
        parser.add_argument("--checkpoint_minutes", type=NonNegativeFloat, default=10.0, help=help_)
        help_ = "torch.compile mode for the model; none disables it."
        modes = Literal["none", "default", "reduce-overhead", "max-autotune"]
        parser.add_argument("--compile", type=modes, default="none", help=help_)

    def before_instantiate_classes(self) -> None:
        self.config.pop("resume")
        self.config.pop("debug")
        self.allow_changed_data = self.config.pop("allow_changed_data")
        if self.resumed:
            self.refuse_changes()
        config = self.config.trainer
        if isinstance(self.config.seed_everything, bool | None):
            self.config.seed_everything = seed_everything(workers=True, verbose=False)
        if config.precision in ("16-true", "bf16-true"):
            self.parser.error(
                f"trainer.precision {config.precision} computes metrics in 16 bits; use {config.precision[:-4]}mixed"
            )
        if config.enable_checkpointing is False:
            self.parser.error("trainer.enable_checkpointing false: a run always saves checkpoints")
        if "spawn" in str(config.strategy) or "fork" in str(config.strategy) or "notebook" in str(config.strategy):
            self.parser.error(f"trainer.strategy {config.strategy}: use ddp, which starts its processes itself")
        self.follow_launcher(config)
        if config.fast_dev_run:
            config.logger = None

    def place(self, config: Namespace) -> None:
        if config.default_root_dir:
            self.parser.error("trainer.default_root_dir: a run's files are in its folder in logs/")
        for logger in config.logger if isinstance(config.logger, list) else [config.logger]:
            if isinstance(logger, Namespace) and "save_dir" in logger.get("init_args", {}):
                folder = Path(logger.init_args.save_dir or ".")
                if folder.is_absolute() or ".." in folder.parts:
                    self.parser.error(f"trainer.logger save_dir {folder}: give a path in the run folder, such as .")
                logger.init_args.save_dir = str(self.run_dir / folder)
        if isinstance(config.profiler, str):
            classes = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
            if config.profiler in classes:
                config.profiler = classes[config.profiler](dirpath=str(self.run_dir), filename="profile")
        elif isinstance(config.profiler, Namespace) and "dirpath" in config.profiler.get("init_args", {}):
            config.profiler.init_args.dirpath = config.profiler.init_args.dirpath or str(self.run_dir)

    def refuse_changes(self) -> None:
        """Exits with status 2 if a setting differs from that of the run and may not."""
        before = vars(self.parser.get_defaults().as_flat())
        for key, value in vars(self.config.as_flat()).items():
            if key not in ("config", *MAY_CHANGE) and before.get(key) != value:
                names = ", ".join(MAY_CHANGE)
                self.parser.error(f"{key} is {before.get(key)} in {self.run_dir.name}; only these may change: {names}")

    def make_trainer(self, config: Namespace) -> Trainer:
        loggers = config.logger if isinstance(config.logger, list) else [config.logger]
        callbacks = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        kept = [each for each in callbacks if each and not (self.resumed and isinstance(each, FINDERS))]
        if not sys.stdout.isatty():
            config.enable_progress_bar = False  # each epoch is printed as a line
        if config.enable_progress_bar is False:
            kept = [each for each in kept if not isinstance(each, ProgressBar)]
        linked = {name: make_plain(getattr(self.datamodule, name)) for name in self.linked}
        extra = {"given": {name: value for name, value in linked.items() if is_plain(value)}}
        folder = self.run_dir / "checkpoints"
        config_ = self.config
        self.checkpoints = Checkpoints(
            folder, config_.monitor, config_.monitor_mode, config_.checkpoint_minutes, extra
        )
        metrics = MetricsFile(self.run_dir / "metrics.csv", self.step if self.resumed else None)
        config.default_root_dir = str(self.run_dir)
        config.plugins = [*(config.plugins or []), SafeCheckpointIO()]
        config.logger = [*(each for each in loggers if isinstance(each, Logger)), metrics]
        config.callbacks = [*kept, RunRecord(self), LossLogger(), self.checkpoints]
        trainer = Trainer(**config)
        install_loops(trainer, self.config.seed_everything, self.checkpoints, self.interrupts)
        return trainer

    def make_tester(self) -> Trainer | None:
        """The trainer for the test. Of several processes the first one tests, on one device; the others get None."""
        if self.trainer.world_size == 1:
            return self.trainer
        first = self.trainer.is_global_zero
        torch.distributed.destroy_process_group()
        return make_evaluator(self.config_init.trainer, self.run_dir, self.trainer.loggers) if first else None

    def finish(self, metrics: dict[str, float]) -> None:
        """Writes the metrics of the test, and that the run is finished."""
        if any(name.startswith("test") for name in metrics):
            write_json(self.run_dir / "test_metrics.json", metrics)
        file = self.run_dir / "run.json"
        write_json(file, read_json(file) | {"state": "finished"})

    def after_instantiate_classes(self) -> None:
        keep_plain_hyperparameters(self.model)
        keep_plain_hyperparameters(self.datamodule)
        if self.config.compile != "none":
            self.model.compile(mode=self.config.compile)
        if not (self.resumed or self.config.trainer.fast_dev_run) and is_first_process():
            self.run_dir.mkdir(parents=True)
            self.lock = lock_run(self.run_dir)
            atexit.register(discard_run, self.run_dir)

    def follow_launcher(self, config: Namespace) -> None:
        """Takes the number of processes from torchrun or SLURM, which start them."""
        counts = {"torchrun": ("LOCAL_WORLD_SIZE", "WORLD_SIZE"), "SLURM": ("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS")}
        for launcher, (local, total) in counts.items():
            processes = int(os.environ.get(total, "1"))
            here = int(os.environ.get(local, processes))
            if processes > 1 and ("TORCHELASTIC_RUN_ID" in os.environ or launcher == "SLURM"):
                if config.devices not in ("auto", 1, "1", here, str(here)):
                    self.parser.error(f"trainer.devices {config.devices}: {launcher} started {here} processes here")
                config.devices, config.num_nodes = here, processes // here
                return
