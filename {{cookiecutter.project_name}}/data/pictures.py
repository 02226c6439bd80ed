"""Reading picture files and shifting pictures at random."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import pil_to_tensor

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
        return Image.open(file)
    except (OSError, Image.DecompressionBombError) as error:
        raise OSError(f"{file} is not a readable picture ({error}): mend or remove it") from error


def read_picture(file: Path, size: tuple[int, int], channels: int) -> Tensor:
    """Reads a picture of any size and mode as (channels, *size) uint8, cut at the centre to the aspect of `size`.

    Raises:
        OSError: The file cannot be decoded.
    """
    picture = open_picture(file)
    try:
        if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip rather than scale
            picture = picture.point(lambda value: value / 256).convert("L")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise OSError(f"{file} cannot be decoded ({error}): mend or remove it") from error
    height, width = size
    scale = min(picture.width / width, picture.height / height)
    left, top = (picture.width - scale * width) / 2, (picture.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return pil_to_tensor(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))


def random_shift(pictures: Tensor, pixels: int) -> Tensor:
    """Shifts each picture of (N, C, H, W) by its own offset of up to `pixels` a side, filling up with black."""
    count, channels, height, width = pictures.shape
    padded = pad(pictures, [pixels] * 4)
    device = pictures.device
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1, 1, 1), device=device)
    rows = offsets[0] + torch.arange(height, device=device).view(1, 1, -1, 1)
    columns = offsets[1] + torch.arange(width, device=device).view(1, 1, 1, -1)
    sample = torch.arange(count, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]
