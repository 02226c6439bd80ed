"""A small convolutional network for pictures, and its LightningModule."""

from typing import Any, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchvision.transforms.v2 import Normalize

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

Batch = tuple[Tensor, Tensor]  # pictures (N, C, H, W), float32 in [0, 1], and classes (N,), int64
Example = tuple[Tensor, int, int]  # picture (C, H, W), true class and predicted class
EXAMPLES = 32  # test samples shown in the figure; misclassified ones fill at most half of it


class MyModel(LightningModule):
    """Convolutional network that classifies pictures of one size.

    Args:
        class_names: Name of each class.
        image_shape: Channels, height and width in pixels.
        mean: Mean of the training pixels of each channel.
        std: Their standard deviation.
        channels: Filters of the convolution.
        lr: Learning rate; if a scheduler changes it, its highest value.
        optimizer: Name of the optimizer; see models/optimizers.py.
        scheduler: Learning rate over the run: it rises and falls (onecycle), falls (cosine) or is constant (none).
        weight_decay: L2 penalty; with adamw it is decoupled from the gradient.
        label_smoothing: Share of each target that is spread over all classes.
        class_weights: With "balanced", the training loss of each class is multiplied by a weight that is inversely
            proportional to its number of training pictures; with null, all pictures have the same weight.
        class_counts: Number of training pictures of each class, for class_weights.
    """

    def __init__(
        self,
        class_names: list[str],
        image_shape: tuple[int, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        channels: PositiveInt = 32,
        lr: PositiveFloat = 0.005,
        optimizer: OptimizerName = "adam",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.0,
        label_smoothing: ClosedUnitInterval = 0.0,
        class_weights: Literal["balanced"] | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        in_channels, height, width = image_shape
        self.network = nn.Sequential(
            Normalize(mean, std),
            nn.Conv2d(in_channels, channels, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2),
            nn.Flatten(),
            nn.Linear(channels * ((height - 2) // 2) * ((width - 2) // 2), len(class_names)),
        )
        self.example_input_array = torch.rand(2, *image_shape)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.training_criterion = self.criterion
        if class_weights:
            if class_counts is None:
                raise MisconfigurationException("--model.class_weights balanced needs --model.class_counts")
            counts = torch.tensor(class_counts, dtype=torch.float32).clamp(min=1)
            balance = counts.sum() / (len(counts) * counts)
            self.training_criterion = nn.CrossEntropyLoss(balance, label_smoothing=label_smoothing)
        self.acc = MulticlassAccuracy(len(class_names), average="micro")
        self.balanced_acc = MulticlassAccuracy(len(class_names), average="macro")
        self.f1 = MulticlassF1Score(len(class_names), average="macro")
        self.confusion = MulticlassConfusionMatrix(len(class_names))
        self.per_class = MetricCollection(
            {
                "precision": MulticlassPrecision(len(class_names), average="none"),
                "recall": MulticlassRecall(len(class_names), average="none"),
                "f1": MulticlassF1Score(len(class_names), average="none"),
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (N, C, H, W), float32 in [0, 1], to logits (N, num_classes)."""
        return self.network(images.to(self.dtype))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        return self.training_criterion(self(images), targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def on_test_start(self) -> None:
        self.confusion.reset()
        self.per_class.reset()
        self.wrong: list[Example] = []
        self.right: list[Example] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, targets = batch
        predictions = self._step(batch, "test").argmax(dim=1)
        self.confusion.update(predictions, targets)
        self.per_class.update(predictions, targets)
        for name in ("balanced_acc", "f1"):
            metric = getattr(self, name)
            metric.update(predictions, targets)
            self.log(f"test/{name}", metric)
        for image, target, prediction in zip(images, targets.tolist(), predictions.tolist(), strict=True):
            examples = self.right if prediction == target else self.wrong
            if len(examples) < EXAMPLES:
                examples.append((image.clone(), target, prediction))

    def _step(self, batch: Batch, stage: str) -> Tensor:
        """Log the loss and the accuracy of a batch; return its logits."""
        images, targets = batch
        logits = self(images)
        self.acc(logits, targets)
        metrics = {f"{stage}/loss": self.criterion(logits, targets), f"{stage}/acc": self.acc}
        self.log_dict(metrics, prog_bar=True, batch_size=len(targets), sync_dist=True)
        return logits

    def predict_step(self, batch: tuple[Tensor, dict[str, list[str]]], batch_idx: int) -> dict[str, list[Any]]:
        """Add columns with the class and the probability of each picture to the columns of the data module."""
        images, columns = batch
        probabilities = self(images).float().softmax(dim=1)
        probability, index = probabilities.max(dim=1)
        names = self.hparams["class_names"]
        all_of_each = [dict(zip(names, row, strict=True)) for row in probabilities.tolist()]
        classes = [names[i] for i in index]
        return columns | {"class": classes, "probability": probability.tolist(), "probabilities": all_of_each}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def per_class_rows(self) -> list[dict[str, Any]]:
        """Precision, recall and F1 score of each class in the last test, and its number of test pictures as support."""
        metrics = self.per_class.compute()
        columns: dict[str, list[Any]] = {}
        for name in ("precision", "recall", "f1"):
            columns[name] = [round(value, 4) for value in metrics[name].tolist()]
        columns["support"] = self.confusion.compute().sum(dim=1).tolist()
        rows = zip(self.hparams["class_names"], *columns.values(), strict=True)
        return [dict(zip(("class", *columns), row, strict=True)) for row in rows]

    def figures(self) -> dict[str, Any]:
        """Figures and tables of the last test by file name; misclassified samples come first."""
        names = self.hparams["class_names"]
        examples = self.wrong[: EXAMPLES // 2] + self.right
        return {
            "confusion_matrix": draw_confusion(self.confusion.compute().tolist(), names),
            "test_samples": draw_examples(examples[:EXAMPLES], names),
            "per_class": self.per_class_rows(),
        }


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


def draw_examples(examples: list[Example], names: list[str]) -> Figure:
    """Draw pictures titled with the predicted class; if it is wrong, the title is red and adds the true class."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(4, EXAMPLES // 4)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (image, target, prediction) in zip(axes.flat, examples, strict=False):
        axis.imshow(image.cpu().permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
        if prediction == target:
            axis.set_title(names[prediction], fontsize=9, parse_math=False)
        else:
            title = f"{names[prediction]}\n(true: {names[target]})"
            axis.set_title(title, fontsize=9, color="red", parse_math=False)
    return figure
