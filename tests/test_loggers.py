"""Every logger works offline, without a login, and gets the same figures as metrics.csv."""

import csv
import json
import re
import sqlite3
from pathlib import Path

import pytest

from conftest import LOGGERS, Bake, Project

pytestmark = pytest.mark.slow

ALWAYS = [
    "checkpoints",
    "config.yaml",
    "confusion_matrix.png",
    "learning_curves.png",
    "metrics.csv",
    "per_class.csv",
    "report.html",
    "run.json",
    "test_metrics.json",
    "test_samples.png",
]
OWN = {"tensorboard": ["tensorboard"], "csv": [], "wandb": ["wandb"], "mlflow": ["mlflow"]}


def logged_by_tensorboard(folder: Path) -> dict[str, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def logged_by_wandb(folder: Path) -> dict[str, float]:
    """Read the protobuf strings of a run file: a key, the tag and length of its value, and the value as JSON."""
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    found = re.finditer(rb"((?:train|val|test)/(?:balanced_acc|acc|f1|loss|lr))\x82\x01(.)", content, flags=re.DOTALL)
    return {each[1].decode(): json.loads(content[each.end() : each.end() + each[2][0]]) for each in found}


def logged_by_mlflow(folder: Path) -> dict[str, float]:
    with sqlite3.connect(folder.parent / "mlflow.db") as database:
        return dict(database.execute("SELECT key, value FROM metrics ORDER BY step"))


READERS = {"tensorboard": logged_by_tensorboard, "wandb": logged_by_wandb, "mlflow": logged_by_mlflow}


def train(project: Project) -> Path:
    """Train offline without an account, and return the run's folder."""
    home = str(project.elsewhere)
    done = project.run("training/train.py", "--trainer.max_epochs=2", WANDB_API_KEY="", HOME=home, NETRC=home + "/none")
    assert done.stderr == ""
    (folder,) = project.runs()
    return folder


@pytest.mark.parametrize("logger", LOGGERS)
def test_logger_gets_what_the_csv_file_gets(bake: Bake, logger: str) -> None:
    folder = train(bake(fresh=True, logger=logger, project_name=f"logger_{logger}"))
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == sorted(ALWAYS + OWN[logger])
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = {key: float(row[key]) for row in rows for key in row if "/" in key and row[key]}
    tested = {f"test/{name}" for name in ("loss", "acc", "balanced_acc", "f1")}
    assert set(last) == {"train/loss", "train/lr", "val/loss", "val/acc"} | tested
    if logger in READERS:
        logged = READERS[logger](folder)
        assert {key: logged[key] for key in last} == pytest.approx(last, abs=1e-6)


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "mlflow"])
def test_resumed_run_stays_one_run(bake: Bake, logger: str) -> None:
    project = bake(fresh=True, logger=logger, project_name=f"resumed_{logger}")
    folder = train(project)
    flags = ("--resume", folder.name, "--trainer.max_epochs=3")
    home = str(project.elsewhere)
    done = project.run("training/train.py", *flags, WANDB_API_KEY="", HOME=home, NETRC=home + "/none")
    assert done.stderr == ""
    assert project.runs() == [folder]
    if logger == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        assert {"confusion_matrix", "learning_curves", "test_samples"} == set(events.Tags()["images"])
        steps = {tag: [event.step for event in events.Scalars(tag)] for tag in ("val/loss", "test/loss")}
        assert steps == {"val/loss": [19, 39, 59], "test/loss": [40, 60]}
    elif logger == "mlflow":
        with sqlite3.connect(folder.parent / "mlflow.db") as database:
            assert database.execute("SELECT name FROM runs").fetchall() == [(folder.name,)]
            logged = database.execute("SELECT step FROM metrics WHERE key = 'val/loss' ORDER BY step").fetchall()
        assert logged == [(19,), (39,), (59,)]
    else:
        ids = {file.stem for file in (folder / "wandb").glob("offline-run-*/*.wandb")}
        assert ids == {f"run-{folder.name}"}


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "mlflow"])
def test_two_processes_log_one_run(bake: Bake, logger: str) -> None:
    project = bake(fresh=True, logger=logger, project_name=f"processes_{logger}")
    flags = ["--trainer.max_epochs=1", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    home = str(project.elsewhere)
    project.run("training/train.py", *flags, WANDB_API_KEY="", HOME=home, NETRC=home + "/none")
    (folder,) = project.runs()
    folders = {path.name for path in (project.path / "logs").iterdir() if path.is_dir() and path.name != "sweeps"}
    assert folders - {"mlflow"} == {folder.name}
    if logger == "mlflow":
        with sqlite3.connect(folder.parent / "mlflow.db") as database:
            assert database.execute("SELECT name FROM runs").fetchall() == [(folder.name,)]
    elif logger == "wandb":
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    else:
        assert logged_by_tensorboard(folder).keys() >= {"val/loss", "test/loss"}
