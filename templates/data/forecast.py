"""Windows of time series in a CSV file, or of statsmodels' weekly carbon dioxide in the air of Mauna Loa.

Source: C. D. Keeling and T. P. Whorf, Scripps Institution of Oceanography, La Jolla, 2004, from July 1964 on
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from pandas.api.types import is_datetime64_any_dtype
from sklearn.model_selection import TimeSeriesSplit
from sklearn.preprocessing import StandardScaler
from statsmodels.datasets import co2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_convert

from data.splits import AtLeastTwo, check_fold
from data.tables import (
    Header,
    convert_numbers,
    find_formats,
    find_forms,
    mask_gaps,
    read_table,
    refuse,
    warn,
    warn_of_guesses,
    warn_of_unused,
)

ROOT = Path(__file__).resolve().parents[1]
DAY = 24 * 3600 * 10**6  # microseconds
TOLERANCE = 0.05  # steps by which a time may differ from a regular one
OFFSET = r"(?<=:\d\d)(?:[.,]\d+)? ?[+-]\d\d(?::?\d\d)?$"  # from UTC, after the time of day
CLOCK = r"\d\d?[:.]\d\d([:.]\d\d([.,]\d+)?)?( ?[AaPp][Mm])?"
COMPACT = {6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # by number of digits
EPOCHS = {"seconds": "s", "milliseconds": "ms"}  # since 1970
PARTS = {
    "%Y": ("year", "yr", "yyyy"),
    "%m": ("month", "mon", "mo", "mnth"),
    "%d": ("day", "dd", "mday"),
    "%H": ("hour", "hr", "hh"),
    "%M": ("minute", "min"),
    "%S": ("second", "sec"),
}
PERIODS = ("quarter", "qtr", "week", "wk")
PERIOD = r"(19|20)\d\d([ -]?[QqWw]\d\d?(-\d)?|\.(0?[1-9]|1[0-2])|0[1-9]|[1-4]\d|5[0-3])|[Qq]\d[ -]?(19|20)\d\d"


class BatchDataset(TensorDataset):
    """A `TensorDataset` that reads a whole batch with one indexing operation per tensor."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


def is_daily(times: pd.Series) -> bool:
    """Return whether all datetimes are at the same time of the day."""
    return bool((times - times.dt.normalize()).nunique() == 1)


def parse_times(texts: pd.Series, form: str) -> pd.Series:
    """Convert texts (N,), NaN for gaps, to datetimes, UTC, or numbers (N,); what does not have the form is missing.

    A form is number, seconds or milliseconds, both since 1970, or a format of `strptime`. Daily times stay local.
    """
    if form == "number":
        return pd.to_numeric(texts, errors="coerce").astype(float)
    if form in EPOCHS:
        numbers = pd.to_numeric(texts, errors="coerce").astype(float)
        times = pd.to_datetime(numbers, unit=EPOCHS[form], errors="coerce", utc=True)
    else:
        try:
            times = pd.to_datetime(texts, format=form, errors="coerce", utc=True)
            local = texts.str.replace(OFFSET, "", regex=True)
            local = pd.to_datetime(local, format=form.replace("%z", "").strip(), errors="coerce", utc=True)
        except ValueError as error:
            raise OSError(f"--data.time_format {form!r} is not a format of times: {error}") from error
        times = local if is_daily(local) else times
    return times.astype("datetime64[us, UTC]")


def join_columns(frame: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """The texts of columns, separated by blanks; NaN where one is missing."""
    joined = frame[names[0]]
    for name in names[1:]:
        joined = joined + " " + frame[name]
    return joined


def find_time_formats(texts: pd.Series) -> list[str]:
    """The formats that times may have; of those that fit, the ones that give the most regular times."""
    known = texts.dropna()
    form = COMPACT.get(known.str.len().max(), "") if known.str.isdecimal().all() else ""
    if form and parse_times(known, form).dt.year.between(1900, 2100).all():
        return [form]
    numbers = pd.to_numeric(known, errors="coerce")
    if numbers.notna().mean() >= 0.9:
        least = {"seconds": 5e8, "milliseconds": 5e11}  # from 1985 to 2128
        plain = ["number"] if (numbers.diff()[1:] > 0).mean() > 0.9 or (numbers.diff()[1:] < 0).all() else []
        return [form for form in EPOCHS if numbers.between(least[form], 10 * least[form]).all()] or plain
    formats = find_formats(texts)
    scores = {form: Clock(parse_times(known, form).dropna()).regularity for form in formats} if formats[1:] else {}
    return [form for form in formats if not scores or scores[form] == max(scores.values())]


def find_times(frame: pd.DataFrame, given: list[str], file: Path) -> tuple[list[str], list[str]]:
    """The formats that the times may have, and the columns that hold them.

    These are the given ones, or a date, with a time of day if dates are repeated, or numbers of year, month and so on,
    or the first column.
    """
    if given:
        return find_time_formats(join_columns(frame, given)), given
    first, *_ = names = list(frame)
    dated = [name for name in names if find_formats(frame[name])]
    if len(dated) > 1 and first not in dated:
        refuse(file, [f"{' and '.join(dated)} hold times: choose one by --data.time"])
    if dated:
        date = first if first in dated else dated[0]
        for name in names if frame[date].duplicated().any() else ():
            clock = frame[name].str.fullmatch(CLOCK).all() or name.casefold() in PARTS["%H"]
            if clock and (formats := find_time_formats(join_columns(frame, [date, name]))):
                return formats, [date, name]
        return find_time_formats(frame[date]), [date]
    found = {code: name for code, known in PARTS.items() for name in names if name.casefold() in known}
    parts = {code: found[code] for code in takewhile(found.__contains__, PARTS)}  # minutes only after hours
    if "%Y" in parts and "%m" in parts:
        if not frame[parts["%m"]].str.isdecimal().all():
            month = "%b" if frame[parts["%m"]].str.len().max() == 3 else "%B"
            parts = {"%Y": parts.pop("%Y"), month: parts.pop("%m")} | parts
        return [" ".join(parts)], list(parts.values())
    return find_time_formats(frame[first]), [first]


class Clock:
    """Conversion of the times of a series to numbers of steps since the first one, and back.

    Args:
        times: Datetimes or numbers. The step is the most frequent difference of two of them. Calendar months
            count as equal; in a daily series without weekends, so does the step from Friday to Monday.
        steps: The steps of another clock to use instead; see `MyDataModule.steps`.
    """

    def __init__(self, times: pd.Series, steps: Mapping[str, Any] | None = None) -> None:
        self.dates = is_datetime64_any_dtype(times)
        self.months = steps["months"] if steps else self.dates and self._are_months(times)
        self.weekdays = steps["weekdays"] if steps else self.dates and self._are_weekdays(times)
        self.time_of_day = (times - times.dt.normalize()).iloc[0] if self.weekdays else pd.Timedelta(0)
        ticks = self._ticks(times)
        gaps = pd.Series(np.diff(ticks))
        self.start, step = ticks[0], gaps[gaps > 0].mode().get(0, 1)
        self.regularity = float((gaps == step).mean())
        if (gaps % step != 0).any():  # rounded times
            step = gaps[(gaps / step).round(1) == 1].mean()
        self.step = steps["step"] if steps else float(step)

    @staticmethod
    def _are_months(times: pd.Series) -> bool:
        """Return whether all times are 28 or more days apart and on the same day, or the last day, of a month.

        Times in equally many months in a row, such as the last weekday of each, are months, too.
        """
        days, months = times.diff()[1:], (times.dt.year * 12 + times.dt.month).diff()[1:]
        same_day = times.dt.day.nunique() == 1 or times.dt.is_month_end.all()
        in_a_row = days.nunique() > 1 and months.nunique() == 1 and months.iloc[0] > 0
        return bool(in_a_row or (same_day and (days >= pd.Timedelta(days=28)).all()))

    @staticmethod
    def _are_weekdays(times: pd.Series) -> bool:
        """Return whether the times are more than a week of days from Monday to Friday, without weekends."""
        daily = len(times) > 5 and is_daily(times) and (times.diff() == pd.Timedelta(days=1)).mean() > 0.5
        return bool(daily and {*times.dt.day_of_week} == {0, 1, 2, 3, 4})

    def _ticks(self, times: pd.Series) -> np.ndarray:
        """Times as numbers: months, days from Monday to Friday, microseconds, or the numbers that they are."""
        if self.months:
            return (times.dt.year * 12 + times.dt.month - 1).to_numpy()
        if self.weekdays:
            days = np.busday_count("1970-01-01", times.dt.tz_localize(None).to_numpy("datetime64[D]"))
            return days - 0.5 * (times.dt.day_of_week > 4).to_numpy()  # a weekend lies between two steps
        return times.astype("datetime64[us, UTC]").astype(np.int64).to_numpy() if self.dates else times.to_numpy()

    def positions(self, times: pd.Series) -> np.ndarray:
        """Steps since the start, with a fraction for a time between two steps."""
        return (self._ticks(times) - self.start) / self.step

    def label(self, position: int) -> str:
        """The time of a step as text."""
        tick = self.start + position * self.step
        if self.months:
            return f"{int(tick) // 12:04}-{int(tick) % 12 + 1:02}"
        if self.weekdays:
            return str(pd.Timestamp("1970-01-01") + pd.offsets.BusinessDay(int(tick)) + self.time_of_day)
        return str(pd.Timestamp(round(tick), unit="us")) if self.dates else f"{tick:.15g}"

    @property
    def season(self) -> int:
        """Steps after which values probably repeat: in a day, of days in a week, otherwise in a year; 1 if unknown."""
        if self.months:
            return max(12 // int(self.step), 1)
        if self.weekdays:
            return 5
        if self.dates and self.step < DAY:
            return round(DAY / self.step)
        return {DAY: 7, 7 * DAY: 52}.get(int(self.step), 1) if self.dates else 1


class MyDataModule(LightningDataModule):
    """Windows of series in memory: the first rows train, the next ones validate, the last ones test.

    A batch is a pair: inputs (N, lookback, C) and targets (N, horizon, C), both float32 in their own units. Gaps of up
    to `max_gap` steps are filled with the value before them, so that no input depends on later values.

    Args:
        csv: CSV file, relative to the project's root; null uses the carbon dioxide.
        time: Column or columns of the times, such as [date, hour]; null finds them; none if the rows are equal steps.
        time_format: Format of the times, such as "%d.%m.%Y %H:%M", or number, seconds or milliseconds; null finds it.
        columns: Columns to forecast; null uses all columns of numbers.
        lookback: Number of steps that the network sees.
        horizon: Number of steps that it forecasts.
        season: Steps after which values repeat, for the naive forecast; null depends on the times.
        max_gap: Longest gap that is filled, in steps.
        val_share: Share of the rows for validation.
        test_share: Share of the rows for the test.
        missing: Further values that stand for gaps, such as ["-200"].
        decimal: Decimal sign, "." or ","; null finds it.
        header: "none" if the first row is data, "first" if it holds the names of the columns; null is like "first", but
            a first row that looks like data is an error.
        separator: Character between fields, or the word "tab" or "blank" (space); null detects it.
        encoding: Encoding of the file, such as cp1252; null detects it.
        folds: Number of folds: the rows before the test are divided into one part more than that.
        fold: The fold, from 1: the parts before it train, the next one validates, and those after it are not used.
        batch_size: Windows per step and device; null takes 1/32 of the training windows, but 8 to 32.
        num_workers: Processes that make batches; 0 is fastest for data in memory.
    """

    inputs: Sequence[str] = ()  # CSV files to forecast
    predict_split: str | None = None  # split that is predicted completely if there are no inputs

    def __init__(
        self,
        csv: str | None = None,
        time: str | list[str] | None = None,
        time_format: str | None = None,
        columns: list[str] | None = None,
        lookback: PositiveInt = 104,
        horizon: PositiveInt = 26,
        season: PositiveInt | None = None,
        max_gap: NonNegativeInt = 5,
        val_share: OpenUnitInterval = 0.1,
        test_share: OpenUnitInterval = 0.2,
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
        self.batch_size, self.num_workers = batch_size or 32, num_workers
        self.given_time = [] if time in (None, "none") else [time] if isinstance(time, str) else list(time)
        self.notes: list[str] = []

    @cached_property
    def lookback(self) -> int:
        return self.hparams["lookback"]

    @cached_property
    def horizon(self) -> int:
        return self.hparams["horizon"]

    def _read(self, file: Path) -> pd.DataFrame:
        """A table of texts, with NaN for gaps and line numbers as the index."""
        named = [*(self.hparams["columns"] or []), *self.given_time]
        frame = read_table(file, self.notes, named, self.hparams).apply(lambda column: column.str.strip())
        hint = f"the columns are {', '.join(frame)}"
        refuse(file, [f"there is no column {name!r}: {hint}" for name in named if name not in frame])
        if file == self.file:
            warn_of_unused(frame, self.hparams["missing"])
        return mask_gaps(frame, self.hparams["missing"])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table of texts of the file, or the embedded series with times in the first column."""
        return (
            self._read(self.file) if self.file else co2.load_pandas().data["1964-07":].rename_axis("date").reset_index()
        )

    @cached_property
    def times(self) -> list[str]:
        """The format of the times, see `parse_times`, and the columns that hold them; none if the rows are steps."""
        if self.file is None:
            return ["ISO8601", "date"]
        if self.hparams["time"] == "none":
            return ["number"]
        if self.hparams["time_format"]:
            return [self.hparams["time_format"], *(self.given_time or self.frame.columns[:1])]
        formats, names = find_times(self.frame, self.given_time, self.file)
        used = {name.casefold() for name in (names if formats else self.frame)}
        split = {name.casefold() for name in names}.intersection(PARTS["%Y"]) and used.intersection(PERIODS)
        whole = join_columns(self.frame, names).dropna().str.fullmatch(PERIOD).mean() > 0.9
        if split or (whole and formats in ([], ["number"])):
            hint = "write the first day of each as YYYY-MM-DD, or set --data.time_format number if they are numbers"
            refuse(self.file, [f"the times are quarters, weeks or months such as 2020.01: {hint}"])
        if not formats:
            hint = "set --data.time and --data.time_format, or --data.time none if the rows are equal steps"
            refuse(self.file, [f"{' '.join(names)!r} is not known to hold times with a year: {hint}"])
        if len(formats) > 1:
            others = f"{' or '.join(formats[1:])} is possible, too: --data.time_format overrides this"
            self.notes.append(f"times are read as {formats[0]}, but {others}")
        return [formats[0], *names]

    @cached_property
    def forms(self) -> dict[str, str]:
        """Notation of the numbers in each column; see data/tables.py."""
        if self.file is None:
            return {}
        frame = self.frame.drop(columns=self.times[1:])
        return find_forms(self.file, frame, self.hparams["decimal"], self.hparams["columns"] or [])

    @cached_property
    def columns(self) -> list[str]:
        """The columns to forecast: those that are configured, or those of numbers that do not count the rows."""
        if self.hparams["columns"] or self.file is None:
            return list(self.hparams["columns"] or self.frame.columns[1:])
        numbers = self.frame[list(self.forms)].apply(pd.to_numeric, errors="coerce")
        chosen = [name for name in numbers if not (numbers[name].diff()[1:] == 1).all()] or list(numbers)
        refuse(self.file, [] if chosen else ["no column except the times contains only numbers"])
        if left_out := [name for name in self.frame if name not in (*chosen, *self.times[1:])]:
            self.notes.append(f"left out, as they are no numbers or count the rows: {', '.join(left_out)}")
        return chosen

    def _series(self, file: Path | None) -> tuple[pd.Series, pd.DataFrame]:
        """The times of a file, or of the embedded data, and the values of the columns, both without gaps at the start.

        Raises:
            OSError: Columns are missing, values are not numbers, or times do not increase.
        """
        if file is None:
            return self.frame["date"].dt.tz_localize("UTC"), self.frame[self.columns]
        frame, (form, *names) = self.frame if file == self.file else self._read(file), self.times
        refuse(file, [f"there is no column {name!r}" for name in (*names, *self.columns) if name not in frame])
        texts = join_columns(frame, names) if names else pd.Series(range(len(frame)), index=frame.index)
        times = parse_times(texts, form)
        if names and texts.str.contains(OFFSET, na=False).any() and not is_daily(times):
            self.notes.append("times with an offset are converted to UTC")
        if (times < times.shift()).mean() > 0.5:
            self.notes.append(f"{file.name} is read from its end, as times decrease")
            frame, texts, times = frame[::-1], texts[::-1], times[::-1]
        values, name = frame[self.columns].copy(), " ".join(names)
        problems = [f"line {line}: {name!r} is '{texts[line]}', not a time" for line in texts.index[times.isna()]]
        if times.duplicated().mean() > 0.3:
            hint = "add a column with the time of day by --data.time, or give each series a column of its own"
            problems.append(f"many times are repeated: {hint}")
        late = texts.index[times <= times.shift()]
        problems += [f"line {line}: {name!r} is '{texts[line]}', not later than the time before it" for line in late]
        if len(late):
            problems.append("correct or remove these rows; if clocks were set back, add the offsets from UTC")
        forms = {name: self.forms.get(name, ".") for name in self.columns}
        refuse(file, problems + convert_numbers(values, forms, self.hparams["missing"]))
        if after := int(values.notna().any(axis=1)[::-1].argmax()):
            self.notes.append(f"the last {after} rows of {file.name} are left out, as they have no values")
            times, values = times[:-after], values[:-after]
        start = int(values.notna().all(axis=1).argmax())
        if 0 < start <= 0.1 * len(values):
            self.notes.append(f"the first {start} rows of {file.name} are left out, as values are missing")
            return times[start:], values[start:]
        return times, values

    def make_regular(self, file: Path | None) -> tuple[np.ndarray, Clock]:
        """The values at each step of a clock, (T, C) float64, with short gaps filled.

        Raises:
            OSError: Times are irregular, or gaps are too long.
        """
        times, values = self._series(file)
        if len(values) < 3:
            refuse(file, ["need at least three rows to find the time step"])
        clock = Clock(times, None if file == self.file else self.steps)
        positions = clock.positions(times)
        usual = pd.Series(np.diff(positions)).round(2).mode()[0]
        if file != self.file and abs(usual - 1) > TOLERANCE:
            problem = f"the time step is {usual:g} times that of the training data"
            refuse(file, [f"{problem}: give times with the same step"])
        refuse(file, self._rare_weekends(times) if clock.dates and clock.step == DAY else [])
        between = np.abs(positions - positions.round()) > TOLERANCE
        uneven = times.index[between | (np.diff(positions.round(), prepend=-1) < 1)]
        refuse(file, [f"line {line}: {times[line]} lies between two steps of the times" for line in uneven])
        if positions[-1] > max(1_000_000, len(times) * (self.hparams["max_gap"] + 1)):  # may exceed the memory
            refuse(file, [f"{len(times)} rows span {positions[-1]:.0f} steps: check the first and the last time"])
        values = values.set_axis(positions.round().astype(int)).reindex(range(round(positions[-1]) + 1))
        refuse(file, [problem for name in self.columns for problem in self._long_gaps(values[name], clock)])
        if filled := values.isna().sum().sum():
            self.notes.append(f"{filled} of {values.size} values are missing and get the values before them")
        return values.ffill().to_numpy(), clock

    @staticmethod
    def _rare_weekends(times: pd.Series) -> list[str]:
        """The times of a daily series that are on weekends, if these are less than a twentieth of all times."""
        weekends = times[times.dt.day_of_week > 4]
        if not 0 < len(weekends) < len(times) / 20:
            return []
        hint = "remove these rows, or add the other weekends; the only rows on weekends are"
        return [hint, *(f"line {line}: {time}" for line, time in weekends.items())]

    def _long_gaps(self, values: pd.Series, clock: Clock) -> list[str]:
        """The gaps of a column that are not to be filled: long ones, and one at the start."""
        gap = values.isna()
        problems = []
        for _, run in gap[gap].groupby((~gap).cumsum()[gap]):
            start, length = run.index[0], len(run)
            if start == 0 or length > self.hparams["max_gap"]:
                hint = "raise --data.max_gap" if start else "choose other columns by --data.columns"
                text = f"{values.name!r} lacks {length} steps from {clock.label(start)}"
                problems.append(f"{text}: fill the gap, or {hint}")
        return problems

    @cached_property
    def regular(self) -> tuple[np.ndarray, Clock]:
        return self.make_regular(self.file)

    @cached_property
    def steps(self) -> dict[str, float]:
        """Size of the steps between times, and whether they are months or weekdays; inputs have the same."""
        clock = self.regular[1]
        return {"step": clock.step, "months": clock.months, "weekdays": clock.weekdays}

    @cached_property
    def borders(self) -> tuple[int, int, int]:
        """The rows at which train and val end, and at which the test begins."""
        rows, folds = len(self.regular[0]), self.hparams["folds"]
        test = round(rows * (1 - self.hparams["test_share"]))
        if folds is None:
            return round(test - rows * self.hparams["val_share"]), test, test
        if test <= folds:
            refuse(self.file, [f"{test} rows before the test are too few for --data.folds {folds}"])
        train, val = list(TimeSeriesSplit(folds).split(range(test)))[self.hparams["fold"] - 1]
        return len(train), len(train) + len(val), test

    @cached_property
    def scaler(self) -> StandardScaler:
        """Mean and standard deviation of each column in the training rows."""
        return StandardScaler().fit(self.regular[0][: max(self.borders[0], 1)])

    @cached_property
    def std(self) -> list[float]:
        """Standard deviation of each column in the training rows; 1 for a constant column."""
        return self.scaler.scale_.tolist()

    @cached_property
    def mean(self) -> list[float]:
        """Mean of each column in the training rows."""
        return self.scaler.mean_.tolist()

    @property
    def season(self) -> int:
        season = self.hparams["season"] or self.regular[1].season
        return season if season <= self.lookback else 1

    def report(self) -> str:
        """Summary of the data: steps, times and columns, and a line for each decision that was made."""
        (values, clock), (first, second, test) = self.regular, self.borders
        end = len(values)
        times = f"from {clock.label(0)} to {clock.label(end - 1)}, read as {self.times[0]}"
        times += ", without weekends" * clock.weekdays
        forms = {name: f" ({form})" for name, form in self.forms.items() if form != "."}
        sizes = f"{first} train, {second - first} val, {end - test} test"
        if self.hparams["folds"]:
            sizes += f", fold {self.hparams['fold']} of {self.hparams['folds']}"
        lines = [
            f"data: {self.file or 'the embedded data'}, {end} steps: {sizes}",
            f"times: {' and '.join(self.times[1:]) or 'rows'} {times}",
            f"columns: {', '.join(name + forms.get(name, '') for name in self.columns)}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in dict.fromkeys(self.notes))])

    def setup(self, stage: str) -> None:
        if stage == "predict":
            self.predict = [self._read_input(Path(file)) for file in self.inputs] or self._known_windows()
            warn_of_guesses(self.notes)
            return
        if stage == "fit":
            rank_zero_only(print)(self.report(), flush=True)
            self._warn_of_rounding()
        first, second, test = self.borders
        self.train = self._windows(self.lookback, first)
        if self.hparams["batch_size"] is None:
            self.batch_size = min(max(len(self.train) // 32, 8), 32)
        self.val = self._windows(first, second)
        self.test = self._windows(test, len(self.regular[0]))

    def _warn_of_rounding(self) -> None:
        """Print a warning for each column whose usual change is not far above the precision of float32."""
        for name, values in zip(self.columns, self.regular[0].T, strict=True):
            changes = np.abs(np.diff(values))
            usual = np.median(changes[changes > 0]) if changes.any() else np.inf
            if np.spacing(np.float32(np.abs(values).max())) > usual / 10:
                warn(f"float32 rounds {name!r}, which often changes by {usual:g}: subtract a constant from the column")

    def _windows(self, first: int, end: int) -> BatchDataset:
        """All windows with targets in the rows from `first` to before `end`."""
        size = self.lookback + self.horizon
        if end - first < self.horizon or first < self.lookback:
            wanted = f"--data.lookback {self.lookback} and --data.horizon {self.horizon}"
            hint = "use smaller ones" + (", or fewer --data.folds" if self.hparams["folds"] else "")
            refuse(self.file, [f"{len(self.regular[0])} rows are too few for {wanted}: {hint}"])
        rows = torch.tensor(self.regular[0][first - self.lookback : end], dtype=torch.float32)
        windows = rows.unfold(0, size, 1).transpose(1, 2)  # (N, size, C), without copying
        return BatchDataset(windows[:, : self.lookback], windows[:, self.lookback :])

    def _read_input(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        """The last window of a file, and columns for the steps that follow it."""
        values, clock = self.make_regular(file)
        if len(values) < self.lookback:
            refuse(file, [f"{len(values)} rows are too few, the network needs {self.lookback}"])
        return self._window(values, len(values), clock, str(file))

    def _known_windows(self) -> list[tuple[Tensor, dict[str, list[Any]]]]:
        """All windows of `predict_split` whose forecasts do not overlap, or the last one of the test."""
        values, clock = self.regular
        first, second, test = self.borders
        starts = {"train": self.lookback, "val": first, "test": test}
        ends = {"train": first, "val": second, "test": len(values)}
        split = self.predict_split or "test"
        start = starts[split] if self.predict_split else len(values) - self.horizon
        windows = []
        for row in range(start, ends[split] - self.horizon + 1, self.horizon):
            inputs, columns = self._window(values, row, clock, split)
            windows.append((inputs, columns | {"truth": values[row : row + self.horizon].flatten().tolist()}))
        return windows

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
        train, repeats = self.train, 1000 // len(self.train)
        if repeats > 1:  # each of few windows is read several times in an epoch
            train = BatchDataset(*(each.repeat(repeats, 1, 1) for each in train.tensors))
        return self._loader(train, shuffle=True)

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
