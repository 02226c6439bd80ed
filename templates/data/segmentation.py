"""Pictures and masks of the classes of their pixels, or an embedded set of handwritten digits on textured canvases.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, RandomCrop, RandomHorizontalFlip, Resize
from torchvision.tv_tensors import Image, Mask

from data import canvases
from data.canvases import FORMATS, SPLITS, SUFFIXES, Picture, Size, find_splits, refuse, split_samples
from data.splits import AtLeastTwo, check_fold

ROOT = Path(__file__).resolve().parents[1]
IGNORED = 255  # in a mask: the pixel has no class
MAX_LISTED = 20  # classes that are listed in the output
MAX_UNNAMED = 64  # classes without classes.txt; more different values are rather noise
COLOUR_HINT = "list the colours of the classes in classes.txt, as NAME RED GREEN BLUE, such as sky 127 127 127"
CLASS_FILES = ("classes.txt", "labelmap.txt", "class_dict.csv")
ROLES = {
    "mask": r"mask|label|annot|ground.?truth|segmentationclass|(^|[^a-z])(gt|manual\d*)$",
    "image": "image|img|photo|picture",
}
GREY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "F")  # of Pillow; pixels of other modes have several values
Scale = restricted_number_type("Scale", float, [(">=", 1), ("<=", 4)])
Classes = np.ndarray  # uint8, the class of each of 256 grey values or of 256**3 colours of a mask's pixels
Files = tuple[Path, Path]  # of a picture and its mask
Key = tuple[str, ...]  # split, folders and name that a picture and its mask have in common
Pair = tuple[Picture, Path] | tuple[Tensor, Tensor]


def role_of(name: str) -> str:
    """Return "mask" or "image" if a folder is named after masks or images, else ""."""
    return next((role for role, words in ROLES.items() if re.search(words, name.lower())), "")


def bare(stem: str) -> str:
    """The name of a file without suffix and without what tells masks from pictures, as in 7_mask or img_7."""
    words = "masks?|gt|labels?|seg|segmentation|annotation|l|image|img|sat"
    return re.sub(f"^({words})[ _-]|[ _-]({words})$", "", stem, flags=re.IGNORECASE)


def find_files(folder: Path) -> tuple[dict[Key, Path], dict[Key, Path], list[str]]:
    """Find pictures and masks: by the names of their folders or, in one folder, of files such as 7.png and 7_mask.png.

    Returns:
        Pictures and masks by split, folders and name; and what is left out.

    Raises:
        OSError: Two files have the same name.
    """
    files = canvases.list_files(folder, SUFFIXES)
    stems = {(file.parent, file.stem) for file in files}
    found: dict[str, dict[Key, Path]] = {"image": {}, "mask": {}, "": {}}
    problems = []
    places = {file.relative_to(folder).parent for file in files}
    splits = find_splits(places | {Path(part) for place in places for part in place.parts})
    canvases.refuse_unclear(folder, {place: splits[place] for place in places})
    for file in files:
        parts = file.relative_to(folder).parts[:-1]
        role = next(filter(None, map(role_of, (*parts[::-1], file.stem))), "")
        if bare(file.stem) != file.stem and (file.parent, bare(file.stem)) in stems:
            role = "mask"
        inner = [part for part in parts if not (role_of(part) or splits[Path(part)])]
        key = (splits[Path(*parts)], *inner, file.stem)
        if found[role].setdefault(key, file) != file:
            problems.append(f"{file} and {found[role][key]} have the same name")
    refuse(folder, problems)
    images, others = (found["image"], found[""]) if found["image"] else (found[""], {})
    folders = Counter(str(file.relative_to(folder).parent) for file in others.values())
    return images, found["mask"], [f"{count} pictures in {name}/" for name, count in sorted(folders.items())]


def match_masks(folder: Path, images: dict[Key, Path], masks: dict[Key, Path]) -> tuple[dict[Key, Path], list[str]]:
    """Find the picture of each mask by name, with or without endings such as _mask.

    Returns:
        The masks by the keys of their pictures, and what is wrong with others.

    Raises:
        OSError: A picture has two masks, or one in another of several subfolders.
    """
    by_name: defaultdict[Key, list[Key]] = defaultdict(list)
    for key in images:
        by_name[key[0], bare(key[-1])].append(key)
    pairs: dict[Key, Path] = {}
    places = [*{key[:-1] for key in images}, *{key[:-1] for key in masks}]
    problems = []
    for key, mask in masks.items():
        whole = re.sub(r"(?<=mask)[ _-]\d+$", "", key[-1], flags=re.IGNORECASE)  # 7_mask_1 is a part of 7_mask
        similar = by_name[key[0], bare(key[-1])] or by_name[key[0], bare(whole)]
        names = [key] if key in images else [other for other in similar if other[:-1] == key[:-1]] or similar
        if len(names) != 1:
            problems.append(f"{mask} has {'several pictures' if names else 'no picture'}")
        elif not {*key[1:-1]} <= {*names[0][1:-1]} and sum(place[0] == key[0] for place in places) > 2:
            refuse(folder, [f"{mask} and its picture {images[names[0]]} are in different subfolders: use the same"])
        elif pairs.setdefault(names[0], mask) != mask:
            hint = "combine or remove them, so that there is one"
            refuse(folder, [f"{images[names[0]]} has two masks, {mask} and {pairs[names[0]]}: {hint}"])
    return pairs, problems


def refuse_other_masks(folder: Path, pairs: dict[Key, Path], masks: dict[Key, Path]) -> None:
    """Refuse a folder of masks without pictures if another has the masks of these pictures, as DRIVE has two.

    Raises:
        OSError: There are two such folders.
    """
    names = {mask.parent.name for mask in pairs.values()}
    used = {key[0]: mask.parent for key, mask in pairs.items()}
    for key, mask in masks.items():
        if key[0] in used and role_of(mask.parent.name) == "mask" and mask.parent.name not in names:
            what = f"masks in {mask.parent}/ have no pictures, but those in {used[key[0]]}/ have"
            refuse(folder, [f"{what}: keep one of these folders, and give its masks the names of their pictures"])


def find_pairs(folder: Path, drop: bool) -> tuple[dict[str, list[Files]], list[str]]:
    """Pair pictures and masks by name, and find their splits; `drop` leaves out those without partner.

    Returns:
        The pairs by split, and what is left out.

    Raises:
        OSError: A picture or a mask has no partner, or two, or one in another of several subfolders.
    """
    if not folder.is_dir():
        refuse(folder, ["there is no such folder"])
    images, masks, left_out = find_files(folder)
    pairs, problems = match_masks(folder, images, masks)
    refuse_other_masks(folder, pairs, masks)
    listed, unused = canvases.read_lists(folder, "Segmentation", {key[-1] for key in images})
    split_of = {key: listed.get(key[-1], "") if listed else key[0] or "train" for key in images}
    splits: defaultdict[str, list[Files]] = defaultdict(list)
    for key, mask in sorted(pairs.items()):
        splits[split_of[key]].append((images[key], mask))
    splits.pop("", None)
    if unlisted := sum(not split for split in split_of.values()):
        left_out.append(f"{unlisted} pictures in no list of ImageSets/Segmentation/")
    if unused:
        left_out.append(f"{unused} folders ImageSets/ (lists are used if there is only one ImageSets/Segmentation/)")
    alone = [key for key in sorted(images) if key not in pairs and split_of[key]]
    for split in {split_of[key] for key in alone} - splits.keys() - {"train"}:
        left_out.append(f"the {split} pictures, which have no masks")
        alone = [key for key in alone if split_of[key] != split]
    problems += [f"{images[key]} has no mask" for key in alone]
    hint = "--data.drop_unpaired true leaves them out"
    if not (images and masks):
        refuse(folder, ["there are no pictures with masks: it needs images/ and masks/"])
    elif not pairs:
        hint = "a mask needs the name of its picture, as in 7.jpg and 7.png or 7_mask.png"
    elif drop and problems:
        left_out.append(f"{len(problems)} pictures or masks without a partner")
        problems = []
    refuse(folder, [*problems[:19], hint] if problems else [])
    return dict(splits), left_out


def read_codes(file: Path, in_colour: bool) -> np.ndarray:
    """Read the values of a mask, (H, W) integers: colours, or grey values and the indices of palettes.

    Raises:
        OSError: It cannot be decoded, or does not hold such values.
    """
    try:
        with PIL.Image.open(file, formats=FORMATS) as picture:
            if picture.format in ("JPEG", "MPO"):
                raise ValueError("it is a JPEG file, which changes the values of pixels: save masks as PNG files")
            pixels = np.asarray(picture.convert("RGB") if in_colour or picture.mode not in GREY_MODES else picture)
    except Exception as error:  # Pillow raises many types for damaged files
        raise OSError(f"{file} cannot be decoded ({error}): repair or remove it") from error
    if in_colour:
        return pixels.astype(np.int64) @ np.array([65536, 256, 1])
    if pixels.ndim == 3 and (pixels != pixels[:, :, :1]).any():
        raise OSError(f"{file} is a colour picture: {COLOUR_HINT}")
    pixels = pixels[:, :, 0] if pixels.ndim == 3 else pixels
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > IGNORED:
        raise OSError(f"{file} has other pixels than 0 to {IGNORED}: write the index of the class to each pixel")
    return pixels.astype(np.int64)


def read_mask(file: Path, classes: Classes) -> Tensor:
    """Read the classes of a mask, (H, W) uint8.

    Raises:
        OSError: It cannot be decoded, or does not hold such values.
    """
    return torch.from_numpy(classes[read_codes(file, in_colour=len(classes) > 256)])


class Scan(NamedTuple):
    """The size of a mask, the number of pixels of each value, and the colour of each value in its palette."""

    size: Size
    counts: dict[int, int]
    palette: dict[int, tuple[int, ...]]


def scan_mask(file: Path, in_colour: bool) -> Scan | str:
    """Scan a mask, or return what is wrong with it."""
    try:
        codes = read_codes(file, in_colour)
        with PIL.Image.open(file, formats=FORMATS) as picture:
            colours = np.reshape(picture.getpalette("RGB") or [], (-1, 3)) if picture.mode == "P" else np.empty((0, 3))
    except OSError as error:
        return str(error)
    values, counts = np.unique(codes, return_counts=True)
    palette = {int(value): tuple(colours[value].tolist()) for value in values if not in_colour and value < len(colours)}
    return Scan((codes.shape[0], codes.shape[1]), dict(zip(values.tolist(), counts.tolist(), strict=True)), palette)


def read_class_file(folder: Path) -> tuple[list[str], list[int]]:
    """Read the names of the classes and, if each line ends with red, green and blue, their colours.

    Returns:
        Names, and colours as red * 65536 + green * 256 + blue; both are empty if there is no such file.

    Raises:
        OSError: It is not text in UTF-8, or two classes have the same name or colour.
    """
    file = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file else []
    except UnicodeDecodeError as error:
        raise OSError(f"{file} is not text in UTF-8: save it as UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    number = r"[\s,;:]+(\d{1,3})"
    found = [re.fullmatch(f"(.*?){number * 3}[\\s:]*", name) for name in names]
    colours: list[int] = []
    if any(found) and all(found[1:]):  # the first line may be a header
        names = [match[1].strip() for match in found if match]
        colours = [int(match[2]) * 65536 + int(match[3]) * 256 + int(match[4]) for match in found if match]
    for what, values in (("name", names), ("colour", colours)):
        if len(set(values)) < len(values):
            raise OSError(f"{file} has two classes with the same {what}")
    return names, colours


def choose_classes(
    scans: dict[Path, Scan], names: list[str], colours: list[int]
) -> tuple[list[str], Classes, list[str]]:
    """Decide which class each value of the masks stands for, given names and colours of the classes, or none.

    Returns:
        Names, the class of each value, and what is wrong.
    """
    values = {value for scan in scans.values() for value in scan.counts}
    classes = np.full(256**3 if colours else 256, IGNORED, np.uint8)
    if colours:
        classes[colours] = range(len(colours))
        wrong = {mask: next(iter(scan.counts.keys() - {*colours}), None) for mask, scan in scans.items()}
        rgb = {mask: f"{code >> 16} {code >> 8 & 255} {code & 255}" for mask, code in wrong.items() if code is not None}
        return names, classes, [f"{mask} has the colour {colour} of no class" for mask, colour in rgb.items()]
    if values == {0, 255} and len(names) in (0, 2):
        classes[[0, 255]] = 0, 1
        return names or ["0", "255"], classes, []
    classes[:IGNORED] = range(IGNORED)
    indices = values - {IGNORED}
    most = max(indices, default=0)
    problems = []
    ones, ends = ({mask for mask, scan in scans.items() if value in scan.counts} for value in (1, IGNORED))
    if len(names) == 1:
        problems.append(f"only one class has a name, {names[0]}: name the background as well, in the line before it")
    elif values == {0, IGNORED}:
        problems.append(f"masks have 2 values, 0 and 255, but {len(names)} classes have names: name 2 classes")
    elif values == {0, 1, IGNORED} and ones.isdisjoint(ends):
        unclear = f"{min(ends)} has the value 255, {min(ones)} the value 1, and no mask has both"
        problems.append(f"{unclear}: 255 may be class 1 or no class, so write 1 for class 1 in all masks")
    elif names:
        for mask, scan in scans.items():
            index = max(scan.counts.keys() - {IGNORED}, default=0)
            if index >= len(names):
                problems.append(f"{mask} has class {index}, but {len(names)} classes have names: {COLOUR_HINT}")
    elif most < 1:
        problems.append("no pixel of the masks has a class other than 0: write 1 for the second class")
    elif len(indices) > MAX_UNNAMED or most + 1 > 2 * len(indices):
        problems.append(
            f"masks have {len(values)} different values up to {max(values)}: {COLOUR_HINT},"
            " or name the classes of all values from 0 there, or save masks as PNG files, if they were JPEG files"
        )
    return names or [str(i) for i in range(most + 1)], classes, problems


def check_palettes(scans: dict[Path, Scan]) -> list[str]:
    """The values that stand for different colours in the palettes of two masks."""
    first: dict[int, tuple[Path, tuple[int, ...]]] = {}
    for mask, scan in scans.items():
        for value, colour in scan.palette.items():
            other, same = first.setdefault(value, (mask, colour))
            if same != colour:
                return [f"value {value} is {colour} in {mask} and {same} in {other}: {COLOUR_HINT}"]
    return []


def random_crop(image: Image, mask: Mask, size: int, scale: float) -> Any:
    """Crop a square at random and resize it. Pixels beyond the edges of the picture are black and have no class.

    Args:
        image: Picture (3, H, W) uint8.
        mask: Its mask (H, W) uint8.
        size: Height and width of the result in pixels.
        scale: The crop is enlarged by a factor from 1 / scale to scale.
    """
    side = round(size * scale ** (2 * torch.rand(()).item() - 1))
    crop = RandomCrop(side, pad_if_needed=True, fill={Image: 0, Mask: IGNORED})
    return Resize((size, size))(*crop(image, mask))


class PairDataset(Dataset):
    """Pictures (3, H, W) float32 in [0, 1] and masks (H, W) int64.

    Args:
        pairs: Files, or tensors (3, H, W) uint8 and (H, W) uint8, of pictures and masks.
        classes: The class of each value of the masks in files.
        transform: Random changes of a picture and its mask.
    """

    def __init__(
        self, pairs: Sequence[Pair], classes: Classes, transform: Callable[[Image, Mask], Any] | None = None
    ) -> None:
        self.pairs, self.classes, self.transform = pairs, classes, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, mask = self.pairs[index]
        image = Image(canvases.read_picture(picture) if isinstance(picture, Picture) else picture)
        target = Mask(read_mask(mask, self.classes) if isinstance(mask, Path) else mask)
        if self.transform:
            image, target = self.transform(image, target)
        return image / 255, target.long()


class PictureDataset(Dataset):
    """Pictures (3, H, W) float32 in [0, 1], with the columns to print before their predictions.

    Args:
        pictures: Files or tensors (3, H, W) uint8.
        names: Names of the pictures.
    """

    def __init__(self, pictures: Sequence[Picture | Tensor], names: Sequence[str]) -> None:
        self.pictures, self.names = pictures, names

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, str]]:
        picture = self.pictures[index]
        pixels = canvases.read_picture(picture) if isinstance(picture, Picture) else picture
        return pixels / 255, {"input": self.names[index]}


class MyDataModule(LightningDataModule):
    """Pictures of any size and their masks. Training uses random crops, evaluation whole pictures.

    A batch is a pair: pictures (N, 3, H, W), float32 in [0, 1], and masks (N, H, W), int64. The pixels of a mask are
    classes, from 0, or 255 where there is none.

    Args:
        data_dir: Folder with images/ and masks/, whose files have the same names except for suffix and endings such as
            _mask, or with both in train/ and optionally val/ and test/. The pixels of masks are indices of classes, or
            255. A file classes.txt may name the classes, one per line, and give their colours: NAME RED GREEN BLUE. If
            there are no pictures for testing, 20% of the training pictures are used; if there are none for validation,
            an eighth of the others. A relative path starts at the project's root. Null uses the embedded pictures.
        drop_unpaired: Leave out pictures without a mask and masks without a picture; by default they are errors.
        turn: Whether masks fit pictures that are turned upright by their EXIF data; null decides by width and height.
        crop_size: Height and width of training crops in pixels; null takes the median of the shorter sides of the
            pictures, rounded down to a multiple of 32, at most 480.
        scale: Zoom training crops at random by factors from 1 / scale to scale; 1 disables it.
        flip: Mirror half of the training crops.
        folds: Number of folds that take the place of train and val; the test split stays.
        fold: Fold used for validation, from 1 to `folds`; the others are used for training.
        batch_size: Pictures per step and device in training. Other pictures differ in size, so a batch has one.
        num_workers: Processes that read pictures; with 0, the main process does. Use more for photographs on a GPU.
    """

    inputs: Sequence[str] = ()  # picture files and folders to predict
    predict_split: str | None = None  # split that is predicted completely if there are no inputs

    def __init__(
        self,
        data_dir: str | None = None,
        drop_unpaired: bool = False,
        turn: bool | None = None,
        crop_size: PositiveInt | None = None,
        scale: Scale = 1.0,  # type: ignore[valid-type]
        flip: bool = False,
        folds: AtLeastTwo | None = None,  # type: ignore[valid-type]
        fold: PositiveInt | None = None,
        batch_size: AtLeastTwo = 8,  # type: ignore[valid-type]  # batch normalization needs two pictures
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        check_fold(folds, fold)
        self.data_dir = ROOT / Path(data_dir).expanduser() if data_dir else None
        self.batch_size, self.num_workers = batch_size, num_workers
        self.folds = folds, fold
        self.reported = False  # whether the line about turned pictures was printed

    @cached_property
    def samples(self) -> tuple[list[str], dict[str, list[Any]]]:
        """The names of the classes, and pairs of pictures and masks by split.

        Raises:
            OSError: Files are missing or cannot be used; the message names them.
        """
        self.left_out: list[str] = []
        self.pixels: dict[Path, Counter[str]] = {}  # of each mask, by class
        self.classes: Classes = np.arange(256, dtype=np.uint8)
        if self.data_dir is None:
            parts = canvases.make_canvases()
            drawn = [(canvas.picture, canvas.mask) for part in parts for canvas in part]
            groups = [str(number) for number, part in enumerate(parts) for _ in part]
            embedded = split_samples("the embedded data", {"train": drawn}, groups, *self.folds)
            return ["background", *map(str, range(10))], embedded
        pairs, self.left_out = find_pairs(self.data_dir, self.hparams["drop_unpaired"])
        names, colours = read_class_file(self.data_dir)
        images = {mask: image for part in pairs.values() for image, mask in part}
        with ThreadPoolExecutor() as pool:
            results = dict(zip(images, pool.map(scan_mask, images, repeat(bool(colours))), strict=True))
            scans = {mask: result for mask, result in results.items() if isinstance(result, Scan)}
            sizes = [scans[mask].size if mask in scans else None for mask in images]
            measured = list(pool.map(canvases.measure_picture, images.values(), sizes, repeat(self.hparams["turn"])))
        problems = [result for result in (*results.values(), *measured) if isinstance(result, str)]
        names, self.classes, faults = choose_classes(scans, names, colours)
        refuse(self.data_dir, problems or faults or check_palettes(scans))
        for mask, scan in scans.items():
            self.pixels[mask] = Counter()
            for value, count in scan.counts.items():
                index = int(self.classes[value])
                self.pixels[mask][names[index] if index < len(names) else "no class"] += count
        pictures = {picture.file: picture for picture in measured if isinstance(picture, Picture)}
        canvases.check_depth(list(pictures))
        splits = {split: [(pictures[image], mask) for image, mask in part] for split, part in pairs.items()}
        if self.folds[0] or not splits.keys() >= {*SPLITS}:
            files = [picture.file for part in splits.values() for picture, _ in part]
            splits = split_samples(self.data_dir, splits, canvases.group_copies(files), *self.folds)
        return names, splits

    @cached_property
    def class_names(self) -> list[str]:
        return self.samples[0]

    @cached_property
    def class_counts(self) -> list[int]:
        """Number of training pixels of each class."""
        names, splits = self.samples
        counts: Counter[str] = Counter()
        for _, mask in splits["train"]:
            if isinstance(mask, Path):
                counts += self.pixels[mask]
            else:
                counts.update(dict(zip(names, mask.flatten().bincount(minlength=len(names)).tolist(), strict=True)))
        return [counts[name] for name in names]

    @cached_property
    def crop_size(self) -> int:
        """Height and width of training crops in pixels."""
        if size := self.hparams["crop_size"]:
            return int(size)
        pictures = [picture for picture, _ in self.samples[1]["train"]]
        some = pictures[:: -(-len(pictures) // 100)]
        sides = [min(each.size if isinstance(each, Picture) else each.shape[1:]) for each in some]
        return min(max(int(median(sides)) // 32 * 32, 32), 480)

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.inputs:
            turn = self.hparams["turn"] is not False
            pictures = canvases.find_pictures(self.inputs, partial(canvases.measure_picture, size=None, turn=turn))
            if self.hparams["turn"] is None and not self.reported:
                self.reported = canvases.report_turned(pictures)
            self.predict = PictureDataset(pictures, [str(picture.file) for picture in pictures])
            return
        names, splits = self.samples
        if names != self.class_names[: len(names)]:  # attributes set by a checkpoint
            refuse(self.data_dir, [f"its classes {names} are not those of the training data, {self.class_names}"])
        if stage == "fit":
            rank_zero_only(print)(self.report(), flush=True)
            crop = partial(random_crop, size=self.crop_size, scale=self.hparams["scale"])
            flip = RandomHorizontalFlip(0.5 if self.hparams["flip"] else 0.0)
            self.train = PairDataset(splits["train"], self.classes, Compose([crop, flip]))
        self.val, self.test = (PairDataset(splits[split], self.classes) for split in ("val", "test"))
        split = self.predict_split or "test"
        some = [picture for picture, _ in splits[split][: None if self.predict_split else 8]]
        labels = [str(each.file) if isinstance(each, Picture) else f"{split} {i}" for i, each in enumerate(some)]
        self.predict = PictureDataset(some, labels)

    def report(self) -> str:
        """Summary of the data, in a few lines."""
        names, splits = self.samples
        parts = ", ".join(f"{len(splits[split])} {split}" for split in SPLITS)
        if self.folds[0]:
            parts += f", fold {self.folds[1]} of {self.folds[0]}"
        lines = [f"data: {self.data_dir or 'the embedded data'}, pictures with masks: {parts}"]
        if self.pixels:
            pixels = sum(self.pixels.values(), Counter())
            listed = [*names[:MAX_LISTED], *pixels.keys() & {"no class"}]
            shares = [f"{name} ({pixels[name] / pixels.total():.1%})" for name in listed]
            lines.append(f"classes by pixels: {', '.join(shares)}")
        return "\n".join(lines + [f"left out: {what}" for what in self.left_out])

    def train_dataloader(self) -> DataLoader:
        # Batch normalization needs two pictures, so the last batch must not have one.
        drop_last = len(self.train) > self.batch_size
        return self._loader(self.train, batch_size=self.batch_size, shuffle=True, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: Dataset, **options: Any) -> DataLoader:
        return DataLoader(dataset, num_workers=self.num_workers, **options)
