"""MNIST: 70,000 handwritten digits of 28 x 28 pixels in ten classes, white on black, downloaded by torchvision.

Source: Y. LeCun, C. Cortes and C. J. C. Burges, http://yann.lecun.com/exdb/mnist/
Made for a test accuracy of 0.986 with the default configuration, which has not been measured on MNIST itself yet.
"""

import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset, default_convert
from torchvision.datasets import MNIST

from data.pictures import find_pictures, random_crop, read_picture

ROOT = Path(__file__).resolve().parents[1]


class BatchDataset(TensorDataset):
    """A `TensorDataset` that is read by the batch, with one indexing operation a tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        device = self.tensors[0].device
        return self[torch.tensor(indices, pin_memory=device.type == "cuda").to(device, non_blocking=True)]


class MyDataModule(LightningDataModule):
    """MNIST as uint8 tensors in memory: the official test split, and 1/24 of the training samples to validate.

    Args:
        data_dir: Folder that holds MNIST/raw/ with four IDX files, MNIST's or your own of any picture size and
            class count; MNIST is downloaded when they are missing. A relative path starts at the project's root.
        batch_size: Samples a step on each device.
        shift: Largest random shift of a training picture, in pixels; 0 switches it off.
        num_workers: Processes that fetch batches; 0 is fastest for data in memory.
        resident: Whether all samples are kept on the device as uint8, which saves copying batches to a GPU.
    """

    MODEL_ARGUMENTS = ("class_names", "image_shape", "mean", "std")
    mean, std = (0.1307,), (0.3081,)  # of the training samples' pixels, scaled to [0, 1]

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: PositiveInt = 128,
        shift: NonNegativeInt = 0,
        num_workers: NonNegativeInt = 0,
        resident: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_dir = ROOT / Path(data_dir).expanduser()
        self.batch_size, self.shift, self.num_workers = batch_size, shift, num_workers
        self.resident = resident
        if resident and num_workers:
            raise MisconfigurationException("workers cannot read resident data: set data.num_workers to 0")
        self.inputs: Sequence[str] = ()  # picture files and folders to predict

    def prepare_data(self) -> None:
        if not self.inputs:
            self.download()

    def download(self) -> None:
        """Downloads the four files, verified by torchvision, when one of them is missing.

        Raises:
            FileNotFoundError: They are neither there nor to be had.
        """
        folder = self.data_dir / "MNIST" / "raw"
        names = [Path(name).stem for name, _ in MNIST.resources]
        if all((folder / name).exists() for name in names):
            return
        folder.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(20)  # seconds; torchvision would wait for ever
            # Moved into place one whole file at a time, so that a killed download leaves nothing that looks complete.
            with TemporaryDirectory(dir=self.data_dir) as temporary, redirect_stdout(sys.stderr):
                MNIST(temporary, download=True)
                for name in names:
                    Path(temporary, "MNIST", "raw", name).replace(folder / name)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"MNIST is not in {folder}, where {', '.join(names)} would be looked for, and could not be "
                f"downloaded from {' or '.join(MNIST.mirrors)}; the template's variant digits-cnn needs no download"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)

    @cached_property
    def samples(self) -> list[tuple[Tensor, Tensor]]:
        """Training and test samples: pictures (N, 1, H, W) uint8 and classes (N,) int64.

        Raises:
            OSError: The files are damaged, or do not belong together.
        """
        self.download()
        try:
            splits = [MNIST(self.data_dir, train=train) for train in (True, False)]
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            folder = self.data_dir / "MNIST"
            raise OSError(f"{folder} holds a file that is damaged or not IDX: remove it") from error
        if any(len(split.data) != len(split.targets) for split in splits):
            raise OSError(f"{self.data_dir / 'MNIST'} holds pictures and classes that differ in number")
        return [(split.data.unsqueeze(1), split.targets) for split in splits]

    @cached_property
    def class_names(self) -> list[str]:
        """The digits, or the numbers of the classes where there are not ten of them."""
        return [str(number) for number in range(1 + max(int(targets.max()) for _, targets in self.samples))]

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width in pixels."""
        return tuple(self.samples[0][0].shape[1:])

    def setup(self, stage: str) -> None:
        if not (stage == "predict" and self.inputs):
            (images, targets), test = self.samples
            shapes = {tuple(pictures.shape[1:]) for pictures in (images, test[0])}
            if shapes != {tuple(self.image_shape)} or max(targets.max(), test[1].max()) >= len(self.class_names):
                raise MisconfigurationException(f"{self.data_dir} holds other classes or picture sizes than expected")
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            val, train = order.split([len(order) // 24, len(order) - len(order) // 24])
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
        channels, *size = self.image_shape
        if self.inputs:
            files = find_pictures(self.inputs)
            images = torch.stack([read_picture(file, (size[0], size[1]), channels) for file in files])
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
            collate_fn=default_convert,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, *targets = batch
        if self.trainer and self.trainer.training and self.shift:
            images = random_crop(images, images.shape[2:], self.shift)
        (mean,), (std,) = self.mean, self.std
        return images.float().sub_(255 * mean).div_(255 * std), *targets
