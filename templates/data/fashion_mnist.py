"""Fashion-MNIST: 70,000 articles of clothing, 28 x 28 pixels, in ten classes, downloaded by torchvision.

Source: H. Xiao, K. Rasul and R. Vollgraf, https://github.com/zalandoresearch/fashion-mnist
"""

import socket
import sys
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_convert
from torchvision.datasets import FashionMNIST
from torchvision.transforms.v2.functional import to_dtype

from data.pictures import find_pictures, random_shift, read_picture
from data.splits import AtLeastTwo, check_fold, make_splits

ROOT = Path(__file__).resolve().parents[1]


class BatchDataset(TensorDataset):
    """A `TensorDataset` that reads a whole batch with one indexing operation per tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


class MyDataModule(LightningDataModule):
    """Fashion-MNIST in memory: the official test split, and 1/24 of the training samples for validation.

    A batch is a pair: pictures (N, 1, H, W), float32 in [0, 1], and classes (N,), int64.

    Args:
        data_dir: Folder that holds FashionMNIST/raw/ with four IDX files, Fashion-MNIST's or your own with pictures of
            any size and any number of classes. A missing folder is downloaded. A relative path starts at the
            project's root.
        folds: Number of folds that take the place of train and val; null uses the splits above.
        fold: Fold used for validation, from 1 to `folds`; the others are used for training.
        batch_size: Samples per step and device.
        shift: Largest random shift of training pictures in pixels; 0 disables it.
        num_workers: Processes that read batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # picture files and folders to predict
    predict_split: str | None = None  # split that is predicted completely if there are no inputs
    mean, std = (0.2860,), (0.3530,)  # of the training pixels

    def __init__(
        self,
        data_dir: str = "data",
        folds: AtLeastTwo | None = None,  # type: ignore[valid-type]
        fold: PositiveInt | None = None,
        batch_size: PositiveInt = 128,
        shift: NonNegativeInt = 0,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.data_dir = ROOT / Path(data_dir).expanduser()
        check_fold(folds, fold)
        self.folds, self.fold = folds, fold
        self.batch_size, self.shift, self.num_workers = batch_size, shift, num_workers

    def prepare_data(self) -> None:
        """Download Fashion-MNIST if its folder does not exist; torchvision verifies the checksums.

        Raises:
            FileNotFoundError: It cannot be downloaded, or your own files are in another folder.
        """
        folder = self.data_dir / "FashionMNIST"
        if folder.exists() or self.inputs:
            return
        self._refuse_other_files()
        print(f"downloading Fashion-MNIST to {folder}", file=sys.stderr)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)  # seconds; torchvision sets none
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.data_dir) as temporary:
                FashionMNIST(temporary, download=True)
                Path(temporary, "FashionMNIST").rename(folder)  # so an interrupted download leaves nothing behind
        except (OSError, RuntimeError) as error:
            if not folder.exists():  # otherwise another process has downloaded it
                raise FileNotFoundError(
                    f"{folder} does not exist, and Fashion-MNIST cannot be downloaded: copy its files to"
                    f" {folder / 'raw'}, or use the template's variant digits-cnn, which needs no download"
                ) from error
        finally:
            socket.setdefaulttimeout(timeout)

    def _refuse_other_files(self) -> None:
        """Refuse IDX files that would not be read, instead of downloading Fashion-MNIST.

        Raises:
            FileNotFoundError: There are files outside of FashionMNIST/raw/, packed files, or files of other names.
        """
        raw = self.data_dir / "FashionMNIST" / "raw"
        for folder in (self.data_dir, self.data_dir / "raw", raw.parent, raw):
            files = [file.name for file in sorted(folder.glob("*idx*ubyte*")) if file.is_file()]
            if folder == raw:
                files = [name for name in files if "." in name]  # as in train-images-idx3-ubyte.gz
            if files:
                advice = f"unpack them if they are packed, and save them as {raw}/train-images-idx3-ubyte and so on"
                if folder != raw and folder.parts[-2:] == raw.parts[-2:]:
                    advice = f"use --data.data_dir {folder.parents[1]}"
                raise FileNotFoundError(f"{folder} holds {', '.join(files)}, which are not read: {advice}")

    @cached_property
    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """Training and test samples: pictures (N, 1, H, W), uint8, and classes (N,), int64.

        Raises:
            OSError: A file is missing or damaged, or the files do not belong together.
        """
        self.prepare_data()
        folder = self.data_dir / "FashionMNIST" / "raw"
        files = [folder / Path(url).stem for url, _ in FashionMNIST.resources]
        if missing := [file.name for file in files if not file.is_file()]:
            self._refuse_other_files()
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing)}: add them, or remove {folder.parent} to download Fashion-MNIST"
            )
        try:
            splits = [FashionMNIST(self.data_dir, train=train) for train in (True, False)]
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise OSError(f"{folder} holds a file that is damaged or not in IDX format: replace it") from error
        for split in splits:
            if len(split.data) != len(split.targets):
                raise OSError(f"{folder} holds {len(split.data)} pictures with {len(split.targets)} labels")
        return [(split.data.unsqueeze(1), split.targets) for split in splits]

    @cached_property
    def class_names(self) -> list[str]:
        """The articles, or the numbers of the classes if there are more or fewer."""
        count = 1 + max(int(targets.max()) for _, targets in self.samples)
        return FashionMNIST.classes if count == len(FashionMNIST.classes) else [str(i) for i in range(count)]

    @cached_property
    def split(self) -> np.ndarray:
        """The split of each training picture, train or val."""
        images, targets = self.samples[0]
        digests = [sha256(image).hexdigest() for image in images.numpy()]
        return make_splits(digests, targets.numpy(), parts={"val": 24}, folds=self.folds, fold=self.fold)

    @cached_property
    def class_counts(self) -> list[int]:
        """Number of training pictures of each class."""
        return np.bincount(self.samples[0][1][self.split == "train"], minlength=len(self.class_names)).tolist()

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width in pixels."""
        return tuple(self.samples[0][0].shape[1:])

    def setup(self, stage: str) -> None:
        if self.inputs:
            self.predict = self._read_inputs()
            return
        (images, targets), test = self.samples
        rows = [self.split == name for name in ("train", "val")]
        self.train, self.val = (BatchDataset(images[each], targets[each]) for each in rows)
        self.test = BatchDataset(*test)
        self._check_splits()
        if stage == "predict":
            self.predict = self._known_samples()

    def _check_splits(self) -> None:
        """Check that the splits fit each other and the model.

        Raises:
            MisconfigurationException: They do not.
        """
        known = set(self.train.tensors[1].tolist())
        for split in (self.train, self.val, self.test):
            images, targets = split.tensors
            if not len(images):
                raise MisconfigurationException(
                    f"{self.data_dir} has too few pictures: use several of each class for training"
                )
            if images.shape[1:] != self.image_shape:
                raise MisconfigurationException(
                    f"{self.data_dir} has pictures of {tuple(images.shape[1:])} channels, rows and columns,"
                    f" and the model takes {tuple(self.image_shape)}: give all the same size"
                )
            classes = set(targets.tolist())
            if unknown := {*(classes - known), *(i for i in classes if i >= len(self.class_names))}:
                raise MisconfigurationException(
                    f"{self.data_dir} has no training pictures of the classes {sorted(unknown)}: add some"
                )

    def _read_inputs(self) -> list[tuple[Tensor, dict[str, str]]]:
        """The pictures to predict, each with the columns to print before its prediction."""
        files = find_pictures(self.inputs)
        return [(read_picture(file, self.image_shape), {"input": str(file)}) for file in files]

    def _known_samples(self) -> list[tuple[Tensor, dict[str, str]]]:
        """All samples of `predict_split`, or the first ones of the test."""
        split = self.predict_split or "test"
        images, targets = getattr(self, split)[: None if self.predict_split else 8]
        truths = [self.class_names[target] for target in targets]
        return [(images[i], {"input": f"{split} {i}", "truth": truth}) for i, truth in enumerate(truths)]

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
            num_workers=self.num_workers,
            collate_fn=default_convert if isinstance(dataset, BatchDataset) else None,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert pictures to float32 in [0, 1], and shift those of training."""
        images, rest = batch
        images = to_dtype(images, torch.float32, scale=True)
        if self.trainer and self.trainer.training and self.shift:
            images = random_shift(images, self.shift)
        return images, rest
