"""What the commands share: the command line, the run folder, tables and curves."""

import csv
import ctypes
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.resume import (
    Checkpoints,
    MetricsFile,
    SafeCheckpointIO,
    find_run,
    fingerprint,
    prepare_data,
    read_checkpoint,
    refuse_changes,
    replacing,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "logs"
DEBUG = "Shows where in the code an error comes from."

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # data in memory needs none
warnings.filterwarnings("ignore", message=".*ended before the epoch ended")  # training/resume.py sees to it
warnings.filterwarnings("ignore", message=".*smaller than the logging interval")  # steps count on over epochs
warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning 2.6 on PyTorch 2.15
warnings.filterwarnings("ignore", message=".*exists and is not empty")  # the logger's files are there already
plt.switch_backend("agg")  # pictures go into files, never to a screen
if sys.platform == "linux":
    # What a step frees is kept for the next one: to ask the system for it anew takes a fifth of a small step.
    ctypes.CDLL(None).mallopt(-1, 2**30)  # M_TRIM_THRESHOLD, bytes
    ctypes.CDLL(None).mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the largest that glibc takes


class PlainParser(LightningArgumentParser):
    """Takes no abbreviated flags, and says what it refuses in one sentence."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print("error:", " ".join(message.split()), "(--help lists all options)", file=sys.stderr)
        sys.exit(2)


class RunCLI(LightningCLI):
    """Config file and command line in; data module, model, trainer and a run folder out.

    Attributes:
        run_dir: The folder of the run.
        resumed: Whether it is that of an earlier run, which goes on.
        reproduced: The folder of the run that is run again, if there is one.
        checkpoint: The file that training goes on from, if there is one.
        state: What it holds.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        flags = ArgumentParser(add_help=False, allow_abbrev=False)
        flags.add_argument("--resume", nargs="?", const="")
        flags.add_argument("--reproduce")
        wanted, _ = flags.parse_known_args(args)
        job = os.environ.get("SLURM_JOB_ID", "")
        if job and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # the job was requeued
            wanted.resume = f"*_slurm{job}"
        name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f") + (f"_slurm{job}" if job else "")
        self.resumed = wanted.resume is not None
        self.run_dir = find_run(LOGS, wanted.resume) if self.resumed else LOGS / name
        self.reproduced = find_run(LOGS, wanted.reproduce) if wanted.reproduce else None
        if self.reproduced and not (self.reproduced / "test_metrics.json").exists():
            raise FileNotFoundError(f"{self.reproduced} is unfinished: go on with it by --resume first")
        self.earlier = self.run_dir if self.resumed else self.reproduced
        last = self.run_dir / "checkpoints" / "last.ckpt"
        self.checkpoint = last if last.exists() else None
        self.state = load_checkpoint(last)[1] if self.checkpoint else None
        self.step = self.state["global_step"] if self.state else 0
        super().__init__(
            MyModel,
            MyDataModule,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,  # its file would not survive a kill: Recorder writes one that does
            parser_kwargs={
                "default_config_files": [str((self.earlier or ROOT / "configs") / "config.yaml")],
                "description": "Fits a model, then tests its best checkpoint.",
                "usage": "train.py [--KEY VALUE ...]",
            },
            parser_class=PlainParser,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--monitor", type=str, help="Metric that decides which epoch is kept as best.ckpt.")
        parser.add_argument("--monitor_mode", type=Literal["min", "max"], help="Whether less or more of it is better.")
        help_ = "Minutes after which last.ckpt is written within an epoch, too."
        parser.add_argument("--checkpoint_minutes", type=NonNegativeFloat, default=10.0, help=help_)
        help_ = "How torch.compile compiles the network, if it does; reduce-overhead replays CUDA graphs."
        modes = Literal["none", "default", "reduce-overhead", "max-autotune"]
        parser.add_argument("--compile", type=modes, default="none", help=help_)
        help_ = "Lays out the network's weights as (N, H, W, C), as tensor cores want them."
        parser.add_argument("--channels_last", type=bool, default=False, help=help_)
        help_ = "Of float32 matrix products; high lets a GPU use TF32."
        precisions = Literal["highest", "high", "medium"]
        parser.add_argument("--matmul_precision", type=precisions, default="highest", help=help_)
        help_ = "Goes on with the newest unfinished run, or with RUN in logs/; its settings hold, but for a few."
        parser.add_argument("--resume", nargs="?", const=True, metavar="RUN", help=help_)
        help_ = "Runs RUN in logs/ once more with its settings, and compares the test metrics."
        parser.add_argument("--reproduce", metavar="RUN", help=help_)
        parser.add_argument("--debug", action="store_true", help=DEBUG)
        for name in MyDataModule.MODEL_ARGUMENTS:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Refuses other settings than those of a resumed run, and puts the logger's files inside the run folder."""
        for key in ("resume", "reproduce", "debug"):
            self.config.pop(key)
        if self.earlier:
            refuse_changes(self.parser, self.config, self.earlier)
        epochs = self.state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] if self.state else 0
        if epochs > (self.config.trainer.max_epochs or -1) > 0:
            self.parser.error(f"trainer.max_epochs {self.config.trainer.max_epochs}: the run has had {epochs} already")
        if self.config.trainer.fast_dev_run:
            self.config.trainer.logger = None
        if (precision := self.config.trainer.precision) in ("16-true", "bf16-true"):
            self.parser.error(f"trainer.precision {precision} gives metrics 16 bits too: take {precision[:-4]}mixed")
        if precision is None:
            self.config.trainer.precision = fast_precision(self.config.trainer.accelerator)
        loggers = self.config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, Namespace) and "save_dir" in logger.init_args:
                folder = Path(logger.init_args.save_dir)
                if folder.is_relative_to(LOGS):  # in the config.yaml of an earlier run
                    folder = Path(*folder.relative_to(LOGS).parts[1:])
                logger.init_args.save_dir = str(self.run_dir / folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds to the configured logger and callbacks what every run has: `metrics.csv` and two checkpoints."""
        config = self.config_init.trainer
        config.default_root_dir = str(self.run_dir)
        config.plugins = [*(config.plugins or []), SafeCheckpointIO()]
        loggers = config.logger if isinstance(config.logger, list) else [config.logger]
        loggers = [logger for logger in loggers if isinstance(logger, Logger)]
        for logger in loggers:
            if self.step and isinstance(logger, TensorBoardLogger):
                logger._kwargs["purge_step"] = self.step  # hides what came after the checkpoint
        config.logger = [MetricsFile(self.run_dir / "metrics.csv", self.step), *loggers]
        callbacks = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        unwanted = (ProgressBar, type(None)) if config.enable_progress_bar is False else type(None)
        self.checkpoints = Recorder(self.run_dir, self.parser, self.config)
        config.callbacks = [*(each for each in callbacks if not isinstance(each, unwanted)), self.checkpoints]
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            self.parser.error(str(error))

    def after_instantiate_classes(self) -> None:
        """Makes the hyperparameters plain values, the network fast, and the data begin where a resumed run stopped."""
        for hparams in (self.model.hparams, self.datamodule.hparams):
            for key, value in hparams.items():
                for plain in (int, float, str):  # checkpoints hold nothing else
                    if isinstance(value, plain) and not isinstance(value, bool):
                        hparams[key] = plain(value)
        torch.set_float32_matmul_precision(self.config.matmul_precision)
        if self.config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.config.compile != "none":
            self.model.net.compile(mode=self.config.compile)  # in place, so that the weights keep their names
        prepare_data(self.datamodule, self.state)


def fast_precision(accelerator: str) -> Literal["bf16-mixed", "32-true"]:
    """Mixed precision with bfloat16 where the processor computes in it, else float32."""
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = accelerator in ("auto", "cpu") and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


class LeanProgressBar(RichProgressBar):
    """Shows the loss of the step; between two refreshes it does nothing, as looking takes longer than a small step."""

    loss, drawn = float("nan"), 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any) -> None:
        now = time.monotonic()
        if outputs and ((now - self.drawn) * self.refresh_rate >= 1 or trainer.is_last_batch):
            self.drawn = now
            self.loss = outputs["loss"].item() * trainer.accumulate_grad_batches  # by which it was divided
            super().on_train_batch_end(trainer, pl_module, outputs, *batch)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {"train/loss": self.loss} | super().get_metrics(trainer, pl_module)


class Recorder(Checkpoints):
    """Keeps the checkpoints, writes `config.yaml` and `run.json`, and logs what `training_step` returns.

    That is the loss, or a dictionary with `loss` and other numbers, to which the next step's learning rate is added. It
    goes straight to the loggers, every `log_every_n_steps` steps: each `self.log` in `training_step` would cost time at
    all other steps, too, as each further callback would.
    """

    def __init__(self, run_dir: Path, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(run_dir / "checkpoints", config.monitor, config.monitor_mode, config.checkpoint_minutes)
        self.run_dir, self.parser, self.config = run_dir, parser, config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        with replacing(self.run_dir / "config.yaml") as partial:
            partial.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")
        if (file := self.run_dir / "run.json").exists():
            run = json.loads(file.read_text(encoding="utf-8"))
            write_json(file, run | {"resumed": [*run["resumed"], shlex.join(sys.argv)]})
            return
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(yaml.safe_load(self.parser.dump(self.config)))
        git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        data = self.config.data.get("data_dir") or self.config.data.get("csv")
        run = {
            "command": shlex.join(sys.argv),
            "resumed": [],
            "seed": self.config.seed_everything,
            "git_commit": subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None,
            "code": fingerprint(*sorted(ROOT.glob("*/*.py"))),
            "data": fingerprint(ROOT / Path(data).expanduser()) if data else None,
            "python": platform.python_version(),
            "packages": dict(sorted((package.name, package.version) for package in distributions())),
        }
        write_json(file, run)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, *batch)
        stepped = trainer.is_last_batch or (batch[1] + 1) % trainer.accumulate_grad_batches == 0
        if stepped and outputs and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            loss = outputs["loss"] * trainer.accumulate_grad_batches  # by which it was divided
            metrics = {f"train/{name}": float(value) for name, value in (outputs | {"loss": loss}).items()}
            metrics["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
            for logger in trainer.loggers:
                logger.log_metrics(metrics, trainer.global_step - 1)
                logger.save()


def newest_checkpoint() -> Path:
    """The best checkpoint of the newest run that has one.

    Raises:
        FileNotFoundError: No run has finished an epoch yet.
    """
    checkpoints = sorted(LOGS.glob("*/checkpoints/best.ckpt"))
    if not checkpoints:
        raise FileNotFoundError(f"no checkpoint in {LOGS}: run training/train.py first, or give --ckpt_path FILE")
    return checkpoints[-1]


def load_checkpoint(file: Path | str) -> tuple[MyModel, dict[str, Any]]:
    """Reads a checkpoint without running code that it may hold; returns the model and all that the file has.

    Raises:
        OSError: The file is missing, is no checkpoint, or is one of another project.
    """
    checkpoint = read_checkpoint(file)
    try:
        model = MyModel(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise OSError(f"{file} is of another project, variant or network: name another checkpoint") from error
    return model.eval(), checkpoint


def checkpoint_parser(description: str) -> PlainParser:
    """A command line that names a checkpoint."""
    parser = PlainParser(description=description)
    parser.add_argument("--ckpt_path", type=Path, help="Checkpoint file; by default the best one of the newest run.")
    parser.add_argument("--debug", action="store_true", help=DEBUG)
    return parser


def restore_run(parser: PlainParser, args: list[str] | None) -> tuple[Namespace, Trainer, MyModel, MyDataModule]:
    """The options, and what evaluates a checkpoint in its precision, on one device, writing nothing.

    The data module's arguments are those of the checkpoint, unless the command line gives others.
    """
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu, gpu, cuda or mps.")
    parser.add_class_arguments(MyDataModule, "data")
    options = parser.parse_args(args)
    given = parser.parse_args(args, defaults=False).get("data") or Namespace()
    model, checkpoint = load_checkpoint(options.ckpt_path or newest_checkpoint())
    try:
        data = MyDataModule(**(checkpoint["datamodule_hyper_parameters"] | vars(given)))
    except (KeyError, TypeError) as error:
        raise OSError(f"{options.ckpt_path} is of another project or variant: name another checkpoint") from error
    for name in MyDataModule.MODEL_ARGUMENTS:  # what the model was built for, whatever the data hold now
        setattr(data, name, model.hparams[name])
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=1,
        precision=checkpoint["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    return options, trainer, model, data


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Prints the metrics of one split as a table."""
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


def print_rows(rows: list[dict[str, Any]], form: str) -> None:
    """Prints rows that have the same keys as a table, as a JSON list or as CSV with a header."""
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        table = Table(*rows[0])
        for row in rows:
            cells = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values())
            table.add_row(*(" ".join(cell.split()) for cell in cells))
        Console().print(table)


def save_learning_curves(run_dir: Path) -> None:
    """Draws every metric of `metrics.csv` over the steps, one panel a metric and one line a split."""
    with open(run_dir / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    panels = sorted({key.split("/")[1] for key in rows[0] if key.startswith(("train/", "val/"))})
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], panels, strict=True):
        for key in (f"train/{name}", f"val/{name}"):
            if points := [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]:
                axis.plot(*zip(*points, strict=True), label=key)
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(run_dir / "learning_curves.png", dpi=120)


def run(main: Callable[[], None]) -> None:
    """Runs a command; what its user can mend ends it with one sentence and exit status 1."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, FloatingPointError, MisconfigurationException, RuntimeError) as error:
        dead_worker = "DataLoader worker (pid" in str(error)
        if "--debug" in sys.argv or (type(error) is RuntimeError and not dead_worker):
            raise
        # From a worker process the message arrives below a traceback.
        message = re.split(r"\n\w+Error: ", str(error))[-1].rstrip()
        sys.exit(f"error: {message}" + " It may have run out of memory: give fewer --data.num_workers" * dead_worker)
