"""Any Lightning classes that are pasted into a project train, are tested, survive a kill, and can be evaluated."""

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import torch
import yaml
from faults.kills import ForkedRunner, compare, runs

from conftest import Bake, Project
from data_files import digits, write_idx

TRAIN, EVALUATE, PREDICT, EXPORT = (f"training/{name}.py" for name in ("train", "evaluate", "predict", "export"))
Paste = Callable[..., Project]

# The two classes of the notes, but for the size of the linear layer.
NOTES_MODEL = """
import torch
from torch import nn
from torch.optim import Adam
import lightning as pl


# Define LightningModule
class MyModel(pl.LightningModule):
    def __init__(self):
        super(MyModel, self).__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2),
            nn.Flatten(),
            nn.Linear(FEATURES, 10)  # Adjust dimensions to match input size
        )
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        data, target = batch
        output = self(data)
        loss = self.criterion(output, target)
        self.log('train_loss', loss)
        return loss

    def configure_optimizers(self):
        return Adam(self.parameters(), lr=0.001)
"""
NOTES_DATA = """
import lightning as pl
from torchvision import datasets, transforms
from torch.utils.data import DataLoader


# Define DataModule (Optional but encouraged)
class MyDataModule(pl.LightningDataModule):
    def __init__(self, batch_size=32):
        super().__init__()
        self.batch_size = batch_size
        self.transform = transforms.ToTensor()

    def prepare_data(self):
        datasets.MNIST(root='./data', train=True, download=True)
        datasets.MNIST(root='./data', train=False, download=True)

    def setup(self, stage=None):
        self.train_dataset = datasets.MNIST(root='./data', train=True, transform=self.transform)
        self.val_dataset = datasets.MNIST(root='./data', train=False, transform=self.transform)

    def train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_dataset, batch_size=self.batch_size)
"""

# What the other tests change a part of.
MODEL = """
import torch
import torchmetrics
from lightning import LightningModule
from torch import nn
from torch.nn.functional import cross_entropy


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/loss", cross_entropy(self(x), y))

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test/loss", cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class MyModel(Plain):
"""
DATA = """
import random
from collections import namedtuple

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import (
    BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler,
    random_split,
)


def samples(number, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 8, generator=generator)
    return TensorDataset(x, (x[:, :4].sum(1) > 0).long())


class Plain(LightningDataModule):
    def __init__(self, batch_size: int = 4):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(samples(40, 0), batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(samples(18, 1), batch_size=4)

    def test_dataloader(self):
        return DataLoader(samples(22, 2), batch_size=4)


class MyDataModule(Plain):
"""
STEPS = 10  # in an epoch of these data

CALLBACKS = '''
import os
import time
from pathlib import Path

from lightning import Callback


class Die(Callback):
    """Ends the process as SIGKILL does, before a batch or an epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if str(trainer.current_epoch) == os.environ.get("DIE_AT_EPOCH"):
            os._exit(9)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if str(trainer.fit_loop.total_batch_idx) == os.environ.get("DIE_AT_BATCH"):
            os._exit(9)


class Count(Callback):
    """Has a state."""

    def __init__(self, by: int = 1):
        self.by, self.batches = by, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += self.by
        pl_module.log("batches", float(self.batches))

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state_dict):
        self.batches = state_dict["batches"]


class Epochs(Callback):
    """Counts the epochs that have begun."""

    def __init__(self):
        self.epochs = 0

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs += 1

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict):
        self.epochs = state_dict["epochs"]


class Hold(Callback):
    """Waits before the fifth batch until a file is there."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        while batch_idx == 4 and not Path(os.environ["HOLD_UNTIL"]).exists():
            time.sleep(0.02)
'''
SETTINGS = {
    "max_epochs": 2,
    "accelerator": "cpu",
    "logger": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "callbacks": [{"class_path": "training.my_callbacks.Die"}],
}


def fill(project: Project, model: str, data: str) -> None:
    """Replace both classes, as a person does, and write a config that fits them."""
    (project.path / "models" / "my_model.py").write_text(model, encoding="utf-8")
    (project.path / "data" / "data_module.py").write_text(data, encoding="utf-8")
    (project.path / "training" / "my_callbacks.py").write_text(CALLBACKS, encoding="utf-8")
    file = project.path / "configs" / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config |= {"model": {}, "data": {}, "monitor": "val/loss", "monitor_mode": "min", "checkpoint_minutes": 0}
    config["trainer"] |= SETTINGS
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


@pytest.fixture
def paste(bake: Bake, tmp_path: Path) -> Paste:
    """Bake a project and paste two plain classes into it, parts of which `model` and `data` change."""

    def paste(model: str = "pass", data: str = "pass", folder: str = "project") -> Project:
        project = Project(tmp_path / folder / "my_project", tmp_path / "elsewhere")
        shutil.copytree(bake().path, project.path)
        project.elsewhere.mkdir()
        fill(project, MODEL + indent(dedent(model), "    "), DATA + indent(dedent(data), "    "))
        return project

    return paste


def checkpoint(run: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def steps(run: Path) -> int:
    return checkpoint(run)["global_step"]


def metrics_of_test(run: Path) -> dict[str, float]:
    return json.loads((run / "test_metrics.json").read_text(encoding="utf-8"))


def column(run: Path, name: str) -> list[tuple[int, float]]:
    """The step and value of each row of `metrics.csv` that has a value in this column."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def columns(run: Path) -> list[str]:
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def settings(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def weights_are_finite(run: Path) -> bool:
    return all(
        tensor.isfinite().all() for tensor in checkpoint(run)["state_dict"].values() if tensor.is_floating_point()
    )


def same_weights(run: Path) -> bool:
    """Whether the best epoch is the last one."""
    best, last = checkpoint(run, "best")["state_dict"], checkpoint(run)["state_dict"]
    return all(torch.equal(best[name], last[name]) for name in last)


def sentence(stderr: str) -> str:
    """The one line that a command ended with."""
    (line,) = stderr.splitlines()
    return line


def assert_trained(project: Project, *flags: str, number: int = 2 * STEPS) -> Path:
    """Train and test; return the run folder."""
    project.run(TRAIN, *flags)
    run = project.runs()[-1]
    assert steps(run) == number
    assert metrics_of_test(run)["test/loss"] > 0
    return run


def assert_evaluated_alike(project: Project) -> None:
    """evaluate.py prints what train.py measured."""
    printed = project.run(EVALUATE).stdout
    for name, value in metrics_of_test(project.runs()[-1]).items():
        assert re.search(rf"{name} *\W *{value:.4f}", printed), printed


def assert_exact(project: Project, *flags: str, batch: int = 15, done: int | None = None, epoch: str = "") -> Path:
    """A run that is killed and resumed ends as the one that is not, bit for bit; returns the resumed one.

    Args:
        project: The project.
        flags: Flags of both runs.
        batch: Number of complete batches at the kill.
        done: Number of steps of optimizers that these take, if not one each.
        epoch: Epoch before which the run is killed, instead of a batch.
    """
    project.run(TRAIN, *flags)
    project.run(TRAIN, *flags, status=9, **({"DIE_AT_EPOCH": epoch} if epoch else {"DIE_AT_BATCH": str(batch)}))
    killed = project.runs()[-1]
    if not epoch:
        assert steps(killed) == (batch if done is None else done)
    project.run(TRAIN, "--resume")
    whole, resumed = project.runs()
    assert resumed == killed
    assert compare(whole, resumed) == []
    return resumed


# The notes' own classes


@pytest.fixture(scope="module")
def notes(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Project]:
    """A project with the classes of the notes that was trained, once a variant."""
    trained: dict[str, Project] = {}

    def notes(variant: str) -> Project:
        if variant not in trained:
            project = bake(fresh=True, variant=variant, project_name=f"notes_{variant.replace('-', '_')}")
            project = replace(project, elsewhere=project.path)  # where the data are looked for
            size, features = {"digits-cnn": (8, "288"), "mnist-cnn": (28, "5408")}[variant]
            write_idx(project.path / "data" / "MNIST" / "raw", *digits(size))
            fill(project, NOTES_MODEL.replace("FEATURES", features), NOTES_DATA)
            done = project.run(TRAIN, "--monitor=val/acc")
            (tmp_path_factory.getbasetemp() / f"notes_{variant}.txt").write_text(done.stderr, encoding="utf-8")
            trained[variant] = project
        return trained[variant]

    return notes


by_variant = pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=pytest.mark.xdist_group(f"notes {name}")) for name in ("digits-cnn", "mnist-cnn")],
)


@by_variant
def test_classes_of_the_notes_train(notes: Callable[[str], Project], variant: str, tmp_path_factory) -> None:
    run = notes(variant).runs()[0]
    assert steps(run) == 2 * 44
    losses = [value for _, value in column(run, "train_loss")]
    assert len(losses) == 2 * 44
    assert losses[-1] < 0.7 * losses[0]
    assert same_weights(run)
    said = (tmp_path_factory.getbasetemp() / f"notes_{variant}.txt").read_text(encoding="utf-8")
    assert "val/acc" in sentence(said) and "train_loss" in said


@by_variant
def test_classes_of_the_notes_are_evaluated_as_far_as_they_can_be(
    notes: Callable[[str], Project], variant: str
) -> None:
    printed = notes(variant).run(EVALUATE).stdout
    assert "test_dataloader" in printed and "test_step" in printed and "validation_step" in printed


@by_variant
def test_classes_of_the_notes_predict(notes: Callable[[str], Project], variant: str) -> None:
    printed = notes(variant).run(PREDICT, "--format=json").stdout
    assert {len(row["output"]) for row in json.loads(printed)} == {10}


@by_variant
def test_classes_of_the_notes_export_weights(notes: Callable[[str], Project], variant: str) -> None:
    project = notes(variant)
    project.run(EXPORT, "--format=weights")
    run = project.runs()[0]
    exported = torch.load(run / "checkpoints" / "best.weights.pth", weights_only=True)
    expected = checkpoint(run, "best")["state_dict"]
    names = [next(name for name in exported if expected_name.endswith(name)) for expected_name in expected]
    assert all(torch.equal(exported[a], expected[b]) for a, b in zip(names, expected, strict=True))
    (run / "checkpoints" / "best.weights.pth").unlink()


@by_variant
def test_classes_of_the_notes_resume_exactly(notes: Callable[[str], Project], variant: str) -> None:
    project = notes(variant)
    whole = project.runs()[0]
    project.run(TRAIN, "--monitor=val/acc", status=9, DIE_AT_BATCH="60")
    killed = project.runs()[-1]
    assert steps(killed) == 60
    project.run(TRAIN, "--resume")
    assert compare(whole, killed) == []
    shutil.rmtree(killed)


# Batches and metrics


def test_anything_is_logged_in_training_step(paste: Paste) -> None:
    model = """
        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = cross_entropy(self(x), y)
            self.log("loss", loss, prog_bar=True)
            self.log("both", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log_dict({"train/a": 1.0, "train/b": torch.tensor(2)}, prog_bar=True)
            return loss
    """
    run = assert_trained(paste(model), "--monitor=both_epoch")
    for name in ("loss", "both_step", "train/a", "train/b", "train/loss"):
        assert [step for step, _ in column(run, name)] == list(range(2 * STEPS)), name
    mean = [sum(value for _, value in column(run, "both_step")[i : i + STEPS]) / STEPS for i in (0, STEPS)]
    assert [value for _, value in column(run, "both_epoch")] == pytest.approx(mean, rel=1e-5)
    assert column(run, "loss") == column(run, "train/loss")


def test_averages_that_a_resumed_epoch_cannot_have_are_reported(paste: Paste) -> None:
    model = """
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.Accuracy("binary")

        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self(x)
            self.accuracy(logits.argmax(1), y)
            self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
            return cross_entropy(logits, y)
    """
    project = paste(model)
    project.run(TRAIN, status=9, DIE_AT_BATCH="15")
    (warning,) = project.run(TRAIN, "--resume").stderr.splitlines()
    assert warning.startswith("warning: ") and "over the epoch" in warning and "checkpoint" in warning
    project.run(TRAIN, status=9, DIE_AT_EPOCH="1")
    assert project.run(TRAIN, "--resume").stderr == ""


@pytest.mark.parametrize("kind", ["dict", "named tuple", "list"])
def test_batches_of_any_kind(paste: Paste, kind: str) -> None:
    make = {"dict": "{'x': x, 'y': y}", "named tuple": "Sample(x, y)", "list": "[x, y, ['nested', [x]]]"}[kind]
    take = {"dict": "batch['x'], batch['y']", "named tuple": "batch.x, batch.y", "list": "batch[0], batch[1]"}[kind]
    data = f"""
        Sample = namedtuple("Sample", "x y")

        def loader(self, number, seed, shuffle=False):
            Sample = self.Sample
            return DataLoader([{make} for x, y in samples(number, seed)], batch_size=4, shuffle=shuffle)

        def train_dataloader(self):
            return self.loader(40, 0, True)

        def val_dataloader(self):
            return self.loader(18, 1)

        def test_dataloader(self):
            return self.loader(22, 2)
    """
    model = f"""
        def training_step(self, batch, batch_idx):
            return super().training_step(({take}), batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step(({take}), batch_idx)

        def test_step(self, batch, batch_idx):
            super().test_step(({take}), batch_idx)

        def predict_step(self, batch, batch_idx):
            x, y = {take}
            return {{"class": self(x).argmax(1).tolist(), "target": y.tolist()}}
    """
    data = data.replace("Sample = namedtuple", "global Sample\n        Sample = namedtuple").replace(
        "            Sample = self.Sample\n", ""
    )
    project = paste(model, data)
    assert_trained(project)
    assert_evaluated_alike(project)
    rows = json.loads(project.run(PREDICT, "--format=json").stdout)
    assert [row.keys() for row in rows] == [{"class", "target"}] * 22


def test_several_loaders_for_validation_and_test(paste: Paste) -> None:
    data = """
        def val_dataloader(self):
            return [DataLoader(samples(18, seed), batch_size=4) for seed in (1, 3)]

        def test_dataloader(self):
            return [DataLoader(samples(22, seed), batch_size=4) for seed in (2, 4)]
    """
    model = """
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

        def test_step(self, batch, batch_idx, dataloader_idx=0):
            super().test_step(batch, batch_idx)
    """
    project = paste(model, data)
    project.run(TRAIN, "--monitor=val/loss/dataloader_idx_1")
    (run,) = project.runs()
    assert metrics_of_test(run).keys() == {"test/loss/dataloader_idx_0", "test/loss/dataloader_idx_1"}
    assert_evaluated_alike(project)
    best = min(value for _, value in column(run, "val/loss/dataloader_idx_1"))
    assert f"{best:.4f}" in project.run(EVALUATE, "--split=val").stdout


def test_streams_without_length_end_the_epoch_themselves(paste: Paste) -> None:
    project = paste(data=STREAM)
    assert_trained(project)
    assert_trained(project, "--trainer.limit_train_batches=6", "--trainer.limit_val_batches=2", number=12)


STREAM = """
    def __init__(self, workers: int = 0):
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        return DataLoader(self.Stream(40, 0), batch_size=4, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(self.Stream(18, 1), batch_size=4)

    class Stream(IterableDataset):
        def __init__(self, number, seed):
            self.number, self.seed = number, seed

        def __iter__(self):
            for x, y in samples(self.number, self.seed):
                yield x + 0.1 * torch.randn(8) + np.random.rand() + random.random(), y
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "number"),
    [
        ("data.workers=0", 10),
        ("data.workers=2", 20),
        ("trainer.limit_train_batches=8", 8),
        ("trainer.val_check_interval=4", 10),
    ],
)
def test_streams_resume_within_the_epoch(paste: Paste, flag: str, number: int) -> None:
    """Each worker reads the whole stream."""
    run = assert_exact(paste(data=STREAM), f"--{flag}", batch=number + 5)
    assert steps(run) == 2 * number


LOADERS = {
    "shuffled": "DataLoader(Noisy(), batch_size=4, shuffle=True)",
    "workers": "DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2)",
    "persistent workers": "DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)",
    "sampler": "DataLoader(Noisy(), batch_size=4, sampler=WeightedRandomSampler(torch.arange(40) + 1.0, 40))",
    "batch_sampler": "DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(range(40)), 4, False))",
    "generator": "DataLoader(Noisy(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))",
    "two loaders": (
        "{'first': DataLoader(Noisy(), batch_size=4, shuffle=True), 'second': DataLoader(Noisy(), batch_size=8)}"
    ),
    "sampler with generator": (
        "DataLoader(Noisy(), batch_size=4, num_workers=2,"
        " sampler=RandomSampler(range(40), generator=torch.Generator().manual_seed(3)))"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "loader",
    [name for name in LOADERS if name != "persistent workers"],
)
def test_any_loader_resumes_within_the_epoch(paste: Paste, loader: str) -> None:
    """The samples are changed at random, too: with the random numbers of PyTorch, NumPy and Python."""
    data = f"""
        def train_dataloader(self):
            return {LOADERS[loader]}


        class Noisy(Dataset):
            def __init__(self):
                self.samples = samples(40, 0)

            def __len__(self):
                return 40

            def __getitem__(self, index):
                x, y = self.samples[index]
                return x + 0.1 * torch.randn(8) + np.random.rand() + random.random(), y
    """
    model = """
        def training_step(self, batch, batch_idx):
            if not isinstance(batch, dict):
                return super().training_step(batch, batch_idx)
            return sum(super(MyModel, self).training_step(each, batch_idx) for each in batch.values())
    """
    assert_exact(paste(model, data.replace("Noisy()", "self.Noisy()")))


def test_loader_that_cannot_be_resumed_exactly_is_reported(paste: Paste) -> None:
    data = f"""
        def train_dataloader(self):
            return {LOADERS["persistent workers"].replace("Noisy()", "samples(40, 0)")}
    """
    project = paste(data=data)
    project.run(TRAIN, status=9, DIE_AT_BATCH="15")
    assert "persistent" in sentence(project.run(TRAIN, "--resume").stderr)


def test_random_splits_in_setup_are_equal_in_every_command(paste: Paste) -> None:
    data = """
        def setup(self, stage):
            self.train, self.val, self.test = random_split(samples(80, 0), [40, 18, 22])

        def train_dataloader(self):
            return DataLoader(self.train, batch_size=4, shuffle=True)

        def val_dataloader(self):
            return DataLoader(self.val, batch_size=4)

        def test_dataloader(self):
            return DataLoader(self.test, batch_size=4)
    """
    model = """
        def on_fit_start(self):
            self.trained_on = torch.stack([x for x, _ in self.trainer.datamodule.train])

        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)
            self.log("test/fingerprint", batch[0].double().pow(2).sum(), reduce_fx="sum")
            if hasattr(self, "trained_on"):
                assert not (batch[0][:, None] == self.trained_on).all(2).any(), "trained on a sample of the test"
    """
    project = paste(model, data)
    assert_trained(project)
    assert_evaluated_alike(project)


def test_test_that_draws_random_numbers_is_repeatable(paste: Paste) -> None:
    model = """
        def test_step(self, batch, batch_idx):
            self.train()
            super().test_step(batch, batch_idx)
    """
    project = paste(model)
    assert_trained(project)
    assert_evaluated_alike(project)
    assert_evaluated_alike(project)


# What training_step returns, optimizers and schedules


def test_training_step_that_returns_none_skips_the_batch(paste: Paste) -> None:
    model = """
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx % 2 else None
    """
    project = paste(model)
    run = assert_trained(project)
    assert [step for step, _ in column(run, "train/loss")] == list(range(1, 2 * STEPS, 2))


def test_training_step_returns_a_dict_of_anything(paste: Paste) -> None:
    model = """
        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self(x)
            loss = cross_entropy(logits, y)
            return {"loss": loss, "logits": logits, "text": "a", "none": None, "number": 3, "scalar": loss.detach()}
    """
    run = assert_trained(paste(model))
    assert {value for _, value in column(run, "train/number")} == {3}
    assert column(run, "train/scalar") == column(run, "train/loss")
    assert "train/logits" not in columns(run)


GAN = """
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(3, 8), nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        x, _ = batch
        g_opt, d_opt = self.optimizers()
        fake = self.generator(torch.randn(len(x), 3))
        g_loss = -self.discriminator(fake).mean()
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        d_loss = (self.discriminator(fake.detach()) - self.discriminator(x)).mean()
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)
        if self.trainer.is_last_batch:
            for schedule in self.lr_schedulers():
                schedule.step()

    def configure_optimizers(self):
        optimizers = [torch.optim.Adam(net.parameters(), lr=0.01) for net in (self.generator, self.discriminator)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(each, 1, 0.5) for each in optimizers]

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.discriminator(batch[0]).sigmoid().mean())

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.discriminator(batch[0]).sigmoid().mean())
"""


@pytest.mark.slow
def test_gan_has_one_axis_of_steps_and_resumes_exactly(paste: Paste) -> None:
    run = assert_exact(paste(GAN), done=30)
    for name in ("g_loss", "d_loss"):
        assert [step for step, _ in column(run, name)] == list(range(2 * STEPS))
    assert [step for step, _ in column(run, "val/loss")] == [STEPS - 1, 2 * STEPS - 1]


def test_rates_of_several_optimizers_are_logged_where_training_step_returns_nothing(paste: Paste) -> None:
    run = assert_trained(paste(GAN), number=4 * STEPS)
    rates = [name for name in columns(run) if name.startswith("train/lr")]
    assert len(rates) == 2
    assert [step for step, _ in column(run, rates[0])] == list(range(2 * STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("epoch", ["3", ""], ids=["between epochs", "within"])
def test_plateau_schedule_survives_a_kill(paste: Paste, epoch: str) -> None:
    model = """
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val/worse", float(self.current_epoch))

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/worse"}}
    """
    run = assert_exact(paste(model), "--trainer.max_epochs=6", batch=35, epoch=epoch)
    rates = [value for _, value in column(run, "train/lr")]
    assert rates[::STEPS] == [0.01, 0.01, 0.01, 0.005, 0.005, 0.0025]


@pytest.mark.slow
def test_schedule_over_all_steps_survives_a_kill(paste: Paste) -> None:
    model = """
        def configure_optimizers(self):
            optimizer, number = super().configure_optimizers(), self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=number)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]
    """
    run = assert_exact(paste(model))
    assert max(value for _, value in column(run, "train/lr")) == pytest.approx(0.02, rel=0.05)


def test_rate_is_logged_with_the_step_that_used_it(paste: Paste) -> None:
    model = """
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]
    """
    run = assert_trained(paste(model))
    assert [value for _, value in column(run, "train/lr")] == pytest.approx([1 / (i + 1) for i in range(2 * STEPS)])


@pytest.mark.slow
def test_model_that_draws_random_numbers_itself_survives_a_kill(paste: Paste) -> None:
    model = """
        def training_step(self, batch, batch_idx):
            x, y = batch
            noise = np.random.rand() + random.random() + torch.randn(8)
            return super().training_step((x + 0.1 * noise, y), batch_idx)
    """
    project = paste(model)
    file = project.path / "models" / "my_model.py"
    file.write_text(f"import random\nimport numpy as np\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    assert_exact(project)


@pytest.mark.parametrize("user", ["monitor", "EarlyStopping", "ReduceLROnPlateau"])
def test_loss_of_training_can_be_monitored(paste: Paste, user: str) -> None:
    model = """
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "train/loss"}}
    """
    stopping = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/loss")
    project = paste(model if user == "ReduceLROnPlateau" else "pass")
    run = assert_trained(project, "--monitor=train/loss", *(stopping if user == "EarlyStopping" else ()))
    means = [sum(value for _, value in column(run, "train/loss")[i : i + STEPS]) / STEPS for i in (0, STEPS)]
    assert checkpoint(run, "best")["global_step"] == (STEPS if means[0] < means[1] else 2 * STEPS)


def test_rate_of_each_parameter_group_is_logged(paste: Paste) -> None:
    model = """
        def configure_optimizers(self):
            first, last = self.layers[0], self.layers[-1]
            return torch.optim.SGD([
                {"params": first.parameters(), "lr": 0.5, "name": "first"}, {"params": last.parameters(), "lr": 0.25},
            ])
    """
    run = assert_trained(paste(model))
    rates = [column(run, name) for name in columns(run) if name.startswith("train/lr")]
    assert sorted({value for _, value in rate} for rate in rates) in ([{0.25}, {0.5}], [{0.5}, {0.25}])


# Layers and loaders that are made late

LATE_LAYERS = {
    "setup": """
        def setup(self, stage):
            self.layers = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, self.trainer.datamodule.num_classes))
    """,
    "configure_model": """
        def __init__(self):
            super().__init__()
            self.layers = None

        def configure_model(self):
            if self.layers is None:
                self.layers = nn.Linear(8, 2)
    """,
    "lazy": """
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 2))
            self.layers(torch.zeros(1, 8))
    """,
}


@pytest.mark.parametrize("kind", list(LATE_LAYERS))
def test_layers_that_are_made_late_are_tested_evaluated_and_exported(paste: Paste, kind: str) -> None:
    project = paste(LATE_LAYERS[kind], "num_classes = 2")
    run = assert_trained(project)
    assert_evaluated_alike(project)
    project.run(EXPORT)
    weights = torch.load(run / "checkpoints" / "best.weights.pth", weights_only=True)
    best = checkpoint(run, "best")["state_dict"]
    assert weights.keys() == best.keys()
    assert all(torch.equal(best[name], weights[name]) for name in weights)


def test_complete_model_is_exported_without_the_data(paste: Paste) -> None:
    model = """
        def setup(self, stage):
            self.stage = stage
    """
    data = """
        def setup(self, stage):
            assert self.trainer.training or self.trainer.testing
            super().setup(stage)
    """
    project = paste(model, data)
    assert_trained(project)
    project.run(EXPORT)


def test_server_keeps_layers_that_setup_makes(bake: Bake, tmp_path: Path) -> None:
    project = Project(tmp_path / "my_project", tmp_path / "elsewhere")
    shutil.copytree(bake(serving="fastapi").path, project.path)
    project.elsewhere.mkdir()
    fill(project, MODEL + indent(dedent(LATE_LAYERS["setup"]), "    "), DATA + "    num_classes = 2")
    assert_trained(project)
    code = """
import torch
from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI, predict
from training.serve_app import Predictor
cli = CheckpointCLI(MyModel, MyDataModule, [])
best = cli.checkpoint["state_dict"]
Predictor(cli)
predict(cli, [])
assert all(torch.equal(weights, best[name]) for name, weights in cli.model.state_dict().items())
"""
    project.run("-c", code)


def test_loaders_may_belong_to_the_model(paste: Paste) -> None:
    model = """
        def test_dataloader(self):
            from data.data_module import DataLoader, samples
            return DataLoader(samples(22, 2), batch_size=4)
    """
    project = paste(model)
    file = project.path / "data" / "data_module.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("def test_dataloader", "def unused"), encoding="utf-8")
    assert_trained(project)
    assert_evaluated_alike(project)


def test_weights_left_out_of_the_checkpoint_lose_no_run(paste: Paste) -> None:
    model = """
        def __init__(self):
            super().__init__()
            self.teacher = nn.Linear(8, 2).requires_grad_(False)
            self.strict_loading = False

        def state_dict(self):
            return {name: weights for name, weights in super().state_dict().items() if "teacher" not in name}
    """
    run = assert_trained(paste(model))
    assert not any("teacher" in name for name in checkpoint(run, "best")["state_dict"])


# State between steps and epochs

EPOCH_STATE = {
    "value": """
        def on_train_epoch_start(self):
            self.scale = 0.5 ** (self.current_epoch + 1)

        def training_step(self, batch, batch_idx):
            return self.scale * super().training_step(batch, batch_idx)
    """,
    "mode": """
        def on_train_epoch_start(self):
            self.layers[2].eval()
    """,
    "buffer": """
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()))

        def on_train_epoch_start(self):
            self.scale *= 0.5

        def training_step(self, batch, batch_idx):
            return self.scale * super().training_step(batch, batch_idx)
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(EPOCH_STATE))
def test_what_is_set_at_the_start_of_an_epoch_survives_a_kill(paste: Paste, kind: str) -> None:
    assert_exact(paste(EPOCH_STATE[kind]))


@pytest.mark.slow
def test_resumed_epoch_is_counted_once_by_callbacks(paste: Paste) -> None:
    run = assert_exact(paste(), "--trainer.callbacks+=training.my_callbacks.Epochs")
    assert checkpoint(run)["callbacks"]["Epochs"] == {"epochs": 2}


@pytest.mark.slow
def test_schedule_of_accumulation_survives_a_kill(paste: Paste) -> None:
    project = paste()
    file = project.path / "configs" / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    schedule = {"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {0: 2, 1: 3}}}
    config["trainer"]["callbacks"].append(schedule)
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert steps(assert_exact(project, batch=5, done=2)) == 9


@pytest.mark.slow
def test_gradients_that_are_accumulated_by_hand_survive_a_kill(paste: Paste) -> None:
    model = """
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx) / 2)
            if batch_idx % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()
    """
    assert_exact(paste(model), batch=5, done=2)


@pytest.mark.slow
def test_optimizer_without_hooks_of_lightning_survives_a_kill(paste: Paste) -> None:
    model = """
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
    """
    run = assert_exact(paste(model), batch=5, done=0)
    assert checkpoint(run)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] == 2 * STEPS


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "epoch"), [(0, "2"), (15, ""), (25, "")])
def test_layers_that_were_unfrozen_stay_so_after_a_kill(paste: Paste, batch: int, epoch: str) -> None:
    model = """
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(8, 8)

        def forward(self, x):
            return self.layers(self.backbone(x))

        def configure_optimizers(self):
            return torch.optim.Adam([weights for weights in self.parameters() if weights.requires_grad], lr=0.01)
    """
    unfreeze = ("--trainer.callbacks+=BackboneFinetuning", "--trainer.callbacks.unfreeze_backbone_at_epoch=1")
    assert_exact(paste(model), *unfreeze, "--trainer.max_epochs=3", batch=batch, epoch=epoch)


@pytest.mark.slow
def test_double_precision_survives_a_kill(paste: Paste) -> None:
    model = """
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch[0].double(), batch[1]

        def on_predict_start(self):
            print("weight", self.layers[0].weight[0, 0].item())
    """
    project = paste(model)
    run = assert_exact(project, "--trainer.precision=64-true", epoch="1")
    best = run / "checkpoints" / "best.ckpt"
    weights = checkpoint(run, "best")["state_dict"]
    assert weights["layers.0.weight"].dtype == torch.float64
    predicted = project.run(PREDICT, "--ckpt_path", best).stdout
    assert f"weight {weights['layers.0.weight'][0, 0].item()}\n" in predicted
    project.run(EXPORT, "--ckpt_path", best, "--format", "weights")
    exported = torch.load(best.with_suffix(".weights.pth"), weights_only=True)
    assert all(torch.equal(exported[name], same) for name, same in weights.items())
    assert "torch.float64" in project.run(EXPORT, "--ckpt_path", best, "--format", "pt2").stdout


@pytest.mark.slow
def test_network_that_onnx_runtime_cannot_run_is_refused(paste: Paste) -> None:
    model = """
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv1d(1, 1, 1)  # of which ONNX Runtime has none for float64

        def forward(self, x):
            return self.layers(self.convolution(x.unsqueeze(1)).squeeze(1))
    """
    project = paste(model)
    project.run(TRAIN, "--trainer.max_epochs=1", "--trainer.precision=64-true")
    refused = project.run(EXPORT, "--format=onnx", status=1).stderr
    assert "ONNX Runtime" in refused and "--format pt2" in refused and len(refused.splitlines()) == 1
    assert not list(project.runs()[-1].rglob("*.onnx*"))


@pytest.mark.slow
def test_batch_size_that_the_finder_finds_is_recorded_and_kept(paste: Paste) -> None:
    data = """
        def train_dataloader(self):
            return DataLoader(samples(40, 0), batch_size=self.batch_size, shuffle=True)
    """
    project = paste(data=data)
    finder = (
        "--trainer.callbacks+=BatchSizeFinder",
        "--trainer.callbacks.init_val=8",
        "--trainer.callbacks.max_trials=1",
    )
    project.run(TRAIN, *finder)
    project.run(TRAIN, *finder, status=9, DIE_AT_BATCH="2")
    project.run(TRAIN, "--resume")
    whole, resumed = project.runs()
    assert settings(resumed)["data"]["batch_size"] == 8
    weights = checkpoint(resumed)["state_dict"]
    assert all(torch.equal(weights[name], same) for name, same in checkpoint(whole)["state_dict"].items())


def test_metric_that_the_model_collects_itself_is_reported_as_inexact(paste: Paste) -> None:
    model = """
        def on_train_epoch_end(self):
            self.log("train/own", 1.0)
    """
    project = paste(model)
    project.run(TRAIN, status=9, DIE_AT_BATCH="5")
    assert "only the steps after the checkpoint" in project.run(TRAIN, "--resume").stderr


@pytest.mark.slow
def test_schedule_by_numpy_survives_a_kill(paste: Paste) -> None:
    model = """
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 20))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]
    """
    project = paste(model)
    file = project.path / "models" / "my_model.py"
    file.write_text(f"import numpy as np\n{file.read_text(encoding='utf-8')}", encoding="utf-8")
    assert_exact(project)


def test_object_in_a_checkpoint_is_refused_at_the_first_one(paste: Paste) -> None:
    model = """
        def on_save_checkpoint(self, checkpoint):
            checkpoint["loss_function"] = cross_entropy
    """
    done = paste(model).run(TRAIN, status=1, DIE_AT_BATCH="5")
    assert "'loss_function'" in sentence(done.stderr)


def test_infinite_values_in_a_frozen_mask_are_accepted(paste: Paste) -> None:
    model = """
        def __init__(self):
            super().__init__()
            self.mask = nn.Parameter(torch.full((2,), float("-inf")), requires_grad=False)
    """
    assert_trained(paste(model))


# Callbacks and loggers


@pytest.mark.slow
def test_callback_of_ones_own_keeps_its_state(paste: Paste) -> None:
    flags = ("--trainer.callbacks+=training.my_callbacks.Count", "--trainer.callbacks.by=2")
    run = assert_exact(paste(), *flags)
    assert [value for _, value in column(run, "batches")] == [2 * i + 2 for i in range(2 * STEPS)]


@pytest.mark.slow
def test_second_checkpoint_callback_writes_into_the_run_folder(paste: Paste) -> None:
    project = paste()
    flags = ("ModelCheckpoint", ".monitor=val/loss", ".save_top_k=-1", ".filename={epoch}-{step}", ".mode=max")
    first, *rest = (f"--trainer.callbacks{'+=' if flag == 'ModelCheckpoint' else ''}{flag}" for flag in flags)
    run = assert_exact(project, first, *rest)
    assert len(list(run.rglob("epoch=0-step=10.ckpt"))) == 1
    assert len(list(run.rglob("epoch=1-step=20.ckpt"))) == 1
    assert not list(project.elsewhere.rglob("*.ckpt"))


WRITES = """
    def training_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("mine", 7.0, self.global_step)
        self.logger.log_metrics({"own": 3.0}, self.global_step)
        return super().training_step(batch, batch_idx)
"""


def test_logger_of_the_config_is_the_model_s(paste: Paste) -> None:
    project = paste(WRITES)
    flags = ("TensorBoardLogger", "save_dir=tensorboard", "name=", "version=")
    run = assert_trained(project, *(f"--trainer.logger{'.' if '=' in flag else '='}{flag}" for flag in flags))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    assert [event.value for event in accumulator.Scalars("mine")] == [7.0] * 2 * STEPS
    assert len(accumulator.Scalars("train/loss")) == 2 * STEPS


def test_model_that_writes_to_its_logger_trains_without_one(paste: Paste) -> None:
    assert_trained(paste(WRITES), "--trainer.logger=false")


@pytest.mark.parametrize("folder", ["/outside", "../outside"])
def test_logger_outside_of_the_run_folder_is_refused(paste: Paste, tmp_path: Path, folder: str) -> None:
    project = paste()
    folder = f"{tmp_path}/outside" if folder == "/outside" else folder
    done = project.run(TRAIN, "--trainer.logger=TensorBoardLogger", f"--trainer.logger.save_dir={folder}", status=2)
    assert folder in sentence(done.stderr)
    assert not list(tmp_path.rglob("outside"))
    assert project.runs() == []


# Flags of the Trainer


def test_max_steps(paste: Paste) -> None:
    assert_trained(paste(), "--trainer.max_steps=17", number=17)


@pytest.mark.parametrize("interval", ["5", "0.5", "3"])
def test_validation_within_the_epoch(paste: Paste, interval: str) -> None:
    run = assert_trained(paste(), f"--trainer.val_check_interval={interval}")
    each = 3 if interval == "3" else 5
    expected = [epoch * STEPS + step - 1 for epoch in (0, 1) for step in range(each, STEPS + 1, each)]
    assert [step for step, _ in column(run, "val/loss")] == expected


@pytest.mark.slow
@pytest.mark.parametrize("batch", [14, 15, 16])
def test_validation_within_the_epoch_survives_a_kill(paste: Paste, batch: int) -> None:
    assert_exact(paste(), "--trainer.val_check_interval=5", batch=batch)


@pytest.mark.slow
def test_validation_across_epochs_survives_a_kill(paste: Paste) -> None:
    flags = ("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=15", "--trainer.max_epochs=3")
    run = assert_exact(paste(), *flags, batch=17)
    assert [step for step, _ in column(run, "val/loss")] == [14, 29]


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["max_steps", "max_epochs"])
def test_finished_run_that_is_extended_equals_a_longer_run(paste: Paste, flag: str) -> None:
    project = paste()
    few, more = {"max_steps": (13, 26), "max_epochs": (1, 3)}[flag]
    project.run(TRAIN, "--trainer.max_epochs=3", f"--trainer.{flag}={more}", "--trainer.val_check_interval=5")
    project.run(TRAIN, f"--trainer.{flag}={few}", "--trainer.val_check_interval=5")
    whole, longer = project.runs()
    project.run(TRAIN, "--resume", longer.name, "--trainer.max_epochs=3", f"--trainer.{flag}={more}")
    assert compare(whole, longer) == []


def test_validation_every_other_epoch(paste: Paste) -> None:
    run = assert_trained(paste(), "--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=4", number=4 * STEPS)
    assert [step for step, _ in column(run, "val/loss")] == [2 * STEPS - 1, 4 * STEPS - 1]


@pytest.mark.parametrize("flag", ["check_val_every_n_epoch=3", "limit_val_batches=0"])
def test_run_that_never_validates_tests_its_last_epoch(paste: Paste, flag: str) -> None:
    run = assert_trained(paste(), f"--trainer.{flag}")
    assert same_weights(run)


def test_limits_of_batches(paste: Paste) -> None:
    limits = ("limit_train_batches=0.3", "limit_val_batches=1", "limit_test_batches=0.5")
    project = paste()
    assert_trained(project, *(f"--trainer.{limit}" for limit in limits), number=6)
    assert_evaluated_alike(project)


def test_run_without_test_batches_ends_well(paste: Paste) -> None:
    project = paste()
    done = project.run(TRAIN, "--trainer.limit_test_batches=0")
    (run,) = project.runs()
    assert steps(run) == 2 * STEPS
    assert not (run / "test_metrics.json").exists()
    best = min(value for _, value in column(run, "val/loss"))
    assert re.search(rf"val/loss *\W *{best:.4f}", done.stdout), done.stdout


def test_overfit_batches(paste: Paste) -> None:
    assert_trained(paste(), "--trainer.overfit_batches=3", number=6)


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_profiler_reports(paste: Paste, profiler: str) -> None:
    """The report is printed, or lies in the run folder."""
    project = paste()
    done = project.run(TRAIN, f"--trainer.profiler={profiler}")
    files = [file.read_text(encoding="utf-8") for file in project.runs()[0].glob("*.txt")]
    assert "training_step" in "".join([done.stdout, done.stderr, *files])


def test_max_time_ends_a_run_that_more_time_continues(paste: Paste) -> None:
    project = paste()
    project.run(TRAIN, "--trainer.max_epochs=100000", "--trainer.max_time=00:00:00:02", "--checkpoint_minutes=10")
    (run,) = project.runs()
    done = steps(run)
    assert done > 0
    assert "test/loss" in metrics_of_test(run)
    project.run(TRAIN, "--resume", run.name, "--trainer.max_time=00:00:00:04")
    assert steps(run) > done


def test_deterministic(paste: Paste) -> None:
    project = paste()
    first, second = (assert_trained(project, "--trainer.deterministic=true") for _ in range(2))
    assert compare(first, second) == []


def test_gradients_are_clipped(paste: Paste) -> None:
    model = """
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.log("norm", nn.utils.get_total_norm([p.grad for p in self.parameters()]))
    """
    run = assert_trained(paste(model), "--trainer.gradient_clip_val=0.01")
    assert [value for _, value in column(run, "norm")] == pytest.approx([0.01] * 2 * STEPS, rel=1e-3)


def test_test_that_needs_gradients(paste: Paste) -> None:
    model = """
        def test_step(self, batch, batch_idx):
            x, y = batch
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(cross_entropy(self(x), y), x)
            self.log("test/loss", gradient.norm())
    """
    project = paste(model)
    assert_trained(project, "--trainer.inference_mode=false")
    assert_evaluated_alike(project)


@pytest.mark.slow
def test_accumulated_gradients_survive_a_kill(paste: Paste) -> None:
    run = assert_exact(paste(), "--trainer.accumulate_grad_batches=3", batch=17, done=6)
    assert steps(run) == 8


@pytest.mark.slow
def test_loaders_made_anew_each_epoch_survive_a_kill(paste: Paste) -> None:
    data = """
        def train_dataloader(self):
            return DataLoader(samples(40, self.trainer.current_epoch), batch_size=4, shuffle=True)
    """
    assert_exact(paste(data=data), "--trainer.reload_dataloaders_every_n_epochs=1")


def test_fast_dev_run_leaves_nothing(paste: Paste) -> None:
    project = paste()
    project.run(TRAIN, "--trainer.fast_dev_run=true")
    assert project.runs() == []


def test_resuming_a_run_that_was_stopped_early_says_that_it_is_finished(paste: Paste) -> None:
    model = """
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val/worse", float(self.current_epoch))
    """
    project = paste(model)
    stop = (
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/worse",
        "--trainer.callbacks.patience=1",
    )
    run = assert_trained(project, "--trainer.max_epochs=9", *stop)
    done = project.run(TRAIN, "--resume", run.name, "--trainer.max_epochs=12")
    assert steps(run) > 2 * STEPS or "stopped" in done.stdout + done.stderr


@pytest.mark.slow
def test_rate_that_the_finder_finds_is_used_recorded_and_kept(paste: Paste) -> None:
    model = """
        def __init__(self, lr: float = 0.01):
            super().__init__()
            self.save_hyperparameters()
            self.lr = lr

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=self.lr)
    """
    project = paste(model)
    finder = ("--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps=30")
    run = assert_exact(project, *finder)
    rates = {value for _, value in column(run, "train/lr")}
    assert len(rates) == 1
    assert rates != {0.01}
    assert settings(run)["model"]["lr"] == pytest.approx(rates.pop())
    assert steps(run) == 2 * STEPS
    assert not list(run.rglob(".lr_find*"))


# Hyperparameters and the fallbacks for what is missing

HYPERPARAMETERS = {
    "path": ("self, folder: Path = Path('a')", "self.save_hyperparameters()", []),
    "module": (
        "self, head: nn.Module = None",
        "self.save_hyperparameters(); self.head = head",
        ["--model.head=torch.nn.Linear", "--model.head.in_features=2", "--model.head.out_features=2"],
    ),
    "numpy in a list": ("self", "self.save_hyperparameters({'a': [np.float64(1)], 'b': {'c': (Path('a'),)}})", []),
    "ignored": (
        "self, head: nn.Module = None, width: int = 6",
        "self.save_hyperparameters(ignore=['head']); self.head = head",
        [
            "--model.head=torch.nn.Linear",
            "--model.head.in_features=2",
            "--model.head.out_features=2",
            "--model.width=5",
        ],
    ),
    "unsaved": (
        "self, width: int = 6",
        "self.layers = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 2))",
        ["--model.width=3"],
    ),
    "none": ("self", "pass", []),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(HYPERPARAMETERS))
def test_hyperparameters_of_any_kind_are_tested_evaluated_and_resumed(paste: Paste, kind: str) -> None:
    parameters, statement, flags = HYPERPARAMETERS[kind]
    model = f"""
        def __init__({parameters}):
            super().__init__()
            {statement}
    """
    project = paste(model)
    file = project.path / "models" / "my_model.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"from pathlib import Path\nimport numpy as np\n{text}", encoding="utf-8")
    run = assert_trained(project, *flags)
    assert_evaluated_alike(project)
    project.run(TRAIN, "--resume", run.name, "--trainer.max_epochs=3")
    assert steps(run) == 3 * STEPS


def test_hyperparameter_that_cannot_be_saved_is_named_before_training(paste: Paste) -> None:
    model = """
        def __init__(self, head: nn.Module = None):
            super().__init__()
            self.save_hyperparameters()
            self.head = head
    """
    head = ("--model.head=torch.nn.Linear", "--model.head.in_features=2", "--model.head.out_features=2")
    assert "'head'" in paste(model).run(TRAIN, *head, status=9, DIE_AT_BATCH="0").stderr


def test_data_module_without_arguments(paste: Paste) -> None:
    data = """
        def __init__(self):
            super().__init__()
    """
    project = paste(data=data)
    assert_trained(project)
    assert_evaluated_alike(project)


def test_model_without_validation_tests_its_last_epoch(paste: Paste) -> None:
    project = paste()
    file = project.path / "models" / "my_model.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"    def validation_step(.*\n)*?\n", "", text), encoding="utf-8")
    run = assert_trained(project)
    assert same_weights(run)
    assert "validation_step" in project.run(EVALUATE, "--split=val").stdout


def test_validation_metrics_are_printed_as_such_without_a_test(paste: Paste) -> None:
    project = paste()
    file = project.path / "data" / "data_module.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"    def test_dataloader(.*\n)*?\n", "", text), encoding="utf-8")
    done = project.run(TRAIN)
    (run,) = project.runs()
    best = min(value for _, value in column(run, "val/loss"))
    for printed in (done.stdout, project.run(EVALUATE).stdout):
        assert "test_dataloader" in printed
        assert re.search(rf"val/loss *\W *{best:.4f}", printed), printed
    assert not (run / "test_metrics.json").exists()


def test_misspelt_monitor_is_reported_with_the_logged_metrics(paste: Paste) -> None:
    project = paste()
    said = project.run(TRAIN, "--monitor=val/lss").stderr
    assert "val/lss" in sentence(said) and "val/loss" in said
    assert same_weights(project.runs()[-1])


def test_misspelt_monitor_is_reported_before_training_by_the_sanity_check(paste: Paste) -> None:
    flags = ("--monitor=val/lss", "--trainer.num_sanity_val_steps=1")
    said = paste().run(TRAIN, *flags, status=9, DIE_AT_BATCH="0").stderr
    assert "val/lss" in sentence(said) and "val/loss" in said


def test_no_monitor_keeps_the_last_epoch(paste: Paste) -> None:
    project = paste()
    assert project.run(TRAIN, "--monitor=null").stderr == ""
    assert same_weights(project.runs()[-1])


def test_best_value_of_zero_is_a_best_value(paste: Paste) -> None:
    model = """
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", float(self.current_epoch))
    """
    project = paste(model)
    assert "best epoch: 0" in project.run(TRAIN).stdout
    assert checkpoint(project.runs()[-1], "best")["epoch"] == 0


def test_failing_picture_loses_no_run(paste: Paste) -> None:
    model = """
        def figures(self):
            raise ValueError("no picture today")
    """
    project = paste(model)
    said = project.run(TRAIN).stderr
    assert "no picture today" in sentence(said)
    assert "test/loss" in metrics_of_test(project.runs()[-1])


def test_class_of_pytorch_lightning_is_refused_by_name(paste: Paste) -> None:
    pytest.importorskip("pytorch_lightning")
    project = paste()
    file = project.path / "models" / "my_model.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("from lightning import", "from pytorch_lightning import"), encoding="utf-8")
    said = sentence(project.run(TRAIN, status=1).stderr)
    assert "MyModel" in said and "pytorch_lightning" in said and "from lightning" in said


def test_argument_without_type_and_default_needs_a_value(paste: Paste) -> None:
    model = """
        def __init__(self, hidden):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, hidden), nn.Linear(hidden, 2))
    """
    project = paste(model)
    assert "model.hidden" in sentence(project.run(TRAIN, status=2).stderr)
    assert_trained(project, "--model.hidden=3")
    assert_evaluated_alike(project)


def test_default_that_no_config_file_can_hold_stays_in_the_code(paste: Paste) -> None:
    model = """
        def __init__(self, head: nn.Module = nn.Linear(8, 2)):
            super().__init__()
            self.layers = head
    """
    project = paste(model)
    run = assert_trained(project)
    assert "head" not in settings(run)["model"]
    assert_evaluated_alike(project)
    project.run(TRAIN, "--resume", run.name, "--trainer.max_epochs=3")
    assert steps(run) == 3 * STEPS


def test_callback_with_an_enumeration_as_its_default(paste: Paste) -> None:
    timer = ("--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:01:00:00")
    run = assert_trained(paste(), *timer)
    assert settings(run)["trainer"]["callbacks"][-1]["init_args"]["interval"] == "step"


def test_data_folder_that_holds_the_logs_can_be_resumed(paste: Paste) -> None:
    data = """
        def __init__(self, data_dir: str = "./"):
            super().__init__()
    """
    project = paste(data=data)
    project.run(TRAIN, status=9, DIE_AT_BATCH="5")
    project.run(TRAIN, "--resume")
    assert steps(project.runs()[-1]) == 2 * STEPS


@pytest.mark.parametrize("flag", ["--trainer.max_epochs=0", "--trainer.barebones=true"])
def test_flags_that_train_nothing_are_refused(paste: Paste, flag: str) -> None:
    assert flag.split("=")[0].removeprefix("--") in sentence(paste().run(TRAIN, flag, status=2).stderr)


def test_model_without_forward_is_exported_as_weights_alone(paste: Paste) -> None:
    model = """
        def forward(self, first, second):
            return self.layers(first) - self.layers(second)

        def training_step(self, batch, batch_idx):
            return cross_entropy(self(batch[0], -batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

        def test_step(self, batch, batch_idx):
            self.log("test/loss", self.training_step(batch, batch_idx))
    """
    project = paste(model)
    assert_trained(project)
    project.run(EXPORT)
    for command in ((EXPORT, "--format=model"), (PREDICT,)):
        assert "second" in project.run(*command, status=1).stderr.splitlines()[-1]


@pytest.mark.slow
def test_exported_file_gives_all_outputs_including_random_ones(paste: Paste) -> None:
    model = """
        def training_step(self, batch, batch_idx):
            return cross_entropy(self(batch[0])[0], batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

        def test_step(self, batch, batch_idx):
            self.log("test/loss", self.training_step(batch, batch_idx))

        def forward(self, x):
            return self.layers(x), x.sum(1)
    """
    project = paste(model)
    assert_trained(project)
    for form in ("onnx", "pt2", "model"):
        project.run(EXPORT, f"--format={form}")
    noisy = model.replace("return self.layers(x)", "return self.layers(x) + torch.rand(len(x), 2)")
    fill(project, MODEL + indent(dedent(noisy), "    "), DATA + "    pass")
    assert_trained(project)
    project.run(EXPORT, "--format=model")


def test_network_that_cannot_be_pickled_is_named(paste: Paste) -> None:
    model = """
        def __init__(self):
            super().__init__()
            self.layers = nn.utils.parametrizations.weight_norm(nn.Linear(8, 2))
    """
    project = paste(model)
    assert_trained(project)
    assert "--format weights" in sentence(project.run(EXPORT, "--format=model", status=1).stderr)


def test_prediction_of_a_whole_batch_is_printed_with_each_sample(paste: Paste) -> None:
    model = """
        def predict_step(self, batch, batch_idx):
            return {"name": tuple("abcd"[: len(batch[0])]), "logits": self(batch[0]), "batch": batch_idx}
    """
    project = paste(model)
    assert_trained(project)
    rows = json.loads(project.run(PREDICT, "--format=json").stdout)
    assert [(row["name"], row["batch"]) for row in rows] == [("abcd"[i % 4], i // 4) for i in range(22)]


@pytest.mark.slow
def test_text_for_an_argument_that_takes_functions_is_recorded(paste: Paste) -> None:
    model = """
        def __init__(self, activation: Callable | str = "relu"):
            super().__init__()
            self.activation = getattr(nn.functional, activation)

        def forward(self, x):
            return self.activation(self.layers(x))
    """
    project = paste(model)
    file = project.path / "models" / "my_model.py"
    file.write_text("from collections.abc import Callable\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    run = assert_exact(project, "--model.activation=gelu")
    assert settings(run)["model"] == {"activation": "gelu"}
    assert_evaluated_alike(project)


@pytest.mark.slow
def test_arguments_that_are_dataclasses_are_resumed(paste: Paste) -> None:
    model = """
        def __init__(self, size: Size | None = None, sizes: dict[str, Size] | None = None):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, size.width), nn.ReLU(), nn.Linear(size.width, 2))
    """
    project = paste(model)
    file = project.path / "models" / "my_model.py"
    code = "from dataclasses import dataclass\n\n@dataclass\nclass Size:\n    width: int = 3\n\n"
    file.write_text(code + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert_exact(project, "--model.size={width: 5}", "--model.sizes={a: {width: 2}}")


AVERAGING = "--trainer.callbacks+={class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.05}}"


@pytest.mark.slow
def test_weights_averaged_at_the_end_are_the_ones_that_are_tested(paste: Paste) -> None:
    model = """
        def on_test_start(self):
            mean = self.trainer.callbacks[1]._average_model.state_dict()
            print("averaged", all(torch.equal(mean[name], each) for name, each in self.state_dict().items()))
    """
    project = paste(model)
    done = project.run(TRAIN, AVERAGING, "--trainer.max_epochs=5")
    assert "averaged True" in done.stdout
    best = checkpoint(project.runs()[-1], "best")["state_dict"]
    file = project.path / "models" / "my_model.py"
    file.write_text(file.read_text(encoding="utf-8").replace("on_test_start", "unused"), encoding="utf-8")
    assert_evaluated_alike(project)
    project.run(TRAIN, "--resume", project.runs()[-1].name)
    kept = checkpoint(project.runs()[-1], "best")["state_dict"]
    assert all(torch.equal(best[name], kept[name]) for name in best)


def test_run_that_ends_before_its_weights_are_averaged_tests_the_best_epoch(paste: Paste) -> None:
    project = paste()
    done = project.run(TRAIN, AVERAGING, "--trainer.max_epochs=5", "--trainer.max_steps=25")
    assert "averaged" not in done.stdout
    assert_evaluated_alike(project)
    scores = [value for _, value in column(project.runs()[-1], "val/loss")]
    assert checkpoint(project.runs()[-1], "best")["epoch"] == scores.index(min(scores))


def test_weights_that_are_nan_are_not_saved(paste: Paste) -> None:
    model = """
        def on_train_epoch_end(self):
            if self.current_epoch == 1:
                self.layers[0].bias.data.fill_(float("nan"))
    """
    project = paste(model)
    assert "layers.0.bias" in sentence(project.run(TRAIN, status=1).stderr)
    assert checkpoint(project.runs()[-1])["state_dict"]["layers.0.bias"].isfinite().all()


def test_fast_dev_run_claims_no_averaged_weights(paste: Paste) -> None:
    assert "averaged" not in paste().run(TRAIN, AVERAGING, "--trainer.fast_dev_run=true").stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learning_rate", "rate"])
def test_rate_of_any_name_that_the_finder_finds_is_recorded(paste: Paste, name: str) -> None:
    model = f"""
        def __init__(self, {name}: float = 0.01):
            super().__init__()
            self.save_hyperparameters()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.hparams.{name})
    """
    finder = f"{{class_path: LearningRateFinder, init_args: {{num_training_steps: 20, attr_name: {name}}}}}"
    done = (project := paste(model)).run(TRAIN, f"--trainer.callbacks+={finder}")
    found = re.search(r"learning rate found: (\S+)", done.stdout)
    assert found
    recorded = settings(project.runs()[-1])["model"][name]
    assert f"{recorded:.3g}" == found[1] != "0.01"


def test_callbacks_of_the_config_are_called_in_every_command(paste: Paste) -> None:
    project = paste()
    file = project.path / "training" / "my_callbacks.py"
    more = """

class Rating(Callback):
    def on_test_epoch_end(self, trainer, pl_module):
        pl_module.log("test/rated", 0.25)

    def on_predict_end(self, trainer, pl_module):
        Path("predicted").touch()
"""
    file.write_text(file.read_text(encoding="utf-8") + more, encoding="utf-8")
    project.run(TRAIN, "--trainer.callbacks+=training.my_callbacks.Rating")
    assert metrics_of_test(project.runs()[-1])["test/rated"] == 0.25
    assert_evaluated_alike(project)
    project.run(PREDICT)
    assert (project.elsewhere / "predicted").exists()


def test_method_of_the_data_is_no_value_for_an_argument_of_its_name(paste: Paste) -> None:
    model = """
        def __init__(self, normalize: bool = False):
            super().__init__()
            assert normalize is True
    """
    data = """
        def normalize(self, x):
            return x
    """
    assert_trained(paste(model, data), "--model.normalize=true")


def test_number_of_classes_may_be_a_property_that_setup_makes_known(paste: Paste) -> None:
    model = """
        def __init__(self, num_classes: int = 7):
            super().__init__()
            self.layers = nn.Linear(8, num_classes)
    """
    data = """
        @property
        def num_classes(self):
            return len(self.classes)

        def setup(self, stage):
            super().setup(stage)
            self.classes = ["no", "yes"]
    """
    project = paste(model, data)
    run = assert_trained(project)
    assert checkpoint(run)["state_dict"]["layers.bias"].shape == (2,)
    assert_evaluated_alike(project)
    assert len(json.loads(project.run(PREDICT, "--format=json").stdout)) == 22


LOGGED = {
    "validation steps": """
        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("val/loss", cross_entropy(self(x), y), on_step=True, on_epoch=True)
    """,
    "other steps": """
        def training_step(self, batch, batch_idx):
            self.loggers[0].log_metrics({"twice": float(batch_idx)}, step=2 * self.global_step)
            return super().training_step(batch, batch_idx)
    """,
    "no steps": """
        def on_train_epoch_end(self):
            self.loggers[0].log_metrics({"value": 1.0})
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(LOGGED))
def test_rows_of_any_axis_are_resumed_without_a_gap(paste: Paste, kind: str) -> None:
    assert_exact(paste(LOGGED[kind]), "--trainer.val_check_interval=5", batch=17)


def test_best_checkpoint_has_the_names_of_lightning(paste: Paste) -> None:
    model = """
        def on_train_end(self):
            best = self.trainer.checkpoint_callback
            print("names", best.best_model_path, float(best.best_model_score), best.last_model_path)
    """
    project = paste(model)
    done = project.run(TRAIN)
    folder = project.runs()[-1] / "checkpoints"
    assert re.search(rf"names {folder}/best.ckpt 0\.\d+ {folder}/last.ckpt", done.stdout)


def test_logger_may_be_used_in_every_command(paste: Paste) -> None:
    model = """
        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)
            self.logger.experiment.add_scalar("seen", batch_idx)

        def predict_step(self, batch, batch_idx):
            self.logger.experiment.add_text("seen", str(batch_idx))
            return self(batch[0])

        def on_fit_start(self):
            print("folder", self.logger.log_dir)
    """
    project = paste(model)
    done = project.run(TRAIN)
    assert f"folder {project.runs()[-1]}\n" in done.stdout
    assert_evaluated_alike(project)
    project.run(PREDICT)


def test_model_and_data_may_have_an_argument_of_one_name(paste: Paste) -> None:
    model = """
        def __init__(self, batch_size: int = 4):
            super().__init__()
            self.save_hyperparameters()
    """
    data = """
        def __init__(self, batch_size: int = 4):
            super().__init__()
            self.save_hyperparameters()
    """
    run = assert_trained(paste(model, data), "--data.batch_size=8")
    assert (settings(run)["model"], settings(run)["data"]) == ({"batch_size": 4}, {"batch_size": 8})


@pytest.mark.parametrize("split", ["train", "val"])
def test_loader_that_is_missing_is_named(paste: Paste, split: str) -> None:
    data = f"""
        def {split}_dataloader(self):
            return None
    """
    project = paste(data=data)
    assert f"{split}_dataloader" in sentence(project.run(TRAIN, status=1).stderr)


def test_run_without_training_batches_is_refused(paste: Paste) -> None:
    data = """
        def train_dataloader(self):
            return DataLoader(samples(3, 0), batch_size=4, drop_last=True)
    """
    assert "drop_last" in paste(data=data).run(TRAIN, status=1).stderr.splitlines()[-1]


def test_attribute_inputs_of_a_data_module_without_predict_dataloader_is_kept(paste: Paste) -> None:
    data = """
        def __init__(self):
            super().__init__()
            self.inputs, self.targets = samples(22, 2).tensors

        def test_dataloader(self):
            return DataLoader(TensorDataset(self.inputs, self.targets), batch_size=4)
    """
    project = paste(data=data)
    assert_trained(project)
    assert len(json.loads(project.run(PREDICT, "--format=json").stdout)) == 22


OUTPUTS = {
    "tuple": ("(self(x), x[:, 0])", {"output0", "output1"}),
    "array": ("self(x).cpu().numpy()", {"output"}),
    "list": ("self(x).argmax(1).tolist()", {"output"}),
    "objects": ("[{'logits': each} for each in self(x)]", {"output"}),
}


@pytest.mark.parametrize("kind", list(OUTPUTS))
def test_each_sample_has_a_row_for_any_type_of_prediction(paste: Paste, kind: str) -> None:
    code, names = OUTPUTS[kind]
    model = f"""
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            x = batch[0]
            return {code}
    """
    data = """
        def predict_dataloader(self):
            return [DataLoader(samples(number, 2), batch_size=4) for number in (9, 5)]
    """
    project = paste(model, data)
    assert_trained(project)
    rows = json.loads(project.run(PREDICT, "--format=json").stdout)
    assert len(rows) == 14 and all(row.keys() == names for row in rows)


# NaN


NAN_LOADERS = {
    "plain": "DataLoader(Spoilt(), batch_size=4, shuffle=True)",
    "batch_sampler": "DataLoader(Spoilt(), batch_sampler=BatchSampler(RandomSampler(range(40)), 4, False))",
    "workers": "DataLoader(Spoilt(), batch_size=4, shuffle=True, num_workers=2)",
    "dict": "DataLoader(Spoilt(), batch_size=4, shuffle=True, collate_fn=as_dict)",
}


@pytest.mark.parametrize("kind", list(NAN_LOADERS))
def test_nan_in_a_training_sample_is_named_with_its_index(paste: Paste, kind: str) -> None:
    loader = NAN_LOADERS[kind].replace("Spoilt", "self.Spoilt").replace("as_dict", "self.as_dict")
    data = f"""
        def train_dataloader(self):
            return {loader}

        def as_dict(self, rows):
            return {{"x": torch.stack([x for x, _ in rows]), "y": torch.stack([y for _, y in rows])}}

        class Spoilt(Dataset):
            def __init__(self):
                self.samples = samples(40, 0)

            def __len__(self):
                return 40

            def __getitem__(self, index):
                x, y = self.samples[index]
                return (x * float("nan") if index == 17 else x), y
    """
    model = """
        def training_step(self, batch, batch_idx):
            return super().training_step(tuple(batch.values()) if isinstance(batch, dict) else batch, batch_idx)
    """
    project = paste(model, data)
    said = sentence(project.run(TRAIN, status=1).stderr)
    (run,) = project.runs()
    samples = re.search(r"samples \[(.*?)\]", said)
    assert samples and len(samples[1].split(", ")) == 4 and "17" in samples[1].split(", "), said
    assert 0 < steps(run) < STEPS
    assert weights_are_finite(run)


def test_nan_in_one_of_several_loaders_is_reported(paste: Paste) -> None:
    data = """
        def train_dataloader(self):
            return {
                "first": DataLoader(samples(40, 0), batch_size=4),
                "second": DataLoader(samples(40, 0).tensors[0], batch_size=4),
            }
    """
    model = """
        def training_step(self, batch, batch_idx):
            x, y = batch["first"]
            spoilt = batch["second"] * (float("nan") if batch_idx == 7 else 1)
            return super().training_step((x + 0 * spoilt, y), batch_idx)
    """
    project = paste(model, data)
    assert "batch 7 of epoch 0" in sentence(project.run(TRAIN, status=1).stderr)
    assert steps(project.runs()[0]) == 7


def test_nan_weights_are_never_saved(paste: Paste) -> None:
    """A network may swallow NaN, so that no loss shows it."""
    model = """
        def __init__(self):
            super().__init__()
            self.swallowed = nn.Parameter(torch.zeros(3))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.global_step == 13:
                nn.init.constant_(self.swallowed, float("nan"))
    """
    project = paste(model)
    assert "swallowed" in sentence(project.run(TRAIN, status=1).stderr)
    (run,) = project.runs()
    assert steps(run) == 12
    assert weights_are_finite(run)


def test_nan_in_validation_ends_the_run(paste: Paste) -> None:
    data = """
        def val_dataloader(self):
            return DataLoader(TensorDataset(torch.full((4, 8), float("nan")), torch.zeros(4).long()), batch_size=4)
    """
    project = paste(data=data)
    assert "val/loss" in sentence(project.run(TRAIN, status=1).stderr)
    assert weights_are_finite(project.runs()[-1])


def test_nan_in_the_test_is_a_warning(paste: Paste) -> None:
    data = """
        def test_dataloader(self):
            return DataLoader(TensorDataset(torch.full((4, 8), float("nan")), torch.zeros(4).long()), batch_size=4)
    """
    project = paste(data=data)
    assert "test/loss" in sentence(project.run(TRAIN).stderr)
    assert math.isnan(metrics_of_test(project.runs()[-1])["test/loss"])


# Resuming elsewhere, and what refuses to


TABLE = """
    def __init__(self, csv: str, data_dir: str = ""):
        super().__init__()
        self.csv = csv

    def train_dataloader(self):
        rows = torch.tensor([[float(value) for value in line.split(",")] for line in open(self.csv)])
        return DataLoader(TensorDataset(rows[:, :8], (rows[:, 8] > 0).long()), batch_size=4, shuffle=True)
"""


def write_rows(file: Path, number: int) -> None:
    rows = torch.randn(number, 9, generator=torch.Generator().manual_seed(0)).tolist()
    file.write_text("".join(",".join(f"{value:.3f}" for value in row) + "\n" for row in rows), encoding="utf-8")


def test_changed_data_are_resumed_only_with_the_flag(paste: Paste, tmp_path: Path) -> None:
    project, file = paste(data=TABLE), tmp_path / "rows.csv"
    write_rows(file, 40)
    project.run(TRAIN, f"--data.csv={file}", status=9, DIE_AT_BATCH="15")
    (run,) = project.runs()
    write_rows(file, 48)
    assert str(file) in sentence(project.run(TRAIN, "--resume", status=1).stderr)
    assert steps(run) == 15
    project.run(TRAIN, "--resume", "--allow_changed_data=true")
    assert steps(run) > 15
    assert "test/loss" in metrics_of_test(run)


def test_changed_files_in_a_folder_are_noticed(paste: Paste, tmp_path: Path) -> None:
    project, file = paste(data=TABLE), tmp_path / "rows.csv"
    write_rows(file, 40)
    (tmp_path / "pictures").mkdir()
    project.run(TRAIN, f"--data.csv={file}", f"--data.data_dir={tmp_path / 'pictures'}", status=9, DIE_AT_BATCH="15")
    (tmp_path / "pictures" / "more.txt").write_text("a", encoding="utf-8")
    assert "data_dir" in sentence(project.run(TRAIN, "--resume", status=1).stderr)


def test_changed_code_is_resumed_with_a_warning(paste: Paste) -> None:
    project = paste()
    project.run(TRAIN, status=9, DIE_AT_BATCH="15")
    with open(project.path / "models" / "my_model.py", "a", encoding="utf-8") as file:
        file.write("# another line\n")
    assert "code" in sentence(project.run(TRAIN, "--resume").stderr)


def test_run_that_is_being_trained_is_not_resumed(paste: Paste, tmp_path: Path) -> None:
    project = paste()
    runner = ForkedRunner(project.path, [])
    runner.environment["HOLD_UNTIL"] = str(tmp_path / "go")
    process = runner.start("--trainer.callbacks+=training.my_callbacks.Hold")
    runner.until_fitting(process, resumed=False)
    (run,) = runs(project.path)
    runner.until_file(process, run / "checkpoints" / "last.ckpt")
    said = sentence(project.run(TRAIN, "--resume", run.name, status=1).stderr)
    (tmp_path / "go").touch()
    assert runner.finish(process) == 0, runner.output
    assert str(process.pid) in said and os.uname().nodename in said
    assert "test/loss" in metrics_of_test(run)


def test_run_that_was_moved_is_resumed_by_its_path(paste: Paste, tmp_path: Path) -> None:
    project = paste()
    project.run(TRAIN, status=9, DIE_AT_BATCH="15")
    run = project.runs()[0].rename(tmp_path / "moved")
    project.run(TRAIN, "--resume", str(run))
    assert steps(run) == 2 * STEPS
    assert "test/loss" in metrics_of_test(run)
    assert project.runs() == []


@pytest.mark.slow
def test_project_in_a_folder_with_brackets(paste: Paste) -> None:
    project = paste(folder="a[b]{c}*")
    assert_exact(project)
    assert_evaluated_alike(project)
    project.run(PREDICT)
    project.run(EXPORT, "--format=weights")


def test_git_is_not_required(paste: Paste, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    project = paste()
    project.run(TRAIN, PATH=str(tmp_path / "nothing"))
    assert json.loads((project.runs()[0] / "run.json").read_text(encoding="utf-8"))["git_commit"] is None


def test_run_without_a_seed_is_repeated_by_its_config(paste: Paste) -> None:
    project = paste()
    first = assert_trained(project, "--seed_everything=false")
    seed = json.loads((first / "run.json").read_text(encoding="utf-8"))["seed"]
    assert type(seed) is int
    assert settings(first)["seed_everything"] == seed
    second = assert_trained(project, "--config", str(first / "config.yaml"))
    assert compare(first, second) == []


@pytest.mark.parametrize(
    "line",
    [
        "data: 3",
        "model: [1]",
        "trainer: {precision: half}",
        "trainer: {precision: [1]}",
        "trainer: 5",
        "- a",
    ],
)
def test_config_of_the_wrong_kind_ends_in_one_sentence(paste: Paste, line: str) -> None:
    project = paste()
    (project.path / "configs" / "more.yaml").write_text(line, encoding="utf-8")
    said = sentence(project.run(TRAIN, "--config", project.path / "configs" / "more.yaml", status=2).stderr)
    assert "error" in said
    (project.path / "configs" / "config.yaml").write_text(line, encoding="utf-8")
    assert "error" in sentence(project.run(TRAIN, status=2).stderr)
    assert project.runs() == []
