"""Read picture files, and draw the embedded pictures: digits on textured canvases."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou, masks_to_boxes
from torchvision.transforms.v2.functional import pil_to_tensor

from data.splits import make_splits

# Pillow decodes these itself; for others, such as EPS, it may run another program.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TIFF", "WEBP")
SUFFIXES = tuple(end for end, name in sorted(Image.registered_extensions().items()) if name in (*FORMATS, "MPO"))
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # the last bytes of complete files
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
COMPANIONS = (  # words beside the name of a split, as in train_images; a regular expression
    "annot|annotations?|coco|data|frames?|ground.?truth|gt|images?|imgs?|inputs?|instances|json|labels?|masks?|photos?"
    "|pictures?|set"
)
JUNK = (".", "__MACOSX", "@eaDir")  # first characters of hidden files, and folders of macOS and Synology
CANVASES, SIDE = 400, 128  # number of embedded pictures, and their height and width in pixels
PARTS = 20  # number of groups of embedded pictures; no handwritten digit is in two of them
Size = tuple[int, int]  # height and width in pixels


class Picture(NamedTuple):
    """A picture file, its size after reading, and whether its EXIF orientation is applied in reading."""

    file: Path
    size: Size
    upright: bool


def refuse(source: object, problems: Sequence[str]) -> None:
    """Raise OSError with the first twenty `problems` of `source`, if there are any."""
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise OSError("\n  ".join([f"{source} has errors:", *problems[:20], *more]))


def spell(path: Path) -> str:
    """The words of a relative path in lower case, without COMPANIONS, digits and signs."""
    return re.sub(r"[\W\d_]+", " ", re.sub(f"({COMPANIONS})+(?![a-z])", " ", str(path).lower()))


def find_splits(paths: Collection[Path]) -> dict[Path, str]:
    """Find the split that each relative path names: "val" for labels/Valid_Set.json, "" for a path that names none.

    Digits, COMPANIONS and words that different splits have in common are ignored, as in a_train and a_test.
    """
    words = {part: {*spell(Path(part)).split()} for path in paths for part in path.parts}
    known = {word: split for split, names in SPLITS.items() for word in names}
    beside: defaultdict[str, set[str]] = defaultdict(set)
    for found in words.values():
        for word in found - known.keys():
            beside[word].update(known[other] for other in found & known.keys())
    shared = {word for word, splits in beside.items() if len(splits) > 1}
    named = {part: known.get(" ".join(found - shared), "") for part, found in words.items()}
    return {path: next(filter(None, map(named.get, path.parts)), "") for path in paths}


def refuse_unclear(folder: Path, splits: dict[Path, str]) -> None:
    """Refuse folders that may be a split or not, such as test_final/ beside train/, given what `find_splits` found.

    Raises:
        OSError: There is such a folder.
    """
    words = "|".join(word for names in SPLITS.values() for word in names)
    unclear = [path for path, split in splits.items() if not split and re.search(rf"\b({words})\b", spell(path))]
    if any(splits.values()):
        hint = "rename it to train, val or test, or move it away"
        refuse(folder, [f"{path}/ may be a split: {hint}" for path in unclear])


def read_lists(folder: Path, kind: str, stems: Collection[str]) -> tuple[dict[str, str], int]:
    """Read the lists in ImageSets/`kind`/ of Pascal VOC, if `folder` has exactly one such folder.

    A line is one of `stems`, with or without folders and suffix; 1, 0 or -1 may follow, as in lists of one class.

    Returns:
        The split of each name, and the number of unused folders ImageSets/.
    """
    places = [*folder.rglob(f"ImageSets/{kind}")]
    files = {file.stem.lower(): file for file in places[0].glob("*.txt")} if len(places) == 1 else {}
    lists = SPLITS if not files.keys().isdisjoint(SPLITS["train"]) else SPLITS | {"train": ("trainval",)}
    listed: dict[str, str] = {}
    for split, words in lists.items():
        texts = [files[word].read_text(encoding="utf-8-sig", errors="replace") for word in words if word in files]
        for line in filter(None, map(str.strip, "\n".join(texts).splitlines())):
            paths = [Path(line), Path(re.sub(r"\s+-?[01]$", "", line))]
            names = [path.stem if path.suffix.lower() in (*SUFFIXES, ".xml") else path.name for path in paths]
            listed[names[0] if names[0] in stems else names[1]] = split
    return listed, 0 if listed else len([*folder.rglob("ImageSets")])


def split_samples(
    source: object, given: dict[str, list[Any]], groups: Sequence[str], folds: int | None, fold: int | None
) -> dict[str, list[Any]]:
    """Move training samples to "val" and "test" if these are missing, and make folds; groups stay together.

    Raises:
        OSError: There are too few samples.
    """
    samples = [(split, sample) for split, part in given.items() for sample in part]
    chosen = make_splits(groups, given=[split for split, _ in samples], folds=folds, fold=fold)
    splits: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for split, (_, sample) in zip(chosen, samples, strict=True):
        splits[split].append(sample)
    if empty := [split for split in SPLITS if not splits[split]]:
        refuse(source, [f"no picture is left for {' and '.join(empty)}: at least 3 different pictures are needed"])
    return splits


def group_copies(files: Sequence[Path]) -> list[str]:
    """Return a key for each file; copies of a file have the same key."""
    return [sha256(file.read_bytes()).hexdigest() for file in files]


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List files with these suffixes in a folder and its subfolders, even links to missing files; skip hidden ones."""
    files: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        above = {path.resolve() for path in (Path(place), *Path(place).parents)}  # a link to these is a loop
        folders[:] = [
            name for name in folders if not name.startswith(JUNK) and Path(place, name).resolve() not in above
        ]
        files += [Path(place, name) for name in names if not name.startswith(JUNK) and name.lower().endswith(suffixes)]
    return [file for file in sorted(files) if file.is_file() or not file.exists()]  # a pipe or socket would block


def find_pictures(paths: Sequence[str], measure: Callable[[Path], Picture | str]) -> list[Picture]:
    """List the files in `paths`; for each folder, the picture files in it and in its subfolders, sorted.

    Pictures that cannot be read are left out and named in a warning; for these, `measure` returns an error message.

    Raises:
        FileNotFoundError: A path is neither a file nor a folder, or there is no picture.
        OSError: None of the pictures can be read.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not (path.is_dir() or path.is_file()):
            raise FileNotFoundError(f"{path} is neither a file nor a folder: use picture files or folders of pictures")
        files += list_files(path, SUFFIXES) if path.is_dir() else [path]
    results = list(map(measure, files))
    pictures = [result for result in results if isinstance(result, Picture)]
    faults = [result for result in results if isinstance(result, str)]
    if faults and not pictures:
        raise OSError("; ".join(faults[:20]))
    if faults:
        more = " and others" if len(faults) > 20 else ""
        rank_zero_only(print)(
            f"warning: unreadable pictures left out ({len(faults)}): {'; '.join(faults[:20])}{more}", file=sys.stderr
        )
    if not pictures:
        raise FileNotFoundError(f"no picture in {', '.join(map(str, paths))}: looked for {' '.join(SUFFIXES)}")
    return pictures


def report_turned(pictures: Sequence[Picture]) -> bool:
    """Return whether EXIF data turns any input upright; if so, print a line, as training may have ignored EXIF data."""
    turned = [picture.file for picture in pictures if picture.upright]
    if turned:
        hint = "use --data.turn false if the training pictures were not turned, else true; either hides this line"
        rank_zero_only(print)(
            f"pictures that EXIF data turns upright ({len(turned)}), such as {turned[0]}: {hint}", file=sys.stderr
        )
    return bool(turned)


def check_depth(files: Sequence[Path]) -> None:
    """Refuse 16-bit pictures that use 12 bits or fewer, as they would be nearly black.

    Only the first 20 files are checked; all are accepted if one 16-bit picture among them is brighter.

    Raises:
        OSError: No value of these pictures is above 4095.
    """
    largest = 0
    for file in files[:20]:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.mode.startswith("I"):
                largest = max(largest, int(np.asarray(picture).max()))
    if 0 < largest < 4096:
        problem = f"16-bit pictures have no value above {largest}, so they would be nearly black"
        raise OSError(f"{files[0].parent}: {problem}: convert them to 8 bits")


def measure_picture(file: Path, size: Size | None, turn: bool | None) -> Picture | str:
    """Measure a picture and decide how to read it, or return why it cannot be used.

    Files are decoded, except JPEG and PNG files whose last bytes are in ENDS: these are complete.

    Args:
        file: The picture.
        size: The size in its annotations, which decides whether EXIF data turns it; None if there is none.
        turn: Whether to apply the EXIF orientation if the size fits both ways; None makes that an error.
    """
    if not file.exists():
        return f"{file} is missing: add it, or remove it from the annotations"
    try:
        with Image.open(file, formats=FORMATS) as picture, file.open("rb") as content:
            end = ENDS.get(str(picture.format), b"")
            content.seek(-len(end), os.SEEK_END)
            if not end or content.read() != end:
                convert_to_rgb(picture)
            height, width = picture.height, picture.width
            turns = Image.Image.getexif(picture).get(Base.Orientation, 1)  # PngImageFile.getexif would decode
    except Exception as error:  # Pillow raises many types for damaged files
        return f"{file} is not a readable picture ({error}): repair or remove it"
    ways = [Picture(file, (height, width), upright=False)]
    if turns in range(2, 9):
        ways.append(Picture(file, (width, height) if turns > 4 else (height, width), upright=True))
    fitting = [way for way in ways if size in (None, way.size)]
    if size and not fitting:
        stated = f"but its annotation or mask says {size[1]} x {size[0]}"
        return f"{file} has {width} x {height} pixels, {stated}: correct one of them"
    if len(fitting) > 1 and turn is None:
        hint = "set --data.turn true if the annotations were made on the upright picture, else false"
        return f"{file}: its annotations do not tell whether to apply the EXIF orientation: {hint}"
    return fitting[bool(turn) and len(fitting) > 1]


def read_picture(picture: Picture) -> Tensor:
    """Read a picture of any mode as (3, H, W) uint8. Transparent parts become black; up to 16 bits are scaled to 8.

    Raises:
        OSError: The file cannot be decoded.
    """
    try:
        with Image.open(picture.file, formats=FORMATS) as opened:
            return pil_to_tensor(convert_to_rgb(ImageOps.exif_transpose(opened) if picture.upright else opened))
    except Exception as error:  # Pillow raises many types for damaged files
        raise OSError(f"{picture.file} is not a readable picture ({error}): repair or remove it") from error


def convert_to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode; raise ValueError if its range of values is unknown."""
    if picture.mode.startswith(("I", "F")):  # 16 bits, which Pillow would clip to 8 instead of scaling
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are not integers from 0 to 65535")
        picture = Image.fromarray((values // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture.convert("RGB")


class Canvas(NamedTuple):
    """A picture of K digits."""

    picture: Tensor  # (3, SIDE, SIDE) uint8
    mask: Tensor  # (SIDE, SIDE) uint8; 0 is the background, and d + 1 the digit d
    boxes: Tensor  # (K, 4) float32; left, top, right and bottom in pixels, the last two exclusive
    labels: Tensor  # (K,) int64; the digits


@lru_cache(maxsize=1)
def make_canvases() -> list[list[Canvas]]:
    """Draw the canvases, which are always the same, in parts that share no handwritten digit."""
    digits = load_digits()
    random = np.random.default_rng(0)
    canvases = []
    for pool in np.array_split(random.permutation(len(digits.target)), PARTS):
        images, targets = torch.from_numpy(digits.images[pool] / 16).float(), digits.target[pool]
        canvases.append([draw_canvas(images, targets, random) for _ in range(CANVASES // PARTS)])
    return canvases


def draw_canvas(images: Tensor, targets: np.ndarray, random: np.random.Generator) -> Canvas:
    """Draw one to six digits that hardly overlap, of random size, place and colour, on a texture.

    The digits are chosen from `images`, (N, 8, 8) float32 in [0, 1], whose classes are `targets`, (N,) integers.
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
