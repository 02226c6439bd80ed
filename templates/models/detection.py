"""The network, and how it is trained and judged."""

from difflib import get_close_matches
from typing import Any, Literal

import torch
import torchvision
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt, register_type
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models import get_model, list_models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

EXAMPLES = 6  # test samples that are drawn
DRAWN_SCORE = 0.5  # the least of boxes that are drawn
DETECTORS = ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_320_fpn")
Weights = Literal["backbone", "DEFAULT"]
Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Network(str):
    """The name of a network that this model can be built of; any other is refused with ValueError."""

    def __new__(cls, name: str) -> "Network":
        resnets = [n for n in list_models(module=torchvision.models) if n.startswith(("resne", "wide_resnet"))]
        if name not in (*DETECTORS, *resnets):
            near = ", ".join(get_close_matches(name, (*DETECTORS, *resnets)) or (*DETECTORS, *resnets))
            raise ValueError(f"there is no network {name!r}; there is {near}")
        return super().__new__(cls, name)


register_type(Network)


def make_network(name: str, num_classes: int, anchor_sizes: list[int], frozen: bool, **options: Any) -> FasterRCNN:
    """A Faster R-CNN with random weights, https://arxiv.org/abs/1506.01497; class 0 is the background.

    A ResNet's levels have an anchor size each; torchvision's own detectors keep their anchors. With `frozen`, batch
    normalisation and the first layers of a ResNet are left as pretrained weights have them.
    """
    if name in DETECTORS:
        return get_model(name, weights=None, weights_backbone=None, num_classes=num_classes + 1, **options)
    norm, layers = (FrozenBatchNorm2d, 3) if frozen else (nn.BatchNorm2d, 5)
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norm, trainable_layers=layers)
    anchors = AnchorGenerator(tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes))
    return FasterRCNN(backbone, num_classes + 1, rpn_anchor_generator=anchors, **options)


def load_pretrained(network: FasterRCNN, name: str, weights: Weights) -> None:
    """Loads torchvision's weights into all layers that fit, downloading them if need be.

    Raises:
        OSError: They cannot be had.
    """
    try:
        if name not in DETECTORS:
            states = get_model(name, weights="DEFAULT").state_dict()
            pretrained = {f"backbone.body.{key}": value for key, value in states.items()}
        elif weights == "DEFAULT":
            pretrained = get_model(name, weights="DEFAULT").state_dict()
        else:
            pretrained = get_model(name, weights=None, weights_backbone="DEFAULT").state_dict()
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of {name} could not be downloaded ({error}): go online or start with --model.weights null"
        ) from error
    own = network.state_dict()
    wanted = "" if weights == "DEFAULT" else "backbone.body."
    fitting = {k: v for k, v in pretrained.items() if k.startswith(wanted) and k in own and own[k].shape == v.shape}
    network.load_state_dict(own | fitting)


class MyModel(LightningModule):
    """Finds objects with a Faster R-CNN.

    Args:
        class_names: Name of each class.
        category_ids: Id of each class in the annotations.
        image_size: Shorter side, and the most of the longer side, of what the network sees, in pixels.
        anchor_sizes: Five sides of the boxes that a ResNet starts from, in pixels of what it sees.
        network: A ResNet of torchvision's, such as resnet18 or resnext50_32x4d, or fasterrcnn_resnet50_fpn_v2 or
            fasterrcnn_mobilenet_v3_large_320_fpn.
        weights: backbone starts from ImageNet's weights, DEFAULT from those of a trained detector (the two last
            networks have some), null from random ones.
        proposals_train: Boxes that the first stage passes on in training.
        proposals_test: Boxes that it passes on later.
        boxes_per_image: Boxes that the second stage trains on in each picture.
        lr: Learning rate: the peak of the one-cycle schedule, the start of the cosine.
        optimizer: sgd has a momentum of 0.9, adam betas of 0.9 and 0.99; the others are as PyTorch has them.
        scheduler: Learning rate over the run: up and down in one cycle, down along a cosine, or constant.
        weight_decay: L2 penalty, decoupled from the gradient with adamw.

    Raises:
        MisconfigurationException: There are no such weights.
    """

    def __init__(
        self,
        class_names: list[str],
        category_ids: list[int],
        image_size: list[int],
        anchor_sizes: list[int],
        network: Network = Network("resnet18"),  # noqa: B008
        weights: Weights | None = None,
        proposals_train: PositiveInt = 200,
        proposals_test: PositiveInt = 100,
        boxes_per_image: PositiveInt = 64,
        lr: PositiveFloat = 0.001,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if weights == "DEFAULT" and network not in DETECTORS:
            raise MisconfigurationException(f"{network} has no trained detector: take --model.weights backbone")
        self.net = make_network(
            network,
            len(class_names),
            anchor_sizes,
            frozen=weights is not None,
            min_size=image_size[0],
            max_size=image_size[1],
            rpn_pre_nms_top_n_train=proposals_train,
            rpn_post_nms_top_n_train=proposals_train,
            rpn_pre_nms_top_n_test=proposals_test,
            rpn_post_nms_top_n_test=proposals_test,
            box_batch_size_per_image=boxes_per_image,
        )
        self.map = MeanAveragePrecision()
        self.map.warn_on_many_detections = False

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        """Pictures (3, H, W) float32 in [0, 1] to boxes (K, 4), labels (K,) from 1 on, and scores (K,) of each.

        In training, with targets, to the losses by name.
        """
        return self.net([image.to(self.dtype) for image in images], targets)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.hparams["weights"] and not self.trainer.ckpt_path:
            load_pretrained(self.net, self.hparams["network"], self.hparams["weights"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self(*batch)
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._update(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_map("val")

    def on_test_start(self) -> None:
        self.examples: list[tuple[Tensor, dict[str, Any], dict[str, Tensor]]] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        outputs = self._update(batch)
        for image, target, output in zip(*batch, outputs, strict=True):
            if len(self.examples) < EXAMPLES:
                self.examples.append((image.cpu(), target, {key: value.cpu() for key, value in output.items()}))

    def on_test_epoch_end(self) -> None:
        self._log_map("test")

    def _update(self, batch: Batch) -> list[dict[str, Tensor]]:
        outputs = self(batch[0])
        self.map.update(outputs, batch[1])
        return outputs

    def _log_map(self, stage: str) -> None:
        values = self.map.compute()
        self.map.reset()
        for name in ("map", "map_50"):
            self.log(f"{stage}/{name}", values[name].to(self.device), prog_bar=stage == "val", sync_dist=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Any]]:
        """The boxes, labels and scores of each picture of a batch, as `forward` gives them."""
        outputs = self(batch[0])
        return {key: [output[key].cpu() for output in outputs] for key in ("boxes", "labels", "scores")}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def export_module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network for use elsewhere, and an example input.

        A picture (3, H, W) float32 in [0, 1] becomes (K, 6) float32: x and y of the first and after the last pixel,
        label from 1 on and score of its boxes, however low.
        """
        return Exported(self.net), (torch.rand(3, *self.hparams["image_size"][:1] * 2),)

    def figures(self) -> dict[str, Figure]:
        """What the test showed, by file name: some pictures with true and predicted boxes."""
        figure, axes = plt.subplots(2, EXAMPLES // 2, figsize=(12, 8.5), layout="constrained")
        figure.suptitle(f"True boxes green, predicted ones of a score above {DRAWN_SCORE} red")
        for axis in axes.flat:
            axis.axis("off")
        names = self.hparams["class_names"]
        for axis, (image, target, output) in zip(axes.flat, self.examples, strict=False):
            axis.imshow(image.permute(1, 2, 0).numpy())
            likely = output["scores"] >= DRAWN_SCORE
            for boxes, labels, colour in (
                (target["boxes"], target["labels"], "lime"),
                (output["boxes"][likely], output["labels"][likely], "red"),
            ):
                for (left, top, right, bottom), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                    rectangle = plt.Rectangle((left, top), right - left, bottom - top, fill=False, color=colour)
                    axis.add_patch(rectangle)
                    y, va = (bottom, "top") if colour == "lime" else (top, "bottom")
                    axis.annotate(names[label - 1], (left, y), color=colour, va=va, fontsize=9)
        return {"test_samples": figure}


class Exported(nn.Module):
    """Gives the boxes of one picture as one tensor: see `MyModel.export_module`."""

    def __init__(self, net: FasterRCNN) -> None:
        super().__init__()
        self.net = net
        self.net.roi_heads.score_thresh = 0.0

    def forward(self, image: Tensor) -> Tensor:
        (output,) = self.net([image])
        columns = [output["labels"].unsqueeze(1), output["scores"].unsqueeze(1)]
        return torch.cat([output["boxes"], *columns], dim=1)
