"""Optimizers and learning-rate schedulers by name."""

from collections.abc import Callable
from functools import partial
from math import cos, isinf, pi
from typing import Literal

from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

OptimizerName = Literal["adam", "adamw", "sgd", "rmsprop", "adam_fused", "adamw_fused", "sgd_fused"]
SchedulerName = Literal["onecycle", "cosine", "none"]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": partial(Adam, betas=(0.9, 0.99)),  # 0.999, PyTorch's second, remembers longer than a short run lasts
    "adamw": AdamW,
    "sgd": partial(SGD, momentum=0.9),
    "rmsprop": RMSprop,
    # One kernel a step; under mixed precision gradients cannot be clipped.
    "adam_fused": partial(Adam, betas=(0.9, 0.99), fused=True),
    "adamw_fused": partial(AdamW, fused=True),
    "sgd_fused": partial(SGD, momentum=0.9, fused=True),
}


def make_optimizer(
    model: LightningModule, name: OptimizerName, lr: float, weight_decay: float, scheduler: SchedulerName
) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns: an optimizer of the trainable parameters, its schedule stepped every step.

    Raises:
        MisconfigurationException: The schedule has to know its end, and the run has none.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[name](trainable, lr=lr, weight_decay=weight_decay)
    if scheduler == "none":
        return optimizer
    steps = model.trainer.estimated_stepping_batches
    if isinf(steps):
        raise MisconfigurationException(f"scheduler {scheduler} needs an end: set max_epochs, or take scheduler none")
    if steps < 1:
        raise MisconfigurationException("no step would be trained: see --trainer.max_epochs and limit_train_batches")
    schedule: LRScheduler
    if scheduler == "onecycle":
        schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=int(steps))
    else:
        # Unlike CosineAnnealingLR it can be resumed with more epochs: it depends on no rate before.
        schedule = LambdaLR(optimizer, lambda step: (1 + cos(pi * step / steps)) / 2)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
