"""Reading picture files as they are, and the embedded pictures: handwritten digits scattered over canvases."""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou, masks_to_boxes
from torchvision.transforms.v2.functional import pil_to_tensor

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CANVASES, SIDE = 400, 128  # number of embedded pictures, and their height and width in pixels


def refuse(source: object, problems: Sequence[str]) -> None:
    """Raises OSError with the first twenty `problems` of `source`, if there are any."""
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise OSError("\n  ".join([f"{source} cannot be used, mend it first:", *problems[:20], *more]))


def find_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """Lists the picture files among `paths` and, sorted, in the folders among them.

    Raises:
        FileNotFoundError: A path does not exist, or there is no picture at all.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: name picture files or folders that hold some")
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [file for file in found if path.is_file() or file.suffix.lower() in SUFFIXES]
    if not files:
        raise FileNotFoundError(f"no picture in {', '.join(map(str, paths))}: looked for {' '.join(sorted(SUFFIXES))}")
    return files


def open_picture(file: Path) -> Image.Image:
    """Opens a picture without decoding its pixels.

    Raises:
        OSError: The file is not a picture that Pillow can read, or holds too many pixels to be one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels; Pillow refuses what would not fit into memory
            return Image.open(file)
    except Exception as error:  # whatever a plug-in of Pillow's makes of a damaged header
        raise OSError(f"{file} is not a readable picture ({error}): mend or remove it") from error


def read_picture(file: Path) -> Tensor:
    """Reads a picture of any mode as (3, H, W) uint8, on the pixel grid that it is stored in.

    Transparent parts become black, and 16 bits a pixel are scaled to 8.

    Raises:
        OSError: The file cannot be decoded.
    """
    picture = open_picture(file)
    try:
        with picture:
            picture.load()
    except Exception as error:  # as above
        raise OSError(f"{file} cannot be decoded ({error}): mend or remove it") from error
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip rather than scale
        picture = picture.point(lambda value: value / 256).convert("L")
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return pil_to_tensor(picture.convert("RGB"))


class Canvas(NamedTuple):
    """A picture (3, SIDE, SIDE) uint8, its mask (SIDE, SIDE) uint8, and its K digits' boxes and classes.

    In the mask 0 is the background, and digit d is d + 1. Boxes are (K, 4) float32, x and y of the first and after the
    last pixel; classes are (K,) int64.
    """

    picture: Tensor
    mask: Tensor
    boxes: Tensor
    labels: Tensor


@lru_cache(maxsize=1)
def make_canvases() -> dict[str, list[Canvas]]:
    """Canvases of train, val and test, always the same; no digit of one split is in another."""
    digits = load_digits()
    random = np.random.default_rng(0)
    order = random.permutation(len(digits.target))
    canvases = {}
    for split, first, end in (("train", 0.0, 0.7), ("val", 0.7, 0.8), ("test", 0.8, 1.0)):
        pool = order[int(first * len(order)) : int(end * len(order))]
        images, targets = torch.from_numpy(digits.images[pool] / 16).float(), digits.target[pool]
        count = round((end - first) * CANVASES)
        canvases[split] = [draw_canvas(images, targets, random) for _ in range(count)]
    return canvases


def draw_canvas(images: Tensor, targets: np.ndarray, random: np.random.Generator) -> Canvas:
    """Scatters two to six of the digits (N, 8, 8), values in [0, 1], over a texture; they hardly overlap."""
    picture = torch.zeros(3, SIDE, SIDE)
    for cells in (3, 12, 48):
        texture = torch.from_numpy(random.random((1, 3, cells, cells))).float()
        picture += 0.16 * interpolate(texture, (SIDE, SIDE), mode="bilinear")[0]
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    boxes = torch.zeros(0, 4)
    labels: list[int] = []
    for _ in range(random.integers(2, 7)):
        index, size = random.integers(len(images)), int(random.integers(24, 65))
        top, left = random.integers(0, SIDE - size, 2)
        ink = torch.zeros(SIDE, SIDE)
        enlarged = interpolate(images[index].view(1, 1, 8, 8), (size, size), mode="bicubic").clamp(0, 1)
        ink[top : top + size, left : left + size] = enlarged[0, 0]
        box = masks_to_boxes((ink > 0.4).unsqueeze(0)) + torch.tensor([0, 0, 1, 1])
        if box_iou(box, boxes).sum() > 0.05:
            continue
        colour = torch.from_numpy(random.uniform(0.6, 1.0, (3, 1, 1))).float()
        picture = torch.lerp(picture, colour, ink)
        mask[ink > 0.4] = int(targets[index]) + 1
        boxes, labels = torch.cat([boxes, box]), [*labels, int(targets[index])]
    return Canvas((picture * 255).round().to(torch.uint8), mask, boxes, torch.tensor(labels))
