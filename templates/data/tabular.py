"""Rows of a CSV file, or scikit-learn's diabetes data: 442 patients, ten numbers each and a number to predict.

Source: B. Efron et al., Least Angle Regression, Annals of Statistics 32, 2004, https://doi.org/10.1214/009053604000000067
"""

import shlex
import warnings
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from pandas.api.types import is_numeric_dtype
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_convert

from data.splits import AtLeastTwo, check_fold, make_splits
from data.tables import (
    Header,
    convert_numbers,
    find_formats,
    find_forms,
    find_splits,
    mask_gaps,
    mostly_numbers,
    read_json_rows,
    read_table,
    refuse,
    warn,
    warn_of_guesses,
    warn_of_unused,
)

ROOT = Path(__file__).resolve().parents[1]
MISSING = "(missing)"  # category of the gaps in a column of categories
BOOLEANS = ("true", "false", "yes", "no")
MAX_CLASSES = 20  # a target with more distinct whole numbers is a quantity
ROWS_FOR_BINS = 5000  # fewer training rows get no bins
MAX_BINS = 64  # of a column
MAX_ALL_BINS = 4096  # of all columns
Task = Literal["regression", "binary", "multiclass"]
Features = tuple[Tensor, Tensor]  # scaled numbers and marks of gaps (N, F), float32; categories (N, C), int64


class BatchDataset(TensorDataset):
    """A `TensorDataset` that reads a whole batch with one indexing operation per tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


def as_categories(column: pd.Series) -> pd.Series:
    """Return the values as text: gaps become a category, and 2.0 becomes "2"."""
    texts = column.astype(object).where(column.notna(), MISSING).astype(str)
    return texts.str.replace(r"^([+-]?\d+)[.,]0$", r"\1", regex=True)


def spell_booleans(column: pd.Series) -> pd.Series:
    """Spell booleans that differ only in case, such as TRUE and true, in the most frequent way."""
    words = column[column.str.casefold().isin(BOOLEANS)]
    spellings = {word: group.mode()[0] for word, group in words.groupby(words.str.casefold())}
    return column.replace({word: spellings[word.casefold()] for word in words.unique()})


def to_codes(column: pd.Series, names: list[str]) -> pd.Series:
    """Return the index of each value in `names`, (N,); NaN for values that are not there.

    Upper and lower case are ignored for values that equal no name exactly.
    """
    texts = as_categories(column)
    index = {name: i for i, name in enumerate(names)}
    return texts.map(index).fillna(texts.str.casefold().map({name.casefold(): i for name, i in index.items()}))


class MyDataModule(LightningDataModule):
    """Rows of numbers and categories in memory: 70% train, 10% val, 20% test; equal rows of a file stay together.

    A batch is a triple: numbers (N, F), float32, scaled with mean and standard deviation of the training rows;
    categories (N, C), int64; and targets (N,), float32 in their own units or int64 classes.

    Args:
        csv: CSV file, or folder with a file for train and optionally files for val and test; a relative path starts at
            the project's root; null uses the diabetes data.
        target: Column to predict; null uses the last one.
        task: Kind of target; null treats text, booleans and up to 20 different whole numbers as classes.
        numeric: Columns to read as numbers in any case; values that are neither numbers nor gaps are errors.
        categorical: Columns to read as categories even if their values are numbers.
        ignore: Columns to leave out.
        missing: Further values that stand for gaps, such as ["-999"].
        decimal: Decimal sign, "." or ","; null finds it.
        header: "none" if the first row is data, "first" if it holds the names of the columns; null is like "first", but
            a first row that looks like data is an error.
        separator: Character between fields, or the word "tab" or "blank" (space); null detects it.
        encoding: Encoding of the file, such as cp1252; null detects it.
        folds: Number of folds that take the place of train and val; the test split stays.
        fold: Fold used for validation, from 1 to `folds`; the others are used for training.
        batch_size: Rows per step and device; null uses 1/32 of the training rows, at least 8, at most 128.
        num_workers: Processes that make batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # CSV files to predict
    predict_split: str | None = None  # split that is predicted completely if there are no inputs

    def __init__(
        self,
        csv: str | None = None,
        target: str | None = None,
        task: Task | None = None,
        numeric: list[str] | None = None,
        categorical: list[str] | None = None,
        ignore: list[str] | None = None,
        missing: list[str] | None = None,
        decimal: Literal[".", ","] | None = None,
        header: Header | None = None,
        separator: str | None = None,
        encoding: str | None = None,
        folds: AtLeastTwo | None = None,  # type: ignore[valid-type]
        fold: PositiveInt | None = None,
        batch_size: PositiveInt | None = None,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        check_fold(folds, fold)
        self.file = ROOT / Path(csv).expanduser() if csv else None
        self.batch_size, self.num_workers = batch_size or 128, num_workers
        self.notes: list[str] = []

    def _read(self, file: Path, named: Collection[str] = ()) -> pd.DataFrame:
        frame = read_table(file, self.notes, named, self.hparams).apply(lambda column: column.str.strip())
        *others, last = frame.iloc[:, 0].str.casefold()
        if others and last in ("total", "grand total", "sum", "summe", "gesamt") and last not in others:
            warn(f"the last row of {file.name} is left out, as it begins with {last!r}")
            return frame[:-1]
        return frame

    @cached_property
    def parts(self) -> dict[str, pd.DataFrame]:
        """The rows of each file as texts, by split; those of a single file are all in train."""
        if not self.file:
            return {"train": load_diabetes(as_frame=True, scaled=False).frame}
        files = find_splits(self.file) if self.file.is_dir() else {"train": self.file}
        keys = ("numeric", "categorical", "ignore")
        named = {self.hparams["target"]}.union(*(self.hparams[key] or [] for key in keys)) - {None}
        parts = {split: self._read(file, named) for split, file in files.items()}
        columns = list(parts["train"])
        hint = f"the columns are {', '.join(columns)}"
        refuse(files["train"], ["there is one column only: set --data.separator"] if len(columns) < 2 else [])
        refuse(files["train"], [f"there is no column {name!r}: {hint}" for name in sorted(named - {*columns})])
        target, ignored = self.hparams["target"] or columns[-1], self.hparams["ignore"] or []
        if target in ignored:
            refuse(self.file, [f"the target {target!r} is in --data.ignore: set another --data.target"])
        if not {*columns} - {target, *ignored}:
            refuse(self.file, [f"all columns except the target {target!r} are in --data.ignore: keep at least one"])
        for split in [split for split, part in parts.items() if target not in part]:
            self.notes.append(f"{files[split].name} is left out, as it has no column {target!r}")
            del parts[split]
        for split, part in parts.items():
            lacking = [name for name in columns if name not in (*part, *ignored)]
            hint = f"add it, or remove it from {files['train'].name}"
            refuse(files[split], [f"there is no column {name!r}: {hint}" for name in lacking])
            if len(files) > 1:
                part.index = pd.Index([f"{line} of {files[split].name}" for line in part.index])
        return parts

    @cached_property
    def texts(self) -> pd.DataFrame:
        """All rows before conversion, with the number of the line as the index; gaps are NaN, except in the target."""
        frame, target = pd.concat(self.parts.values()), self.target
        if self.file:  # in the target, None and NA may be classes
            warn_of_unused(frame, self.hparams["missing"])
            frame = mask_gaps(frame, self.hparams["missing"]).assign(**{target: frame[target]})
        return frame

    @cached_property
    def target(self) -> str:
        return self.hparams["target"] or self.parts["train"].columns[-1]

    @cached_property
    def forms(self) -> dict[str, str]:
        """Notation of the numbers in each column; see data/tables.py."""
        if not self.file:
            return dict.fromkeys(self.texts, ".")
        frame = self.texts.drop(columns=[*(self.hparams["categorical"] or []), *(self.hparams["ignore"] or [])])
        if self.target in frame:
            frame[self.target] = mask_gaps(frame[[self.target]], self.hparams["missing"])[self.target]
        forms = find_forms(self.file, frame, self.hparams["decimal"], self.hparams["numeric"] or [])
        for name in [name for name in frame if name not in (*forms, self.target)]:
            formats = find_formats(frame[name])
            if len(formats) == 1:
                forms[name] = formats[0]
            elif formats:
                hint = "write them as YYYY-MM-DD to use them as dates"
                warn(f"dates in {name!r} are read as categories, as they could be {' or '.join(formats)}: {hint}")
            elif mostly_numbers(frame[name]):
                hint = "set --data.missing to the texts that stand for gaps, or add the column to --data.numeric"
                self.notes.append(f"{name!r} is read as categories, but most values are numbers or dates: {hint}")
        return forms

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows that have a target, with numbers as float64.

        Raises:
            OSError: More than a tenth of the rows have no target, or values are invalid.
        """
        if not self.file:
            return self.texts
        frame, target = self.texts.copy(), self.target
        refuse(self.file, [f"there is no column {name!r}" for name in self.forms if name not in frame])
        if target in self.forms:
            frame[target] = mask_gaps(frame[[target]], self.hparams["missing"])[target]
        else:
            frame[target] = frame[target].mask(frame[target].isin(["", "?", r"\N", *(self.hparams["missing"] or [])]))
        advice = "correct them, use --data.categorical if the column holds categories"
        invalid = convert_numbers(frame, self.forms, self.hparams["missing"], advice)
        for name in frame.columns.drop([*self.forms]):
            frame[name] = spell_booleans(frame[name])
        lines = frame.index[frame[target].isna()]
        problems = [f"line {line}: {target!r} is missing" for line in lines] if len(lines) > 0.1 * len(frame) else []
        if problems:
            hint = "remove these rows, or set another --data.target"
            problems.insert(0, f"{len(lines)} of {len(frame)} rows, more than a tenth, have no target: {hint}")
        refuse(self.file, problems + invalid)
        if len(lines):
            self.notes.append(f"{len(lines)} rows without a value of {target!r} are left out")
        return frame[frame[target].notna()]

    @cached_property
    def task(self) -> str:
        """regression, binary or multiclass.

        Raises:
            OSError: The values of the target do not fit the configured task.
        """
        values = self.frame[self.target]
        count = as_categories(values).nunique()
        quantity = is_numeric_dtype(values)
        whole = quantity and (values % 1 == 0).all()
        task: str | None = self.hparams["task"]
        if task is None and quantity and not (whole and count <= MAX_CLASSES):
            task = "regression"
        elif task is None:
            task = "binary" if count == 2 else "multiclass"
        if task == "regression" and not quantity:
            refuse(self.file, [f"{self.target!r} is text, so --data.task cannot be regression"])
        if task == "multiclass" and count > len(values) / 2 > MAX_CLASSES / 2:
            hint = "set --data.target to another column, or write plain numbers without units"
            problem = f"{count} different values, such as '{values.iloc[0]}', too many for classes"
            refuse(self.file, [f"the target {self.target!r} has {problem}: {hint}"])
        if count < 2 or (task == "binary" and count != 2):
            needed = "two" if task == "binary" else "at least two"
            problem = f"the target {self.target!r} has {count} different values, but {task} needs {needed}"
            refuse(self.file, [f"{problem}: set another --data.target or --data.task"])
        return task

    @cached_property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The rows of train, val and test, at least two each. A split without a file is taken from train."""
        features, classes = self.frame.drop(columns=[self.target, *(self.hparams["ignore"] or [])]), None
        if self.task != "regression":
            classes = as_categories(self.frame[self.target]).tolist()
        given = np.concatenate([np.full(len(part), name) for name, part in self.parts.items()])
        split = make_splits(
            pd.util.hash_pandas_object(features, index=False).to_numpy(),
            classes,
            given[self.texts.index.isin(self.frame.index)],
            folds=self.hparams["folds"],
            fold=self.hparams["fold"],
        )
        splits = {name: self.frame[split == name] for name in ("train", "val", "test")}
        sizes = {name: len(part) for name, part in splits.items()}
        problems = [f"{size} rows are in {name}, at least two are needed" for name, size in sizes.items() if size < 2]
        if problems:
            problems.append("a single file needs at least twenty different rows")
        refuse(self.file, problems)
        return splits

    @cached_property
    def class_names(self) -> list[str]:
        """The values of the target in the training rows, sorted; empty for regression."""
        if self.task == "regression":
            return []
        return sorted(as_categories(self.splits["train"][self.target]).unique())

    @cached_property
    def class_counts(self) -> list[int]:
        """Number of training rows of each class."""
        return as_categories(self.splits["train"][self.target]).value_counts()[self.class_names].tolist()

    @cached_property
    def target_scale(self) -> list[float]:
        """Mean and standard deviation of the target in the training rows; 0 and 1 for classes."""
        return self._scale(self.target) if self.task == "regression" else [0.0, 1.0]

    @cached_property
    def numbers(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each column of numbers in the training rows."""
        return {name: self._scale(name) for name in self._features if is_numeric_dtype(self.frame[name])}

    def _scale(self, name: str) -> list[float]:
        values = self.splits["train"][name]
        return [float(values.mean()), float(values.std(ddof=0)) or 1.0]

    @cached_property
    def gaps(self) -> list[str]:
        """Columns of numbers with gaps in the training rows. Each gets an indicator, 1 for a gap."""
        return [name for name in self.numbers if self.splits["train"][name].isna().any()]

    @cached_property
    def bins(self) -> list[list[float]]:
        """Edges of the bins of each column of numbers, scaled; the bins of a column hold equally many distinct values.

        Empty if there are few training rows, because bins would overfit them.
        """
        train = self.splits["train"]
        if len(train) < ROWS_FOR_BINS:
            return []
        shares = np.linspace(0, 1, min(MAX_BINS, MAX_ALL_BINS // max(len(self.numbers), 1)) + 1)
        bins = []
        for name, (mean, std) in self.numbers.items():
            edges = np.quantile(train[name].dropna().unique(), shares, method="nearest")
            bins.append(np.unique(((edges - mean) / std).astype(np.float32)).tolist())
        return bins

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """The values of each column of categories in the training rows."""
        train = self.splits["train"]
        names = [name for name in self._features if name not in self.numbers]
        return {name: sorted(as_categories(train[name]).unique()) for name in names}

    @cached_property
    def _features(self) -> list[str]:
        """The columns to predict from. Constant columns are left out, and so is an index without a name.

        Other columns that look like an index cause a warning.
        """
        names = []
        for name in self.frame.columns.drop([self.target, *(self.hparams["ignore"] or [])]):
            values, parts = self.splits["train"][name], [part[name] for part in self.parts.values()]
            differ = all(part.is_unique for part in parts)
            if name == "Unnamed: 0" and differ:
                self.notes.append("the first column is left out, as it has no name and all its values are different")
                continue
            varies = values.nunique() > 1 or (values.nunique() == 1 and values.isna().any())
            if not varies:
                warn(f"column {name!r} is constant and left out")
                continue
            counts = all((pd.to_numeric(part, errors="coerce").diff()[1:] == 1).all() for part in parts)
            if differ and len(self.frame) > 20 and (counts or not is_numeric_dtype(values)):
                flag = shlex.quote(f"--data.ignore+={name}")
                warn(f"column {name!r} looks like row names or row numbers: {flag} leaves it out")
            names.append(name)
        if not names:
            hint = "all are constant, nameless or in --data.ignore"
            refuse(self.file, [f"no columns are left to predict {self.target!r} from: {hint}"])
        return names

    def setup(self, stage: str) -> None:
        if stage == "predict":
            self.predict = self._read_inputs()
            warn_of_guesses(self.notes)
            return
        if stage == "fit":
            rank_zero_only(print)(self.report(), flush=True)
            for name in ("val", "test"):
                self._warn_of_unknown(self.splits[name], name)
        self.train, self.val, self.test = (
            BatchDataset(*self.encode(frame), self.encode_targets(frame)) for frame in self.splits.values()
        )
        if self.hparams["batch_size"] is None:
            self.batch_size = min(max(len(self.train) // 32, 8), 128)

    def report(self) -> str:
        """Summary of the data: rows, target and columns, and a line for each note on how the file was read."""
        counts = as_categories(self.frame[self.target]).value_counts()[:20] if self.class_names else pd.Series()
        classes = ", ".join(f"{name} ({count})" for name, count in counts.items())
        forms = {name: f" ({form})" for name, form in self.forms.items() if form != "."}
        lines = [
            f"data: {self.file or 'the embedded data'}, {len(self.frame)} rows: "
            + ", ".join(f"{len(part)} {name}" for name, part in self.splits.items())
            + (f", fold {self.hparams['fold']} of {self.hparams['folds']}" if self.hparams["folds"] else ""),
            f"target: {self.target}{forms.get(self.target, '')}, {self.task}{': ' * bool(classes)}{classes}",
            f"numbers: {', '.join(name + forms.get(name, '') for name in self.numbers) or 'none'}",
            f"categories: {', '.join(self.categories) or 'none'}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in dict.fromkeys(self.notes))])

    def encode(self, frame: pd.DataFrame) -> Features:
        """Convert rows to tensors: numbers (N, F), then one indicator for each of `gaps`, and categories (N, C).

        A gap in a column of numbers becomes their mean. A category that is not in the training rows becomes 0.
        """
        numbers = frame[list(self.numbers)].astype(float)
        scale = np.array(list(self.numbers.values())).reshape(-1, 2)
        scaled = np.nan_to_num(((numbers.to_numpy() - scale[:, 0]) / scale[:, 1]).astype(np.float32))
        indicators = numbers[self.gaps].isna().to_numpy(np.float32)
        categories = np.zeros((len(frame), len(self.categories)), np.int64)
        for i, (name, values) in enumerate(self.categories.items()):
            categories[:, i] = to_codes(frame[name], values).fillna(-1) + 1
        return torch.from_numpy(np.hstack([scaled, indicators])), torch.from_numpy(categories)

    def _warn_of_unknown(self, frame: pd.DataFrame, source: str) -> None:
        """Print a warning for each column with categories that are not in the training rows."""
        for name, values in self.categories.items():
            unknown = as_categories(frame[name])[to_codes(frame[name], values).isna()]
            if len(unknown) and not source.endswith(".json"):  # rows in JSON may be requests to a server
                warn(f"{len(unknown)} values of {name!r} in {source}, such as {unknown.iloc[0]!r}, are not in train")

    def encode_targets(self, frame: pd.DataFrame) -> Tensor:
        """Convert targets to numbers in their own units, (N,) float32, or to classes, (N,) int64."""
        if self.task == "regression":
            return torch.tensor(frame[self.target].to_numpy(np.float32))
        codes = to_codes(frame[self.target], self.class_names)
        unknown = sorted(as_categories(frame[self.target])[codes.isna()].unique())
        hint = f"is a class of {self.target!r} in val or test, but not in train: add it to train, or remove its rows"
        refuse(self.file, [f"{name!r} {hint}" for name in unknown])
        return torch.tensor(codes.to_numpy(np.int64))

    def _read_inputs(self) -> list[tuple[Features, dict[str, str]]]:
        """Return the features of each row to predict, and the columns to print before its prediction.

        Without inputs, these are all rows of `predict_split`, or else the first rows of the test split.
        """
        frames = {file: self._read_input(Path(file)) for file in self.inputs}
        if not frames:
            split = self.predict_split or "test"
            frames[split] = self.splits[split][: None if self.predict_split else 8]
        has_truth = all(self.target in frame for frame in frames.values())
        samples: list[tuple[Features, dict[str, str]]] = []
        for file, frame in frames.items():
            columns = [{"input": f"{file}:{line}"} for line in frame.index]
            if has_truth:
                names = to_codes(frame[self.target], self.class_names).map(dict(enumerate(self.class_names)))
                truths = names.astype(object).fillna(as_categories(frame[self.target]))
                columns = [row | {"truth": truth} for row, truth in zip(columns, truths, strict=True)]
            features = zip(*self.encode(frame), strict=True)
            samples += zip(features, columns, strict=True)
        return samples

    def _read_input(self, file: Path) -> pd.DataFrame:
        used = [*self.numbers, *self.categories]
        texts = read_json_rows(file, self.forms) if file.suffix.lower() == ".json" else self._read(file, used)
        missing = [name for name in used if name not in texts]
        hint = "add it, with gaps where its values are unknown"
        refuse(file, [f"there is no column {name!r}, which the model uses: {hint}" for name in missing])
        frame = mask_gaps(texts, self.hparams["missing"])
        if self.target in texts and self.target not in self.forms:
            frame[self.target] = texts[self.target]
        refuse(file, convert_numbers(frame, {name: self.forms[name] for name in self.numbers}, self.hparams["missing"]))
        if self.target in frame and self.target in self.forms:  # a truth that is no number becomes a gap
            convert_numbers(frame, {self.target: self.forms[self.target]}, self.hparams["missing"])
        self._warn_of_unknown(frame, str(file))
        return frame

    def baselines(self) -> dict[str, Tensor]:
        """Predictions for the test rows by two models of scikit-learn that are fitted on the same training rows.

        Numbers (N,) or probabilities (N, num_classes).
        """
        train, test = (np.hstack(split.tensors[:2]) for split in (self.train, self.test))
        categories = list(range(train.shape[1] - len(self.categories), train.shape[1]))
        dummies = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), categories), remainder="passthrough")
        models: dict[str, Any]
        if self.task == "regression":
            boosting = HistGradientBoostingRegressor(random_state=0)
            models = {"ridge": make_pipeline(dummies, Ridge()), "boosting": boosting}
        else:
            logistic = make_pipeline(dummies, LogisticRegression(max_iter=1000))
            models = {"logistic": logistic, "boosting": HistGradientBoostingClassifier(random_state=0)}
        predictions = {}
        for name, model in models.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # close enough for a baseline
                model.fit(train, self.train.tensors[2].numpy())
            output = model.predict(test) if self.task == "regression" else model.predict_proba(test)
            predictions[name] = torch.tensor(output, dtype=torch.float32)
        return predictions

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: Dataset | list, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=default_convert if isinstance(dataset, BatchDataset) else None,
        )
