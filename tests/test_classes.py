"""Classification metrics where classes are unequal, and the table of each class."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support
from tokenizers import Tokenizer, models

from conftest import Bake

CODE = """
import json, sys
import torch
from models.my_model import MyModel

options, inputs, targets = json.loads(sys.argv[1])
model = MyModel(**options).eval()
logged = {}
model.log_dict = lambda metrics, **options: logged.update(metrics)
batch = torch.tensor(inputs), torch.tensor(targets)
model.on_test_start()
with torch.no_grad():
    model.test_step(batch, 0)
    predicted = model(batch[0]).argmax(dim=1).tolist()
metrics = {name: float(value.compute() if hasattr(value, "compute") else value) for name, value in logged.items()}
print(json.dumps([metrics, model.per_class_rows(), predicted]))
"""


def write_unequal_pictures(folder: Path) -> None:
    """Dark pictures of a frequent class and bright ones of a rare class."""
    random = np.random.default_rng(0)
    for name, number, level in (("frequent", 60, 60), ("rare, <b>", 12, 190)):
        (folder / name).mkdir()
        for i in range(number):
            noise = random.integers(-50, 50, (32, 32, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def trained(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unequal")
    write_unequal_pictures(folder)
    project = bake(variant="image-folder", fresh=True)
    flags = [f"--data.data_dir={folder}", "--data.image_size=32", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    project.run("training/train.py", *flags, "--model.class_weights=balanced")
    return project.runs()[-1]


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / "per_class.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_run_folder_has_a_row_for_each_class(trained: Path) -> None:
    rows = rows_of(trained)
    assert [row["class"] for row in rows] == ["frequent", "rare, <b>"]
    assert list(rows[0]) == ["class", "f1", "precision", "recall", "support"]
    assert [row["support"] for row in rows] == ["12", "3"]  # 20% of 60 and of 12


def test_page_shows_the_table_of_classes(trained: Path) -> None:
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "<th>recall</th>" in page
    assert "<td>rare, &lt;b&gt;</td>" in page


@pytest.mark.parametrize("variant", ["text-rnn", "text-transformer"])
def test_metrics_of_texts_are_those_of_scikit_learn(bake: Bake, variant: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(30)}, unk_token="1"))
    tokenizer.enable_truncation(8)
    random = np.random.default_rng(0)
    inputs = random.integers(1, 30, (60, 8)).tolist()
    targets = [*range(3), *random.choice(3, 57, p=[0.8, 0.15, 0.05]).tolist()]
    options = {"class_names": ["a", "b", "c"], "tokenizer": tokenizer.to_str()}
    done = bake(variant=variant).run("-c", CODE, json.dumps([options, inputs, targets]))
    metrics, rows, predicted = json.loads(done.stdout)
    assert metrics["test/f1"] == pytest.approx(f1_score(targets, predicted, average="macro"))
    assert metrics["test/balanced_acc"] == pytest.approx(balanced_accuracy_score(targets, predicted))
    expected = precision_recall_fscore_support(targets, predicted, labels=range(3), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[name] for row in rows] == pytest.approx(values.tolist(), abs=1e-4)
