"""The data that the tests use."""

import pickle
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line flags with which the project trains offline in seconds, on noise in CIFAR-10's format."""
    root: Path = tmp_path_factory.mktemp("data")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        pixels = random.integers(0, 256, (40, 3 * 32 * 32), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % 4 for i in range(40)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["ant", "bee", "cat", "dog"]}))
    return [f"--data.data_dir={root}", "--data.image_size=32", "--model.weights=null"]
