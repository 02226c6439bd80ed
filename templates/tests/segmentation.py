"""What this project promises of its model; all of it runs offline, in seconds, on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training import evaluate, export, predict, train
from training.run import RunCLI, load_checkpoint

Batch = tuple[Tensor, Tensor]


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
    return cli.datamodule.on_after_batch_transfer(next(iter(cli.datamodule.test_dataloader())), 0)


def test_logits_have_one_channel_a_class(cli: RunCLI, batch: Batch) -> None:
    images, masks = batch
    assert images.dtype == torch.float32
    shape = (len(masks), len(cli.datamodule.class_names), *masks.shape[1:])
    assert cli.model(images).shape == shape


def test_every_parameter_gets_a_gradient(cli: RunCLI, batch: Batch) -> None:
    images, masks = batch
    cli.model.criterion(cli.model(images), masks).backward()
    for name, parameter in cli.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_loss_falls_when_one_batch_is_overfitted(cli: RunCLI, batch: Batch) -> None:
    images, masks = batch
    optimizer = torch.optim.Adam(cli.model.parameters(), lr=0.001)
    losses = []
    for _ in range(30):
        loss = cli.model.criterion(cli.model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_splits_share_no_picture(cli: RunCLI) -> None:
    train, val, test = ({str(picture) for picture, _ in part} for part in cli.datamodule.pairs[0].values())
    assert not train & val and not train & test and not val & test


def test_batch_without_a_labelled_pixel_has_a_loss_of_zero(cli: RunCLI, batch: Batch) -> None:
    images, masks = batch
    assert cli.model.criterion(cli.model(images), torch.full_like(masks, 255)).item() == 0


def test_fast_dev_run_goes_through_the_command_line(quick: list[str], logs: Path) -> None:
    train.main([*quick, "--trainer.fast_dev_run=true"])
    assert list(logs.iterdir()) == []


def test_checkpoint_gives_the_model_that_was_saved(cli: RunCLI, batch: Batch) -> None:
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    restored, _ = load_checkpoint(cli.run_dir / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        torch.testing.assert_close(restored(batch[0]), cli.model.eval()(batch[0]), rtol=0, atol=0)


def test_all_commands_agree(quick: list[str], logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main([*quick, "--trainer.max_epochs=1"])
    trained = capsys.readouterr().out
    metrics: dict[str, Any] = json.loads(next(logs.glob("*/test_metrics.json")).read_text())

    evaluate.main(["--accelerator=cpu"])
    table = capsys.readouterr().out
    assert table in trained
    assert f"{metrics['test/acc']:.4f}" in table

    predict.main(["--accelerator=cpu", "--format=json"])
    rows = json.loads(capsys.readouterr().out)
    assert {"input", "mask", "classes"} == set(rows[0])
    assert all(Path(row["mask"]).is_file() for row in rows)

    export.main(["--format=weights"])
    assert "differ from the checkpoint's by 0.0e+00" in capsys.readouterr().out
