"""The command line: makes data module, model and trainer from `configs/config.yaml` and flags."""

from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from random import randrange
from typing import Any

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from training.engine.checkpoint_files import naming
from training.engine.parser import ALL_HELP, HelpAll, Parser

LOADERS = [f"{split}_dataloader" for split in ("train", "val", "test", "predict")]


class ProjectCLI(LightningCLI):
    """The common part of all commands.

    Args:
        model_class: The project's LightningModule.
        data_class: The project's LightningDataModule.
        args: Arguments; None for those of the command line.
        defaults: Values of options, as in a config file, and the file that they come from.
        given: Values of model parameters that the data module provides, as saved in a checkpoint.
    """

    description = ""

    def __init__(
        self,
        model_class: type[LightningModule],
        data_class: type[LightningDataModule],
        args: list[str] | None,
        defaults: tuple[dict[str, Any], Path],
        given: dict[str, Any],
    ) -> None:
        self.defaults, self.given = defaults, given
        for given_class, base in ((model_class, LightningModule), (data_class, LightningDataModule)):
            if not issubclass(given_class, base):
                hint = "import from lightning, not from pytorch_lightning, which is another package"
                name = given_class.__name__
                raise MisconfigurationException(f"{name} is not a subclass of lightning.{base.__name__}: {hint}")
        # A parameter of the model that has the name of an attribute of the data module gets its value.
        own = [name for name in signature(model_class).parameters if not hasattr(LightningDataModule, name)]
        self.linked = [name for name in own if not callable(getattr(data_class, name, callable))]
        description = self.description
        if self.linked:
            description += f" The data module sets model.{', model.'.join(self.linked)}."
        super().__init__(
            model_class,
            data_class,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,
            parser_kwargs={"description": description, "usage": "%(prog)s [--OPTION VALUE ...]"},
            parser_class=Parser,
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        for section in ("trainer", "model", "data"):
            if not isinstance(self.config.get(section, Namespace()), Namespace):
                parser.error(f"{section} must be a mapping, not {self.config[section]!r}")
        for section, given_class in (("model", self._model_class), ("data", self._datamodule_class)):
            for name, parameter in signature(given_class).parameters.items():
                required = parameter.default is parameter.annotation is Parameter.empty
                if required and name not in self.linked and self.config.get(section, {}).get(name, ...) is None:
                    parser.error(f"{section}.{name} has no value and no default: set it in configs/config.yaml")

    def _set_seed(self) -> None:
        if isinstance(self.config.seed_everything, bool | None):  # no seed is given: choose one, and record it
            self.config.seed_everything = randrange(2**32)
        if not 0 <= self.config.seed_everything < 2**32:
            self.parser.error(f"seed_everything {self.config.seed_everything} is not between 0 and {2**32 - 1}")
        seed_everything(self.config.seed_everything, workers=True, verbose=False)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        help_ = "Seed of all random numbers; null chooses one at random. train.py records it in config.yaml of the run."
        parser.add_argument("--seed_everything", type=bool | int | None, default=0, help=help_)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(ALL_HELP, action=HelpAll, help="Show the help with all options of the trainer, and exit.")
        self.add_options(parser)
        parser.add_argument("--debug", action="store_true", help="Show where in the code an error comes from.")
        how = {"fail_untyped": False, "instantiate": False, "sub_configs": True}
        parser.add_class_arguments(self._model_class, "model", skip=set(self.linked), **how)
        parser.add_class_arguments(self._datamodule_class, "data", **how)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.take_defaults(*self.defaults)

    def add_options(self, parser: LightningArgumentParser) -> None:
        """Add the options of one command."""

    def instantiate_classes(self) -> None:
        config = self.config.clone()
        self.place(config.trainer)
        self.config_init = self.parser.instantiate_classes(config)
        try:
            self.datamodule = self._datamodule_class(**self.config_init.get("data", {}))
        except MisconfigurationException as error:
            self.parser.error(str(error))
        for name, value in self.given.items():
            if not isinstance(getattr(self._datamodule_class, name, None), property):
                setattr(self.datamodule, name, value)
        linked = {name: self.data_value(name) for name in self.linked}
        self.model = self.make_model({**self.config_init.get("model", {}), **linked})
        if config.trainer.precision == "64-true":
            self.model.double()  # before a checkpoint is loaded, whose weights would be rounded otherwise
        for name in LOADERS:
            if is_overridden(name, self.model) and not is_overridden(name, self.datamodule):
                setattr(self.datamodule, name, getattr(self.model, name))
        self.trainer = self.make_trainer(self.config_init.trainer)

    def data_value(self, name: str) -> Any:
        """Return an attribute of the data module, which may need the data to be set up."""
        if name in self.given:
            return self.given[name]
        try:
            return getattr(self.datamodule, name)
        except AttributeError:
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
            return getattr(self.datamodule, name)

    def place(self, config: Namespace) -> None:
        """Change the trainer's settings before its loggers and callbacks are made."""

    def make_model(self, arguments: dict[str, Any]) -> LightningModule:
        """Make the model."""
        return self._model_class(**arguments)

    def make_trainer(self, config: Namespace) -> Trainer:
        """Make the trainer of the command."""
        raise NotImplementedError

    def run(self, method: Callable[..., Any], checkpoint: Path | None, **options: Any) -> Any:
        """Seed all random number generators, then call `fit`, `test`, `validate` or `predict` of a trainer.

        With the same seed, `setup` splits data in the same way in every command.
        """
        seed_everything(self.config.seed_everything, workers=True, verbose=False)
        with naming(checkpoint):
            return method(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True, **options)
