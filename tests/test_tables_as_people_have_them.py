"""Tables, texts and series in the forms that other programs write are read correctly."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import Bake

pytestmark = pytest.mark.slow


def module_of(bake: Bake, variant: str) -> Iterator[ModuleType]:
    """The data module of a baked project, imported into this process."""
    project = bake(variant=variant, project_name=f"own_{variant.replace('-', '_')}")
    sys.path.insert(0, str(project.path))
    loaded = set(sys.modules)
    try:
        yield import_module("data.data_module")
    finally:
        sys.path.remove(str(project.path))
        for name in set(sys.modules) - loaded:
            if name.split(".")[0] == "data":
                del sys.modules[name]


@pytest.fixture
def tabular(bake: Bake) -> Iterator[ModuleType]:
    yield from module_of(bake, "tabular")


@pytest.fixture
def forecast(bake: Bake) -> Iterator[ModuleType]:
    yield from module_of(bake, "forecast")


@pytest.fixture
def texts(bake: Bake) -> Iterator[ModuleType]:
    yield from module_of(bake, "text-rnn")


def write(folder: Path, text: str, name: str = "rows.csv", encoding: str = "utf-8") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def read(module: ModuleType, file: Path, **options: Any) -> Any:
    """A data module that has read a file for training."""
    data = module.MyDataModule(csv=str(file), **options)
    data.setup("fit")
    return data


# Series


def series(forecast: ModuleType, folder: Path, times: list[str], header: str = "time", **options: Any) -> Any:
    """A data module with a series at times, each of which may fill several columns."""
    values = np.sin(np.arange(len(times))).round(3)
    rows = [f"{time},{value}" for time, value in zip(times, values, strict=True)]
    return read(
        forecast, write(folder, "\n".join([f"{header},load", *rows])), **{"lookback": 8, "horizon": 2} | options
    )


def labels(data: Any) -> list[str]:
    values, clock = data.regular
    return [clock.label(0), clock.label(len(values) - 1)]


DAYS = pd.date_range("2020-01-01", periods=100, freq="D")
MONTHS = pd.date_range("2000-01-01", periods=100, freq="MS")


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%b-%Y", "%B %d, %Y", "%Y%m%d"])
def test_days_in_any_order_are_read_in_one(forecast: ModuleType, tmp_path: Path, form: str) -> None:
    times = [f'"{time}"' for time in DAYS.strftime(form)]
    assert labels(series(forecast, tmp_path, times)) == ["2020-01-01 00:00:00", "2020-04-09 00:00:00"]


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y", "%Y-%m", "%m/%Y", "%b %Y", "%Y%m"])
def test_months_are_calendar_steps(forecast: ModuleType, tmp_path: Path, form: str) -> None:
    data = series(forecast, tmp_path, list(MONTHS.strftime(form)))
    assert labels(data) == ["2000-01", "2008-04"]
    assert len(data.regular[0]) == 100


def test_weekends_are_not_filled_in_a_series_without_them(
    forecast: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = pd.bdate_range("2020-01-01", periods=100).delete(40)  # a holiday
    data = series(forecast, tmp_path, list(days.strftime("%Y-%m-%d")))
    printed = capsys.readouterr().out
    assert "without weekends" in printed and "1 of 100 values are missing" in printed
    values, clock = data.regular
    assert (len(values), clock.season) == (100, 5)
    assert labels(data) == ["2020-01-01 00:00:00", "2020-05-19 00:00:00"]
    assert [clock.label(step) for step in (2, 3)] == ["2020-01-03 00:00:00", "2020-01-06 00:00:00"]
    week = pd.Series(pd.bdate_range("2020-01-06", periods=5, tz="UTC"))
    assert not forecast.Clock(week).weekdays  # it may belong to a series with weekends


def test_days_that_could_be_months_are_reported_with_the_flag(
    forecast: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [f"{day:02}/01/2020" for day in range(1, 13)]
    data = series(forecast, tmp_path, times, lookback=3, horizon=1)
    assert "--data.time_format" in capsys.readouterr().out
    assert labels(data) == ["2020-01", "2020-12"]
    data = series(forecast, tmp_path, times, lookback=3, horizon=1, time_format="%d/%m/%Y")
    assert labels(data) == ["2020-01-01 00:00:00", "2020-01-12 00:00:00"]


@pytest.mark.parametrize("time", ["{}-01", "month {}", "13/03/{:02}"])
def test_times_without_a_whole_year_are_asked_about(forecast: ModuleType, tmp_path: Path, time: str) -> None:
    times = [time.format(i) for i in range(1, 60)]
    with pytest.raises(OSError, match=r"--data\.time_format"):
        series(forecast, tmp_path, times)
    assert labels(series(forecast, tmp_path, times, time="none")) == ["0", "58"]


@pytest.mark.parametrize("factor", [1, 1000])
def test_seconds_since_1970_are_dates(forecast: ModuleType, tmp_path: Path, factor: int) -> None:
    times = [str((1704067200 + 3600 * i) * factor) for i in range(100)]
    assert labels(series(forecast, tmp_path, times)) == ["2024-01-01 00:00:00", "2024-01-05 03:00:00"]
    assert labels(series(forecast, tmp_path, times, time_format="number"))[0] == times[0]


@pytest.mark.parametrize("step", ["100ms", "250us"])
def test_steps_may_be_fractions_of_a_second(forecast: ModuleType, tmp_path: Path, step: str) -> None:
    times = pd.date_range("2024-01-01", periods=100, freq=step).strftime("%Y-%m-%d %H:%M:%S.%f")
    data = series(forecast, tmp_path, list(times))
    assert len(data.regular[0]) == 100
    assert pd.Timestamp(labels(data)[1]) == pd.Timestamp(times[-1])


def test_rounded_times_are_regular(forecast: ModuleType, tmp_path: Path) -> None:
    times = [f"2024-01-01 00:00:{i / 3:06.3f}" for i in range(150)]
    assert len(series(forecast, tmp_path, times).regular[0]) == 150


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("Date,Time", "%d/%m/%Y,%H.%M.%S"),
        ("dteday,hr", "%Y-%m-%d,%H"),
        ("No,year,month,day,hour", "7,%Y,%m,%d,%H"),
        ("row,when", "5,%Y-%m-%d %H:%M"),
        ("when,hour", "%Y-%m-%dT%H:%M:%SZ,%H"),
    ],
)
def test_times_may_stand_in_any_columns(forecast: ModuleType, tmp_path: Path, header: str, form: str) -> None:
    times = list(pd.date_range("2020-01-01", periods=100, freq="h").strftime(form))
    data = series(forecast, tmp_path, times, header)
    assert labels(data) == ["2020-01-01 00:00:00", "2020-01-05 03:00:00"]
    assert "load" in data.columns


def test_unknown_format_of_times_is_refused(forecast: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"--data\.time_format '%Q'"):
        series(forecast, tmp_path, list(DAYS.strftime("%Y-%m-%d")), time_format="%Q")


def test_two_columns_of_dates_are_asked_about(forecast: ModuleType, tmp_path: Path) -> None:
    times = [f"x,{day},{day}" for day in DAYS.strftime("%Y-%m-%d")]
    with pytest.raises(OSError, match=r"begun and ended .*--data\.time"):
        series(forecast, tmp_path, times, "kind,begun,ended")
    assert series(forecast, tmp_path, times, "kind,begun,ended", time="ended").times == ["ISO8601", "ended"]


def test_rows_with_the_newest_first_are_reversed(forecast: ModuleType, tmp_path: Path) -> None:
    data = series(forecast, tmp_path, list(DAYS[::-1].strftime("%Y-%m-%d")))
    assert labels(data)[0] == "2020-01-01 00:00:00"
    assert data.regular[0][-1, 0] == 0


def test_gaps_at_the_start_are_left_out_and_those_of_years_are_not_filled(forecast: ModuleType, tmp_path: Path) -> None:
    lines = [f"{day};{'NA' if i < 5 else f'{i},5'}" for i, day in enumerate(DAYS.strftime("%d.%m.%Y"))]
    data = read(forecast, write(tmp_path, "\n".join(["day;load", *lines])), lookback=8, horizon=2)
    assert data.regular[0][:2, 0].tolist() == [5.5, 6.5]
    with pytest.raises(OSError, match="lacks 8 steps"):
        read(forecast, write(tmp_path, "\n".join(["day;load", *lines[:50], *lines[58:]])), lookback=8, horizon=2)


def test_a_forecast_is_read_as_the_training_file_was(forecast: ModuleType, tmp_path: Path) -> None:
    data = series(forecast, tmp_path, list(DAYS.strftime("%d/%m/%Y")))
    new = [f"{day},{i}.5" for i, day in enumerate(pd.date_range("2021-02-01", periods=9).strftime("%d/%m/%Y"))]
    data.inputs = [str(write(tmp_path, "\n".join(["time,load", *new]), "new.csv"))]
    data.setup("predict")
    assert data.predict[0][1]["time"][0] == "2021-02-10 00:00:00"


@pytest.mark.parametrize(
    ("freq", "zone", "first", "last"),
    [
        ("MS", "Europe/Berlin", "2020-06", "2028-09"),
        ("D", "Europe/Berlin", "2020-06-01 00:00:00", "2020-09-08 00:00:00"),
        ("B", "America/New_York", "2020-06-01 00:00:00", "2020-10-16 00:00:00"),
        ("h", "Europe/Berlin", "2020-05-31 22:00:00", "2020-06-05 01:00:00"),
    ],
)
def test_days_keep_their_local_time_and_other_times_become_utc(
    forecast: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    freq: str,
    zone: str,
    first: str,
    last: str,
) -> None:
    times = [time.isoformat() for time in pd.date_range("2020-06-01", periods=100, freq=freq, tz=zone)]
    data = series(forecast, tmp_path, times)
    assert labels(data) == [first, last]
    assert len(data.regular[0]) == 100
    assert ("offset are converted to UTC" in capsys.readouterr().out) == (freq == "h")


def test_weekdays_may_be_at_any_time_of_the_day(forecast: ModuleType, tmp_path: Path) -> None:
    days = pd.bdate_range("2020-01-02", periods=100)
    data = series(forecast, tmp_path, list(days.strftime("%m/%d/%Y 16:00:00")))
    assert labels(data) == ["2020-01-02 16:00:00", "2020-05-20 16:00:00"]
    assert (data.regular[1].weekdays, len(data.regular[0])) == (True, 100)


def test_filled_values_are_counted_and_rows_without_values_at_the_end_are_left_out(
    forecast: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{day},{'' if i >= 95 or i % 20 in (10, 11) else i}" for i, day in enumerate(DAYS.strftime("%Y-%m-%d"))]
    data = read(forecast, write(tmp_path, "\n".join(["time,load", *rows])), lookback=8, horizon=2)
    assert labels(data)[1] == "2020-04-04 00:00:00"
    assert data.regular[0][-1, 0] == 94
    printed = capsys.readouterr().out
    assert "10 of 95 values are missing" in printed and "the last 5 rows" in printed


@pytest.mark.parametrize(
    ("header", "form", "options"),
    [
        ("quarter", "{year}Q{quarter}", {}),
        ("time", "{year}-Q{quarter}", {}),
        ("year,quarter", "{year},{quarter}", {}),
        ("Year,Quarter", "{year},{quarter}", {"time": ["Year", "Quarter"]}),
        ("time", "{year}-W{week:02}", {}),
        ("time", "{year}{week:02}", {}),
        ("time", "{year}.{quarter:02}", {}),
    ],
)
def test_quarters_and_weeks_are_refused_by_name(
    forecast: ModuleType, tmp_path: Path, header: str, form: str, options: dict[str, Any]
) -> None:
    periods = [(1980 + i // 4, i % 4 + 1) for i in range(100)]
    times = [form.format(year=year, quarter=quarter, week=13 * quarter) for year, quarter in periods]
    with pytest.raises(OSError, match="quarters, weeks or months"):
        series(forecast, tmp_path, times, header, **options)


def test_only_repeated_times_are_named_in_a_series_with_the_newest_first(forecast: ModuleType, tmp_path: Path) -> None:
    days = list(DAYS.strftime("%Y-%m-%d"))
    days.insert(50, days[49])
    with pytest.raises(OSError, match="not later") as refused:
        series(forecast, tmp_path, days[::-1])
    assert [line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:-1]] == ["line 52"]


@pytest.mark.parametrize("header", ["year,month,day,min,max", "year,month,day,second,max", "min,year,month,day,max"])
def test_parts_of_times_follow_the_coarser_part(forecast: ModuleType, tmp_path: Path, header: str) -> None:
    form = {"year": "%Y", "month": "%m", "day": "%d"}
    times = DAYS.strftime(",".join(form.get(name, "1%w") for name in header.split(",")))
    data = series(forecast, tmp_path, list(times), header)
    assert labels(data) == ["2020-01-01 00:00:00", "2020-04-09 00:00:00"]
    assert data.columns == [name for name in (*header.split(","), "load") if name not in form]


def test_offsets_may_have_no_minutes(forecast: ModuleType, tmp_path: Path) -> None:
    for freq, last in (("MS", "2028-04"), ("B", "2020-05-19 00:00:00")):
        times = pd.date_range("2020-01-01", periods=100, freq=freq, tz="Europe/Berlin")
        texts = [time.strftime("%Y-%m-%d %H:%M:%S%z").removesuffix("00") for time in times]
        data = series(forecast, tmp_path, texts)
        assert labels(data)[1] == last and len(data.regular[0]) == 100


def test_few_rows_on_weekends_are_named(forecast: ModuleType, tmp_path: Path) -> None:
    days = [*pd.bdate_range("2020-01-01", periods=100), pd.Timestamp("2020-02-08")]
    with pytest.raises(OSError, match="weekends") as refused:
        series(forecast, tmp_path, [f"{day:%Y-%m-%d}" for day in sorted(days)])
    assert [line.split(":")[0].strip() for line in str(refused.value).splitlines()[2:]] == ["line 30"]


@pytest.mark.parametrize("freq", ["BME", "BMS", "BQE", "WOM-3FRI"])
def test_times_in_equally_many_months_are_months(forecast: ModuleType, tmp_path: Path, freq: str) -> None:
    times = pd.date_range("2000-01-01", periods=60, freq=freq)
    data = series(forecast, tmp_path, list(times.strftime("%Y-%m-%d")))
    assert labels(data) == list(times[[0, -1]].strftime("%Y-%m")) and len(data.regular[0]) == 60


def test_steps_of_thirty_days_are_not_months(forecast: ModuleType, tmp_path: Path) -> None:
    times = pd.date_range("2000-01-15", periods=20, freq="30D")
    assert labels(series(forecast, tmp_path, list(times.strftime("%Y-%m-%d"))))[0] == "2000-01-15 00:00:00"


def test_new_series_have_the_steps_of_the_training_series(forecast: ModuleType, tmp_path: Path) -> None:
    days = pd.bdate_range("2020-01-01", periods=100)
    data = series(forecast, tmp_path, list(days.strftime("%Y-%m-%d")), lookback=5)

    def predict(times: pd.DatetimeIndex, data: Any = data) -> Any:
        rows = [f"{time},{i}" for i, time in enumerate(times)]
        data.inputs = [str(write(tmp_path, "\n".join(["time,load", *rows]), "new.csv"))]
        data.setup("predict")
        return data.predict[0]

    inputs, columns = predict(days[-5:])  # from Wednesday to Tuesday
    assert inputs.flatten().tolist() == [0, 1, 2, 3, 4]
    assert columns["time"] == ["2020-05-20 00:00:00", "2020-05-21 00:00:00"]
    with pytest.raises(OSError, match=r"line 4: 2020-01-04 .* between two steps"):
        predict(pd.date_range("2020-01-02", periods=20))
    months = series(forecast, tmp_path, list(MONTHS.strftime("%Y-%m-%d")))
    assert predict(MONTHS[:9], months)[1]["time"] == ["2000-10", "2000-11"]
    with pytest.raises(OSError, match=r"line 3: 2000-01-20 .* between two steps"):
        predict(MONTHS[:9].insert(1, pd.Timestamp("2000-01-20")), months)
    hours = series(forecast, tmp_path, list(pd.date_range("2020-01-01", periods=100, freq="h").astype(str)))
    for freq, ratio in (("D", "24 times"), ("2h", "2 times"), ("15min", "0.25 times")):
        with pytest.raises(OSError, match=ratio):
            predict(pd.date_range("2020-01-01", periods=20, freq=freq), hours)


def test_changes_too_small_for_float32_are_warned_about(
    forecast: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for start, warned in ((5e8, True), (5e5, False)):
        rows = [f"{day},{start + 3 * i:.0f},{i % 9}" for i, day in enumerate(DAYS.strftime("%Y-%m-%d"))]
        read(forecast, write(tmp_path, "\n".join(["day,meter,load", *rows])), lookback=8, horizon=2)
        printed = capsys.readouterr().err
        assert ("'meter'" in printed) == warned and "'load'" not in printed


# Tables


def table(rows: int = 200, separator: str = ";", decimal: str = ",") -> str:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(5, 2, (rows, 3)).round(2), columns=["a", "b", "c"])
    frame["kind"] = np.where(frame["a"] > frame["b"], "up", "down")
    return frame.to_csv(index=False, sep=separator, decimal=decimal)


@pytest.mark.parametrize(
    ("separator", "decimal"), [(";", ","), (";", "."), ("\t", ","), ("|", "."), (",", "."), (" ", ".")]
)
def test_separators_and_decimal_signs_are_found(
    tabular: ModuleType, tmp_path: Path, separator: str, decimal: str
) -> None:
    expected = read(tabular, write(tmp_path, table(separator=",", decimal=".")))
    data = read(tabular, write(tmp_path, table(separator=separator, decimal=decimal).replace(" ", "   "), "other.csv"))
    assert data.numbers == expected.numbers
    assert data.frame.equals(expected.frame)


def test_a_first_row_of_data_is_refused_without_the_header_flag(tabular: ModuleType, tmp_path: Path) -> None:
    file = write(tmp_path, table().partition("\n")[2])
    with pytest.raises(OSError, match=r"line 1 .*--data\.header none"):
        read(tabular, file)
    data = read(tabular, file, header="none")
    assert len(data.frame) == 200
    assert data.target == "column_4" and list(data.numbers) == ["column_1", "column_2", "column_3"]
    assert "1.5" in read(tabular, write(tmp_path, table().replace("a;", "1.5;", 1)), header="first").frame


def test_a_first_row_of_known_categories_is_not_a_header(tabular: ModuleType, tmp_path: Path) -> None:
    file = write(tmp_path, "p,x,s\ne,x,s\np,f,y\n" * 30)
    with pytest.raises(OSError, match=r"--data\.header none"):
        read(tabular, file)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (["1,234.5", "2,500", "12", "0.5"], [1234.5, 2500, 12, 0.5]),
        (["1.234,5", "2.500", "12", "0,5"], [1234.5, 2500, 12, 0.5]),
        (["1 234,5", "2'500", "12", "0,5"], [1234.5, 2500, 12, 0.5]),
        (["5%", "12.5%", "0 %", "99%"], [5, 12.5, 0, 99]),
        (["$5", "$1,200.50", "-$3", "($7)"], [5, 1200.5, -3, -7]),
        (["5 €", "1.200,50 €", "\u22123 €", "7,5€"], [5, 1200.5, -3, 7.5]),
        (["1e3", "NA", "", "-.5"], [1000, np.nan, np.nan, -0.5]),
    ],
)
def test_numbers_as_people_write_them(
    tabular: ModuleType, tmp_path: Path, written: list[str], number: list[float]
) -> None:
    rows = [f"{text}|{i % 2}|{'xy'[i % 2]}" for i, text in enumerate(written * 30)]
    data = tabular.MyDataModule(csv=str(write(tmp_path, "\n".join(["price|odd|kind", *rows]))))
    assert data.frame["price"].tolist()[:4] == pytest.approx(number, nan_ok=True)


def test_commas_that_can_be_read_in_two_ways_are_asked_about(tabular: ModuleType, tmp_path: Path) -> None:
    text = "\n".join(["n;kind", *(f"{i},{i + 100};{'xy'[i % 2]}" for i in range(1, 90))])
    file = write(tmp_path, text)
    with pytest.raises(OSError, match=r"'n'.*--data\.decimal"):
        read(tabular, file)
    assert read(tabular, file, decimal=",").frame["n"].iloc[0] == 1.101
    assert read(tabular, file, decimal=".").frame["n"].iloc[0] == 1101


def test_lists_beside_numbers_with_points_are_asked_about(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f'"{i % 5},{i % 9}","{i % 4},{i % 3}",{i}.5,{"xy"[i % 2]}' for i in range(90)]
    file = write(tmp_path, "\n".join(["tags,more,x,kind", *rows]))
    with pytest.raises(OSError, match=r"'tags'.*--data\.decimal"):
        read(tabular, file)
    data = read(tabular, file, decimal=".")
    assert list(data.numbers) == ["x"] and list(data.categories) == ["tags", "more"]


def test_percentages_beside_fractions_are_named(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{i % 7}%,{'xy'[i % 2]}" for i in range(90)]
    with pytest.raises(OSError, match=r"line 92: 'share' is '0\.5'"):
        read(tabular, write(tmp_path, "\n".join(["share,kind", *rows, "0.5,x"])))


def test_comments_at_the_start_are_left_out_but_not_a_header(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read(tabular, write(tmp_path, "# made in 2020; in cm\n#\n" + table()))
    assert "are comments" in capsys.readouterr().out
    assert (len(data.frame), data.frame.index[0]) == (len(read(tabular, write(tmp_path, table())).frame), 4)
    capsys.readouterr()
    header, rows = table().split("\n", 1)
    data = read(tabular, write(tmp_path, f"#{header}\n{rows}"))
    assert data.frame.columns[0] == "#a"
    assert "are comments" not in capsys.readouterr().out


@pytest.mark.parametrize("row", ["u{},v{},{}", "{},{},{}"])
@pytest.mark.parametrize("comment", ["# made by Foo, Bar, Baz on 2020", "# made by A, B, C and D", "# x"])
def test_comments_may_have_as_many_fields_as_the_header(
    tabular: ModuleType, tmp_path: Path, row: str, comment: str
) -> None:
    rows = [row.format(i % 7, i % 9, "ab"[i % 2]) for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join([comment, "x,y,k", *rows])))
    assert list(data.frame) == ["x", "y", "k"] and len(data.frame) == 90


def test_a_header_may_begin_with_a_number_sign(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{i % 7} {i % 9}.5 {i % 5}.5" for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join(["# first run", "# x y z", *rows])))
    assert list(data.frame) == ["x", "y", "z"] and len(data.frame) == 90
    rows = [f"{i},name {i % 20},{'ab'[i % 2]}" for i in range(90)]
    assert list(read(tabular, write(tmp_path, "\n".join(["#,name,k", *rows]))).frame) == ["#", "name", "k"]


@pytest.mark.parametrize("start", ["|1x3 Cross validator", "Station: 3, North", "Station\n1"])
def test_a_title_above_the_header_is_one_error(tabular: ModuleType, tmp_path: Path, start: str) -> None:
    rows = [f"{i % 7}.5,{i % 9},{i % 5},{'ab'[i % 2]}" for i in range(90)]
    with pytest.raises(OSError, match="line 1 if it is a title") as refused:
        read(tabular, write(tmp_path, "\n".join([start, *rows])), header="none")
    assert len(str(refused.value).splitlines()) == 3


def test_arff_is_refused_as_such(tabular: ModuleType, tmp_path: Path) -> None:
    text = "% a title\n%\n\n@RELATION iris\n@attribute x numeric\n@data\n" + "1,2\n" * 40
    with pytest.raises(OSError, match="it is ARFF"):
        read(tabular, write(tmp_path, text))


def test_trailing_separators_and_padded_names_are_corrected(tabular: ModuleType, tmp_path: Path) -> None:
    lines = table(separator=",", decimal=".").splitlines()
    plain = read(tabular, write(tmp_path, "\n".join(lines)))
    for number, changed in enumerate(
        [
            [lines[0] + ",,", *lines[1:]],
            [line + "," for line in lines],
            [lines[0], *(line + "," for line in lines[1:])],
            [lines[0], *(line + ",," for line in lines[1:])],
            [" a , b,c ,kind", *lines[1:], ",,,"],
            [("" if i == 0 else str(i + 500)) + "," + line for i, line in enumerate(lines)],
            [("Unnamed: 0" if i == 0 else str(i * 7)) + "," + line for i, line in enumerate(lines)],
            [lines[0], *(f'"name {i}",{line}' for i, line in enumerate(lines[1:]))],
        ]
    ):
        data = read(tabular, write(tmp_path, "\n".join(changed), f"{number}.csv"))
        assert list(data.numbers) == ["a", "b", "c"] and not data.categories and data.target == "kind"
        assert data.frame[["a", "b", "c", "kind"]].to_numpy().tolist() == plain.frame.to_numpy().tolist()


def test_repeated_names_are_numbered_but_refused_as_a_target(tabular: ModuleType, tmp_path: Path) -> None:
    file = write(tmp_path, table().replace("a;b;c", "a;b;a", 1))
    assert list(read(tabular, file).numbers) == ["a", "b", "a.1"]
    with pytest.raises(OSError, match="several columns are named 'a'"):
        read(tabular, file, target="a")


def test_a_header_that_is_repeated_below_is_left_out(tabular: ModuleType, tmp_path: Path) -> None:
    data = read(tabular, write(tmp_path, "sep=;\n" + table() + table()))
    assert len(data.frame) == 400 and list(data.numbers) == ["a", "b", "c"]


def test_one_column_and_missing_classes_are_refused_by_name(tabular: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"one column only.*--data\.separator"):
        read(tabular, write(tmp_path, "a\n" + "\n".join(map(str, range(99)))))
    with pytest.raises(OSError, match="99 different values"):
        read(tabular, write(tmp_path, "a,name\n" + "\n".join(f"{i}.5,n{i}" for i in range(99))))


def test_texts_for_gaps_are_named_with_the_flag(tabular: ModuleType, tmp_path: Path) -> None:
    file = write(
        tmp_path, "a,b,kind\n" + "\n".join(f"{'-' if i % 30 == 0 else i},{i}.5,{'xy'[i % 2]}" for i in range(99))
    )
    with pytest.raises(OSError, match=r"--data\.missing(.|\n)*line 2: 'a' is '-'"):
        read(tabular, file)
    assert read(tabular, file, missing=["-"]).frame["a"].isna().sum() == 4


def test_classes_may_be_called_none(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{i}.5,{('None', 'NA', 'mild', 'nan')[i % 4]}" for i in range(120)]
    data = read(tabular, write(tmp_path, "\n".join(["x,state", *rows])))
    assert data.class_names == ["NA", "None", "mild", "nan"]
    assert len(data.frame) == 120


def test_rows_without_a_target_are_left_out_and_counted(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(separator=",", decimal=".").splitlines()
    lines[1:11] = [line.rpartition(",")[0] + "," for line in lines[1:11]]
    assert len(read(tabular, write(tmp_path, "\n".join(lines))).frame) == 190
    assert "10 rows without a value of 'kind' are left out" in capsys.readouterr().out


def test_booleans_have_one_spelling(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{i}.5,{('yes', 'No', 'YES', 'no')[i % 4]},{('TRUE', 'false')[i % 2]}" for i in range(120)]
    file = write(tmp_path, "\n".join(["x,smokes,ill", *rows]))
    data = read(tabular, file)
    assert data.task == "binary" and data.class_names == ["TRUE", "false"]
    assert len(data.categories["smokes"]) == 2
    data.inputs = [str(write(tmp_path, "x,smokes\n1,yEs\n1,Yes\n2,NO\n", "new.csv"))]
    data.setup("predict")
    first, second, third = (features[1].item() for features, _ in data.predict)
    assert {first, third} == {1, 2} and second == first


def test_booleans_are_spelt_in_every_part_as_in_the_whole_file(tabular: ModuleType, tmp_path: Path) -> None:
    kinds = np.random.default_rng(0).choice(["Yes", "yes", "YES ", "no", "No"], (120, 2))
    rows = [f"{i}.5,{smokes},{ill}" for i, (smokes, ill) in enumerate(kinds)]
    file, names = write(tmp_path, "\n".join(["x,smokes,ill", *rows])), set()
    for fold in range(1, 7):
        data = read(tabular, file, folds=6, fold=fold)
        data.predict_split, data.inputs = "val", []
        data.setup("predict")
        truths = {columns["truth"] for _, columns in data.predict}
        data.inputs = [str(write(tmp_path, "x,smokes,ill\n1,yes,yEs\n2,no,NO\n", "new.csv"))]
        data.setup("predict")
        truths |= {columns["truth"] for _, columns in data.predict}
        assert truths == {*data.class_names}
        names.add((*data.class_names, *data.categories["smokes"]))
    assert len(names) == 1 and len(data.class_names) == 2


def test_gaps_of_database_dumps_are_gaps(tabular: ModuleType, tmp_path: Path) -> None:
    gap = r"\N"
    rows = [f"{gap if i % 5 == 0 else i},{gap if i % 3 == 0 else 'ab'[i % 2]},{i % 7}.5" for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join(["a,kind,y", *rows])))
    assert list(data.numbers) == ["a"] and data.categories["kind"] == ["(missing)", "a", "b"]
    rows = [f"{i % 9},{gap if i % 30 == 0 else 'ab'[i % 2]}" for i in range(90)]
    assert read(tabular, write(tmp_path, "\n".join(["a,kind", *rows]))).class_names == ["a", "b"]


@pytest.mark.parametrize("value", ["{i}.5", "2020-01-{day:02}"])
def test_categories_that_are_mostly_numbers_or_dates_are_noted(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    rows = [f"{'none yet' if i % 4 == 0 else value.format(i=i % 9, day=i % 9 + 1)},u{i % 3},{i}.5" for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join(["a,kind,y", *rows])))
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "--data.numeric" in line]
    assert "'a'" in note and "--data.missing" in note and list(data.categories) == ["a", "kind"]
    assert list(read(tabular, tmp_path / "rows.csv", missing=["none yet"]).numbers) == ["a"]


def test_a_first_date_of_zeros_is_asked_about(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{'0000-00-00' if i % 30 == 0 else day},{i}.5" for i, day in enumerate(DAYS.strftime("%Y-%m-%d"))]
    file = write(tmp_path, "\n".join(["day,y", *rows]))
    with pytest.raises(OSError, match=r"--data\.missing(.|\n)*line 2: 'day' is '0000-00-00'"):
        read(tabular, file)
    assert read(tabular, file, missing=["0000-00-00"]).forms["day"] == "ISO8601"


def test_few_texts_among_numbers_may_be_categories(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{'a' if i % 30 == 0 else 0},{i % 9},{i}.5" for i in range(90)]
    file = write(tmp_path, "\n".join(["holiday,x,y", *rows]))
    with pytest.raises(OSError, match=r"--data\.categorical.*--data\.missing"):
        read(tabular, file)
    assert read(tabular, file, categorical=["holiday"]).categories == {"holiday": ["0", "a"]}


@pytest.mark.parametrize("ignore", [["kind"], ["a", "b", "c"]])
def test_target_and_at_least_one_column_remain(tabular: ModuleType, tmp_path: Path, ignore: list[str]) -> None:
    with pytest.raises(OSError, match=r"target 'kind' (is|are) in --data\.ignore"):
        read(tabular, write(tmp_path, table()), ignore=ignore)


def test_decimal_commas_of_a_single_column_are_not_row_names(tabular: ModuleType, tmp_path: Path) -> None:
    data = read(tabular, write(tmp_path, "x;y\n" + "\n".join(f"{i},5;{i % 7},5" for i in range(90))))
    data.inputs = [str(write(tmp_path, "x\n1,5\n2,5\n3,7\n", "new.csv"))]
    with pytest.raises(OSError, match=r"(?s)--data\.separator.*line 2: 2 fields, but the header has 1"):
        data.setup("predict")


def test_truths_of_new_rows_may_be_unknown_and_booleans_may_be_those_of_json(
    tabular: ModuleType, tmp_path: Path
) -> None:
    rows = [f"{i % 9},{i % 2 == 0},{i}.5" for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join(["x,f,y", *rows])))
    new = json.dumps([{"x": 1, "f": True}, {"x": 1, "f": "true"}, {"x": 1, "f": False}])
    data.inputs = [str(write(tmp_path, "x,f,y\n1,True,TBD\n1,False,7.5\n", "new.csv"))]
    data.setup("predict")
    assert [columns["truth"] for _, columns in data.predict] == ["(missing)", "7.5"]
    data.inputs = [str(write(tmp_path, new, "new.json"))]
    data.setup("predict")
    first, second, third = (features[1].item() for features, _ in data.predict)
    assert first == second == data.categories["f"].index("True") + 1 and third == 3 - first
    data.inputs = [str(write(tmp_path, '[{"x": [1], "f": true}]', "new.json"))]
    with pytest.raises(OSError, match="item 1: 'x' is a list"):
        data.setup("predict")


def test_dates_are_numbers(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{day},{'xy'[i % 2]}" for i, day in enumerate(DAYS.strftime("%d.%m.%Y"))]
    data = read(tabular, write(tmp_path, "\n".join(["day,kind", *rows])))
    assert data.forms == {"day": "%d.%m.%Y"}
    assert data.frame["day"].diff().dropna().eq(1).all()


def test_new_rows_are_read_as_those_for_training_were(tabular: ModuleType, tmp_path: Path) -> None:
    data = read(tabular, write(tmp_path, table()))
    data.inputs = [str(write(tmp_path, "a;b;c\n1,234;5;6\n", "new.csv"))]
    data.setup("predict")
    (mean, std), ((numbers, _), _) = data.numbers["a"], data.predict[0]
    assert numbers[0].item() == pytest.approx((1.234 - mean) / std, rel=1e-5)


def test_files_for_splits_are_used_as_such(tabular: ModuleType, tmp_path: Path) -> None:
    lines = table(separator=",", decimal=".").splitlines()
    parts = {"My_Training.csv": lines[1:120], "DEV.csv": lines[120:150], "test.csv": lines[150:]}
    for name, part in parts.items():
        write(tmp_path / "set", "\n".join([lines[0], *part]), name)
    write(tmp_path / "set", "no table", "readme.txt")
    data = read(tabular, tmp_path / "set")
    assert [len(part) for part in data.splits.values()] == [119, 30, 51]
    without_target = "\n".join(line.rpartition(",")[0] for line in (lines[0], *lines[150:]))
    write(tmp_path / "set", without_target, "test.csv")
    (tmp_path / "set" / "DEV.csv").unlink()
    assert sum(len(part) for part in read(tabular, tmp_path / "set").splits.values()) == 119


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "cp1251"])
def test_encodings_are_found(tabular: ModuleType, tmp_path: Path, encoding: str) -> None:
    word = "погода" if encoding == "cp1251" else "Böe"
    rows = [f"{i}.5,{(word, 'x')[i % 2]}" for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join([f"x,{word}", *rows]), encoding=encoding), target=word)
    assert set(data.class_names) == {word, "x"}


def test_encoding_of_rows_to_predict_is_reported(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{i}.5,{('Böe', 'Föhn')[i % 2]},{'xy'[i % 2]}" for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join(["a,wind,kind", *rows])))
    data.inputs = [str(write(tmp_path, "a,wind\n1,Böe\n", "new.csv", "cp1252"))]
    data.setup("predict")
    assert "new.csv is not UTF-8, so it is read as cp1252" in capsys.readouterr().err
    assert data.predict[0][0][1].item() == 1


def test_workbooks_are_refused_as_such(tabular: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(OSError, match="workbook"):
        read(tabular, tmp_path / "rows.csv")


def test_summary_of_the_data_is_printed_once_before_training(bake: Bake, tmp_path: Path) -> None:
    project = bake(variant="tabular", project_name="own_tabular")
    flags = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.max_epochs=1"]
    file = write(tmp_path, table())
    printed = project.run("training/train.py", f"--data.csv={file}", *flags).stdout
    assert printed.count(f"data: {file}, 200 rows:") == 1
    assert printed.index("down (") < printed.index("epoch 0")
    evaluated = project.run("training/evaluate.py", "--trainer.accelerator=cpu").stdout
    assert evaluated in printed and "data:" not in evaluated
    assert len(json.loads(project.run("training/predict.py", file, "--format=json").stdout)) == 200


def test_rows_with_more_fields_than_the_header_are_refused(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{'xyz'[i % 3]},{12 + i % 13},{i % 10}" for i in range(150)]  # decimal commas
    with pytest.raises(OSError, match="line 2: 3 fields, but the header has 2"):
        read(tabular, write(tmp_path, "\n".join(["kind,temperature", *rows])))


def test_row_names_before_a_tab_are_read_if_they_differ(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"gene{i}\t{i * 7 % 50}\t{i * 3 % 40}\t{'xy'[i % 2]}" for i in range(120)]
    data = read(tabular, write(tmp_path, "\n".join(["a\tb\tkind", *rows])))
    assert list(data.numbers) == ["a", "b"] and data.frame["a"].tolist()[:3] == [0, 7, 14]


def test_row_names_without_a_heading_are_read_if_they_count_the_rows(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{i + 1} {i * 7 % 50} {i * 3 % 40} {'xy'[i % 2]}" for i in range(120)]
    file = write(tmp_path, "\n".join(["a b kind", *rows]))
    data = read(tabular, file, separator="blank")
    assert list(data.numbers) == ["a", "b"] and data.frame["a"].tolist()[:3] == [0, 7, 14]
    assert "are row names" in capsys.readouterr().out
    data.inputs = [str(write(tmp_path, "a b\n7 5 6\n8 6 7\n9 6 7\n", "new.csv"))]
    with pytest.raises(OSError, match="line 2: 3 fields, but the header has 2"):
        data.setup("predict")


def test_row_numbers_of_each_file_are_not_features(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, first in (("train.csv", 0), ("test.csv", 0.5)):
        rows = [f"{i},{i + 7},{i * 37 % 101 + first},{'xy'[i > 50]}" for i in range(100)]
        write(tmp_path / "set", "\n".join([",id,a,kind", *rows]), name)
    data = read(tabular, tmp_path / "set")
    assert list(data.numbers) == ["id", "a"]
    assert "column 'id' looks like row names or row numbers" in capsys.readouterr().err


def test_columns_may_be_called_like_those_without_a_name(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{i * 37 % 101}.5,{i % 7},{i}.5" for i in range(100)]
    data = read(tabular, write(tmp_path, "\n".join(["column_1,column_2,y", *rows])))
    assert list(data.numbers) == ["column_1", "column_2"]
    rows = [f"{i % 9},{i % 8},{i % 7},{'xy'[i % 2]}" for i in range(100)]
    assert list(read(tabular, write(tmp_path, "\n".join(["a,a,a.1,kind", *rows]))).numbers) == ["a", "a.2", "a.1"]


@pytest.mark.parametrize("separator", [",", ";"])
def test_values_for_gaps_are_compared_as_numbers(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], separator: str
) -> None:
    rows = [f"{'-999.0' if i % 8 == 0 else f'{i}.5'},{'-999' if i % 20 == 0 else i % 3},{i % 7}.5" for i in range(80)]
    text = "\n".join(["a,b,y", *rows])
    file = write(tmp_path, text if separator == "," else text.replace(",", ";").replace(".", ","))
    data = read(tabular, file, missing=["-999", "-200"])
    assert data.frame.isna().sum().tolist() == [10, 4, 0]
    warnings = capsys.readouterr().err
    assert "'-200'" in warnings and "'-999'" not in warnings


def test_categories_of_numbers_have_one_spelling_and_new_ones_are_counted(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{'' if i == 5 else f'{i % 3}.0'},{i}.5,{i % 7}.5" for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join(["code,a,y", *rows])), categorical=["code"])
    assert "not in train" not in capsys.readouterr().err
    data.inputs = [str(write(tmp_path, "code,a\n1,0\n1.0,0\n7,0\n8,0\n", "new.csv"))]
    data.setup("predict")
    first, second, third, _ = (features[1].item() for features, _ in data.predict)
    assert first == second == data.categories["code"].index("1") + 1 and third == 0
    warnings = capsys.readouterr().err
    assert warnings.count("\n") == 1 and "2 values of 'code'" in warnings and "new.csv, such as '7'" in warnings


def test_totals_at_the_end_are_left_out(
    tabular: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"shop {i % 9},{i % 50},{i}.5" for i in range(90)]
    data = read(tabular, write(tmp_path, "\n".join(["shop,staff,sales", *rows, "Total,2185,4050"])))
    assert len(data.frame) == 90 and data.frame["sales"].max() == 89.5
    assert "the last row of rows.csv is left out" in capsys.readouterr().err
    data.inputs = [str(write(tmp_path, "shop,staff\nshop 1,5\nshop 2,6\nTotal,eleven\n", "new.csv"))]
    data.setup("predict")
    assert len(data.predict) == 2 and "the last row of new.csv is left out" in capsys.readouterr().err


def test_ignored_columns_may_be_missing_in_other_files(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{i * 37 % 101},{'xy'[i % 2]}" for i in range(90)]
    write(tmp_path / "set", "\n".join(["id,a,kind", *(f"{i},{row}" for i, row in enumerate(rows))]), "train.csv")
    write(tmp_path / "set", "\n".join(["a,kind", *(f"0.{row}" for row in rows)]), "test.csv")
    assert len(read(tabular, tmp_path / "set", ignore=["id"]).splits["test"]) == 90


@pytest.mark.parametrize("start", [b"BZh91AY&SY", b"\xfd7zXZ\x00", b"SQLite format 3\x00", b"ARROW1\x00\x00"])
def test_binary_files_are_refused_as_such(tabular: ModuleType, tmp_path: Path, start: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(start + bytes(100))
    with pytest.raises(OSError, match="is a workbook, binary"):
        read(tabular, tmp_path / "rows.csv")


# Texts


def lines_of(label: str = "label") -> list[tuple[str, str]]:
    return [(("ham", "spam")[i % 2], f"{('my dear', 'cheap')[i % 2]} number {i}") for i in range(120)]


def test_lone_quotes_do_not_join_lines(texts: ModuleType, tmp_path: Path) -> None:
    rows = [f"{label}\t{text}" for label, text in lines_of()]
    rows[3] = 'spam\t"cheap" she said'
    rows[7], rows[20] = 'spam\t"cheap', 'ham\tmy dear"'
    data = read(texts, write(tmp_path, "\n".join(["label\ttext", *rows]), "rows.tsv"))
    assert sum(map(len, data.splits.values())) == 120
    rows[3] = "spam\tcheap"
    data = read(texts, write(tmp_path, "\n".join(["label\ttext", *rows]), "rows.tsv"))
    assert sum(map(len, data.splits.values())) == 120


def test_quotes_that_cannot_be_read_are_named_with_the_flag(texts: ModuleType, tmp_path: Path) -> None:
    rows = [f'{label},"{text}, or not"' for label, text in lines_of()]
    rows[3] = 'spam,"cheap" she said, "really"'
    file = write(tmp_path, "\n".join(["label,text", *rows]))
    with pytest.raises(OSError, match=r"line 5.*--data\.quotes literal"):
        read(texts, file)
    rows[3] = r'spam,"\"cheap\" she said, really"'
    data = read(texts, write(tmp_path, "\n".join(["label,text", *rows])))
    assert any('"cheap" she said, really' in part["text"].tolist() for part in data.splits.values())


def test_several_columns_of_text_are_joined(texts: ModuleType, tmp_path: Path) -> None:
    rows = [f"{label},title {i},{text}" for i, (label, text) in enumerate(lines_of())]
    data = read(texts, write(tmp_path, "\n".join(["label,title,body", *rows])), text="title,body")
    assert data.splits["train"]["text"].str.fullmatch(r"title \d+ .* number \d+").all()


def test_labels_and_texts_without_a_header(texts: ModuleType, tmp_path: Path) -> None:
    file = write(tmp_path, "\n".join(f"{label}\t{text}" for label, text in lines_of()), "messages")
    with pytest.raises(OSError, match=r"--data\.header none"):
        read(texts, file)
    data = read(texts, file, header="none")
    assert data.class_names == ["ham", "spam"] and sum(map(len, data.splits.values())) == 120


def test_a_first_row_with_the_number_of_a_class_is_refused(texts: ModuleType, tmp_path: Path) -> None:
    rows = [f'"{i % 2 + 1}","title {i}","{text}"' for i, (_, text) in enumerate(lines_of())]
    with pytest.raises(OSError, match=r"line 1 .*--data\.header none"):
        read(texts, write(tmp_path, "\n".join(rows)))


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_of_classes_are_lines_of_a_file(texts: ModuleType, tmp_path: Path, first: int) -> None:
    rows = [f'"{int(label == "spam") + first}","{text}"' for label, text in lines_of()]
    write(tmp_path / "set", "\n".join(rows[:80]), "train.csv")
    write(tmp_path / "set", "\n".join(rows[80:]), "test.csv")
    write(tmp_path / "set", "Ham\nSpam\n", "classes.txt")
    data = read(texts, tmp_path / "set", header="none")
    assert data.class_names == ["Ham", "Spam"]
    assert len(data.splits["test"]) == 40 and 0 < len(data.splits["val"]) < 40
    assert data.splits["test"]["text"][data.splits["test"]["label"] == "Spam"].str.startswith("cheap").all()


def test_numbers_of_classes_that_may_begin_at_0_or_1_are_asked_about(texts: ModuleType, tmp_path: Path) -> None:
    rows = [f"{int(label == 'spam') + 1},{text}" for label, text in lines_of()]
    write(tmp_path, "Ham\nSpam\nOther\n", "classes.txt")
    with pytest.raises(OSError, match="from 0 or 1"):
        read(texts, write(tmp_path, "\n".join(["label,text", *rows])))


def test_rows_that_differ_in_an_ignored_column_only_stay_together(tabular: ModuleType, tmp_path: Path) -> None:
    rows = [f"{i},{i % 40},{i % 40 * 2.5},{i % 7}.5" for i in range(200)]
    data = read(tabular, write(tmp_path, "\n".join(["id,a,b,y", *rows])), target="y", ignore=["id"])
    values = [set(part["a"]) for part in data.splits.values()]
    assert sum(map(len, values)) == 40 and all(values)


def test_a_stray_byte_in_utf_8_is_named_by_its_line(texts: ModuleType, tmp_path: Path) -> None:
    rows = "\n".join(["label,text", *(f"{label},„{text}“" for label, text in lines_of())])
    file = write(tmp_path, rows)
    file.write_bytes(file.read_bytes() + b"\nham,one bad byte \xe9\n")
    with pytest.raises(OSError, match=r"line 122, is not utf-8.*--data\.encoding"):
        read(texts, file)
    parts = read(texts, write(tmp_path, rows)).splits.values()
    assert any("„cheap number 1“" in part["text"].tolist() for part in parts)


@pytest.mark.parametrize("separator", ["\n", ", "])
def test_json_is_refused_as_such(texts: ModuleType, tmp_path: Path, separator: str) -> None:
    rows = separator.join(json.dumps({"text": text, "label": label}) for label, text in lines_of())
    with pytest.raises(OSError, match="it is JSON"):
        read(texts, write(tmp_path, rows if separator == "\n" else f"[{rows}]"))


def test_texts_to_predict_are_read_from_paths_that_exist(texts: ModuleType, tmp_path: Path) -> None:
    data = texts.MyDataModule()
    read_input = data._read_input
    assert read_input("Müller/Meier") == ["Müller/Meier"] and read_input("x" * 5000) == ["x" * 5000]
    assert read_input(str(write(tmp_path, "text\nmy cats\nmy cars\n", "messages"))) == ["my cats", "my cars"]
    assert read_input(str(write(tmp_path, "a\u2028b\r\nc\x0bd\n\ne", "lines.txt"))) == ["a\u2028b", "c\x0bd", "", "e"]
    refused = {"new.jsonl": '{"text": "my cats"}', "new.csv": "text\nHello, I bought a cat\nNo, it is a car\n"}
    for name, text in refused.items():
        with pytest.raises(OSError, match=name):
            read_input(str(write(tmp_path, text, name)))
    with pytest.raises(OSError, match="is not a file"):
        read_input(str(tmp_path))
