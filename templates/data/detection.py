"""Object detection data in COCO or Pascal VOC format, or an embedded set of handwritten digits on textured canvases.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import count, repeat
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_area, box_convert, clip_boxes_to_image
from torchvision.transforms.v2 import RandomHorizontalFlip
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from data import canvases
from data.canvases import SIDE, SPLITS, SUFFIXES, Picture, find_splits, read_lists, refuse, split_samples
from data.splits import AtLeastTwo, check_fold

ROOT = Path(__file__).resolve().parents[1]
MAX_LISTED = 20  # classes whose boxes are counted in the printed report
AnchorSizes = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt]  # one for each network level
EDGES = ("xmin", "ymin", "xmax", "ymax")  # of a box in Pascal VOC
Json = dict[str, Any]
Target = dict[str, Any]
# A picture (a file or a (3, H, W) uint8 tensor), and its target or, to predict, the columns "input" and "image_id".
Sample = tuple[Picture | Tensor, Target]


def make_target(boxes: Tensor, labels: Tensor, iscrowd: Tensor, image_id: int, size: tuple[int, int]) -> Target:
    """Make a target for a torchvision detector.

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


def embedded_samples() -> tuple[list[Sample], list[str]]:
    """The embedded pictures with their targets, and for each its group; groups share no handwritten digit."""
    samples: list[Sample] = []
    groups: list[str] = []
    for part, drawn in enumerate(canvases.make_canvases()):
        for canvas in drawn:
            crowd = torch.zeros_like(canvas.labels)
            target = make_target(canvas.boxes, canvas.labels + 1, crowd, len(samples), (SIDE, SIDE))
            samples.append((canvas.picture, target))
            groups.append(str(part))
    return samples, groups


def find_annotations(folder: Path) -> tuple[dict[str, Json], Counter[str]]:
    """Find and load the COCO file of each split in `folder` and its subfolders; also count what is left out.

    COCO files in deeper folders are used only if there are no others, and no files of Pascal VOC.
    """
    files = canvases.list_files(folder, (".json",))
    near = [file for file in files if len(file.relative_to(folder).parts) < 3]
    chosen, left_out = choose_annotations(folder, near)
    if not chosen and not canvases.list_files(folder, (".xml",)):
        chosen, left_out = choose_annotations(folder, files)
    return chosen, left_out


def choose_annotations(folder: Path, files: Sequence[Path]) -> tuple[dict[str, Json], Counter[str]]:
    """Choose and load the COCO file of each split; also count what is left out.

    If no file is for "train", one whose path states no split is used. Of several files for a split, the one with
    "instances" in its name is used, or the only one with annotations.

    Raises:
        OSError: A split has several files, or there are files, but none for training.
    """
    splits = find_splits([file.relative_to(folder) for file in files])
    found = {split: [file for file in splits if splits[file] == split] for split in (*SPLITS, "")}
    found["train"] = found["train"] or found[""]
    chosen: dict[str, Json] = {}
    unused = {*splits}
    for split in SPLITS:
        preferred = [file for file in found[split] if "instances" in file.stem] or found[split]
        loaded = {file: load_coco(folder / file) for file in preferred}
        annotated = [file for file in preferred if loaded[file]]
        if len(annotated) > 1:
            names = ", ".join(map(str, annotated[:5]))
            refuse(folder, [f"there are several annotation files for {split}: keep one of {names}"])
        if annotated:
            chosen[split] = loaded[annotated[0]]
            unused.remove(annotated[0])
    if chosen and "train" not in chosen:
        refuse(folder, ["there is no COCO file for training, such as annotations.json or train.json"])
    return chosen, Counter({f"JSON files, such as {min(unused)}": len(unused)} if unused else {})


def whole(value: Any) -> Any:
    """Return 7 for an id such as 7.0, and any other id unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def load_coco(file: Path) -> Json:
    """Load a COCO file, https://cocodataset.org/#format-data; add ids, iscrowd and sizes. Other files give {}.

    Raises:
        OSError: It is damaged, has annotations that are not in COCO's form, or has an id twice.
    """
    try:
        content = json.loads(file.read_bytes())
        if "annotations" not in content:
            return {}
        for i, box in enumerate(content["annotations"], start=1):
            box |= {"id": box.get("id", i), "iscrowd": int(box.get("iscrowd") or 0)}
            box |= {key: whole(box.get(key)) for key in ("image_id", "category_id")}
        for entry in (*content["images"], *content["categories"]):
            entry["id"] = whole(entry["id"])
        for image in content["images"]:
            image |= {side: round(float(image.get(side) or 0)) for side in ("width", "height")}
            image |= {"folder": file.parent, "source": f"image {image['id']}"}
        for name, key in (("images", "file_name"), ("categories", "name")):
            if len({str(entry["id"]): entry[key] for entry in content[name]}) < len(content[name]):
                raise OSError(f"{file}: ids of {name} must be unique: some occur twice")
    except (ArithmeticError, AttributeError, ValueError, TypeError, KeyError) as error:
        hint = "repair it, or move it out of the folder of the data"
        raise OSError(f"{file} is not a COCO file of images, annotations and categories ({error!r}): {hint}") from error
    return content


def read_voc(file: Path) -> tuple[Json, list[Json]]:
    """Read a Pascal VOC file as an image and annotations in COCO's form, with category names, not category ids.

    A box that is difficult counts as a crowd, as both are ignored by the metric.

    Raises:
        OSError: It is another kind of file.
    """
    try:
        root = ElementTree.parse(file).getroot()
        if root.tag != "annotation":
            raise ValueError(f"its root is {root.tag}, not annotation")
        size = {name: round(float(root.findtext(f"size/{name}") or 0)) for name in ("width", "height")}
        boxes = []
        for each in root.iter("object"):
            name = (each.findtext("name") or "").strip()
            edges = [each.findtext(f"bndbox/{edge}") or "" for edge in EDGES]
            if not name or "" in edges:
                raise ValueError(f"an object needs name and bndbox with {', '.join(EDGES)}")
            left, top, right, bottom = map(float, edges)
            box = {"bbox": [left, top, right - left, bottom - top], "category": name}
            boxes.append(box | {"id": file, "iscrowd": int(each.findtext("difficult") == "1")})
    except (ElementTree.ParseError, ValueError) as error:
        raise OSError(f"{file} is not a Pascal VOC file ({error}): repair or remove it") from error
    stated = PurePosixPath((root.findtext("filename") or file.stem).strip().replace("\\", "/"))
    names = [file.stem + stated.suffix, file.stem, str(stated)]  # `stated` is often outdated
    return {"names": names, "folder": file.parent, "source": file} | size, boxes


def load_voc(folder: Path, others: Counter[str]) -> tuple[dict[str, Json], Counter[str]]:
    """Load the Pascal VOC files of a folder as the content of a COCO file for each split; also count what is left out.

    Lists in ImageSets/Main/ decide about the splits, or else the names of folders.

    Args:
        folder: Folder that holds the files, in any subfolder.
        others: Numbers of files that are left out already, by kind.

    Raises:
        OSError: There is no such file, or one has errors.
    """
    files = canvases.list_files(folder, (".xml",))
    listed, unused = read_lists(folder, "Main", {file.stem for file in files})
    splits = find_splits({file.relative_to(folder).parent for file in files})
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        found[listed.get(file.stem, "") if listed else splits[file.relative_to(folder).parent] or "train"].append(file)
    left_out = others + Counter({"XML files in no list of ImageSets/Main/": len(found.pop("", []))})
    if not listed:
        left_out["folders ImageSets/ (lists are used if there is only one ImageSets/Main/)"] = unused
        canvases.refuse_unclear(folder, splits)
    if "train" not in found:
        problem = "no training annotations: it needs a COCO file, or XML files of Pascal VOC; convert LabelMe files"
        unlisted = [f"{number} {name}" for name, number in (left_out - others).items()]
        wrong = [f"{number} {name}, are not in COCO format" for name, number in others.items()]
        refuse(folder, [problem, *unlisted, *wrong])
    read = {split: [read_voc(file) for file in files] for split, files in found.items()}
    names = sorted({box["category"] for part in read.values() for _, boxes in part for box in boxes})
    contents: dict[str, Json] = {}
    numbers = count(1)
    for split, part in read.items():
        images, annotations = [], []
        for image_id, (image, boxes) in zip(numbers, part, strict=False):
            images.append(image | {"id": image_id})
            annotations += [box | {"image_id": image_id, "category_id": names.index(box["category"])} for box in boxes]
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        contents[split] = {"images": images, "annotations": annotations, "categories": categories}
    return contents, left_out


def find_picture(name: str, places: list[Path], named: dict[str, list[Path]]) -> Path:
    """Find a picture: the longest tail of path `name` that exists in one of `places`, else the only file of its name.

    The suffix of that file may be in upper or lower case. If there is no such file, the path returned does not exist.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.relative_to(path.anchor).parts
    for end in [Path(*parts[i:]) for i in range(max(len(parts) - 1, 1))]:
        for place in places:
            if ".." not in end.parts and (file := place / end).is_file():
                return file
    same = named.get(path.name) or named.get(path.stem + path.suffix.lower(), [])
    same = [file for file in same if path.name in (file.name, file.stem)] or same
    return same[0] if len(same) == 1 else places[0] / path.name  # which is missing


def merge_categories(content: Json) -> dict[Any, str]:
    """Names of the categories by id, sorted by id. Of categories with the same name, only the first is kept."""
    ids: dict[str, Any] = {}
    for category in sorted(content["categories"], key=lambda each: str(each["id"]).zfill(9)):
        ids.setdefault(str(category["name"]), category["id"])
    return {category_id: name for name, category_id in ids.items()}


def find_edges(box: Json) -> list[float] | None:
    """Left, top, right and bottom of the bbox or, if there is none, of the polygons; None if they are not numbers."""
    try:
        if box.get("bbox"):
            x, y, width, height = np.array(box["bbox"], float)
            edges = [x, y, x + width, y + height]
        else:
            polygons = box["segmentation"]
            polygons = polygons if np.ndim(polygons[0]) else [polygons]  # some tools write one polygon without a list
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons]).astype(float)
            edges = [*points.min(axis=0), *points.max(axis=0)]
    except (LookupError, TypeError, ValueError):
        return None
    return edges if np.isfinite(edges).all() else None


def make_samples(
    content: Json, pictures: dict[Path, Picture], class_names: list[str], drop: bool
) -> tuple[list[Sample], list[str], Counter[str]]:
    """Check and convert the annotations of a split; with `drop`, leave out boxes outside of pictures and clip others.

    Returns:
        The pictures that can be read, and their targets; what is wrong; and how many boxes are left out and why.
    """
    problems: list[str] = []
    left_out: Counter[str] = Counter()
    names = {str(category["id"]): str(category["name"]) for category in content["categories"]}
    rows: dict[str, list[list[float]]] = {str(image["id"]): [] for image in content["images"]}
    for box in content["annotations"]:
        image_id, name, edges = str(box.get("image_id")), names.get(str(box.get("category_id"))), find_edges(box)
        if image_id not in rows:
            problems.append(f"annotation {box['id']}: there is no image {image_id}")
        elif name not in class_names:
            kind = name or box.get("category_id")
            problems.append(f"annotation {box['id']}: there is no category {kind} in the training annotations")
        elif edges is None:
            wrong = f"bbox is {box['bbox']}, not" if box.get("bbox") else "it has no bbox and no polygons: add bbox as"
            problems.append(f"annotation {box['id']}: {wrong} [x, y, width, height]")
        elif edges[0] == edges[2] or edges[1] == edges[3]:
            left_out["boxes without area"] += 1
        else:
            rows[image_id].append([*edges, class_names.index(name) + 1, bool(box["iscrowd"])])
    if any(rows.values()) and max(max(row[:4]) for part in rows.values() for row in part) <= 2:
        problems.append("boxes are fractions of their pictures: write pixels")
    samples: list[Sample] = []
    sources: dict[Path, Any] = {}
    for image in [image for image in content["images"] if image["file"] in pictures]:
        picture = pictures[image["file"]]
        if (first := sources.setdefault(picture.file, image["source"])) != image["source"]:
            problems.append(f"{first} and {image['source']} have the same picture, {picture.file}: keep one of them")
        table = torch.tensor(rows[str(image["id"])], dtype=torch.float32).reshape(-1, 6)
        drawn, labels, iscrowd = table[:, :4], *table[:, 4:].long().unbind(1)
        clipped = clip_boxes_to_image(drawn, picture.size)
        inside = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
        beyond = ~inside | ((clipped - drawn).abs() > 2).any(dim=1)  # boxes of COCO are rounded
        if not drop:
            boxes = box_convert(drawn[beyond], "xyxy", "xywh").tolist()
            problems += [
                f"{picture.file}: box {box} ([x, y, width, height]) exceeds the picture or has a negative size:"
                " correct it, or use --data.drop_bad_boxes true"
                for box in boxes
            ]
        left_out["boxes outside of their pictures"] += int((~inside).sum())
        target = make_target(clipped[inside], labels[inside], iscrowd[inside], image["id"], picture.size)
        samples.append((picture, target))
    return samples, problems, +left_out


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
        image = Image(canvases.read_picture(picture) if isinstance(picture, Picture) else picture)
        if self.transform:
            image, target = self.transform(image, target)
        return image / 255, target


def collate(samples: list[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    """Make a batch of two lists: pictures, whose sizes may differ, and targets or columns."""
    images, others = zip(*samples, strict=True)
    return list(images), list(others)


class MyDataModule(LightningDataModule):
    """Pictures of any size and the boxes around the objects in them.

    A batch is a list of pictures (3, H, W), float32 in [0, 1], and a list of targets; see `make_target`.

    Args:
        data_dir: Folder with pictures and their annotations: COCO files (annotations.json, or train.json and optionally
            val.json and test.json) or XML files of Pascal VOC; README.md lists the layouts. Without a test split, 20%
            of the training pictures are used for testing; without a validation split, an eighth of the remaining ones
            for validation. A relative path starts at the project's root. Null uses the embedded pictures.
        drop_bad_boxes: Leave out boxes that lie outside of their pictures, and clip those that reach beyond the edges;
            by default both are errors, except for up to 2 pixels beyond an edge.
        turn: Whether to apply the EXIF orientation of a picture if its annotations state no size, or a size that is
            right both with the orientation and without it. With null, such a picture is an error, but predict.py
            applies the orientation of new pictures.
        min_size: Shorter side to which the network resizes pictures, in pixels; null takes the median of the training
            pictures, at most 800.
        max_size: Limit of the longer side after resizing, in pixels.
        anchor_sizes: Sides of the anchor boxes of a ResNet in pixels of the resized pictures, in ascending order; null
            derives them from the training boxes.
        flip: Mirror half of the training pictures.
        folds: Number of folds that take the place of train and val; the test split stays.
        fold: Fold used for validation, from 1 to `folds`; the others are used for training.
        batch_size: Pictures per step and device in training. Validation, test and prediction use batches of one
            picture, because padding to the largest picture of a batch changes the network's outputs a little.
        num_workers: Processes that read pictures; with 0, the main process does. Use more for photographs on a GPU.
    """

    inputs: Sequence[str] = ()  # picture files and folders to predict
    predict_split: str | None = None  # split that is predicted completely if there are no inputs

    def __init__(
        self,
        data_dir: str | None = None,
        drop_bad_boxes: bool = False,
        turn: bool | None = None,
        min_size: PositiveInt | None = None,
        max_size: PositiveInt = 1333,
        anchor_sizes: AnchorSizes | None = None,
        flip: bool = False,
        folds: AtLeastTwo | None = None,  # type: ignore[valid-type]
        fold: PositiveInt | None = None,
        batch_size: PositiveInt = 8,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        check_fold(folds, fold)
        self.data_dir = ROOT / Path(data_dir).expanduser() if data_dir else None
        self.batch_size, self.num_workers = batch_size, num_workers
        self.folds = folds, fold
        self.reported = False  # whether the line about turned pictures was printed
        self.unused: Counter[str] = Counter()  # files of annotations that are left out

    @cached_property
    def annotated(self) -> dict[str, Json]:
        """Annotations of each split as in a COCO file. Images have a path as "file"; their "size" may be None."""
        if not (folder := self.data_dir) or not folder.is_dir():
            return {}
        named: defaultdict[str, list[Path]] = defaultdict(list)
        for file in canvases.list_files(folder, SUFFIXES):
            for name in {file.name, file.stem, file.stem + file.suffix.lower()}:
                named[name].append(file)
        contents, self.unused = find_annotations(folder)
        if not contents:
            contents, self.unused = load_voc(folder, self.unused)
        folders = find_splits([path.relative_to(folder) for path in folder.glob("**/")])
        for split, content in contents.items():
            own = [folder / path for path, name in folders.items() if name == split]
            others = {folder / path for path, name in folders.items() if own and name not in ("", split)}
            free = {name: [file for file in same if file.parent not in others] for name, same in named.items()}
            for image in content["images"]:
                size = image["height"], image["width"]
                places = [image["folder"], folder / "images", folder, folder / "JPEGImages", *own]
                names = [str(name) for name in image.get("names", [image.get("file_name")])]
                names += [unquote(name) for name in names if "%" in name]  # such as my%20picture.jpg
                tried = [find_picture(name, places, free) for name in names]
                file = next(filter(Path.is_file, tried), tried[-1])
                image |= {"file": file, "size": size if all(size) else None}
        return contents

    @cached_property
    def samples(self) -> tuple[dict[Any, str], dict[str, list[Sample]]]:
        """The names of the categories by id, and the pictures and boxes by split.

        Raises:
            OSError: Files are missing or cannot be used; the message names them.
        """
        self.left_out: Counter[str] = Counter()
        if self.data_dir is None:
            drawn, groups = embedded_samples()
            names = {digit + 1: str(digit) for digit in range(10)}
            return names, split_samples("the embedded data", {"train": drawn}, groups, *self.folds)
        refuse(self.data_dir, [] if self.annotated else ["the folder does not exist: correct --data.data_dir"])
        self.left_out += self.unused
        sizes = {image["file"]: image["size"] for content in self.annotated.values() for image in content["images"]}
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(canvases.measure_picture, sizes, sizes.values(), repeat(self.hparams["turn"])))
        pictures = {result.file: result for result in results if isinstance(result, Picture)}
        problems = [result for result in results if isinstance(result, str)]
        canvases.check_depth(list(pictures))
        categories = merge_categories(self.annotated["train"])
        splits = {}
        for split, content in self.annotated.items():
            drop = self.hparams["drop_bad_boxes"]
            splits[split], found, left_out = make_samples(content, pictures, list(categories.values()), drop)
            problems += [f"{split}: {problem}" for problem in found]
            self.left_out += left_out
        refuse(self.data_dir, problems)
        if self.folds[0] or not splits.keys() >= {*SPLITS}:
            read = [picture for part in splits.values() for picture, _ in part]
            files = [picture.file for picture in read if isinstance(picture, Picture)]
            splits = split_samples(self.data_dir, splits, canvases.group_copies(files), *self.folds)
        splits["train"] = [(picture, without_crowds(target)) for picture, target in splits["train"]]
        empty = [split for split in SPLITS if not any((target["iscrowd"] == 0).any() for _, target in splits[split])]
        if "train" in empty:
            refuse(self.data_dir, ["train has no boxes except those around crowds: add annotations with iscrowd 0"])
        for split in empty:
            what = "has no boxes, except perhaps around crowds"
            rank_zero_only(print)(f"warning: {split} {what}: {split}/map is not logged", file=sys.stderr)
        return categories, splits

    @cached_property
    def class_names(self) -> list[str]:
        return list(self.samples[0].values())

    @cached_property
    def category_ids(self) -> list[Any]:
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
        """Sides of the anchor boxes of the five levels, in pixels of the resized pictures, in ascending order."""
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
        # A command that loads a checkpoint has set category_ids and class_names to those of the checkpoint.
        if categories != dict(zip(self.category_ids, self.class_names, strict=True)):
            hint = "use the --data.data_dir with which the model was trained, or train a new model"
            refuse(self.data_dir, [f"its categories {categories} differ from the checkpoint's: {hint}"])
        if stage == "fit":
            rank_zero_only(print)(self.report(), flush=True)
        self.train = PictureDataset(splits["train"], RandomHorizontalFlip() if self.hparams["flip"] else None)
        self.val, self.test = PictureDataset(splits["val"]), PictureDataset(splits["test"])
        first: list[Sample] = []
        split = self.predict_split or "test"
        for i, (picture, target) in enumerate(splits[split][: None if self.predict_split else 8]):
            name = str(picture.file) if isinstance(picture, Picture) else f"{split} {i}"
            first.append((picture, {"input": name, "image_id": target["image_id"]}))
        self.predict = PictureDataset(first)

    def _annotated_inputs(self) -> dict[Path, Json]:
        """The annotated images by file, if inputs may be among them and the annotations can still be read."""
        if not (folder := self.data_dir):
            return {}
        inputs = [Path(each).resolve() for each in self.inputs]
        if not any(each.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(each) for each in inputs):
            return {}
        try:
            contents = self.annotated.values()
        except OSError as error:
            what = "sizes and ids of the inputs are not taken from the annotations"
            rank_zero_only(print)(f"warning: {what}: {' '.join(str(error).split())}", file=sys.stderr)
            return {}
        return {image["file"].resolve(): image for content in contents for image in content["images"]}

    def _read_inputs(self) -> list[Sample]:
        """The pictures to predict, with the columns to print. An annotated picture keeps its annotated id."""
        images = self._annotated_inputs()
        others = count(max((image["id"] for image in images.values() if isinstance(image["id"], int)), default=0) + 1)

        def measure(file: Path) -> Picture | str:
            size = images.get(file.resolve(), {}).get("size")
            return canvases.measure_picture(file, size, self.hparams["turn"] is not False)

        samples: list[Sample] = []
        pictures = canvases.find_pictures(self.inputs, measure)
        if self.hparams["turn"] is None and not self.reported:
            self.reported = canvases.report_turned([each for each in pictures if each.file.resolve() not in images])
        for picture in pictures:
            image = images.get(picture.file.resolve())
            samples.append((picture, {"input": str(picture.file), "image_id": image["id"] if image else next(others)}))
        return samples

    def report(self) -> str:
        """Summary of the data, in a few lines."""
        splits = self.samples[1]
        labels = torch.cat([target["labels"] for part in splits.values() for _, target in part]).tolist()
        boxes = [f"{name} ({labels.count(i)})" for i, name in enumerate(self.class_names[:MAX_LISTED], start=1)]
        parts = ", ".join(f"{len(splits[split])} {split}" for split in SPLITS)
        if self.folds[0]:
            parts += f", fold {self.folds[1]} of {self.folds[0]}"
        lines = [f"data: {self.data_dir or 'the embedded data'}, pictures: {parts}", f"boxes: {', '.join(boxes)}"]
        return "\n".join(lines + [f"left out: {number} {what}" for what, number in self.left_out.items()])

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
            batch_size=self.batch_size if shuffle else 1,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=collate,
        )
