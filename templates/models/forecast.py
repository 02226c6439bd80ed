"""A convolutional network for time series, and its LightningModule."""

from collections import deque
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt, restricted_number_type
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

Batch = tuple[Tensor, Tensor]  # inputs (N, lookback, C) and targets (N, horizon, C), float32
Example = tuple[Tensor, Tensor, Tensor]  # inputs (lookback, C), targets and forecasts, both (horizon, C)
Dropout = restricted_number_type("Dropout", float, [(">=", 0), ("<", 1)])
LOSSES = {"mse": nn.MSELoss, "l1": nn.L1Loss, "smooth_l1": nn.SmoothL1Loss}
METHODS = ("network", "naive", "linear")  # the last two are baselines of the data module
EXAMPLES = 4  # test windows that are drawn, and columns of each
MAX_LISTED = 20  # columns whose errors are logged one by one


class ConvNet(nn.Module):
    """Convolutions over each column, with a linear map in parallel: (N, lookback, C) to (N, horizon, C).

    The convolutions see a window normalised with its own mean and standard deviation, and their output is converted
    back, as in RevIN, https://openreview.net/forum?id=cGDAkQo1C0p. The linear map sees the mean, too. All columns share
    the weights. Before training, the forecast is the mean of the window.
    """

    def __init__(self, lookback: int, horizon: int, channels: int, layers: int, dropout: float) -> None:
        super().__init__()
        kernel = min(16, lookback)
        stride = max(kernel // 2, 1)
        blocks: list[nn.Module] = [nn.Conv1d(1, channels, kernel, stride), nn.GELU()]
        for _ in range(layers - 1):
            blocks += [nn.Conv1d(channels, channels, 3, padding=1), nn.GELU()]
        patches = (lookback - kernel) // stride + 1
        last = nn.Linear(channels * patches, horizon)
        self.convolutions = nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(dropout), last)
        self.linear = nn.Linear(lookback + 1, horizon)
        for layer in (last, self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        columns = inputs.transpose(1, 2).flatten(0, 1)
        mean = columns.mean(dim=1, keepdim=True)
        std = columns.std(dim=1, keepdim=True, unbiased=False) + 1e-3
        linear = self.linear(torch.cat([columns - mean, mean], dim=1))
        outputs = mean + linear + std * self.convolutions(((columns - mean) / std).unsqueeze(1))
        return outputs.unflatten(0, (inputs.shape[0], inputs.shape[2])).transpose(1, 2)


class MyModel(LightningModule):
    """Network that forecasts the next steps of one or more series.

    Args:
        columns: Name of each series.
        mean: Mean of each series.
        std: Standard deviation of each series, the unit of losses and metrics.
        lookback: Number of steps that the network sees.
        horizon: Number of steps that it forecasts.
        times: Format of the times, and the columns that hold them.
        forms: Notation of the numbers in each column.
        steps: Size of the steps between times, and whether they are months or weekdays.
        channels: Filters of each convolution.
        layers: Number of convolutions.
        dropout: Share of the last hidden values that is set to 0 in training.
        loss: Name of the loss.
        lr: Learning rate; if a scheduler changes it, its highest value.
        optimizer: Name of the optimizer; see models/optimizers.py.
        scheduler: Learning rate over the run: it rises and falls (onecycle), falls (cosine) or is constant (none).
        weight_decay: L2 penalty; with adamw it is decoupled from the gradient.
    """

    def __init__(
        self,
        columns: list[str],
        mean: list[float],
        std: list[float],
        lookback: int,
        horizon: int,
        times: list[str],
        forms: dict[str, str],
        steps: dict[str, float],
        channels: PositiveInt = 32,
        layers: PositiveInt = 2,
        dropout: Dropout = 0.5,  # type: ignore[valid-type]
        loss: Literal["mse", "l1", "smooth_l1"] = "mse",
        lr: PositiveFloat = 0.003,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.network = ConvNet(lookback, horizon, channels, layers, dropout)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.example_input_array = torch.rand(2, lookback, len(columns)) * self.std + self.mean
        self.criterion = LOSSES[loss]()
        outputs = horizon * len(columns)
        mae = {method: MeanAbsoluteError(num_outputs=outputs) for method in METHODS}
        mse = {method: MeanSquaredError(num_outputs=outputs) for method in METHODS}
        self.mae: dict[str, Metric] = nn.ModuleDict(mae)  # type: ignore[assignment]
        self.mse: dict[str, Metric] = nn.ModuleDict(mse)  # type: ignore[assignment]

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, lookback, C) to forecasts (N, horizon, C), float32 in the units of the columns."""
        return self.network((inputs - self.mean) / self.std) * self.std + self.mean

    def compute_loss(self, forecasts: Tensor, targets: Tensor) -> Tensor:
        return self.criterion(forecasts / self.std, targets / self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return self.compute_loss(self(inputs), targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self._log_errors("network", "val")

    def on_test_start(self) -> None:
        self.examples: deque[Example] = deque(maxlen=EXAMPLES)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        forecasts = self._step(batch, "test")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for method, baseline in data.baselines(inputs).items():
            self._update_errors(method, baseline, targets)
        self.examples.append((inputs[-1].cpu(), targets[-1].cpu(), forecasts[-1].cpu()))

    def on_test_epoch_end(self) -> None:
        self.errors = {method: self._log_errors(method, "test") for method in METHODS}
        columns = self.hparams["columns"]
        if len(columns) <= MAX_LISTED:
            for name, error in zip(columns, self.errors["network"].mean(dim=0) * self.std, strict=True):
                self.log(f"test/mae_of_{name}", error, sync_dist=True)

    def _step(self, batch: Batch, stage: str) -> Tensor:
        """Log the loss of a batch, update the metrics, and return its forecasts."""
        inputs, targets = batch
        forecasts = self(inputs)
        loss = self.compute_loss(forecasts, targets)
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=len(targets), sync_dist=True)
        self._update_errors("network", forecasts, targets)
        return forecasts

    def _update_errors(self, method: str, forecasts: Tensor, targets: Tensor) -> None:
        scaled = [(values / self.std).flatten(1) for values in (forecasts, targets)]
        self.mae[method].update(*scaled)
        self.mse[method].update(*scaled)

    def _log_errors(self, method: str, stage: str) -> Tensor:
        """Log and reset the errors of a method; return its mean absolute errors by step and column."""
        suffix = "" if method == "network" else f"_{method}"
        errors = self.mae[method].compute().reshape(self.hparams["horizon"], -1)
        metrics = {f"{stage}/mae{suffix}": errors.mean(), f"{stage}/mse{suffix}": self.mse[method].compute().mean()}
        self.log_dict(metrics, prog_bar=True, sync_dist=True)
        self.mae[method].reset()
        self.mse[method].reset()
        return errors

    def predict_step(self, batch: tuple[Tensor, dict[str, list[Any]]], batch_idx: int) -> dict[str, list[Any]]:
        """Add the forecasts of a window to the columns of the data module: by step and, within a step, by column."""
        inputs, columns = batch
        return columns | {"forecast": self(inputs).flatten().tolist()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def figures(self) -> dict[str, Figure]:
        """Figures of the last test by file name."""
        by_step = {method: errors.mean(dim=1).tolist() for method, errors in self.errors.items()}
        return {
            "forecasts": draw_examples(list(self.examples), self.hparams["columns"][:EXAMPLES]),
            "error_by_step": draw_errors(by_step),
        }


def draw_examples(examples: list[Example], names: list[str]) -> Figure:
    """Draw inputs, truth and forecast of test windows, one row for each window and one column for each series."""
    figure = Figure(figsize=(max(8, 5 * len(names)), 2.5 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), len(names), squeeze=False)
    for row, (inputs, targets, forecasts) in zip(axes, examples, strict=True):
        past, future = range(1 - len(inputs), 1), range(1, len(targets) + 1)
        for i, axis in enumerate(row):
            axis.plot(past, inputs[:, i], color="black", linewidth=1, label="inputs")
            axis.plot(future, targets[:, i], color="tab:blue", label="truth")
            axis.plot(future, forecasts[:, i], color="tab:red", label="forecast")
            axis.set_ylabel(names[i], parse_math=False)
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    axes[0, 0].legend()
    return figure


def draw_errors(errors: dict[str, list[float]]) -> Figure:
    """Draw mean absolute errors by step for each method."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for method, values in errors.items():
        axis.plot(range(1, len(values) + 1), values, marker=".", label=method)
    axis.set(xlabel="steps ahead", ylabel="mean absolute error / standard deviation", title="Test windows")
    axis.legend()
    return figure
