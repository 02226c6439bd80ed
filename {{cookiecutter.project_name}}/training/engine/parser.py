"""The parser of the command line and of config files."""

import sys
from argparse import SUPPRESS, ArgumentParser, _HelpAction
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

ALL_HELP = "--help_all"
COMMON = ("max_epochs", "accelerator", "devices", "precision", "fast_dev_run", "limit_train_batches")


def refuse(message: str) -> NoReturn:
    """Print an error in the options as one line and exit with status 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


class HelpAll(_HelpAction):
    """Action of the flag that shows all options, also those that `--help` leaves out."""

    def __call__(self, parser: Any, *args: Any) -> None:
        parser.brief = False
        super().__call__(parser, *args)


class Parser(LightningArgumentParser):
    """A parser that refuses abbreviated flags, and prints an error as one line."""

    brief = True  # whether the help leaves out options of the trainer

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        refuse(f"{message} ({ALL_HELP} lists all options)")

    def format_help(self, *args: Any) -> str:
        """Describe the options; if `brief`, only the common ones of the trainer."""
        if self.brief and self.groups:
            self.groups["trainer"].title = f"Common options of the trainer; {ALL_HELP} shows the others, too"
            for action in self._actions:
                section, _, name = action.dest.partition(".")
                if section == "trainer" and name.partition(".")[0] not in COMMON:
                    action.help = SUPPRESS
        return super().format_help(*args)

    def take_defaults(self, content: dict[str, Any], source: Path) -> None:
        """Use the values of a config file as defaults; an empty section keeps the defaults of the code."""
        for section in ("trainer", "model", "data"):
            values = content.pop(section, None) or {}
            if not isinstance(values, dict):
                self.error(f"{source}: {section} must be a mapping, not {values!r}")
            content |= {f"{section}.{name}": value for name, value in values.items()}
        for name, value in content.items():
            try:
                self.set_defaults({name: value})
            except KeyError:
                self.error(f"{source}: there is no option {name!r}")


def read_config(file: Path) -> dict[str, Any]:
    """Read the options of a config file; exit with status 2 if it holds anything else."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        refuse(f"{file} is not valid YAML: {error}")
    if not isinstance(content, dict):
        refuse(f"{file} must hold a mapping of options, such as `trainer:`")
    return content


def flag_value(flag: str, args: list[str]) -> str | None:
    """Return the value of a flag; "" if the flag has no value, None if there is no such flag."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", nargs="?", const="")
    return parser.parse_known_args(args)[0].value
