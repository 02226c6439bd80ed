"""Rows of a CSV file, or scikit-learn's diabetes data: 442 patients, ten numbers each and a number to predict.

Source: B. Efron et al., Least Angle Regression, Annals of Statistics 32, 2004, https://doi.org/10.1214/009053604000000067
"""

import sys
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_convert

from data.tables import read_table, refuse

ROOT = Path(__file__).resolve().parents[1]
MISSING = "(missing)"  # category of the gaps in a column of categories
MAX_CLASSES = 20  # a target with more different whole numbers is a quantity
Task = Literal["regression", "binary", "multiclass"]
Features = tuple[Tensor, Tensor]  # scaled numbers (N, F), float32, and categories (N, C), int64


class BatchDataset(TensorDataset):
    """A `TensorDataset` that reads a whole batch with one indexing operation per tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


def warn(message: str) -> None:
    rank_zero_only(print)(f"warning: {message}", file=sys.stderr)


def as_categories(column: pd.Series) -> pd.Series:
    """The values as text; gaps become a category, and whole numbers lose their fraction."""
    if is_numeric_dtype(column) and not is_bool_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    return column.astype(object).where(column.notna(), MISSING).astype(str)


def convert_numbers(frame: pd.DataFrame, names: list[str]) -> list[str]:
    """Converts columns of a frame to float64, with NaN for gaps. Returns the problems: values that are not numbers."""
    problems = []
    for name in names:
        values = pd.to_numeric(frame[name], errors="coerce").astype(float)
        wrong = frame[name].notna() & ~np.isfinite(values)
        problems += [f"line {i}: {name!r} is '{frame[name][i]}', not a number" for i in frame.index[wrong]]
        frame[name] = values
    return problems


def split_rows(features: pd.DataFrame, targets: pd.Series, stratify: bool) -> np.ndarray:
    """The split of each row: 70% train, 10% val, 20% test, and the same shares of each class with `stratify`.

    The split depends on the values of a row, not on the order of rows. Rows with equal features are in the same split.
    The first seven rows of a class are in train.
    """
    frame = pd.DataFrame({"group": pd.util.hash_pandas_object(features, index=False).to_numpy()})
    frame["stratum"] = targets.to_numpy() if stratify else 0
    groups = frame.drop_duplicates("group").sort_values("group")
    rank = groups.groupby("stratum").cumcount() % 10
    groups["split"] = np.select([rank < 7, rank == 7], ["train", "val"], "test")
    return frame["group"].map(groups.set_index("group")["split"]).to_numpy()


class MyDataModule(LightningDataModule):
    """Rows of numbers and categories in memory: 70% train, 10% val, 20% test.

    A batch is a triple: numbers (N, F), float32, scaled with mean and standard deviation of the training rows;
    categories (N, C), int64; and targets (N,), float32 in their own units or int64 classes.

    Args:
        csv: CSV file with a header, relative to the project's root; null uses the diabetes data.
        target: Column to predict; null uses the last one.
        task: Kind of target; null treats text, booleans and up to 20 different whole numbers as classes.
        numeric: Columns to read as numbers even if most of their values are not numbers.
        categorical: Columns to read as categories even if their values are numbers.
        ignore: Columns to leave out.
        encoding: Encoding of the file, such as utf-8 or cp1252.
        separator: Character between fields; null detects it.
        batch_size: Rows per step and device.
        num_workers: Processes that make batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # CSV files to predict

    def __init__(
        self,
        csv: str | None = None,
        target: str | None = None,
        task: Task | None = None,
        numeric: list[str] | None = None,
        categorical: list[str] | None = None,
        ignore: list[str] | None = None,
        encoding: str = "utf-8",
        separator: str | None = None,
        batch_size: PositiveInt = 128,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.file = ROOT / Path(csv).expanduser() if csv else None
        self.batch_size, self.num_workers = batch_size, num_workers

    def _read(self, file: Path) -> pd.DataFrame:
        return read_table(file, self.hparams["encoding"], self.hparams["separator"], na_values=["?"], low_memory=False)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All rows, with the line number in the file as the index.

        Raises:
            OSError: The file cannot be read, columns or targets are missing, or values are not numbers.
        """
        frame = self._read(self.file) if self.file else load_diabetes(as_frame=True, scaled=False).frame
        target = self.hparams["target"] or frame.columns[-1]
        named = {target}.union(*(self.hparams[key] or [] for key in ("numeric", "categorical", "ignore")))
        hint = f"the columns are {', '.join(frame)}"
        refuse(self.file, [f"there is no column {name!r}: {hint}" for name in sorted(named - set(frame))])
        problems = [f"line {line}: {target!r} is missing" for line in frame.index[frame[target].isna()]]
        numbers = [name for name in frame.columns.drop([target]) if self._is_number(name, frame[name])]
        refuse(self.file, problems + convert_numbers(frame, numbers))
        return frame

    def _is_number(self, name: str, column: pd.Series) -> bool:
        """Whether a column is to be read as numbers: as configured, or if nine of ten values are numbers."""
        if name in (self.hparams["numeric"] or []):
            return True
        if name in (self.hparams["categorical"] or []) or is_bool_dtype(column):
            return False
        values = column.dropna()
        return bool(pd.to_numeric(values, errors="coerce").notna().sum() >= max(0.9 * len(values), 1))

    @cached_property
    def target(self) -> str:
        return self.hparams["target"] or self.frame.columns[-1]

    @cached_property
    def task(self) -> str:
        """regression, binary or multiclass.

        Raises:
            OSError: The values of the target do not fit the configured task.
        """
        values = self.frame[self.target]
        count = values.nunique()
        quantity = is_numeric_dtype(values) and not is_bool_dtype(values)
        whole = quantity and (is_integer_dtype(values) or (values % 1 == 0).all())
        task: str | None = self.hparams["task"]
        if task is None and quantity and not (whole and count <= MAX_CLASSES):
            task = "regression"
        elif task is None:
            task = "binary" if count == 2 else "multiclass"
        if task == "regression" and not quantity:
            refuse(self.file, [f"{self.target!r} is text, so --data.task cannot be regression"])
        if count < 2 or (task == "binary" and count != 2):
            needed = "two" if task == "binary" else "two or more"
            refuse(self.file, [f"found {count} different values in {self.target!r}, {task} needs {needed}"])
        return task

    @cached_property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The rows of train, val and test.

        Raises:
            OSError: There are too few rows.
        """
        features, targets = self.frame.drop(columns=self.target), self.frame[self.target]
        split = split_rows(features, as_categories(targets), stratify=self.task != "regression")
        splits = {name: self.frame[split == name] for name in ("train", "val", "test")}
        if min(map(len, splits.values())) < 2:
            refuse(self.file, [f"{len(self.frame)} rows are too few, need at least twenty different ones"])
        return splits

    @cached_property
    def class_names(self) -> list[str]:
        """The values of the target in the training rows, sorted; empty for regression."""
        if self.task == "regression":
            return []
        return sorted(as_categories(self.splits["train"][self.target]).unique())

    @cached_property
    def target_scale(self) -> list[float]:
        """Mean and standard deviation of the target in the training rows; 0 and 1 for classes."""
        if self.task != "regression":
            return [0.0, 1.0]
        return self._scale(self.splits["train"][[self.target]])[self.target]

    @cached_property
    def numbers(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each column of numbers in the training rows."""
        return self._scale(self.splits["train"][[name for name in self._features if name not in self.categories]])

    @staticmethod
    def _scale(frame: pd.DataFrame) -> dict[str, list[float]]:
        if frame.empty:
            return {}
        scaler = StandardScaler().fit(SimpleImputer().fit_transform(frame))
        return {name: [float(m), float(s)] for name, m, s in zip(frame, scaler.mean_, scaler.scale_, strict=True)}

    @cached_property
    def gaps(self) -> list[str]:
        """Columns of numbers with gaps in the training rows. Each gets an indicator, 1 for a gap."""
        return [name for name in self.numbers if self.splits["train"][name].isna().any()]

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """The values of each column of categories in the training rows."""
        names = [name for name in self._features if not self._is_number(name, self.frame[name])]
        if not names:
            return {}
        encoder = OrdinalEncoder().fit(self.splits["train"][names].apply(as_categories))
        return {name: values.tolist() for name, values in zip(names, encoder.categories_, strict=True)}

    @cached_property
    def _features(self) -> list[str]:
        """The columns to predict from. Constant columns are left out; columns of row names or numbers are reported."""
        names = []
        for name in self.frame.columns.drop([self.target, *(self.hparams["ignore"] or [])]):
            values, column = self.splits["train"][name], self.frame[name].dropna()
            varies = values.nunique() > 1 or (values.nunique() == 1 and values.isna().any())
            if not varies:
                warn(f"column {name!r} is constant and left out")
                continue
            counts = is_numeric_dtype(column) and (column.diff()[1:] == 1).all()
            if (counts or not is_numeric_dtype(column)) and column.nunique() == len(column) > 20:
                warn(f"column {name!r} looks like a row name or number: --data.ignore+={name} leaves it out")
            names.append(name)
        if not names:
            refuse(self.file, ["no columns are left to predict from"])
        return names

    def setup(self, stage: str) -> None:
        if stage == "predict":
            self.predict = self._read_inputs()
            return
        self.train, self.val, self.test = (
            BatchDataset(*self.encode(frame), self.encode_targets(frame)) for frame in self.splits.values()
        )

    def encode(self, frame: pd.DataFrame) -> Features:
        """Converts rows to tensors: numbers (N, F), then one indicator for each of `gaps`, and categories (N, C).

        A gap in a column of numbers becomes their mean. A category that is not in the training rows becomes 0.
        """
        numbers = frame[list(self.numbers)].astype(float)
        scale = np.array(list(self.numbers.values())).reshape(-1, 2)
        scaled = np.nan_to_num(((numbers.to_numpy() - scale[:, 0]) / scale[:, 1]).astype(np.float32))
        indicators = numbers[self.gaps].isna().to_numpy(np.float32)
        categories = np.zeros((len(frame), len(self.categories)), np.int64)
        for i, (name, values) in enumerate(self.categories.items()):
            index = {value: j + 1 for j, value in enumerate(values)}
            categories[:, i] = as_categories(frame[name]).map(index).fillna(0)
        return torch.from_numpy(np.hstack([scaled, indicators])), torch.from_numpy(categories)

    def encode_targets(self, frame: pd.DataFrame) -> Tensor:
        """Converts targets to numbers in their own units, (N,) float32, or to classes, (N,) int64."""
        if self.task == "regression":
            return torch.tensor(frame[self.target].to_numpy(np.float32))
        names = as_categories(frame[self.target])
        unknown = sorted(set(names) - set(self.class_names))
        refuse(self.file, [f"the model does not know class {name!r}" for name in unknown])
        index = {name: i for i, name in enumerate(self.class_names)}
        return torch.tensor(names.map(index).to_numpy(np.int64))

    def _read_inputs(self) -> list[tuple[Features, dict[str, str]]]:
        """The rows to predict, by default some test rows, each with the columns to print before its prediction."""
        frames = {file: self._read_input(Path(file)) for file in self.inputs} or {"test": self.splits["test"][:8]}
        has_truth = all(self.target in frame for frame in frames.values())
        samples: list[tuple[Features, dict[str, str]]] = []
        for file, frame in frames.items():
            columns = [{"input": f"{file}:{line}"} for line in frame.index]
            if has_truth:
                truths = frame[self.target] if self.task == "regression" else as_categories(frame[self.target])
                columns = [row | {"truth": str(truth)} for row, truth in zip(columns, truths, strict=True)]
            features = zip(*self.encode(frame), strict=True)
            samples += zip(features, columns, strict=True)
        return samples

    def _read_input(self, file: Path) -> pd.DataFrame:
        frame = self._read(file)
        missing = [name for name in (*self.numbers, *self.categories) if name not in frame]
        refuse(file, [f"there is no column {name!r}" for name in missing])
        refuse(file, convert_numbers(frame, list(self.numbers)))
        return frame

    def baselines(self) -> dict[str, Tensor]:
        """Predictions for the test rows by two models of scikit-learn that are fitted on the same training rows.

        Numbers (N,), or probabilities: (N, num_classes), of two classes only the second one's, (N,).
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
            output = output[:, 1] if self.task == "binary" else output
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
