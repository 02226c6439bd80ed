"""Windows of time series in a CSV file; without one, statsmodels' weekly carbon dioxide in the air of Mauna Loa.

Source: C. D. Keeling and T. P. Whorf, Scripps Institution of Oceanography, La Jolla, 2004, from July 1964 on
"""

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

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
from torch.nn.functional import avg_pool1d, pad
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_convert

from data.tables import read_table, refuse

ROOT = Path(__file__).resolve().parents[1]
DAY = 24 * 3600
SMOOTHING = 25  # steps that the linear baseline's trend averages over, as in DLinear


class Windows(Dataset):
    """Windows of a series (T, C) float32 that start at the rows `starts`, read by the batch."""

    def __init__(self, series: Tensor, starts: Tensor, lookback: int, horizon: int) -> None:
        self.series, self.starts, self.lookback = series, starts, lookback
        self.steps = torch.arange(lookback + horizon)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Inputs (N, lookback, C) and targets (N, horizon, C)."""
        windows = self.series[self.starts[indices].view(-1, 1) + self.steps]
        return windows[:, : self.lookback].contiguous(), windows[:, self.lookback :].contiguous()


class Clock:
    """Tells the times of a series as whole steps from the first one on.

    Args:
        times: Increasing: datetimes, or numbers.
    """

    def __init__(self, times: pd.Series) -> None:
        self.dates = is_datetime64_any_dtype(times)
        days = times.dt.day if self.dates else times
        self.months = self.dates and bool(
            (times.diff()[1:] >= pd.Timedelta(days=28)).all() and (days.nunique() == 1 or times.dt.is_month_end.all())
        )
        ticks = self._ticks(times)
        self.start = ticks[0]
        self.step = pd.Series(np.diff(ticks)).mode()[0]

    def _ticks(self, times: pd.Series) -> np.ndarray:
        if self.months:
            return (times.dt.year * 12 + times.dt.month - 1).to_numpy()
        return times.astype("datetime64[s, UTC]").astype(np.int64).to_numpy() if self.dates else times.to_numpy()

    def positions(self, times: pd.Series) -> np.ndarray:
        """Steps since the start, fractions where a time lies between two of them."""
        return (self._ticks(times) - self.start) / self.step

    def label(self, position: int) -> str:
        """The time of a step, as text."""
        tick = self.start + position * self.step
        if self.months:
            return f"{tick // 12:04}-{tick % 12 + 1:02}"
        return str(pd.Timestamp(tick, unit="s")) if self.dates else f"{tick:g}"

    @property
    def season(self) -> int:
        """Steps after which values are likely to recur: a day's, a week's of days, or a year's; 1 where unknown."""
        if self.months:
            return max(12 // int(self.step), 1)
        if self.dates and self.step < DAY:
            return int(DAY // self.step)
        return {DAY: 7, 7 * DAY: 52}.get(int(self.step), 1) if self.dates else 1


class MyDataModule(LightningDataModule):
    """Windows of series in memory: the first rows train, later ones validate, the last ones test.

    Gaps of up to `max_gap` steps are filled with the value before them, so that nothing of the future leaks.

    Args:
        csv: CSV file whose first column is a time; null takes the carbon dioxide. A relative path starts at the
            project's root.
        columns: Columns to forecast; null takes all that hold numbers.
        lookback: Steps that the network sees.
        horizon: Steps that it forecasts.
        season: Steps after which values recur, for the naive forecast; null goes by the times.
        max_gap: Longest gap to fill, in steps.
        val_share: Share of the rows to validate on.
        test_share: Share of the rows to test on.
        time_format: Of the first column, as in %d.%m.%Y %H:%M; null finds out.
        encoding: Of the file, such as utf-8 or cp1252.
        separator: Character between fields; null finds out.
        batch_size: Windows a step on each device.
        num_workers: Processes that fetch batches; 0 is fastest for data in memory.
    """

    MODEL_ARGUMENTS = ("columns", "scale", "lookback", "horizon")

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
        self.lookback, self.horizon = lookback, horizon
        self.batch_size, self.num_workers = batch_size, num_workers
        self.inputs: Sequence[str] = ()  # CSV files whose future is to be forecast

    def read(self, file: Path | None) -> pd.DataFrame:
        """The file's rows, of which the first column is a time; the index says on which line each is.

        Raises:
            OSError: A time cannot be read, or does not come after the one before it.
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
        problems = [f"line {line}: {name!r} is '{text[line]}', no time" for line in frame.index[times.isna()]]
        for line in frame.index[1:][(times.diff()[1:] <= times.diff()[1:] * 0).to_numpy()]:
            problems.append(f"line {line}: {name!r} is '{text[line]}', which does not come after the time before it")
        refuse(file, problems)
        frame[name] = times
        return frame

    @cached_property
    def frame(self) -> pd.DataFrame:
        return self.read(self.file)

    @cached_property
    def columns(self) -> list[str]:
        """The columns to forecast.

        Raises:
            OSError: There is none, or not the one that was asked for.
        """
        there = list(self.frame.columns[1:])
        unknown = [name for name in self.hparams["columns"] or [] if name not in there]
        refuse(self.file, [f"there is no column {name!r} among {', '.join(there)}" for name in unknown])
        chosen = self.hparams["columns"] or [name for name in there if is_numeric_dtype(self.frame[name])]
        if not chosen:
            refuse(self.file, ["no column but the first holds numbers alone"])
        if left_out := [] if self.hparams["columns"] else sorted(set(there) - set(chosen)):
            self._warn(f"left out what holds other things than numbers: {', '.join(left_out)}")
        return list(chosen)

    @staticmethod
    def _warn(message: str) -> None:
        rank_zero_only(print)(f"warning: {message}", file=sys.stderr)

    def make_regular(self, frame: pd.DataFrame, file: Path | None) -> tuple[np.ndarray, Clock]:
        """The values at every step of a clock, (T, C) float64, with short gaps filled.

        Raises:
            OSError: Times are irregular, values are no numbers, or gaps are too long.
        """
        if len(frame) < 3:
            refuse(file, ["three rows are the least that show a time step"])
        values = frame[self.columns].apply(pd.to_numeric, errors="coerce").astype(float)
        problems = [
            f"line {line}: {name!r} is '{frame[name][line]}', no number"
            for name in self.columns
            for line in frame.index[(frame[name].notna() & ~np.isfinite(values[name])).to_numpy()]
        ]
        clock = Clock(frame.iloc[:, 0])
        positions = clock.positions(frame.iloc[:, 0])
        uneven = frame.index[np.abs(positions - positions.round()) > 0.01]
        problems += [f"line {line}: {frame.iloc[:, 0][line]} lies between two steps of the times" for line in uneven]
        refuse(file, problems)
        values = values.set_axis(positions.round().astype(int)).reindex(range(round(positions[-1]) + 1))
        for name in self.columns:
            gap = values[name].isna()
            for _, run in gap[gap].groupby((~gap).cumsum()[gap]):
                if len(run) > self.hparams["max_gap"] or run.index[0] == 0:
                    hole = f"{name!r} lacks {len(run)} steps from {clock.label(run.index[0])}"
                    problems.append(f"{hole}: fill it, or raise --data.max_gap")
        refuse(file, problems)
        return values.ffill().to_numpy(), clock

    @cached_property
    def regular(self) -> tuple[np.ndarray, Clock]:
        return self.make_regular(self.frame, self.file)

    @cached_property
    def borders(self) -> tuple[int, int, int]:
        """The row after the last one of train, of val and of test."""
        rows = len(self.regular[0])
        test = round(rows * (1 - self.hparams["test_share"]))
        return round(test - rows * self.hparams["val_share"]), test, rows

    @cached_property
    def scale(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each column in the training rows."""
        scaler = StandardScaler().fit(self.regular[0][: max(self.borders[0], 1)])
        return {
            name: [float(m), float(s)] for name, m, s in zip(self.columns, scaler.mean_, scaler.scale_, strict=True)
        }

    def scaled(self, values: np.ndarray) -> Tensor:
        """Values (T, C) in their own units to float32 with mean 0 and standard deviation 1 in the training rows."""
        mean, std = np.array([self.scale[name] for name in self.columns]).T
        return torch.from_numpy(((values - mean) / std).astype(np.float32))

    @property
    def season(self) -> int:
        season = self.hparams["season"] or self.regular[1].season
        return season if season <= self.lookback else 1

    def setup(self, stage: str) -> None:
        if not (stage == "predict" and self.inputs):
            first, second, end = self.borders
            self.train, self.val, self.test = (
                self._windows(*rows) for rows in ((self.lookback, first), (first, second), (second, end))
            )
        if stage == "predict":
            self.setup_predict()

    def _windows(self, first: int, end: int) -> Windows:
        """The windows whose targets are among the rows from `first` to `end`."""
        count = end - first - self.horizon + 1
        if count < 1 or first < self.lookback:
            wanted = f"--data.lookback {self.lookback} and --data.horizon {self.horizon}"
            refuse(self.file, [f"{len(self.regular[0])} rows are too few for {wanted}: give smaller ones"])
        starts = first - self.lookback + torch.arange(count)
        return Windows(self.scaled(self.regular[0]), starts, self.lookback, self.horizon)

    def setup_predict(self) -> None:
        """Takes the end of each of `inputs`, or of the test rows; `predict_columns` says what each forecast is of."""
        self.predict_columns = []
        windows = []
        for file in self.inputs or ["test"]:
            values, clock = self.make_regular(self.read(Path(file)), Path(file)) if self.inputs else self.regular
            known = len(values) if self.inputs else len(values) - self.horizon
            if known < self.lookback:
                refuse(file, [f"{known} rows are too few: {self.lookback} are what the network looks back on"])
            windows.append(self.scaled(values[known - self.lookback : known]))
            for row in range(known, known + self.horizon):
                for i, name in enumerate(self.columns):
                    truth = {} if self.inputs else {"truth": float(values[row, i])}
                    self.predict_columns.append({"input": file, "time": clock.label(row), "column": name} | truth)
        self.predict = Windows(torch.cat(windows), torch.arange(len(windows)) * self.lookback, self.lookback, 0)

    def baselines(self, inputs: Tensor) -> dict[str, Tensor]:
        """What simple rules forecast from (N, lookback, C): the last season again, a linear map; (N, horizon, C)."""
        steps = self.lookback - self.season + torch.arange(self.horizon, device=inputs.device) % self.season
        features = self._linear_features(inputs)
        return {"naive": inputs[:, steps], "linear": (features @ self.linear_weights.to(features)).transpose(1, 2)}

    @staticmethod
    def _linear_features(inputs: Tensor) -> Tensor:
        """DLinear's trend and remainder, and a constant, of windows: (N, C, 2 * lookback + 1) float32."""
        windows = inputs.transpose(1, 2)
        padded = pad(windows, (SMOOTHING // 2, SMOOTHING // 2), mode="replicate")
        trend = avg_pool1d(padded, SMOOTHING, stride=1)
        return torch.cat([trend, windows - trend, torch.ones_like(windows[..., :1])], dim=2)

    @cached_property
    def linear_weights(self) -> Tensor:
        """The map from those features to the forecast that is best for the training windows, by ridge regression."""
        size = 2 * self.lookback + 1
        gram, product = torch.eye(size, dtype=torch.float64), torch.zeros(size, self.horizon, dtype=torch.float64)
        for indices in torch.arange(len(self.train)).split(256):
            inputs, targets = self.train.__getitems__(indices.tolist())
            features = self._linear_features(inputs).flatten(0, 1).double()
            gram += features.T @ features
            product += features.T @ targets.transpose(1, 2).flatten(0, 1).double()
        return torch.linalg.solve(gram, product)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict)

    def _loader(self, dataset: Windows, shuffle: bool = False) -> DataLoader:
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
