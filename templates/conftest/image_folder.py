"""Command-line flags that the tests use."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line flags with which the project trains offline in seconds, on noise whose brightness is the class."""
    root: Path = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, brightness in {"ant": 0, "bee": 64, "cat": 128, "dog": 192}.items():
        (root / name).mkdir()
        for i in range(40):
            pixels = random.integers(brightness, brightness + 64, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return [f"--data.data_dir={root}", "--data.image_size=32", "--data.num_workers=0"]
