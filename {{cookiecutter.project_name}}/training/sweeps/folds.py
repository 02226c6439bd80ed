"""Out-of-fold predictions: those of each fold's model for the samples that it was not trained on."""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score
from torch import Tensor

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI, predict
from training.engine.files import replacing

Row = dict[str, Any]
NUMBERS = ("prediction", "forecast")  # columns that are compared with numbers in the column truth


class ValData(MyDataModule):
    """A data module without `predict_split`: its validation batches are predicted."""

    def setup(self, stage: str) -> None:
        super().setup("validate")

    def predict_dataloader(self) -> Any:
        return self.val_dataloader()


def predict_fold(checkpoint: Path) -> list[Row]:
    """The predictions of a checkpoint for the validation samples of its fold.

    Raises:
        OSError: `predict_step` cannot predict validation batches.
    """
    has_split = hasattr(MyDataModule, "predict_split")
    argv, sys.argv = sys.argv, ["predict.py", "--ckpt_path", str(checkpoint)]  # LightningCLI warns of other arguments
    try:
        cli = CheckpointCLI(MyModel, MyDataModule if has_split else ValData)
    finally:
        sys.argv = argv
    if has_split:
        setattr(cli.datamodule, "predict_split", "val")  # noqa: B010  # unknown to type checkers
    try:
        return [row for output in predict(cli, []) for row in rows_of(output)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        hint = "MyModel.predict_step must take validation batches, or MyDataModule needs predict_split"
        raise OSError(f"{hint} ({type(error).__name__}: {error})") from error


def rows_of(output: Any) -> list[Row]:
    """The rows of a batch: the columns that `predict_step` returns, or its output for each sample."""
    columns = output if isinstance(output, Mapping) else {"output": output}
    plain = {name: each.tolist() if isinstance(each, Tensor) else each for name, each in columns.items()}
    return [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]


def write_out_of_fold(folder: Path, checkpoints: Mapping[int, Path]) -> tuple[int, dict[str, float]]:
    """Write `out_of_fold.csv`: fold, the columns of the data module, such as input and truth, and the prediction.

    Args:
        folder: Folder of the sweep.
        checkpoints: The checkpoint of each fold.

    Returns:
        The number of rows, and metrics over all of them if they have the truth.

    Raises:
        OSError: The samples of a fold cannot be predicted.
    """
    rows: list[Row] = []
    for fold, checkpoint in sorted(checkpoints.items()):
        for row in predict_fold(checkpoint):
            shown = {name: value for name, value in row.items() if not isinstance(value, Tensor | dict)}  # no masks
            rows.append({"fold": fold, **shown})
    if not rows:
        raise OSError("MyModel.predict_step returned nothing for the validation samples")
    columns = dict.fromkeys(name for row in rows for name in row)
    with replacing(folder / "out_of_fold.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
    return len(rows), measure(rows)


def measure(rows: list[Row]) -> dict[str, float]:
    """Metrics of predicted classes or numbers; none if rows lack the truth or the prediction."""
    truths = [row.get("truth") for row in rows]
    if None in truths:
        return {}
    if "class" in rows[0]:
        classes = [row["class"] for row in rows]
        f1 = f1_score(truths, classes, average="macro", zero_division=0)
        return {"accuracy": float(accuracy_score(truths, classes)), "macro F1": float(f1)}
    if column := next((name for name in NUMBERS if name in rows[0]), None):
        numbers, predictions = [float(str(truth)) for truth in truths], [row[column] for row in rows]
        error = mean_absolute_error(numbers, predictions)
        return {"R2": float(r2_score(numbers, predictions)), "MAE": float(error)}
    return {}
