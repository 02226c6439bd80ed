"""Pictures in one folder a class; without any, 1,797 handwritten digits that scikit-learn ships are written as PNG.

Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 10.24432/C50P49
Expect a test accuracy of 0.95 on the digits with the default configuration, after about half a minute on two CPU cores.
"""

import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms.v2.functional import normalize, to_dtype

from data.pictures import find_pictures, open_picture, random_crop, read_picture

ROOT = Path(__file__).resolve().parents[1]
Sample = tuple[Path, str]  # a picture file and the name of its class


class PictureDataset(Dataset):
    """Decodes picture files to (3, size, size) uint8, followed by the class, int, if there are targets."""

    def __init__(self, files: Sequence[Path], size: int, targets: Sequence[int] | None = None) -> None:
        self.files, self.size, self.targets = files, size, targets

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor] | tuple[Tensor, int]:
        picture = read_picture(self.files[index], (self.size, self.size), channels=3)
        return (picture,) if self.targets is None else (picture, self.targets[index])


def write_digits(folder: Path) -> None:
    """Writes the digits of scikit-learn as `folder`/CLASS/NUMBER.png of 32 x 32 pixels, all of them or none."""
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
            if not folder.exists():  # else another process was faster
                raise


def list_samples(folder: Path) -> list[Sample]:
    """The pictures in the folders of `folder`, one folder a class; files that are no picture are named and left out.

    Raises:
        FileNotFoundError: There is no class, or one that has no picture.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise FileNotFoundError(f"{folder} holds no folders: it takes one a class, as in CLASS/*.jpg")
    samples, unreadable = [], []
    for path in classes:
        for file in find_pictures([path]):
            try:
                open_picture(file).close()
                samples.append((file, path.name))
            except OSError:
                unreadable.append(str(file))
    if unreadable:
        names = ", ".join(unreadable[:20]) + (" and others" if len(unreadable) > 20 else "")
        rank_zero_only(print)(f"warning: left out {len(unreadable)} unreadable: {names}", file=sys.stderr)
    for path in classes:
        if path.name not in {name for _, name in samples}:
            raise FileNotFoundError(f"{path} holds no readable picture")
    return samples


def split_off(samples: list[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Splits samples in two, the second with `share` of each class: at random, but the same for the same files.

    Copies of a file stay on one side, and so does at least one picture of each class on the first.
    """
    by_size: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_size[sample[0].stat().st_size].append(sample)
    copies: defaultdict[tuple[int, bytes], list[Sample]] = defaultdict(list)
    for size, same in by_size.items():
        for sample in same:  # most large files differ in size, and are not read
            copies[size, sha256(sample[0].read_bytes()).digest() if len(same) > 1 else b""].append(sample)
    by_class: defaultdict[str, list[list[Sample]]] = defaultdict(list)
    for group in copies.values():
        by_class[group[0][1]].append(group)
    first, second = [], []
    for name in sorted(by_class):
        groups = sorted(by_class[name])
        random.Random(name).shuffle(groups)
        count = min(max(1, round(share * len(groups))), (len(groups) - 1) // 2)
        second += [sample for group in groups[:count] for sample in group]
        first += [sample for group in groups[count:] for sample in group]
    return first, second


class MyDataModule(LightningDataModule):
    """Pictures of any size, mode and format, decoded by workers and normalised on the device.

    Args:
        data_dir: Folder with train/CLASS/*, and val/CLASS/* and test/CLASS/* or not, or with CLASS/*. A missing test
            split is cut from the training pictures, 20% of each class, and then a missing val split, 10% of the rest;
            copies of a file stay together. Null takes the digits, in data/digits. A relative path starts at the
            project's root.
        image_size: Height and width in pixels of what the network sees; null takes the median of the shorter sides
            of the pictures, rounded to a multiple of 32 from 32 to 224.
        batch_size: Samples a step on each device.
        flip: Whether half of the training pictures are mirrored at random: right for most photographs, wrong where
            left and right matter, as in digits.
        num_workers: Processes that decode pictures.
    """

    MODEL_ARGUMENTS = ("class_names", "image_shape", "mean", "std")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained networks want them

    def __init__(
        self,
        data_dir: str | None = None,
        image_size: PositiveInt | None = None,
        batch_size: PositiveInt = 64,
        flip: bool = False,
        num_workers: NonNegativeInt = 2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_dir = ROOT / Path(data_dir or "data/digits").expanduser()
        self.embedded = data_dir is None
        self.image_size, self.batch_size, self.flip, self.num_workers = image_size, batch_size, flip, num_workers
        self.inputs: Sequence[str] = ()  # picture files and folders to predict

    @cached_property
    def samples(self) -> dict[str, list[Sample]]:
        """The samples of the splits train, val and test.

        Raises:
            FileNotFoundError: There is no folder, no class, or a class without a picture.
            MisconfigurationException: There are too few classes or pictures.
        """
        if self.embedded:
            write_digits(self.data_dir)
        if not self.data_dir.is_dir():
            raise FileNotFoundError(f"{self.data_dir} is not a folder: --data.data_dir holds CLASS/* or train/CLASS/*")
        if (self.data_dir / "train").is_dir():
            folders = [path for name in ("train", "val", "test") if (path := self.data_dir / name).is_dir()]
            splits = {path.name: list_samples(path) for path in folders}
        else:
            splits = {"train": list_samples(self.data_dir)}
        for split, share in (("test", 0.2), ("val", 0.1)):
            if split not in splits:
                splits["train"], splits[split] = split_off(splits["train"], share)
        if not (splits["val"] and splits["test"]):
            raise MisconfigurationException(f"{self.data_dir} holds too few pictures to split: give each class five")
        return splits

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the folders, sorted."""
        names = sorted({name for _, name in self.samples["train"]})
        if len(names) < 2:
            raise MisconfigurationException(f"{self.data_dir} holds one class alone, {names[0]}: there must be two")
        return names

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width in pixels."""
        size = self.image_size
        if size is None:
            files = [file for file, _ in self.samples["train"]]
            side = median(min(open_picture(file).size) for file in files[:: -(-len(files) // 100)])
            size = min(max(round(side / 32), 1), 7) * 32
        return 3, int(size), int(size)

    @property
    def margin(self) -> int:
        """Pixels by which training pictures are decoded larger on each side, to be cropped at random."""
        return self.image_shape[-1] // 14

    def setup(self, stage: str) -> None:
        if not (stage == "predict" and self.inputs):
            self.train = self._dataset("train", self.image_shape[-1] + 2 * self.margin)
            self.val, self.test = (self._dataset(split, self.image_shape[-1]) for split in ("val", "test"))
        if stage == "predict":
            self.setup_predict()

    def _dataset(self, split: str, size: int) -> PictureDataset:
        index = {name: i for i, name in enumerate(self.class_names)}
        files, names = zip(*self.samples[split], strict=True)
        if unknown := set(names) - set(index):
            raise MisconfigurationException(f"{self.data_dir}: {split} has unknown classes: {sorted(unknown)}")
        return PictureDataset(files, size, [index[name] for name in names])

    def setup_predict(self) -> None:
        """Lists `inputs`, or takes a few test samples; `predict_columns` says of each where it comes from."""
        if self.inputs:
            files: Sequence[Path] = find_pictures(self.inputs)
            self.predict_columns = [{"input": str(file)} for file in files]
        else:
            chosen = self.samples["test"][:: -(-len(self.samples["test"]) // 8)]
            files = [file for file, _ in chosen]
            self.predict_columns = [
                {"input": str(file.relative_to(self.data_dir)), "truth": name} for file, name in chosen
            ]
        self.predict = PictureDataset(files, self.image_shape[-1])

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: PictureDataset, shuffle: bool = False) -> DataLoader:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # On one device too: its order depends on the epoch alone, not on what ran before.
        sampler: DistributedSampler = DistributedSampler(dataset, replicas, rank, shuffle=shuffle)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=shuffle and len(sampler) % self.batch_size == 1,  # batch normalisation needs two
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, *targets = batch
        if self.trainer and self.trainer.training:
            images = random_crop(images, self.image_shape[1:])
            if self.flip:
                mirrored = torch.rand(len(images), device=images.device) < 0.5
                images[mirrored] = images[mirrored].flip(-1)
        return normalize(to_dtype(images, torch.float32, scale=True), self.mean, self.std, inplace=True), *targets
