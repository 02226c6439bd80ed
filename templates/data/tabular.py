"""Rows of a CSV file; without one, scikit-learn's diabetes patients: 442 rows, ten numbers and a number to predict.

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
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, default_convert

from data.tables import read_table, refuse

ROOT = Path(__file__).resolve().parents[1]
MISSING = "(missing)"  # the category of gaps among categories
MOST_CLASSES = 20  # a target of more whole numbers than this is a quantity
Task = Literal["regression", "binary", "multiclass"]


class BatchDataset(TensorDataset):
    """A `TensorDataset` that is read by the batch, with one indexing operation a tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


def warn(message: str) -> None:
    rank_zero_only(print)(f"warning: {message}", file=sys.stderr)


def as_categories(column: pd.Series) -> pd.Series:
    """The values as text, whole numbers without a fraction, and gaps as a category of their own."""
    if is_numeric_dtype(column) and not is_bool_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    return column.astype(object).where(column.notna(), MISSING).astype(str)


def make_numbers(frame: pd.DataFrame, names: list[str]) -> list[str]:
    """Turns columns into float64 with NaN for gaps; returns what is none, as a list of problems."""
    problems = []
    for name in names:
        values = pd.to_numeric(frame[name], errors="coerce").astype(float)
        wrong = frame[name].notna() & ~np.isfinite(values)
        problems += [f"line {i}: {name!r} is '{frame[name][i]}', no number" for i in frame.index[wrong]]
        frame[name] = values
    return problems


def split_rows(features: pd.DataFrame, targets: pd.Series, stratify: bool) -> np.ndarray:
    """Says of each row whether it is of train, val or test: 70%, 10% and 20%, of each class if `stratify`.

    It depends on what the rows hold, not on their order. Rows of equal features share a split, and the first seven of a
    class are of train.
    """
    frame = pd.DataFrame({"group": pd.util.hash_pandas_object(features, index=False).to_numpy()})
    frame["stratum"] = targets.to_numpy() if stratify else 0
    groups = frame.drop_duplicates("group").sort_values("group")
    rank = groups.groupby("stratum").cumcount() % 10
    groups["split"] = np.select([rank < 7, rank == 7], ["train", "val"], "test")
    return frame["group"].map(groups.set_index("group")["split"]).to_numpy()


class MyDataModule(LightningDataModule):
    """Rows of numbers and categories in memory, scaled by what the training rows are like.

    Args:
        csv: CSV file with a header; null takes the diabetes patients. A relative path starts at the project's root.
        target: Column to predict; null takes the last one.
        task: What the target is; null goes by its values: up to 20 whole numbers, truth values or text are classes.
        numeric: Columns to take as numbers although their values look like categories.
        categorical: Columns to take as categories although their values look like numbers.
        ignore: Columns to leave out.
        encoding: Of the file, such as utf-8 or cp1252.
        separator: Character between fields; null finds out.
        batch_size: Rows a step on each device.
        num_workers: Processes that fetch batches; 0 is fastest for data in memory.
    """

    MODEL_ARGUMENTS = ("task", "target", "class_names", "target_scale", "numbers", "gaps", "categories")

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
        self.inputs: Sequence[str] = ()  # CSV files to predict

    def read(self, file: Path) -> pd.DataFrame:
        return read_table(file, self.hparams["encoding"], self.hparams["separator"], na_values=["?"], low_memory=False)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All rows, by the line of the file that they are on, with numbers where there should be some.

        Raises:
            OSError: The file cannot be used.
        """
        frame = self.read(self.file) if self.file else load_diabetes(as_frame=True, scaled=False).frame
        named = [*(self.hparams[key] or [] for key in ("numeric", "categorical", "ignore")), [self.hparams["target"]]]
        unknown = {name for names in named for name in names if name} - set(frame)
        refuse(self.file, [f"there is no column {name!r} among {', '.join(frame)}" for name in sorted(unknown)])
        target = self.hparams["target"] or frame.columns[-1]
        problems = [f"line {line}: {target!r} is missing" for line in frame.index[frame[target].isna()]]
        numbers = [name for name in frame.columns.drop([target]) if self._is_number(name, frame[name])]
        refuse(self.file, problems + make_numbers(frame, numbers))
        return frame

    def _is_number(self, name: str, column: pd.Series) -> bool:
        """Whether nine of ten values of a column are numbers, unless its kind is given."""
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
            OSError: The target's values do not fit the task that was asked for.
        """
        values = self.frame[self.target]
        count = values.nunique()
        whole = is_numeric_dtype(values) and (is_integer_dtype(values) or (values % 1 == 0).all())
        classes = not is_numeric_dtype(values) or is_bool_dtype(values) or (whole and count <= MOST_CLASSES)
        task = self.hparams["task"] or (("binary" if count == 2 else "multiclass") if classes else "regression")
        if task == "regression" and (not is_numeric_dtype(values) or is_bool_dtype(values)):
            refuse(self.file, [f"{self.target!r} holds text, so that --data.task cannot be regression"])
        if count < 2 or (task == "binary" and count != 2):
            refuse(self.file, [f"{self.target!r} has {count} different values, which makes no {task} task"])
        return str(task)

    @cached_property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The rows of train, val and test.

        Raises:
            OSError: There are too few of them.
        """
        features, targets = self.frame.drop(columns=self.target), self.frame[self.target]
        split = split_rows(features, as_categories(targets), stratify=self.task != "regression")
        splits = {name: self.frame[split == name] for name in ("train", "val", "test")}
        if min(map(len, splits.values())) < 2:
            refuse(self.file, [f"{len(self.frame)} rows are too few: at least twenty have to differ"])
        return splits

    @cached_property
    def class_names(self) -> list[str]:
        """The target's values in the training rows, sorted; none where it is a number."""
        if self.task == "regression":
            return []
        return sorted(as_categories(self.splits["train"][self.target]).unique())

    @cached_property
    def target_scale(self) -> list[float]:
        """Mean and standard deviation of the target in the training rows; 0 and 1 of classes."""
        if self.task != "regression":
            return [0.0, 1.0]
        return self._scale(self.splits["train"][[self.target]])[self.target]

    @cached_property
    def numbers(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each column of numbers in the training rows."""
        return self._scale(self.splits["train"][[name for name in self._features if name not in self.categories]])

    @staticmethod
    def _scale(frame: pd.DataFrame) -> dict[str, list[float]]:
        if frame.empty or not len(frame.columns):
            return {}
        scaler = StandardScaler().fit(SimpleImputer().fit_transform(frame))
        return {name: [float(m), float(s)] for name, m, s in zip(frame, scaler.mean_, scaler.scale_, strict=True)}

    @cached_property
    def gaps(self) -> list[str]:
        """The columns of numbers that have gaps in the training rows; an indicator says where."""
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
        """The columns to predict from; constant ones are left out, and those that look like row numbers are named."""
        names = self.frame.columns.drop([self.target, *(self.hparams["ignore"] or [])]).tolist()
        train = self.splits["train"]
        for name in list(names):
            values = train[name].dropna()
            if values.nunique() < 2 and not (len(values) and train[name].isna().any()):
                warn(f"column {name!r} is constant and left out")
                names.remove(name)
                continue
            every = self.frame[name].dropna()
            counts = is_numeric_dtype(every) and (every.diff()[1:] == 1).all()
            if (counts or not is_numeric_dtype(every)) and every.nunique() == len(every) > 20:
                warn(f"column {name!r} looks like the name of a row: --data.ignore+={name} leaves it out")
        if not names:
            refuse(self.file, ["no column is left to predict from"])
        return names

    def encode(self, frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
        """Scaled numbers and, after them, an indicator for each of `gaps`, (N, F) float32; categories, (N, C) int64.

        A gap among numbers becomes their mean. A category that the training rows have not is 0.
        """
        numbers = frame[list(self.numbers)].astype(float)
        scale = np.array(list(self.numbers.values())).reshape(-1, 2)
        scaled = ((numbers.to_numpy() - scale[:, 0]) / scale[:, 1]).astype(np.float32)
        indicators = numbers[self.gaps].isna().to_numpy(np.float32)
        indices = []
        for name, values in self.categories.items():
            index = {value: i + 1 for i, value in enumerate(values)}
            indices.append(as_categories(frame[name]).map(index).fillna(0).to_numpy(np.int64))
        categories = np.stack(indices, axis=1) if indices else np.zeros((len(frame), 0), np.int64)
        return torch.from_numpy(np.hstack([np.nan_to_num(scaled), indicators])), torch.from_numpy(categories)

    def encode_targets(self, frame: pd.DataFrame) -> Tensor:
        """Numbers, (N,) float32 in their own units, or indices of classes, (N,) int64."""
        if self.task == "regression":
            return torch.tensor(frame[self.target].to_numpy(np.float32))
        index = {name: i for i, name in enumerate(self.class_names)}
        return torch.tensor(as_categories(frame[self.target]).map(index).to_numpy(np.int64))

    def setup(self, stage: str) -> None:
        if not (stage == "predict" and self.inputs):
            self.train, self.val, self.test = (
                BatchDataset(*self.encode(frame), self.encode_targets(frame)) for frame in self.splits.values()
            )
        if stage == "predict":
            self.setup_predict()

    def setup_predict(self) -> None:
        """Reads `inputs`, or takes a few test rows; `predict_columns` says of each where it comes from."""
        frames = {file: self._read_input(Path(file)) for file in self.inputs} or {"test": self.splits["test"][:8]}
        self.predict_columns = [
            {"input": f"{file}:{line}"} | ({"truth": truth} if self.target in frame else {})
            for file, frame in frames.items()
            for line, truth in zip(frame.index, frame.get(self.target, frame.index).tolist(), strict=True)
        ]
        self.predict = BatchDataset(*self.encode(pd.concat(frames.values())))

    def _read_input(self, file: Path) -> pd.DataFrame:
        frame = self.read(file)
        problems = [f"there is no column {name!r}" for name in (*self.numbers, *self.categories) if name not in frame]
        refuse(file, problems)
        refuse(file, make_numbers(frame, list(self.numbers)))
        return frame

    def baselines(self) -> dict[str, Tensor]:
        """What two models of scikit-learn, fitted on the same training rows, predict for the test rows.

        Of numbers their values, (N,); of classes their probabilities, (N, num_classes), or (N,) of the second of two.
        """
        train, test = (np.hstack(split.tensors[:2]) for split in (self.train, self.test))
        categories = list(range(train.shape[1] - len(self.categories), train.shape[1]))
        dummies = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), categories), remainder="passthrough")
        models: dict[str, Any]
        if self.task == "regression":
            models = {
                "ridge": make_pipeline(dummies, Ridge()),
                "boosting": HistGradientBoostingRegressor(random_state=0),
            }
        else:
            logistic = make_pipeline(dummies, LogisticRegression(max_iter=1000))
            models = {"logistic": logistic, "boosting": HistGradientBoostingClassifier(random_state=0)}
        predictions: dict[str, Tensor] = {}
        for name, model in models.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a baseline
                model.fit(train, self.train.tensors[2].numpy())
            output = model.predict(test) if self.task == "regression" else model.predict_proba(test)
            predictions[name] = torch.from_numpy(output[:, 1] if self.task == "binary" else output)
        return predictions

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: BatchDataset, shuffle: bool = False) -> DataLoader:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # On one device too: its order depends on the epoch alone, not on what ran before.
        sampler: DistributedSampler = DistributedSampler(dataset, replicas, rank, shuffle=shuffle)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=default_convert,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
