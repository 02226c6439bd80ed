"""The network, and how it is trained and judged."""

from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt, restricted_number_type
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryROC,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

Dropout = restricted_number_type("Dropout", float, [(">=", 0), ("<", 1)])
Loss = Literal["mse", "l1", "smooth_l1", "poisson_nll", "bce_with_logits", "cross_entropy"]
LOSSES: dict[str, dict[str, type[nn.Module]]] = {
    "regression": {
        "mse": nn.MSELoss,
        "l1": nn.L1Loss,
        "smooth_l1": nn.SmoothL1Loss,
        "poisson_nll": nn.PoissonNLLLoss,
    },
    "binary": {"bce_with_logits": nn.BCEWithLogitsLoss},
    "multiclass": {"cross_entropy": nn.CrossEntropyLoss},
}


def make_metrics(task: str, num_classes: int) -> MetricCollection:
    """The metrics of a task, on predictions in the target's own units or on probabilities."""
    if task == "regression":
        return MetricCollection({"r2": R2Score(), "mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)})
    if task == "binary":
        return MetricCollection({"acc": BinaryAccuracy(), "auroc": BinaryAUROC()})
    return MetricCollection(
        {"acc": MulticlassAccuracy(num_classes, average="micro"), "f1": MulticlassF1Score(num_classes)}
    )


class MLP(nn.Module):
    """A linear layer and, beside it, hidden ones: numbers (N, F) float32, categories (N, C) int64 to (N, outputs).

    On few rows the linear part keeps it from doing worse than a linear model.
    """

    def __init__(
        self, num_numbers: int, cardinalities: list[int], hidden: int, layers: int, dropout: float, outputs: int
    ) -> None:
        super().__init__()
        # The row of an unseen category is 0, and stays so.
        self.embeddings = nn.ModuleList(
            nn.Embedding(count + 1, min(32, (count + 3) // 2), padding_idx=0) for count in cardinalities
        )
        width = num_numbers + sum(min(32, (count + 3) // 2) for count in cardinalities)
        self.linear = nn.Linear(width, outputs)
        blocks: list[nn.Module] = []
        for i in range(layers):
            blocks += [nn.Linear(hidden if i else width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*blocks, nn.Linear(hidden, outputs))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        embedded = [embedding(categories[:, i]) for i, embedding in enumerate(self.embeddings)]
        features = torch.cat([numbers, *embedded], dim=1)
        return self.linear(features) + self.hidden(features)


class MyModel(LightningModule):
    """Predicts a number or a class from numbers and categories.

    Args:
        task: regression, binary or multiclass.
        target: Name of what is predicted.
        class_names: Name of each class; none for regression.
        target_scale: Mean and standard deviation of the target.
        numbers: Mean and standard deviation of each column of numbers.
        gaps: The columns of numbers that have an indicator of gaps.
        categories: Values of each column of categories.
        hidden: Width of the hidden layers.
        layers: Number of hidden layers.
        dropout: Share of the hidden values that is left out in training.
        loss: mse, l1, smooth_l1 or poisson_nll for regression, bce_with_logits for two classes, cross_entropy for more;
            null takes the first that fits.
        lr: Learning rate: the peak of the one-cycle schedule, the start of the cosine.
        optimizer: sgd has a momentum of 0.9, adam betas of 0.9 and 0.99; the others are as PyTorch has them.
        scheduler: Learning rate over the run: up and down in one cycle, down along a cosine, or constant.
        weight_decay: L2 penalty, decoupled from the gradient with adamw.

    Raises:
        MisconfigurationException: The loss does not fit the task, or poisson_nll a target of a negative mean.
    """

    def __init__(
        self,
        task: str,
        target: str,
        class_names: list[str],
        target_scale: list[float],
        numbers: dict[str, list[float]],
        gaps: list[str],
        categories: dict[str, list[str]],
        hidden: PositiveInt = 256,
        layers: PositiveInt = 3,
        dropout: Dropout = 0.3,  # type: ignore[valid-type]
        loss: Loss | None = None,
        lr: PositiveFloat = 0.002,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        losses = LOSSES[task]
        if loss is not None and loss not in losses:
            raise MisconfigurationException(f"--model.loss {loss} does not fit {task}: take {' or '.join(losses)}")
        self.loss: str = loss or next(iter(losses))
        if self.loss == "poisson_nll" and target_scale[0] <= 0:
            raise MisconfigurationException(f"poisson_nll needs counts, but the mean of {target} is {target_scale[0]}")
        self.criterion = losses[self.loss]()
        cardinalities = [len(values) for values in categories.values()]
        outputs = len(class_names) if task == "multiclass" else 1
        self.net = MLP(len(numbers) + len(gaps), cardinalities, hidden, layers, dropout, outputs)
        self.val_metrics = make_metrics(task, len(class_names)).clone(prefix="val/")
        self.test_metrics = make_metrics(task, len(class_names)).clone(prefix="test/")
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(target_scale), persistent=False)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Scaled numbers (N, F) float32 and categories (N, C) int64 to (N,), or to logits (N, num_classes) float32."""
        output = self.net(numbers.to(self.dtype), categories).float()
        return output if self.hparams["task"] == "multiclass" else output.squeeze(1)

    def predict_targets(self, output: Tensor) -> Tensor:
        """What `forward` gives in the target's own units, or as probabilities, the second one's of two classes."""
        if self.hparams["task"] == "multiclass":
            return output.softmax(dim=1)
        if self.hparams["task"] == "binary":
            return output.sigmoid()
        return output.exp() * self.scale[0] if self.loss == "poisson_nll" else output * self.scale[1] + self.scale[0]

    def compute_loss(self, output: Tensor, targets: Tensor) -> Tensor:
        if self.loss == "poisson_nll":
            return self.criterion(output + self.scale[0].log(), targets)
        if self.hparams["task"] == "regression":
            return self.criterion(output, (targets - self.scale[0]) / self.scale[1])
        return self.criterion(output, targets if self.hparams["task"] == "multiclass" else targets.float())

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        numbers, categories, targets = batch
        return self.compute_loss(self(numbers, categories), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    def on_test_start(self) -> None:
        self.predicted: list[Tensor] = []
        self.truth: list[Tensor] = []

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        self.predicted.append(self._evaluate(batch, "test", self.test_metrics).cpu())
        self.truth.append(batch[2].cpu())

    def on_test_epoch_end(self) -> None:
        """Judges scikit-learn's predictions for the same rows by the same metrics."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, predictions in data.baselines().items():
            metrics = make_metrics(self.hparams["task"], len(self.hparams["class_names"]))
            values = metrics(predictions, data.test.tensors[-1])
            self.log_dict(
                {f"test/{key}_{name}": value.float().to(self.device) for key, value in values.items()}, sync_dist=True
            )

    def _evaluate(self, batch: tuple[Tensor, Tensor, Tensor], stage: str, metrics: MetricCollection) -> Tensor:
        numbers, categories, targets = batch
        output = self(numbers, categories)
        predictions = self.predict_targets(output)
        metrics.update(predictions, targets)
        loss = self.compute_loss(output, targets)
        self.log(f"{stage}/loss", loss, prog_bar=stage == "val", batch_size=len(targets), sync_dist=True)
        self.log_dict(metrics, prog_bar=stage == "val", batch_size=len(targets))
        return predictions

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, list[Any]]:
        """The number, or class and probability, of each row of a batch."""
        predictions = self.predict_targets(self(*batch))
        if self.hparams["task"] == "regression":
            return {"prediction": predictions.tolist()}
        if self.hparams["task"] == "binary":
            predictions = torch.stack([1 - predictions, predictions], dim=1)
        probability, index = predictions.max(dim=1)
        names = self.hparams["class_names"]
        return {"class": [names[i] for i in index.tolist()], "probability": probability.tolist()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def export_module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network for use elsewhere, and example inputs.

        Numbers in their own units, (N, F) float64 with NaN for gaps, and indices of categories, (N, C) int64 with 0 for
        an unseen one, become predictions: (N,) float32, or (N, num_classes) of more than two classes.
        """
        h = self.hparams
        scale = torch.tensor(list(h["numbers"].values()), dtype=torch.float64).view(-1, 2)
        categories = torch.ones(2, len(h["categories"]), dtype=torch.int64)
        return Exported(self, scale), (scale[:, 0].repeat(2, 1), categories)

    def figures(self) -> dict[str, Figure]:
        """What the test showed, by file name: predictions and residuals, or ROC and confusion matrix."""
        predicted, truth = torch.cat(self.predicted), torch.cat(self.truth)
        if self.hparams["task"] == "regression":
            return draw_regression(predicted, truth, self.hparams["target"])
        return draw_classes(predicted, truth, self.hparams["class_names"])


class Exported(nn.Module):
    """Scales raw numbers and marks gaps, then predicts: see `MyModel.export_module`."""

    def __init__(self, model: MyModel, scale: Tensor) -> None:
        super().__init__()
        self.model = model
        self.gaps = [list(model.hparams["numbers"]).index(name) for name in model.hparams["gaps"]]
        self.mean, self.std = (nn.Parameter(values.clone(), requires_grad=False) for values in scale.T)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        missing = numbers.isnan()
        scaled = ((numbers - self.mean) / self.std).masked_fill(missing, 0.0)
        features = torch.cat([scaled, missing[:, self.gaps]], dim=1).float()
        return self.model.predict_targets(self.model(features, categories))


def draw_regression(predicted: Tensor, truth: Tensor, target: str) -> dict[str, Figure]:
    """Predictions against the truth, and the residuals; both (N,) float32."""
    against, axis = plt.subplots(figsize=(6, 6), layout="constrained")
    axis.scatter(truth, predicted, s=max(2.0, min(20.0, 4000 / len(truth))), alpha=0.5)
    axis.axline((truth.mean().item(), truth.mean().item()), slope=1, color="black", linewidth=1)
    axis.set(xlabel=f"true {target}", ylabel=f"predicted {target}", title="Test rows; on the line where right")
    residuals, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.hist((predicted - truth).numpy(), bins=40)
    axis.axvline(0, color="black", linewidth=1)
    axis.set(xlabel=f"predicted minus true {target}", ylabel="test rows", title="Residuals")
    return {"predicted_against_true": against, "residuals": residuals}


def draw_classes(predicted: Tensor, truth: Tensor, names: list[str]) -> dict[str, Figure]:
    """ROC of each class against the others, and the confusion matrix, of probabilities (N,) or (N, num_classes)."""
    binary = predicted.dim() == 1
    roc, axis = plt.subplots(figsize=(6, 6), layout="constrained")
    scores = [(1, predicted)] if binary else list(enumerate(predicted.unbind(dim=1)))
    for index, score in scores:
        if 0 < (truth == index).sum() < len(truth):  # else there is nothing to tell apart
            false_positive, true_positive, _ = BinaryROC()(score, truth == index)
            axis.plot(false_positive, true_positive, label=names[index])
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", title="Test rows")
    if len(names) <= 20:
        axis.legend()
    size = max(5.0, 0.6 * len(names))
    confusion, axis = plt.subplots(figsize=(size, size), layout="constrained")
    matrix = MulticlassConfusionMatrix(len(names))
    matrix((predicted > 0.5).long() if binary else predicted.argmax(dim=1), truth)
    matrix.plot(ax=axis, labels=names, add_text=len(names) <= 30)
    return {"roc": roc, "confusion_matrix": confusion}
