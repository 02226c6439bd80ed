"""Checkpoint files: written completely, read without running code, and named in the error if they do not fit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from lightning import LightningModule, __version__
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from training.engine.files import replacing
from training.engine.plain_values import is_plain, make_plain

PARTS = {"state_dict": dict, "loops": dict, "callbacks": dict, "run": dict} | {
    "optimizer_states": list,
    "lr_schedulers": list,
    "random": list,
}
NEVER_EMPTY = ["state_dict", "loops", "callbacks", "random", "run"]


def read_checkpoint(file: Path | str) -> dict[str, Any]:
    """Read a checkpoint of plain values and tensors; code in it is not run, and checksums are verified.

    Raises:
        OSError: The file is missing, damaged, or holds more than plain values and tensors.
    """
    try:
        with ZipFile(file) as archive:
            if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()) or archive.testzip():
                raise BadZipFile("wrong checksum")
    except (BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise OSError(f"{file} is damaged or not a checkpoint ({error}): use another") from error
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception as error:  # torch.load raises many types
        reason = re.sub(r"\x1b\[[\d;]*m", "", str(error).splitlines()[0])  # without colors
        raise OSError(
            f"{file} holds more than plain values and tensors, so it is not loaded ({reason}): use a checkpoint that"
            " train.py has written"
        ) from error


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are written completely or not at all, and loaded without running code in them."""

    def __init__(self) -> None:
        self.kept: tuple[Path, dict[str, Any]] | None = None
        self.checked = {"state_dict", "optimizer_states"}  # large, and tensors in any case

    def read_progress(self, path: Path) -> tuple[int, int]:
        """Return a checkpoint's number of steps, and of rows of `metrics.csv`; keep it, so that it is read once."""
        self.kept = path, checkpoint = path, self.load_checkpoint(path)
        try:
            steps = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]
            return int(steps), int(checkpoint["run"]["rows"])
        except (KeyError, TypeError) as error:
            raise OSError(f"{path} is not a checkpoint of this project: it lacks {error}") from error

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        for key in checkpoint.keys() - {"state_dict"}:
            checkpoint[key] = make_plain(checkpoint[key])
            if key not in self.checked and not is_plain(checkpoint[key]):
                raise OSError(
                    f"{path} is not saved: {key!r} holds objects that cannot be read without running code:"
                    " save numbers, texts, lists, dicts and tensors only"
                )
            self.checked.add(key)  # once, as this takes as long as saving
        with replacing(Path(path)) as partial, open(partial, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        kept, self.kept = self.kept, None
        if kept and kept[0] == Path(path):
            return kept[1]
        checkpoint = read_checkpoint(path)
        wrong = [name for name, kind in PARTS.items() if not isinstance(checkpoint.get(name), kind)]
        if missing := wrong or [name for name in NEVER_EMPTY if not checkpoint[name]]:
            raise OSError(f"{path} is not a checkpoint of this project: it lacks {', '.join(missing)}")
        version = str(checkpoint.get("pytorch-lightning_version"))
        if version.split(".")[:2] != __version__.split(".")[:2]:
            writer = f"version {version}" if re.fullmatch(r"[\d.]+\w*", version) else "another version"
            raise OSError(f"{path} was written by {writer} of Lightning: install it in place of {__version__}")
        return checkpoint


@contextmanager
def naming(checkpoint: Path | None) -> Iterator[None]:
    """Name the checkpoint in the error if Lightning cannot restore it.

    Raises:
        OSError: Part of it does not fit the model, the optimizers, the callbacks or the loops.
    """
    try:
        yield
    except (OSError, MisconfigurationException):
        raise
    except Exception as error:  # the type depends on the part that does not fit
        if not any(frame.filename.endswith("checkpoint_connector.py") for frame in extract_tb(error.__traceback__)):
            raise
        raise misfit(checkpoint, error) from error


def load_weights(model: LightningModule, file: Path) -> None:
    """Load the weights of a checkpoint into a model.

    Raises:
        OSError: They do not fit the model.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(file)
    try:
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except (RuntimeError, TypeError, KeyError) as error:
        raise misfit(file, error) from error


def refuse_nan_weights(model: LightningModule, step: int) -> None:
    """Raise FloatingPointError if a trainable parameter is not finite."""
    for name, weights in model.named_parameters():
        if weights.requires_grad and not torch.isfinite(weights).all():
            raise FloatingPointError(
                f"{name} holds NaN or infinite weights at step {step}, so no checkpoint is saved:"
                " look for NaN in the training data, or use a lower learning rate"
            )


def misfit(checkpoint: Path | None, error: Exception) -> OSError:
    """Return the error for a checkpoint that does not fit the project."""
    reason = " ".join(str(error).split())[:300]
    return OSError(
        f"{checkpoint} does not fit the project ({type(error).__name__}: {reason}): use the code and settings"
        " that it was trained with, or another checkpoint"
    )
