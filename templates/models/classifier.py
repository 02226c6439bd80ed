"""The network, and how it is trained and judged."""

from collections import OrderedDict
from difflib import get_close_matches
from typing import Any, Literal

import torch
import torchvision
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, register_type
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.transforms.v2 import Normalize

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

EXAMPLES = 32  # test samples that are drawn; at most half of them wrong ones


class Network(str):
    """The name of a torchvision classifier; any other is refused with ValueError."""

    def __new__(cls, name: str) -> "Network":
        names = list_models(module=torchvision.models)
        if name not in names:
            near = ", ".join(get_close_matches(name, names) or names)
            raise ValueError(f"torchvision has no classifier {name!r}; it has {near}")
        return super().__new__(cls, name)


register_type(Network)


def make_network(name: str, num_classes: int, image_size: int, **options: Any) -> nn.Module:
    """A torchvision classifier with random weights: (N, 3, H, W) float32 to logits (N, num_classes).

    Raises:
        MisconfigurationException: The network cannot work on pictures of `image_size` pixels a side.
    """
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    elif name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True, "transform_input": True}
    try:
        return get_model(name, weights=None, num_classes=num_classes, **options)
    except (AssertionError, ValueError) as error:
        raise MisconfigurationException(f"{name} cannot take pictures of {image_size} pixels ({error})") from error


def find_head(network: nn.Module) -> tuple[str, nn.Module]:
    """The name of the layer that gives the logits, and the layer: in torchvision's classifiers the last of its kind."""
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]


def load_pretrained(network: nn.Module, name: str, image_size: int) -> None:
    """Loads torchvision's best weights into all layers but the head, downloading them if need be.

    Raises:
        OSError: They cannot be had.
    """
    try:
        pretrained = dict(get_model_weights(name)["DEFAULT"].get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} could not be downloaded ({error}): go online or start with --model.weights null"
        ) from error
    if name.startswith("vit_"):
        patch_size = pretrained["conv_proj.weight"].shape[-1]
        pretrained = dict(interpolate_embeddings(image_size, patch_size, OrderedDict(pretrained)))
    head, _ = find_head(network)
    own = network.state_dict()
    body = {key: value for key, value in pretrained.items() if key in own and not key.startswith(f"{head}.")}
    network.load_state_dict(own | body)


class MyModel(LightningModule):
    """Classifies pictures of one size with any of torchvision's classifiers.

    Args:
        class_names: Name of each class.
        image_shape: Channels, height and width in pixels.
        mean: Of each channel's pixels, scaled to [0, 1].
        std: Standard deviation, likewise.
        network: Name of a torchvision classifier, such as resnet18, mobilenet_v3_small, efficientnet_b0, vit_b_16 or
            convnext_tiny; its last layer gets as many outputs as there are classes.
        weights: DEFAULT starts from torchvision's best ImageNet weights, null from random ones.
        freeze: Trains the last layer alone and leaves the pretrained ones as they are.
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
        network: Network = Network("resnet18"),  # noqa: B008
        weights: Literal["DEFAULT"] | None = None,
        freeze: bool = False,
        lr: PositiveFloat = 0.003,
        optimizer: OptimizerName = "adam",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.0,
        label_smoothing: ClosedUnitInterval = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = make_network(network, len(class_names), image_shape[-1])
        if freeze:
            if weights is None:
                raise MisconfigurationException("--model.freeze true needs --model.weights DEFAULT")
            self.net.requires_grad_(False)
            find_head(self.net)[1].requires_grad_(True)
            self.train()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.acc = MulticlassAccuracy(len(class_names), average="micro")
        self.confusion = MulticlassConfusionMatrix(len(class_names))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised pictures (N, C, H, W) float32 to logits (N, num_classes) float32."""
        return self.net(images.to(self.dtype)).float()

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.hparams["weights"] and not self.trainer.ckpt_path:
            load_pretrained(self.net, self.hparams["network"], self.hparams["image_shape"][-1])

    def train(self, mode: bool = True) -> "MyModel":
        """Sets training or evaluation mode; frozen statistics stay as they are."""
        super().train(mode)
        for layer in self.net.modules():
            if isinstance(layer, nn.BatchNorm2d) and self.hparams["freeze"]:
                layer.eval()
        return self

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
