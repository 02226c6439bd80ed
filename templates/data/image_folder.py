"""Pictures with one folder per class; by default 1,797 handwritten digits from scikit-learn, written as PNG files.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 10.24432/C50P49
"""

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import normalize

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, Identity, RandomCrop, RandomHorizontalFlip, Transform

from data.pictures import (
    SUFFIXES,
    find_pictures,
    is_junk,
    leave_out_unreadable,
    list_pictures,
    open_picture,
    read_picture,
)
from data.splits import AtLeastTwo, check_fold, make_splits

ROOT = Path(__file__).resolve().parents[1]
# Names of folders, in upper or lower case, also with digits and COMPANIONS, as in "Training_Set" and "train2017".
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
COMPANIONS = "data|set|frames?|images?|imgs?|jpe?g|photos?|pictures?|split"
# Names of folders beside "images", and ends of the names of files, as in "1_mask.png" beside "1.png".
MASKS = "masks?|gt|ground.?truths?|seg|segmentations?|labels?|annotations?|trimaps?"
# Suffixes of pictures that cannot be read, of phones, cameras, scanners and drawing programs.
FOREIGN = (".arw", ".cr2", ".cr3", ".dcm", ".dng", ".eps", ".heic", ".heif", ".nef", ".orf", ".psd", ".raf", ".svg")
Place = tuple[str, ...]  # names of the folders between the data folder and a picture
MAX_LISTED = 20  # classes that the output lists, with their numbers of pictures
Sample = tuple[Path, str]  # a picture file and the name of its class


class PictureDataset(Dataset):
    """Data set of pairs: the transformed picture, float32 in [0, 1], and its label.

    Args:
        files: Picture files.
        labels: For each file, the number of its class; for predictions, a dictionary of columns to print.
        size: Height and width in pixels to which the pictures are resized.
        transform: Transform of each picture.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[Any], size: int, transform: Transform) -> None:
        self.files, self.labels, self.size, self.transform = files, labels, size, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        picture = read_picture(self.files[index], (3, self.size, self.size))
        return self.transform(picture), self.labels[index]


def write_digits(folder: Path) -> None:
    """Write the digits of scikit-learn as `folder`/CLASS/NUMBER.png of 32 x 32 pixels, all of them or none."""
    if folder.exists():
        return
    digits = load_digits()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        for number, (pixels, target) in enumerate(zip(digits.images, digits.target, strict=True)):
            file = Path(temporary, folder.name, str(target), f"{number:04}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32)).save(file)
        try:
            Path(temporary, folder.name).rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster
                raise


def find_splits(names: Collection[str]) -> dict[str, str]:
    """The split that each folder is named after, such as "val" for "Validation_Set"; empty for other names.

    Words that different splits have in common are ignored, such as "seg" in "seg_train" and "seg_test".
    """
    texts = {name: re.sub(f"({COMPANIONS})+(?![a-z])", " ", name.lower()) for name in names}
    words = {name: set(re.findall(r"[^\W\d_]+", text)) for name, text in texts.items()}
    known = {word: split for split, part in SPLITS.items() for word in part}
    beside: defaultdict[str, set[str]] = defaultdict(set)
    for found in words.values():
        for word in found - known.keys():
            beside[word].update(known[other] for other in found & known.keys())
    shared = {word for word, splits in beside.items() if len(splits) > 1}
    return {name: known.get(" ".join(found - shared), "") for name, found in words.items()}


def find_masks(files: Sequence[Path]) -> set[Path]:
    """The masks of other pictures: those in "masks/" beside "images/", and "1_mask.png" in the folder of "1.png"."""
    stems = {file.with_suffix("") for file in files}
    folders = {folder for place in {file.parent for file in files} for folder in (place, *place.parents)}
    beside = {folder.parent for folder in folders if folder.name.lower() in ("image", "images", "img", "imgs")}
    word = re.compile(f"(?<![a-z])({MASKS})(?![a-z])", re.IGNORECASE)
    holders = {folder for folder in folders if folder.parent in beside and word.search(folder.name)}
    ending = re.compile(rf"(.+?)[_ .-]({MASKS})([_ -]?\d+)?", re.IGNORECASE)
    masks = {file for file in files if holders.intersection(file.parents)}
    for file in files:
        match = ending.fullmatch(file.stem)
        if match and file.with_name(match[1]) in stems:
            masks.add(file)
    return masks


def find_places(folder: Path) -> tuple[dict[Path, Place], set[Path]]:
    """The place of each picture in `folder`, even of those of a format that cannot be read, and masks of pictures."""
    files = list_pictures(folder, (*SUFFIXES, *FOREIGN))
    masks = find_masks(files)
    return {file: file.relative_to(folder).parts[:-1] for file in files if file not in masks}, masks


def find_root(folder: Path) -> Path:
    """The folder that holds the split or class folders: `folder`, or one in it, as in an unpacked archive.

    A folder is entered if no folder beside it holds pictures, and most of its own are in subfolders.
    """
    places = [place for place in find_places(folder)[0].values() if place]
    while len({place[0] for place in places}) == 1:
        name = places[0][0]
        deeper = [place[1:] for place in places if len(place) > 1]
        if any(find_splits([name]).values()) or len(deeper) <= len(places) / 2:
            break
        folder, places = folder / name, deeper
    return folder


def find_subfolders(places: Collection[Place]) -> dict[str, set[str]]:
    """The names of the subfolders of each folder that has subfolders."""
    subfolders: defaultdict[str, set[str]] = defaultdict(set)
    for place in places:
        if len(place) > 1:
            subfolders[place[0]].add(place[1])
    return subfolders


def find_layout(places: set[Place]) -> tuple[str, dict[str, str]]:
    """Find the layout and the split that each folder name stands for.

    The layout is "SPLIT/CLASS" (if split folders have subfolders), "CLASS/SPLIT" or "CLASS".
    """
    deep = [place for place in places if len(place) > 1]
    outer, inner = (find_splits({place[level] for place in places if len(place) > level}) for level in (0, 1))
    if any(outer[place[0]] for place in deep):
        return "SPLIT/CLASS", outer
    return ("CLASS/SPLIT", inner) if deep and all(inner.values()) else ("CLASS", {})


def find_split_and_class(place: Place, layout: str, splits: dict[str, str]) -> tuple[str, str]:
    """The split and the class of a picture; "" for the split, the class or both if the picture belongs to none."""
    first, second = (*place, "", "")[:2]
    if layout == "SPLIT/CLASS":
        return splits.get(first, ""), second
    return (splits.get(second, ""), first) if layout == "CLASS/SPLIT" else ("train", first)


def list_samples(folder: Path) -> tuple[dict[str, list[Sample]], list[str]]:
    """List the pictures of SPLIT/CLASS/*, CLASS/SPLIT/* or CLASS/*; without splits, all are for training.

    Returns:
        The pictures with their classes by split, and what is left out.

    Raises:
        FileNotFoundError: There are no pictures for training, none of the pictures of a class can be read, or two
            folders are named after the same split.
    """
    listed, masks = find_places(folder)
    # An accent may be a character of its own or a part of its letter.
    paths = {file: tuple(normalize("NFC", name) for name in place) for file, place in listed.items()}
    subfolders = find_subfolders(paths.values())
    doubled = [(name, name) for name, inner in subfolders.items() if inner == {name}]  # as in some archives
    places = {file: place[1:] if place[:2] in doubled else place for file, place in paths.items()}
    layout, levels = find_layout(set(places.values()))
    found = {file: find_split_and_class(place, layout, levels) for file, place in places.items()}
    wanted = {file: where for file, where in found.items() if all(where)}
    check_folders(folder, {places[file]: where for file, where in wanted.items()}, layout)
    splits: defaultdict[str, list[Sample]] = defaultdict(list)
    for file in leave_out_unreadable([file for file in wanted if file.suffix.lower() not in FOREIGN]):
        split, name = wanted[file]
        splits[split].append((file, name))
    check_depth([file for file, _ in splits["train"]])
    if lost := set(wanted.values()) - {(split, name) for split, part in splits.items() for _, name in part}:
        names = ", ".join(f"{name} ({split})" for split, name in sorted(lost))
        raise FileNotFoundError(f"{folder} has no readable pictures of {names}: repair, convert or remove them")
    skipped = Counter(str(Path(*places[file][:1])) for file in places.keys() - wanted.keys())
    left_out = [f"{count} pictures in {name}/ that are not in {layout}/" for name, count in sorted(skipped.items())]
    known = {name for _, name in splits["train"]}
    for split in ("val", "test"):
        classes = {name for _, name in splits[split]}
        if len(classes) == 1 and not classes & known:
            left_out.append(f"{len(splits.pop(split))} {split} pictures, as {classes.pop()}/ has no training pictures")
    return {split: part for split, part in splits.items() if part}, left_out + list_others(folder, places, masks)


def check_depth(files: Sequence[Path]) -> None:
    """Refuse 16-bit pictures that use 12 bits or fewer, as they would be nearly black; the first 20 are looked at.

    Raises:
        OSError: No value of these pictures is above 4095.
    """
    largest = 0
    for file in files[:20]:
        with open_picture(file) as picture:
            if picture.mode.startswith("I"):
                largest = max(largest, int(np.asarray(picture).max()))
    if 0 < largest < 4096:
        problem = f"16-bit pictures have no value above {largest}, so they would be nearly black"
        raise OSError(f"{files[0].parent}: {problem}: convert them to 8 bits")


def check_folders(folder: Path, places: dict[Place, tuple[str, str]], layout: str) -> None:
    """Check the folders that are read as splits and classes.

    Raises:
        FileNotFoundError: No pictures are for training, two folders are named after one split, or folders of classes
            after splits or other parts of data sets.
    """
    names = sorted({name for _, name in places.values()})
    if not any(split == "train" for split, _ in places.values()):
        raise FileNotFoundError(
            f"{folder} has no training pictures in folders of classes: use CLASS/* or train/CLASS/*"
        )
    looks = {*find_splits(re.findall(r"[^\W\d_]+", " ".join(names))).values()} - {""}
    if layout == "CLASS" and (len(looks) > 1 or all(find_splits(names).values())):
        raise FileNotFoundError(f"{folder}: {', '.join(names[:5])} look like splits, not classes: use train/CLASS/*")
    if layout == "SPLIT/CLASS":
        first = {place[0]: split for place, (split, _) in places.items()}
        for split, count in Counter(first.values()).items():
            if count > 1:
                same = " and ".join(sorted(name for name, other in first.items() if other == split))
                raise FileNotFoundError(f"{folder}: {same} are both named after the {split} split: rename one of them")
    if layout != "CLASS/SPLIT":
        training = {place for place, (split, _) in places.items() if split == "train"}
        check_classes(folder, {place[1:] if layout == "SPLIT/CLASS" else place for place in training})


def check_classes(folder: Path, places: set[Place]) -> None:
    """Warn if the subfolders of the classes may be the classes; `places` are those of training, from the classes on.

    Raises:
        FileNotFoundError: Classes are named after parts of a data set, or a class holds copies of the others.
    """
    names = sorted({place[0] for place in places})
    part = re.compile(rf"(?<![a-z])({COMPANIONS}|part)[\W_]*\d*$", re.IGNORECASE)
    rests = {part.sub("", name) for name in names}
    are_parts = len(rests) == 1 and (len(names) > 1 or rests == {""})
    if are_parts or all(re.fullmatch(f"({COMPANIONS}|{MASKS})+", name.lower()) for name in names):
        raise FileNotFoundError(
            f"{folder}: folders named {', '.join(names[:5])} do not look like classes: move their pictures to a folder"
            " for each class, or rename the folders if they are classes"
        )
    subfolders = find_subfolders(places)
    for name, inner in subfolders.items():
        if (name,) not in places and inner <= {*names} - {name}:
            raise FileNotFoundError(
                f"{folder}: {name} has no pictures of its own, and its subfolders have names of other classes,"
                f" {', '.join(sorted(inner)[:5])}: remove it, or move its pictures to those classes"
            )
    counts = Counter(name for inner in subfolders.values() for name in inner)
    if len(subfolders) == len(names) and 1 < len(counts) < counts.total():
        rank_zero_only(print)(
            f"warning: {folder}: {', '.join(names[:5])} are read as classes, but have subfolders of the same names: if"
            f" the subfolders are the classes, use folders such as {names[0]}_{min(subfolders[names[0]])} instead, or"
            " train, val and test if the folders above are splits",
            file=sys.stderr,
        )


def list_others(folder: Path, places: Collection[Path], masks: set[Path]) -> list[str]:
    """Descriptions of folders that hold no pictures and of files that are not read; hidden ones are skipped."""
    paths = [path for path in sorted(folder.rglob("*")) if not any(map(is_junk, path.relative_to(folder).parts))]
    full = {parent for file in (*places, *masks) for parent in file.parents}
    lines = [
        f"{path.relative_to(folder)}/, which holds no pictures" for path in paths if path.is_dir() and path not in full
    ]
    kinds = {
        "masks of other pictures": sorted(masks),
        "files of formats that cannot be read": [file for file in places if file.suffix.lower() in FOREIGN],
        "files that are not pictures": [
            path for path in paths if path.is_file() and path not in places and path not in masks
        ],
    }
    for kind, files in kinds.items():
        if files:
            names = ", ".join(str(file.relative_to(folder)) for file in files[:5])
            lines.append(f"{len(files)} {kind}: {names}" + (f" and {len(files) - 5} more" if len(files) > 5 else ""))
    return lines


def group_copies(folder: Path, files: Sequence[Path]) -> list[str]:
    """Return a key for each file; copies of a file have the same key."""
    sizes = Counter(file.stat().st_size for file in files)
    groups = []
    for file in files:
        is_alone = sizes[file.stat().st_size] == 1  # so it has no copy
        groups.append(str(file.relative_to(folder)) if is_alone else sha256(file.read_bytes()).hexdigest())
    return groups


class MyDataModule(LightningDataModule):
    """Pictures of any size, mode and format.

    A batch is a pair: pictures (N, 3, H, W), float32 in [0, 1], and classes (N,), int64.

    Args:
        data_dir: Folder with CLASS/*, or with train/CLASS/* and optionally val/CLASS/* and test/CLASS/*; see `SPLITS`
            in data/data_module.py for other names of splits. If there is no test split, 20% of the training pictures
            of each class are used for it; if there is no val split, an eighth of the remaining ones. Copies of a file
            stay together. Null writes the digits to data/digits and uses them. A relative path starts at the
            project's root.
        image_size: Height and width in pixels of the model's input. The centre of each picture is cropped to a square
            and resized to it; training pictures are resized to a seventh more, and cropped at random.
            Null takes the median of the shorter sides of the pictures, rounded to 32, 64, 96 and so on up to 224.
        folds: Number of folds that take the place of train and val; the test split stays.
        fold: Fold used for validation, from 1 to `folds`; the others are used for training.
        batch_size: Samples per step and device.
        flip: Whether to mirror half of the training pictures at random; right for most photographs, wrong where left
            and right matter, as in digits.
        num_workers: Processes that read pictures.
    """

    inputs: Sequence[str] = ()  # picture files and folders to predict
    predict_split: str | None = None  # split that is predicted completely if there are no inputs
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained networks need them

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: PositiveInt | None = None,
        folds: AtLeastTwo | None = None,  # type: ignore[valid-type]
        fold: PositiveInt | None = None,
        batch_size: PositiveInt = 64,
        flip: bool = False,
        num_workers: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        check_fold(folds, fold)
        self.folds, self.fold = folds, fold
        self.embedded = data_dir is None
        self.data_dir = ROOT / Path(data_dir or "data/digits").expanduser()
        self.image_size, self.batch_size, self.flip, self.num_workers = image_size, batch_size, flip, num_workers

    @cached_property
    def samples(self) -> dict[str, list[Sample]]:
        """The samples of the splits train, val and test.

        Raises:
            FileNotFoundError: There is no folder, no training picture, or a class of unreadable pictures only.
            MisconfigurationException: There are too few pictures.
        """
        if self.embedded:
            write_digits(self.data_dir)
        if not self.data_dir.is_dir():
            raise FileNotFoundError(f"{self.data_dir} is not a folder: --data.data_dir needs CLASS/* or train/CLASS/*")
        self.root = find_root(self.data_dir)
        found, self.left_out = list_samples(self.root)
        given, samples = zip(*((split, sample) for split, part in found.items() for sample in part), strict=True)
        files, names = zip(*samples, strict=True)
        split_of_each = make_splits(group_copies(self.root, files), names, given, folds=self.folds, fold=self.fold)
        splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
        for split, sample in zip(split_of_each, samples, strict=True):
            splits[split].append(sample)
        self.sources = {split: " (from train)" for split in SPLITS if split not in found}
        if not (splits["val"] and splits["test"]):
            raise MisconfigurationException(
                f"{self.data_dir} has too few pictures to split: use five or more per class"
            )
        return splits

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the folders, sorted."""
        names = sorted({name for _, name in self.samples["train"]})
        if len(names) < 2:
            raise MisconfigurationException(
                f"{self.data_dir} has only one class, {names[0]}: add a folder with pictures of another class"
            )
        return names

    @cached_property
    def class_counts(self) -> list[int]:
        """The number of training pictures of each class."""
        counts = Counter(name for _, name in self.samples["train"])
        return [counts[name] for name in self.class_names]

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width in pixels."""
        size = self.image_size
        if size is None:
            files = [file for file, _ in self.samples["train"]]
            side = median(min(open_picture(file).size) for file in files[:: len(files) // 100 + 1])
            size = min(max(round(side / 32), 1), 7) * 32
        return 3, size, size

    def setup(self, stage: str) -> None:
        size = self.image_shape[-1]
        if self.inputs:
            files = find_pictures(self.inputs)
            self.predict = PictureDataset(files, [{"input": str(file)} for file in files], size, Identity())
            return
        if stage == "fit":
            rank_zero_only(print)(self.report(), flush=True)
        flip = RandomHorizontalFlip(0.5 if self.flip else 0.0)
        self.train = self._dataset("train", size + size // 7, Compose([RandomCrop(size), flip]))
        self.val, self.test = (self._dataset(split, size, Identity()) for split in ("val", "test"))
        if stage == "predict":
            self.predict = self._known_samples(size)

    def report(self) -> str:
        """Summary of the data, in a few lines."""
        parts = [f"{len(self.samples[split])} {split}{self.sources.get(split, '')}" for split in SPLITS]
        counts = Counter(name for part in self.samples.values() for _, name in part)
        classes = [f"{name} ({counts[name]})" for name in self.class_names[:MAX_LISTED]]
        if len(counts) > MAX_LISTED:
            classes.append(f"and {len(counts) - MAX_LISTED} more")
        if self.folds:
            parts.append(f"fold {self.fold} of {self.folds}")
        lines = [f"data: {self.root}, {counts.total()} pictures: {', '.join(parts)}", f"classes: {', '.join(classes)}"]
        return "\n".join(lines + [f"left out: {what}" for what in self.left_out])

    def _dataset(self, split: str, size: int, transform: Transform) -> PictureDataset:
        """The pictures of a split with the numbers of their classes.

        Raises:
            MisconfigurationException: There is a class that the model does not have.
        """
        files, names = zip(*self.samples[split], strict=True)
        if unknown := set(names) - set(self.class_names):
            raise MisconfigurationException(
                f"{self.data_dir}: {split} has classes without training pictures, {', '.join(sorted(unknown))}:"
                " add training pictures of them or remove their folders"
            )
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return PictureDataset(files, [numbers[name] for name in names], size, transform)

    def _known_samples(self, size: int) -> PictureDataset:
        """All samples of `predict_split`; at most eight test samples if it is None."""
        samples = self.samples[self.predict_split or "test"]
        files, names = zip(*samples[:: 1 if self.predict_split else -(-len(samples) // 8)], strict=True)
        inputs = [str(file.relative_to(self.data_dir)) for file in files]
        columns = [{"input": name, "truth": truth} for name, truth in zip(inputs, names, strict=True)]
        return PictureDataset(files, columns, size, Identity())

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: Any, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(dataset) % self.batch_size == 1,  # batch normalisation needs two samples
            num_workers=self.num_workers,
        )
