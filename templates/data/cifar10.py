"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in ten classes, downloaded by torchvision.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import pickle
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
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2.functional import resize, to_dtype

from data.pictures import find_pictures, random_shift, read_picture
from data.splits import AtLeastTwo, check_fold, make_splits

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32  # height and width of the pictures in the files, in pixels


class Record:
    """Stands for an object in a pickled file: keeps its arguments and its state, and runs no code of the file."""

    state: tuple[Any, ...] = ()

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numbers, texts, lists and dicts; NumPy arrays become records, as hostile ones could crash NumPy."""

    def find_class(self, module_name: str, global_name: str) -> type[Record]:
        if global_name not in ("ndarray", "dtype", "_reconstruct", "_frombuffer", "encode"):
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return Record


def read_bytes(array: Record) -> np.ndarray:
    """The NumPy array that a record stands for.

    Raises:
        ValueError: It is not an array of bytes.
    """
    if array.state:  # of _reconstruct; pickle's protocol 5 uses _frombuffer
        _, shape, dtype, is_fortran, content = array.state
        order: Any = "F" if is_fortran else "C"
    else:
        content, dtype, shape, order = array.args
    if dtype.args[0] not in ("u1", "uint8"):
        raise ValueError(f"it holds an array of type {dtype.args[0]} instead of uint8")
    if isinstance(content, Record):  # bytes in pickle's protocol 2: text and the name of its encoding
        content = content.args[0]
    if isinstance(content, str):
        content = content.encode("latin1")
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)


def read_batch(file: Path) -> dict[str, Any]:
    """Read a file of cifar-10-batches-py: the pictures of a batch, (N, 3, 32, 32) uint8, and its other values.

    Raises:
        OSError: The file is missing, damaged, or holds anything but numbers, texts and arrays of bytes.
    """
    try:
        with open(file, "rb") as opened:
            batch = dict(ArrayUnpickler(opened, encoding="latin1").load())
        if "data" in batch:
            batch["data"] = torch.tensor(read_bytes(batch["data"]).reshape(-1, 3, SIZE, SIZE))
            labels = batch["labels"]
            labels = torch.tensor(read_bytes(labels) if isinstance(labels, Record) else labels, dtype=torch.int64)
            batch["labels"] = labels.reshape(len(batch["data"]))
        return batch
    except OSError:
        raise
    except Exception as error:  # unpickling a damaged file raises many types
        reason = f"{type(error).__name__}: {error}"
        raise OSError(f"{file} is damaged or not in CIFAR-10's format ({reason}): replace it") from error


class BatchDataset(TensorDataset):
    """A `TensorDataset` that reads a whole batch with one indexing operation per tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


class MyDataModule(LightningDataModule):
    """CIFAR-10 in memory: the official test split, and 1/10 of the training samples for validation.

    A batch is a pair: pictures (N, 3, H, W), float32 in [0, 1], and classes (N,), int64.

    Args:
        data_dir: Folder that holds cifar-10-batches-py/, CIFAR-10's or your own in this format with any number of
            classes. A missing folder is downloaded. A relative path starts at the project's root.
        folds: Number of folds that take the place of train and val; null uses the splits above.
        fold: Fold used for validation, from 1 to `folds`; the others are used for training.
        batch_size: Samples per step and device.
        image_size: Height and width in pixels to which pictures are resized. Networks that were pretrained on ImageNet
            are best at 224; 32 is the size in the files and far faster.
        shift: Largest random shift of training pictures, in pixels of the files; 0 disables it.
        flip: Whether to mirror half of the training pictures at random.
        num_workers: Processes that read batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # picture files and folders to predict
    predict_split: str | None = None  # split that is predicted completely if there are no inputs
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained networks need them

    def __init__(
        self,
        data_dir: str = "data",
        folds: AtLeastTwo | None = None,  # type: ignore[valid-type]
        fold: PositiveInt | None = None,
        batch_size: PositiveInt = 128,
        image_size: PositiveInt = 224,
        shift: NonNegativeInt = 4,
        flip: bool = True,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.folder = ROOT / Path(data_dir).expanduser() / CIFAR10.base_folder
        check_fold(folds, fold)
        self.folds, self.fold = folds, fold
        self.batch_size, self.image_size, self.num_workers = batch_size, image_size, num_workers
        self.shift, self.flip = shift, flip

    def prepare_data(self) -> None:
        """Download CIFAR-10 if its folder does not exist; torchvision verifies the checksums.

        Raises:
            FileNotFoundError: It cannot be downloaded, or your own files are in another folder.
        """
        if self.folder.exists() or self.inputs:
            return
        self._refuse_other_files()
        print(f"downloading CIFAR-10 to {self.folder}", file=sys.stderr)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)  # seconds; torchvision sets none
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.folder.parent) as temporary:
                CIFAR10(temporary, download=True)
                Path(temporary, self.folder.name).rename(self.folder)  # an interrupted download leaves nothing behind
        except (OSError, RuntimeError) as error:
            if not self.folder.exists():  # otherwise another process has downloaded it
                raise FileNotFoundError(
                    f"{self.folder} does not exist, and CIFAR-10 cannot be downloaded: copy its files there, or use the"
                    " template's variant digits-cnn, which needs no download"
                ) from error
        finally:
            socket.setdefaulttimeout(timeout)

    def _refuse_other_files(self) -> None:
        """Refuse files that would not be read, instead of downloading CIFAR-10.

        Raises:
            FileNotFoundError: There are files around cifar-10-batches-py/, or a packed one.
        """
        around = self.folder.parent
        for name in ("batches.meta", "test_batch", "data_batch_1", "cifar-10-python.tar.gz"):
            if (around / name).is_file():
                advice = f"unpack it if it is packed, and move the files to {self.folder}"
                if around.name == self.folder.name:
                    advice = f"use --data.data_dir {around.parent}"
                raise FileNotFoundError(f"{around} holds {name}, which is not read: {advice}")

    @cached_property
    def class_names(self) -> list[str]:
        """The names in batches.meta."""
        self.prepare_data()
        file = self.folder / "batches.meta"
        names = read_batch(file).get("label_names")
        if not isinstance(names, list) or not names:
            raise OSError(f"{file} lacks a list label_names, the names of the classes")
        return [str(name) for name in names]

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width in pixels."""
        return 3, self.image_size, self.image_size

    @cached_property
    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """Training and test samples: pictures (N, 3, 32, 32), uint8, and classes (N,), int64.

        Raises:
            OSError: A file is missing or damaged.
        """
        self.prepare_data()
        splits = []
        for pattern in ("data_batch_*", "test_batch"):
            batches = [read_batch(file) for file in sorted(self.folder.glob(pattern))]
            if not batches or not all("data" in batch for batch in batches):
                raise FileNotFoundError(f"{self.folder} has no {pattern} with pictures: add it, or remove the folder")
            splits.append((torch.cat([b["data"] for b in batches]), torch.cat([b["labels"] for b in batches])))
        return splits

    @cached_property
    def split(self) -> np.ndarray:
        """The split of each training picture, train or val."""
        images, targets = self.samples[0]
        digests = [sha256(image).hexdigest() for image in images.numpy()]
        return make_splits(digests, targets.numpy(), parts={"val": 10}, folds=self.folds, fold=self.fold)

    @cached_property
    def class_counts(self) -> list[int]:
        """Number of training pictures of each class."""
        return np.bincount(self.samples[0][1][self.split == "train"], minlength=len(self.class_names)).tolist()

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
            classes = set(split.tensors[1].tolist())
            if not classes:
                raise MisconfigurationException(
                    f"{self.folder} has too few pictures: use several of each class for training"
                )
            if unknown := {*(classes - known), *(i for i in classes if not 0 <= i < len(self.class_names))}:
                raise MisconfigurationException(
                    f"{self.folder} has pictures of the classes {sorted(unknown)}, which have no name in batches.meta"
                    " or no training pictures: add these"
                )

    def _read_inputs(self) -> list[tuple[Tensor, dict[str, str]]]:
        """The pictures to predict, each with the columns to print before its prediction."""
        files = find_pictures(self.inputs)
        return [(read_picture(file, (3, SIZE, SIZE)), {"input": str(file)}) for file in files]

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
            drop_last=shuffle and len(dataset) % self.batch_size == 1,  # batch normalisation needs two samples
            num_workers=self.num_workers,
            collate_fn=default_convert if isinstance(dataset, BatchDataset) else None,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert pictures to float32 in [0, 1] and resize them; shift and mirror training pictures before."""
        images, rest = batch
        if self.trainer and self.trainer.training:
            images = random_shift(images, self.shift)
            if self.flip:
                mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
                images = torch.where(mirrored, images.flip(-1), images)
        return resize(to_dtype(images, torch.float32, scale=True), list(self.image_shape[1:])), rest
