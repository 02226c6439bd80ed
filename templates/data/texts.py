"""Texts and their classes from a CSV file, or surnames of ten languages from Faker's lists."""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from faker.providers import person
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from data.splits import AtLeastTwo, check_fold, make_splits
from data.tables import Header, Quotes, find_splits, read_json, read_table, read_text, refuse, warn_of_guesses

ROOT = Path(__file__).resolve().parents[1]
LOCALES = {
    "Croatian": ["hr_HR"],
    "Dutch": ["nl_NL"],
    "English": ["en_GB", "en_US"],
    "Finnish": ["fi_FI"],
    "French": ["fr_FR"],
    "German": ["de_DE", "de_AT"],
    "Irish": ["ga_IE"],
    "Italian": ["it_IT"],
    "Slovak": ["sk_SK"],
    "Spanish": ["es_ES"],
}
STEM = 5  # letters; surnames with the same stem, such as Novák and Nováková, are in the same split
POOL = 50  # batches whose texts are sorted by length together
Sample = tuple[Tensor, Any]  # tokens (L,), int64, and the class or the columns to print


def normalise(text: str) -> str:
    """Remove case, accents and repeated white space; copies of a text are equal afterwards."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).split())


def load_surnames() -> pd.DataFrame:
    """Faker's surnames in columns text and label, without those that occur in two languages."""
    languages: dict[str, dict[str, str]] = {}
    for language, locales in LOCALES.items():
        for locale in locales:
            names = import_module(f"{person.__name__}.{locale}").Provider.last_names
            languages.setdefault(language, {}).update({normalise(name): name for name in sorted(set(names))})
    count = Counter(key for names in languages.values() for key in names)
    rows = []
    for language, names in languages.items():
        rows += [(name, language) for key, name in sorted(names.items()) if count[key] == 1]
    return pd.DataFrame(rows, columns=["text", "label"])


def pad_batch(samples: list[Sample]) -> tuple[Tensor, Any]:
    """Make a batch: tokens (N, L), int64, padded with 0 to the longest text, and classes (N,) or list of columns."""
    tokens, rest = zip(*samples, strict=True)
    return pad_sequence(list(tokens), batch_first=True), default_collate(list(rest))


class LengthSampler(Sampler[int]):
    """Random order in which the texts of a batch have similar lengths, so that they need little padding."""

    def __init__(self, lengths: list[int], batch_size: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self)).tolist()
        pool_size = POOL * self.batch_size
        batches = []
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=lambda index: self.lengths[index])
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        last = batches.pop()  # may be smaller, so it has to stay the last one
        for i in torch.randperm(len(batches)).tolist():
            yield from batches[i]
        yield from last


class MyDataModule(LightningDataModule):
    """Texts as tokens in memory: 70% train, 10% val, 20% test; copies of a text are in the same split.

    A batch is a pair: tokens (N, L), int64, padded with 0, and classes (N,), int64.

    Args:
        csv: CSV or TSV file, or folder with one for train and perhaps val and test, relative to the project's root;
            null uses the surnames.
        text: Column of the texts, or several with commas between them, which are joined.
        label: Column of the classes, or of their numbers if there is a file classes.txt with a name per line.
        header: "none" if the first row is data, "first" if it holds the names of the columns; null is like "first", but
            a first row that looks like data is an error.
        quotes: csv if quotes enclose fields, literal if they are characters; null finds it.
        separator: Character between fields, or the word "tab" or "blank" (space); null detects it.
        encoding: Encoding of the file, such as cp1252; null detects it.
        vocab_size: Number of tokens, at least 258; null takes one for every 200 bytes of training text, from 384 to
            16,000.
        max_length: Largest number of tokens of a text; the rest is cut off.
        folds: Number of folds that take the place of train and val; the test split stays.
        fold: Fold used for validation, from 1 to `folds`; the others are used for training.
        batch_size: Texts per step and device.
        num_workers: Processes that make batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # texts, files of texts, or - for standard input, to predict
    predict_split: str | None = None  # split that is predicted completely if there are no inputs

    def __init__(
        self,
        csv: str | None = None,
        text: str = "text",
        label: str = "label",
        header: Header | None = None,
        quotes: Quotes | None = None,
        separator: str | None = None,
        encoding: str | None = None,
        vocab_size: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        folds: AtLeastTwo | None = None,  # type: ignore[valid-type]
        fold: PositiveInt | None = None,
        batch_size: PositiveInt = 64,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        check_fold(folds, fold)
        self.file = ROOT / Path(csv).expanduser() if csv else None
        self.batch_size, self.num_workers = batch_size, num_workers
        self.notes: list[str] = []

    @cached_property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The texts of train, val and test, in columns text and label. Those without a file come from train.

        Raises:
            OSError: A file cannot be read, labels are missing, or there are too few texts.
        """
        parts = self._read_parts() if self.file else {"train": load_surnames()}
        frame = pd.concat(parts.values())
        given = pd.Series(np.concatenate([np.full(len(part), name) for name, part in parts.items()]), frame.index)
        frame, given = self._leave_out_unlabelled(frame, given)
        split = make_splits(
            [normalise(text)[: None if self.file else STEM] for text in frame["text"]],
            frame["label"].tolist(),
            given.tolist(),
            folds=self.hparams["folds"],
            fold=self.hparams["fold"],
        )
        splits = {name: frame[split == name] for name in ("train", "val", "test")}
        labels = frame["label"]
        untrained = sorted(set(labels) - set(splits["train"]["label"]))
        problems = [f"class {name!r} has too few different texts to train on" for name in untrained]
        problems += [f"too few different texts for {name}" for name, part in splits.items() if part.empty]
        if labels.nunique() < 2:
            problems.append("found one class, need at least two")
        refuse(self.file, problems)
        return splits

    def _leave_out_unlabelled(self, frame: pd.DataFrame, split: pd.Series) -> tuple[pd.DataFrame, pd.Series]:
        """The rows with a label.

        Raises:
            OSError: More than a tenth have none.
        """
        empty = frame["label"].str.strip() == ""
        if empty.mean() > 0.1:
            refuse(self.file, [f"line {line}: the label is empty" for line in frame.index[empty]])
        if empty.any():
            self.notes.append(f"{empty.sum()} rows without a label are left out")
        return frame[~empty], split[~empty]

    def _read_parts(self) -> dict[str, pd.DataFrame]:
        """The texts and labels of each file by split; those of a single file are all in train."""
        assert self.file
        files = find_splits(self.file) if self.file.is_dir() else {"train": self.file}
        parts = {split: self._read(file, split == "train") for split, file in files.items()}
        for split in [split for split, part in parts.items() if "label" not in part]:
            self.notes.append(f"{files[split].name} is left out, as it has no column of labels")
            del parts[split]
        if len(files) > 1:
            for split, part in parts.items():
                part.index = pd.Index([f"{line} of {files[split].name}" for line in part.index])
        names = (self.file if self.file.is_dir() else self.file.parent) / "classes.txt"
        labels = pd.concat([part["label"] for part in parts.values()]).str.strip()
        if names.is_file() and labels[labels != ""].str.fullmatch(r"\d+").all():
            self._name_classes(parts, names, labels[labels != ""].astype(int))
        return parts

    def _name_classes(self, parts: dict[str, pd.DataFrame], file: Path, numbers: pd.Series) -> None:
        """Replace labels that are numbers by the lines of a file, counted from 0 or from 1.

        Raises:
            OSError: The labels do not tell from which, or there are too few lines.
        """
        names = read_text(file, self.hparams["encoding"], self.notes).split("\n")
        names = [name.strip() for name in names if name.strip()]
        if numbers.min() > 0 and numbers.max() < len(names):
            problem = f"the labels are {numbers.min()} to {numbers.max()}, which may count these names from 0 or 1"
            refuse(file, [problem])
        first = int(numbers.min() > 0)
        if numbers.max() >= len(names) + first:
            refuse(file, [f"there are {len(names)} names, too few for label {numbers.max()}"])
        index = {str(i + first): name for i, name in enumerate(names)}
        for split, part in parts.items():
            labels = part["label"].str.strip()
            parts[split] = part.assign(label=labels.map(lambda label: index[str(int(label))] if label else ""))
        self.notes.append(f"labels are lines of {file.name}, counted from {first}")

    def _read(self, file: Path, labelled: bool) -> pd.DataFrame:
        """A table with the columns text and, if there is one or `labelled`, label."""
        text, label = self.hparams["text"], self.hparams["label"]
        frame = read_table(file, self.notes, [text, *text.split(","), label], self.hparams)
        if self.hparams["header"] == "none" and {text, label}.isdisjoint(frame) and len(frame.columns) <= 2:
            lengths = frame.apply(lambda column: column.str.len().mean())
            names = {lengths.idxmin(): label} if len(lengths) > 1 else {}
            frame = frame.rename(columns=names | {lengths.idxmax(): text})
            self.notes.append(f"of the columns of {file.name}, the longer one is read as texts")
        columns = [text] if text in frame else text.split(",")
        hint = f"the columns are {', '.join(frame)}; set --data.text or --data.label"
        needed = [*columns, *([label] if labelled else [])]
        refuse(file, [f"there is no column {name!r}: {hint}" for name in needed if name not in frame])
        joined = frame[columns].agg(" ".join, axis=1) if len(columns) > 1 else frame[columns[0]]
        return pd.DataFrame({"text": joined} | ({"label": frame[label].str.strip()} if label in frame else {}))

    @cached_property
    def class_names(self) -> list[str]:
        return sorted(self.splits["train"]["label"].unique())

    @cached_property
    def class_counts(self) -> list[int]:
        """Number of training texts of each class."""
        return self.splits["train"]["label"].value_counts()[self.class_names].tolist()

    @cached_property
    def tokenizer(self) -> str:
        """A byte-level BPE of the training texts, as JSON. Token 0 is padding, token 1 is the first of every text."""
        texts = self.splits["train"]["text"]
        size = sum(len(text.encode()) for text in texts) // 200
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.hparams["vocab_size"] or min(max(size, 384), 16_000),
            special_tokens=["[PAD]", "[CLS]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A", special_tokens=[("[CLS]", 1)])
        tokenizer.enable_truncation(self.hparams["max_length"])
        return tokenizer.to_str()

    def setup(self, stage: str) -> None:
        if stage == "predict":
            self.predict = self._read_inputs() if self.inputs else self._known_samples()
            warn_of_guesses(self.notes)
            return
        if stage == "fit":
            rank_zero_only(print)(self.report(), flush=True)
        self.train, self.val, self.test = (self._samples(part) for part in self.splits.values())

    def report(self) -> str:
        """Summary of the data: texts and classes, and a line for each decision that was made."""
        counts = pd.concat(self.splits.values())["label"].value_counts()
        sizes = ", ".join(f"{len(part)} {name}" for name, part in self.splits.items())
        if self.hparams["folds"]:
            sizes += f", fold {self.hparams['fold']} of {self.hparams['folds']}"
        lines = [
            f"data: {self.file or 'the embedded surnames'}, {counts.sum()} texts: {sizes}",
            f"{len(counts)} classes: {', '.join(f'{name} ({count})' for name, count in counts[:20].items())}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in dict.fromkeys(self.notes))])

    def _samples(self, frame: pd.DataFrame) -> list[Sample]:
        """Tokens and class of each text."""
        unknown = sorted(set(frame["label"]) - set(self.class_names))
        hint = "has no training texts: add some, or remove its texts"
        refuse(self.file, [f"class {name!r} {hint}" for name in unknown])
        index = {name: i for i, name in enumerate(self.class_names)}
        return self._encode(frame["text"], [index[label] for label in frame["label"]])

    def _encode(self, texts: Sequence[str], rest: Sequence[Any]) -> list[Sample]:
        """Samples with the tokens of texts; an empty text has one token."""
        encodings = Tokenizer.from_str(self.tokenizer).encode_batch(list(texts))
        return [(torch.tensor(encoding.ids), each) for encoding, each in zip(encodings, rest, strict=True)]

    def _read_inputs(self) -> list[Sample]:
        """The texts to predict, each with the columns to print before its prediction."""
        texts = [text for given in self.inputs for text in self._read_input(given)]
        if not texts:
            raise OSError(f"no texts to predict in {', '.join(self.inputs)}")
        return self._encode(texts, [{"input": text} for text in texts])

    def _read_input(self, given: str) -> list[str]:
        """The texts of a table or JSON list, the lines of a .txt file or of standard input, or the given text."""
        file, suffix = Path(given), Path(given).suffix.lower()
        if given == "-":
            return [line.rstrip("\n") for line in sys.stdin]
        if suffix == ".txt":
            text = read_text(file, self.hparams["encoding"], self.notes)
            return [line.rstrip("\n") for line in StringIO(text, newline=None)]
        if suffix == ".json":
            return read_json(file, str)
        if suffix in (".csv", ".tsv") or os.path.exists(given):  # which is false for a text that cannot be a path
            return self._read(file, False)["text"].tolist()
        return [given]

    def _known_samples(self) -> list[Sample]:
        """All samples of `predict_split`; at most eight test samples if it is None."""
        chosen = self.splits[self.predict_split or "test"]
        if self.predict_split is None:
            chosen = chosen.sample(min(8, len(chosen)), random_state=0)
        columns = [{"input": row.text, "truth": row.label} for row in chosen.itertuples()]
        return self._encode(chosen["text"], columns)

    def baselines(self) -> dict[str, Tensor]:
        """Classes of the test texts, (N,) int64, by logistic regression on TF-IDF, fitted to the training texts.

        The features are words and pairs of words, or 2 to 5 characters within words, by the accuracy on val.
        """
        train, val, test = (self.splits[name] for name in ("train", "val", "test"))
        words = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, max_features=50_000
        )
        letters = TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", sublinear_tf=True, max_features=50_000)
        fitted = []
        for features in (words, letters):
            pipeline = make_pipeline(features, LogisticRegression(C=10, max_iter=300))
            fitted.append(pipeline.fit(train["text"], train["label"]))
        best = max(fitted, key=lambda pipeline: pipeline.score(val["text"], val["label"]))
        index = {name: i for i, name in enumerate(self.class_names)}
        return {"tfidf": torch.tensor([index[label] for label in best.predict(test["text"])])}

    def train_dataloader(self) -> DataLoader:
        sampler = LengthSampler([len(tokens) for tokens, _ in self.train], self.batch_size)
        return self._loader(self.train, sampler)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: Dataset | list, sampler: Sampler | None = None) -> DataLoader:
        return DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=pad_batch,
        )
