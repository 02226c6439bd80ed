"""Reading picture files and shifting pictures at random."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


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


def read_picture(file: Path, size: tuple[int, int], channels: int) -> Tensor:
    """Reads a picture of any size and mode as (channels, *size) uint8, cut at the centre to the aspect of `size`.

    It is turned upright as its EXIF data say, transparent parts become black, and 16 bits a pixel are scaled to 8.

    Raises:
        OSError: The file cannot be decoded.
    """
    picture = open_picture(file)
    try:
        with picture:
            picture.draft(None, (max(size), max(size)))  # lets a large JPEG be decoded at a fraction of its size
            upright = ImageOps.exif_transpose(picture)
    except Exception as error:  # as above
        raise OSError(f"{file} cannot be decoded ({error}): mend or remove it") from error
    if upright.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip rather than scale
        upright = upright.point(lambda value: value / 256).convert("L")
        upright.info.pop("transparency", None)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright)
    upright = upright.convert("L" if channels == 1 else "RGB")
    height, width = size
    scale = min(upright.width / width, upright.height / height)
    cut = center_crop(pil_to_tensor(upright), [max(1, round(scale * height)), max(1, round(scale * width))])
    return resize(cut, [height, width])  # which takes a third of the time of Pillow's


def random_shift(pictures: Tensor, pixels: int) -> Tensor:
    """Shifts each picture of (N, C, H, W) by its own offset of up to `pixels` a side, filling up with black."""
    count, _, height, width = pictures.shape
    windows = pad(pictures, [pixels] * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view, by offset
    rows, columns = torch.randint(0, 2 * pixels + 1, (2, count), device=pictures.device)
    return windows[torch.arange(count, device=pictures.device), :, rows, columns]
