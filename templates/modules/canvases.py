"""Read picture files as they are stored, and draw the embedded pictures: digits on textured canvases."""

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou, masks_to_boxes
from torchvision.transforms.v2.functional import pil_to_tensor

# Pillow decodes these itself; for others, such as EPS, it may run another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CANVASES, SIDE = 400, 128  # number of embedded pictures, and their height and width in pixels


def refuse(source: object, problems: Sequence[str]) -> None:
    """Raises OSError with the first twenty `problems` of `source`, if there are any."""
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise OSError("\n  ".join([f"{source} has errors:", *problems[:20], *more]))


def list_pictures(folder: Path, pattern: str = "*") -> list[Path]:
    """Lists the files in a folder that have the suffix of a picture, sorted; links to missing files, too."""
    files = sorted(file for file in folder.glob(pattern) if file.suffix.lower() in SUFFIXES)
    return [file for file in files if file.is_file() or not file.exists()]  # a pipe or socket would block


def find_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """Lists the picture files among `paths` and, sorted, in the folders among them and their subfolders.

    Files in folders that look like pictures and cannot be opened are left out and named in a warning.

    Raises:
        FileNotFoundError: A path is neither a file nor a folder, or there is no picture.
    """
    files: list[Path] = []
    unreadable: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            for file in list_pictures(path, "**/*"):
                (files if can_open(file) else unreadable).append(file)
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path} is neither a file nor a folder: use picture files or folders of pictures")
    if unreadable:
        names = ", ".join(map(str, unreadable[:20])) + (" and others" if len(unreadable) > 20 else "")
        rank_zero_only(print)(f"warning: left out {len(unreadable)} unreadable: {names}", file=sys.stderr)
    if not files:
        raise FileNotFoundError(f"no picture in {', '.join(map(str, paths))}: looked for {' '.join(SUFFIXES)}")
    return files


def can_open(file: Path) -> bool:
    """Whether a file has the header of a picture."""
    try:
        open_picture(file).close()
    except OSError:
        return False
    return True


def open_picture(file: Path) -> Image.Image:
    """Opens a picture without decoding its pixels.

    Raises:
        OSError: The file is not a picture, or has too many pixels for one.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except Exception as error:  # Pillow raises many types for damaged headers
        raise OSError(f"{file} is not a readable picture ({error}): repair or remove it") from error


def read_picture(file: Path) -> Tensor:
    """Reads a picture of any mode as (3, H, W) uint8, as it is stored, without turning it by its EXIF data.

    Transparent parts become black, and 16 bits per pixel are scaled to 8.

    Raises:
        OSError: The file cannot be decoded.
    """
    with open_picture(file) as picture:
        try:
            return pil_to_tensor(convert_to_rgb(picture))
        except Exception as error:  # Pillow raises many types for damaged files
            raise OSError(f"{file} cannot be decoded ({error}): repair or remove it") from error


def convert_to_rgb(picture: Image.Image) -> Image.Image:
    """Converts a picture of any mode."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 instead of scaling
        picture = picture.point(lambda value: value / 256).convert("L")
        picture.info.pop("transparency", None)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture.convert("RGB")


class Canvas(NamedTuple):
    """A picture of K digits.

    Attributes:
        picture: (3, SIDE, SIDE) uint8.
        mask: (SIDE, SIDE) uint8; 0 is the background, and d + 1 the digit d.
        boxes: (K, 4) float32; left, top, right and bottom in pixels, the last two exclusive.
        labels: (K,) int64, the digits.
    """

    picture: Tensor
    mask: Tensor
    boxes: Tensor
    labels: Tensor


@lru_cache(maxsize=1)
def make_canvases() -> dict[str, list[Canvas]]:
    """Draws the canvases of train, val and test, which are always the same; the splits share no handwritten digit."""
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
    """Draws two to six digits that hardly overlap, of random size, place and colour, on a texture.

    Args:
        images: Digits (N, 8, 8) float32 in [0, 1] to choose from.
        targets: Their classes, (N,) integers.
        random: Source of random numbers.
    """
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
