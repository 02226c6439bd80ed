"""The network and its LightningModule: semantic segmentation with a network of torchvision."""

from math import isnan
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassStatScores,
)
from torchvision.models import get_model
from torchvision.transforms.v2 import Normalize

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

IGNORED = 255  # in a mask: the pixel has no class
EXAMPLES = 6  # test samples that are drawn
MAX_LISTED = 30  # classes; of more, only the mean of the metric is logged
Network = Literal[
    "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101", "lraspp_mobilenet_v3_large"
]
Batch = tuple[Tensor, Tensor]  # pictures (N, 3, H, W), float32 in [0, 1], and masks (N, H, W), int64
Example = tuple[Tensor, Tensor, Tensor]  # picture (3, H, W), mask (H, W) and predicted mask
Weights = Literal["backbone", "DEFAULT"]


def make_network(name: str, num_classes: int) -> nn.Module:
    """Make a network of torchvision with random weights, such as DeepLabV3, https://arxiv.org/abs/1706.05587."""
    network = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1  # MobileNetV3's 0.01 is too slow for runs of some hundred steps
    return network


def load_pretrained(network: nn.Module, name: str, weights: Weights) -> None:
    """Load torchvision weights into all layers whose shapes match, and download them if needed.

    Raises:
        OSError: They cannot be downloaded.
    """
    options = {"weights": "DEFAULT"} if weights == "DEFAULT" else {"weights": None, "weights_backbone": "DEFAULT"}
    try:
        pretrained = get_model(name, **options).state_dict()
    except (OSError, RuntimeError) as error:
        hint = "check the network connection, or use --model.weights null"
        raise OSError(f"cannot download weights of {name} ({error}): {hint}") from error
    own = network.state_dict()
    prefix = "backbone." if weights == "backbone" else ""
    for key, value in pretrained.items():
        if key.startswith(prefix) and key in own and own[key].shape == value.shape:
            own[key] = value
    network.load_state_dict(own)


class MyModel(LightningModule):
    """Network that predicts the class of each pixel.

    Args:
        class_names: Name of each class.
        network: Name of the network in torchvision.
        weights: Initial weights: backbone takes those trained on ImageNet, DEFAULT those of a network trained for
            segmentation, null random ones.
        lr: Learning rate; if a scheduler changes it, its highest value.
        optimizer: Name of the optimizer; see models/optimizers.py.
        scheduler: Learning rate over the run: it rises and falls (onecycle), falls (cosine) or is constant (none).
        weight_decay: L2 penalty; with adamw it is decoupled from the gradient.
        class_weights: balanced weights the training loss of each class by the inverse of its share of the training
            pixels; null weights all pixels equally.
        class_counts: Number of training pixels of each class, for class_weights.
    """

    def __init__(
        self,
        class_names: list[str],
        network: Network = "deeplabv3_mobilenet_v3_large",
        weights: Weights | None = None,
        lr: PositiveFloat = 0.003,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
        class_weights: Literal["balanced"] | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.normalize = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # of ImageNet
        self.network = make_network(network, len(class_names))
        self.criterion = nn.CrossEntropyLoss(ignore_index=IGNORED, reduction="sum")
        self.training_criterion = self.criterion
        if class_weights:
            if class_counts is None:
                raise MisconfigurationException("--model.class_weights balanced needs --model.class_counts")
            counts = torch.tensor(class_counts, dtype=torch.float32).clamp(min=1)
            balance = counts.sum() / (len(counts) * counts)
            self.training_criterion = nn.CrossEntropyLoss(balance, ignore_index=IGNORED, reduction="sum")
        options: dict[str, Any] = {"num_classes": len(class_names), "ignore_index": IGNORED}
        self.acc = MulticlassAccuracy(**options, average="micro")
        self.balanced_acc = MulticlassAccuracy(**options, average="macro")
        self.iou = MulticlassJaccardIndex(**options, average="none", zero_division=torch.nan)
        self.per_class = MetricCollection(
            {
                "precision": MulticlassPrecision(**options, average="none"),
                "recall": MulticlassRecall(**options, average="none"),
                "f1": MulticlassF1Score(**options, average="none"),
                "counts": MulticlassStatScores(**options, average="none"),
            }
        )
        self.example_input_array = torch.rand(2, 3, 128, 160)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, num_classes, H, W) for pictures (N, 3, H, W), float32 in [0, 1]."""
        return self.network(self.normalize(images))["out"]

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.hparams["weights"] and not self.trainer.ckpt_path:
            load_pretrained(self.network, self.hparams["network"], self.hparams["weights"])

    def loss(self, criterion: nn.Module, logits: Tensor, masks: Tensor) -> Tensor:
        """Mean cross-entropy of the pixels that have a class; 0 if there are none."""
        return criterion(logits, masks) / (masks != IGNORED).sum().clamp(min=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, masks = batch
        return self.loss(self.training_criterion, self(images), masks)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self._log_iou("val")

    def on_test_start(self) -> None:
        self.examples: list[Example] = []
        self.per_class.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        predictions = self._step(batch, "test")
        self.per_class.update(predictions, batch[1])
        self.balanced_acc.update(predictions, batch[1])
        self.log("test/balanced_acc", self.balanced_acc, batch_size=len(predictions))
        samples = list(zip(*(tensor.cpu() for tensor in (*batch, predictions)), strict=True))
        self.examples += samples[: EXAMPLES - len(self.examples)]

    def on_test_epoch_end(self) -> None:
        self._log_iou("test")

    def _step(self, batch: Batch, stage: str) -> Tensor:
        """Update the metrics and return the predicted classes, (N, H, W) int64."""
        images, masks = batch
        logits = self(images)
        predictions = logits.argmax(dim=1)
        self.iou.update(predictions, masks)
        self.acc(predictions, masks)
        self.log(f"{stage}/loss", self.loss(self.criterion, logits, masks), batch_size=len(images), sync_dist=True)
        self.log(f"{stage}/acc", self.acc, batch_size=len(images))
        return predictions

    def _log_iou(self, stage: str) -> None:
        """Log the mean IoU of the classes that occur, and in the test the IoU of each."""
        values = self.iou.compute()
        self.iou.reset()
        self.iou_of_classes = values.tolist()
        self.log(f"{stage}/iou", values.nanmean(), prog_bar=True, sync_dist=True)
        names = self.hparams["class_names"]
        if stage == "test" and len(names) <= MAX_LISTED:
            for name, value in zip(names, values, strict=True):
                if not value.isnan():
                    self.log(f"test/iou_{name}", value, sync_dist=True)

    def predict_step(self, batch: tuple[Tensor, dict[str, list[Any]]], batch_idx: int) -> dict[str, list[Any]]:
        """Add the mask of each picture, (H, W) uint8, and the names of the classes in it."""
        images, columns = batch
        names = self.hparams["class_names"]
        masks = self(images).argmax(dim=1).to(torch.uint8).cpu()
        classes = [", ".join(names[i] for i in mask.unique().tolist()) for mask in masks]
        return columns | {"mask": list(masks), "classes": classes}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def per_class_rows(self) -> list[dict[str, Any]]:
        """IoU, precision, recall and F1 score of each class in the last test, and its number of pixels as support."""
        metrics = self.per_class.compute()
        support = metrics["counts"][:, -1].tolist()
        columns = {"iou": self.iou_of_classes}
        columns |= {name: metrics[name].tolist() for name in ("precision", "recall", "f1")}
        rows: list[dict[str, Any]] = [{"class": name} for name in self.hparams["class_names"]]
        for i, row in enumerate(rows):
            row |= {name: None if isnan(values[i]) else round(values[i], 4) for name, values in columns.items()}
            row["support"] = support[i]
        return rows

    def figures(self) -> dict[str, Any]:
        """Figures and tables of the last test by file name."""
        return {
            "test_samples": draw_examples(self.examples, self.hparams["class_names"]),
            "per_class": self.per_class_rows(),
        }


def draw_examples(examples: list[Example], names: list[str]) -> Figure:
    """Draw pictures, each beside its mask and the prediction, with the names of the classes that occur in them.

    Pixels without a class are white.
    """
    shown = sorted({int(i) for _, *masks in examples for mask in masks for i in mask.unique() if i != IGNORED})
    colours = colormaps["tab20" if len(shown) <= 20 else "nipy_spectral"].resampled(len(shown))
    figure = Figure(figsize=(9, 3 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), 3, squeeze=False)
    for row, (image, truth, prediction) in zip(axes, examples, strict=True):
        row[0].imshow(image.permute(1, 2, 0))
        for axis, mask in zip(row[1:], (truth, prediction), strict=True):
            indices = torch.searchsorted(torch.tensor(shown), mask.contiguous()).float()
            indices[truth == IGNORED] = torch.nan
            axis.imshow(indices, cmap=colours, vmin=-0.5, vmax=len(shown) - 0.5)
        for axis, title in zip(row, ("picture", "truth", "prediction"), strict=True):
            axis.set_title(title)
            axis.axis("off")
    patches = [Patch(color=colours(i)) for i in range(len(shown))]
    legend = figure.legend(patches, [names[i] for i in shown], loc="outside lower center", ncols=min(len(shown), 5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
