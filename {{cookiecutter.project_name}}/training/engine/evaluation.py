"""Evaluating and predicting with a checkpoint."""

import sys
import warnings
from argparse import SUPPRESS
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Checkpoint, LearningRateFinder, ProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from training.engine.checkpoint_files import SafeCheckpointIO, load_weights, misfit
from training.engine.command_line import ProjectCLI
from training.engine.interrupts import warn
from training.engine.parser import ALL_HELP, flag_value, read_config
from training.engine.plain_values import as_list
from training.engine.run_folder import LOGS, newest_first

ONLY_IN_TRAINING = (BatchSizeFinder, Checkpoint, LearningRateFinder, ProgressBar, WeightAveraging)


class CheckpointCLI(ProjectCLI):
    """Restore a trained model and its data for the commands that use a checkpoint.

    Attributes:
        ckpt_path: The checkpoint.
        trainer: Trainer that evaluates on one device, in the precision of the run, and writes nothing.
    """

    def __init__(
        self, model_class: type[LightningModule], data_class: type[LightningDataModule], args: list[str] | None = None
    ) -> None:
        arguments = sys.argv[1:] if args is None else args
        if {"-h", "--help", ALL_HELP}.intersection(arguments):
            super().__init__(model_class, data_class, args, ({}, Path()), {})  # exits, without a checkpoint
        name = flag_value("--ckpt_path", arguments)
        self.ckpt_path = Path(name) if name else newest_checkpoint()
        self.checkpoint = SafeCheckpointIO().load_checkpoint(self.ckpt_path)
        file = self.ckpt_path.resolve().parents[1] / "config.yaml"
        given = dict(self.checkpoint["run"].get("given", {}))
        if file.exists():
            defaults = read_config(file), file
        else:  # moved away from its run: use what save_hyperparameters saved
            model, data = (self.checkpoint.get(f"{key}hyper_parameters", {}) for key in ("", "datamodule_"))
            model = {name: value for name, value in model.items() if name not in given}
            defaults = {"model": model, "data": data}, self.ckpt_path
        super().__init__(model_class, data_class, args, defaults, given)

    def make_model(self, arguments: dict[str, Any]) -> LightningModule:
        """Make the model, after comparing the shapes of its weights with those in the checkpoint.

        Otherwise a small file could request a network that exceeds the memory.
        """
        saved = self.checkpoint["state_dict"]
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pretrained weights, which are not loaded here
                weights = self._model_class(**arguments).state_dict()
                shapes = {name: each.shape for name, each in weights.items()}
        except Exception:  # shapes are not compared if the network cannot be built on the meta device
            shapes = {}
        for name, expected in shapes.items():
            shape = getattr(saved.get(name), "shape", expected)
            if shape != expected:
                both = f"{tuple(shape)} in the checkpoint, but {tuple(expected)} in the model"
                raise OSError(
                    f"{self.ckpt_path} does not fit the project: {name} has the shape {both}: use the code and"
                    " settings that it was trained with, or another checkpoint"
                )
        try:
            return self._model_class(**arguments)
        except OSError:
            raise
        except Exception as error:  # the type depends on the model
            raise misfit(self.ckpt_path, error) from error

    def add_options(self, parser: LightningArgumentParser) -> None:
        help_ = "Checkpoint file; by default the best one of the newest run."
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=help_)
        for name in ("monitor", "monitor_mode", "checkpoint_minutes", "compile"):  # in the config of a run
            parser.add_argument(f"--{name}", type=Any, default=None, help=SUPPRESS)
        self.add_command_options(parser)

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        """Add the options of one command."""

    def restore(self) -> None:
        """Load the weights, after making layers that the model makes only in `setup` or `configure_model`."""
        missing = self.checkpoint["state_dict"].keys() - self.model.state_dict().keys()
        if missing and is_overridden("setup", self.model):  # which may ask the data for their number of classes
            self.model.trainer, self.trainer.datamodule = self.trainer, self.datamodule
            self.datamodule.trainer = self.trainer
            self.datamodule.prepare_data()
            self.datamodule.setup("test")
            self.model.setup("test")
        self.model.configure_model()
        load_weights(self.model, self.ckpt_path)

    def place(self, config: Namespace) -> None:
        config.logger, config.profiler = None, None

    def make_trainer(self, config: Namespace) -> Trainer:
        return make_evaluator(config, self.ckpt_path.parent, [])


def make_evaluator(config: Namespace, folder: Path, loggers: list[Logger]) -> Trainer:
    """Make a trainer that evaluates on one device, with the settings of a run."""
    kept = ("accelerator", "inference_mode", "limit_val_batches", "limit_test_batches", "deterministic", "precision")
    return Trainer(
        **{name: config[name] for name in kept},
        callbacks=[each for each in as_list(config.callbacks) if not isinstance(each, ONLY_IN_TRAINING)],
        devices=1,
        plugins=[SafeCheckpointIO()],
        default_root_dir=str(folder),
        logger=loggers or [DummyLogger()],  # the project's code may use a logger
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def newest_checkpoint() -> Path:
    """Return the best checkpoint of the newest run with checkpoints, or its last one if there is no best one.

    Raises:
        FileNotFoundError: No run has saved a checkpoint.
    """
    for run in newest_first(LOGS):
        for name in ("best.ckpt", "last.ckpt"):
            if (run / "checkpoints" / name).exists():
                return run / "checkpoints" / name
    raise FileNotFoundError(f"no checkpoint in {LOGS}: run training/train.py first, or use --ckpt_path FILE")


def missing_for(cli: ProjectCLI, split: str, trainer: Trainer) -> list[str]:
    """Return what is missing to evaluate a split: methods of the project's classes, or a trainer setting."""
    loader, step = f"{split}_dataloader", {"val": "validation_step", "test": "test_step"}[split]
    missing = []
    if not (is_overridden(loader, cli.datamodule) or is_overridden(loader, cli.model)):
        missing.append(f"{type(cli.datamodule).__name__}.{loader}")
    if not is_overridden(step, cli.model):
        missing.append(f"{type(cli.model).__name__}.{step}")
    if getattr(trainer, f"limit_{split}_batches") == 0:
        missing.append(f"trainer.limit_{split}_batches above 0")
    return missing


def evaluate(cli: ProjectCLI, trainer: Trainer, split: str, checkpoint: Path | None) -> dict[str, float]:
    """Return the metrics of a checkpoint on a split, "val" or "test"; on "val" if the test is not possible.

    Without a checkpoint, the model is evaluated with its current weights.
    """
    if missing := missing_for(cli, split, trainer):
        print(f"{split} metrics need {' and '.join(missing)}", flush=True)
        return evaluate(cli, trainer, "val", checkpoint) if split == "test" else {}
    results = cli.run(trainer.test if split == "test" else trainer.validate, checkpoint, verbose=False)
    metrics = {name: value for result in results for name, value in result.items()}
    if wrong := [name for name, value in metrics.items() if isnan(value)]:
        warn(f"these metrics are NaN: {', '.join(wrong)}; check the {split} data and the metrics of the model")
    return metrics


def predict(cli: CheckpointCLI, inputs: list[str]) -> list[Any]:
    """Return the outputs of `predict_step` for each batch of inputs, or of test or validation samples."""
    data, model = cli.datamodule, cli.model
    own_loader = is_overridden("predict_dataloader", data)
    if own_loader and hasattr(data, "inputs"):
        data.inputs = inputs
    elif inputs:
        name = type(data).__name__
        cli.parser.error(f"{name} takes no INPUT: give it an attribute `inputs`, and read it in predict_dataloader")
    if not own_loader:
        split = "test" if is_overridden("test_dataloader", data) else "val"
        print(f"predicting {split} samples, as {type(data).__name__} has no predict_dataloader", file=sys.stderr)
        data.predict_dataloader = getattr(data, f"{split}_dataloader")
        setup, stage = data.setup, split.replace("val", "validate")
        data.setup = lambda stage=stage: setup(stage)
    if not is_overridden("predict_step", model):
        model.predict_step = lambda batch, *rest: model(batch[0] if isinstance(batch, list | tuple) else batch)
    try:
        outputs = list(cli.run(cli.trainer.predict, cli.ckpt_path) or [])
        return list(chain.from_iterable(outputs)) if len(cli.trainer.num_predict_batches) > 1 else outputs
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        if own_loader:
            raise
        step, loader = f"{type(model).__name__}.predict_step", f"{type(data).__name__}.predict_dataloader"
        raise OSError(f"{step} fails with {split} samples ({error}): change it, or add {loader}") from error
