"""The network, and how it is trained and judged."""

from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt, restricted_number_type
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

Dropout = restricted_number_type("Dropout", float, [(">=", 0), ("<", 1)])
LOSSES = {"mse": nn.MSELoss, "l1": nn.L1Loss, "smooth_l1": nn.SmoothL1Loss}
MOST_COLUMNS = 20  # whose errors are listed one by one


def make_metrics(horizon: int, postfix: str) -> tuple[MetricCollection, MeanAbsoluteError]:
    """The errors over all steps of the test windows, and by step ahead."""
    metrics = {"mae": MeanAbsoluteError(), "mse": MeanSquaredError()}
    return MetricCollection(metrics, prefix="test/", postfix=postfix), MeanAbsoluteError(num_outputs=horizon)  # type: ignore[arg-type]


class ConvNet(nn.Module):
    """Convolutions over each column, and a linear map beside them: (N, lookback, C) to (N, horizon, C), both float32.

    A window is freed of its own mean and standard deviation first and gets them back at the end, as in RevIN,
    https://openreview.net/forum?id=cGDAkQo1C0p; all columns share the weights.
    """

    def __init__(self, lookback: int, horizon: int, channels: int, layers: int, dropout: float) -> None:
        super().__init__()
        kernel = min(16, lookback)
        stride = max(kernel // 2, 1)
        blocks: list[nn.Module] = [nn.Conv1d(1, channels, kernel, stride), nn.GELU()]
        for _ in range(layers - 1):
            blocks += [nn.Conv1d(channels, channels, 3, padding=1), nn.GELU()]
        patches = (lookback - kernel) // stride + 1
        self.convolutions = nn.Sequential(
            *blocks, nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * patches, horizon)
        )
        self.linear = nn.Linear(lookback, horizon)

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.mean(dim=1, keepdim=True)
        std = inputs.std(dim=1, keepdim=True, unbiased=False) + 1e-3
        columns = ((inputs - mean) / std).transpose(1, 2).flatten(0, 1)
        outputs = self.linear(columns) + self.convolutions(columns.unsqueeze(1))
        return (outputs.unflatten(0, (inputs.shape[0], inputs.shape[2])).transpose(1, 2) * std + mean).contiguous()


class MyModel(LightningModule):
    """Forecasts the next steps of one or more series.

    Args:
        columns: Name of each series.
        scale: Mean and standard deviation of each series.
        lookback: Steps that the network sees.
        horizon: Steps that it forecasts.
        channels: Filters of each convolution.
        layers: Number of convolutions.
        dropout: Share of the last hidden values that is left out in training.
        loss: mse, l1 or smooth_l1, on scaled values.
        lr: Learning rate: the peak of the one-cycle schedule, the start of the cosine.
        optimizer: sgd has a momentum of 0.9, adam betas of 0.9 and 0.99; the others are as PyTorch has them.
        scheduler: Learning rate over the run: up and down in one cycle, down along a cosine, or constant.
        weight_decay: L2 penalty, decoupled from the gradient with adamw.
    """

    def __init__(
        self,
        columns: list[str],
        scale: dict[str, list[float]],
        lookback: int,
        horizon: int,
        channels: PositiveInt = 32,
        layers: PositiveInt = 2,
        dropout: Dropout = 0.3,  # type: ignore[valid-type]
        loss: Literal["mse", "l1", "smooth_l1"] = "mse",
        lr: PositiveFloat = 0.001,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = ConvNet(lookback, horizon, channels, layers, dropout)
        self.criterion = LOSSES[loss]()
        self.val_mae = MeanAbsoluteError()
        self.by_column = MeanAbsoluteError(num_outputs=len(columns))
        self.metrics, self.by_step = make_metrics(horizon, "")
        self.naive_metrics, self.naive_by_step = make_metrics(horizon, "_naive")
        self.linear_metrics, self.linear_by_step = make_metrics(horizon, "_linear")

    def forward(self, inputs: Tensor) -> Tensor:
        """Scaled values (N, lookback, C) to scaled forecasts (N, horizon, C), both float32."""
        return self.net(inputs.to(self.dtype)).float()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return self.criterion(self(inputs), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        forecasts = self(inputs)
        self.val_mae(forecasts, targets)
        metrics = {"val/loss": self.criterion(forecasts, targets), "val/mae": self.val_mae}
        self.log_dict(metrics, prog_bar=True, batch_size=len(targets), sync_dist=True)

    def on_test_start(self) -> None:
        for metric in (self.by_column, self.by_step, self.naive_by_step, self.linear_by_step):
            metric.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Judges the network, and simple rules on the same windows."""
        inputs, targets = batch
        forecasts = self(inputs)
        self.log("test/loss", self.criterion(forecasts, targets), batch_size=len(targets), sync_dist=True)
        rules = self.trainer.datamodule.baselines(inputs)  # type: ignore[attr-defined]
        for outputs, metrics, by_step in (
            (forecasts, self.metrics, self.by_step),
            (rules["naive"], self.naive_metrics, self.naive_by_step),
            (rules["linear"], self.linear_metrics, self.linear_by_step),
        ):
            metrics(outputs.contiguous(), targets)
            self.log_dict(metrics, batch_size=len(targets))
            by_step.update(outputs.transpose(1, 2).flatten(0, 1), targets.transpose(1, 2).flatten(0, 1))
        self.by_column.update(forecasts.flatten(0, 1), targets.flatten(0, 1))

    def on_test_epoch_end(self) -> None:
        errors = self.by_column.compute().reshape(-1).tolist()
        if len(errors) <= MOST_COLUMNS:
            for error, (name, (_, std)) in zip(errors, self.hparams["scale"].items(), strict=True):
                self.log(f"test/mae_of_{name}", error * std, sync_dist=True)
        self.step_errors = {
            "network": self.by_step.compute().reshape(-1).cpu(),
            "naive": self.naive_by_step.compute().reshape(-1).cpu(),
            "linear": self.linear_by_step.compute().reshape(-1).cpu(),
        }

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, list[Any]]:
        """The forecast of each step and, within a step, of each column, in the column's own units."""
        mean, std = torch.tensor(list(self.hparams["scale"].values()), device=self.device).T
        return {"forecast": (self(batch[0]) * std + mean).flatten().tolist()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def export_module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network for use elsewhere, (N, lookback, C) to (N, horizon, C) float32 in own units, and an example."""
        scale = torch.tensor(list(self.hparams["scale"].values()))
        example = scale[:, 0] + scale[:, 1] * torch.randn(2, self.hparams["lookback"], len(scale))
        return Exported(self.net, *scale.T), (example,)

    def figures(self) -> dict[str, Figure]:
        """What the test showed, by file name: its last windows, and the error of each step ahead."""
        steps, axis = plt.subplots(figsize=(6, 4), layout="constrained")
        for label, errors in self.step_errors.items():
            axis.plot(range(1, len(errors) + 1), errors, marker=".", label=label)
        axis.set(xlabel="steps ahead", ylabel="mean absolute error, scaled", title="Test windows")
        axis.legend()
        return {"forecasts": self._draw_windows(), "error_by_step": steps}

    @torch.no_grad()
    def _draw_windows(self) -> Figure:
        """The last windows of the test that share no target, or the last one of several columns."""
        columns, horizon = list(self.hparams["scale"].items())[:4], self.hparams["horizon"]
        test = self.trainer.datamodule.test  # type: ignore[attr-defined]
        last = list(range(len(test) - 1, -1, -horizon))[: 4 // len(columns)]
        inputs, targets = test.__getitems__(last)
        forecasts = self(inputs.to(self.device)).cpu()
        panels = [(window, column) for window in range(len(last)) for column in range(len(columns))]
        figure, axes = plt.subplots(len(panels), 1, figsize=(9, 2.6 * len(panels)), squeeze=False, layout="constrained")
        for axis, (window, column) in zip(axes[:, 0], panels, strict=True):
            name, (mean, std) = columns[column]
            lines = [x[window, :, column] * std + mean for x in (inputs, targets, forecasts)]
            known = len(lines[0])
            axis.plot(range(-known + 1, 1), lines[0], color="black", linewidth=1, label="before")
            axis.plot(range(1, horizon + 1), lines[1], color="tab:blue", label="truth")
            axis.plot(range(1, horizon + 1), lines[2], color="tab:red", label="forecast")
            axis.set(ylabel=name, title=f"forecast {window * horizon} steps before the end" if window else "the end")
        axes[0, 0].legend()
        axes[-1, 0].set_xlabel("steps")
        return figure


class Exported(nn.Module):
    """Scales, forecasts, and scales back: see `MyModel.export_module`."""

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net
        self.mean, self.std = (nn.Parameter(values.clone(), requires_grad=False) for values in (mean, std))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net((inputs - self.mean) / self.std) * self.std + self.mean
