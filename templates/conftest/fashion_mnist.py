"""Command-line flags that the tests use."""

import struct
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line flags with which the project trains offline in seconds, on noise whose brightness is the class."""
    root: Path = tmp_path_factory.mktemp("data")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 240), ("t10k", 60)):
        brightness = 25 * (torch.arange(count) % 10).view(-1, 1, 1)
        pixels = brightness + torch.randint(30, (count, 28, 28), generator=generator)
        images = struct.pack(">4I", 2051, *pixels.shape) + bytes(pixels.flatten().tolist())
        (raw / f"{split}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2I", 2049, count) + bytes(i % 10 for i in range(count))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return [f"--data.data_dir={root}"]
