"""Output of a run: its progress, tables of metrics and predictions, and pictures."""

import csv
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from training.engine.files import write_csv
from training.engine.interrupts import warn

STAGE = re.compile(r"^(train|val|test)[/_]")
PANELS = 3  # learning curves side by side


def as_number(value: Any) -> float | None:
    """Return the value of a number or of a tensor with one element; None for anything else."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None


class LossLogger(Callback):
    """Logging of the loss that `training_step` returns, other scalars of a returned dictionary, and learning rates.

    Every `log_every_n_steps` steps they go to the loggers directly, which takes less time than `self.log`. The mean
    loss of an epoch can be monitored as `train/loss`.
    """

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}
        self.total: Tensor | float = 0.0
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"total": float(self.total), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total, self.count = state_dict["total"], state_dict["count"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % trainer.log_every_n_steps == 0:
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            names = [f"train/lr_{group.get('name', i)}" for i, group in enumerate(groups)]
            names = names if len(groups) > 1 else ["train/lr"]
            self.rates = {name: float(group["lr"]) for name, group in zip(names, groups, strict=True)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        outputs = dict(outputs) if isinstance(outputs, Mapping) else {"loss": outputs}
        if isinstance(loss := outputs.get("loss"), Tensor) and loss.numel() == 1:
            outputs["loss"] = loss = loss.detach() * trainer.accumulate_grad_batches  # Lightning has divided it
            self.total, self.count = self.total + loss, self.count + 1
        loop = trainer.fit_loop.epoch_loop
        step = loop._batches_that_stepped
        if (step + 1) % trainer.log_every_n_steps or loop._should_accumulate():
            return
        numbers = {f"train/{name}": as_number(value) for name, value in outputs.items()}
        metrics = self.rates | {name: value for name, value in numbers.items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.count:
            mean = torch.as_tensor(self.total, device=pl_module.device) / self.count
            pl_module.log("train/loss", mean, logger=False, sync_dist=True)
        self.total, self.count = 0.0, 0


def print_epoch(trainer: Trainer) -> None:
    """Print the metrics of an epoch as one line."""
    if trainer.is_global_zero:
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.endswith("_step")}
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"epoch {trainer.fit_loop.epoch_progress.current.started - 1}  {metrics}", flush=True)


def printable(value: Any) -> str:
    """Format the text of a cell: numbers with four decimals, no line breaks, control characters escaped."""
    text = f"{value:.4f}" if isinstance(value, float) else " ".join(str(value).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table. All rows must have the same keys."""
    table = Table()
    for name in rows[0]:
        table.add_column(Text(printable(name)), overflow="fold")  # names of runs must not be cut off
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row.values()))
    Console().print(table)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print the metrics of a split as a table."""
    print_table([{"metric": name, "value": float(value)} for name, value in metrics.items()])


def print_rows(rows: list[dict[str, Any]], form: str) -> None:
    """Print rows as a table, a JSON list, or CSV with a header and quoted text. All rows must have the same keys."""
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not rows:
        print("no predictions")
    elif form == "csv":
        write_csv(rows, sys.stdout)
    else:
        print_table(rows)


def read_curves(file: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Read the metrics of training and validation from `metrics.csv`: points (step, value) by quantity and metric."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    if not file.exists():  # a run of a few steps may not have logged anything
        return curves
    with open(file, newline="", encoding="utf-8") as text:
        for row in csv.DictReader(text):
            step = row.pop("step")
            for name, value in row.items():
                if value and name != "epoch" and not name.startswith("test"):
                    quantity = STAGE.sub("", name).removesuffix("_epoch").removesuffix("_step")
                    curves.setdefault(quantity, {}).setdefault(name, []).append((int(step), float(value)))
    return curves


def draw_curves(file: Path, best_step: int | None) -> Any:
    """Draw all metrics of `metrics.csv` by step, one panel for each quantity, with the best checkpoint marked."""
    from matplotlib.figure import Figure

    curves = read_curves(file)
    if not curves:
        return {}
    columns = min(PANELS, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * lines), layout="constrained")
    for i, (quantity, metrics) in enumerate(sorted(curves.items())):
        axis = figure.add_subplot(lines, columns, i + 1)
        for name, points in sorted(metrics.items()):
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        if best_step is not None:
            axis.axvline(best_step, color="grey", linestyle=":", label="best checkpoint")
        axis.set_xlabel("step")
        axis.set_ylabel(quantity, parse_math=False)
        axis.grid(alpha=0.3)
        for text in axis.legend(loc="upper right" if "loss" in quantity else "lower right", fontsize=8).get_texts():
            text.set_parse_math(False)
    return figure


def save_figures(folder: Path, figures: Mapping[str, Callable[[], Any]], loggers: list[Logger]) -> None:
    """Save figures and tables; send figures to the loggers. One that cannot be made gives a warning.

    Args:
        folder: Folder of the run.
        figures: Functions by file name. Each returns a matplotlib figure, a table as a list of rows with the same keys,
            or a dictionary of these by file name.
        loggers: Loggers of the run.
    """
    for name, draw in figures.items():
        try:
            drawn = draw()
            for each, figure in (drawn if isinstance(drawn, Mapping) else {name: drawn}).items():
                if isinstance(figure, list):
                    with open(folder / f"{each}.csv", "w", newline="", encoding="utf-8") as text:
                        write_csv(figure, text)
                    continue
                file = folder / f"{each}.png"
                figure.savefig(file, dpi=120)
                send_picture(file, loggers)
        except Exception as error:  # the project's code may raise anything; the results are saved already
            warn(f"could not draw or save {name}: {type(error).__name__}: {error}")


def send_picture(file: Path, loggers: list[Logger]) -> None:
    """Send a picture to TensorBoard, Weights & Biases or MLflow."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(file.stem, [str(file)])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(file))
        elif isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            logger.experiment.add_image(file.stem, imread(file), dataformats="HWC")
