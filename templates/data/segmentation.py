"""Pictures and masks of their pixels' classes; without any, handwritten digits scattered over canvases.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 10.24432/C50P49
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt, restricted_number_type
from lightning import LightningDataModule
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_convert
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import normalize, resized_crop, to_dtype

from data.canvases import SUFFIXES, find_pictures, make_canvases, open_picture, read_picture, refuse

ROOT = Path(__file__).resolve().parents[1]
IGNORED = 255  # in a mask: of no class
BatchSize = restricted_number_type("BatchSize", int, [(">=", 2)])  # batch normalisation needs two
Scale = restricted_number_type("Scale", float, [(">=", 1), ("<=", 4)])
Pair = tuple[Path, Path] | tuple[Tensor, Tensor]


def read_mask(file: Path) -> Tensor:
    """Reads a mask as classes (H, W) uint8; of a palette's colours it takes the indices.

    Raises:
        OSError: It cannot be decoded, or holds colours or numbers above 255.
    """
    try:
        with open_picture(file) as picture:
            pixels = np.asarray(picture)
    except Exception as error:  # whatever a plug-in of Pillow's makes of damaged data
        raise OSError(f"{file} cannot be decoded ({error}): mend or remove it") from error
    if pixels.ndim != 2:
        raise OSError(f"{file} is a picture in colours: write the index of the class into each pixel")
    if pixels.max() > IGNORED:
        raise OSError(f"{file} holds numbers above {IGNORED}: write the index of the class into each pixel")
    return torch.from_numpy(pixels.astype(np.uint8))


def check_pair(pair: tuple[Path, Path]) -> str | int:
    """The highest class of a picture's mask, -1 if there is none, or what is wrong with the two."""
    try:
        with open_picture(pair[0]) as picture:
            size = (picture.height, picture.width)
        mask = read_mask(pair[1])
    except OSError as error:
        return str(error)
    if size != tuple(mask.shape):
        return f"{pair[1]} is {mask.shape[1]} x {mask.shape[0]} pixels, but its picture {size[1]} x {size[0]}"
    classes = mask[mask != IGNORED]
    return int(classes.max()) if len(classes) else -1


class PairDataset(Dataset):
    """Pictures (3, H, W) uint8 and masks (H, W) uint8, from files or from memory; read by the batch, of one size.

    Args:
        pairs: A picture and a mask each.
        crop: Height and width of random crops; None leaves pictures whole and pads a batch to its largest.
        scale: Crops show between 1 / scale and scale times as much on a side.
    """

    def __init__(self, pairs: Sequence[Pair], crop: int | None = None, scale: float = 1.0) -> None:
        self.pairs, self.crop, self.scale = pairs, crop, scale

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, mask = self.pairs[index]
        if isinstance(picture, Path) and isinstance(mask, Path):
            return read_picture(picture), read_mask(mask)
        return picture, mask  # type: ignore[return-value]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        samples = [self[index] for index in indices]
        if self.crop:
            # The batch alone decides on its crops, not the worker that makes it: so a resumed run sees the same.
            random = torch.Generator().manual_seed(hash(tuple(indices)))
            samples = [self._random_crop(picture, mask, self.crop, random) for picture, mask in samples]
        height = max(picture.shape[1] for picture, _ in samples)
        width = max(picture.shape[2] for picture, _ in samples)
        pictures, masks = [], []
        for picture, mask in samples:
            margin = (0, width - picture.shape[2], 0, height - picture.shape[1])
            pictures.append(pad(picture, margin))
            masks.append(pad(mask, margin, value=IGNORED))
        return torch.stack(pictures), torch.stack(masks)

    def _random_crop(self, picture: Tensor, mask: Tensor, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        shown = round(size * self.scale ** (2 * torch.rand(1, generator=random).item() - 1))
        margin = (0, max(shown - picture.shape[2], 0), 0, max(shown - picture.shape[1], 0))
        picture, mask = pad(picture, margin), pad(mask, margin, value=IGNORED)
        top, left = (torch.randint(side - shown + 1, (), generator=random).item() for side in picture.shape[1:])
        box = (int(top), int(left), shown, shown, [size, size])
        picture = resized_crop(picture, *box, antialias=True)
        return picture, resized_crop(mask.unsqueeze(0), *box, interpolation=InterpolationMode.NEAREST).squeeze(0)


class PictureDataset(Dataset):
    """Whole pictures from files or from memory, read in batches of one."""

    def __init__(self, pictures: Sequence[Path] | Sequence[Tensor]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor]:
        """Pictures of one size, (N, 3, H, W) uint8."""
        pictures = [self.pictures[index] for index in indices]
        return (torch.stack([read_picture(p) if isinstance(p, Path) else p for p in pictures]),)


class MyDataModule(LightningDataModule):
    """Pictures of any size and their masks: training sees random crops, evaluation whole pictures.

    Args:
        data_dir: Folder with images/ and masks/, paired by the names of the files without suffix, and perhaps a
            classes.txt with a name a line. Masks hold the index of a class in each pixel, 255 where there is none.
            70% of the pictures train, 10% validate and 20% test; copies stay together. Null takes the canvases. A
            relative path starts at the project's root.
        crop_size: Height and width in pixels of training crops; null takes the median of the shorter sides of the
            pictures, down to a multiple of 32, at most 480.
        scale: Crops show between 1 / scale and scale times as much on a side; 1 switches it off.
        flip: Whether half of the training crops are mirrored at random.
        batch_size: Pictures a step on each device, at least 2.
        num_workers: Processes that decode pictures.
    """

    MODEL_ARGUMENTS = ("class_names", "mean", "std")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained networks want them

    def __init__(
        self,
        data_dir: str | None = None,
        crop_size: PositiveInt | None = None,
        scale: Scale = 1.0,  # type: ignore[valid-type]
        flip: bool = False,
        batch_size: BatchSize = 8,  # type: ignore[valid-type]
        num_workers: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_dir = ROOT / Path(data_dir).expanduser() if data_dir else None
        self.scale, self.flip, self.batch_size, self.num_workers = scale, flip, batch_size, num_workers
        self.inputs: Sequence[str] = ()  # picture files and folders to predict

    def list_pairs(self, folder: Path) -> list[tuple[Path, Path]]:
        """The pictures and masks of a folder.

        Raises:
            OSError: A picture or a mask has no partner, or two.
        """
        files: list[dict[str, Path]] = []
        problems = []
        for name in ("images", "masks"):
            if not (folder / name).is_dir():
                refuse(folder, [f"there is no folder {name}/: it takes images/ and masks/"])
            files.append({})
            for file in sorted((folder / name).iterdir()):
                if file.suffix.lower() in SUFFIXES and files[-1].setdefault(file.stem, file) != file:
                    problems.append(f"{file} has the same name as {files[-1][file.stem]}")
        images, masks = files
        problems += [f"{images[stem]} has no mask" for stem in sorted(images.keys() - masks.keys())]
        problems += [f"{masks[stem]} has no picture" for stem in sorted(masks.keys() - images.keys())]
        refuse(folder, problems)
        return [(file, masks[stem]) for stem, file in images.items()]

    @cached_property
    def pairs(self) -> tuple[dict[str, list[Pair]], list[str]]:
        """The pictures and masks of train, val and test, and the names of the classes.

        Raises:
            OSError: Something is wrong with the files; all of it is named.
        """
        if self.data_dir is None:
            canvases = make_canvases().items()
            names = ["background", *map(str, range(10))]
            return {split: [(canvas.picture, canvas.mask) for canvas in part] for split, part in canvases}, names
        pairs = self.list_pairs(self.data_dir)
        with ThreadPoolExecutor() as pool:
            checked = list(pool.map(check_pair, pairs))
        problems = [problem for problem in checked if isinstance(problem, str)]
        highest = max((top for top in checked if isinstance(top, int)), default=0)
        listed = self.data_dir / "classes.txt"
        names = listed.read_text(encoding="utf-8").split("\n") if listed.exists() else []
        names = [name.strip() for name in names if name.strip()] or [str(i) for i in range(highest + 1)]
        for (_, mask), top in zip(pairs, checked, strict=True):
            if isinstance(top, int) and top >= len(names):
                problems.append(f"{mask} holds class {top}, but {listed} names {len(names)}, from 0 on")
        if not problems and highest < 1:
            problems = ["the masks hold no class but 0 and 255: write 1 for the second class, as 255 stands for none"]
        refuse(self.data_dir, problems)
        return self._split(pairs), names

    def _split(self, pairs: list[tuple[Path, Path]]) -> dict[str, list[Pair]]:
        """Seven of ten different pictures for train, one for val and two for test, whatever their names are."""
        digests = [sha256(picture.read_bytes()).digest() for picture, _ in pairs]
        rank = {digest: i % 10 for i, digest in enumerate(sorted(set(digests)))}
        splits: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
        for pair, digest in zip(pairs, digests, strict=True):
            splits["train" if rank[digest] < 7 else "val" if rank[digest] == 7 else "test"].append(pair)
        if not (len(splits["train"]) > 1 and splits["val"] and splits["test"]):
            refuse(self.data_dir, [f"{len(rank)} different pictures are too few: ten are the least"])
        return splits

    @cached_property
    def class_names(self) -> list[str]:
        return self.pairs[1]

    @cached_property
    def crop_size(self) -> int:
        """Height and width of training crops in pixels."""
        if size := self.hparams["crop_size"]:
            return int(size)
        pairs = self.pairs[0]["train"]
        some = pairs[:: -(-len(pairs) // 100)]
        sides = [min(open_picture(p).size) if isinstance(p, Path) else min(p.shape[1:]) for p, _ in some]
        return min(max(int(median(sides)) // 32 * 32, 32), 480)

    def setup(self, stage: str) -> None:
        if not (stage == "predict" and self.inputs):
            splits, _ = self.pairs
            self.train = PairDataset(splits["train"], self.crop_size, self.scale)
            self.val, self.test = PairDataset(splits["val"]), PairDataset(splits["test"])
        if stage == "predict":
            self.setup_predict()

    def setup_predict(self) -> None:
        """Lists `inputs`, or takes a few test pictures; `predict_columns` says of each where it comes from."""
        if self.inputs:
            files = find_pictures(self.inputs)
            self.predict_columns = [{"input": str(file)} for file in files]
            self.predict = PictureDataset(files)
        else:
            pictures: list[Any] = [picture for picture, _ in self.test.pairs[:8]]
            names = [str(picture) if isinstance(picture, Path) else f"test{i}" for i, picture in enumerate(pictures)]
            self.predict_columns = [{"input": name} for name in names]
            self.predict = PictureDataset(pictures)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict, batch_size=1)

    def _loader(self, dataset: Dataset, shuffle: bool = False, batch_size: int | None = None) -> DataLoader:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # On one device too: its order depends on the epoch alone, not on what ran before.
        sampler: DistributedSampler = DistributedSampler(dataset, replicas, rank, shuffle=shuffle)
        size = batch_size or self.batch_size
        return DataLoader(
            dataset,
            batch_size=size,
            sampler=sampler,
            collate_fn=default_convert,
            drop_last=shuffle and len(sampler) % size == 1,  # batch normalisation needs two
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, *masks = batch
        if self.trainer and self.trainer.training and self.flip:
            mirrored = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
            masks = [torch.where(mirrored.view(-1, 1, 1), masks[0].flip(-1), masks[0])]
        return normalize(to_dtype(images, torch.float32, scale=True), self.mean, self.std), *(m.long() for m in masks)
