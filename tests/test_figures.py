"""The program that compares default configurations with baselines reads, measures and shows what it says."""

import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess, run
from types import ModuleType

import numpy as np
import pytest

from conftest import TEMPLATE

PROGRAM = TEMPLATE / "benchmarks" / "quality.py"


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    sys.path.insert(0, str(PROGRAM.parent))
    import quality

    yield quality
    sys.path.remove(str(PROGRAM.parent))


def start(*flags: str | Path) -> CompletedProcess[str]:
    return run([sys.executable, PROGRAM, *flags], capture_output=True, text=True)


def test_baselines_of_a_metric_are_distinguished_from_errors_of_columns(quality: ModuleType) -> None:
    metrics = {"test/mae": 1.0, "test/mae_naive": 2.0, "test/mae_of_price": 3.0, "test/mse_naive": 4.0}
    assert quality.baselines(metrics, "mae") == {"naive": 2.0}


def test_row_shows_mean_and_range_of_the_seeds(quality: ModuleType) -> None:
    data_set = quality.DataSet("tabular/prices.csv", "tabular", ("mae",))
    runs = [({"test/mae": value, "test/mae_ridge": 2.0}, 10.0) for value in (1.0, 1.25, 1.5)]
    [row] = quality.rows(data_set, runs)
    assert row == ("prices", "`tabular`", "mae", "1.250 (1.000 to 1.500)", "ridge 2.000", "10")


def test_unknown_name_is_refused(tmp_path: Path) -> None:
    done = start("--data", tmp_path, "--only", "prices")
    assert done.returncode == 2 and "prices" in done.stderr


def test_missing_file_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    done = start("--data", tmp_path, "--only", "german")
    assert done.returncode == 2 and "german.csv" in done.stderr and not done.stdout


@pytest.mark.slow
def test_data_set_gives_a_row_for_each_metric_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "forecast" / "monthly-airline-passengers.csv"
    file.parent.mkdir()
    months = np.datetime64("1990-01") + np.arange(240)
    values = 100 + 20 * np.sin(np.arange(240) * np.pi / 6)
    rows = [f"{month},{value:.2f}" for month, value in zip(months, values, strict=True)]
    file.write_text("\n".join(["Month,Passengers", *rows]), encoding="utf-8")
    before = file.read_bytes()
    done = start("--data", tmp_path, "--only", "monthly-airline-passengers", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    _, _, *printed = done.stdout.splitlines()
    assert [row.split(" | ")[2] for row in printed] == ["mse", "mae"]
    assert all("naive " in row and "linear " in row for row in printed)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file] and file.read_bytes() == before
