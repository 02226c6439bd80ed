"""Write predicted masks: `python training/predict.py INPUT... [--output FOLDER] [--format table|json|csv]`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning.pytorch.cli import LightningArgumentParser
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI, predict
from training.engine.interrupts import run_command
from training.engine.parser import refuse
from training.engine.reports import print_rows


class PredictCLI(CheckpointCLI):
    description = "Write the masks that a checkpoint predicts, as PNG files whose pixels are indices of classes."

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        parser.usage = "%(prog)s [INPUT ...] [--OPTION VALUE ...]"
        help_ = "Picture files and folders of pictures; by default a few test pictures."
        parser.add_argument("inputs", nargs="*", default=[], help=help_)
        help_ = "Folder for the masks; by default predictions/ beside the checkpoint."
        parser.add_argument("--output", type=Path | None, default=None, help=help_)
        formats = Literal["table", "json", "csv"]
        parser.add_argument("--format", type=formats, default="table", help="Format of the output.")


def main(args: list[str] | None = None) -> None:
    if sum(arg.endswith(".ckpt") for arg in args or sys.argv[1:]) > 1:
        refuse("masks of several checkpoints cannot be averaged: give one --ckpt_path")
    cli = PredictCLI(MyModel, MyDataModule, args)
    outputs = predict(cli, cli.config.inputs)
    if all(isinstance(output, Mapping) for output in outputs):
        folder = cli.config.output or cli.ckpt_path.with_name("predictions")
        rows = [row for output in outputs for row in rows_of(output)]
        save_masks(rows, folder)
        print_rows(rows, cli.config.format)
    else:  # what predict_step returns by default
        for output in outputs:
            print(output)


def rows_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dictionary for each sample of a batch, whose predictions are columns of equal length."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def save_masks(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write the mask of each row to a file with the name of its input; the file replaces the mask in the row."""
    inputs = {Path(row["input"]).resolve() for row in rows if "input" in row}
    files: dict[Path, Tensor] = {}
    for row in [row for row in rows if "mask" in row]:
        file = folder / f"{Path(row.get('input', 'mask')).stem}.png"
        while file in files:
            file = file.with_stem(f"{file.stem}-2")
        if file.resolve() in inputs:
            refuse(f"the mask {file} would replace an input: choose another folder with --output")
        files[file], row["mask"] = row["mask"], str(file)
    for file, mask in files.items():
        write_mask(mask, file)


def write_mask(mask: Tensor, file: Path) -> None:
    """Write classes (H, W) uint8 as a PNG file with a palette, which shows each class in its own colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.numpy()).convert("P")
    colours = [colormaps["tab20"](i % 20)[:3] for i in range(256)]
    image.putpalette([round(255 * value) for colour in colours for value in colour])
    image.save(file)


if __name__ == "__main__":
    run_command(main)
