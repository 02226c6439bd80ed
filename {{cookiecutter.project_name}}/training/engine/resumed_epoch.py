"""An epoch that is resumed in its middle."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.trainer.call import _call_callback_hooks, _call_lightning_module_hook

from training.engine.interrupts import warn


def start_epoch_again(trainer: Trainer) -> None:
    """Call `on_train_epoch_start` of callbacks and model, which prepares the epoch.

    The restored state of callbacks, buffers of the model and settings of optimizers already include the effects of
    these hooks, so they are kept.
    """
    states = [(callback, deepcopy(callback.state_dict())) for callback in trainer.callbacks]
    buffers = {name: buffer.clone() for name, buffer in trainer.lightning_module.named_buffers()}
    groups = [(group, {**group}) for optimizer in trainer.optimizers for group in optimizer.param_groups]
    _call_callback_hooks(trainer, "on_train_epoch_start")
    _call_lightning_module_hook(trainer, "on_train_epoch_start")
    for callback, state in states:
        if state:
            callback.load_state_dict(state)
    with torch.no_grad():
        for name, buffer in trainer.lightning_module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    for group, settings in groups:
        group.update(settings)


def say_what_is_inexact(loaders: Sequence[Any], averages: bool) -> None:
    """Warn about state that a resumed run cannot restore.

    Args:
        loaders: Loaders of the training data.
        averages: Whether the epoch is resumed in its middle and may have metrics that are collected over it.
    """
    if any(getattr(loader, "persistent_workers", False) for loader in loaders):
        warn("persistent workers keep their own random state, so random transforms are resumed inexactly")
    if averages:
        warn("training metrics that are collected over the epoch may cover only the steps after the checkpoint")
