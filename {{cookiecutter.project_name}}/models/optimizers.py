"""Optimizers and learning-rate schedulers by name."""

import math
from typing import Literal

from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

OptimizerName = Literal["adam", "adamw", "sgd", "rmsprop"]
SchedulerName = Literal["onecycle", "cosine", "none"]


def make_optimizer(
    model: LightningModule, name: OptimizerName, lr: float, weight_decay: float, scheduler: SchedulerName
) -> OptimizerLRScheduler:
    """Makes what `configure_optimizers` returns, for those parameters of `model` that are to be trained.

    Args:
        model: Attached to the trainer that says how many steps there will be.
        name: `sgd` has a momentum of 0.9; the others are as PyTorch has them.
        lr: Learning rate; the peak of a one-cycle schedule, the start of a cosine.
        weight_decay: L2 penalty, decoupled with `adamw`.
        scheduler: Stepped after every optimizer step.

    Raises:
        MisconfigurationException: A schedule needs to know its end, and the run has none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: Optimizer
    if name == "sgd":
        optimizer = SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    else:
        optimizer = {"adam": Adam, "adamw": AdamW, "rmsprop": RMSprop}[name](
            parameters, lr=lr, weight_decay=weight_decay
        )
    if scheduler == "none":
        return optimizer

    steps = model.trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise MisconfigurationException(
            f"--model.scheduler {scheduler} needs an end: set --trainer.max_epochs or --trainer.max_steps, "
            "or take --model.scheduler none"
        )
    schedule: LRScheduler
    if scheduler == "onecycle":
        schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=int(steps))
    else:
        schedule = CosineAnnealingLR(optimizer, T_max=int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
