"""Reading picture files and cropping pictures at random."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import pil_to_tensor, resize

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
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
    except Exception as error:  # as above
        raise OSError(f"{file} cannot be decoded ({error}): mend or remove it") from error
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip rather than scale
        picture = picture.point(lambda value: value / 256).convert("L")
        picture.info.pop("transparency", None)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    if picture.mode != (mode := "L" if channels == 1 else "RGB"):
        picture = picture.convert(mode)
    height, width = size
    scale = min(picture.width / width, picture.height / height)
    cut = max(1, round(scale * width)), max(1, round(scale * height))
    left, top = (picture.width - cut[0]) // 2, (picture.height - cut[1]) // 2
    pixels = pil_to_tensor(picture.crop((left, top, left + cut[0], top + cut[1])))
    return resize(pixels, [height, width])  # which takes a third of the time of Pillow's


def random_crop(pictures: Tensor, size: Sequence[int], padding: int = 0) -> Tensor:
    """Cuts `size`, height and width in pixels, out of each picture of (N, C, H, W) at a place of its own.

    Before that, `padding` pixels of black are added on each side.
    """
    windows = pad(pictures, [padding] * 4).unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view, by offset
    count, _, height, width = windows.shape[:4]
    rows = torch.randint(height, (count,), device=pictures.device)
    columns = torch.randint(width, (count,), device=pictures.device)
    return windows[torch.arange(count, device=pictures.device), :, rows, columns]
