"""What this project promises of its model; all of it runs offline, in seconds, on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training import evaluate, export, predict, train
from training.run import RunCLI, load_checkpoint

Batch = tuple[list[Tensor], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the runs of the tests out of the project's own logs."""
    monkeypatch.setattr("training.run.LOGS", tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return tmp_path


@pytest.fixture
def quick(flags: list[str]) -> list[str]:
    return [*flags, "--trainer.accelerator=cpu", "--trainer.logger=false"]


@pytest.fixture
def cli(quick: list[str]) -> RunCLI:
    return RunCLI([*quick, "--trainer.max_epochs=1", "--trainer.callbacks=null"])


@pytest.fixture
def batch(cli: RunCLI) -> Batch:
    cli.datamodule.setup("fit")
    return cli.datamodule.on_after_batch_transfer(next(iter(cli.datamodule.train_dataloader())), 0)


def test_boxes_lie_within_their_pictures(cli: RunCLI, batch: Batch) -> None:
    images, _ = batch
    cli.model.eval()
    for image, output in zip(images, cli.model(images), strict=True):
        assert image.dtype == torch.float32
        assert output["boxes"].shape == (len(output["labels"]), 4)
        assert output["boxes"].min() >= 0
        assert (output["boxes"].amax(dim=0)[2:] <= torch.tensor([image.shape[2], image.shape[1]])).all()
        assert set(output["labels"].tolist()) <= {1, 2}


def test_every_parameter_gets_a_gradient(cli: RunCLI, batch: Batch) -> None:
    sum(cli.model.net(*batch).values()).backward()
    for name, parameter in cli.model.named_parameters():
        assert parameter.grad is not None, name


def test_loss_falls_when_one_batch_is_overfitted(cli: RunCLI, batch: Batch) -> None:
    optimizer = torch.optim.Adam(cli.model.parameters(), lr=0.001)
    losses = []
    for _ in range(20):
        loss = torch.stack(list(cli.model.net(*batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_splits_share_no_picture(cli: RunCLI) -> None:
    train, val, test = (set(ids) for _, ids in cli.datamodule.coco.values())
    assert not train & val and not train & test and not val & test


def test_fast_dev_run_goes_through_the_command_line(quick: list[str], logs: Path) -> None:
    train.main([*quick, "--trainer.fast_dev_run=true"])
    assert list(logs.iterdir()) == []


def test_checkpoint_gives_the_model_that_was_saved(cli: RunCLI, batch: Batch) -> None:
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    restored, _ = load_checkpoint(cli.run_dir / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        for one, other in zip(restored(batch[0]), cli.model.eval()(batch[0]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_all_commands_agree(quick: list[str], logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main([*quick, "--trainer.max_epochs=1"])
    trained = capsys.readouterr().out
    metrics: dict[str, Any] = json.loads(next(logs.glob("*/test_metrics.json")).read_text())

    evaluate.main(["--accelerator=cpu"])
    table = capsys.readouterr().out
    assert table in trained
    assert f"{metrics['test/map']:.4f}" in table

    predict.main(["--accelerator=cpu", "--format=json", "--min_score=0", f"--draw={logs / 'drawn'}"])
    rows = json.loads(capsys.readouterr().out)
    for row in rows:
        assert {"input", "image_id", "category_id", "bbox", "score", "class"} == set(row)

    export.main(["--format=weights"])
    assert "differ from the checkpoint's by 0.0e+00" in capsys.readouterr().out
