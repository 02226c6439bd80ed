"""Classification metrics where classes are unequal, and the table of each class."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support
from tokenizers import Tokenizer, models

import data_files
from conftest import VARIANTS, Bake, by

CODE = """
import json, sys
import torch
from models.my_model import MyModel

options, inputs, targets = json.loads(sys.argv[1])
model = MyModel(**options, class_weights="balanced").eval()
logged = {}
model.log = lambda name, value, **options: logged.update({name: value})
model.log_dict = lambda metrics, **options: logged.update(metrics)
*inputs, targets = (torch.tensor(values) for values in (*inputs, targets))
batch = *inputs, targets
model.on_test_start()
with torch.no_grad():
    model.test_step(batch, 0)
    if hasattr(model, "iou"):
        model.on_test_epoch_end()
    loss = model.training_step(batch, 0).item()
    outputs = model(*inputs)
    if outputs.ndim == 1:  # the logit of the second of two classes
        outputs = torch.stack([torch.zeros_like(outputs), outputs], dim=1)
    losses = torch.nn.functional.cross_entropy(outputs, targets, reduction="none").tolist()
metrics = {name: float(value.compute() if hasattr(value, "compute") else value) for name, value in logged.items()}
rows = model.figures()["per_class"]
print(json.dumps([metrics, rows, outputs.argmax(dim=1).tolist(), loss, losses]))
"""
NAMES = ["a", "b", "c"]


def make_options(variant: str) -> tuple[dict[str, Any], list[Any]]:
    """Options of a small network, and sixty inputs for it."""
    random = np.random.default_rng(0)
    if variant.startswith("text"):
        tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(30)}, unk_token="1"))
        tokenizer.enable_truncation(8)
        return {"tokenizer": tokenizer.to_str()}, [random.integers(1, 30, (60, 8)).tolist()]
    if variant == "tabular":
        options = {"task": "multiclass", "target": "kind", "target_scale": [0, 1], "numbers": {"x": [0, 1]}}
        options |= {"gaps": [], "bins": [], "categories": {"y": ["red", "blue"]}, "forms": {}}
        return options, [random.normal(size=(60, 1)).tolist(), random.integers(0, 3, (60, 1)).tolist()]
    if variant == "segmentation":
        return {}, [random.random((60, 3, 16, 16)).tolist()]
    channels = 3 if variant in ("cifar10-resnet18", "image-folder") else 1
    options = {"image_shape": (channels, 16, 16), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    return options, [random.random((60, channels, 16, 16)).tolist()]


@by([variant for variant in VARIANTS if variant not in ("detection", "forecast")])
def test_metrics_of_classes_are_those_of_scikit_learn(bake: Bake, variant: str) -> None:
    options, inputs = make_options(variant)
    random = np.random.default_rng(0)
    targets = np.array([*range(3), *random.choice(3, 57, p=[0.8, 0.15, 0.05])])
    if variant == "segmentation":
        targets = random.choice(3, (60, 16, 16), p=[0.8, 0.15, 0.05])
    counts = np.bincount(targets.flatten()).tolist()
    options |= {"class_names": NAMES, "class_counts": counts}
    sent = json.dumps([options, inputs, targets.tolist()])
    metrics, rows, predicted, loss, losses = json.loads(bake(variant=variant).run("-c", CODE, sent).stdout)
    truth, predicted = targets.flatten(), np.array(predicted).flatten()
    assert metrics["test/balanced_acc"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    if variant != "segmentation":
        assert metrics["test/f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    expected = precision_recall_fscore_support(truth, predicted, labels=range(3), zero_division=0)
    assert [row["class"] for row in rows] == NAMES
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[name] for row in rows] == pytest.approx(values.tolist(), abs=1e-4)
    # The training loss weights each class by the inverse of its share; other losses do not.
    weights = (len(truth) / (3 * np.array(counts)))[truth]
    weighted = (
        (weights * np.array(losses).flatten()).mean()
        if variant == "segmentation"
        else np.average(losses, weights=weights)
    )
    assert loss == pytest.approx(weighted, rel=1e-4)
    assert metrics["test/loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_weights_of_two_classes_are_those_of_many(bake: Bake) -> None:
    options, inputs = make_options("tabular")
    targets = [0] * 50 + [1] * 10
    options |= {"task": "binary", "class_names": ["no", "yes"], "class_counts": [50, 10]}
    done = bake(variant="tabular").run("-c", CODE, json.dumps([options, inputs, targets]))
    metrics, rows, predicted, loss, losses = json.loads(done.stdout)
    assert loss == pytest.approx(np.mean(np.where(targets, 5, 1) * losses), rel=1e-4)
    assert [row["support"] for row in rows] == [50, 10]
    assert metrics["test/balanced_acc"] == pytest.approx(balanced_accuracy_score(targets, predicted))


@by([variant for variant in VARIANTS if variant not in ("detection", "forecast")])
def test_counts_of_classes_are_those_of_the_training_split(bake: Bake, variant: str, tmp_path: Path) -> None:
    code = """
import json, sys
import torch
from data.data_module import MyDataModule

data = MyDataModule(**json.loads(sys.argv[1]))
data.num_workers = 0
data.setup("fit")
if hasattr(data.train, "pairs"):
    data.train.transform = None  # whole masks instead of random crops
    targets = torch.cat([mask.flatten() for _, mask in data.train])
else:
    targets = torch.cat([batch[-1] for batch in data.train_dataloader()])
print(json.dumps([data.class_counts, targets[targets != 255].bincount(minlength=len(data.class_names)).tolist()]))
"""
    flags = [flag.removeprefix("--data.").split("=", 1) for flag in data_files.WRITERS[variant](tmp_path).flags]
    options = {name: yaml.safe_load(value) for name, value in flags if not name.startswith("--")}
    if variant == "tabular":
        (tmp_path / "kinds.csv").write_text("x,kind\n" + "".join(f"{i},{'abbb'[i % 4]}\n" for i in range(80)))
        options = {"csv": str(tmp_path / "kinds.csv")}
    done = bake(variant=variant).run("-c", code, json.dumps(options))
    counted, expected = json.loads(done.stdout.splitlines()[-1])
    assert counted == expected and sum(counted) > 0


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
    assert list(rows[0]) == ["class", "precision", "recall", "f1", "support"]
    assert [row["support"] for row in rows] == ["12", "3"]  # 20% of 60 and of 12


def test_page_shows_the_table_of_classes(trained: Path) -> None:
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "<th>recall</th>" in page
    assert "<td>rare, &lt;b&gt;</td>" in page


def test_page_breaks_no_name_of_a_class_on_a_narrow_screen(trained: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto((trained / "report.html").as_uri())
    heights = [page.get_by_text(text, exact=True).bounding_box()["height"] for text in ("frequent", "test/acc")]
    page.close()
    assert heights[0] == heights[1]
