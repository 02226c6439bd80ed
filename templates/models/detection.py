"""The network and its LightningModule: object detection with Faster R-CNN."""

from typing import Any, Literal, get_args

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_convert
from torchvision.ops.misc import FrozenBatchNorm2d

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

EXAMPLES = 6  # test samples that are drawn
DRAWN_SCORE = 0.5  # boxes with a lower score are not drawn
ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
WideResNet = Literal["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]
Detector = Literal["fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_320_fpn"]
Network = Literal[ResNet, WideResNet, Detector]
DETECTORS = get_args(Detector)
Weights = Literal["backbone", "DEFAULT"]
Target = dict[str, Any]
Batch = tuple[list[Tensor], list[Target]]  # pictures (3, H, W), float32 in [0, 1], and their targets
Example = tuple[Tensor, Target, dict[str, Tensor]]  # picture, its target and the output


def make_network(name: str, num_classes: int, anchor_sizes: list[int], frozen: bool, **options: Any) -> FasterRCNN:
    """Make a Faster R-CNN with random weights, https://arxiv.org/abs/1506.01497.

    Args:
        name: Name of a ResNet, whose feature pyramid becomes the backbone, or of a detector in torchvision.
        num_classes: Number of classes without the background, which is class 0.
        anchor_sizes: Side of the anchor boxes of each level of the feature pyramid; detectors have their own.
        frozen: Do not train batch normalization and the first layers of a ResNet, as is usual for pretrained weights.
        options: Options of `FasterRCNN`.
    """
    if name in DETECTORS:
        return get_model(name, weights=None, weights_backbone=None, num_classes=num_classes + 1, **options)
    norm, layers = (FrozenBatchNorm2d, 3) if frozen else (nn.BatchNorm2d, 5)
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norm, trainable_layers=layers)
    anchors = AnchorGenerator(tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes))
    return FasterRCNN(backbone, num_classes + 1, rpn_anchor_generator=anchors, **options)


def load_pretrained(network: FasterRCNN, name: str, weights: Weights) -> None:
    """Load torchvision weights into all layers whose shapes match, and download them if needed.

    Raises:
        OSError: They cannot be downloaded.
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
        hint = "check the network connection, or use --model.weights null"
        raise OSError(f"cannot download weights of {name} ({error}): {hint}") from error
    own = network.state_dict()
    prefix = "backbone.body." if weights == "backbone" else ""
    for key, value in pretrained.items():
        if key.startswith(prefix) and key in own and own[key].shape == value.shape:
            own[key] = value
    network.load_state_dict(own)


class MyModel(LightningModule):
    """Model that finds objects and their classes.

    Args:
        class_names: Name of each class.
        category_ids: Id of each class in the annotations.
        image_size: Shorter side of a picture when the network sees it, and limit of the longer side, in pixels.
        anchor_sizes: Side in pixels of the anchor boxes of each level of the network, if it is a ResNet.
        network: Name of a torchvision detector, or of a torchvision ResNet to use as the backbone of a Faster R-CNN.
        weights: Initial weights: "backbone" for a backbone trained on ImageNet, "DEFAULT" for a detector trained on
            COCO, null for random weights.
        proposals_train: Number of boxes per picture that the region proposal network keeps in training.
        proposals_test: Number of boxes per picture that the region proposal network keeps outside of training.
        boxes_per_image: Number of boxes per picture on which the second stage is trained.
        lr: Learning rate; if a scheduler changes it, its highest value.
        optimizer: Name of the optimizer; see models/optimizers.py.
        scheduler: Learning rate over the run: it rises and falls (onecycle), falls (cosine) or is constant (none).
        weight_decay: L2 penalty; with adamw it is decoupled from the gradient.

    Raises:
        MisconfigurationException: There are no such weights.
    """

    def __init__(
        self,
        class_names: list[str],
        category_ids: list[int | str],
        image_size: list[int],
        anchor_sizes: list[int],
        network: Network = "resnet18",
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
            raise MisconfigurationException(f"{network} has no DEFAULT detector weights: use --model.weights backbone")
        self.network = make_network(
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
        self.example_input_array = ([torch.rand(3, image_size[0], image_size[0])],)

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Find the objects in pictures of any size.

        Args:
            images: Pictures (3, H, W), float32 in [0, 1].
            targets: Targets of the pictures, for training.

        Returns:
            In training, losses by name. Otherwise a dictionary for each picture: boxes (K, 4), left, top, right and
            bottom in pixels; labels (K,), from 1; and scores (K,) in [0, 1].
        """
        return self.network(images, targets)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.hparams["weights"] and not self.trainer.ckpt_path:
            load_pretrained(self.network, self.hparams["network"], self.hparams["weights"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self(*batch)
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_map("val")

    def on_test_start(self) -> None:
        self.examples: list[Example] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        outputs = self._step(batch)
        for image, target, output in zip(*batch, outputs, strict=True):
            if len(self.examples) < EXAMPLES:
                self.examples.append((image.cpu(), target, {key: value.cpu() for key, value in output.items()}))

    def on_test_epoch_end(self) -> None:
        self._log_map("test")

    def _step(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Update the metric and return the outputs."""
        images, targets = batch
        outputs = self(images)
        self.map.update(outputs, targets)
        return outputs

    def _log_map(self, stage: str) -> None:
        values = self.map.compute()
        self.map.reset()
        for name in ("map", "map_50"):
            if values[name] >= 0:  # it is -1 if there are no boxes but those around crowds
                self.log(f"{stage}/{name}", values[name].to(self.device), prog_bar=True, sync_dist=True)

    def predict_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> dict[str, list[Any]]:
        """Make one row for each box: the columns of its picture, its class, and bbox [x, y, width, height]."""
        images, known = batch
        category_ids, names = self.hparams["category_ids"], self.hparams["class_names"]
        columns: dict[str, list[Any]] = {name: [] for name in (*known[0], "category_id", "class", "bbox", "score")}
        for picture, output in zip(known, self(images), strict=True):
            boxes = box_convert(output["boxes"], "xyxy", "xywh").tolist()
            for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True):
                row = picture | {"category_id": category_ids[label - 1], "class": names[label - 1]}
                row |= {"bbox": [round(value, 2) for value in box], "score": score}
                for name, value in row.items():
                    columns[name].append(value)
        return columns

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def figures(self) -> dict[str, Figure]:
        """Figures of the last test by file name."""
        return {"test_samples": draw_examples(self.examples, self.hparams["class_names"])}


def draw_examples(examples: list[Example], names: list[str]) -> Figure:
    """Draw pictures with true and predicted boxes."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    axes = figure.subplots(2, EXAMPLES // 2)
    figure.suptitle(f"blue, dashed: true boxes; orange: predicted boxes with a score of at least {DRAWN_SCORE}")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (image, target, output) in zip(axes.flat, examples, strict=False):
        axis.imshow(image.permute(1, 2, 0))
        likely = output["scores"] >= DRAWN_SCORE
        truth = (target["boxes"], target["labels"], "deepskyblue", "--")
        predicted = (output["boxes"][likely], output["labels"][likely], "orange", "-")
        for boxes, labels, color, style in (truth, predicted):
            for (left, top, right, bottom), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                size = (right - left, bottom - top)
                axis.add_patch(Rectangle((left, top), *size, fill=False, color=color, linestyle=style, linewidth=1.5))
                y, anchor = (bottom, "top") if style == "--" else (top, "bottom")
                label_box = {"facecolor": color, "edgecolor": "none", "pad": 1}
                axis.text(left, y, names[label - 1], va=anchor, fontsize=8, bbox=label_box, parse_math=False)
    return figure
