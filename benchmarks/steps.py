"""Time of a training step with next to no arithmetic, in several set-ups in turn, within one process.

`python benchmarks/steps.py PROJECT DATA [--rounds 5] [--metrics 0]` prints a JSON object: microseconds a step of each
set-up, one number a round. PROJECT is a baked `mnist-cnn`, DATA a folder with IDX files. Every Trainer fits the data
module of the project, except `tensors`, whose batches are converted beforehand, as those of `loop` are.
"""

import argparse
import json
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, default_convert
from torchmetrics.classification import MulticlassAccuracy

STEPS, WARM_UP = 1500, 300
LIGHT = [
    *("--trainer.max_epochs=1", "--data.batch_size=64", "--model.optimizer=sgd", "--trainer.limit_val_batches=1"),
]


def tiny_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Plain(LightningModule):
    """Nothing but a loss and the project's schedule; what the bare Trainer and the hand-written loop fit."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_network()
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.criterion(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        schedule = OneCycleLR(optimizer, max_lr=0.01, total_steps=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Common(Plain):
    """As widely used templates write it: loss and accuracy are logged at each step and averaged over the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.train_acc = MulticlassAccuracy(10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = self.criterion(logits, batch[1])
        self.train_acc(logits, batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)
        return loss


def measure(fit: Any) -> float:
    """Microseconds a step, after the first ones."""
    times: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: times.append(time.perf_counter()))
    with redirect_stdout(sys.stderr):
        fit()
    hook.remove()
    return (times[-1] - times[WARM_UP]) / (len(times) - 1 - WARM_UP) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--metrics", type=int, nargs="*", default=[], help="numbers of metrics that are logged")
    options = parser.parse_args()
    sys.argv = sys.argv[:1]
    torch.set_num_threads(1)
    sys.path.insert(0, str(options.project))
    from data.data_module import BatchDataset, MyDataModule  # type: ignore[attr-defined]
    from models.my_model import MyModel
    from training.engine.run import RunCLI

    data_module = partial(MyDataModule, data_dir=str(options.data), batch_size=64)
    off: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    bare_trainer = partial(
        Trainer, max_epochs=1, accelerator="cpu", enable_model_summary=False, limit_val_batches=0, **off
    )

    def normalised() -> DataLoader:
        data = data_module()
        images, targets = data.on_after_batch_transfer(data.samples[0], 0)
        samples = BatchDataset(images[: 64 * STEPS], targets[: 64 * STEPS])
        return DataLoader(samples, 64, shuffle=True, collate_fn=default_convert)

    def loop() -> None:
        model = Plain()
        optimizer, schedule = (model.configure_optimizers()[key] for key in ("optimizer", "lr_scheduler"))
        for batch in normalised():
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            optimizer.step()
            schedule["scheduler"].step()

    def bare() -> None:
        bare_trainer().fit(Plain(), datamodule=data_module())

    def tensors() -> None:
        bare_trainer().fit(Plain(), normalised())

    def common() -> None:
        with TemporaryDirectory() as folder:
            logger, bar = TensorBoardLogger(folder), RichProgressBar()
            trainer = Trainer(max_epochs=1, accelerator="cpu", logger=logger, callbacks=[bar], limit_val_batches=0)
            trainer.fit(Common(), datamodule=data_module())

    def project(metrics: int = 0) -> None:
        cli = RunCLI(MyModel, MyDataModule, [f"--data.data_dir={options.data}", *LIGHT])
        cli.model.network = tiny_network()
        if metrics:
            step = cli.model.training_step

            def training_step(batch: Any, batch_idx: int) -> dict[str, Tensor]:
                loss = step(batch, batch_idx)
                return {f"metric_{i}": loss.detach() for i in range(metrics)} | {"loss": loss}

            cli.model.training_step = training_step
        cli.run(cli.trainer.fit, None)

    modes: dict[str, Any] = {"loop": loop, "tensors": tensors, "bare": bare, "common": common, "project": project}
    modes |= {f"project, {n} metrics": lambda n=n: project(n) for n in options.metrics}
    result: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(options.rounds):
        for name, fit in modes.items():
            result[name].append(round(measure(fit), 1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
