"""Optimizers and learning-rate schedules by name."""

from collections.abc import Callable
from functools import partial
from math import cos, isinf, pi
from typing import Literal

from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

OptimizerName = Literal["adam", "adamw", "sgd", "rmsprop"]
SchedulerName = Literal["onecycle", "cosine", "none"]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": partial(Adam, betas=(0.9, 0.99)),  # PyTorch's 0.999 averages over more steps than a short run has
    "adamw": AdamW,
    "sgd": partial(SGD, momentum=0.9),
    "rmsprop": RMSprop,
}


def make_optimizer(
    model: LightningModule, name: OptimizerName, lr: float, weight_decay: float, scheduler: SchedulerName
) -> OptimizerLRScheduler:
    """Make what `configure_optimizers` returns: an optimizer of the trainable parameters, and a schedule by step.

    Raises:
        MisconfigurationException: The schedule needs the number of steps, and the run has no end or no step.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[name](trainable, lr=lr, weight_decay=weight_decay)
    if scheduler == "none":
        return optimizer
    steps = model.trainer.estimated_stepping_batches if model.trainer.limit_train_batches else 0
    if isinf(steps) or steps < 0:  # -1 if neither the length of the data nor max_steps is known
        raise MisconfigurationException(
            f"scheduler {scheduler} needs the number of steps: set trainer.max_epochs or, for data without length,"
            " trainer.max_steps, or use scheduler none"
        )
    if steps == 0:
        raise MisconfigurationException("no step would be trained: raise trainer.max_epochs or limit_train_batches")
    schedule: LRScheduler
    if scheduler == "onecycle":
        schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=int(steps))
    else:
        # Unlike CosineAnnealingLR it depends on no earlier rate, so it can be resumed with more epochs.
        schedule = LambdaLR(optimizer, lambda step: (1 + cos(pi * step / steps)) / 2)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
