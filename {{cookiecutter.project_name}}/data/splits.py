"""Splitting of samples into train, val and test, or into folds for cross-validation."""

import warnings
from collections.abc import Mapping

import numpy as np
from jsonargparse.typing import restricted_number_type
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedKFold

AtLeastTwo = restricted_number_type("AtLeastTwo", int, [(">=", 2)])
PARTS = {"test": 5, "val": 8}  # a fifth of the samples for the test, then an eighth of the others for validation


def check_fold(folds: int | None, fold: int | None) -> None:
    """Raise MisconfigurationException unless `fold` is a number from 1 to `folds`, or both are None."""
    if fold and not folds:
        raise MisconfigurationException(f"--data.fold {fold} needs --data.folds, the number of folds")
    if folds and not 0 < (fold or 0) <= folds:
        raise MisconfigurationException(f"--data.fold is {fold or 'missing'}: set it to a number from 1 to {folds}")


def deal(groups: np.ndarray, classes: np.ndarray, parts: int) -> np.ndarray:
    """Assign groups to parts, stratified by class; return each sample's part, -1 if its class has only one group."""
    order = np.lexsort((classes, np.bincount(classes)[classes]))  # a group of mixed classes gets its rarest class
    _, first, group_of = np.unique(groups[order], return_index=True, return_inverse=True)
    class_of = classes[order][first]
    counts = np.bincount(class_of)
    part_of = np.full(len(first), -1)
    if counts.max(initial=0) > 1:
        shared = np.flatnonzero(counts[class_of] > 1)
        splitter = StratifiedKFold(min(parts, counts.max()), shuffle=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about classes that are too rare for some parts
            for part, (_, rows) in enumerate(splitter.split(shared, class_of[shared])):
                part_of[shared[rows]] = part
    result = np.empty(len(groups), int)
    result[order] = part_of[group_of]
    return result


def make_splits(
    groups: ArrayLike,
    classes: ArrayLike | None = None,
    given: ArrayLike | None = None,
    parts: Mapping[str, int] = PARTS,
    folds: int | None = None,
    fold: int | None = None,
) -> np.ndarray:
    """The split of each of N samples: train, val or test. It does not depend on the order of the samples.

    Args:
        groups: N values; samples with equal values stay together, unless `given` separates them.
        classes: Class of each sample, or None; all splits have about the same class proportions.
        given: The present split of each sample; None puts all into train. A missing val or test is taken from train.
        parts: For a missing val or test, the number of equal parts into which train is divided; one of them becomes
            val or test.
        folds: Number of folds that replace train and val.
        fold: Fold used for validation, from 1; the others are used for training.

    Raises:
        MisconfigurationException: There are too few samples for the folds.
    """
    group = np.unique(groups, return_inverse=True)[1]
    label = np.zeros_like(group) if classes is None else np.unique(classes, return_inverse=True)[1]
    split = np.full(len(group), "train") if given is None else np.array(given, "<U5")
    for name, count in parts.items():
        if name not in split and not (folds and name == "val"):
            free = np.flatnonzero((split == "train") & ~np.isin(group, group[split != "train"]))
            part = deal(group[free], label[free], count)
            richest = max(range(count), key=lambda i: len(np.unique(label[free[part == i]])))
            split[free[part == richest]] = name
    if folds and fold:
        rows = np.flatnonzero(split != "test")
        part = deal(group[rows], label[rows], folds)
        if (most := part.max(initial=0) + 1) < folds:
            raise MisconfigurationException(f"--data.folds {folds} is too high: use at most {most}, or add samples")
        split[rows] = np.where(part == fold - 1, "val", "train")
    return split
