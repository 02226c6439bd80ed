"""Pictures and masks of the classes of their pixels, or an embedded set of handwritten digits on textured canvases.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, RandomCrop, RandomHorizontalFlip, Resize
from torchvision.tv_tensors import Image, Mask

from data.canvases import find_pictures, list_pictures, make_canvases, open_picture, read_picture, refuse

ROOT = Path(__file__).resolve().parents[1]
IGNORED = 255  # in a mask: the pixel has no class
BatchSize = restricted_number_type("BatchSize", int, [(">=", 2)])  # batch normalization needs two pictures
Scale = restricted_number_type("Scale", float, [(">=", 1), ("<=", 4)])
Files = tuple[Path, Path]  # of a picture and its mask
Pair = Files | tuple[Tensor, Tensor]


def find_pairs(folder: Path) -> list[Files]:
    """Pairs the pictures of images/ with the masks of masks/ by the names of the files without suffix.

    Raises:
        OSError: A picture or a mask has no partner, or two.
    """
    found: list[dict[str, Path]] = []
    problems = []
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            refuse(folder, [f"there is no folder {name}/: it must hold images/ and masks/"])
        files: dict[str, Path] = {}
        for file in list_pictures(folder / name):
            if files.setdefault(file.stem, file) != file:
                problems.append(f"{file} and {files[file.stem]} have the same name")
        found.append(files)
    images, masks = found
    if not images:
        problems.append("images/ holds no pictures")
    problems += [f"{images[stem]} has no mask" for stem in sorted(images.keys() - masks.keys())]
    problems += [f"{masks[stem]} has no picture" for stem in sorted(masks.keys() - images.keys())]
    refuse(folder, problems)
    return [(file, masks[stem]) for stem, file in images.items()]


def read_mask(file: Path) -> Tensor:
    """Reads the classes of a mask, (H, W) uint8. From a picture with a palette it takes the indices of the colours.

    Raises:
        OSError: It cannot be decoded, or does not hold integers from 0 to 255.
    """
    with open_picture(file) as picture:
        try:
            pixels = np.asarray(picture)
        except Exception as error:  # Pillow raises many types for damaged files
            raise OSError(f"{file} cannot be decoded ({error}): repair or remove it") from error
    if pixels.ndim != 2:
        raise OSError(f"{file} is a colour picture: write the index of the class to each pixel")
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > IGNORED:
        raise OSError(f"{file} has other pixels than 0 to {IGNORED}: write the index of the class to each pixel")
    return torch.from_numpy(pixels.astype(np.uint8))


def highest_class(files: Files) -> int | str:
    """The highest class of a mask, -1 if no pixel has a class; or what is wrong with the picture or its mask."""
    try:
        with open_picture(files[0]) as picture:
            width, height = picture.size
        mask = read_mask(files[1])
    except OSError as error:
        return str(error)
    if (height, width) != mask.shape:
        return f"{files[1]} has {mask.shape[1]} x {mask.shape[0]} pixels, but its picture {width} x {height}"
    return int(mask[mask != IGNORED].max()) if (mask != IGNORED).any() else -1


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty; none if there is no file.

    Raises:
        OSError: It is not text in UTF-8.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n") if file.exists() else []
    except UnicodeDecodeError as error:
        raise OSError(f"{file} is not text in UTF-8: save it as UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def read_class_names(folder: Path, pairs: list[Files]) -> list[str]:
    """Checks pictures and masks, and reads the names of the classes; without classes.txt, their indices are used.

    Raises:
        OSError: Files cannot be used; the message names them.
    """
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(highest_class, pairs))
    problems = [result for result in results if isinstance(result, str)]
    highest = {mask: result for (_, mask), result in zip(pairs, results, strict=True) if isinstance(result, int)}
    names = read_lines(folder / "classes.txt")
    if len(set(names)) < len(names):
        problems.append("classes.txt has two classes with the same name")
    for mask, index in highest.items():
        if names and index >= len(names):
            problems.append(f"{mask} has class {index}, but classes.txt names classes 0 to {len(names) - 1}")
    most = max(highest.values(), default=0)
    if not problems and most < 1:
        problems = ["all pixels of the masks are 0 or 255, but 255 means no class: write 1 for the second class"]
    refuse(folder, problems)
    return names or [str(i) for i in range(most + 1)]


def split_pairs(folder: Path, pairs: list[Files]) -> dict[str, list[Files]]:
    """Splits into 70% train, 10% val and 20% test by the content of the pictures, so that copies stay together.

    Raises:
        OSError: There are too few pictures.
    """
    digests = [sha256(picture.read_bytes()).digest() for picture, _ in pairs]
    rank = {digest: i for i, digest in enumerate(sorted(set(digests)))}
    if len(rank) < 10:
        refuse(folder, [f"it has {len(rank)} different pictures; at least 10 are needed"])
    splits: dict[str, list[Files]] = {"train": [], "val": [], "test": []}
    for pair, digest in zip(pairs, digests, strict=True):
        last = rank[digest] % 10
        splits["train" if last < 7 else "val" if last == 7 else "test"].append(pair)
    return splits


def random_crop(image: Image, mask: Mask, size: int, scale: float) -> Any:
    """Crops a square at random and resizes it. Pixels beyond the edges of the picture are black and have no class.

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
        transform: Random changes of a picture and its mask.
    """

    def __init__(self, pairs: Sequence[Pair], transform: Callable[[Image, Mask], Any] | None = None) -> None:
        self.pairs, self.transform = pairs, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, mask = self.pairs[index]
        image = Image(read_picture(picture) if isinstance(picture, Path) else picture)
        target = Mask(read_mask(mask) if isinstance(mask, Path) else mask)
        if self.transform:
            image, target = self.transform(image, target)
        return image / 255, target.long()


class PictureDataset(Dataset):
    """Pictures (3, H, W) float32 in [0, 1], with the columns to print before their predictions.

    Args:
        pictures: Files or tensors (3, H, W) uint8.
        names: Names of the pictures.
    """

    def __init__(self, pictures: Sequence[Path | Tensor], names: Sequence[str]) -> None:
        self.pictures, self.names = pictures, names

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, str]]:
        picture = self.pictures[index]
        pixels = read_picture(picture) if isinstance(picture, Path) else picture
        return pixels / 255, {"input": self.names[index]}


class MyDataModule(LightningDataModule):
    """Pictures of any size and their masks. Training uses random crops, evaluation whole pictures.

    A batch is a pair: pictures (N, 3, H, W), float32 in [0, 1], and masks (N, H, W), int64. The pixels of a mask are
    classes, from 0, or 255 where there is none.

    Args:
        data_dir: Folder with images/ and masks/, whose files have the same names except for the suffix. The pixels of
            masks are indices of classes, or 255. A file classes.txt may name the classes, one per line. 70% of the
            pictures are for training, 10% for validation and 20% for testing. A relative path starts at the project's
            root. Null uses the embedded pictures.
        crop_size: Height and width of training crops in pixels; null takes the median of the shorter sides of the
            pictures, rounded down to a multiple of 32, at most 480.
        scale: Zoom training crops at random by factors from 1 / scale to scale; 1 disables it.
        flip: Mirror half of the training crops.
        batch_size: Pictures per step and device in training. Other pictures differ in size, so a batch has one.
        num_workers: Processes that read pictures; with 0, the main process does. Use more for photographs on a GPU.
    """

    inputs: Sequence[str] = ()  # picture files and folders to predict

    def __init__(
        self,
        data_dir: str | None = None,
        crop_size: PositiveInt | None = None,
        scale: Scale = 1.0,  # type: ignore[valid-type]
        flip: bool = False,
        batch_size: BatchSize = 8,  # type: ignore[valid-type]
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_dir = ROOT / Path(data_dir).expanduser() if data_dir else None
        self.batch_size, self.num_workers = batch_size, num_workers

    @cached_property
    def samples(self) -> tuple[list[str], dict[str, list[Any]]]:
        """The names of the classes, and pairs of pictures and masks by split.

        Raises:
            OSError: Files are missing or cannot be used; the message names them.
        """
        if self.data_dir is None:
            splits = {name: [(each.picture, each.mask) for each in part] for name, part in make_canvases().items()}
            return ["background", *map(str, range(10))], splits
        pairs = find_pairs(self.data_dir)
        return read_class_names(self.data_dir, pairs), split_pairs(self.data_dir, pairs)

    @cached_property
    def class_names(self) -> list[str]:
        return self.samples[0]

    @cached_property
    def crop_size(self) -> int:
        """Height and width of training crops in pixels."""
        if size := self.hparams["crop_size"]:
            return int(size)
        pictures = [picture for picture, _ in self.samples[1]["train"]]
        some = pictures[:: -(-len(pictures) // 100)]
        sides = [min(open_picture(each).size) if isinstance(each, Path) else min(each.shape[1:]) for each in some]
        return min(max(int(median(sides)) // 32 * 32, 32), 480)

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.inputs:
            files = find_pictures(self.inputs)
            self.predict = PictureDataset(files, [str(file) for file in files])
            return
        names, splits = self.samples
        if names != self.class_names[: len(names)]:  # those of a checkpoint
            refuse(self.data_dir, [f"its classes {names} are not those of the training data, {self.class_names}"])
        if stage == "fit":
            crop = partial(random_crop, size=self.crop_size, scale=self.hparams["scale"])
            flip = RandomHorizontalFlip(0.5 if self.hparams["flip"] else 0.0)
            self.train = PairDataset(splits["train"], Compose([crop, flip]))
        self.val, self.test = PairDataset(splits["val"]), PairDataset(splits["test"])
        pictures = [picture for picture, _ in splits["test"][:8]]
        labels = [str(each) if isinstance(each, Path) else f"test {i}" for i, each in enumerate(pictures)]
        self.predict = PictureDataset(pictures, labels)

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
