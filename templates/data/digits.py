"""Handwritten digits: 1,797 real pictures of 8 x 8 pixels in ten classes, shipped with scikit-learn.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49
"""

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_convert

from data.pictures import find_pictures, random_shift, read_picture
from data.splits import AtLeastTwo, check_fold, make_splits


class BatchDataset(TensorDataset):
    """A `TensorDataset` that reads a whole batch with one indexing operation per tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


class MyDataModule(LightningDataModule):
    """Digits in memory, always in the same splits: of each class, 70% train, 10% val, 20% test.

    A batch is a pair: pictures (N, 1, 8, 8), float32 in [0, 1], and classes (N,), int64.

    Args:
        folds: Number of folds that take the place of train and val; null uses the splits above.
        fold: Fold used for validation, from 1 to `folds`; the others are used for training.
        batch_size: Samples per step and device.
        shift: Largest random shift of training pictures in pixels; 0 disables it.
        num_workers: Processes that read batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # picture files and folders to predict
    predict_split: str | None = None  # split that is predicted completely if there are no inputs
    mean, std = (0.3049,), (0.3755,)  # of the training pixels

    def __init__(
        self,
        folds: AtLeastTwo | None = None,  # type: ignore[valid-type]
        fold: PositiveInt | None = None,
        batch_size: PositiveInt = 64,
        shift: NonNegativeInt = 1,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        check_fold(folds, fold)
        self.folds, self.fold = folds, fold
        self.batch_size, self.shift, self.num_workers = batch_size, shift, num_workers

    @cached_property
    def samples(self) -> tuple[Tensor, Tensor]:
        """All pictures, (N, 1, 8, 8) float32 in [0, 1], and their classes, (N,) int64."""
        digits = load_digits()
        images = torch.tensor(digits.images / digits.images.max(), dtype=torch.float32)
        return images.unsqueeze(1), torch.tensor(digits.target)

    @cached_property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in self.samples[1].unique().tolist()]

    @cached_property
    def split(self) -> np.ndarray:
        """The split of each sample: train, val or test."""
        images, targets = self.samples
        digests = [sha256(image).hexdigest() for image in images.numpy()]
        return make_splits(digests, targets.numpy(), folds=self.folds, fold=self.fold)

    @cached_property
    def class_counts(self) -> list[int]:
        """Number of training pictures of each class."""
        return self.samples[1][self.split == "train"].bincount().tolist()

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width in pixels."""
        return tuple(self.samples[0].shape[1:])

    def setup(self, stage: str) -> None:
        images, targets = self.samples
        rows = [self.split == name for name in ("train", "val", "test")]
        self.train, self.val, self.test = (BatchDataset(images[each], targets[each]) for each in rows)
        if stage == "predict":
            self.predict = self._read_inputs() if self.inputs else self._known_samples()

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
        if self.trainer and self.trainer.training and self.shift:
            images, targets = batch
            return random_shift(images, self.shift), targets
        return batch
