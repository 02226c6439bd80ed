"""Data for the tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags with which train.py runs offline in seconds: on bright squares of two sizes."""
    root: Path = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(20):
        pixels = random.integers(0, 100, (40, 48 + i, 3), dtype=np.uint8)
        mask = np.zeros(pixels.shape[:2], np.uint8)
        side = 8 if i % 2 else 16
        pixels[9 : 9 + side, i : i + side] += 150
        mask[9 : 9 + side, i : i + side] = 1 + i % 2
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return [f"--data.data_dir={root}", "--data.num_workers=0"]
