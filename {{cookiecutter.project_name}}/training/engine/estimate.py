"""An estimate of how long an epoch takes."""

import time
from math import isfinite
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

STEPS = 10  # timed steps; the first step of the run is not one of them, as it also allocates memory
LONG = 60  # seconds; shorter epochs are not announced


class EpochEstimate(Callback):
    """Callback that prints how long the training steps of an epoch take, and what shortens them, if they take long."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = trainer.num_training_batches
        if len(self.times) > STEPS or not isfinite(steps):
            return
        self.times.append(time.monotonic())
        step = (self.times[-1] - self.times[0]) / STEPS
        if len(self.times) > STEPS and step * steps > LONG and trainer.is_global_zero:
            hint = "a GPU, smaller inputs, a smaller network or --trainer.limit_train_batches shortens it"
            expected = f"about {step * steps / 60:.0f} min, {steps} steps of {step:.2g} s"
            print(f"an epoch takes {expected}: {hint}", flush=True)
