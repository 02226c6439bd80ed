"""Data for the tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line flags for training offline in seconds, on two hourly waves with gaps."""
    file: Path = tmp_path_factory.mktemp("data") / "series.csv"
    hours = np.arange(600)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 600))
    wave = np.sin(hours * np.pi / 12)
    times = pd.date_range("2024-01-01", periods=600, freq="h")
    frame = pd.DataFrame({"time": times, "load": 50 + 9 * (wave + noise[0]), "heat": 4 - wave + noise[1]})
    frame.drop(index=[100, 101, 300]).to_csv(file, index=False)
    return [f"--data.csv={file}", "--data.lookback=48", "--data.horizon=12"]
