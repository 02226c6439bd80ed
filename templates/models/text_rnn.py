"""The network, and how it is trained and judged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt, restricted_number_type
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

Dropout = restricted_number_type("Dropout", float, [(">=", 0), ("<", 1)])
Cell = Literal["rnn", "lstm", "gru"]
CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RNN(nn.Module):
    """Embedding, recurrent layers in both directions, and a linear layer on the largest of their outputs over time."""

    def __init__(
        self, vocab_size: int, num_classes: int, cell: str, embedding: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        between = dropout if layers > 1 else 0.0
        self.cells = CELLS[cell](embedding, hidden, layers, batch_first=True, dropout=between, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L) int64, padded with 0, to logits (N, num_classes) float32."""
        embedded = self.dropout(self.embedding(tokens))
        lengths = (tokens != 0).sum(dim=1)
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(
            self.cells(packed)[0], batch_first=True, padding_value=-torch.inf, total_length=tokens.shape[1]
        )
        return self.linear(self.dropout(outputs.amax(dim=1)))


class MyModel(LightningModule):
    """Classifies texts with a recurrent network.

    Args:
        class_names: Name of each class.
        tokenizer: What makes tokens of a text, as JSON.
        cell: rnn, lstm or gru.
        embedding: Width of a token's vector.
        hidden: Width of the recurrent layers in each direction.
        layers: Number of recurrent layers.
        dropout: Share of the hidden values that is left out in training.
        lr: Learning rate: the peak of the one-cycle schedule, the start of the cosine.
        optimizer: sgd has a momentum of 0.9, adam betas of 0.9 and 0.99; the others are as PyTorch has them.
        scheduler: Learning rate over the run: up and down in one cycle, down along a cosine, or constant.
        weight_decay: L2 penalty, decoupled from the gradient with adamw.
        label_smoothing: Share of each target that is spread over all classes.
    """

    def __init__(
        self,
        class_names: list[str],
        tokenizer: str,
        cell: Cell = "lstm",
        embedding: PositiveInt = 128,
        hidden: PositiveInt = 128,
        layers: PositiveInt = 1,
        dropout: Dropout = 0.5,  # type: ignore[valid-type]
        lr: PositiveFloat = 0.003,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
        label_smoothing: ClosedUnitInterval = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        vocab_size, num_classes = Tokenizer.from_str(tokenizer).get_vocab_size(), len(class_names)
        self.net = RNN(vocab_size, num_classes, cell, embedding, hidden, layers, dropout)
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
