"""Print detected objects: `python training/predict.py INPUT... [--draw FOLDER] [--format table|json|csv]`."""

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jsonargparse.typing import ClosedUnitInterval
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor, tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI, predict
from training.engine.interrupts import run_command
from training.engine.parser import refuse
from training.engine.reports import print_rows

DRAWN_SCORE = 0.5  # boxes with a lower score are not drawn


class PredictCLI(CheckpointCLI):
    description = "Print the boxes that a checkpoint finds. With --format json they are results in COCO format."

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        parser.usage = "%(prog)s [INPUT ...] [--OPTION VALUE ...]"
        help_ = "Picture files and folders of pictures; by default a few test pictures."
        parser.add_argument("inputs", nargs="*", default=[], help=help_)
        help_ = "Leave out boxes with a lower score; the network itself returns no scores below 0.05."
        parser.add_argument("--min_score", type=ClosedUnitInterval, default=0.05, help=help_)
        help_ = f"Write the pictures to this folder, and draw boxes with a score of at least {DRAWN_SCORE} on them."
        parser.add_argument("--draw", type=Path | None, default=None, help=help_)
        formats = Literal["table", "json", "csv"]
        parser.add_argument("--format", type=formats, default="table", help="Format of the output.")


def main(args: list[str] | None = None) -> None:
    if sum(arg.endswith(".ckpt") for arg in args or sys.argv[1:]) > 1:
        refuse("boxes of several checkpoints cannot be averaged: give one --ckpt_path")
    cli = PredictCLI(MyModel, MyDataModule, args)
    outputs = predict(cli, cli.config.inputs)
    has_columns = all(isinstance(output, Mapping) for output in outputs)
    if cli.config.draw and not (has_columns and hasattr(cli.datamodule, "predict")):
        cli.parser.error("--draw needs a MyModel whose predict_step returns columns, and MyDataModule.predict")
    if has_columns:
        rows = [row for output in outputs for row in rows_of(output) if row.get("score", 1) >= cli.config.min_score]
        if cli.config.draw:
            draw_rows(rows, cli.datamodule.predict, cli.config.draw)
        if not rows and cli.config.format != "json":
            hint = "train longer, or lower --min_score if it is above 0.05, the lowest score that the network returns"
            sys.exit(f"no box has a score of at least {cli.config.min_score}: {hint}")
        print_rows(rows, cli.config.format)
    else:  # what predict_step returns by default
        for output in outputs:
            print(output)


def rows_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dictionary for each box of a batch, whose predictions are columns of equal length."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def draw_rows(rows: list[dict[str, Any]], pictures: Any, folder: Path) -> None:
    """Write each predicted picture with its boxes as a PNG file, such as 0000-NAME.png for the first input NAME.jpg.

    Args:
        rows: Predicted boxes.
        pictures: Dataset of pictures (3, H, W), float32 in [0, 1], and their columns.
        folder: Folder for the files.
    """
    inputs = [Path(columns["input"]) for _, columns in pictures]
    files = [folder / f"{i:04}-{file.stem}.png" for i, file in enumerate(inputs)]
    if replaced := {file.resolve() for file in files} & {file.resolve() for file in inputs}:
        refuse(f"a drawing would replace the input {min(replaced)}: choose another folder with --draw")
    folder.mkdir(parents=True, exist_ok=True)
    boxes = defaultdict(list)
    for row in rows:
        if row["score"] >= DRAWN_SCORE:
            boxes[row["input"]].append(row)
    for file, (picture, columns) in zip(files, pictures, strict=True):
        to_pil_image(draw_boxes(picture, boxes[columns["input"]])).save(file)


def draw_boxes(picture: Tensor, rows: list[dict[str, Any]]) -> Tensor:
    """Draw boxes with their classes and scores on a picture."""
    if not rows:
        return picture
    boxes = box_convert(tensor([row["bbox"] for row in rows]), "xywh", "xyxy")
    labels = [f"{row['class']} {row['score']:.2f}" for row in rows]
    return draw_bounding_boxes(picture, boxes, labels, colors="red")


if __name__ == "__main__":
    run_command(main)
