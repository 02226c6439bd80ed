"""An interrupted run resumes as if nothing had happened, and the same settings give the same weights again."""

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import Bake, by_variant
from data_files import WRITERS
from faults.kills import ForkedRunner, Report, Runner, compare, describe, runs, slurm_job, survive

pytestmark = pytest.mark.slow
QUICK = ["--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--checkpoint_minutes=0.0005"]
SHORT = [
    *("--trainer.max_epochs=2", "--checkpoint_minutes=0.005", "--data.batch_size=4"),
    *("--trainer.limit_train_batches=5", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"),
]
EARLY = "[{class_path: EarlyStopping, init_args: {monitor: val/acc, mode: max, patience: 1}}]"
SETTINGS = {
    "workers, moving average, accumulated gradients, cosine": [
        "--data.num_workers=2",
        "--trainer.callbacks=EMAWeightAveraging",
        "--trainer.accumulate_grad_batches=3",
        "--model.scheduler=cosine",
    ],
    "constant rate, learning rate logged, validated within the epoch": [
        "--model.scheduler=none",
        "--trainer.callbacks=LearningRateMonitor",
        "--trainer.val_check_interval=7",
    ],
    "stopped early": ["--trainer.max_epochs=20", f"--trainer.callbacks={EARLY}"],
}


@pytest.fixture
def runner(bake: Bake) -> Callable[..., Runner]:
    def make(*flags: str, variant: str = "digits-cnn") -> Runner:
        project = bake(fresh=True, variant=variant, project_name="survivor")
        return ForkedRunner(project.path, [*QUICK, *flags])

    return make


def uninterrupted(runner: Runner) -> Path:
    assert runner.to_the_end(*runner.flags) == 0, runner.output
    return runs(runner.project)[-1]


@by_variant
def test_every_variant_survives_a_kill_and_is_repeated_by_its_config(
    runner: Callable[..., Runner], tmp_path: Path, variant: str
) -> None:
    project = runner(*WRITERS[variant](tmp_path).flags, *SHORT, variant=variant)
    reference = uninterrupted(project)
    report = Report()
    survived = survive(project, 1, project.seconds, signal.SIGKILL, report, random.Random(variant))
    assert compare(reference, survived) == []
    assert report.unreadable == 0

    assert project.to_the_end("--config", str(reference / "config.yaml")) == 0, project.output
    assert compare(reference, runs(project.project)[-1]) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_survives_kills(runner: Callable[..., Runner], name: str) -> None:
    project = runner(*SETTINGS[name])
    reference = uninterrupted(project)
    report = Report()
    survived = survive(project, 2, project.seconds, signal.SIGKILL, report, random.Random(name))
    assert compare(reference, survived) == []
    assert report.unreadable == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_signal_saves_a_checkpoint_and_prints_how_to_resume(
    runner: Callable[..., Runner], number: int, status: int
) -> None:
    project = runner("--trainer.max_epochs=6", "--checkpoint_minutes=60")
    reference = uninterrupted(project)
    process = project.start(*project.flags)
    project.until_fitting(process, resumed=False)
    folder = runs(project.project)[-1]
    project.until_file(process, folder / "checkpoints" / "last.ckpt")
    process.send_signal(number)
    assert project.finish(process) == status, project.output
    last = project.output.splitlines()[-1]
    assert signal.Signals(number).name in last and last.endswith(f"python training/train.py --resume {folder.name}")
    assert "Traceback" not in project.output
    assert project.to_the_end("--resume") == 0, project.output
    assert compare(reference, folder) == []
    assert len(describe(folder)["resumed"]) == 1


def test_slurm_requeues_the_job_which_resumes_its_run(runner: Callable[..., Runner], tmp_path: Path) -> None:
    """The scheduler's signal comes before the time is up; it starts the job once more with the same command."""
    project = runner("--trainer.max_epochs=6")
    reference = uninterrupted(project)
    variables, called = slurm_job(tmp_path)
    project.environment |= variables
    process = project.start(*project.flags)
    project.until_fitting(process, resumed=False)
    folder = runs(project.project)[-1]
    project.until_file(process, folder / "checkpoints" / "last.ckpt")
    process.send_signal(signal.SIGUSR1)
    assert project.finish(process) == 128 + signal.SIGUSR1, project.output
    assert called.read_text(encoding="utf-8") == "requeue 4711\n"
    project.environment["SLURM_RESTART_COUNT"] = "1"
    assert project.to_the_end(*project.flags) == 0, project.output
    assert runs(project.project)[-1] == folder
    assert compare(reference, folder) == []


def test_finished_run_is_resumed_for_more_epochs(runner: Callable[..., Runner]) -> None:
    project = runner("--model.scheduler=none")
    longer = uninterrupted(ForkedRunner(project.project, [*project.flags, "--trainer.max_epochs=5"]))
    folder = uninterrupted(project)
    assert project.to_the_end("--resume", folder.name, "--trainer.max_epochs=5") == 0, project.output
    assert compare(longer, folder) == []


def test_other_settings_cannot_change_on_resuming(runner: Callable[..., Runner]) -> None:
    project = runner()
    folder = uninterrupted(project)
    before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert project.to_the_end("--resume", folder.name, "--model.lr=0.5") == 2
    assert project.output.startswith(f"error: model.lr is {before['model']['lr']} in {folder.name}; ")
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) == before


def test_kill_while_the_settings_are_written_leaves_the_old_ones(runner: Callable[..., Runner], tmp_path: Path) -> None:
    project = runner()
    folder = uninterrupted(project)
    settings = (folder / "config.yaml").read_text(encoding="utf-8")
    (tmp_path / "old.yaml").hardlink_to(folder / "config.yaml")
    assert project.to_the_end("--resume", folder.name, "--trainer.max_epochs=4") == 0, project.output
    assert (tmp_path / "old.yaml").read_text(encoding="utf-8") == settings  # replaced, never written over
    assert "max_epochs: 4" in (folder / "config.yaml").read_text(encoding="utf-8")


def test_resuming_without_a_run_is_refused(runner: Callable[..., Runner]) -> None:
    project = runner()
    assert project.to_the_end("--resume") == 1
    assert project.output == f"error: {project.project / 'logs'} has no unfinished run to resume\n"
    assert project.to_the_end("--resume", "nothing") == 1
    assert project.output.startswith("error: nothing is not a run in ")


def test_run_is_described(runner: Callable[..., Runner]) -> None:
    folder = uninterrupted(runner("--seed_everything=3"))
    described = describe(folder)
    assert described["seed"] == 3
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))
    assert len(described["code"]) == 64
