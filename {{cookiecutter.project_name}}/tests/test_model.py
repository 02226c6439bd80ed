"""Tests that any model and data module of this project should pass. They run offline, on the CPU, within a minute.

If your data can only be read with other flags, change `flags` in tests/conftest.py.
"""

import json
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything

from data.data_module import MyDataModule
from models.my_model import MyModel
from training import evaluate, predict, train
from training.engine.run import RunCLI

ON_CPU = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.callbacks=null"]


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the runs of the tests out of the project's own logs."""
    monkeypatch.setattr("training.engine.run.LOGS", tmp_path)
    monkeypatch.setattr("training.engine.evaluation.LOGS", tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return tmp_path


@pytest.fixture
def quick(flags: list[str]) -> list[str]:
    return [*flags, *ON_CPU, "--trainer.max_epochs=1"]


class Losses(Callback):
    """Callback that collects the training losses, and the names of trainable parameters without a gradient."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.untrained: set[str] = set()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        named = pl_module.named_parameters()
        self.untrained = {name for name, weights in named if weights.requires_grad and weights.grad is None}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())


def test_loss_falls_when_one_batch_is_overfitted(quick: list[str]) -> None:
    steps = 25
    cli = RunCLI(MyModel, MyDataModule, [*quick, "--trainer.overfit_batches=1", f"--trainer.max_epochs={steps}"])
    losses = Losses()
    cli.trainer.callbacks.append(losses)
    cli.run(cli.trainer.fit, None)
    assert not losses.untrained, "these parameters get no gradient: use them in forward, or set requires_grad to False"
    assert min(losses.losses[-5:]) < losses.losses[0] * 0.9, "the loss does not fall: check loss and learning rate"


def test_splits_are_the_same_each_time(quick: list[str]) -> None:
    cli = RunCLI(MyModel, MyDataModule, quick)

    def first_batch(stage: str, split: str) -> object:
        seed_everything(0, verbose=False)
        cli.datamodule.setup(stage)
        return next(iter(getattr(cli.datamodule, f"{split}_dataloader")()))

    for stage, split in (("validate", "val"), ("test", "test")):
        assert str(first_batch(stage, split)) == str(first_batch(stage, split)), f"{split} differs between two commands"


def test_fast_dev_run_passes_and_writes_nothing(quick: list[str], logs: Path) -> None:
    train.main([*quick, "--trainer.fast_dev_run=true"])
    assert list(logs.iterdir()) == []


def test_checkpoint_gives_the_model_that_was_saved(quick: list[str], logs: Path) -> None:
    train.main(quick)
    (file,) = logs.glob("*/checkpoints/best.ckpt")
    restored = MyModel.load_from_checkpoint(file, weights_only=True)
    saved = torch.load(file, weights_only=True)["state_dict"]
    assert all(torch.equal(weights, saved[name]) for name, weights in restored.state_dict().items())


def test_all_commands_agree(quick: list[str], logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(quick)
    trained = capsys.readouterr().out
    metrics = json.loads(next(logs.glob("*/test_metrics.json")).read_text(encoding="utf-8"))

    evaluate.main(["--trainer.accelerator=cpu"])
    table = capsys.readouterr().out
    assert table in trained, "the metrics of evaluate.py differ from those of train.py"
    assert all(name in table for name in metrics)

    predict.main(["--trainer.accelerator=cpu", "--format=json"])
    assert json.loads(capsys.readouterr().out)
