"""Object detection data in COCO format, or an embedded set of handwritten digits on textured canvases.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import RandomHorizontalFlip
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from data.canvases import SIDE, find_pictures, make_canvases, open_picture, read_picture, refuse

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# Annotation files as labelling tools export them: one for each split, or one for all.
SPLIT_FILES = ("{}.json", "{}/_annotations.coco.json")
SINGLE_FILES = ("annotations.json", "result.json", "annotations/instances_default.json")


class Sample(NamedTuple):
    """A picture and the K objects in it.

    Attributes:
        picture: File, or (3, H, W) uint8.
        size: Height and width in pixels.
        image_id: Number of the picture in the annotations.
        boxes: (K, 4) float32; left, top, right and bottom in pixels, the last two exclusive.
        labels: (K,) int64, from 1.
        iscrowd: (K,) int64; 1 if the box is around a crowd.
    """

    picture: Path | Tensor
    size: tuple[int, int]
    image_id: int
    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor

    def select(self, chosen: Tensor) -> "Sample":
        """The picture with only the chosen boxes, given as (K,) bool."""
        boxes, labels, iscrowd = self.boxes[chosen], self.labels[chosen], self.iscrowd[chosen]
        return self._replace(boxes=boxes, labels=labels, iscrowd=iscrowd)


def find_annotations(folder: Path) -> dict[str, Path]:
    """Finds the COCO file of each split; one file for all pictures is that of "train"."""
    files: dict[str, Path] = {}
    for split, names in SPLITS.items():
        candidates = [folder / pattern.format(name) for name in names for pattern in SPLIT_FILES]
        if split == "train":
            candidates += [folder / name for name in SINGLE_FILES]
        for file in candidates:
            if file.is_file():
                files.setdefault(split, file)
    return files


def load_coco(file: Path) -> tuple[dict[int, dict[str, Any]], dict[int, str], list[dict[str, Any]]]:
    """Loads a COCO file, https://cocodataset.org/#format-data.

    Returns:
        Images by id, names of categories by id, sorted, and annotations, which all have id and iscrowd.

    Raises:
        OSError: It is another kind of file.
    """
    try:
        content = json.loads(file.read_bytes())
        images = {image["id"]: dict(image) for image in content["images"]}
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        boxes = [{"id": i, "iscrowd": 0} | box for i, box in enumerate(content["annotations"], start=1)]
    except (ValueError, TypeError, KeyError) as error:
        raise OSError(f"{file} is not a COCO file of images, annotations and categories ({error!r})") from error
    for name, known in (("images", images), ("categories", categories)):
        if len(known) < len(content[name]) or not all(isinstance(key, int) for key in known):
            raise OSError(f"{file}: the ids of {name} must be different integers")
    return images, dict(sorted(categories.items())), boxes


def find_picture(folder: Path, file: Path, name: str) -> Path:
    """The path of a picture that a COCO file names: in images/, beside the COCO file, or in the data folder."""
    paths = [place / name for place in (folder / "images", file.parent, folder)]
    return next((path for path in paths if path.is_file()), paths[0])


def check_picture(picture: Path, image: dict[str, Any]) -> tuple[int, int]:
    """The height and width of a picture.

    Raises:
        OSError: It cannot be used.
    """
    name = Path(str(image.get("file_name")))
    if name.is_absolute() or ".." in name.parts:
        raise OSError(f"image {image['id']}: {name} is outside of the data folder")
    if not picture.is_file():
        raise OSError(f"image {image['id']}: {picture} is missing")
    with open_picture(picture) as opened:
        width, height = opened.size
    declared = image.get("width", width), image.get("height", height)
    if declared != (width, height):
        raise OSError(f"{picture} has {width} x {height} pixels, but its annotation says {declared[0]} x {declared[1]}")
    return height, width


def check_box(box: dict[str, Any], images: Mapping[int, Any], categories: Mapping[int, str]) -> str:
    """What is wrong with an annotation, without regard to the size of its picture; empty if nothing is."""
    image, category, values = (box.get(key) for key in ("image_id", "category_id", "bbox"))
    if not isinstance(image, int) or image not in images:
        return f"there is no image {image}"
    if not isinstance(category, int) or category not in categories:
        return f"there is no category {category}"
    if not (isinstance(values, list) and len(values) == 4 and all(is_finite_number(value) for value in values)):
        return f"bbox is {values}, not [x, y, width, height]"
    return ""


def is_finite_number(value: object) -> bool:
    """Whether a value of JSON is a number; Python also reads NaN and Infinity."""
    return isinstance(value, int | float) and isfinite(value)


def clip_box(box: list[float], size: tuple[int, int]) -> tuple[list[float], str]:
    """Clips a box at the edges of its picture.

    Args:
        box: x, y, width and height in pixels.
        size: Height and width of the picture.

    Returns:
        Left, top, right and bottom, and what was wrong with the box.
    """
    height, width = size
    edges = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    clipped = [max(edges[0], 0), max(edges[1], 0), min(edges[2], width), min(edges[3], height)]
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        return [], "has no area in"
    is_outside = any(abs(new - old) > 2 for new, old in zip(clipped, edges, strict=True))  # those of COCO are rounded
    return clipped, "reaches beyond the edges of" if is_outside else ""


def read_coco(folder: Path, file: Path, drop_bad_boxes: bool) -> tuple[dict[int, str], list[Sample], list[str]]:
    """Reads and checks a COCO file and its pictures.

    Returns:
        Names of categories by id, pictures with their boxes, and what is wrong with the others.

    Raises:
        OSError: The file is not a COCO file.
    """
    images, categories, annotations = load_coco(file)
    problems: list[str] = []
    boxes_of: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for box in annotations:
        if problem := check_box(box, images, categories):
            problems.append(f"{file}: annotation {box['id']}: {problem}")
        else:
            boxes_of[box["image_id"]].append(box)
    samples = []
    for image_id, image in images.items():
        picture = find_picture(folder, file, str(image.get("file_name")))
        try:
            size = check_picture(picture, image)
        except OSError as error:
            problems.append(str(error))
            continue
        kept = []
        for box in boxes_of[image_id]:
            clipped, problem = clip_box(box["bbox"], size)
            if clipped:
                kept.append(box | {"bbox": clipped})
            if problem and not drop_bad_boxes:
                where = f"{file}: annotation {box['id']}: {box['bbox']}"
                problems.append(f"{where} {problem} {picture.name}: see --data.drop_bad_boxes")
        samples.append(make_sample(picture, size, image_id, kept, list(categories)))
    return categories, samples, problems


def make_sample(
    picture: Path, size: tuple[int, int], image_id: int, boxes: list[dict[str, Any]], category_ids: list[int]
) -> Sample:
    """Makes a sample of annotations whose boxes are left, top, right and bottom."""
    return Sample(
        picture,
        size,
        image_id,
        torch.tensor([box["bbox"] for box in boxes], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([category_ids.index(box["category_id"]) + 1 for box in boxes], dtype=torch.int64),
        torch.tensor([int(box["iscrowd"]) for box in boxes], dtype=torch.int64),
    )
