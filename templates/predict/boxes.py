"""Finds objects: `python training/predict.py PICTURE_OR_FOLDER... [--format table|json|csv] [--draw FOLDER]`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jsonargparse.typing import ClosedUnitInterval
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from training.run import checkpoint_parser, print_rows, restore_run, run


def main(args: list[str] | None = None) -> None:
    parser = checkpoint_parser("Prints the boxes that a checkpoint finds; as JSON, they are results in COCO's format.")
    parser.add_argument("inputs", nargs="*", help="Pictures and folders of them; by default a few test samples.")
    parser.add_argument("--format", type=Literal["table", "json", "csv"], default="table", help="What to print.")
    parser.add_argument("--min_score", type=ClosedUnitInterval, default=0.05, help="Least score of a box.")
    parser.add_argument("--draw", type=Path, help="Folder for the pictures with their boxes of a score above 0.5.")
    options, trainer, model, data = restore_run(parser, args)
    data.inputs = options.inputs
    batches: Any = trainer.predict(model, datamodule=data)
    outputs = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
    rows: list[dict[str, Any]] = []
    for i, (known, output) in enumerate(zip(data.predict_columns, outputs, strict=True)):
        output = {key: values[output["scores"] >= options.min_score] for key, values in output.items()}
        rows += list_boxes(known, output, model.hparams)
        if options.draw:
            options.draw.mkdir(parents=True, exist_ok=True)
            file = options.draw / f"{i:04}-{Path(known['input']).stem}.png"
            to_pil_image(draw_boxes(data.predict[i][0], output, model.hparams["class_names"])).save(file)
    if not rows and options.format != "json":
        sys.exit(f"no box has a score of {options.min_score} or more: see --min_score")
    print_rows(rows, options.format)


def list_boxes(known: dict[str, Any], output: dict[str, Tensor], hparams: Any) -> Iterator[dict[str, Any]]:
    """The boxes of one picture, each as a result in COCO's format, with its file and class beside."""
    for (left, top, right, bottom), label, score in zip(*(output[k].tolist() for k in output), strict=True):
        names = {"category_id": hparams["category_ids"][label - 1], "class": hparams["class_names"][label - 1]}
        box = [round(value, 2) for value in (left, top, right - left, bottom - top)]
        yield known | names | {"bbox": box, "score": score}


def draw_boxes(picture: Tensor, output: dict[str, Tensor], names: list[str]) -> Tensor:
    """A picture (3, H, W) uint8 with the boxes of a score above 0.5, their classes and scores."""
    likely = output["scores"] > 0.5
    labels, scores = output["labels"][likely].tolist(), output["scores"][likely].tolist()
    texts = [f"{names[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    return draw_bounding_boxes(picture, output["boxes"][likely], texts, colors="red") if texts else picture


if __name__ == "__main__":
    run(main)
