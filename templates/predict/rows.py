"""Print predictions: `python training/predict.py INPUT... [--format table|json|csv] [--ckpt_path FILE...]`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning.pytorch.cli import LightningArgumentParser

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI, predict
from training.engine.interrupts import run_command
from training.engine.reports import print_rows


class PredictCLI(CheckpointCLI):
    description = "Print what a checkpoint predicts, or the average of several: --ckpt_path A.ckpt B.ckpt C.ckpt."

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        parser.usage = "%(prog)s [INPUT ...] [--OPTION VALUE ...]"
        help_ = "Inputs to predict, such as files; by default a few test samples."
        parser.add_argument("inputs", nargs="*", default=[], help=help_)
        formats = Literal["table", "json", "csv"]
        parser.add_argument("--format", type=formats, default="table", help="Format of the output.")


def main(args: list[str] | None = None) -> None:
    rest, checkpoints = take_checkpoints(sys.argv[1:] if args is None else args)
    if len(checkpoints) < 2:
        cli = PredictCLI(MyModel, MyDataModule, args)
        rows = predict_rows(cli)
    else:
        predictions = []
        for checkpoint in checkpoints:
            sys.argv[1:] = [*rest, "--ckpt_path", checkpoint]
            cli = PredictCLI(MyModel, MyDataModule)
            predictions.append(predict_rows(cli))
        if len({len(each) for each in predictions}) > 1:
            raise OSError("the checkpoints predict different numbers of samples: name the INPUT to predict")
        rows = [average(same) for same in zip(*predictions, strict=True)]
    print_rows([{name: row[name] for name in row if name != "probabilities"} for row in rows], cli.config.format)


def take_checkpoints(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without --ckpt_path, and the checkpoints after it."""
    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--ckpt_path=") else [arg])]
    if "--ckpt_path" not in args:
        return args, []
    first = end = args.index("--ckpt_path") + 1
    while end < len(args) and args[end].endswith(".ckpt"):
        end += 1
    return [*args[: first - 1], *args[end:]], list(args[first:end])


def predict_rows(cli: PredictCLI) -> list[dict[str, Any]]:
    return [row for output in predict(cli, cli.config.inputs) for row in rows_of(output)]


def average(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average the predictions of several checkpoints for a sample: probabilities and numbers.

    Raises:
        OSError: The values of a column differ and are not numbers.
    """
    first = rows[0]
    averaged: dict[str, Any] = {}
    for name, value in first.items():
        values: list[Any] = [row.get(name) for row in rows]
        if name == "probabilities":
            classes = dict.fromkeys(each for row in rows for each in row[name])  # a fold may lack rare ones
            averaged[name] = {each: fmean([row[name].get(each, 0.0) for row in rows]) for each in classes}
            averaged["class"] = max(averaged[name], key=averaged[name].__getitem__)
            averaged["probability"] = averaged[name][averaged["class"]]
        elif name in ("class", "probability") and "probabilities" in first:
            averaged[name] = value  # until the probabilities are averaged
        elif all(each == value for each in values):
            averaged[name] = value
        elif all(isinstance(each, float) for each in values):
            averaged[name] = fmean(values)
        else:
            raise OSError(f"predictions of {name!r}, such as {value!r}, cannot be averaged: use one checkpoint")
    return averaged


def rows_of(output: Any) -> list[dict[str, Any]]:
    """Split the columns, tensors or list that `predict_step` returns into one dictionary for each sample."""
    if isinstance(output, tuple):
        output = {f"output{i}": each for i, each in enumerate(output)}
    elif isinstance(output, list):
        output = {"output": [each if isinstance(each, str | int | float) else str(each) for each in output]}
    elif hasattr(output, "tolist"):  # a tensor or an array
        output = {"output": output}
    elif not isinstance(output, Mapping):
        output = {"output": [str(output)]}
    columns = [values.tolist() if hasattr(values, "tolist") else values for values in output.values()]
    number = max((len(values) for values in columns if isinstance(values, list | tuple)), default=1)
    columns = [values if isinstance(values, list | tuple) else [values] * number for values in columns]
    return [dict(zip(output, values, strict=True)) for values in zip(*columns, strict=True)]


if __name__ == "__main__":
    run_command(main)
