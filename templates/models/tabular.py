"""A multilayer perceptron for rows of numbers and categories, and its LightningModule."""

from itertools import pairwise
from math import log
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt, restricted_number_type
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score
from torchmetrics.functional.classification import (
    binary_roc,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

Batch = tuple[Tensor, Tensor, Tensor]  # numbers and gap marks (N, F), float32; categories (N, C), int64; targets (N,)
Dropout = restricted_number_type("Dropout", float, [(">=", 0), ("<", 1)])
Loss = Literal["mse", "l1", "smooth_l1", "poisson_nll", "bce_with_logits", "cross_entropy"]
LOSSES: dict[str, dict[str, type[nn.Module]]] = {
    "regression": {"mse": nn.MSELoss, "l1": nn.L1Loss, "smooth_l1": nn.SmoothL1Loss, "poisson_nll": nn.PoissonNLLLoss},
    "binary": {"bce_with_logits": nn.BCEWithLogitsLoss},
    "multiclass": {"cross_entropy": nn.CrossEntropyLoss},
}


def make_metrics(task: str, num_classes: int) -> dict[str, Metric]:
    """The metrics of a task by name. They take what `MyModel.to_predictions` returns."""
    if task == "regression":
        return {"r2": R2Score(), "mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)}
    metrics = {
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "balanced_acc": MulticlassAccuracy(num_classes, average="macro"),
        "f1": MulticlassF1Score(num_classes, average="macro"),
    }
    return metrics | ({"auroc": MulticlassAUROC(num_classes)} if task == "binary" else {})


class Bins(nn.Module):
    """Position of numbers within bins: 0 below a bin, 1 above it. From https://arxiv.org/abs/2203.05556, section 3.2.

    Args:
        edges: Edges of the bins of each column, ascending.
    """

    def __init__(self, edges: list[list[float]]) -> None:
        super().__init__()
        pairs = [(i, *pair) for i, column in enumerate(edges) for pair in pairwise(column)]
        bounds = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 3)
        self.columns: Tensor
        self.lower: Tensor
        self.upper: Tensor
        self.register_buffer("columns", bounds[:, 0].long())
        self.register_buffer("lower", bounds[:, 1].float())
        self.register_buffer("upper", bounds[:, 2].float())

    def forward(self, numbers: Tensor) -> Tensor:
        """Convert numbers (N, F) to positions (N, number of bins of all columns)."""
        positions = (numbers[:, self.columns] - self.lower) / (self.upper - self.lower)
        return positions.clamp(0.0, 1.0)


class MLP(nn.Module):
    """A multilayer perceptron with a linear layer in parallel, which fits linear relations even on few rows.

    Args:
        num_numbers: Number of columns of numbers, indicators of gaps included.
        bins: Edges of the bins of each column of numbers; empty without bins.
        cardinalities: Number of values of each column of categories.
        hidden: Size of the hidden layers.
        layers: Number of hidden layers.
        dropout: Share of the hidden values that is set to 0 in training.
        outputs: Number of outputs.
    """

    def __init__(
        self,
        num_numbers: int,
        bins: list[list[float]],
        cardinalities: list[int],
        hidden: int,
        layers: int,
        dropout: float,
        outputs: int,
    ) -> None:
        super().__init__()
        sizes = [min(32, (count + 3) // 2) for count in cardinalities]
        # Category 0 stands for all values that do not occur in the training rows; its embedding is zero.
        self.embeddings = nn.ModuleList(
            nn.Embedding(count + 1, size, padding_idx=0) for count, size in zip(cardinalities, sizes, strict=True)
        )
        self.bins = Bins(bins)
        width = num_numbers + len(self.bins.columns) + sum(sizes)
        self.linear = nn.Linear(width, outputs)
        blocks: list[nn.Module] = []
        for i in range(layers):
            blocks += [nn.Linear(hidden if i else width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*blocks, nn.Linear(hidden, outputs))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        embedded = [embedding(categories[:, i]) for i, embedding in enumerate(self.embeddings)]
        features = torch.cat([numbers, self.bins(numbers), *embedded], dim=1)
        return self.linear(features) + self.hidden(features)


class MyModel(LightningModule):
    """Model that predicts a number or a class from numbers and categories.

    Args:
        task: regression, binary or multiclass.
        target: Name of the target.
        class_names: Name of each class; empty for regression.
        target_scale: Mean and standard deviation of the target.
        numbers: Mean and standard deviation of each column of numbers.
        gaps: Columns of numbers that have an indicator for gaps.
        bins: Edges of the bins of each column of numbers; empty without bins.
        categories: Values of each column of categories.
        forms: Notation of the numbers in each column.
        hidden: Size of the hidden layers.
        layers: Number of hidden layers.
        dropout: Share of the hidden values that is set to 0 in training.
        loss: mse, l1, smooth_l1 or poisson_nll for regression, bce_with_logits for two classes, cross_entropy for more;
            null uses the first one of the task.
        lr: Learning rate; if a scheduler changes it, its highest value.
        optimizer: Name of the optimizer; see models/optimizers.py.
        scheduler: Learning rate over the run: it rises and falls (onecycle), falls (cosine) or is constant (none).
        weight_decay: L2 penalty; with adamw it is decoupled from the gradient.
        class_weights: With "balanced", training rows are weighted in inverse proportion to the size of their class;
            with null, all rows have the same weight.
        class_counts: Number of training rows of each class; empty for regression.

    Raises:
        MisconfigurationException: The loss or class_weights do not fit the task, or the loss is poisson_nll and the
            mean of the target is not positive.
    """

    def __init__(
        self,
        task: str,
        target: str,
        class_names: list[str],
        target_scale: list[float],
        numbers: dict[str, list[float]],
        gaps: list[str],
        bins: list[list[float]],
        categories: dict[str, list[str]],
        forms: dict[str, str],
        hidden: PositiveInt = 256,
        layers: PositiveInt = 3,
        dropout: Dropout = 0.5,  # type: ignore[valid-type]
        loss: Loss | None = None,
        lr: PositiveFloat = 0.005,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
        class_weights: Literal["balanced"] | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        losses = LOSSES[task]
        self.loss: str = loss or next(iter(losses))
        self.task, (self.mean, self.std) = task, target_scale
        if self.loss not in losses:
            raise MisconfigurationException(f"--model.loss {loss} does not fit {task}: use {' or '.join(losses)}")
        if self.loss == "poisson_nll" and self.mean <= 0:
            problem = f"--model.loss poisson_nll needs a positive mean, but that of {target!r} is {self.mean:g}"
            raise MisconfigurationException(f"{problem}: use another loss")
        cardinalities = [len(values) for values in categories.values()]
        outputs = len(class_names) if task == "multiclass" else 1
        self.network = MLP(len(numbers) + len(gaps), bins, cardinalities, hidden, layers, dropout, outputs)
        self.criterion = losses[self.loss]()
        self.training_criterion = self.criterion
        if class_weights:
            if not class_counts:
                raise MisconfigurationException(f"--model.class_weights balanced needs classes, but the task is {task}")
            counts = torch.tensor(class_counts, dtype=torch.float32)
            balance = counts.sum() / (len(counts) * counts)
            options = {"pos_weight": balance[1] / balance[0]} if task == "binary" else {"weight": balance}
            self.training_criterion = losses[self.loss](**options)
        self.metrics: dict[str, Metric] = nn.ModuleDict(make_metrics(task, len(class_names)))  # type: ignore[assignment]

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Convert numbers (N, F), float32, and categories (N, C), int64, to logits or scaled targets.

        The numbers are the scaled columns, followed by an indicator, 0 or 1, for each column with gaps.

        The output is (N, num_classes) for more than two classes and (N,) otherwise.
        """
        outputs = self.network(numbers, categories).float()  # 16 bits of mixed precision are too coarse for targets
        return outputs if self.task == "multiclass" else outputs.squeeze(1)

    def to_predictions(self, outputs: Tensor) -> Tensor:
        """Convert what `forward` returns to targets in their own units, (N,), or probabilities, (N, num_classes)."""
        if self.task == "multiclass":
            return outputs.softmax(dim=1)
        if self.task == "binary":
            return torch.stack([(-outputs).sigmoid(), outputs.sigmoid()], dim=1)
        return outputs.exp() * self.mean if self.loss == "poisson_nll" else outputs * self.std + self.mean

    def compute_loss(self, criterion: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.task == "multiclass":
            return criterion(outputs, targets)
        if self.task == "binary":
            return criterion(outputs, targets.float())
        if self.loss == "poisson_nll":
            return criterion(outputs + log(self.mean), targets)
        return criterion(outputs, (targets - self.mean) / self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        numbers, categories, targets = batch
        return self.compute_loss(self.training_criterion, self(numbers, categories), targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def on_test_start(self) -> None:
        self.predicted: list[Tensor] = []
        self.truth: list[Tensor] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.predicted.append(self._step(batch, "test").cpu())
        self.truth.append(batch[2].cpu())

    def _step(self, batch: Batch, stage: str) -> Tensor:
        """Log the loss and the metrics of a batch, and return its predictions."""
        numbers, categories, targets = batch
        outputs = self(numbers, categories)
        predictions = self.to_predictions(outputs)
        for metric in self.metrics.values():
            metric.update(predictions, targets)
        values: dict[str, Any] = {f"{stage}/{name}": metric for name, metric in self.metrics.items()}
        values[f"{stage}/loss"] = self.compute_loss(self.criterion, outputs, targets)
        self.log_dict(values, prog_bar=True, batch_size=len(targets), sync_dist=True)
        return predictions

    def on_test_epoch_end(self) -> None:
        """Log the metrics of scikit-learn's predictions for the same rows."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for baseline, predictions in data.baselines().items():
            for name, metric in make_metrics(self.task, len(self.hparams["class_names"])).items():
                value = metric(predictions, data.test.tensors[-1]).item()
                self.log(f"test/{name}_{baseline}", value, sync_dist=True)

    def predict_step(self, batch: tuple[list[Tensor], dict[str, list[str]]], batch_idx: int) -> dict[str, list[Any]]:
        """Add columns with the prediction, or class and probability, to the columns of the data module."""
        features, columns = batch
        predictions = self.to_predictions(self(*features))
        if self.task == "regression":
            return columns | {"prediction": predictions.tolist()}
        probability, index = predictions.max(dim=1)
        names = self.hparams["class_names"]
        all_of_each = [dict(zip(names, row, strict=True)) for row in predictions.tolist()]
        classes = [names[i] for i in index]
        return columns | {"class": classes, "probability": probability.tolist(), "probabilities": all_of_each}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def export_module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """A module that takes rows in their own units, and example inputs of it; see `Exported`."""
        scale = torch.tensor(list(self.hparams["numbers"].values()), dtype=torch.float64).reshape(-1, 2)
        categories = torch.ones(2, len(self.hparams["categories"]), dtype=torch.int64)
        return Exported(self, scale), (scale[:, 0].repeat(2, 1), categories)

    def figures(self) -> dict[str, Any]:
        """Figures and tables of the last test by file name."""
        predicted, truth = torch.cat(self.predicted), torch.cat(self.truth)
        if self.task == "regression":
            target = self.hparams["target"]
            return {
                "predicted_against_true": draw_predictions(predicted, truth, target),
                "residuals": draw_residuals(predicted - truth, target),
            }
        names = self.hparams["class_names"]
        counts = multiclass_confusion_matrix(predicted, truth, len(names))
        return {
            "roc": draw_roc(predicted, truth, names),
            "confusion_matrix": draw_confusion(counts.tolist(), names),
            "per_class": per_class_rows(predicted, truth, names),
        }


class Exported(nn.Module):
    """Module that scales numbers and marks gaps as the data module does, then predicts."""

    def __init__(self, model: MyModel, scale: Tensor) -> None:
        super().__init__()
        self.model = model
        self.gaps = [list(model.hparams["numbers"]).index(name) for name in model.hparams["gaps"]]
        self.mean, self.std = (nn.Parameter(values.clone(), requires_grad=False) for values in scale.T)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Convert numbers (N, F), float64, NaN for gaps, and categories (N, C), int64, to predictions.

        These are what `to_predictions` returns.

        The model's hyperparameter `categories` lists the values of each column: 1 is the first value, 2 the second, and
        so on; 0 is any value that is not listed.
        """
        missing = numbers.isnan()
        scaled = ((numbers - self.mean) / self.std).masked_fill(missing, 0.0)
        features = torch.cat([scaled, missing[:, self.gaps]], dim=1).float()
        return self.model.to_predictions(self.model(features, categories))


def per_class_rows(probabilities: Tensor, truth: Tensor, names: list[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 score of each class, and its number of rows as support."""
    columns = {"class": names}
    for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score):
        values = metric(probabilities, truth, len(names), average="none")
        columns[metric.__name__.split("_")[1]] = [round(value, 4) for value in values.tolist()]
    columns["support"] = truth.bincount(minlength=len(names)).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def draw_predictions(predicted: Tensor, truth: Tensor, target: str) -> Figure:
    """Draw predictions against true values, both (N,)."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    axis.scatter(truth, predicted, s=max(2.0, min(20.0, 4000 / len(truth))), alpha=0.5)
    middle = truth.mean().item()
    axis.axline((middle, middle), slope=1, color="black", linewidth=1)
    axis.set_title("Test rows; on the line, the prediction is right")
    axis.set_xlabel(f"true {target}", parse_math=False)
    axis.set_ylabel(f"predicted {target}", parse_math=False)
    return figure


def draw_residuals(residuals: Tensor, target: str) -> Figure:
    """Draw a histogram of residuals, (N,)."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.hist(residuals.numpy(), bins=40)
    axis.axvline(0, color="black", linewidth=1)
    axis.set(title="Residuals", ylabel="test rows")
    axis.set_xlabel(f"predicted minus true {target}", parse_math=False)
    return figure


def draw_roc(probabilities: Tensor, truth: Tensor, names: list[str]) -> Figure:
    """Draw a ROC curve for each class against the others, from probabilities (N, num_classes) and classes (N,)."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(names):
        if 0 < (truth == i).sum() < len(truth):  # otherwise one of the rates is undefined
            false_positives, true_positives, _ = binary_roc(probabilities[:, i], (truth == i).long())
            axis.plot(false_positives, true_positives, label=name)
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", label="chance")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", title="Test rows")
    if len(names) <= 20:
        for text in axis.legend().get_texts():
            text.set_parse_math(False)
    return figure


def draw_confusion(counts: list[list[int]], names: list[str]) -> Figure:
    """Draw a confusion matrix, given as one row for each true class. Above 50 classes, colours replace the counts."""
    large = len(names) > 50
    size = 10 if large else 4 + 0.4 * len(names)
    figure = Figure(figsize=(size, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(counts, cmap="Blues")
    axis.set(xlabel="predicted class", ylabel="true class", title="Number of test samples")
    if large:
        figure.colorbar(image, shrink=0.8)
        axis.set_title("Number of test samples; class 0 is the first row of per_class.csv")
        return figure
    axis.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axis.set_yticks(range(len(names)), names, parse_math=False)
    middle = max(map(max, counts)) / 2
    for row, values in enumerate(counts):
        for column, count in enumerate(values):
            if count:
                color = "white" if count > middle else "black"
                axis.text(column, row, str(count), color=color, ha="center", va="center")
    return figure
