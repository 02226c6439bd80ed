"""Read picture files and crop them to a shape; shift pictures at random."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_dtype

# Pillow decodes these itself; for others, such as EPS, it may run another program.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TIFF", "WEBP")
SUFFIXES = sorted(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # the last bytes of complete files


def list_pictures(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """List the picture files in a folder and its subfolders, even links to missing files; skip hidden ones."""
    files: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        above = {path.resolve() for path in (Path(place), *Path(place).parents)}  # a link to these is a loop
        folders[:] = [name for name in folders if not is_junk(name) and Path(place, name).resolve() not in above]
        files += [Path(place, name) for name in names if not is_junk(name) and Path(name).suffix.lower() in suffixes]
    return [file for file in sorted(files) if file.is_file() or not file.exists()]  # a pipe or socket would block


def is_junk(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or written by an operating system or a network drive."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN")


def find_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """List each file in `paths`; for each folder in `paths`, list its pictures at any depth, sorted.

    In folders, pictures that fail `is_readable` are left out and named in a warning; files among `paths` are always
    kept.

    Raises:
        FileNotFoundError: A path is neither a file nor a folder, or there is no picture.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not (path.is_dir() or path.is_file()):
            raise FileNotFoundError(f"{path} is not an existing file or folder: use pictures or folders of pictures")
        files += leave_out_unreadable(list_pictures(path)) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no picture in {', '.join(map(str, paths))}: looked for {' '.join(SUFFIXES)}")
    return files


def leave_out_unreadable(files: list[Path]) -> list[Path]:
    """The pictures that pass `is_readable`; a warning names the others."""
    with ThreadPoolExecutor() as pool:
        readable = list(pool.map(is_readable, files))
    unreadable = [str(file) for file, good in zip(files, readable, strict=True) if not good]
    if unreadable:
        names = ", ".join(unreadable[:20]) + (" and others" if len(unreadable) > 20 else "")
        rank_zero_only(print)(f"warning: unreadable pictures left out ({len(unreadable)}): {names}", file=sys.stderr)
    return [file for file, good in zip(files, readable, strict=True) if good]


def is_readable(file: Path) -> bool:
    """Return whether a picture can be decoded; a JPEG or PNG file is decoded only if its last bytes are unusual."""
    try:
        with open_picture(file) as picture, file.open("rb") as content:
            end = ENDS.get(str(picture.format), b"")
            content.seek(-len(end), os.SEEK_END)
            if not end or content.read() != end:
                convert(picture, "L")
    except Exception:  # Pillow raises many types for damaged files
        return False
    return True


def open_picture(file: Path) -> Image.Image:
    """Open a picture without decoding its pixels.

    Raises:
        OSError: The file is not a picture, or has too many pixels.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except Exception as error:  # Pillow raises many types for damaged headers
        raise OSError(f"{file} is not a readable picture ({error}): repair or remove it") from error


def read_picture(file: Path, shape: Sequence[int]) -> Tensor:
    """Read a picture of any size and mode, crop its centre to the aspect ratio of `shape` and resize it.

    It is turned upright according to its EXIF data. Transparent parts become black.

    Args:
        file: The picture.
        shape: Channels (1 or 3), height and width in pixels.

    Returns:
        Tensor of this shape, float32 in [0, 1].

    Raises:
        OSError: The file cannot be decoded.
    """
    channels, height, width = shape
    with open_picture(file) as picture:
        try:
            picture.draft(None, (max(height, width), max(height, width)))  # decodes a large JPEG at a smaller size
            upright = ImageOps.exif_transpose(picture)
            pixels = pil_to_tensor(convert(upright, "L" if channels == 1 else "RGB"))
        except Exception as error:  # Pillow raises many types for damaged files
            raise OSError(f"{file} cannot be decoded ({error}): repair or remove it") from error
    scale = min(pixels.shape[1] / height, pixels.shape[2] / width)
    cropped = center_crop(pixels, [max(1, round(scale * height)), max(1, round(scale * width))])
    return to_dtype(resize(cropped, [height, width]), torch.float32, scale=True)


def convert(picture: Image.Image, mode: str) -> Image.Image:
    """Convert a picture to "L" (8-bit grey) or "RGB"; raise ValueError if its range of values is unknown."""
    if picture.mode.startswith(("I", "F")):  # 16 bits, which Pillow would clip to 8 instead of scaling
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are not integers from 0 to 65535")
        picture = Image.fromarray((values // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture.convert(mode)


def random_shift(pictures: Tensor, limit: int) -> Tensor:
    """Move each picture of a batch (N, C, H, W) by up to `limit` pixels along each axis; black fills the gaps."""
    height, width = pictures.shape[2:]
    padded = pad(pictures, [limit] * 4)
    tops, lefts = torch.randint(2 * limit + 1, (2, len(pictures))).tolist()
    crops = zip(padded, tops, lefts, strict=True)
    return torch.stack([picture[:, top : top + height, left : left + width] for picture, top, left in crops])
