"""Every variant of a baked project learns, and all commands give the same numbers."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import QUESTIONS, VARIANTS, Bake, Run, by, by_variant
from data_files import WRITERS, digits

pytestmark = pytest.mark.slow

Train = Callable[[str], Run]
FILES = ["checkpoints", "config.yaml", "learning_curves.png", "metrics.csv", "report.html", "run.json", "tensorboard"]
SUFFIXES = {"weights": ".weights.pth", "model": ".model.pth", "onnx": ".onnx", "pt2": ".pt2"}
CLASSIFIERS = [name for name in VARIANTS if QUESTIONS["_variants"][name]["module"] == "pictures.py"]


def metrics(table: str) -> dict[str, str]:
    """The metrics of a printed table."""
    return dict(re.findall(r"│ (\S+/.*?)\s+│ (-?\d+\.\d{4}) +│", table))


def newest_split(run: Run, split: str) -> dict[str, str]:
    return metrics(run.project.run("training/evaluate.py", "--ckpt_path", run.best, "--split", split).stdout)


def test_every_variant_is_trained() -> None:
    assert list(WRITERS) == VARIANTS


@by(VARIANTS[:1])
def test_tests_of_a_variant_share_a_process(request: pytest.FixtureRequest, variant: str) -> None:
    """Each variant is trained once only if pytest-xdist's groups work, which pytest 9.2 with xdist 3.8 ignores."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("there is one process")
    assert request.node.nodeid.endswith(f"@{variant}")


@by_variant
def test_variant_learns(train: Train, variant: str) -> None:
    run = train(variant)
    measured = json.loads((run.folder / "test_metrics.json").read_text(encoding="utf-8"))
    for name, least in run.data.at_least.items():
        assert measured[name] >= least, measured
    for name, most in run.data.at_most.items():
        assert measured[name] <= most, measured
    assert all(name.startswith("test/") for name in measured)


@by_variant
def test_run_is_one_folder(train: Train, variant: str) -> None:
    run = train(variant)
    assert sorted(path.name for path in run.folder.iterdir() if path.name != ".lock") == sorted(
        [*FILES, "test_metrics.json", *run.data.pictures, *run.data.files]
    )
    assert sorted(path.name for path in run.best.parent.glob("*.*")) == ["best.ckpt", "last.ckpt"]
    described = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert described["packages"]["torch"] == torch.__version__.split("+")[0]
    assert described["git_commit"] is None  # the project is in no repository
    assert "training/train.py" in described["command"].replace("\\", "/")


@by_variant
def test_report_is_one_page_that_needs_no_other_file(train: Train, variant: str) -> None:
    run = train(variant)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for name, value in json.loads((run.folder / "test_metrics.json").read_text(encoding="utf-8")).items():
        assert f"<td>{escape(name)}</td>" in page and f"{value:.4f}</td>" in page, name
    embedded = [base64.b64decode(content) for content in re.findall(r'src="data:image/png;base64,(.*?)"', page)]
    assert embedded == [file.read_bytes() for file in sorted(run.folder.glob("*.png"))]
    assert len(re.findall(r"(?:src|href)=", page)) == len(embedded)
    assert escape(str(run.folder / "config.yaml")) in page


@by_variant
def test_training_prints_the_documented_lines_only(train: Train, variant: str) -> None:
    run = train(variant)
    *_, before_last, last = run.stdout.splitlines()
    assert before_last == f"run folder: {run.folder}"
    assert last.startswith("next: python training/predict.py")
    assert re.search(r"best epoch: \d+, with val/\w+ \d+\.\d{4}", run.stdout)
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    epochs = [line for line in run.stdout.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == config["trainer"]["max_epochs"]
    assert all("train/loss" in line and config["monitor"] in line for line in epochs)
    assert len(run.stdout.splitlines()) < 45 + len(epochs)
    assert run.stderr.strip() == run.data.stderr


@by_variant
def test_commands_print_one_number(train: Train, variant: str) -> None:
    run = train(variant)
    saved = json.loads((run.folder / "test_metrics.json").read_text(encoding="utf-8"))
    printed = {name: f"{value:.4f}" for name, value in saved.items()}
    assert metrics(run.stdout) == printed
    assert newest_split(run, "test") == printed
    with open(run.folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    key = next(iter(run.data.at_least))
    assert [f"{float(row[key]):.4f}" for row in rows if row[key]] == [printed[key]]
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    monitor, best_of = config["monitor"], {"min": min, "max": max}[config["monitor_mode"]]
    best = best_of(float(row[monitor]) for row in rows if row[monitor])
    assert newest_split(run, "val")[monitor] == f"{best:.4f}"


@by_variant
def test_predictions_come_as_table_json_and_csv(train: Train, variant: str) -> None:
    run = train(variant)
    predict = ("training/predict.py", "--ckpt_path", run.best)
    rows = json.loads(run.project.run(*predict, "--format", "json").stdout)
    assert tuple(rows[0]) == run.data.columns
    if "class" in run.data.columns and "truth" in run.data.columns:
        assert sum(row["truth"] == row["class"] for row in rows) >= len(rows) / 2
    read = list(csv.DictReader(io.StringIO(run.project.run(*predict, "--format", "csv").stdout)))
    assert read == [{key: str(value) for key, value in row.items()} for row in rows]
    table = run.project.run(*predict, COLUMNS="400").stdout  # wide enough for any path
    assert len(re.findall("^│", table, re.MULTILINE)) == len(rows)


@by(CLASSIFIERS)
def test_pictures_are_predicted_as_the_exported_networks_do(train: Train, variant: str, tmp_path: Path) -> None:
    run = train(variant)
    checkpoint = torch.load(run.best, weights_only=True)
    channels, height, width = checkpoint["hyper_parameters"]["image_shape"]
    names = checkpoint["hyper_parameters"]["class_names"]
    pictures, targets = digits(width)
    inputs = []
    for i in range(24):
        file = tmp_path / "pictures" / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pictures[i]).save(file)
        pixels = torch.from_numpy(pictures[i] / np.float32(255))
        inputs.append(pixels.expand(channels, height, width))
    rows = json.loads(
        run.project.run(
            "training/predict.py", tmp_path / "pictures", "--ckpt_path", run.best, "--format", "json"
        ).stdout
    )
    assert [Path(row["input"]).name for row in rows] == [f"{i:02}.png" for i in range(24)]
    assert sum(row["class"] == names[target] for row, target in zip(rows, targets, strict=False)) >= 18

    batch = torch.stack(inputs)
    for form, suffix in SUFFIXES.items():
        done = run.project.run("training/export.py", "--format", form, "--ckpt_path", run.best)
        file = run.best.with_suffix(suffix)
        assert done.stdout.startswith(f"{file}\n")
        run_last_line(run, done.stdout)
        logits = run_exported(run, form, file, batch)
        file.unlink()
        if logits is not None:
            probability, index = logits.softmax(dim=1).max(dim=1)
            assert [names[i] for i in index] == [row["class"] for row in rows]
            expected = torch.tensor([row["probability"] for row in rows])
            torch.testing.assert_close(probability, expected, rtol=0, atol=1e-3)
    assert sorted(path.name for path in run.best.parent.glob("*.*")) == ["best.ckpt", "last.ckpt"]


@torch.no_grad()
def run_exported(run: Run, form: str, file: Path, batch: torch.Tensor) -> torch.Tensor | None:
    """Logits of an exported network, run with nothing but the library that reads its format."""
    if form == "weights":
        saved = torch.load(run.best, weights_only=True)["state_dict"]
        weights = torch.load(file, weights_only=True)
        assert weights.keys() == saved.keys()
        assert all(torch.equal(weights[key], saved[key]) for key in saved)
        return None
    if form == "model":  # a pickle, which needs the project's classes
        exchange = run.project.elsewhere / "exchange.pt"
        torch.save(batch, exchange)
        code = "import sys, torch; m = torch.load(sys.argv[1], weights_only=False); x = torch.load(sys.argv[2])"
        run.project.run("-c", f"{code}; torch.save(m(x), sys.argv[2])", file, exchange)
        return torch.load(exchange)
    if form == "pt2":
        return torch.export.load(file).module()(batch)
    from onnxruntime import InferenceSession

    session = InferenceSession(file)
    assert [output.name for output in session.get_outputs()] == ["output"]
    return torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])


def run_last_line(run: Run, printed: str) -> None:
    """Run what export.py says about the use of a file, without Lightning unless it says that the project is needed."""
    needs, _, code = printed.splitlines()[-1].partition(": ")
    hidden = [] if needs == "in the project" else ["lightning", "data", "models", "training"]
    before = f"import sys, torch; sys.modules |= dict.fromkeys({hidden}); inputs = [torch.zeros(3, 64, 64)]"
    run.project.run("-c", f"{before}; {code}; assert len(outputs if 'outputs' in vars() else state_dict)")


@by([name for name in VARIANTS if name not in CLASSIFIERS])
def test_every_format_is_written_or_refused_in_a_sentence(train: Train, variant: str) -> None:
    run = train(variant)
    for form, suffix in SUFFIXES.items():
        file = run.best.with_suffix(suffix)
        possible = form in run.data.formats
        done = run.project.run("training/export.py", f"--format={form}", "--ckpt_path", run.best, status=1 - possible)
        if possible:
            checked = "holds the weights" if form == "weights" else r"by at most \d\.\de[-+]\d+"
            assert re.search(checked, done.stdout)
            run_last_line(run, done.stdout)
            file.unlink()
        else:
            assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and f" {form} " in done.stderr
            assert "--format weights" in done.stderr
    assert sorted(path.name for path in run.best.parent.glob("*.*")) == ["best.ckpt", "last.ckpt"]


@by_variant
def test_pictures_of_the_run_show_something(train: Train, variant: str) -> None:
    run = train(variant)
    for name in ("learning_curves.png", *run.data.pictures):
        picture = Image.open(run.folder / name)
        assert min(picture.size) >= 400
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 50


@pytest.mark.parametrize("flags", [["--compile=default"], ["--trainer.precision=bf16-mixed"]], ids=["compiled", "bf16"])
@pytest.mark.xdist_group("mnist-cnn")
def test_faster_settings_change_the_metrics_little(train: Train, flags: list[str]) -> None:
    run = train("mnist-cnn")
    expected = json.loads((run.folder / "test_metrics.json").read_text(encoding="utf-8"))
    run.project.run("training/train.py", *run.data.flags, *flags)
    measured = json.loads((run.project.runs()[-1] / "test_metrics.json").read_text(encoding="utf-8"))
    assert measured == pytest.approx(expected, abs=5e-3)


@by_variant
def test_network_computes_in_float64_too(bake: Bake, variant: str, tmp_path: Path) -> None:
    project, data = bake(fresh=True, variant=variant), WRITERS[variant](tmp_path)
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.precision=64-true"]
    trained = project.run("training/train.py", *data.flags, *short)
    assert trained.stderr.strip() == data.stderr
    best = project.runs()[-1] / "checkpoints" / "best.ckpt"
    weights = torch.load(best, weights_only=True)["state_dict"].values()
    assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float64}
    evaluated = project.run("training/evaluate.py", "--ckpt_path", best)
    assert metrics(evaluated.stdout) == metrics(trained.stdout) != {}
    assert len(project.run("training/predict.py", "--ckpt_path", best).stdout.splitlines()) > 4


def test_long_epoch_is_announced_once(bake: Bake, train: Train) -> None:
    code = """
from training.engine import estimate
estimate.LONG = 0  # seconds
from training.train import main
main(["--trainer.max_epochs=2"])
"""
    project = bake(fresh=True)
    announced = [line for line in project.run("-c", code).stdout.splitlines() if "an epoch takes" in line]
    assert len(announced) == 1 and " 20 steps " in announced[0] and "--trainer.limit_train_batches" in announced[0]
    assert "an epoch takes" not in train(VARIANTS[0]).stdout


@by_variant
def test_fast_dev_run_writes_nothing(train: Train, variant: str) -> None:
    run = train(variant)
    before = run.project.runs()
    run.project.run("training/train.py", "--trainer.fast_dev_run=true", *run.data.flags)
    assert run.project.runs() == before


@by(["text-rnn", "text-transformer"])
def test_checkpoint_with_a_broken_tokenizer_is_named(train: Train, variant: str) -> None:
    run = train(variant)
    checkpoint = torch.load(run.best, weights_only=True)
    checkpoint["run"]["given"]["tokenizer"] = "no tokenizer"
    file = run.best.with_name("broken.ckpt")
    torch.save(checkpoint, file)
    try:
        done = run.project.run("training/predict.py", "--ckpt_path", file, status=1)
    finally:
        file.unlink()
    assert done.stderr.startswith(f"error: {file} ") and done.stderr.count("\n") == 1, done.stderr


@by(["text-rnn", "text-transformer"])
def test_texts_are_compared_with_tfidf_and_logistic_regression(train: Train, variant: str) -> None:
    measured = json.loads((train(variant).folder / "test_metrics.json").read_text(encoding="utf-8"))
    assert 0.7 < measured["test/acc_tfidf"] <= 1
    assert 0.7 < measured["test/f1_tfidf"] <= 1
