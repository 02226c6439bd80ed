"""The figure that is promised for Fashion-MNIST, on Fashion-MNIST itself."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from conftest import Bake

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_default_config_reaches_the_promised_accuracy(bake: Bake, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in DEBIAN.glob("*.gz"):
        with gzip.open(file) as packed, open(raw / file.stem, "wb") as plain:
            shutil.copyfileobj(packed, plain)
    project = bake(fresh=True, variant="fashion-mnist-mlp", project_name="fashion")
    project.run("training/train.py", f"--data.data_dir={tmp_path}")
    (folder,) = project.runs()
    measured = json.loads((folder / "test_metrics.json").read_text(encoding="utf-8"))
    assert measured["test/acc"] >= 0.885
