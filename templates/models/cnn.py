"""The network, and how it is trained and judged."""

from typing import Any

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchvision.transforms.v2 import Normalize

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

EXAMPLES = 32  # test samples that are drawn; at most half of them wrong ones
ONEDNN = {torch.float32: torch.cpu._is_avx2_supported(), torch.bfloat16: torch.cpu._is_avx512_bf16_supported()}


class ConvPool(nn.Module):
    """A convolution and the maxima of two by two: (N, C, H, W) float32 to (N, channels, (H - 2) // 2, (W - 2) // 2).

    Where it trains on an x86 processor, oneDNN computes both in its own layout: a step takes two thirds of the time, as
    one byte, not eight, says where each maximum was.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=3)
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.to(memory_format=torch.channels_last)  # a CPU pools faster with it

    def forward(self, x: Tensor) -> Tensor:
        conv, pool = self.conv, self.pool
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        special = torch.compiler.is_compiling() or torch.is_anomaly_enabled()
        if special or not (self.training and x.device.type == "cpu" and ONEDNN.get(dtype)):
            return pool(conv(x))
        weight, bias = (parameter.to(dtype) for parameter in conv.parameters())
        x = torch.mkldnn_convolution(x.to_mkldnn(dtype), weight, bias, conv.padding, conv.stride, conv.dilation, 1)  # type: ignore[arg-type]
        return torch.mkldnn_max_pool2d(x, pool.kernel_size, pool.stride).to_dense()


class CNN(nn.Sequential):
    """A convolution, pooling and a linear layer: (N, C, H, W) float32 to logits (N, num_classes).

    ReLU after pooling gives what it gives before, on a quarter of the numbers.
    """

    def __init__(self, image_shape: tuple[int, ...], num_classes: int, channels: int) -> None:
        in_channels, height, width = image_shape
        super().__init__(
            ConvPool(in_channels, channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * ((height - 2) // 2) * ((width - 2) // 2), num_classes),
        )


class MyModel(LightningModule):
    """Classifies pictures of one size with a small convolutional network.

    Args:
        class_names: Name of each class.
        image_shape: Channels, height and width in pixels.
        mean: Of each channel's pixels, scaled to [0, 1].
        std: Standard deviation, likewise.
        channels: Filters of the convolution.
        lr: Learning rate: the peak of the one-cycle schedule, the start of the cosine.
        optimizer: sgd has a momentum of 0.9, adam betas of 0.9 and 0.99; the others are as PyTorch has them.
        scheduler: Learning rate over the run: up and down in one cycle, down along a cosine, or constant.
        weight_decay: L2 penalty, decoupled from the gradient with adamw.
        label_smoothing: Share of each target that is spread over all classes.
    """

    def __init__(
        self,
        class_names: list[str],
        image_shape: tuple[int, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        channels: PositiveInt = 32,
        lr: PositiveFloat = 0.01,
        optimizer: OptimizerName = "adam",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.0,
        label_smoothing: ClosedUnitInterval = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = CNN(image_shape, len(class_names), channels)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.acc = MulticlassAccuracy(len(class_names), average="micro")
        self.confusion = MulticlassConfusionMatrix(len(class_names))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised pictures (N, C, H, W) float32 to logits (N, num_classes) float32."""
        return self.net(images.to(self.dtype)).float()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        return self.criterion(self(images), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def on_test_start(self) -> None:
        self.confusion.reset()
        self.wrong: list[tuple[Tensor, int, int]] = []  # picture, truth and prediction of some test samples
        self.right: list[tuple[Tensor, int, int]] = []

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        predictions = self._evaluate(batch, "test").argmax(dim=1)
        self.confusion.update(predictions, targets)
        for image, truth, prediction in zip(images, targets.tolist(), predictions.tolist(), strict=True):
            examples = self.right if truth == prediction else self.wrong
            if len(examples) < (EXAMPLES if truth == prediction else EXAMPLES // 2):
                examples.append((image, truth, prediction))

    def on_test_epoch_end(self) -> None:
        self.matrix = self.confusion.compute()

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, targets = batch
        logits = self(images)
        self.acc(logits, targets)
        metrics = {f"{stage}/loss": self.criterion(logits, targets), f"{stage}/acc": self.acc}
        self.log_dict(metrics, prog_bar=stage == "val", batch_size=len(targets), sync_dist=True)
        return logits

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, list[Any]]:
        """Class and probability of each picture of a batch."""
        probability, index = self(batch[0]).softmax(dim=1).max(dim=1)
        names = self.hparams["class_names"]
        return {"class": [names[i] for i in index.tolist()], "probability": probability.tolist()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def export_module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network for use elsewhere, pictures (N, C, H, W) float32 in [0, 1] to logits, and an example input."""
        module = nn.Sequential(Normalize(self.hparams["mean"], self.hparams["std"]), self.net)
        return module, (torch.rand(2, *self.hparams["image_shape"]),)

    def figures(self) -> dict[str, Figure]:
        """What the test showed, by file name: the confusion matrix, and samples with the misclassified ones first."""
        names = self.hparams["class_names"]
        size = max(5.0, 0.6 * len(names))
        confusion, axis = plt.subplots(figsize=(size, size), layout="constrained")
        self.confusion.plot(self.matrix, ax=axis, labels=names, add_text=len(names) <= 30)

        mean, std = (torch.tensor(self.hparams[key]).view(-1, 1, 1) for key in ("mean", "std"))
        samples, axes = plt.subplots(4, EXAMPLES // 4, figsize=(12, 8), layout="constrained")
        samples.suptitle("Predicted class; where it is wrong, in red and above the truth")
        for axis in axes.flat:
            axis.axis("off")
        for axis, (image, truth, prediction) in zip(axes.flat, self.wrong + self.right, strict=False):
            axis.imshow((image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy(), cmap="gray")
            if truth == prediction:
                axis.set_title(names[truth], fontsize=9)
            else:
                axis.set_title(f"{names[prediction]}\nnot {names[truth]}", fontsize=9, color="red", weight="bold")
        return {"confusion_matrix": confusion, "test_samples": samples}
