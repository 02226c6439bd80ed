"""The network, and how it is trained and judged."""

from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchvision.models import get_model
from torchvision.transforms.v2 import Normalize

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

IGNORED = 255  # in a mask: of no class
EXAMPLES = 6  # test samples that are drawn
MOST_CLASSES = 30  # whose metrics are listed one by one
Network = Literal["deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"]
Weights = Literal["backbone", "DEFAULT"]


def load_pretrained(network: nn.Module, name: str, weights: Weights) -> None:
    """Loads torchvision's weights into all layers that fit, downloading them if need be.

    Raises:
        OSError: They cannot be had.
    """
    options = {"weights": "DEFAULT"} if weights == "DEFAULT" else {"weights": None, "weights_backbone": "DEFAULT"}
    try:
        pretrained = get_model(name, **options).state_dict()
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} could not be downloaded ({error}): go online or start with --model.weights null"
        ) from error
    own = network.state_dict()
    fitting = {key: value for key, value in pretrained.items() if key in own and own[key].shape == value.shape}
    if weights == "backbone":
        fitting = {key: value for key, value in fitting.items() if key.startswith("backbone.")}
    network.load_state_dict(own | fitting)


class Segmenter(nn.Module):
    """One of torchvision's networks: pictures (N, 3, H, W) float32 to logits (N, num_classes, H, W)."""

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.network = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1  # MobileNetV3's 0.01 lags behind in a run of some hundred steps

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)["out"]


class MyModel(LightningModule):
    """Finds the class of each pixel with one of torchvision's networks.

    Args:
        class_names: Name of each class.
        mean: Of each channel's pixels, scaled to [0, 1].
        std: Standard deviation, likewise.
        network: Name of the network.
        weights: backbone starts from ImageNet's weights, DEFAULT from those of a network that was trained to segment,
            null from random ones.
        lr: Learning rate: the peak of the one-cycle schedule, the start of the cosine.
        optimizer: sgd has a momentum of 0.9, adam betas of 0.9 and 0.99; the others are as PyTorch has them.
        scheduler: Learning rate over the run: up and down in one cycle, down along a cosine, or constant.
        weight_decay: L2 penalty, decoupled from the gradient with adamw.
    """

    def __init__(
        self,
        class_names: list[str],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        network: Network = "deeplabv3_mobilenet_v3_large",
        weights: Weights | None = None,
        lr: PositiveFloat = 0.003,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = Segmenter(network, len(class_names))
        self.acc = MulticlassAccuracy(len(class_names), average="micro", ignore_index=IGNORED)
        self.iou = MulticlassJaccardIndex(len(class_names), ignore_index=IGNORED)
        self.class_iou = MulticlassJaccardIndex(
            len(class_names), average="none", ignore_index=IGNORED, zero_division=torch.nan
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised pictures (N, 3, H, W) float32 to logits (N, num_classes, H, W) float32."""
        return self.net(images.to(self.dtype)).float()

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.hparams["weights"] and not self.trainer.ckpt_path:
            load_pretrained(self.net.network, self.hparams["network"], self.hparams["weights"])

    @staticmethod
    def criterion(logits: Tensor, masks: Tensor) -> Tensor:
        """Cross-entropy, averaged over the pixels that have a class; 0 if none has."""
        total = cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
        return total / (masks != IGNORED).sum().clamp(min=1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, masks = batch
        return self.criterion(self(images), masks)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def on_test_start(self) -> None:
        self.class_iou.reset()
        self.examples: list[tuple[Tensor, Tensor, Tensor]] = []  # picture, truth and prediction of some test samples

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, masks = batch
        predictions = self._evaluate(batch, "test").argmax(dim=1)
        self.class_iou.update(predictions, masks)
        samples = zip(images.cpu(), masks.cpu(), predictions.cpu(), strict=True)
        self.examples += list(samples)[: EXAMPLES - len(self.examples)]

    def on_test_epoch_end(self) -> None:
        names = self.hparams["class_names"]
        if len(names) <= MOST_CLASSES:
            for name, iou in zip(names, self.class_iou.compute(), strict=True):
                if not iou.isnan():  # the class occurs
                    self.log(f"test/iou_{name}", iou, sync_dist=True)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, masks = batch
        logits = self(images)
        self.acc(logits, masks)
        self.iou(logits, masks)
        loss = self.criterion(logits, masks)
        self.log(f"{stage}/loss", loss, prog_bar=stage == "val", batch_size=len(images), sync_dist=True)
        metrics = {f"{stage}/acc": self.acc, f"{stage}/iou": self.iou}
        self.log_dict(metrics, prog_bar=stage == "val", batch_size=len(images))
        return logits

    def predict_step(self, batch: tuple[Tensor], batch_idx: int) -> dict[str, list[Any]]:
        """The mask of each picture of a batch, (H, W) uint8, and the names of the classes in it."""
        masks = self(batch[0]).argmax(dim=1).to(torch.uint8).cpu()
        names = self.hparams["class_names"]
        return {"mask": list(masks), "classes": [", ".join(names[i] for i in mask.unique().tolist()) for mask in masks]}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def export_module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network for use elsewhere, pictures (N, 3, H, W) float32 in [0, 1] to logits, and an example input."""
        module = nn.Sequential(Normalize(self.hparams["mean"], self.hparams["std"]), self.net)
        return module, (torch.rand(2, 3, 128, 160),)

    def figures(self) -> dict[str, Figure]:
        """What the test showed, by file name: some pictures, their truth and what was predicted."""
        names = self.hparams["class_names"]
        colours = colormaps["tab20" if len(names) <= 20 else "nipy_spectral"].resampled(len(names))
        mean, std = (torch.tensor(self.hparams[key]).view(-1, 1, 1) for key in ("mean", "std"))
        figure, axes = plt.subplots(
            len(self.examples), 3, figsize=(9, 3 * len(self.examples)), squeeze=False, layout="constrained"
        )
        for row, (image, truth, prediction) in zip(axes, self.examples, strict=True):
            row[0].imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
            for axis, mask in zip(row[1:], (truth, prediction), strict=True):
                axis.imshow(
                    torch.where(truth == IGNORED, torch.nan, mask.float()), colours, vmin=-0.5, vmax=len(names) - 0.5
                )
            for axis, title in zip(row, ("picture", "truth", "prediction"), strict=True):
                axis.set_title(title)
                axis.axis("off")
        handles = [Patch(color=colours(i), label=name) for i, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 6))
        return {"test_samples": figure}
