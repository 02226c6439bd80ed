"""Print predictions: `python training/predict.py INPUT... [--format table|json|csv]`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning.pytorch.cli import LightningArgumentParser

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI, predict
from training.engine.interrupts import run_command
from training.engine.reports import print_rows


class PredictCLI(CheckpointCLI):
    description = "Print what a checkpoint predicts."

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("inputs", nargs="*", help="What to predict; by default a few test samples.")
        formats = Literal["table", "json", "csv"]
        parser.add_argument("--format", type=formats, default="table", help="Format of the output.")


def main(args: list[str] | None = None) -> None:
    cli = PredictCLI(MyModel, MyDataModule, args)
    outputs = predict(cli, cli.config.inputs)
    if all(isinstance(output, Mapping) for output in outputs):
        print_rows([row for output in outputs for row in rows_of(output)], cli.config.format)
    else:  # what predict_step returns by default
        for output in outputs:
            print(output)


def rows_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dictionary for each sample of a batch, whose predictions are columns of equal length."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


if __name__ == "__main__":
    run_command(main)
