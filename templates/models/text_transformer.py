"""The network, and how it is trained and judged."""

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt, restricted_number_type
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

Dropout = restricted_number_type("Dropout", float, [(">=", 0), ("<", 1)])


class Transformer(nn.Module):
    """Embedding with learned positions, encoder layers that normalise first, and a linear layer on their mean."""

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        max_length: int,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=0)
        self.positions = nn.Embedding(max_length, width)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L) int64, padded with 0, to logits (N, num_classes) float32."""
        padding = tokens == 0
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded = self.dropout(self.embedding(tokens) + self.positions(positions))
        outputs = self.encoder(embedded, src_key_padding_mask=padding)
        real = (~padding).unsqueeze(2)
        return self.linear(self.dropout((outputs * real).sum(dim=1) / real.sum(dim=1)))


class MyModel(LightningModule):
    """Classifies texts with a transformer.

    Args:
        class_names: Name of each class.
        tokenizer: What makes tokens of a text, as JSON.
        width: Width of a token's vector.
        heads: Number of attention heads, a divisor of the width.
        layers: Number of encoder layers.
        dropout: Share of the hidden values that is left out in training.
        lr: Learning rate: the peak of the one-cycle schedule, the start of the cosine.
        optimizer: sgd has a momentum of 0.9, adam betas of 0.9 and 0.99; the others are as PyTorch has them.
        scheduler: Learning rate over the run: up and down in one cycle, down along a cosine, or constant.
        weight_decay: L2 penalty, decoupled from the gradient with adamw.
        label_smoothing: Share of each target that is spread over all classes.

    Raises:
        MisconfigurationException: The width is no multiple of the heads.
    """

    def __init__(
        self,
        class_names: list[str],
        tokenizer: str,
        width: PositiveInt = 128,
        heads: PositiveInt = 4,
        layers: PositiveInt = 2,
        dropout: Dropout = 0.2,  # type: ignore[valid-type]
        lr: PositiveFloat = 0.001,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
        label_smoothing: ClosedUnitInterval = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if width % heads:
            raise MisconfigurationException(f"--model.width {width} is no multiple of --model.heads {heads}")
        num_classes = len(class_names)
        tokens = Tokenizer.from_str(tokenizer)
        length = json.loads(tokenizer)["truncation"]["max_length"]
        self.net = Transformer(tokens.get_vocab_size(), num_classes, length, width, heads, layers, dropout)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        metrics = {"acc": MulticlassAccuracy(num_classes, average="micro"), "f1": MulticlassF1Score(num_classes)}
        self.val_metrics = MetricCollection(metrics, prefix="val/")  # type: ignore[arg-type]
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L) int64, padded with 0, to logits (N, num_classes) float32."""
        return self.net(tokens).float()

    def on_fit_start(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            Path(self.trainer.default_root_dir, "tokenizer.json").write_text(
                self.hparams["tokenizer"], encoding="utf-8"
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, targets = batch
        return self.criterion(self(tokens), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    def on_test_start(self) -> None:
        self.confusion.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.confusion.update(self._evaluate(batch, "test", self.test_metrics), batch[1])

    def on_test_epoch_end(self) -> None:
        self.matrix = self.confusion.compute()

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, metrics: MetricCollection) -> Tensor:
        tokens, targets = batch
        logits = self(tokens)
        metrics.update(logits, targets)
        loss = self.criterion(logits, targets)
        self.log(f"{stage}/loss", loss, prog_bar=stage == "val", batch_size=len(targets), sync_dist=True)
        self.log_dict(metrics, prog_bar=stage == "val", batch_size=len(targets))
        return logits

    def predict_step(self, batch: tuple[Tensor], batch_idx: int) -> dict[str, list[Any]]:
        """Class and probability of each text of a batch."""
        probability, index = self(batch[0]).softmax(dim=1).max(dim=1)
        names = self.hparams["class_names"]
        return {"class": [names[i] for i in index.tolist()], "probability": probability.tolist()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def export_module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network for use elsewhere, tokens (N, L) int64, padded with 0, to logits, and an example input."""
        return self.net, (torch.tensor([[1, 3, 4, 5], [1, 6, 0, 0]]),)

    def figures(self) -> dict[str, Figure]:
        """What the test showed, by file name: the confusion matrix."""
        names = self.hparams["class_names"]
        size = max(5.0, 0.6 * len(names))
        confusion, axis = plt.subplots(figsize=(size, size), layout="constrained")
        self.confusion.plot(self.matrix, ax=axis, labels=names, add_text=len(names) <= 30)
        return {"confusion_matrix": confusion}
