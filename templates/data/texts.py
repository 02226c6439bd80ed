"""Texts and their classes from a CSV file; without one, surnames of ten languages from Faker's lists."""

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import pandas as pd
import torch
from faker.providers import person
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_convert

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
STEM = 5  # letters; surnames that begin alike, such as Novák and Nováková, share a split
POOL = 50  # batches' worth of texts that are sorted by length before they are cut into batches


def normalise(text: str) -> str:
    """The text without case, accents and runs of white space: what two copies of a text have in common."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).split())


def load_surnames() -> pd.DataFrame:
    """Columns text and label: Faker's surnames, without those that occur in two languages."""
    languages: dict[str, dict[str, str]] = {}
    for language, locales in LOCALES.items():
        for locale in locales:
            names = import_module(f"{person.__name__}.{locale}").Provider.last_names
            languages.setdefault(language, {}).update({normalise(name): name for name in sorted(set(names))})
    count = Counter(key for names in languages.values() for key in names)
    rows = [
        (name, language)
        for language, names in languages.items()
        for key, name in sorted(names.items())
        if count[key] == 1
    ]
    return pd.DataFrame(rows, columns=["text", "label"])


def split_of(group: str) -> str:
    """The split of a text, which depends on nothing else: 70% train, 10% val, 20% test."""
    digit = int(sha256(group.encode()).hexdigest(), 16) % 10
    return "test" if digit < 2 else "val" if digit == 2 else "train"


class TextDataset(Dataset):
    """Token indices of texts, each a list, followed by the classes if there are targets; read by the batch."""

    def __init__(self, tokens: list[list[int]], targets: Tensor | None = None) -> None:
        self.tokens, self.targets = tokens, targets

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Tokens (N, L) int64, padded with 0 to the longest, and classes (N,) int64."""
        chosen = [self.tokens[i] for i in indices]
        length = max(map(len, chosen))
        padded = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens in chosen])
        return (padded,) if self.targets is None else (padded, self.targets[indices])


class LengthSampler(DistributedSampler):
    """Random order in which texts of similar length follow each other, batch by batch, so that little is padded."""

    def __init__(self, dataset: TextDataset, replicas: int, rank: int, batch_size: int) -> None:
        super().__init__(dataset, replicas, rank)
        self.lengths, self.batch_size = list(map(len, dataset.tokens)), batch_size

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        size = POOL * self.batch_size
        batches = []
        for start in range(0, len(order), size):
            pool = sorted(order[start : start + size], key=self.lengths.__getitem__)
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []  # else it would shift the others
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
        return iter([index for batch in shuffled + last for index in batch])


class MyDataModule(LightningDataModule):
    """Texts as tokens in memory, split by what they say: 70% train, 10% val, 20% test; copies stay together.

    Args:
        csv: CSV or TSV file with a header; null takes the surnames. A relative path starts at the project's root.
        text: Column of the texts.
        label: Column of their classes.
        encoding: Of the file, such as utf-8 or cp1252.
        separator: Character between fields; null finds out.
        vocab_size: Number of tokens, at least 258; null takes one for every 200 bytes to train on, from 384 to 16,000.
        max_length: Tokens of a text that are read.
        batch_size: Texts a step on each device.
        num_workers: Processes that fetch batches; 0 is fastest for data in memory.
    """

    MODEL_ARGUMENTS = ("class_names", "tokenizer")

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
        self.inputs: Sequence[str] = ()  # texts, files of texts, or - for standard input, to predict

    @cached_property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The texts of train, val and test, with columns text and label.

        Raises:
            OSError: The file cannot be used.
        """
        if self.file:
            frame = self.read(self.file, [self.hparams["text"], self.hparams["label"]])
            groups = frame["text"].map(normalise)
        else:
            frame = load_surnames()
            groups = frame["text"].map(lambda name: normalise(name)[:STEM])
        problems = [f"line {line}: the label is empty" for line in frame.index[frame["label"].str.strip() == ""]]
        split = groups.map(split_of)
        splits = {name: frame[split == name] for name in ("train", "val", "test")}
        missing = sorted(set(frame["label"]) - set(splits["train"]["label"]))
        problems += [f"class {name!r} has too few different texts to train on" for name in missing if name.strip()]
        if frame["label"].nunique() < 2:
            problems.append("there is one class alone, where two are the least")
        problems += [f"too few different texts for {name}" for name, part in splits.items() if part.empty]
        refuse(self.file, problems)
        return splits

    def read(self, file: Path, columns: list[str]) -> pd.DataFrame:
        """The named columns of a file, as text."""
        options = {"dtype": str, "keep_default_na": False}
        frame = read_table(file, self.hparams["encoding"], self.hparams["separator"], **options)
        unknown = [name for name in columns if name not in frame]
        there = ", ".join(frame)
        refuse(file, [f"there is no column {name!r} among {there}: see --data.text, --data.label" for name in unknown])
        names = {self.hparams["text"]: "text", self.hparams["label"]: "label"}
        return frame[columns].rename(columns=names)

    @cached_property
    def class_names(self) -> list[str]:
        return sorted(self.splits["train"]["label"].unique())

    @cached_property
    def tokenizer(self) -> str:
        """A byte-level BPE trained on the training texts, as JSON; token 0 pads, and token 1 begins every text."""
        texts = self.splits["train"]["text"]
        size = self.hparams["vocab_size"] or min(max(sum(len(text.encode()) for text in texts) // 200, 384), 16_000)
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = ByteLevel()
        tokenizer.decoder = ByteLevelDecoder()
        special = ["[PAD]", "[CLS]"]
        trainer = BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
        tokenizer.enable_truncation(self.hparams["max_length"])
        return tokenizer.to_str()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text; an empty one has the first token alone."""
        return [encoding.ids for encoding in Tokenizer.from_str(self.tokenizer).encode_batch(list(texts))]

    def setup(self, stage: str) -> None:
        if not (stage == "predict" and self.inputs):
            self.train, self.val, self.test = (self._dataset(frame) for frame in self.splits.values())
        if stage == "predict":
            self.setup_predict()

    def _dataset(self, frame: pd.DataFrame) -> TextDataset:
        index = {name: i for i, name in enumerate(self.class_names)}
        targets = torch.tensor([index[name] for name in frame["label"]])
        return TextDataset(self.encode(frame["text"]), targets)

    def setup_predict(self) -> None:
        """Reads `inputs`, or takes a few test texts; `predict_columns` shows each of them."""
        texts = [text for given in self.inputs for text in self._read_input(given)]
        self.predict_columns = [{"input": text} for text in texts]
        if not self.inputs:
            chosen = self.splits["test"].sample(8, random_state=0, replace=len(self.splits["test"]) < 8)
            texts = chosen["text"].tolist()
            self.predict_columns = [
                {"input": text, "truth": label} for text, label in zip(texts, chosen["label"], strict=True)
            ]
        self.predict = TextDataset(self.encode(texts))

    def _read_input(self, given: str) -> list[str]:
        """The texts of a CSV file's column, the lines of another file or of standard input, or a text itself."""
        file = Path(given)
        if given == "-":
            return sys.stdin.read().splitlines()
        if file.suffix.lower() in (".csv", ".tsv"):
            return self.read(file, [self.hparams["text"]])["text"].tolist()
        if file.suffix.lower() == ".txt":
            return read_text(file, self.hparams["encoding"]).splitlines()
        return [given]

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: TextDataset, shuffle: bool = False) -> DataLoader:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # On one device too: its order depends on the epoch alone, not on what ran before.
        sampler = (
            LengthSampler(dataset, replicas, rank, self.batch_size)
            if shuffle
            else DistributedSampler(dataset, replicas, rank, shuffle=False)
        )
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=default_convert,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
