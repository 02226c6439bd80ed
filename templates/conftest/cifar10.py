"""Command-line flags that the tests use."""

import pickle
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line flags with which the project trains offline in seconds, on noise whose brightness is the class."""
    root: Path = tmp_path_factory.mktemp("data")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    labels = [i % 4 for i in range(40)]
    brightness = np.array([[64 * label] for label in labels], dtype=np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = brightness + random.integers(0, 64, (40, 3 * 32 * 32), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["ant", "bee", "cat", "dog"]}))
    return [f"--data.data_dir={root}", "--data.image_size=32", "--model.weights=null"]
