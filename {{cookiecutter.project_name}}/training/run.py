"""What the commands share: the command line, the run folder, checkpoints, tables and curves."""

import csv
import json
import logging
import pickle
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from data.data_module import MyDataModule
from models.my_model import MyModel

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "logs"

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # data in memory needs none
warnings.filterwarnings("ignore", message=".*smaller than the logging interval")  # steps count on over epochs
warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning 2.6 on PyTorch 2.15
warnings.filterwarnings("ignore", message=".*exists and is not empty")  # the logger's files are there already
plt.switch_backend("agg")  # pictures go into files, never to a screen


class PlainParser(LightningArgumentParser):
    """Takes no abbreviated flags, and says what it refuses in one sentence."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print("error:", " ".join(message.split()), "(--help lists all options)", file=sys.stderr)
        sys.exit(2)


class RunCLI(LightningCLI):
    """Config file and command line in; data module, model, trainer and a run folder of their own out."""

    def __init__(self, args: list[str] | None = None) -> None:
        self.run_dir = LOGS / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        super().__init__(
            MyModel,
            MyDataModule,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveRun,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "default_config_files": [str(ROOT / "configs" / "config.yaml")],
                "description": "Fits a model, then tests its best checkpoint.",
                "usage": "train.py [--KEY VALUE ...]",
            },
            parser_class=PlainParser,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--monitor", type=str, help="Metric that decides which epoch is kept as best.ckpt.")
        parser.add_argument("--monitor_mode", type=Literal["min", "max"], help="Whether less or more of it is better.")
        for name in MyDataModule.MODEL_ARGUMENTS:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Puts the logger's files inside the run folder."""
        if self.config.trainer.fast_dev_run:
            self.config.trainer.logger = None
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
        loggers = config.logger if isinstance(config.logger, list) else [config.logger]
        config.logger = [CSVLogger(self.run_dir, name="", version=""), *(x for x in loggers if isinstance(x, Logger))]
        callbacks = config.callbacks or []
        if config.enable_progress_bar is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
        mode, monitor, folder = self.config.monitor_mode, self.config.monitor, self.run_dir / "checkpoints"
        self.best = ModelCheckpoint(folder, "best", monitor, mode=mode, enable_version_counter=False)
        last = ModelCheckpoint(folder, "last", save_on_exception=True, enable_version_counter=False)
        config.callbacks = [*callbacks, self.best, last]
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            self.parser.error(str(error))

    def after_instantiate_classes(self) -> None:
        """Turns range-checked numbers among the hyperparameters into plain ones: checkpoints hold nothing else."""
        for hparams in (self.model.hparams, self.datamodule.hparams):
            for key, value in hparams.items():
                for plain in (int, float, str):
                    if isinstance(value, plain) and not isinstance(value, bool):
                        hparams[key] = plain(value)


class SaveRun(SaveConfigCallback):
    """Writes `config.yaml` and `run.json` into the run folder, and shows the configuration to the logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(yaml.safe_load(self.parser.dump(self.config)))
        git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        run = {
            "command": shlex.join(sys.argv),
            "seed": self.config.seed_everything,
            "git_commit": subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None,
            "python": platform.python_version(),
            "packages": dict(sorted((package.name, package.version) for package in distributions())),
        }
        Path(trainer.default_root_dir, "run.json").write_text(json.dumps(run, indent=2), encoding="utf-8")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["precision"] = trainer.precision


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
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        model = MyModel(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except (EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise OSError(f"{file} is damaged, or is no checkpoint of this project: train anew or name another") from error
    return model.eval(), checkpoint


def checkpoint_parser(description: str) -> PlainParser:
    """A command line that names a checkpoint."""
    parser = PlainParser(description=description)
    parser.add_argument("--ckpt_path", type=Path, help="Checkpoint file; by default the best one of the newest run.")
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
    data = MyDataModule(**(checkpoint["datamodule_hyper_parameters"] | vars(given)))
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
    except (OSError, MisconfigurationException) as error:
        # From a worker process the message arrives below a traceback.
        sys.exit(f"error: {str(error).rpartition('OSError: ')[2].rstrip()}")
