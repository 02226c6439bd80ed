"""A recurrent network for texts, and its LightningModule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt, restricted_number_type
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from models.optimizers import OptimizerName, SchedulerName, make_optimizer

Batch = tuple[Tensor, Tensor]  # tokens (N, L), int64, padded with 0, and classes (N,), int64
Dropout = restricted_number_type("Dropout", float, [(">=", 0), ("<", 1)])
Cell = Literal["rnn", "lstm", "gru"]
CONVOLUTIONS = (1, 2, 3)  # numbers of tokens that a filter sees
CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class NgramScores(nn.Module):
    """Sums scores of the classes over the n-grams of a text, as a linear model on n-grams does.

    N-grams are found in the table by a hash, as in fastText, https://arxiv.org/abs/1607.01759.
    """

    ROWS = 2**16  # of the table; the first one stands for padding

    def __init__(self, num_classes: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.table = nn.Embedding(self.ROWS, num_classes, padding_idx=0)
        nn.init.zeros_(self.table.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        hashed, ngrams = tokens, []
        for i in range(self.longest):
            last = tokens[:, i:]
            hashed = (hashed[:, : last.shape[1]] * 1_000_003 + last) % (self.ROWS - 1) + 1
            ngrams.append(hashed.masked_fill(last == 0, 0))
        found = torch.cat(ngrams, dim=1)
        return self.table(found).sum(dim=1) / (found != 0).sum(dim=1, keepdim=True).sqrt()


class RNN(nn.Module):
    """Embedding, recurrent layers in both directions beside convolutions, maximum over time, linear layer.

    The convolutions and the scores of n-grams find words and phrases; with the recurrent layers alone, a few thousand
    texts are not enough to reach a linear model on n-grams.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        cell: str,
        embedding: int,
        hidden: int,
        layers: int,
        filters: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        between = dropout if layers > 1 else 0.0
        self.cells = CELLS[cell](embedding, hidden, layers, batch_first=True, dropout=between, bidirectional=True)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(embedding, filters, width, padding=width - 1) for width in CONVOLUTIONS
        )
        self.linear = nn.Linear(2 * hidden + filters * len(CONVOLUTIONS), num_classes)
        self.ngrams = NgramScores(num_classes, longest=4)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens != 0).sum(dim=1).cpu()
        embedded = self.dropout(self.embedding(tokens))
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(self.cells(packed)[0], batch_first=True, padding_value=-torch.inf)
        features = [outputs.amax(dim=1)]
        features += [layer(embedded.transpose(1, 2)).relu().amax(dim=2) for layer in self.convolutions]
        return self.linear(self.dropout(torch.cat(features, dim=1))) + self.ngrams(tokens)


class MyModel(LightningModule):
    """Recurrent network that classifies texts.

    Args:
        class_names: Name of each class.
        tokenizer: Tokenizer of the `tokenizers` library, as JSON.
        cell: Kind of recurrent layer.
        embedding: Size of a token's vector.
        hidden: Size of the recurrent layers in each direction.
        layers: Number of recurrent layers.
        filters: Filters of each convolution.
        dropout: Share of the hidden values that is set to 0 in training.
        lr: Learning rate; if a scheduler changes it, its highest value.
        optimizer: Name of the optimizer; see models/optimizers.py.
        scheduler: Learning rate over the run: it rises and falls (onecycle), falls (cosine) or is constant (none).
        weight_decay: L2 penalty; with adamw it is decoupled from the gradient.
        label_smoothing: Share of each target that is spread over all classes.
        class_weights: balanced weights the training loss of each class by the inverse of its share of the training
            texts; null weights all texts equally.
        class_counts: Number of training texts of each class, for class_weights.
    """

    def __init__(
        self,
        class_names: list[str],
        tokenizer: str,
        cell: Cell = "lstm",
        embedding: PositiveInt = 256,
        hidden: PositiveInt = 128,
        layers: PositiveInt = 1,
        filters: PositiveInt = 256,
        dropout: Dropout = 0.5,  # type: ignore[valid-type]
        lr: PositiveFloat = 0.003,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
        label_smoothing: ClosedUnitInterval = 0.0,
        class_weights: Literal["balanced"] | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        vocab_size, num_classes = Tokenizer.from_str(tokenizer).get_vocab_size(), len(class_names)
        self.network = RNN(vocab_size, num_classes, cell, embedding, hidden, layers, filters, dropout)
        self.example_input_array = torch.tensor([[1, 3, 4, 5], [1, 6, 0, 0]])
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.training_criterion = self.criterion
        if class_weights:
            if class_counts is None:
                raise MisconfigurationException("--model.class_weights balanced needs --model.class_counts")
            counts = torch.tensor(class_counts, dtype=torch.float32).clamp(min=1)
            balance = counts.sum() / (len(counts) * counts)
            self.training_criterion = nn.CrossEntropyLoss(balance, label_smoothing=label_smoothing)
        self.acc = MulticlassAccuracy(num_classes, average="micro")
        self.f1 = MulticlassF1Score(num_classes)
        self.balanced_acc = MulticlassAccuracy(num_classes, average="macro")
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.per_class = MetricCollection(
            {
                "precision": MulticlassPrecision(num_classes, average="none"),
                "recall": MulticlassRecall(num_classes, average="none"),
                "f1": MulticlassF1Score(num_classes, average="none"),
            }
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L), int64, padded with 0, to logits (N, num_classes)."""
        return self.network(tokens)

    def on_fit_start(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            file = Path(self.trainer.default_root_dir, "tokenizer.json")
            file.write_text(self.hparams["tokenizer"], encoding="utf-8")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        tokens, targets = batch
        return self.training_criterion(self(tokens), targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def on_test_start(self) -> None:
        self.confusion.reset()
        self.per_class.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        logits, targets = self._step(batch, "test"), batch[1]
        self.confusion.update(logits, targets)
        self.per_class.update(logits, targets)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of scikit-learn's predictions for the same texts."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "baselines"):
            return
        targets = torch.tensor([target for _, target in data.test])
        for baseline, predicted in data.baselines().items():
            for name, metric in (("acc", self.acc), ("f1", self.f1)):
                self.log(f"test/{name}_{baseline}", metric.clone().cpu()(predicted, targets), sync_dist=True)

    def _step(self, batch: Batch, stage: str) -> Tensor:
        """Log the loss, accuracy, balanced accuracy and macro F1 score of a batch; return its logits."""
        tokens, targets = batch
        logits = self(tokens)
        metrics: dict[str, Any] = {f"{stage}/loss": self.criterion(logits, targets)}
        for name in ("acc", "balanced_acc", "f1"):
            metric = getattr(self, name)
            metric.update(logits, targets)
            metrics[f"{stage}/{name}"] = metric
        self.log_dict(metrics, prog_bar=True, batch_size=len(targets), sync_dist=True)
        return logits

    def predict_step(self, batch: tuple[Tensor, dict[str, list[str]]], batch_idx: int) -> dict[str, list[Any]]:
        """Add columns with the class and the probability of each text to the columns of the data module."""
        tokens, columns = batch
        probabilities = self(tokens).float().softmax(dim=1)
        probability, index = probabilities.max(dim=1)
        names = self.hparams["class_names"]
        all_of_each = [dict(zip(names, row, strict=True)) for row in probabilities.tolist()]
        classes = [names[i] for i in index]
        return columns | {"class": classes, "probability": probability.tolist(), "probabilities": all_of_each}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        return make_optimizer(self, h["optimizer"], h["lr"], h["weight_decay"], h["scheduler"])

    def per_class_rows(self) -> list[dict[str, Any]]:
        """Precision, recall and F1 score of each class in the last test, and its number of test texts as support."""
        metrics = self.per_class.compute()
        columns: dict[str, list[Any]] = {}
        for name in ("precision", "recall", "f1"):
            columns[name] = [round(value, 4) for value in metrics[name].tolist()]
        columns["support"] = self.confusion.compute().sum(dim=1).tolist()
        rows = zip(self.hparams["class_names"], *columns.values(), strict=True)
        return [dict(zip(("class", *columns), row, strict=True)) for row in rows]

    def figures(self) -> dict[str, Any]:
        """Figures and tables of the last test by file name."""
        counts = self.confusion.compute().tolist()
        confusion = draw_confusion(counts, self.hparams["class_names"])
        return {"confusion_matrix": confusion, "per_class": self.per_class_rows()}


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
