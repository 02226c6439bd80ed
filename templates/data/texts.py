"""Texts and their classes from a CSV file, or surnames of ten languages from Faker's lists."""

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from faker.providers import person
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from data.tables import read_table, read_text, refuse

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
    """Removes case, accents and repeated white space; copies of a text are equal afterwards."""
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


def split_of(group: str) -> str:
    """The split of a text: 70% train, 10% val, 20% test. It depends only on the text."""
    digit = int(sha256(group.encode()).hexdigest(), 16) % 10
    return "test" if digit < 2 else "val" if digit == 2 else "train"


def pad_batch(samples: list[Sample]) -> tuple[Tensor, Any]:
    """Makes a batch: tokens (N, L), int64, padded with 0 to the longest text, and classes (N,) or lists of columns."""
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
        csv: CSV or TSV file with a header, relative to the project's root; null uses the surnames.
        text: Column of the texts.
        label: Column of the classes.
        encoding: Encoding of the file, such as utf-8 or cp1252.
        separator: Character between fields; null detects it.
        vocab_size: Number of tokens, at least 258; null takes one for every 200 bytes of training text, from 384 to
            16,000.
        max_length: Largest number of tokens of a text; the rest is cut off.
        batch_size: Texts per step and device.
        num_workers: Processes that make batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # texts, files of texts, or - for standard input, to predict

    def __init__(
        self,
        csv: str | None = None,
        text: str = "text",
        label: str = "label",
        encoding: str = "utf-8",
        separator: str | None = None,
        vocab_size: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        batch_size: PositiveInt = 64,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.file = ROOT / Path(csv).expanduser() if csv else None
        self.batch_size, self.num_workers = batch_size, num_workers

    @cached_property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The texts of train, val and test, in columns text and label.

        Raises:
            OSError: The file cannot be read, labels are missing, or there are too few texts.
        """
        if self.file:
            frame = self._read(self.file, [self.hparams["text"], self.hparams["label"]])
            groups = frame["text"].map(normalise)
        else:
            frame = load_surnames()
            groups = frame["text"].map(lambda name: normalise(name)[:STEM])
        split = groups.map(split_of)
        splits = {name: frame[split == name] for name in ("train", "val", "test")}
        labels = frame["label"]
        problems = [f"line {line}: the label is empty" for line in frame.index[labels.str.strip() == ""]]
        untrained = sorted(set(labels) - set(splits["train"]["label"]))
        problems += [f"class {name!r} has too few different texts to train on" for name in untrained if name.strip()]
        problems += [f"too few different texts for {name}" for name, part in splits.items() if part.empty]
        if labels.nunique() < 2:
            problems.append("found one class, need at least two")
        refuse(self.file, problems)
        return splits

    def _read(self, file: Path, columns: list[str]) -> pd.DataFrame:
        """Reads columns of a file as text."""
        options = {"dtype": str, "keep_default_na": False}
        frame = read_table(file, self.hparams["encoding"], self.hparams["separator"], **options)
        hint = f"the columns are {', '.join(frame)}; set --data.text or --data.label"
        refuse(file, [f"there is no column {name!r}: {hint}" for name in columns if name not in frame])
        return frame[columns].rename(columns={self.hparams["text"]: "text", self.hparams["label"]: "label"})

    @cached_property
    def class_names(self) -> list[str]:
        return sorted(self.splits["train"]["label"].unique())

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
            self.predict = self._read_inputs() if self.inputs else self._some_test_samples()
            return
        self.train, self.val, self.test = (self._samples(part) for part in self.splits.values())

    def _samples(self, frame: pd.DataFrame) -> list[Sample]:
        """Tokens and class of each text."""
        unknown = sorted(set(frame["label"]) - set(self.class_names))
        refuse(self.file, [f"the model does not know class {name!r}" for name in unknown])
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
        """The texts of a CSV file, the lines of a text file or of standard input, or the given text itself."""
        file = Path(given)
        if given == "-":
            return sys.stdin.read().splitlines()
        if file.suffix.lower() in (".csv", ".tsv"):
            return self._read(file, [self.hparams["text"]])["text"].tolist()
        if file.suffix.lower() == ".txt":
            return read_text(file, self.hparams["encoding"]).splitlines()
        return [given]

    def _some_test_samples(self) -> list[Sample]:
        test = self.splits["test"]
        chosen = test.sample(min(8, len(test)), random_state=0)
        columns = [{"input": row.text, "truth": row.label} for row in chosen.itertuples()]
        return self._encode(chosen["text"], columns)

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
