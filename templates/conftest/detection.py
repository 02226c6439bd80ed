"""Data for the tests."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags with which train.py runs offline in seconds: on bright squares of two sizes."""
    root: Path = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    random = np.random.default_rng(0)
    images, boxes = [], []
    for i in range(20):
        pixels = random.integers(0, 100, (64, 72 + i, 3), dtype=np.uint8)
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": 72 + i, "height": 64})
        if i != 3:
            side = 16 if i % 2 else 32
            pixels[9 : 9 + side, i : i + side] += 150
            box = [i, 9, side, side]
            boxes.append(
                {"id": i, "image_id": 100 + i, "category_id": 7 + i % 2, "bbox": box, "area": side**2, "iscrowd": 0}
            )
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    categories = [{"id": 7, "name": "large"}, {"id": 8, "name": "small"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    # Few background boxes per picture, so that the network finds objects after a few steps.
    return [f"--data.data_dir={root}", "--data.num_workers=0", "--data.batch_size=2", "--model.boxes_per_image=4"]
