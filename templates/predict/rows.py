"""Print predictions: `python training/predict.py INPUT... [--format table|json|csv]`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

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
    print_rows([row for output in outputs for row in rows_of(output)], cli.config.format)


def rows_of(output: Any) -> list[dict[str, Any]]:
    """One dictionary for each sample of a batch: the columns that `predict_step` returns, or its tensor."""
    if isinstance(output, Tensor):
        output = {"output": output}
    elif not isinstance(output, Mapping):
        output = {"output": [str(output)]}
    columns = [values.tolist() if isinstance(values, Tensor) else values for values in output.values()]
    return [dict(zip(output, values, strict=True)) for values in zip(*columns, strict=True)]


if __name__ == "__main__":
    run_command(main)
