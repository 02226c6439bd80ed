"""Data for the tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line flags for training offline in seconds, on numbers, categories and gaps."""
    file: Path = tmp_path_factory.mktemp("data") / "rows.csv"
    random = np.random.default_rng(0)
    width, colour = random.normal(10, 2, 400).round(3), random.choice(["red", "green", "blue"], 400)
    frame = pd.DataFrame({"width": width, "colour": colour, "price": 3 * width + (colour == "red") * 5})
    frame.loc[random.random(400) < 0.1, "width"] = np.nan
    frame.to_csv(file, index=False)
    return [f"--data.csv={file}", "--data.target=price"]
