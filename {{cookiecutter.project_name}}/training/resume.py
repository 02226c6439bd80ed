"""What lets a run survive: checkpoints that are whole or not there, and going on as if nothing had happened."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning import LightningDataModule, LightningModule, Trainer, __version__
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler

# Settings that may be others than those of the run that is resumed.
FREE = ("accelerator", "devices", "enable_progress_bar", "log_every_n_steps", "max_epochs", "max_time", "strategy")
MAY_CHANGE = ["checkpoint_minutes", "data.num_workers", "trainer.num_nodes", *(f"trainer.{key}" for key in FREE)]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Gives a file to write beside `file`, which it replaces once it is written and on the disk; makes its folder.

    Raises:
        OSError: It cannot be written; `file` is as it was.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    except (OSError, RuntimeError) as error:  # of torch.save, where the disk is full
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", None) or error
        raise OSError(f"{file} could not be written ({reason}): mend that, then go on by --resume") from error


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a file of JSON, or leaves it as it was."""
    with replacing(file) as partial:
        partial.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_checkpoint(file: Path | str) -> dict[str, Any]:
    """Reads a checkpoint of plain values and tensors; no code in it is run, and every byte has to be as written.

    Raises:
        OSError: There is none, or it is not whole.
    """
    try:
        with ZipFile(file) as archive:
            if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()) or archive.testzip():
                raise BadZipFile("a checksum is wrong")
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception as error:  # whatever its readers make of a damaged file
        raise OSError(f"{file} is damaged or no checkpoint: name another, or remove it and train anew") from error


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads none that is damaged or holds code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(Path(path)) as partial, open(partial, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        version = str(checkpoint["pytorch-lightning_version"])
        if version.split(".")[:2] != __version__.split(".")[:2]:
            raise OSError(f"{path} is of Lightning {version}, not {__version__}: pip install lightning=={version}")
        return checkpoint


class MetricsFile(Logger):
    """Writes `metrics.csv`, with a row for each time that something was logged; keeps those of the steps before `step`.

    It is rewritten whole, with each checkpoint and otherwise every ten seconds at most.
    """

    name, version, save_dir = "", "", ""

    def __init__(self, file: Path, step: int) -> None:
        super().__init__()
        self.file, self.save_dir = file, str(file.parent)
        self.rows: list[dict[str, Any]] = []
        self.written_at = time.monotonic()
        if file.exists():
            with open(file, newline="", encoding="utf-8") as text:
                self.rows = [row for row in csv.DictReader(text) if int(row["step"]) < step]

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({**metrics, "step": step})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in `config.yaml`."""

    def save(self) -> None:
        if time.monotonic() - self.written_at > 10:
            self.write()

    @rank_zero_only
    def write(self) -> None:
        self.written_at = time.monotonic()
        if self.rows:
            with replacing(self.file) as partial, open(partial, "w", newline="", encoding="utf-8") as text:
                writer = csv.DictWriter(text, sorted({key for row in self.rows for key in row}))
                writer.writeheader()
                writer.writerows(self.rows)

    def finalize(self, status: str) -> None:
        self.write()


class RemainingSampler(Sampler):
    """The order of a sampler that leaves out the first indices of one epoch."""

    def __init__(self, sampler: Any, epoch: int, had: int) -> None:
        self.sampler, self.epoch, self.had = sampler, epoch, had
        sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        return islice(self.sampler, self.had if self.sampler.epoch == self.epoch else 0, None)


def prepare_data(data: LightningDataModule, checkpoint: Mapping[str, Any] | None) -> None:
    """Makes the training batches start where a checkpoint left off, and draw no random number of the model's."""
    make_loader = data.train_dataloader

    def train_dataloader() -> Any:
        loader = make_loader()
        if isinstance(loader, DataLoader):
            loader.generator = torch.Generator()
        if checkpoint and isinstance(getattr(loader, "sampler", None), DistributedSampler):
            progress = checkpoint["loops"]["fit_loop"]
            epoch = progress["epoch_progress"]["current"]
            had = progress["epoch_loop.batch_progress"]["current"]["completed"] * loader.batch_size
            unfinished = epoch["started"] > epoch["processed"]
            loader.batch_sampler.sampler = RemainingSampler(loader.sampler, epoch["processed"], had * unfinished)
        return loader

    data.train_dataloader = train_dataloader  # type: ignore[method-assign]


class Checkpoints(ModelCheckpoint):
    """Keeps `best.ckpt` and `last.ckpt`: the latter after each epoch, and within one when time or a signal asks for it.

    The random numbers of a step depend on nothing but the seed and the number of the step, so that a run that goes on
    from `last.ckpt` ends with the same weights, bit by bit.

    Args:
        folder: Where they are written.
        monitor: Metric that decides which epoch is the best.
        mode: min or max, whether less or more of it is better.
        minutes: Time between two checkpoints of one epoch.
    """

    state_key = "checkpoints"  # ModelCheckpoint composes its own anew at each hook of each step

    def __init__(self, folder: Path, monitor: str, mode: str, minutes: float) -> None:
        super().__init__(folder, "best", monitor, mode=mode, enable_version_counter=False)
        self.file, self.minutes = folder / "last.ckpt", minutes
        self.seed = torch.initial_seed()
        self.signal: int | None = None
        self.handled: dict[int, Any] = {}
        self.training = self.validated = False
        self.loss: Tensor | None = None

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Makes SIGINT, SIGTERM and, under SLURM, SIGUSR1 stop the run, after the step if there is one."""
        numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if SLURMEnvironment.detect() else [])]
        self.handled = {number: signal.getsignal(number) for number in numbers}
        self._listen()
        try:
            yield
        except SystemExit:
            if self.signal is not None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                command = f"python training/train.py --resume {self.file.parents[1].name}"
                print(f"stopped by {signal.Signals(self.signal).name}; to go on: {command}", file=sys.stderr)
                if self.signal not in (signal.SIGINT, signal.SIGTERM):
                    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
            raise
        finally:
            for number, handler in self.handled.items():
                signal.signal(number, handler)

    def _listen(self) -> None:
        for number in self.handled:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        again, self.signal = self.signal is not None, number
        if again or not self.training:
            sys.exit(128 + number)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seed = state_dict["seed"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["precision"] = trainer.precision
        checkpoint["should_stop"] = trainer.should_stop
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (batches["current"], batches["total"]):
            count["ready"] = count["completed"]  # a step that is about to start is not done
        for logger in trainer.loggers:
            (logger.write if isinstance(logger, MetricsFile) else logger.save)()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint["should_stop"]
        if trainer.should_stop:  # it was stopped early, and has its tests to do
            epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
            epoch["completed"] = epoch["processed"]
        for schedule in checkpoint["lr_schedulers"]:
            for key in ("total_steps", "_schedule_phases"):
                schedule.pop(key, None)  # max_epochs may have changed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training, self.saved_at = True, time.monotonic()
        self._listen()  # in the place of Lightning's own handlers
        self._seed_step(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seed_step(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        between = batch_idx > 0 and batch_idx % trainer.accumulate_grad_batches == 0 and not self.validated
        self.validated = False
        if trainer.world_size > 1 and batch_idx % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return  # as processes have to wait for each other to agree
        late = time.monotonic() - self.saved_at >= 60 * self.minutes
        if between and trainer.strategy.reduce_boolean_decision(late or self.signal is not None, all=False):
            self._save(trainer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.loss = loss.detach()
        if loss.device.type == "cpu" or (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check_loss(trainer)  # elsewhere it has to wait for the device

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._seed_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.validated = True
        self._seed_step(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = False

    def _seed_step(self, trainer: Trainer) -> None:
        seed = hash((self.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank))
        on_cpu = trainer.strategy.root_device.type == "cpu"
        (torch.default_generator.manual_seed if on_cpu else torch.manual_seed)(seed)  # the latter takes 0.5 ms

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._check_loss(trainer)
        trainer.save_checkpoint(self.file)
        self.saved_at = time.monotonic()
        if trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            self.signal = self.signal or signal.SIGTERM  # which another process has had
            sys.exit(128 + self.signal)

    def _check_loss(self, trainer: Trainer) -> None:
        """Raises FloatingPointError where the loss is no finite number."""
        if self.loss is None or isfinite(self.loss.item()):
            return
        loader: Any = trainer.train_dataloader
        index, size = trainer.fit_loop.batch_idx, loader.batch_size
        samples = list(islice(loader.sampler, index * size, (index + 1) * size))
        file = self.file.with_name("nonfinite.ckpt")
        trainer.save_checkpoint(file)
        raise FloatingPointError(
            f"the loss is {self.loss.item()} at step {trainer.global_step}, on the training samples {samples}: look"
            f" at them, or lower --model.lr; the weights are in {file}"
        )


def find_run(logs: Path, name: str) -> Path:
    """The folder of a run, by its name in `logs`, a pattern of it, or its path; without one, the newest unfinished.

    Raises:
        FileNotFoundError: There is none.
    """
    runs = sorted(file.parent for file in logs.glob(f"{name or '*'}/run.json"))
    if not name:
        runs = [run for run in runs if not (run / "test_metrics.json").exists()]
    elif (Path(name) / "run.json").exists():
        runs = [Path(name).resolve()]
    if not runs:
        raise FileNotFoundError(f"{logs} has no {name or 'unfinished'} run: name one of its folders")
    return runs[-1]


def refuse_changes(parser: ArgumentParser, config: Namespace, run: Path) -> None:
    """Ends with exit status 2 if a setting differs from those of `run`, the parser's defaults, and may not."""
    before = vars(parser.get_defaults().as_flat())
    for key, value in vars(config.as_flat()).items():
        if key not in ("config", *MAY_CHANGE) and before.get(key) != value:
            parser.error(f"{key} is {before.get(key)} in {run.name}; only these may change: {', '.join(MAY_CHANGE)}")


def fingerprint(*paths: Path) -> str:
    """A digest of the bytes of files, and of the names and sizes of what folders hold."""
    digest = sha256()
    for path in paths:
        held = repr([(file.name, file.stat().st_size) for file in sorted(path.rglob("*"))])
        digest.update(path.read_bytes() if path.is_file() else held.encode())
    return digest.hexdigest()


def compare_runs(before: Path, after: Path) -> None:
    """Prints that a run has the test metrics of another.

    Raises:
        OSError: It has not; the message says what else differs.
    """

    def read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        metrics, described = (json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("test_metrics", "run"))
        return metrics, described | described.pop("packages")

    def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
        keys = [key for key in old if old[key] != new.get(key) and key != "command"]
        return "; ".join(f"{key}: {old[key]}, now {new.get(key)}" for key in keys)

    metrics, others = map(changes, read(before), read(after))
    if metrics:
        raise OSError(f"not reproduced: {metrics}; what else differs: {others or 'nothing that run.json knows of'}")
    print(f"reproduced: the test metrics are those of {before.name}, to the last digit")
