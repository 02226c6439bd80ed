"""Windows of time series in a CSV file, or of statsmodels' weekly carbon dioxide in the air of Mauna Loa.

Source: C. D. Keeling and T. P. Whorf, Scripps Institution of Oceanography, La Jolla, 2004, from July 1964 on
"""

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype
from sklearn.preprocessing import StandardScaler
from statsmodels.datasets import co2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_convert

from data.tables import read_table, refuse

ROOT = Path(__file__).resolve().parents[1]
DAY = 24 * 3600  # seconds
TOLERANCE = 0.01  # steps by which a time may differ from a regular one


class BatchDataset(TensorDataset):
    """A `TensorDataset` that reads a whole batch with one indexing operation per tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


class Clock:
    """Converts the times of a series to numbers of steps since the first one, and back.

    Args:
        times: Increasing datetimes or numbers. The step is the most frequent difference of two of them; calendar months
            count as equal.
    """

    def __init__(self, times: pd.Series) -> None:
        self.dates = is_datetime64_any_dtype(times)
        self.months = self.dates and self._are_months(times)
        ticks = self._ticks(times)
        self.start = ticks[0]
        self.step = pd.Series(np.diff(ticks)).mode()[0]

    @staticmethod
    def _are_months(times: pd.Series) -> bool:
        """Whether all times are 28 or more days apart and on the same day, or the last day, of a month."""
        same_day = times.dt.day.nunique() == 1 or times.dt.is_month_end.all()
        return bool(same_day and (times.diff()[1:] >= pd.Timedelta(days=28)).all())

    def _ticks(self, times: pd.Series) -> np.ndarray:
        """Times as numbers: months, seconds, or the numbers that they are."""
        if self.months:
            return (times.dt.year * 12 + times.dt.month - 1).to_numpy()
        return times.astype("datetime64[s, UTC]").astype(np.int64).to_numpy() if self.dates else times.to_numpy()

    def positions(self, times: pd.Series) -> np.ndarray:
        """Steps since the start, with a fraction for a time between two steps."""
        return (self._ticks(times) - self.start) / self.step

    def label(self, position: int) -> str:
        """The time of a step as text."""
        tick = self.start + position * self.step
        if self.months:
            return f"{tick // 12:04}-{tick % 12 + 1:02}"
        return str(pd.Timestamp(tick, unit="s")) if self.dates else f"{tick:g}"

    @property
    def season(self) -> int:
        """Steps after which values probably repeat: in a day, of days in a week, otherwise in a year; 1 if unknown."""
        if self.months:
            return max(12 // int(self.step), 1)
        if self.dates and self.step < DAY:
            return int(DAY // self.step)
        return {DAY: 7, 7 * DAY: 52}.get(int(self.step), 1) if self.dates else 1


class MyDataModule(LightningDataModule):
    """Windows of series in memory: the first rows train, the next ones validate, the last ones test.

    A batch is a pair: inputs (N, lookback, C) and targets (N, horizon, C), both float32 in their own units. Gaps of up
    to `max_gap` steps are filled with the value before them, so that no input depends on later values.

    Args:
        csv: CSV file with times in its first column, relative to the project's root; null uses the carbon dioxide.
        columns: Columns to forecast; null uses all columns of numbers.
        lookback: Number of steps that the network sees.
        horizon: Number of steps that it forecasts.
        season: Steps after which values repeat, for the naive forecast; null depends on the times.
        max_gap: Longest gap that is filled, in steps.
        val_share: Share of the rows for validation.
        test_share: Share of the rows for the test.
        time_format: Format of the times, such as "%d.%m.%Y %H:%M"; null detects it.
        encoding: Encoding of the file, such as utf-8 or cp1252.
        separator: Character between fields; null detects it.
        batch_size: Windows per step and device.
        num_workers: Processes that make batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # CSV files to forecast

    def __init__(
        self,
        csv: str | None = None,
        columns: list[str] | None = None,
        lookback: PositiveInt = 104,
        horizon: PositiveInt = 26,
        season: PositiveInt | None = None,
        max_gap: NonNegativeInt = 5,
        val_share: OpenUnitInterval = 0.1,
        test_share: OpenUnitInterval = 0.2,
        time_format: str | None = None,
        encoding: str = "utf-8",
        separator: str | None = None,
        batch_size: PositiveInt = 32,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.file = ROOT / Path(csv).expanduser() if csv else None
        self.batch_size, self.num_workers = batch_size, num_workers

    @cached_property
    def lookback(self) -> int:
        return self.hparams["lookback"]

    @cached_property
    def horizon(self) -> int:
        return self.hparams["horizon"]

    @cached_property
    def frame(self) -> pd.DataFrame:
        return self._read(self.file)

    def _read(self, file: Path | None) -> pd.DataFrame:
        """Reads a file, or the embedded series, with line numbers as the index and times in the first column.

        Raises:
            OSError: The file cannot be read, or times do not increase.
        """
        if file:
            frame = read_table(file, self.hparams["encoding"], self.hparams["separator"], na_values=["?"])
        else:
            frame = co2.load_pandas().data["1964-07":].rename_axis("date").reset_index()
        name, text = frame.columns[0], frame.iloc[:, 0]
        if is_numeric_dtype(text) and not self.hparams["time_format"]:
            times = text.astype(float)
        else:
            times = pd.to_datetime(text.astype(str), format=self.hparams["time_format"], errors="coerce", utc=True)
        problems = [f"line {line}: {name!r} is '{text[line]}', not a time" for line in frame.index[times.isna()]]
        for line in frame.index[times <= times.shift()]:
            problems.append(f"line {line}: {name!r} is '{text[line]}', not later than the time before it")
        refuse(file, problems)
        frame[name] = times
        return frame

    @cached_property
    def columns(self) -> list[str]:
        """The columns to forecast.

        Raises:
            OSError: There are none, or configured columns are missing.
        """
        names = list(self.frame.columns[1:])
        if configured := self.hparams["columns"]:
            hint = f"the columns are {', '.join(names)}"
            refuse(self.file, [f"there is no column {name!r}: {hint}" for name in configured if name not in names])
            return list(configured)
        chosen = [name for name in names if is_numeric_dtype(self.frame[name])]
        if not chosen:
            refuse(self.file, ["no column except the first one contains only numbers"])
        if left_out := [name for name in names if name not in chosen]:
            message = f"warning: left out columns that contain more than numbers: {', '.join(left_out)}"
            rank_zero_only(print)(message, file=sys.stderr)
        return chosen

    def make_regular(self, frame: pd.DataFrame, file: Path | None) -> tuple[np.ndarray, Clock]:
        """The values at each step of a clock, (T, C) float64, with short gaps filled.

        Raises:
            OSError: Times are irregular, values are not numbers, or gaps are too long.
        """
        if len(frame) < 3:
            refuse(file, ["need at least three rows to find the time step"])
        times = frame.iloc[:, 0]
        clock = Clock(times)
        positions = clock.positions(times)
        values = frame[self.columns].apply(pd.to_numeric, errors="coerce").astype(float)
        problems = []
        for name in self.columns:
            wrong = frame.index[frame[name].notna() & ~np.isfinite(values[name])]
            problems += [f"line {line}: {name!r} is '{frame[name][line]}', not a number" for line in wrong]
        uneven = frame.index[np.abs(positions - positions.round()) > TOLERANCE]
        problems += [f"line {line}: {times[line]} lies between two steps of the times" for line in uneven]
        refuse(file, problems)
        values = values.set_axis(positions.round().astype(int)).reindex(range(round(positions[-1]) + 1))
        refuse(file, [problem for name in self.columns for problem in self._long_gaps(values[name], clock)])
        return values.ffill().to_numpy(), clock

    def _long_gaps(self, values: pd.Series, clock: Clock) -> list[str]:
        """The gaps of a column that are not to be filled: long ones, and one at the start."""
        gap = values.isna()
        problems = []
        for _, run in gap[gap].groupby((~gap).cumsum()[gap]):
            start, length = run.index[0], len(run)
            if start == 0 or length > self.hparams["max_gap"]:
                text = f"{values.name!r} lacks {length} steps from {clock.label(start)}"
                problems.append(f"{text}: fill the gap, or raise --data.max_gap")
        return problems

    @cached_property
    def regular(self) -> tuple[np.ndarray, Clock]:
        return self.make_regular(self.frame, self.file)

    @cached_property
    def borders(self) -> tuple[int, int, int]:
        """The rows at which train, val and test end."""
        rows = len(self.regular[0])
        test = round(rows * (1 - self.hparams["test_share"]))
        return round(test - rows * self.hparams["val_share"]), test, rows

    @cached_property
    def scaler(self) -> StandardScaler:
        """Mean and standard deviation of each column in the training rows."""
        return StandardScaler().fit(self.regular[0][: max(self.borders[0], 1)])

    @cached_property
    def std(self) -> list[float]:
        """Standard deviation of each column in the training rows; 1 for a constant column."""
        return self.scaler.scale_.tolist()

    @property
    def season(self) -> int:
        season = self.hparams["season"] or self.regular[1].season
        return season if season <= self.lookback else 1

    def setup(self, stage: str) -> None:
        if stage == "predict":
            self.predict = [self._read_input(Path(file)) for file in self.inputs] or [self._last_test_window()]
            return
        first, second, end = self.borders
        self.train = self._windows(self.lookback, first)
        self.val = self._windows(first, second)
        self.test = self._windows(second, end)

    def _windows(self, first: int, end: int) -> BatchDataset:
        """All windows with targets in the rows from `first` to before `end`."""
        size = self.lookback + self.horizon
        if end - first < self.horizon or first < self.lookback:
            wanted = f"--data.lookback {self.lookback} and --data.horizon {self.horizon}"
            refuse(self.file, [f"{len(self.regular[0])} rows are too few for {wanted}: use smaller ones"])
        rows = torch.tensor(self.regular[0][first - self.lookback : end], dtype=torch.float32)
        windows = rows.unfold(0, size, 1).transpose(1, 2)  # (N, size, C), without copying
        return BatchDataset(windows[:, : self.lookback], windows[:, self.lookback :])

    def _read_input(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """The last window of a file, and columns for the steps that follow it."""
        values, clock = self.make_regular(self._read(file), file)
        if len(values) < self.lookback:
            refuse(file, [f"{len(values)} rows are too few, the network needs {self.lookback}"])
        return self._window(values, len(values), clock, str(file))

    def _last_test_window(self) -> tuple[Tensor, dict[str, list[Any]]]:
        values, clock = self.regular
        row = len(values) - self.horizon
        inputs, columns = self._window(values, row, clock, "test")
        return inputs, columns | {"truth": values[row:].flatten().tolist()}

    def _window(self, values: np.ndarray, row: int, clock: Clock, name: str) -> tuple[Tensor, dict[str, list[Any]]]:
        """A window to predict, (1, lookback, C), that ends before `row`, and columns with an entry per forecast."""
        steps = [(clock.label(row + i), column) for i in range(self.horizon) for column in self.columns]
        times, columns = zip(*steps, strict=True)
        inputs = torch.tensor(values[row - self.lookback : row], dtype=torch.float32).unsqueeze(0)
        return inputs, {"input": [name] * len(steps), "time": list(times), "column": list(columns)}

    def baselines(self, inputs: Tensor) -> dict[str, Tensor]:
        """Simple forecasts, (N, horizon, C), from inputs (N, lookback, C).

        naive repeats the last season. linear is a linear map of a column's steps and a constant, which is fitted to the
        training windows by ridge regression.
        """
        steps = self.lookback - self.season + torch.arange(self.horizon, device=inputs.device) % self.season
        mean, std = inputs.new_tensor(self.scaler.mean_), inputs.new_tensor(self.scaler.scale_)
        linear = (self._linear_features(inputs) @ self.linear_weights.to(inputs)).transpose(1, 2) * std + mean
        return {"naive": inputs[:, steps], "linear": linear}

    def _scaled(self, values: Tensor) -> Tensor:
        """Values (N, T, C) with the mean and standard deviation of the training rows removed, as (N, C, T)."""
        mean, std = values.new_tensor(self.scaler.mean_), values.new_tensor(self.scaler.scale_)
        return ((values - mean) / std).transpose(1, 2)

    def _linear_features(self, inputs: Tensor) -> Tensor:
        scaled = self._scaled(inputs)
        return torch.cat([scaled, torch.ones_like(scaled[..., :1])], dim=2)

    @cached_property
    def linear_weights(self) -> Tensor:
        """The weights of the linear forecast, (lookback + 1, horizon) float32."""
        gram = torch.eye(self.lookback + 1, dtype=torch.float64)
        product = torch.zeros(self.lookback + 1, self.horizon, dtype=torch.float64)
        for inputs, targets in self._loader(self.train):
            x = self._linear_features(inputs).flatten(0, 1).double()
            y = self._scaled(targets).flatten(0, 1).double()
            gram += x.T @ x
            product += x.T @ y
        return torch.linalg.solve(gram, product).float()

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.predict, batch_size=None)  # type: ignore[arg-type]  # each item is a batch

    def _loader(self, dataset: Dataset, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            collate_fn=default_convert if isinstance(dataset, BatchDataset) else None,
        )
