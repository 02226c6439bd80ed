"""The command line: `configs/config.yaml` and flags in; data module, model and trainer out."""

import sys
from argparse import SUPPRESS
from collections.abc import Callable
from inspect import signature
from math import isnan
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden

from training.engine.checkpoints import SafeCheckpointIO, read_checkpoint
from training.engine.interrupts import warn
from training.engine.run_folder import LOGS, newest_first


class Parser(LightningArgumentParser):
    """Takes no abbreviated flags, and prints an error as one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print("error:", " ".join(message.split()), "(--help lists all options)", file=sys.stderr)
        sys.exit(2)

    def take_defaults(self, content: Any, source: Path) -> None:
        """Takes the values of a config file as defaults; an empty section keeps those of the code."""
        sections = ("trainer", "model", "data")
        if not isinstance(content, dict):
            self.error(f"{source} holds no mapping of options")
        for key, value in content.items():
            if key in sections and not (value is None or isinstance(value, dict)):
                self.error(f"{source}: {key} must be a mapping, not {value!r}")
            of_section = {f"{key}.{name}": each for name, each in (value or {}).items()} if key in sections else None
            for name, each in (of_section or ({} if key in sections else {key: value})).items():
                try:
                    self.set_defaults({name: each})
                except KeyError:
                    self.error(f"{source}: there is no option {name!r}")


def read_config(file: Path) -> Any:
    """The content of a config file.

    Raises:
        OSError: The file is missing or not YAML.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise OSError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error


def flag_value(flag: str, args: list[str]) -> str | None:
    """The value of a flag; "" if the flag has no value, None if there is no such flag."""
    for arg, following in zip(args, [*args, "-"][1:], strict=True):
        if arg == flag:
            return "" if following.startswith("-") else following
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}=")
    return None


class ProjectCLI(LightningCLI):
    """What all commands have in common.

    Args:
        model_class: The project's LightningModule.
        data_class: The project's LightningDataModule.
        args: Arguments; None takes those of the command line.
        defaults: Values of options, as a config file holds them, and the file that they come from.
        given: Values of the parameters of the model that the data module provides, from a checkpoint.
    """

    description = ""

    def __init__(
        self,
        model_class: type[LightningModule],
        data_class: type[LightningDataModule],
        args: list[str] | None,
        defaults: tuple[Any, Path],
        given: dict[str, Any],
    ) -> None:
        self.defaults, self.given = defaults, given
        # Parameters of the model that have the name of an attribute of the data module get its value.
        own = [name for name in signature(model_class).parameters if not hasattr(LightningDataModule, name)]
        self.linked = [name for name in own if hasattr(data_class, name)]
        super().__init__(
            model_class,
            data_class,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,
            parser_kwargs={"description": self.description, "usage": "%(prog)s [--OPTION VALUE ...]"},
            parser_class=Parser,
            args=args,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.add_options(parser)
        parser.add_argument("--debug", action="store_true", help="Show where in the code an error comes from.")
        how = {"fail_untyped": False, "instantiate": False, "sub_configs": True}
        parser.add_class_arguments(self._model_class, "model", skip=set(self.linked), **how)
        parser.add_class_arguments(self._datamodule_class, "data", **how)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.take_defaults(*self.defaults)

    def add_options(self, parser: LightningArgumentParser) -> None:
        """Adds the options of one command."""

    def instantiate_classes(self) -> None:
        config = self.config.clone()
        self.place(config.trainer)
        self.config_init = self.parser.instantiate_classes(config)
        self.datamodule = self._datamodule_class(**self.config_init.get("data", {}))
        for name, value in self.given.items():
            setattr(self.datamodule, name, value)
        linked = {name: getattr(self.datamodule, name) for name in self.linked}
        self.model = self._model_class(**self.config_init.get("model", {}), **linked)
        self.trainer = self.make_trainer(self.config_init.trainer)

    def place(self, config: Namespace) -> None:
        """Changes the trainer's settings before loggers and callbacks are made from them."""
        raise NotImplementedError

    def make_trainer(self, config: Namespace) -> Trainer:
        """Makes the trainer of the command."""
        raise NotImplementedError

    def missing_for(self, split: str, trainer: Trainer) -> list[str]:
        """The methods of the project's classes that evaluating a split would need; empty if it can be evaluated."""
        loader, step = f"{split}_dataloader", {"val": "validation_step", "test": "test_step"}[split]
        missing = []
        if not (is_overridden(loader, self.datamodule) or is_overridden(loader, self.model)):
            missing.append(f"{type(self.datamodule).__name__}.{loader}")
        if not is_overridden(step, self.model):
            missing.append(f"{type(self.model).__name__}.{step}")
        if getattr(trainer, f"limit_{split}_batches") == 0:
            missing.append(f"trainer.limit_{split}_batches above 0")
        return missing

    def evaluate(self, trainer: Trainer, split: str, checkpoint: Path) -> dict[str, float]:
        """The metrics of a checkpoint on a split, "val" or "test"; where the test is not possible, on "val"."""
        if missing := self.missing_for(split, trainer):
            print(f"{split} metrics need {' and '.join(missing)}", flush=True)
            return self.evaluate(trainer, "val", checkpoint) if split == "test" else {}
        results = self.run(trainer.test if split == "test" else trainer.validate, checkpoint, verbose=False)
        metrics = {name: value for result in results for name, value in result.items()}
        if wrong := [name for name, value in metrics.items() if isnan(value)]:
            warn(f"NaN: {', '.join(wrong)}")
        return metrics

    def predict(self, trainer: Trainer, checkpoint: Path, inputs: list[str]) -> list[Any]:
        """What `predict_step` returns for each batch of inputs, or of test or validation samples."""
        data, model = self.datamodule, self.model
        if hasattr(data, "inputs"):
            data.inputs = inputs
        elif inputs:
            self.parser.error(f"INPUT needs {type(data).__name__}.inputs, which predict_dataloader reads")
        if not is_overridden("predict_dataloader", data):
            split = "test" if is_overridden("test_dataloader", data) else "val"
            print(f"predicting {split} samples, as {type(data).__name__} has no predict_dataloader", file=sys.stderr)
            data.predict_dataloader = getattr(data, f"{split}_dataloader")
            setup, stage = data.setup, split.replace("val", "validate")
            data.setup = lambda stage=stage: setup(stage)
        if not is_overridden("predict_step", model):
            model.predict_step = lambda batch, *rest: model(batch[0] if isinstance(batch, list | tuple) else batch)
        return list(self.run(trainer.predict, checkpoint) or [])

    def run(self, method: Callable[..., Any], checkpoint: Path | None, **options: Any) -> Any:
        """Calls `fit`, `test`, `validate` or `predict` of a trainer after seeding all random numbers.

        The seed makes `setup` split data the same way in every command.
        """
        seed_everything(self.config.seed_everything, workers=True, verbose=False)
        options |= {"datamodule": self.datamodule, "ckpt_path": checkpoint, "weights_only": True}
        try:
            return method(self.model, **options)
        except RuntimeError as error:
            if str(error).startswith("Error(s) in loading state_dict"):
                reason = " ".join(str(error).split())[:300]
                raise OSError(f"{checkpoint} does not fit {type(self.model).__name__}: {reason}") from error
            raise


class CheckpointCLI(ProjectCLI):
    """Restores a trained model and its data for the commands that use a checkpoint.

    Attributes:
        ckpt_path: The checkpoint.
        trainer: Evaluates on one device, in the precision of the run, and writes nothing.
    """

    def __init__(
        self, model_class: type[LightningModule], data_class: type[LightningDataModule], args: list[str] | None = None
    ) -> None:
        name = flag_value("--ckpt_path", sys.argv[1:] if args is None else args)
        self.ckpt_path = Path(name) if name else newest_checkpoint()
        self.checkpoint = read_checkpoint(self.ckpt_path)
        file = self.ckpt_path.resolve().parents[1] / "config.yaml"
        given = dict(self.checkpoint.get("run", {}).get("given", {}))
        if file.exists():
            defaults = read_config(file), file
        else:  # a checkpoint that was moved holds what save_hyperparameters saved
            model, data = (self.checkpoint.get(f"{key}hyper_parameters", {}) for key in ("", "datamodule_"))
            model = {name: value for name, value in model.items() if name not in given}
            defaults = {"model": model, "data": data}, self.ckpt_path
        super().__init__(model_class, data_class, args, defaults, given)

    def add_options(self, parser: LightningArgumentParser) -> None:
        help_ = "Checkpoint file; by default the best one of the newest run."
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=help_)
        for name in ("monitor", "monitor_mode", "checkpoint_minutes", "compile"):  # options of training, in the config
            parser.add_argument(f"--{name}", type=Any, default=None, help=SUPPRESS)
        self.add_command_options(parser)

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        """Adds the options of one command."""

    def place(self, config: Namespace) -> None:
        config.logger, config.callbacks, config.profiler = None, None, None

    def make_trainer(self, config: Namespace) -> Trainer:
        return make_evaluator(config, self.ckpt_path.parent, [])


def make_evaluator(config: Namespace, folder: Path, loggers: list[Logger]) -> Trainer:
    """A trainer that evaluates on one device as the settings of a run say."""
    kept = ("accelerator", "inference_mode", "limit_val_batches", "limit_test_batches", "deterministic", "precision")
    return Trainer(
        **{name: config[name] for name in kept},
        devices=1,
        plugins=[SafeCheckpointIO()],
        default_root_dir=str(folder),
        logger=loggers,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def newest_checkpoint() -> Path:
    """The best checkpoint of the newest run that has one, or its last one.

    Raises:
        FileNotFoundError: No run has finished an epoch.
    """
    for run in newest_first(LOGS):
        for name in ("best.ckpt", "last.ckpt"):
            if (run / "checkpoints" / name).exists():
                return run / "checkpoints" / name
    raise FileNotFoundError(f"no checkpoint in {LOGS}: run training/train.py first, or use --ckpt_path FILE")
