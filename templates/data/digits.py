"""Handwritten digits: 1,797 real pictures of 8 x 8 pixels in ten classes, shipped inside scikit-learn.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, default_convert

from data.pictures import find_pictures, random_crop, read_picture


class BatchDataset(TensorDataset):
    """A `TensorDataset` that is read by the batch, with one indexing operation a tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


class MyDataModule(LightningDataModule):
    """Digits as uint8 tensors in memory, split at random but always alike: 70% train, 10% val, 20% test.

    Args:
        batch_size: Samples a step on each device.
        shift: Largest random shift of a training picture, in pixels; 0 switches it off.
        num_workers: Processes that fetch batches; 0 is fastest for data in memory.
    """

    MODEL_ARGUMENTS = ("class_names", "image_shape", "mean", "std")
    mean, std = (0.3049,), (0.3755,)  # of the training split's pixels, scaled to [0, 1]

    def __init__(
        self, batch_size: PositiveInt = 64, shift: NonNegativeInt = 1, num_workers: NonNegativeInt = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.batch_size, self.shift, self.num_workers = batch_size, shift, num_workers
        self.inputs: Sequence[str] = ()  # picture files and folders to predict

    @cached_property
    def samples(self) -> tuple[Tensor, Tensor]:
        """All pictures, (N, 1, 8, 8) uint8, and their classes, (N,) int64."""
        digits = load_digits()
        pixels = torch.from_numpy(digits.images * (255 / digits.images.max())).round().to(torch.uint8)
        return pixels.unsqueeze(1), torch.from_numpy(digits.target)

    @cached_property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in self.samples[1].unique().tolist()]

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width in pixels."""
        return tuple(self.samples[0].shape[1:])

    def setup(self, stage: str) -> None:
        images, targets = self.samples
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        splits = torch.tensor_split(order, (int(0.7 * len(order)), int(0.8 * len(order))))
        self.train, self.val, self.test = (BatchDataset(images[split], targets[split]) for split in splits)
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

    def _loader(self, dataset: BatchDataset, shuffle: bool = False) -> DataLoader:
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
