"""Values that a checkpoint can hold and that can be read without running code."""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule

from training.engine.interrupts import warn


def as_list(value: Any) -> list[Any]:
    """Return the items of an option that takes one, several or none."""
    return value if isinstance(value, list) else [value] if value else []


def make_plain(value: Any) -> Any:
    """Convert paths, NumPy values and subclasses of numbers and text, nested ones too, to plain values."""
    if isinstance(value, Mapping):
        plain = {key: make_plain(each) for key, each in value.items()}
        kind: Any = type(value)
        return kind(plain) if kind in (OrderedDict, Counter) else plain
    if type(value) in (list, tuple, set):
        return type(value)(make_plain(each) for each in value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return str.__str__(value) if isinstance(value, str) else value  # str() would give the name of an enum's member


def without_objects(written: Any, options: Any) -> Any:
    """Leave out options whose value jsonargparse could not write, so that the default is used; texts stay.

    Args:
        written: The options as jsonargparse has written them.
        options: The options themselves.
    """
    if isinstance(written, list) and isinstance(options, list):
        return [without_objects(*pair) for pair in zip(written, options, strict=True)]
    if not isinstance(written, dict):
        return written
    kept = {}
    for key, value in written.items():
        given = options.get(key) if isinstance(options, dict | Namespace) else None
        if not str(value).startswith("Unable to serialize instance"):
            kept[key] = without_objects(value, given)
        elif isinstance(given, str):
            kept[key] = given
    return kept


def is_plain(value: Any) -> bool:
    """Return whether a checkpoint that holds this value can be read again."""
    file = BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="meta", weights_only=True)  # without copies of tensors
    except Exception:  # whatever the pickling of an arbitrary object raises
        return False
    return True


def keep_plain_hyperparameters(module: LightningModule | LightningDataModule) -> None:
    """Convert saved hyperparameters to plain values; remove and name those that cannot be converted."""
    for key, value in dict(module.hparams).items():
        module.hparams[key] = make_plain(value)
        if not is_plain(module.hparams[key]):
            del module.hparams[key]
            hint = f"a {type(value).__name__} is no plain value: pass it to load_from_checkpoint"
            warn(f"hyperparameter {key!r} of {type(module).__name__} is not saved, as {hint}")
