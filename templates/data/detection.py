"""Object detection data in COCO format, or an embedded set of handwritten digits on textured canvases.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import count
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_area
from torchvision.transforms.v2 import RandomHorizontalFlip
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from data.canvases import SIDE, find_pictures, make_canvases, open_picture, read_picture, refuse

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# Annotation files as labelling tools export them: one for each split, or one for all pictures.
SPLIT_FILES = ("{}.json", "{}/_annotations.coco.json")
SINGLE_FILES = ("annotations.json", "result.json", "annotations/instances_default.json")
AnchorSizes = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt]  # one for each network level
Json = dict[str, Any]
Target = dict[str, Any]
# A picture, which is a file or (3, H, W) uint8, and its target or the columns to print before its prediction.
Sample = tuple[Path | Tensor, Target]


def make_target(boxes: Tensor, labels: Tensor, iscrowd: Tensor, image_id: int, size: tuple[int, int]) -> Target:
    """Makes a target for a detector of torchvision.

    Args:
        boxes: (K, 4) float32; left, top, right and bottom in pixels, the last two exclusive.
        labels: (K,) int64, from 1.
        iscrowd: (K,) int64; 1 for a box around a crowd.
        image_id: Id of the picture in the annotations.
        size: Height and width of the picture in pixels.
    """
    boxes = BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=size)  # type: ignore[call-overload]
    return {"boxes": boxes, "labels": labels, "iscrowd": iscrowd, "image_id": image_id}


def without_crowds(target: Target) -> Target:
    """The target without boxes around crowds."""
    boxes, labels, iscrowd = (target[name][target["iscrowd"] == 0] for name in ("boxes", "labels", "iscrowd"))
    return make_target(boxes, labels, iscrowd, target["image_id"], target["boxes"].canvas_size)


def embedded_samples() -> dict[str, list[Sample]]:
    """The embedded pictures with their targets, by split."""
    splits: dict[str, list[Sample]] = {}
    for split, canvases in make_canvases().items():
        for i, canvas in enumerate(canvases):
            target = make_target(canvas.boxes, canvas.labels + 1, torch.zeros_like(canvas.labels), i, (SIDE, SIDE))
            splits.setdefault(split, []).append((canvas.picture, target))
    return splits


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


def load_coco(file: Path) -> tuple[dict[int, Json], dict[int, str], list[Json]]:
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


def find_picture(folder: Path, file: Path, image: Json) -> Path:
    """The path of an image of a COCO file: in images/, beside the COCO file, or in the data folder."""
    paths = [place / str(image.get("file_name")) for place in (folder / "images", file.parent, folder)]
    return next((path for path in paths if path.is_file()), paths[0])


def annotated_ids(folder: Path) -> dict[Path, int]:
    """The ids of the annotated pictures by their absolute paths."""
    ids = {}
    for file in find_annotations(folder).values():
        for image_id, image in load_coco(file)[0].items():
            ids[find_picture(folder, file, image).resolve()] = image_id
    return ids


def check_picture(picture: Path, image: Json) -> tuple[int, int]:
    """Returns the height and width of a picture.

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
    declared = image.get("width") or width, image.get("height") or height
    if declared != (width, height):
        raise OSError(f"{picture} has {width} x {height} pixels, but its annotation says {declared[0]} x {declared[1]}")
    return height, width


def check_box(box: Json, images: Mapping[int, Any], categories: Mapping[int, str]) -> str:
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


def clip_boxes(boxes: list[Json], picture: Path, size: tuple[int, int]) -> tuple[list[Json], list[str]]:
    """Clips the boxes of a picture at its edges.

    Args:
        boxes: Annotations, whose bbox is x, y, width and height in pixels.
        picture: The picture, for messages.
        size: Its height and width.

    Returns:
        The annotations with an area, whose bbox is left, top, right and bottom; and what was wrong with the others.
    """
    height, width = size
    kept, problems = [], []
    for box in boxes:
        x, y, box_width, box_height = box["bbox"]
        edges = [x, y, x + box_width, y + box_height]
        clipped = [max(x, 0), max(y, 0), min(edges[2], width), min(edges[3], height)]
        has_area = clipped[0] < clipped[2] and clipped[1] < clipped[3]
        moved = max(abs(new - old) for new, old in zip(clipped, edges, strict=True))
        if has_area:
            kept.append(box | {"bbox": clipped})
        if not has_area or moved > 2:  # boxes of COCO are rounded
            fault = "reaches beyond the edges of" if has_area else "has no area in"
            problems.append(f"annotation {box['id']}: {box['bbox']} {fault} {picture.name}")
    return kept, problems


def read_coco(folder: Path, file: Path, drop_bad_boxes: bool) -> tuple[dict[int, str], list[Sample], list[str]]:
    """Reads and checks a COCO file and the headers of its pictures.

    Returns:
        Names of categories by id, pictures with their targets, and what is wrong with the others.

    Raises:
        OSError: The file is not a COCO file.
    """
    images, categories, annotations = load_coco(file)
    samples: list[Sample] = []
    problems: list[str] = []
    boxes: dict[int, list[Json]] = {image_id: [] for image_id in images}
    for box in annotations:
        if problem := check_box(box, images, categories):
            problems.append(f"{file}: annotation {box['id']}: {problem}")
        else:
            boxes[box["image_id"]].append(box)
    for image_id, image in images.items():
        picture = find_picture(folder, file, image)
        try:
            size = check_picture(picture, image)
        except OSError as error:
            problems.append(str(error))
            continue
        kept, faults = clip_boxes(boxes[image_id], picture, size)
        if not drop_bad_boxes:
            problems += [f"{file}: {fault}: see --data.drop_bad_boxes" for fault in faults]
        samples.append((picture, convert_boxes(kept, list(categories), image_id, size)))
    return categories, samples, problems


def convert_boxes(boxes: list[Json], category_ids: list[int], image_id: int, size: tuple[int, int]) -> Target:
    """Makes a target of annotations whose boxes are clipped."""
    edges = torch.tensor([box["bbox"] for box in boxes], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([category_ids.index(box["category_id"]) + 1 for box in boxes], dtype=torch.int64)
    iscrowd = torch.tensor([bool(box["iscrowd"]) for box in boxes], dtype=torch.int64)
    return make_target(edges, labels, iscrowd, image_id, size)


def split_samples(folder: Path, splits: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Moves 10% of the training pictures to "val" and 20% to "test" if these are missing; copies stay together.

    Raises:
        OSError: There are too few pictures.
    """
    missing = [split for split in ("val", "test") if split not in splits]
    if missing:
        digests = [sha256(picture.read_bytes()).digest() for picture, _ in splits["train"]]
        rank = {digest: i % 10 for i, digest in enumerate(sorted(set(digests)))}
        samples, splits = splits["train"], splits | {split: [] for split in ("train", *missing)}
        for sample, digest in zip(samples, digests, strict=True):
            split = {7: "val", 8: "test", 9: "test"}.get(rank[digest], "train")
            splits[split if split in missing else "train"].append(sample)
    if empty := [split for split in SPLITS if not splits[split]]:
        refuse(folder, [f"no picture is left for {' and '.join(empty)}: at least 10 different pictures are needed"])
    return splits


class PictureDataset(Dataset):
    """Pictures (3, H, W) float32 in [0, 1], each with its target or with the columns to print.

    Args:
        samples: Pictures, and targets or columns.
        transform: Random changes of a picture and its target.
    """

    def __init__(self, samples: Sequence[Sample], transform: Callable[[Image, Target], Any] | None = None) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        picture, target = self.samples[index]
        image = Image(read_picture(picture) if isinstance(picture, Path) else picture)
        if self.transform:
            image, target = self.transform(image, target)
        return image / 255, target


def collate(samples: list[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    """Makes a batch of two lists: pictures, whose sizes may differ, and targets or columns."""
    images, others = zip(*samples, strict=True)
    return list(images), list(others)


class MyDataModule(LightningDataModule):
    """Pictures of any size and the boxes around the objects in them.

    A batch is a list of pictures (3, H, W), float32 in [0, 1], and a list of targets; see `make_target`.

    Args:
        data_dir: Folder with pictures in images/ and annotations in COCO format: annotations.json, or train.json and
            optionally val.json and test.json. Folders train/, valid/ and test/ with _annotations.coco.json and pictures
            can be read, too. If there are no annotations for testing, 20% of the training pictures are used; if there
            are none for validation, 10%. A relative path starts at the project's root. Null uses the embedded pictures.
        drop_bad_boxes: Leave out boxes without area and clip boxes at the edges of their pictures; by default both
            are errors.
        min_size: Shorter side of a picture in pixels when the network sees it; null takes the median of the pictures,
            at most 800.
        max_size: Limit of the longer side in pixels.
        anchor_sizes: Sides of the network's anchor boxes in pixels, in ascending order; null depends on the training
            boxes.
        flip: Mirror half of the training pictures.
        batch_size: Pictures per step and device.
        num_workers: Processes that read pictures; with 0, the main process does. Use more for photographs on a GPU.
    """

    inputs: Sequence[str] = ()  # picture files and folders to predict

    def __init__(
        self,
        data_dir: str | None = None,
        drop_bad_boxes: bool = False,
        min_size: PositiveInt | None = None,
        max_size: PositiveInt = 1333,
        anchor_sizes: AnchorSizes | None = None,
        flip: bool = False,
        batch_size: PositiveInt = 8,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_dir = ROOT / Path(data_dir).expanduser() if data_dir else None
        self.batch_size, self.num_workers = batch_size, num_workers

    @cached_property
    def samples(self) -> tuple[dict[int, str], dict[str, list[Sample]]]:
        """The names of the categories by id, and the pictures and boxes by split.

        Raises:
            OSError: Files are missing or cannot be used; the message names them.
        """
        if self.data_dir is None:
            return {digit + 1: str(digit) for digit in range(10)}, embedded_samples()
        files = find_annotations(self.data_dir)
        if "train" not in files:
            refuse(self.data_dir, ["there is no annotations.json, train.json or train/_annotations.coco.json"])
        problems: list[str] = []
        splits, categories = {}, {}
        for split, file in files.items():
            categories[split], splits[split], found = read_coco(self.data_dir, file, self.hparams["drop_bad_boxes"])
            problems += found
            if categories[split] != categories["train"]:
                problems.append(f"{file} has other categories than {files['train']}")
        refuse(self.data_dir, problems)
        splits = split_samples(self.data_dir, splits)
        splits["train"] = [(picture, without_crowds(target)) for picture, target in splits["train"]]
        if not any(len(target["boxes"]) for _, target in splits["train"]):
            refuse(self.data_dir, ["there is no box to train on, apart from boxes around crowds"])
        return categories["train"], splits

    @cached_property
    def class_names(self) -> list[str]:
        return list(self.samples[0].values())

    @cached_property
    def category_ids(self) -> list[int]:
        """The id of each class in the annotations."""
        return list(self.samples[0])

    @cached_property
    def image_size(self) -> list[int]:
        """The shorter side of a picture when the network sees it, and the limit of the longer side, in pixels."""
        shorter = self.hparams["min_size"]
        if shorter is None:
            sides = [min(target["boxes"].canvas_size) for _, target in self.samples[1]["train"]]
            shorter = min(round(median(sides)), 800)
        return [int(shorter), int(self.hparams["max_size"])]

    @cached_property
    def anchor_sizes(self) -> list[int]:
        """Five sides in pixels of what the network sees, from that of a small training box to that of a large one."""
        if sizes := self.hparams["anchor_sizes"]:
            return [int(size) for size in sizes]
        sides = []
        for _, target in self.samples[1]["train"]:
            size = target["boxes"].canvas_size
            scale = min(self.image_size[0] / min(size), self.image_size[1] / max(size))
            sides.append(box_area(target["boxes"]).sqrt() * scale)
        small, large = torch.cat(sides).quantile(torch.tensor([0.05, 0.95])).clamp(min=4).tolist()
        ratio = max((large / small) ** 0.25, 2)  # the resolution of the network's levels halves from each to the next
        return [round(small * ratio**level) for level in range(5)]

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.inputs:
            self.predict = PictureDataset(self._read_inputs())
            return
        categories, splits = self.samples
        if categories != dict(zip(self.category_ids, self.class_names, strict=True)):  # those of a checkpoint
            refuse(self.data_dir, [f"its categories {categories} are not those of the training data"])
        self.train = PictureDataset(splits["train"], RandomHorizontalFlip() if self.hparams["flip"] else None)
        self.val, self.test = PictureDataset(splits["val"]), PictureDataset(splits["test"])
        first: list[Sample] = []
        for i, (picture, target) in enumerate(splits["test"][:8]):
            name = str(picture) if isinstance(picture, Path) else f"test {i}"
            first.append((picture, {"input": name, "image_id": target["image_id"]}))
        self.predict = PictureDataset(first)

    def _read_inputs(self) -> list[Sample]:
        """The pictures to predict, with the columns to print. An annotated picture has its id in the annotations."""
        ids = annotated_ids(self.data_dir) if self.data_dir else {}
        others = count(max(ids.values(), default=0) + 1)
        samples: list[Sample] = []
        for file in find_pictures(self.inputs):
            image_id = ids[file.resolve()] if file.resolve() in ids else next(others)
            samples.append((file, {"input": str(file), "image_id": image_id}))
        return samples

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: Dataset, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=collate,
        )
