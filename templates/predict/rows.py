"""Prints predictions: `python training/predict.py INPUT... [--format table|json|csv]`."""

import sys
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.run import checkpoint_parser, print_rows, restore_run, run


def main(args: list[str] | None = None) -> None:
    parser = checkpoint_parser("Prints what a checkpoint predicts.")
    parser.add_argument("inputs", nargs="*", help="What to predict; by default a few test samples, beside the truth.")
    parser.add_argument("--format", type=Literal["table", "json", "csv"], default="table", help="What to print.")
    options, trainer, model, data = restore_run(parser, args)
    data.inputs = options.inputs
    batches: Any = trainer.predict(model, datamodule=data)
    predictions = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
    rows = [known | predicted for known, predicted in zip(data.predict_columns, predictions, strict=True)]
    print_rows(rows, options.format)


if __name__ == "__main__":
    run(main)
