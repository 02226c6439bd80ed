"""A transformer for texts, and its LightningModule."""

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
CONVOLUTIONS = (1, 2, 3)  # numbers of tokens that a filter sees
Dropout = restricted_number_type("Dropout", float, [(">=", 0), ("<", 1)])


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


class Transformer(nn.Module):
    """Embedding with learned positions, encoder layers that normalise first, mean over time, linear layer.

    The convolutions and the scores of n-grams find words and phrases, for which the encoder needs far more texts.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        max_length: int,
        width: int,
        heads: int,
        layers: int,
        filters: int,
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
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, filters, length, padding=length - 1) for length in CONVOLUTIONS
        )
        self.linear = nn.Linear(width + filters * len(CONVOLUTIONS), num_classes)
        self.ngrams = NgramScores(num_classes, longest=4)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded = self.dropout(self.embedding(tokens))
        outputs = self.encoder(embedded + self.positions(positions), src_key_padding_mask=padding)
        real = (~padding).unsqueeze(2)
        features = [(outputs * real).sum(dim=1) / real.sum(dim=1)]
        features += [layer(embedded.transpose(1, 2)).relu().amax(dim=2) for layer in self.convolutions]
        return self.linear(self.dropout(torch.cat(features, dim=1))) + self.ngrams(tokens)


class MyModel(LightningModule):
    """Transformer that classifies texts.

    Args:
        class_names: Name of each class.
        tokenizer: Tokenizer of the `tokenizers` library, as JSON.
        width: Size of a token's vector.
        heads: Number of attention heads; the width must be a multiple of it.
        layers: Number of encoder layers.
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

    Raises:
        MisconfigurationException: The width is not a multiple of the number of heads.
    """

    def __init__(
        self,
        class_names: list[str],
        tokenizer: str,
        width: PositiveInt = 256,
        heads: PositiveInt = 4,
        layers: PositiveInt = 2,
        filters: PositiveInt = 256,
        dropout: Dropout = 0.3,  # type: ignore[valid-type]
        lr: PositiveFloat = 0.002,
        optimizer: OptimizerName = "adamw",
        scheduler: SchedulerName = "onecycle",
        weight_decay: NonNegativeFloat = 0.01,
        label_smoothing: ClosedUnitInterval = 0.0,
        class_weights: Literal["balanced"] | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if width % heads:
            raise MisconfigurationException(f"--model.width {width} is not a multiple of --model.heads {heads}")
        tokens, num_classes = Tokenizer.from_str(tokenizer), len(class_names)
        max_length = tokens.truncation["max_length"]  # type: ignore[index]
        self.network = Transformer(
            tokens.get_vocab_size(), num_classes, max_length, width, heads, layers, filters, dropout
        )
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
