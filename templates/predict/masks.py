"""Writes masks: `python training/predict.py PICTURE_OR_FOLDER... [--output FOLDER] [--format table|json|csv]`."""

import sys
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from training.run import checkpoint_parser, newest_checkpoint, print_rows, restore_run, run


def main(args: list[str] | None = None) -> None:
    parser = checkpoint_parser("Writes a mask of each picture, as PNG whose pixels are indices of classes.")
    parser.add_argument("inputs", nargs="*", help="Pictures and folders of them; by default a few test samples.")
    help_ = "Folder for the masks; by default predictions/ in the run's folder."
    parser.add_argument("--output", type=Path, help=help_)
    parser.add_argument("--format", type=Literal["table", "json", "csv"], default="table", help="What to print.")
    options, trainer, model, data = restore_run(parser, args)
    folder = options.output or (options.ckpt_path or newest_checkpoint()).resolve().parents[1] / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    data.inputs = options.inputs
    batches: Any = trainer.predict(model, datamodule=data)
    predictions = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
    rows: list[dict[str, Any]] = []
    written: set[Path] = set()
    for known, predicted in zip(data.predict_columns, predictions, strict=True):
        file = folder / f"{Path(known['input']).stem}.png"
        if file in written:
            file = file.with_stem(f"{file.stem}-{len(rows)}")
        written.add(file)
        write_mask(predicted["mask"], file)
        rows.append(known | predicted | {"mask": str(file)})
    print_rows(rows, options.format)


def write_mask(mask: Tensor, file: Path) -> None:
    """Writes classes (H, W) uint8 as a PNG that shows each in a colour of its own."""
    image = Image.fromarray(mask.numpy()).convert("P")
    colours = [colormaps["tab20"](i % 20)[:3] for i in range(256)]
    image.putpalette([round(255 * value) for colour in colours for value in colour])
    image.save(file)


if __name__ == "__main__":
    run(main)
