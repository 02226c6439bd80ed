"""Pictures and boxes around the objects in them; without any, handwritten digits scattered over canvases.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 10.24432/C50P49
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from hashlib import sha256
from io import StringIO
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.datasets import CocoDetection, VisionDataset, wrap_dataset_for_transforms_v2
from torchvision.transforms.v2 import RandomHorizontalFlip
from torchvision.transforms.v2.functional import to_dtype
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from data.canvases import SIDE, Canvas, find_pictures, make_canvases, open_picture, read_picture, refuse

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val", "test")
Target = dict[str, Any]


def read_coco(file: Path, images: Path, drop_bad_boxes: bool, problems: list[str]) -> dict[str, Any]:
    """Reads annotations in COCO's format, https://cocodataset.org/#format-data, and adds what is wrong to `problems`.

    Raises:
        OSError: It is another kind of file.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        pictures = {image["id"]: image for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        boxes = [{"id": i, "iscrowd": 0} | box for i, box in enumerate(content["annotations"], start=1)]
    except (ValueError, TypeError, KeyError) as error:
        raise OSError(f"{file} is no COCO file of images, annotations and categories ({error!r})") from error
    for name, known in (("images", pictures), ("categories", categories)):
        if len(known) < len(content[name]) or not all(isinstance(number, int) for number in known):
            raise OSError(f"{file}: the ids of {name} have to be whole numbers, each another one")
    for image in pictures.values():
        problems += check_picture(images, image)
    kept = []
    for box in boxes:
        where = f"{file}: annotation {box['id']}"
        if problem := check_box(box, pictures, categories):
            problems.append(f"{where}: {problem}")
            continue
        values, image = box["bbox"], pictures[box["image_id"]]
        clipped = clip_box(values, image["width"], image["height"])
        if clipped is None:
            problem = "has no area in"
        elif any(abs(new - old) > 2 for new, old in zip(clipped, values, strict=True)):  # COCO's are rounded
            problem = "reaches out of"
        if problem and not drop_bad_boxes:
            problems.append(f"{where}: {values} {problem} {image['file_name']}: see --data.drop_bad_boxes")
        if clipped:
            kept.append(box | {"bbox": clipped})
    return content | {"annotations": kept}


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number; Python's reader takes NaN and Infinity too."""
    return isinstance(value, int | float) and isfinite(value)


def check_box(box: dict[str, Any], pictures: Mapping[int, Any], categories: Mapping[int, Any]) -> str:
    """What is wrong with an annotation, whatever the size of its picture; nothing if it is empty."""
    image, category, values = (box.get(key) for key in ("image_id", "category_id", "bbox"))
    if not isinstance(image, int) or image not in pictures:
        return f"there is no image {image}"
    if not isinstance(category, int) or category not in categories:
        return f"there is no category {category}"
    if not (isinstance(values, list) and len(values) == 4 and all(map(is_number, values))):
        return f"bbox is {values}, not [x, y, width, height]"
    return ""


def check_picture(folder: Path, image: dict[str, Any]) -> list[str]:
    """What is wrong with an image of a COCO file; if nothing is, its width and height become those of the picture."""
    file = folder / str(image.get("file_name"))
    told = image.get("width"), image.get("height")
    image["width"], image["height"] = inf, inf  # no box reaches out of a picture that cannot be read
    if not file.resolve().is_relative_to(folder.resolve()):
        return [f"image {image['id']}: {file} lies outside {folder}"]
    if not file.is_file():
        return [f"image {image['id']}: {file} is missing"]
    try:
        with open_picture(file) as picture:
            image["width"], image["height"] = picture.size
    except OSError as error:
        return [str(error)]
    if None not in told and told != picture.size:
        return [f"{file} is {picture.width} x {picture.height} pixels, but the annotations say {told[0]} x {told[1]}"]
    return []


def clip_box(box: list[float], width: int, height: int) -> list[float] | None:
    """Cuts a box, x, y, width and height, off at the edges of its picture; None if nothing is left."""
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
    return [left, top, right - left, bottom - top] if right > left and bottom > top else None


class CocoFiles(CocoDetection):
    """Images of a COCO file that was read before, as torchvision's `CocoDetection` gives them."""

    def __init__(self, images: Path, content: dict[str, Any], ids: list[int]) -> None:
        VisionDataset.__init__(self, images)  # CocoDetection's own would read the file once more
        self.coco, self.ids = COCO(), ids
        self.coco.dataset = content
        with redirect_stdout(StringIO()):
            self.coco.createIndex()

    def _load_image(self, id: int) -> Image:
        return Image(read_picture(Path(self.root, self.coco.imgs[id]["file_name"])))


class CocoPictures(Dataset):
    """Pictures (3, H, W) uint8 and targets of some images of a COCO file.

    A target holds image_id; boxes, (K, 4) float32, x and y of the first and after the last pixel; labels, (K,) int64
    from 1 on; and iscrowd, (K,) int64, of boxes around crowds, which training leaves out.
    """

    def __init__(self, images: Path, content: dict[str, Any], ids: list[int], category_ids: list[int]) -> None:
        files = CocoFiles(images, content, ids)
        self.files = [images / files.coco.imgs[i]["file_name"] for i in ids]
        self.labels = {category: i for i, category in enumerate(category_ids, start=1)}
        self.dataset = wrap_dataset_for_transforms_v2(files, ("image_id", "boxes", "labels", "iscrowd"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.dataset[index]
        labels = [self.labels[int(label)] for label in target.get("labels", [])]
        return image, {
            "image_id": target["image_id"],
            "boxes": target["boxes"] if labels else torch.zeros(0, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "iscrowd": torch.tensor(target.get("iscrowd", []), dtype=torch.int64),
        }


class CanvasPictures(Dataset):
    """Canvases as pictures and targets, as `CocoPictures` gives them."""

    def __init__(self, canvases: list[Canvas]) -> None:
        self.canvases = canvases

    def __len__(self) -> int:
        return len(self.canvases)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        canvas = self.canvases[index]
        boxes = BoundingBoxes(canvas.boxes, format=BoundingBoxFormat.XYXY, canvas_size=(SIDE, SIDE))  # type: ignore[call-overload]
        target = {"image_id": index, "boxes": boxes, "labels": canvas.labels + 1}
        return Image(canvas.picture), target | {"iscrowd": torch.zeros_like(canvas.labels)}


class PictureDataset(Dataset):
    """Whole pictures, (3, H, W) uint8, from files or from memory, without targets."""

    def __init__(self, pictures: Sequence[Path] | Sequence[Tensor]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        picture = self.pictures[index]
        return (read_picture(picture) if isinstance(picture, Path) else picture), {}


class MyDataModule(LightningDataModule):
    """Pictures of any size and the boxes in them.

    Args:
        data_dir: Folder with images/ and annotations.json, or train.json and perhaps val.json and test.json, in COCO's
            format. A missing test split is cut from the training pictures, 20% of them, and a missing val split, 10%;
            copies of a picture stay together. Null takes the canvases. A relative path starts at the project's root.
        drop_bad_boxes: Whether boxes without area are left out, and those that reach out of their pictures are cut
            off, rather than refused.
        min_size: Shorter side in pixels of what the network sees; null takes the median of the pictures, at most 800.
        max_size: Longer side at most.
        anchor_sizes: Five sides in pixels, smallest first, of the boxes that the network starts from; null takes what
            fits the training boxes.
        flip: Whether half of the training pictures are mirrored at random.
        batch_size: Pictures a step on each device.
        num_workers: Processes that decode pictures.
    """

    MODEL_ARGUMENTS = ("class_names", "category_ids", "image_size", "anchor_sizes")

    def __init__(
        self,
        data_dir: str | None = None,
        drop_bad_boxes: bool = False,
        min_size: PositiveInt | None = None,
        max_size: PositiveInt = 1333,
        anchor_sizes: list[PositiveInt] | None = None,
        flip: bool = False,
        batch_size: PositiveInt = 8,
        num_workers: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_dir = ROOT / Path(data_dir).expanduser() if data_dir else None
        self.batch_size, self.num_workers = batch_size, num_workers
        self.inputs: Sequence[str] = ()  # picture files and folders to predict

    @cached_property
    def coco(self) -> dict[str, tuple[dict[str, Any], list[int]]]:
        """What the file of each split holds, and the ids of the split's images.

        Raises:
            OSError: Something is wrong with the files; all of it is named.
        """
        folder = self.data_dir or ROOT
        files = {split: folder / f"{split}.json" for split in SPLITS if (folder / f"{split}.json").is_file()}
        if "train" not in files:
            files = {"train": folder / "annotations.json"}
        if not (files["train"].is_file() and (folder / "images").is_dir()):
            refuse(folder, ["it holds not both images/ and annotations.json (or train.json)"])
        problems: list[str] = []
        drop = self.hparams["drop_bad_boxes"]
        contents = {split: read_coco(file, folder / "images", drop, problems) for split, file in files.items()}
        categories = [sorted((c["id"], c["name"]) for c in content["categories"]) for content in contents.values()]
        if any(other != categories[0] for other in categories):
            problems.append("the splits differ in their categories")
        refuse(folder, problems)
        ids = {split: [image["id"] for image in content["images"]] for split, content in contents.items()}
        self._cut_off(ids, contents["train"]["images"])
        for split in SPLITS:
            contents.setdefault(split, contents["train"])
            if not ids[split]:
                refuse(folder, [f"there are too few different pictures for {split}: ten are the least"])
        return {split: (contents[split], ids[split]) for split in SPLITS}

    def _cut_off(self, ids: dict[str, list[int]], images: list[dict[str, Any]]) -> None:
        """Moves every tenth different picture to val and every fifth to test, if these are missing."""
        folder = (self.data_dir or ROOT) / "images"
        digests = {image["id"]: sha256((folder / image["file_name"]).read_bytes()).digest() for image in images}
        rank = {digest: i % 10 for i, digest in enumerate(sorted(set(digests.values())))}
        for split, ranks in (("val", {7}), ("test", {8, 9})):
            if split not in ids:
                ids[split] = [i for i in ids["train"] if rank[digests[i]] in ranks]
                ids["train"] = [i for i in ids["train"] if rank[digests[i]] not in ranks]

    @cached_property
    def class_names(self) -> list[str]:
        if self.data_dir is None:
            return [str(digit) for digit in range(10)]
        return [name for _, name in sorted((c["id"], str(c["name"])) for c in self.coco["train"][0]["categories"])]

    @cached_property
    def category_ids(self) -> list[int]:
        """The id of each class in the annotations."""
        if self.data_dir is None:
            return list(range(1, 11))
        return sorted(category["id"] for category in self.coco["train"][0]["categories"])

    @cached_property
    def image_size(self) -> list[int]:
        """Shorter side, and the most of the longer side, of what the network sees, in pixels."""
        shorter = self.hparams["min_size"]
        if shorter is None and self.data_dir is None:
            shorter = SIDE
        elif shorter is None:
            shorter = min(round(median(min(i["width"], i["height"]) for i in self.coco["train"][0]["images"])), 800)
        return [int(shorter), int(self.hparams["max_size"])]

    @cached_property
    def anchor_sizes(self) -> list[int]:
        """Five sides, in pixels of what the network sees: from a small training box to a large one.

        Raises:
            OSError: There is no box to train on, or not five sides were asked for.
        """
        if sizes := self.hparams["anchor_sizes"]:
            if len(sizes) != 5:
                refuse("--data.anchor_sizes", [f"it takes five sides, one a level of the network, not {len(sizes)}"])
            return [int(size) for size in sizes]
        if self.data_dir is None:
            boxes = torch.cat([canvas.boxes for canvas in make_canvases()["train"]])
            sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt().numpy()
        else:
            content, ids = self.coco["train"]
            short, long = self.image_size
            shapes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
            scale = {i: min(short / min(shape), long / max(shape)) for i, shape in shapes.items()}
            there = set(ids)
            annotations = [box for box in content["annotations"] if box["image_id"] in there]
            areas = [box["bbox"][2] * box["bbox"][3] * scale[box["image_id"]] ** 2 for box in annotations]
            sides = np.sqrt(areas)
        if not len(sides):
            refuse(self.data_dir, ["there is no box to train on"])
        small, large = np.quantile(sides, [0.05, 0.95]).clip(4)
        ratio = max((large / small) ** 0.25, 2)  # levels are half as fine one after the other
        return [round(float(small * ratio**level)) for level in range(5)]

    def setup(self, stage: str) -> None:
        if not (stage == "predict" and self.inputs):
            self.train, self.val, self.test = (self._dataset(split) for split in SPLITS)
        if stage == "predict":
            self.setup_predict()

    def _dataset(self, split: str) -> Dataset:
        if self.data_dir is None:
            return CanvasPictures(make_canvases()[split])
        content, ids = self.coco[split]
        if split == "train":
            boxes = [box for box in content["annotations"] if not box["iscrowd"]]
            content = content | {"annotations": boxes}
        return CocoPictures(self.data_dir / "images", content, ids, self.category_ids)

    def setup_predict(self) -> None:
        """Lists `inputs`, or takes a few test pictures; `predict_columns` says of each where it comes from."""
        if self.inputs:
            files = find_pictures(self.inputs)
            self.predict_columns: list[dict[str, Any]] = [
                {"input": str(file), "image_id": self._known_ids.get(file.name, i)} for i, file in enumerate(files, 1)
            ]
            self.predict = PictureDataset(files)
        elif isinstance(self.test, CocoPictures):
            files, known = self.test.files[:8], self.coco["test"][1]
            self.predict_columns = [{"input": str(f), "image_id": i} for f, i in zip(files, known, strict=False)]
            self.predict = PictureDataset(files)
        else:
            pictures = [canvas.picture for canvas in make_canvases()["test"][:8]]
            self.predict_columns = [{"input": f"test{i}", "image_id": i} for i in range(len(pictures))]
            self.predict = PictureDataset(pictures)

    @cached_property
    def _known_ids(self) -> dict[str, int]:
        """The ids of pictures by their names, as far as there are annotations; predictions need none."""
        ids: dict[str, int] = {}
        folder = self.data_dir or ROOT
        for file in (folder / f"{name}.json" for name in (*SPLITS, "annotations")):
            if file.is_file():
                content = json.loads(file.read_text(encoding="utf-8"))
                ids |= {Path(image["file_name"]).name: image["id"] for image in content["images"]}
        return ids

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: Dataset, shuffle: bool = False) -> DataLoader:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # On one device too: its order depends on the epoch alone, not on what ran before.
        sampler: DistributedSampler = DistributedSampler(dataset, replicas, rank, shuffle=shuffle)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=list,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def on_after_batch_transfer(self, batch: list[tuple[Tensor, Target]], dataloader_idx: int) -> Any:
        """Lists of pictures, (3, H, W) float32 in [0, 1], and of targets."""
        if self.trainer and self.trainer.training and self.hparams["flip"]:
            batch = [RandomHorizontalFlip()(*sample) for sample in batch]
        return [to_dtype(image, torch.float32, scale=True) for image, _ in batch], [target for _, target in batch]
