"""A fault outside of a run ends it with one sentence, the right exit status, and the last checkpoint intact."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Bake, Project, Run
from data_files import digits, write_idx
from faults.kills import ForkedRunner, Runner, load, runs

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]
LONG = ["--trainer.max_epochs=2000", "--model.scheduler=none", "--trainer.logger=false"]


@pytest.fixture(scope="module")
def runner(bake: Bake) -> Runner:
    return ForkedRunner(bake(fresh=True, project_name="faulty").path, [])


@pytest.fixture(scope="module")
def folders(bake: Bake) -> Runner:
    return ForkedRunner(bake(fresh=True, variant="image-folder", project_name="faulty_folders").path, [])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of eighty pictures each."""
    images, _ = digits(32)
    for i, image in enumerate(images[:160]):
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return tmp_path / "pictures"


def sentence(runner: Runner) -> str:
    """The one line in which a run said why it ended."""
    errors = [line for line in runner.output.splitlines() if "error: " in line]
    assert len(errors) == 1, runner.output
    assert "Traceback" not in runner.output
    assert runner.output.splitlines()[-1] == errors[0], runner.output
    return errors[0]


def disturbed(runner: Runner, disturb: Callable[[int, Path], object], *flags: str) -> tuple[int, Path]:
    """Disturb a run as soon as it has a checkpoint; return its exit status and its folder."""
    process = runner.start(*LONG, *flags)
    runner.until_fitting(process, resumed=False)
    folder = runs(runner.project)[-1]
    runner.until_file(process, folder / "checkpoints" / "last.ckpt")
    disturb(process.pid, folder)
    return runner.finish(process), folder


def test_full_disk_leaves_the_last_checkpoint_as_it_was(runner: Runner) -> None:
    """The disk is full for files of more than 16 kB, which a checkpoint has, but no other file as early as this."""

    def fill(pid: int, folder: Path) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (16_384, 16_384))

    status, folder = disturbed(runner, fill)
    assert status == 1
    assert ".ckpt cannot be written: File too large" in sentence(runner)
    assert load(folder / "checkpoints" / "last.ckpt")["global_step"] >= 20
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    epochs = f"--trainer.max_epochs={load(folder / 'checkpoints' / 'last.ckpt')['epoch'] + 2}"
    assert runner.to_the_end("--resume", folder.name, epochs) == 0, runner.output


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk takes root on Linux")
def test_full_file_system_leaves_the_last_checkpoint_as_it_was(runner: Runner, tmp_path: Path) -> None:
    logs = runner.project / "logs"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", logs]).returncode:
        pytest.skip("mounting is not allowed here")
    try:

        def fill(pid: int, folder: Path) -> None:
            with open(logs / "filler", "wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        return

        status, folder = disturbed(runner, fill)
        assert status == 1
        assert "cannot be written: No space left on device" in sentence(runner)
        assert load(folder / "checkpoints" / "last.ckpt")["global_step"] >= 20
        (logs / "filler").unlink()
        epochs = f"--trainer.max_epochs={load(folder / 'checkpoints' / 'last.ckpt')['epoch'] + 2}"
        assert runner.to_the_end("--resume", epochs) == 0, runner.output
    finally:
        subprocess.run(["umount", logs], check=True)


def test_logs_that_cannot_be_written_are_named(bake: Bake) -> None:
    project = bake(fresh=True, project_name="read_only")
    shutil.rmtree(project.path / "logs")
    (project.path / "logs").symlink_to("/sys/kernel")
    runner = ForkedRunner(project.path, [])
    assert runner.to_the_end("--trainer.max_epochs=1") == 1
    assert str(project.path / "logs") in sentence(runner)


@pytest.mark.parametrize("name", ["vanishes", "is damaged"])
def test_damaged_data_are_named(folders: Runner, pictures: Path, name: str) -> None:
    def spoil(pid: int, folder: Path) -> None:
        if name == "vanishes":
            shutil.rmtree(pictures)
        else:
            for file in pictures.rglob("*.png"):
                file.write_bytes(file.read_bytes()[:150])

    status, folder = disturbed(folders, spoil, f"--data.data_dir={pictures}")
    assert status == 1
    said = sentence(folders)
    assert said.startswith(f"error: {pictures}/")
    assert ".png" in said
    assert load(folder / "checkpoints" / "last.ckpt")["global_step"] > 0


@pytest.mark.parametrize("lacking", ["every picture", "all but five", "a class"])
def test_missing_training_pictures_are_reported(bake: Bake, tmp_path: Path, lacking: str) -> None:
    pictures, targets = digits(28)
    train = {"every picture": 0, "all but five": 5, "a class": 1400}[lacking]
    chosen = np.r_[np.flatnonzero(targets[:train] != 9) if lacking == "a class" else np.arange(train), 1400:1797]
    write_idx(tmp_path / "MNIST" / "raw", pictures[chosen], targets[chosen], len(chosen) - 397)
    runner = ForkedRunner(bake(variant="mnist-cnn", project_name="lacking").path, [])
    assert runner.to_the_end(f"--data.data_dir={tmp_path}") == 1
    said = sentence(runner)
    assert said.startswith(f"error: {tmp_path}")
    assert lacking != "a class" or "[9]" in said
    assert runs(runner.project) == []


def test_class_of_one_row_stays_with_the_training_rows(bake: Bake, tmp_path: Path) -> None:
    rows = [f"{i % 7},{i},{'ab'[i % 2]}" for i in range(100)]
    (tmp_path / "rows.csv").write_text("\n".join(["x,y,z", *rows, "9,9,c"]), encoding="utf-8")
    runner = ForkedRunner(bake(variant="tabular", project_name="lacking").path, [])
    flags = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    assert runner.to_the_end(f"--data.csv={tmp_path / 'rows.csv'}", "--data.target=z", *flags) == 0
    assert "warn" not in runner.output.lower()


def test_run_that_would_train_nothing_is_refused(runner: Runner) -> None:
    assert runner.to_the_end("--trainer.limit_train_batches=0", "--trainer.max_epochs=1") == 1
    assert "limit_train_batches" in sentence(runner)


def test_killed_worker_is_distinguished_from_an_error_in_the_code(folders: Runner, pictures: Path) -> None:
    def kill_worker(pid: int, folder: Path) -> None:
        """Kill workers until the run ends, because a worker that has finished its share of an epoch is not missed."""
        task = Path(f"/proc/{pid}/task/{pid}")
        while task.exists() and "\nState:\tZ" not in (task / "status").read_text():
            for child in (task / "children").read_text().split():
                with suppress(OSError):
                    if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(int(child), signal.SIGKILL)

    runner = Runner(folders.project, [])  # its workers are found by the name of the script
    status, folder = disturbed(runner, kill_worker, f"--data.data_dir={pictures}")
    assert status == 1
    said = runner.output.splitlines()[-1]  # a worker that dies while another is shut down leaves a trace before
    assert said.startswith("error: DataLoader worker") and "memory" in said
    assert load(folder / "checkpoints" / "last.ckpt")["global_step"] > 0


def test_nan_loss_stops_the_run_at_its_step(runner: Runner) -> None:
    flags = ["--model.optimizer=sgd", "--model.lr=1e18", "--trainer.max_epochs=3", "--model.scheduler=none"]
    assert runner.to_the_end(*flags, "--checkpoint_minutes=0") == 1
    said = sentence(runner)
    assert "NaN or infinite" in said or "training samples [" in said
    last = runs(runner.project)[-1] / "checkpoints" / "last.ckpt"
    assert not last.exists() or all(weights.isfinite().all() for weights in load(last)["state_dict"].values())


def test_monitor_that_is_never_logged_is_named_with_the_logged_metrics(runner: Runner) -> None:
    assert runner.to_the_end("--trainer.max_epochs=1", "--monitor=val/nothing") == 0
    (warning,) = [line for line in runner.output.splitlines() if line.startswith("warning: ")]
    assert "'val/nothing'" in warning and "val/acc" in warning and "val/loss" in warning


def test_missing_gpu_is_reported(runner: Runner) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert runner.to_the_end("--trainer.accelerator=gpu") == 1
    assert "No supported gpu backend found!" in sentence(runner)


def test_debug_shows_where_an_error_comes_from(runner: Runner) -> None:
    assert runner.to_the_end("--trainer.limit_train_batches=0", "--debug") == 1
    assert "Traceback" in runner.output


def test_error_in_edited_code_is_shown_whole(bake: Bake) -> None:
    project = bake(fresh=True, project_name="edited")
    model = project.path / "models" / "my_model.py"
    code = model.read_text(encoding="utf-8")
    assert code.count("return self.network(") == 1
    model.write_text(code.replace("return self.network(", "return self.network(1, "), encoding="utf-8")
    runner = ForkedRunner(project.path, [])
    assert runner.to_the_end("--trainer.max_epochs=1") == 1
    assert "Traceback" in runner.output and "return self.network(1, " in runner.output


def test_last_batch_of_one_picture_trains(folders: Runner, pictures: Path) -> None:
    """Batch normalisation cannot train on one picture, of 32 x 32 pixels and so of one number a channel."""
    for split, count in (("train", 33), ("val", 5), ("test", 5)):
        for name in "ab":
            (pictures.parent / "split" / split / name).mkdir(parents=True)
            for file in sorted((pictures / name).iterdir())[: count // 2 + (name == "a")]:
                shutil.copy(file, pictures.parent / "split" / split / name)
    flags = [f"--data.data_dir={pictures.parent / 'split'}", "--data.batch_size=16", "--trainer.max_epochs=1"]
    assert folders.to_the_end(*flags) == 0, folders.output


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "zeros", "missing", "another variant's"])
def test_file_that_is_no_checkpoint_is_named_by_every_command(
    train: Callable[[str], Run], tmp_path: Path, kind: str
) -> None:
    run = train("digits-cnn")
    content = run.best.read_bytes()
    file = tmp_path / "broken.ckpt"
    contents = {"truncated": content[:-1000], "empty": b"", "text": b"hello", "zeros": bytes(len(content))}
    if kind in contents:
        file.write_bytes(contents[kind])
    elif kind == "another variant's":
        torch.save(torch.load(run.best, weights_only=True) | {"state_dict": {"other": torch.zeros(1)}}, file)
    for script in ("evaluate", "predict", "export"):
        done = run.project.run(f"training/{script}.py", "--ckpt_path", file, status=1)
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ") and str(file) in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["truncated", "another variant's", "another Lightning's"])
def test_run_with_an_invalid_checkpoint_is_not_resumed(runner: Runner, kind: str) -> None:
    assert runner.to_the_end("--trainer.max_epochs=1", "--trainer.logger=false") == 0, runner.output
    folder = runs(runner.project)[-1]
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif kind == "another variant's":
        torch.save(checkpoint | {"state_dict": {"other": torch.zeros(1)}}, file)
    else:
        torch.save(checkpoint | {"pytorch-lightning_version": "2.4.0"}, file)
    broken = file.read_bytes()
    assert runner.to_the_end("--resume", folder.name, "--trainer.max_epochs=2") == 1
    assert str(file) in sentence(runner)
    assert file.read_bytes() == broken


FLIPS = """
import sys, random, torch
from pathlib import Path
from typing import Any
from training.engine.checkpoint_files import read_checkpoint
source, copy = map(Path, sys.argv[1:])
content, rng = source.read_bytes(), random.Random(0)
whole = read_checkpoint(source)["state_dict"]
unnoticed = refused = 0
for _ in range(400):
    place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    copy.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1:])
    try:
        flipped = read_checkpoint(copy)["state_dict"]
        unnoticed += any(not torch.equal(whole[key], flipped[key]) for key in whole)
    except OSError:
        refused += 1
print(unnoticed, refused)
"""


def test_flipped_bit_of_a_checkpoint_is_noticed(train: Callable[[str], Run], tmp_path: Path) -> None:
    """Where one of the bytes that only fill the file up has flipped, the weights are as they were."""
    run = train("digits-cnn")
    unnoticed, refused = map(int, run.project.run("-c", FLIPS, run.best, tmp_path / "flipped.ckpt").stdout.split())
    assert unnoticed == 0
    assert refused > 300


def test_picture_of_too_many_pixels_is_refused(folders: Runner, train: Callable[[str], Run], tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(file)
    assert file.stat().st_size < 100_000
    run = train("digits-cnn")
    done = run.project.run("training/predict.py", file, "--ckpt_path", run.best, status=1)
    assert done.stderr.startswith(f"error: {file} is not a readable picture (Image size (400000000 pixels) exceeds")
    assert done.stderr.count("\n") == 1


WRONG_PARTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no weights": lambda checkpoint: checkpoint.pop("state_dict"),
    "no description of the run": lambda checkpoint: checkpoint.pop("run"),
    "a description that is a list": lambda checkpoint: checkpoint.update(run=[1]),
    "weights that are a number": lambda checkpoint: checkpoint.update(state_dict=3),
    "a number in place of class names": lambda checkpoint: checkpoint["run"]["given"].update(class_names=5),
    "a hundred thousand classes": lambda checkpoint: checkpoint["run"]["given"].update(class_names=["a"] * 10**5),
    "a command as version": lambda checkpoint: checkpoint.update({"pytorch-lightning_version": "9; reboot"}),
}


@pytest.mark.parametrize("kind", WRONG_PARTS)
def test_checkpoint_with_wrong_parts_is_named_by_each_command(
    train: Callable[[str], Run], tmp_path: Path, kind: str
) -> None:
    run = train("digits-cnn")
    checkpoint = torch.load(run.best, weights_only=True)
    WRONG_PARTS[kind](checkpoint)
    file = run.folder / "checkpoints" / "wrong.ckpt"  # in the run folder, so that the settings are found
    torch.save(checkpoint, file)
    try:
        for script in ("evaluate", "predict", "export"):
            done = run.project.run(f"training/{script}.py", "--ckpt_path", file, status=1)
            assert done.stderr.count("\n") == 1, done.stderr
            assert done.stderr.startswith(f"error: {file} ") and "reboot" not in done.stderr, done.stderr
            if kind == "a hundred thousand classes":  # found without memory for them: PyTorch has not reported it
                assert "100000" in done.stderr and "RuntimeError" not in done.stderr, done.stderr
    finally:
        file.unlink()


def test_run_whose_checkpoint_lost_its_content_is_not_resumed(bake: Bake) -> None:
    project = bake(fresh=True, project_name="emptied")
    project.run("training/train.py", "--trainer.max_epochs=1", "--trainer.logger=false")
    (folder,) = project.runs()
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    for part in ("loops", "callbacks", "random", "run"):
        torch.save(checkpoint | {part: type(checkpoint[part])()}, file)
        done = project.run("training/train.py", "--resume", folder.name, "--trainer.max_epochs=2", status=1)
        assert done.stderr.startswith(f"error: {file} ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_seed_out_of_range_is_refused(bake: Bake, seed: str) -> None:
    project = bake(project_name="seeded")
    done = project.run("training/train.py", "--seed_everything", seed, status=2)
    assert done.stderr.startswith(f"error: seed_everything {seed} ") and done.stderr.count("\n") == 1
    assert project.runs() == []


def test_export_into_a_missing_folder_is_named(train: Callable[[str], Run], tmp_path: Path) -> None:
    """As on a read-only disk, nothing can be written there."""
    run = train("digits-cnn")
    (tmp_path / "file").touch()
    for form in ("weights", "model", "onnx", "pt2"):
        done = run.project.run(
            "training/export.py", f"--format={form}", "--output", tmp_path / "file" / "model", status=1
        )
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert str(tmp_path / "file") in done.stderr


def test_run_after_the_clock_was_set_back_is_the_newest(bake: Bake) -> None:
    project = bake(fresh=True, project_name="clock")
    flags = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.logger=false"]
    project.run("training/train.py", *flags)
    (first,) = project.runs()
    first.rename(first.with_name("2999-01-01_00-00-00-000000"))
    project.run("training/train.py", *flags)
    assert [run.name[:4] for run in project.runs()] == ["2999", "2999"]
    newest = project.runs()[-1]
    (newest / "checkpoints" / "best.ckpt").write_bytes(b"")
    done = project.run("training/evaluate.py", status=1)
    assert str(newest) in done.stderr  # it takes the run that was started last


def test_settings_of_a_run_hold_no_path_of_its_folder(train: Callable[[str], Run]) -> None:
    """A copied project would otherwise write into the folder of the first one."""
    run = train("digits-cnn")
    assert str(run.folder) not in (run.folder / "config.yaml").read_text(encoding="utf-8")
    assert str(run.project.path) not in (run.folder / "config.yaml").read_text(encoding="utf-8")


def test_runs_that_start_at_the_same_time_have_folders_of_their_own(bake: Bake) -> None:
    project = bake(fresh=True, project_name="simultaneous")
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(project.path)!r})
sys.argv = ["train.py"]
import training.engine.run_folder as run_folder
class Clock(run_folder.datetime):
    now = classmethod(lambda cls, *zone: cls(2030, 1, 1, tzinfo=zone[0] if zone else None))
run_folder.datetime = Clock
from training.train import main
main(["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.logger=false"])
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert len(project.runs()) == 2


def test_copy_of_a_project_leaves_the_first_one_alone(bake: Bake, tmp_path: Path) -> None:
    project = bake(fresh=True, project_name="original")
    flags = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    project.run("training/train.py", *flags)
    (folder,) = project.runs()
    copy = Project(Path(shutil.copytree(project.path, tmp_path / "copy")), project.elsewhere)
    before = {file: file.stat().st_mtime_ns for file in project.path.rglob("*") if "__pycache__" not in file.parts}
    copy.run("training/train.py", "--resume", folder.name, "--trainer.max_epochs=2")
    copy.run("training/train.py", "--config", copy.runs()[0] / "config.yaml")
    after = {file: file.stat().st_mtime_ns for file in project.path.rglob("*") if "__pycache__" not in file.parts}
    assert after == before
    assert len(copy.runs()) == 2
    assert all(list((run / "tensorboard").glob("events.*")) for run in copy.runs())
