"""Data files of one's own are read, and errors in them are reported before training."""

import csv
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import Bake, Project
from data_files import write_coco, write_masks

pytestmark = pytest.mark.slow

QUICK = ["--trainer.accelerator=cpu", "--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"]
SHORT_RUN = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]


class Variant:
    """A project of a variant, and the flag that names its data."""

    def __init__(self, project: Project, flag: str) -> None:
        self.project, self.flag = project, flag

    def run(self, command: str, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        script = "-c" if command == "code" else f"training/{command}.py"
        return self.project.run(script, *arguments, status=status)

    def __call__(self, source: Path, *flags: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Train a step on a file or folder."""
        return self.run("train", f"{self.flag}={source}", *QUICK, *flags, status=status)


def problems(done: subprocess.CompletedProcess[str], source: Path) -> list[str]:
    """Return the reported errors of a source; assert that nothing else was printed, and nothing was run."""
    first, *rest = done.stderr.splitlines()
    assert first == f"error: {source} has errors:"
    assert all(line.startswith("  ") for line in rest)
    return [line.strip() for line in rest]


def start(bake: Bake, variant: str) -> Variant:
    project = bake(variant=variant, project_name=f"own_{variant.replace('-', '_')}")
    return Variant(project, "--data.data_dir" if variant in ("detection", "segmentation") else "--data.csv")


@pytest.fixture(scope="module")
def tabular(bake: Bake) -> Variant:
    return start(bake, "tabular")


@pytest.fixture(scope="module")
def forecast(bake: Bake) -> Variant:
    return start(bake, "forecast")


@pytest.fixture(scope="module")
def texts(bake: Bake) -> Variant:
    return start(bake, "text-rnn")


@pytest.fixture(scope="module")
def segmentation(bake: Bake) -> Variant:
    return start(bake, "segmentation")


@pytest.fixture(scope="module")
def detection(bake: Bake) -> Variant:
    return start(bake, "detection")


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """200 rows of two numbers, a category and three targets."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 200)).round(4)
    kind = random.choice(["a", "b", "c"], 200)
    frame = pd.DataFrame({"x": x, "y": y, "kind": kind, "yes": x > y, "grade": (x > 0).astype(int) + (y > 0)})
    return frame.assign(count=random.poisson(np.exp(0.5 * x + 2)), size=2 * x - y)


def save(frame: pd.DataFrame, folder: Path, name: str = "rows.csv") -> Path:
    frame.to_csv(folder / name, index=False)
    return folder / name


def test_all_bad_rows_of_a_table_are_named_at_once(tabular: Variant, rows: pd.DataFrame, tmp_path: Path) -> None:
    frame = rows.astype(object)
    frame.loc[3, "x"], frame.loc[7, "y"], frame.loc[8, "y"], frame.loc[:24, "size"] = "much", "inf", "1,5", None
    file = save(frame, tmp_path)
    found = problems(tabular(file, "--data.target=size", status=1), file)
    assert found[0].startswith("25 of 200 rows") and "line 2: 'size' is missing" in found
    assert len(found) == 21
    first, summary, *others = problems(tabular(file, "--data.target=grade", status=1), file)
    assert first == "line 5: 'x' is 'much', not a number"
    assert summary.startswith("2 values of 'y'") and "--data.missing" in summary
    assert others == [
        "line 9: 'y' is 'inf', not a number",
        "line 10: 'y' is '1,5', not a number",
    ]


def test_flag_that_an_error_names_reads_the_file(tabular: Variant, tmp_path: Path) -> None:
    rows = [f"{'--' if i % 30 == 0 else i},{-200 if i % 50 == 0 else i}.5,{'xy'[i % 2]}" for i in range(99)]
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(["a,b,kind", *rows]), encoding="utf-8")
    summary, *_ = problems(tabular(file, "--data.missing=['-200.5']", status=1), file)
    flags = shlex.split(summary.partition(" set ")[2])[:1]
    assert flags == ['--data.missing=["-200.5", "--"]']
    assert tabular(file, *flags).stderr == ""


def test_rows_of_the_wrong_length_are_named_up_to_twenty(tabular: Variant, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n" + "1,2\n" * 3 + "1\n1,2,3\n" * 20, encoding="utf-8")
    found = problems(tabular(file, status=1), file)
    assert "--data.separator" in found[0]
    assert found[1] == "line 5: 1 fields, but the header has 2"
    assert found[2] == "line 6: 3 fields, but the header has 2"
    assert found[-1] == "and 21 more"
    assert len(found) == 21


@pytest.mark.parametrize(
    ("content", "flags", "sentence"),
    [
        (b"", [], "there are no rows below the header"),
        (b"a,b\n", [], "there are no rows below the header"),
        (b"a,a\n1,2\n", ["--data.target=a"], "several columns are named 'a'"),
        (b"a,b\n1,2\n", ["--data.target=c"], "there is no column 'c': the columns are a, b"),
        (b'a,b\n1,"2\n', [], "line 2: unexpected end of data"),
        (b"a,b\n" + b"1,2\n" * 50, [], "'b' has 1 different values"),
        (b"a,b\n" + b"1,x\n2,y\n" * 50, ["--data.task=regression"], "'b' is text"),
    ],
)
def test_unusable_table_is_refused(
    tabular: Variant, tmp_path: Path, content: bytes, flags: list[str], sentence: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    done = tabular(file, *flags, status=1)
    assert any(sentence in problem for problem in problems(done, file)), done.stderr


def test_missing_and_misencoded_files_are_named(tabular: Variant, tmp_path: Path) -> None:
    assert "is not a file" in tabular(tmp_path / "none.csv", status=1).stderr
    file = tmp_path / "rows.csv"
    file.write_bytes("a,b\nü,1\n".encode("latin-1"))
    assert f"{file}, line 2, is not utf-8" in tabular(file, "--data.encoding=utf-8", status=1).stderr
    assert "unknown encoding 'klingon'" in tabular(file, "--data.encoding=klingon", status=1).stderr


@pytest.mark.parametrize(
    ("target", "flags", "metric"),
    [
        ("size", [], "test/r2_ridge"),
        ("yes", [], "test/auroc_logistic"),
        ("kind", [], "test/f1_boosting"),
        ("grade", [], "test/f1_boosting"),
        ("grade", ["--data.task=regression", "--model.loss=l1"], "test/mae"),
        ("count", ["--data.task=regression", "--model.loss=poisson_nll"], "test/rmse_boosting"),
        ("size", ["--model.loss=smooth_l1", "--data.categorical=[grade]"], "test/r2"),
    ],
)
def test_target_decides_the_task(
    tabular: Variant, rows: pd.DataFrame, tmp_path: Path, target: str, flags: list[str], metric: str
) -> None:
    flags = [*flags, *SHORT_RUN, "--trainer.max_epochs=3"]
    done = tabular.run("train", f"--data.csv={save(rows, tmp_path)}", f"--data.target={target}", *flags)
    assert metric in done.stdout
    assert done.stderr == ""
    new = rows.drop(columns=target)[:5].assign(kind=["a", "b", "never seen", "c", None], x=[1.0, None, 2.0, 1e9, -3.0])
    answer = tabular.run("predict", save(new, tmp_path, "new.csv"), "--format", "csv")
    predicted = list(csv.DictReader(answer.stdout.splitlines()))
    assert [row["input"] for row in predicted] == [f"{tmp_path / 'new.csv'}:{line}" for line in range(2, 7)]


@pytest.mark.parametrize(
    ("target", "loss", "fitting"),
    [("size", "cross_entropy", "mse or l1 or smooth_l1 or poisson_nll"), ("kind", "mse", "cross_entropy")],
)
def test_loss_for_another_task_is_refused(
    tabular: Variant, rows: pd.DataFrame, tmp_path: Path, target: str, loss: str, fitting: str
) -> None:
    done = tabular(save(rows, tmp_path), f"--data.target={target}", f"--model.loss={loss}", status=1)
    assert re.fullmatch(f"error: --model.loss {loss} does not fit .*: use {fitting}\n", done.stderr)


def test_column_that_counts_the_rows_is_warned_about(tabular: Variant, rows: pd.DataFrame, tmp_path: Path) -> None:
    file = save(rows.rename_axis("id").reset_index(), tmp_path)
    warning = "warning: column 'id' looks like row names or row numbers: --data.ignore+=id leaves it out\n"
    assert tabular(file, "--data.target=size").stderr == warning
    assert tabular(file, "--data.target=size", "--data.ignore+=id").stderr == ""
    file = save(rows.rename_axis("row id").reset_index(), tmp_path)
    flag = shlex.split(tabular(file, "--data.target=size").stderr)[-4]
    assert flag == "--data.ignore+=row id"
    assert tabular(file, "--data.target=size", flag).stderr == ""


def test_numbers_of_many_rows_are_encoded_by_bins_of_their_values(tabular: Variant, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    x, flag = numbers.exponential(size=8000) * (numbers.random(8000) < 0.1), numbers.integers(0, 2, 8000)
    frame = pd.DataFrame({"x": x.round(3), "flag": flag, "y": np.where((x > 0.5) & (x < 1.0), 3.0, 0.0) + flag + 0.5})
    many, few = save(frame, tmp_path), save(frame[:400], tmp_path, "few.csv")
    code = f"""
import torch
from data.data_module import MyDataModule
from models.my_model import Bins
few = MyDataModule(csv={str(few)!r}, task="regression")
assert few.bins == []
data = MyDataModule(csv={str(many)!r}, task="regression")
data.setup("fit")
skewed, flag = data.bins
assert 60 <= len(skewed) <= 65 and len(flag) == 2
values = torch.unique(data.train.tensors[0][:, 0])
counts = torch.histogram(values, torch.tensor(skewed)).hist
assert counts.min() >= counts.max() / 2
assert Bins([[0.0, 1.0]])(torch.tensor([[float("inf")], [-3.0], [0.25]])).flatten().tolist() == [1.0, 0.0, 0.25]
positions = Bins(data.bins)(torch.tensor([[skewed[0], flag[0]], [skewed[1], flag[1]], [99.0, 99.0]]))
assert positions.sum(dim=1).tolist() == [0.0, 2.0, len(skewed)]
"""
    tabular.run("code", code)
    flags = [*SHORT_RUN, "--trainer.max_epochs=5", "--data.task=regression"]
    tabular.run("train", f"--data.csv={many}", *flags)
    measured = json.loads((tabular.project.runs()[-1] / "test_metrics.json").read_text(encoding="utf-8"))
    assert measured["test/r2"] > 0.92
    printed = tabular.run("predict", many, "--format", "json").stdout
    assert len(json.loads(printed)) == 8000
    far = save(frame.assign(x=[1e12, *(i % 100 for i in range(7999))]), tmp_path, "far.csv")
    code = f"""
import torch
from data.data_module import MyDataModule
from models.my_model import Bins
data = MyDataModule(csv={str(far)!r}, task="regression")
data.setup("fit")
assert Bins(data.bins)(data.train.tensors[0]).isfinite().all()
"""
    tabular.run("code", code)


def test_equal_rows_share_a_split(tabular: Variant, rows: pd.DataFrame, tmp_path: Path) -> None:
    file = save(pd.concat([rows, rows, rows]).sample(frac=1, random_state=0), tmp_path)
    code = f"""
from data.data_module import MyDataModule
data = MyDataModule(csv={str(file)!r}, target="size")
parts = [set(part.drop(columns="size").itertuples(index=False, name=None)) for part in data.splits.values()]
assert sum(map(len, parts)) == len(set.union(*parts)) == 200
assert sum(len(part) for part in data.splits.values()) == 600
"""
    tabular.run("code", code)


def series(steps: int = 400, freq: str = "h") -> pd.DataFrame:
    times = pd.date_range("2024-01-31", periods=steps, freq=freq)
    wave = np.sin(np.arange(steps) * np.pi / 12).round(4)
    return pd.DataFrame({"time": times, "load": wave, "heat": -wave})


SHORT = ["--data.lookback=48", "--data.horizon=6"]


@pytest.mark.parametrize("freq", ["h", "15min", "D", "W", "MS", "ME", "YS"])
def test_steps_may_be_hours_or_months(forecast: Variant, tmp_path: Path, freq: str) -> None:
    assert forecast(save(series(freq=freq), tmp_path), *SHORT).stderr == ""


def test_steps_may_be_numbers_and_times_of_any_format(forecast: Variant, tmp_path: Path) -> None:
    frame = series()
    assert forecast(save(frame.assign(time=range(1000, 1400)), tmp_path), *SHORT).stderr == ""
    frame["time"] = frame["time"].dt.strftime("%d.%m.%Y %H:%M")
    assert forecast(save(frame, tmp_path), *SHORT, "--data.time_format=%d.%m.%Y %H:%M").stderr == ""


def test_bad_times_and_values_are_named_by_their_lines(forecast: Variant, tmp_path: Path) -> None:
    frame = series().astype(object)
    frame.loc[5, "time"], frame.loc[8, "time"] = "soon", frame.loc[7, "time"]
    file = save(frame, tmp_path)
    assert problems(forecast(file, *SHORT, status=1), file) == [
        "line 7: 'time' is 'soon', not a time",
        "line 10: 'time' is '2024-01-31 07:00:00', not later than the time before it",
        "correct or remove these rows; if clocks were set back, add the offsets from UTC",
    ]
    frame = series().astype(object)
    frame.loc[20, "load"], frame.loc[30, "time"] = "high", pd.Timestamp("2024-02-01 06:20")
    file = save(frame, tmp_path)
    found = problems(forecast(file, *SHORT, "--data.columns=[load]", status=1), file)
    assert found == ["line 22: 'load' is 'high', not a number"]
    (problem,) = problems(forecast(file, *SHORT, "--data.columns=[heat]", status=1), file)
    assert problem.startswith("line 32: 2024-02-01 06:20") and problem.endswith("lies between two steps of the times")


def test_short_gaps_are_filled_and_long_ones_named(forecast: Variant, tmp_path: Path) -> None:
    frame = series().drop(index=[100, 101, 102])
    frame.loc[200:203, "heat"] = np.nan
    file = save(frame, tmp_path)
    assert forecast(file, *SHORT).stderr == ""
    done = forecast(file, *SHORT, "--data.max_gap=3", status=1)
    assert problems(done, file) == [
        "'heat' lacks 4 steps from 2024-02-08 08:00:00: fill the gap, or raise --data.max_gap"
    ]
    code = f"""
from data.data_module import MyDataModule
values, _ = MyDataModule(csv={str(file)!r}).regular
assert values.shape == (400, 2)
assert (values[100:103] == values[99]).all() and (values[200:204, 1] == values[199, 1]).all()
"""
    forecast.run("code", code)


def test_times_that_span_too_many_steps_are_refused(forecast: Variant, tmp_path: Path) -> None:
    """One wrong year must not fill the memory with invented steps."""
    lines = ["time,load", *(f"{i},{i % 7}" for i in range(400)), "99000000000,1"]
    (tmp_path / "series.csv").write_text("\n".join(lines), encoding="utf-8")
    found = problems(forecast(tmp_path / "series.csv", *SHORT, status=1), tmp_path / "series.csv")
    assert "401 rows span 99000000000 steps" in found[0]


def test_too_few_rows_are_refused(forecast: Variant, tmp_path: Path) -> None:
    file = save(series(100), tmp_path)
    (problem,) = problems(forecast(file, status=1), file)
    assert problem == "100 rows are too few for --data.lookback 104 and --data.horizon 26: use smaller ones"


def test_forecast_follows_the_last_row(forecast: Variant, tmp_path: Path) -> None:
    file = save(series(), tmp_path)
    forecast.run("train", f"--data.csv={file}", *SHORT, *SHORT_RUN, "--trainer.max_epochs=40")
    rows = json.loads(forecast.run("predict", file, "--format=json").stdout)
    assert [row["time"] for row in rows[:3]] == ["2024-02-16 16:00:00", "2024-02-16 16:00:00", "2024-02-16 17:00:00"]
    assert [row["column"] for row in rows[:3]] == ["load", "heat", "load"]
    truth = np.sin(np.arange(400, 406) * np.pi / 12)
    assert np.abs(truth - [row["forecast"] for row in rows if row["column"] == "load"]).max() < 0.1


def test_naive_and_linear_forecasts_are_correct(forecast: Variant) -> None:
    code = """
import torch
from data.data_module import MyDataModule
data = MyDataModule(lookback=104, horizon=60)
data.setup("fit")
inputs, targets = data.test.__getitems__([0, 7])
rules = data.baselines(inputs)
assert data.season == 52
assert torch.equal(rules["naive"][:, :52], inputs[:, 52:104]) and torch.equal(rules["naive"][:, 52:], inputs[:, 52:60])
def error(rows, forecast):
    inputs, targets = data.train.__getitems__(rows)
    return (forecast(inputs) - targets).square().mean().item()
every = list(range(len(data.train)))
fitted = error(every, lambda inputs: data.baselines(inputs)["linear"])
assert fitted < error(every, lambda inputs: data.baselines(inputs)["naive"])
for _ in range(5):  # least squares: a step in any direction makes it worse
    step = 1e-3 * torch.randn_like(data.linear_weights)
    best = data.linear_weights
    data.linear_weights = best + step
    assert error(every, lambda inputs: data.baselines(inputs)["linear"]) > fitted
    data.linear_weights = best
"""
    forecast.run("code", code)


def colours_and_pets() -> pd.DataFrame:
    texts = [f"{word} {i}" for i in range(80) for word in ("red", "dog")]
    return pd.DataFrame({"text": texts, "label": ["r", "d"] * 80})


def test_texts_may_hold_anything(texts: Variant, tmp_path: Path) -> None:
    words = {"plus": "good fine great", "minus": "bad awful poor"}
    rows = [
        (f'{i} "{word}",\n; and\t{i}', label) for i in range(60) for label in words for word in words[label].split()
    ]
    frame = pd.DataFrame(
        [*rows, ("", "plus"), ("  ", "minus"), ("\u0000\U0001f600", "plus")], columns=["text", "label"]
    )
    assert texts(save(frame, tmp_path)).stderr == ""
    file = tmp_path / "rows.tsv"
    frame.to_csv(file, index=False, sep="\t", encoding="utf-16")
    assert texts(file, "--data.encoding=utf-16").stderr == ""


def test_bad_texts_are_named_by_their_lines(texts: Variant, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f"text\n{i}" for i in range(60)], "label": ["a", "b", ""] * 20})
    file = save(frame, tmp_path)
    found = problems(texts(file, status=1), file)
    assert found[0] == "line 7: the label is empty"
    assert len(found) == 20
    (problem,) = problems(texts(file, "--data.text=words", status=1), file)
    assert problem.startswith("there is no column 'words': the columns are text, label")


def test_tokens_come_from_the_training_texts_alone(texts: Variant, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f"{'ab' * 9} {i}" for i in range(400)], "label": ["x", "y"] * 200})
    file = save(frame, tmp_path)
    code = f"""
from tokenizers import Tokenizer
from data.data_module import MyDataModule
data = MyDataModule(csv={str(file)!r})
for split in ("val", "test"):
    data.splits[split] = data.splits[split].assign(text="qz" * 9)
tokens = Tokenizer.from_str(data.tokenizer).get_vocab()
assert "ab" in tokens
assert "qz" not in tokens
"""
    texts.run("code", code)


def test_no_surname_stands_in_two_splits(texts: Variant) -> None:
    code = """
from data.data_module import STEM, MyDataModule, normalise
splits = MyDataModule().splits
names = [set(part["text"].map(normalise)) for part in splits.values()]
stems = [{name[:STEM] for name in part} for part in names]
assert sum(map(len, names)) == len(set.union(*names)) == sum(map(len, splits.values()))
assert sum(map(len, stems)) == len(set.union(*stems))
assert all(part["label"].nunique() == 10 for part in splits.values())
"""
    texts.run("code", code)


def test_texts_to_predict_come_from_anywhere(texts: Variant, tmp_path: Path) -> None:
    frame = colours_and_pets()
    texts.run("train", f"--data.csv={save(frame, tmp_path)}", *SHORT_RUN, "--trainer.max_epochs=10")
    (tmp_path / "lines.txt").write_text("red one\nmy dog\n", encoding="utf-8")
    inputs: list[str | Path] = ["red 5", tmp_path / "lines.txt", save(frame[:2], tmp_path, "few.csv"), ""]
    rows = json.loads(texts.run("predict", *inputs, "--format=json").stdout)
    assert [row["input"] for row in rows] == ["red 5", "red one", "my dog", "red 0", "dog 0", ""]
    assert [row["class"] for row in rows[:5]] == ["r", "r", "d", "r", "d"]
    done = texts.run("predict", tmp_path / "none.txt", status=1)
    assert re.fullmatch("error: .*none.txt is not a file.*\n", done.stderr)


def test_texts_to_predict_come_from_standard_input(texts: Variant, tmp_path: Path) -> None:
    texts.run("train", f"--data.csv={save(colours_and_pets(), tmp_path)}", *SHORT_RUN, "--trainer.max_epochs=5")
    code = """
import io, sys
from training import predict
sys.stdin = io.StringIO("red 5\\n\\nmy dog\\n")
predict.main(["-", "--format=json"])
sys.stdin = sys.__stdin__
"""
    rows = json.loads(texts.run("code", code).stdout)
    assert [row["input"] for row in rows] == ["red 5", "", "my dog"]
    assert [row["class"] for row in rows[::2]] == ["r", "d"]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_recurrent_cell_by_name(texts: Variant, tmp_path: Path, cell: str) -> None:
    frame = colours_and_pets()
    assert texts(save(frame, tmp_path), f"--model.cell={cell}", "--model.layers=2").stderr == ""


def test_pictures_are_turned_upright_and_cut_at_the_centre(bake: Bake, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels[:, 4:16]).save(tmp_path / "cut.png")
    read = "import sys; from data import pictures; a, b = (pictures.read_picture(f, (3, 8, 8)) for f in sys.argv[1:])"
    compare = f"{read}; assert a.equal(b), (a, b)"
    bake(variant="image-folder").run("-c", compare, tmp_path / "turned.png", tmp_path / "cut.png")


def test_all_bad_masks_are_named_at_once(segmentation: Variant, tmp_path: Path) -> None:
    write_masks(tmp_path)
    images, masks = tmp_path / "images", tmp_path / "masks"
    (masks / "3.png").unlink()
    Image.new("L", (9, 9)).save(masks / "extra.png")
    found = problems(segmentation(tmp_path, status=1), tmp_path)
    assert {f"{images / '3.bmp'} has no mask", f"{masks / 'extra.png'} has no picture"} < set(found)
    (masks / "extra.png").unlink()
    (images / "3.bmp").unlink()
    Image.new("RGB", Image.open(masks / "4.png").size, "red").save(masks / "4.png")
    Image.new("L", (9, 9)).save(masks / "5.png")
    (masks / "6.png").write_bytes((masks / "6.png").read_bytes()[:60])
    (images / "8.png").write_bytes(b"no picture")
    found = problems(segmentation(tmp_path, status=1), tmp_path)
    assert len(found) == 4
    for name, what in (
        ("4.png", "is a colour picture"),
        ("5.bmp", "but its annotation or mask says 9 x 9"),
        ("6.png", "cannot be decoded"),
        ("8.png", "is not a readable picture"),
    ):
        assert any(name in problem and what in problem for problem in found), found


def test_class_without_a_name_is_refused(segmentation: Variant, tmp_path: Path) -> None:
    write_masks(tmp_path)
    file = tmp_path / "masks" / "7.png"
    Image.fromarray(np.full(np.asarray(Image.open(file)).shape, 9, np.uint8)).save(file)
    (problem,) = problems(segmentation(tmp_path, status=1), tmp_path)
    assert problem.startswith(f"{file} has class 9")


@pytest.mark.parametrize("network", ["deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
def test_segmentation_network_by_name(segmentation: Variant, tmp_path: Path, network: str) -> None:
    write_masks(tmp_path)
    flags = ["--data.num_workers=0", "--data.flip=true", "--data.scale=2", "--data.batch_size=2"]
    assert segmentation(tmp_path, f"--model.network={network}", *flags).stderr == ""


def test_masks_are_written_at_the_size_of_the_pictures(segmentation: Variant, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    segmentation.run("train", *write_masks(data).flags, *SHORT_RUN, "--trainer.max_epochs=1")
    pictures = [data / "images" / "0.png", data / "images" / "1.bmp", data / "images" / "0.png"]
    done = segmentation.run("predict", *pictures, "--output", tmp_path / "out", "--format=json")
    rows = json.loads(done.stdout)
    assert len({row["mask"] for row in rows}) == 3
    for row, picture in zip(rows, pictures, strict=True):
        mask = Image.open(row["mask"])
        assert mask.mode == "P" and mask.size == Image.open(picture).size
        assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}


def spoil(folder: Path, change: Callable[[dict], None]) -> None:
    file = folder / "annotations.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_all_bad_boxes_are_named_at_once(detection: Variant, tmp_path: Path) -> None:
    write_coco(tmp_path)

    def change(content: dict) -> None:
        boxes = content["annotations"]
        boxes[1]["bbox"] = [80, 5, 40, 9]
        boxes[2]["bbox"] = [200, 5, 40, 9]
        boxes[3]["bbox"] = [1, 2, 3]
        boxes[4]["image_id"] = 5
        boxes[5]["category_id"] = 5
        content["images"][20]["width"] = 11

    spoil(tmp_path, change)
    (tmp_path / "images" / "40.png").unlink()
    (tmp_path / "images" / "41.bmp").write_bytes(b"no picture")
    found = problems(detection(tmp_path, status=1), tmp_path)
    for what in (
        "1.bmp: box [80.0, 5.0, 40.0, 9.0]",
        "2.png: box [200.0, 5.0, 40.0, 9.0]",
        "annotation 4: bbox is [1, 2, 3], not [x, y, width, height]",
        "annotation 5: there is no image 5",
        "annotation 6: there is no category 5",
        "20.png has 96 x 64 pixels, but its annotation or mask says 11 x 64",
        "40.png is missing",
        "41.bmp is not a readable picture",
    ):
        assert any(what in problem for problem in found), (what, found)


def test_bad_boxes_can_be_left_out(detection: Variant, tmp_path: Path) -> None:
    write_coco(tmp_path)

    def change(content: dict) -> None:
        content["annotations"][0]["bbox"] = [5, 5, 0, 9]
        content["annotations"][1]["bbox"] = [80, 5, 40, 9]

    spoil(tmp_path, change)
    assert detection(tmp_path, "--data.drop_bad_boxes=true", "--data.num_workers=0").stderr == ""
    code = f"""
from data.data_module import MyDataModule
data = MyDataModule(data_dir={str(tmp_path)!r}, drop_bad_boxes=True)
targets = [target for part in data.samples[1].values() for _, target in part]
boxes = [box for target in targets for box in target["boxes"].tolist()]
assert [80, 5, 96, 14] in boxes and not any(left == right for left, _, right, _ in boxes)
assert data.category_ids == [17, 90] and data.class_names == ["green", "red"]
"""
    detection.run("code", code)


def test_boxes_need_neither_id_nor_iscrowd(detection: Variant, tmp_path: Path) -> None:
    write_coco(tmp_path)

    def change(content: dict) -> None:
        for i, box in enumerate(content["annotations"]):
            del box["id"]
            if i % 2:
                del box["iscrowd"]

    spoil(tmp_path, change)
    assert detection(tmp_path, "--data.num_workers=0").stderr == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not a COCO file"),
        ("[]", "not in COCO format"),
        ('{"images": []}', "annotations.json, are not in COCO"),
    ],
)
def test_other_json_is_refused(detection: Variant, tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations.json").write_text(content, encoding="utf-8")
    assert sentence in detection(tmp_path, status=1).stderr


def test_file_name_cannot_leave_its_folder(detection: Variant, tmp_path: Path) -> None:
    write_coco(tmp_path)
    outside = tmp_path.parent / f"outside_{tmp_path.name}.png"
    Image.new("RGB", (96, 64)).save(outside)
    for name in (f"../../{outside.name}", str(outside)):
        picture = {"file_name": name, "height": 64}
        spoil(tmp_path, lambda content, picture=picture: content["images"][3].update(picture))  # type: ignore[misc]
        assert f"{outside.name} is missing" in detection(tmp_path, status=1).stderr


def test_splits_of_detection_may_have_files_of_their_own(detection: Variant, tmp_path: Path) -> None:
    write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    for split, part in (("train", slice(0, 40)), ("val", slice(40, 50)), ("test", slice(50, 60))):
        images = content["images"][part]
        boxes = [box for box in content["annotations"] if box["image_id"] in {image["id"] for image in images}]
        own = content | {"images": images, "annotations": boxes}
        (tmp_path / f"{split}.json").write_text(json.dumps(own), encoding="utf-8")
    (tmp_path / "annotations.json").unlink()
    assert detection(tmp_path, "--data.num_workers=0").stderr == ""


@pytest.mark.parametrize("network", ["resnet34", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_detection_network_by_name(detection: Variant, tmp_path: Path, network: str) -> None:
    write_coco(tmp_path)
    flags = ["--data.num_workers=0", "--data.flip=true", "--data.batch_size=2"]
    assert detection(tmp_path, f"--model.network={network}", *flags).stderr == ""


def test_unknown_detection_network_is_refused(detection: Variant, tmp_path: Path) -> None:
    assert "resnet19" in detection(tmp_path, "--model.network=resnet19", status=2).stderr


def test_coco_results_give_the_metrics_of_evaluate(detection: Variant, tmp_path: Path) -> None:
    """The printed JSON goes through pycocotools as anyone's would."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    detection.run("train", *write_coco(tmp_path).flags, *SHORT_RUN, "--trainer.max_epochs=3")
    run = detection.project.runs()[-1]
    code = f"""
import json
from data.data_module import MyDataModule
print(json.dumps([str(picture.file) for picture, _ in MyDataModule(data_dir={str(tmp_path)!r}).samples[1]["test"]]))
"""
    files = json.loads(detection.run("code", code).stdout)
    drawn = tmp_path / "drawn"
    done = detection.run("predict", *files, "--format=json", "--draw", drawn, "--min_score=0")
    assert len(list(drawn.glob("*.png"))) == len(files)
    none = detection.run("predict", *files, "--min_score=1", status=1)
    assert "1.0" in none.stderr and "--min_score" in none.stderr
    results = json.loads(done.stdout)
    truth = COCO(tmp_path / "annotations.json")
    judge = COCOeval(truth, truth.loadRes(results), "bbox")
    judge.params.imgIds = sorted({row["image_id"] for row in results})
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    measured = json.loads((run / "test_metrics.json").read_text(encoding="utf-8"))
    assert judge.stats[0] == pytest.approx(measured["test/map"], abs=0.02)


FAKE_WEIGHTS = """
import torch
from torchvision.models import WeightsEnum, get_model, list_models
sources = {}
def source(name):  # a network with random weights stands for the trained one, which would have to be downloaded
    if name not in sources:
        options = {"aux_loss": True} if name.startswith("deeplabv3") else {}
        if name.startswith(("fasterrcnn", "deeplabv3", "lraspp")):
            options["weights_backbone"] = None
        sources[name] = get_model(name, weights=None, **options).state_dict()
    return sources[name]
def get_state_dict(self, *args, **kwargs):
    return dict(source(type(self).__name__.removesuffix("_Weights").lower()))
WeightsEnum.get_state_dict = get_state_dict
"""


@pytest.mark.parametrize(
    ("network", "weights", "trained"),
    [
        ("deeplabv3_mobilenet_v3_large", "backbone", "mobilenet_v3_large"),
        ("deeplabv3_mobilenet_v3_large", "DEFAULT", "deeplabv3_mobilenet_v3_large"),
        ("lraspp_mobilenet_v3_large", "DEFAULT", "lraspp_mobilenet_v3_large"),
    ],
)
def test_segmentation_starts_from_trained_weights(
    segmentation: Variant, tmp_path: Path, network: str, weights: str, trained: str
) -> None:
    write_masks(tmp_path)
    flags = [f"--data.data_dir={tmp_path}", f"--model.network={network}", f"--model.weights={weights}", *QUICK]
    code = f"""{FAKE_WEIGHTS}
from models.my_model import MyModel, load_pretrained
model = MyModel(["a", "b", "c"], network={network!r}, weights={weights!r})
load_pretrained(model.network, {network!r}, {weights!r})
own = model.network.state_dict()
key = "backbone.0.0.weight"
assert torch.equal(own[key], source({trained!r})[key if {weights!r} == "DEFAULT" else "features.0.0.weight"])
other = [k for k, v in source({network!r}).items() if k in own and v.shape != own[k].shape]
assert all(own[k].shape[0] == 3 for k in other) and other
assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3, 64, 64)
"""
    segmentation.run("code", code)
    code = f"""{FAKE_WEIGHTS}
from training import train
from training.engine.interrupts import run_command
run_command(lambda: train.main({flags!r}))
"""
    assert segmentation.run("code", code).stderr == ""


@pytest.mark.parametrize(
    ("network", "weights", "trained"),
    [
        ("resnet18", "backbone", "resnet18"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "backbone", "mobilenet_v3_large"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "DEFAULT", "fasterrcnn_mobilenet_v3_large_320_fpn"),
    ],
)
def test_detection_starts_from_trained_weights(
    detection: Variant, tmp_path: Path, network: str, weights: str, trained: str
) -> None:
    write_coco(tmp_path)
    flags = [f"--data.data_dir={tmp_path}", f"--model.network={network}", f"--model.weights={weights}", *QUICK]
    code = f"""{FAKE_WEIGHTS}
from models.my_model import MyModel, load_pretrained
model = MyModel(["a", "b"], [1, 2], [64, 96], [8, 16, 32, 64, 128], network={network!r}, weights={weights!r})
load_pretrained(model.network, {network!r}, {weights!r})
own, first = model.network.state_dict(), source({trained!r})
key = next(k for k in own if k.startswith("backbone.body.") and k.endswith("weight"))
short = key.removeprefix("backbone.body.").replace("0.0", "features.0.0")
assert torch.equal(own[key], first[key if {weights!r} == "DEFAULT" else short])
from training import train
from training.engine.interrupts import run_command
run_command(lambda: train.main({flags!r}))
"""
    assert detection.run("code", code).stderr == ""


def test_detector_without_trained_weights_is_refused(detection: Variant, tmp_path: Path) -> None:
    write_coco(tmp_path)
    done = detection(tmp_path, "--model.weights=DEFAULT", status=1)
    assert done.stderr.startswith("error: resnet18 ") and "--model.weights backbone" in done.stderr
