"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in ten classes, downloaded by torchvision.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, https://www.cs.toronto.edu/~kriz/cifar.html
Made for a test accuracy of 0.95 with the default configuration and ImageNet weights, not measured on CIFAR-10 yet.
"""

import codecs
import pickle
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset, default_convert
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2.functional import normalize, resize, to_dtype

from data.pictures import find_pictures, random_crop, read_picture

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32  # height and width in pixels, as the files have them


class ArrayUnpickler(pickle.Unpickler):
    """Reads lists, dicts and NumPy arrays; other than pickle's own it runs no code that a file may name."""

    ALLOWED: tuple[Any, ...] = (
        np.empty(0).__reduce__()[0],
        np.empty(0).__reduce_ex__(5)[0],
        np.int64().__reduce__()[0],
        np.ndarray,
        np.dtype,
        codecs.encode,
    )

    def find_class(self, module_name: str, global_name: str) -> Any:
        for allowed in self.ALLOWED:
            if allowed.__name__ == global_name:
                return allowed
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def read_batch(file: Path) -> dict[str, Any]:
    """Reads one file of cifar-10-batches-py.

    Raises:
        OSError: The file is damaged, or holds something else than arrays.
    """
    try:
        with open(file, "rb") as opened:
            batch = ArrayUnpickler(opened, encoding="latin1").load()
            if "data" in batch:
                pixels = torch.from_numpy(batch["data"].reshape(-1, 3, SIZE, SIZE).astype(np.uint8))
                batch = {"data": pixels, "labels": torch.tensor(batch["labels"], dtype=torch.int64)}
                if len(pixels) != len(batch["labels"]):
                    raise ValueError("pictures and labels differ in number")
            return batch
    except (AttributeError, EOFError, ImportError, IndexError, KeyError, TypeError, ValueError) as error:
        raise OSError(f"{file} is damaged or not in CIFAR-10's format ({error}): remove it") from error
    except pickle.UnpicklingError as error:
        raise OSError(f"{file} is damaged or not to be trusted ({error}): remove it") from error


class BatchDataset(TensorDataset):
    """A `TensorDataset` that is read by the batch, with one indexing operation a tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        device = self.tensors[0].device
        return self[torch.tensor(indices, pin_memory=device.type == "cuda").to(device, non_blocking=True)]


class MyDataModule(LightningDataModule):
    """CIFAR-10 as uint8 tensors in memory: the official test split, and 1/10 of the training samples for validation.

    Args:
        data_dir: Folder that holds cifar-10-batches-py/, CIFAR-10's or your own in the same format with any class
            count; CIFAR-10 is downloaded when it is missing. A relative path starts at the project's root.
        batch_size: Samples a step on each device.
        image_size: Height and width in pixels to which a batch is resized on the device; networks that were
            pretrained on ImageNet want 224, others are faster and do well at 32.
        shift: Largest random shift of a training picture, in pixels of the 32; 0 switches it off.
        flip: Whether half of the training pictures are mirrored at random.
        num_workers: Processes that fetch batches; 0 is fastest for data in memory.
        resident: Whether all samples are kept on the device as uint8, which saves copying batches to a GPU.
    """

    MODEL_ARGUMENTS = ("class_names", "image_shape", "mean", "std")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained networks want them

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: PositiveInt = 128,
        image_size: PositiveInt = 224,
        shift: NonNegativeInt = 4,
        flip: bool = True,
        num_workers: NonNegativeInt = 0,
        resident: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_dir = ROOT / Path(data_dir).expanduser()
        self.batch_size, self.shift, self.flip, self.num_workers = batch_size, shift, flip, num_workers
        self.resident = resident
        if resident and num_workers:
            raise MisconfigurationException("workers cannot read resident data: set data.num_workers to 0")
        self.image_shape: tuple[int, ...] = (3, int(image_size), int(image_size))  # after resizing
        self.inputs: Sequence[str] = ()  # picture files and folders to predict

    def prepare_data(self) -> None:
        if not self.inputs:
            self.download()

    def download(self) -> None:
        """Downloads the files, verified by torchvision, when one of them is missing.

        Raises:
            FileNotFoundError: They are neither there nor to be had.
        """
        folder = self.data_dir / CIFAR10.base_folder
        names = ["batches.meta", "data_batch_1", "test_batch"]
        if all((folder / name).exists() for name in names):
            return
        folder.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(20)  # seconds; torchvision would wait for ever
            # Moved into place one whole file at a time, so that a killed download leaves nothing that looks complete.
            with TemporaryDirectory(dir=self.data_dir) as temporary, redirect_stdout(sys.stderr):
                CIFAR10(temporary, download=True)
                for file in sorted(Path(temporary, CIFAR10.base_folder).iterdir(), reverse=True):
                    file.replace(folder / file.name)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"CIFAR-10 is not in {folder}, where {', '.join(names)} would be looked for, and could not be "
                f"downloaded from {CIFAR10.url}; the template's variant digits-cnn needs no download"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)

    @cached_property
    def class_names(self) -> list[str]:
        """As batches.meta has them."""
        self.download()
        file = self.data_dir / CIFAR10.base_folder / "batches.meta"
        try:
            return [str(name) for name in read_batch(file)["label_names"]]
        except (KeyError, TypeError) as error:
            raise OSError(f"{file} is damaged or not in CIFAR-10's format: remove it") from error

    @cached_property
    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """Training and test samples: pictures (N, 3, 32, 32) uint8 and classes (N,) int64."""
        self.download()
        folder = self.data_dir / CIFAR10.base_folder
        splits = []
        for pattern in ("data_batch_*", "test_batch"):
            batches = [read_batch(file) for file in sorted(folder.glob(pattern))]
            splits.append((torch.cat([b["data"] for b in batches]), torch.cat([b["labels"] for b in batches])))
        return splits

    def setup(self, stage: str) -> None:
        if not (stage == "predict" and self.inputs):
            (images, targets), test = self.samples
            if max(targets.max(), test[1].max()) >= len(self.class_names):
                raise MisconfigurationException(f"{self.data_dir} holds more than {len(self.class_names)} classes")
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            val, train = order.split([len(order) // 10, len(order) - len(order) // 10])
            missing = {*targets.tolist(), *test[1].tolist()} - set(targets[train].tolist())
            if missing or not len(val):
                raise MisconfigurationException(
                    f"{self.data_dir} has too few training pictures, or none of the classes {sorted(missing)}: add some"
                )
            if self.resident and self.trainer:
                device = self.trainer.strategy.root_device
                images, targets = images.to(device), targets.to(device)
                test = test[0].to(device), test[1].to(device)
            samples = BatchDataset(images, targets)  # of which the splits take no copy
            self.train, self.val = (Subset(samples, split.tolist()) for split in (train, val))
            self.test = BatchDataset(*test)
        if stage == "predict":
            self.setup_predict()

    def setup_predict(self) -> None:
        """Reads `inputs`, or takes a few test samples; `predict_columns` says of each where it comes from."""
        if self.inputs:
            files = find_pictures(self.inputs)
            images = torch.stack([read_picture(file, (SIZE, SIZE), channels=3) for file in files])
            self.predict_columns = [{"input": str(file)} for file in files]
        else:
            images, truth = self.test[:8]
            names = self.class_names
            self.predict_columns = [{"input": f"test {i}", "truth": names[t]} for i, t in enumerate(truth)]
        self.predict = BatchDataset(images)

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
            drop_last=shuffle and len(sampler) % self.batch_size == 1,  # batch normalisation needs two
            collate_fn=default_convert,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, *targets = batch
        if self.trainer and self.trainer.training:
            images = random_crop(images, images.shape[2:], self.shift)
            if self.flip:
                mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
                images = torch.where(mirrored, images.flip(-1), images)
        images = resize(to_dtype(images, torch.float32, scale=True), list(self.image_shape[1:]))
        return normalize(images, self.mean, self.std), *targets
