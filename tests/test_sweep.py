"""Seeds and searches: each trial is trained once, whatever is killed, and the results are complete.

Most tests put a program in the place of train.py that keeps its contract with the sweep but trains nothing: it locks a
run folder, writes run.json, metrics.csv and best.ckpt, and can be told to wait or to fail.
"""

import csv
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from statistics import mean, stdev

import forked
import pytest
import torch
import yaml
from faults.kills import compare, slurm_job
from filelock import FileLock

from conftest import Bake, Project

SHORT = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.logger=false"]
STUB = """
import json, os, shutil, signal, sys, time
from pathlib import Path

if __name__ != "__main__":
    from training.real_train import main
else:
    from filelock import FileLock, Timeout

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(os.system("scontrol requeue by the trial")))
    flags = sys.argv[1:]
    resumed = flags[0] == "--resume"
    run = Path(flags[1] if resumed else os.environ["SWEEP_RUN"])
    told = Path(__file__).with_name("told.json")
    told = json.loads(told.read_text()) if told.exists() else {}
    if "before" in told.get(run.name, []):
        (run.parent / f"waits-{run.name}").touch()
        while not (run.parent / "go").exists():
            time.sleep(0.01)
    if not resumed:
        run.mkdir(parents=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.exit(f"error: {run.name} is being trained")
    with open(run.parent / "starts.txt", "a") as starts:
        print(run.name, "resumed" if resumed else "started", file=starts)
    if not resumed:
        (run / "flags.json").write_text(json.dumps(flags))
    flags = json.loads((run / "flags.json").read_text())
    about = {"state": "unfinished", "process": {"id": os.getpid()}}
    (run / "new.json").write_text(json.dumps(about))
    os.replace(run / "new.json", run / "run.json")
    if "fail" in told.get(run.name, []):
        print("a warning")
        sys.exit("error: the loss is NaN after step 3")
    settings = dict(flag.split("=", 1) for flag in flags if "=" in flag)
    score = told.get("scores", {}).get(run.name, 50)
    with open(run / "metrics.csv", "w") as rows:
        print("step,val/acc,epoch", file=rows)
        for epoch in range(3):
            print(epoch, score / 100, epoch, sep=",", file=rows)
    if "wait" in told.get(run.name, []):
        (run.parent / f"waits-{run.name}").touch()
        while not (run.parent / "go").exists():
            time.sleep(0.01)
    (run / "checkpoints").mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name(f"{score}.ckpt"), run / "checkpoints" / "best.ckpt")
    (run / "test_metrics.json").write_text(json.dumps({"test/acc": score / 200}))
    (run / "new.json").write_text(json.dumps(about | {"state": "finished"}))
    os.replace(run / "new.json", run / "run.json")
"""


def read_rows(file: Path, column: str) -> list[dict[str, str]]:
    """The rows of a CSV file that have a value in a column."""
    with open(file, newline="", encoding="utf-8") as text:
        return [row for row in csv.DictReader(text) if row[column]]


def read_results(folder: Path) -> list[dict[str, str]]:
    return read_rows(folder / "results.csv", "number")


def states(folder: Path) -> list[str]:
    return [row["state"] for row in read_results(folder)]


def until(condition: Callable[[], object]) -> None:
    """Waits for what another process does."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass
class Sweeper:
    """Runs training/sweep.py of a project.

    Attributes:
        folder: Folder of the sweep.
    """

    project: Project
    output: Path

    @property
    def folder(self) -> Path:
        return self.project.path / "logs" / "sweeps" / "study"

    def run(self, *flags: str, status: int = 0) -> str:
        done = self.project.run("training/sweep.py", "--name", "study", *flags, status=status)
        return done.stdout + done.stderr

    def start(self, *flags: str, **variables: str) -> ForkServerProcess:
        """Starts the command, with variables of its environment, and returns its process."""
        self.output.mkdir(exist_ok=True)
        script, rest, folder, environment = self.project._prepare(
            ("training/sweep.py", "--name", "study", *flags), variables
        )
        process = forked.CONTEXT.Process(target=forked._execute, args=(script, rest, folder, environment, self.output))
        process.start()
        return process

    def start_and_kill(self, *flags: str) -> None:
        """Kills the command, but not its trials, once the first of these waits."""
        self.start_and_kill_at(*flags, trial=0)

    def start_and_kill_at(self, *flags: str, trial: int) -> None:
        """Kills the command, but not its trials, once a trial waits."""
        process = self.start(*flags)
        self.waiting(trial)
        process.kill()
        process.join()

    def tell(self, **what: object) -> None:
        """Tells train.py what to do with a run, such as `_0001=["wait"]`, or the scores of runs in percent."""
        for score in dict(what.get("scores", {})).values():  # type: ignore[call-overload]
            self.save_checkpoint(score)
        file = self.project.path / "training" / "told.json"
        file.write_text(json.dumps({name.strip("_"): each for name, each in what.items()}), encoding="utf-8")

    def save_checkpoint(self, score: int) -> None:
        state = {"callbacks": {"Checkpoints": {"best_score": score / 100}}}
        torch.save(state, self.project.path / "training" / f"{score}.ckpt")

    def waiting(self, number: int) -> None:
        """Waits until a run waits."""
        until((self.folder / f"waits-{number:04}").exists)

    def go(self) -> None:
        """Let waiting runs continue."""
        (self.folder / "go").touch()

    def starts(self) -> list[str]:
        file = self.folder / "starts.txt"
        return sorted(file.read_text(encoding="utf-8").splitlines()) if file.exists() else []

    def kill_trial(self, number: int) -> None:
        about = json.loads((self.folder / f"{number:04}" / "run.json").read_text(encoding="utf-8"))
        os.kill(about["process"]["id"], signal.SIGKILL)


@pytest.fixture
def sweeper(bake: Bake, tmp_path: Path) -> Iterator[Sweeper]:
    """A project with the program in the place of train.py."""
    project = bake(fresh=True, project_name="swept")
    script = project.path / "training" / "train.py"
    script.rename(script.with_name("real_train.py"))
    script.write_text(STUB, encoding="utf-8")
    sweeper = Sweeper(project, tmp_path / "output")
    sweeper.save_checkpoint(50)
    yield sweeper
    if sweeper.folder.exists():
        sweeper.go()  # ends what a failed test has left


def write_space(project: Project, text: str) -> None:
    (project.path / "configs" / "sweep.yaml").write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_seeds_are_trained_and_summarised(bake: Bake, tmp_path: Path) -> None:
    project = bake(fresh=True, project_name="seeds")
    sweeper = Sweeper(project, tmp_path)
    printed = sweeper.run("--seeds", "2", "--jobs", "2", *SHORT)

    rows = read_results(sweeper.folder)
    assert [row["seed_everything"] for row in rows] == ["0", "1"]
    assert {row["state"] for row in rows} == {"finished"}
    for row in rows:
        run = project.path / row["run"]
        tested = json.loads((run / "test_metrics.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        assert tested["test/acc"] == float(row["test/acc"])
        assert config["seed_everything"] == int(row["number"])
        assert float(row["value"]) == max(float(each["val/acc"]) for each in read_rows(run / "metrics.csv", "val/acc"))
    values = [float(row["value"]) for row in rows]
    half = 12.7062 * stdev(values) / 2**0.5  # Student's t with one degree of freedom
    for number in (mean(values), stdev(values), mean(values) - half, mean(values) + half):
        assert f"{number:.4f}" in printed
    assert (sweeper.folder / "seeds.png").stat().st_size > 1000

    # The runs can be evaluated, and are not the newest run of the other commands.
    best = max(rows, key=lambda row: float(row["value"]))
    checkpoint = project.path / best["run"] / "checkpoints" / "best.ckpt"
    assert f"{float(best['test/acc']):.4f}" in project.run("training/evaluate.py", "--ckpt_path", checkpoint).stdout
    project.run("training/evaluate.py", status=1)

    listed = json.loads(project.run("training/sweep.py", "--list", "--format", "json").stdout)
    assert {row["run"]: row["state"] for row in listed} == dict.fromkeys(
        ("sweeps/study", "sweeps/study/0000", "sweeps/study/0001"), "finished"
    )
    assert next(row for row in listed if row["run"].endswith("0001"))["settings"].startswith("seed_everything=1 ")

    table = project.run("training/sweep.py", "--list", COLUMNS="80").stdout
    assert "\N{HORIZONTAL ELLIPSIS}" not in table
    assert all(len(line) <= 80 for line in table.splitlines())

    project.run("training/sweep.py", "--list", "--html")
    page = (project.path / "logs" / "index.html").read_text(encoding="utf-8")
    links = {name: link for link, name in re.findall(r'href="([^"]*)">([^<]*)<', page)}
    runs = {row["run"] for row in listed} - {"sweeps/study"}
    assert links == {"sweeps/study": "sweeps/study/results.csv"} | {run: f"{run}/report.html" for run in runs}
    assert all((project.path / "logs" / link).exists() for link in links.values())
    assert f"{float(best['test/acc']):.4f}" in page
    project.run("training/sweep.py", "--seeds=2", "--html", status=2)


@pytest.mark.slow
def test_trials_may_have_several_processes(bake: Bake, tmp_path: Path) -> None:
    project = bake(fresh=True, project_name="ddp_trials")
    sweeper = Sweeper(project, tmp_path)
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    sweeper.run("--seeds", "2", "--trainer.max_epochs=1", "--trainer.logger=false", *two)
    rows = read_results(sweeper.folder)
    assert [row["state"] for row in rows] == ["finished", "finished"]
    for row in rows:
        steps = [int(each["step"]) for each in read_rows(project.path / row["run"] / "metrics.csv", "val/acc")]
        assert steps == [9]  # 20 batches, ten for each process
        config = yaml.safe_load((project.path / row["run"] / "config.yaml").read_text(encoding="utf-8"))
        assert int(config["trainer"]["devices"]) == 2
    assert sorted(path.name for path in sweeper.folder.glob("[0-9]*") if path.is_dir()) == ["0000", "0001"]


@pytest.mark.slow
def test_killed_trial_ends_with_the_weights_of_an_undisturbed_one(bake: Bake, tmp_path: Path) -> None:
    project = bake(fresh=True, project_name="killed")
    write_space(project, "model.lr: {low: 0.001, high: 0.1, log: true}\nmodel.channels: [16, 32]\n")
    sweeper = Sweeper(project, tmp_path)
    flags = ["--trials", "1", "--trainer.max_epochs=4", "--trainer.logger=false"]
    process = sweeper.start(*flags)
    until((sweeper.folder / "0000" / "checkpoints" / "last.ckpt").exists)
    process.kill()
    process.join()
    sweeper.kill_trial(0)
    sweeper.run(*flags)
    assert "resuming 0000 after step" in (sweeper.folder / "0000.log").read_text(encoding="utf-8")

    printed = sweeper.run(*flags)  # nothing is left to do
    again = next(line for line in printed.splitlines() if line.startswith("to train it again: "))
    project.run("training/train.py", *again.split()[6:])
    (reference,) = project.runs()
    assert compare(reference, sweeper.folder / "0000") == []


@pytest.mark.parametrize(
    ("space", "flags", "named"),
    [
        ("model.lrr: [0.1]", [], "model.lrr"),
        ("model.lr: [0.1, -0.1]", [], "model.lr"),
        ("model.optimizer: [adam, adaam]", [], "adaam"),
        ("model.lr: {low: 0.1}", [], "model.lr"),
        ("model.lr: {low: 0.1, high: 0.01}", [], "model.lr"),
        ("model.lr: {low: 0.1, high: 1, log: true, step: 0.1}", [], "model.lr"),
        ("model.lr: 0.1", [], "model.lr"),
        ("model: {lr: [0.1]}", [], "model"),
        ("", [], "sweep.yaml"),
        ("model.lr: [0.1]", ["--model.lr=0.2"], "--model.lr"),
        ("model.lr: [0.1]", ["--trails", "3"], "trails"),
        ("model.lr: [0.1]", ["--resume"], "--resume"),
        ("model.lr: [0.1]", ["--monitor=null"], "--monitor"),
        ("model.lr: [0.1]", ["--trainer.fast_dev_run=true"], "fast_dev_run"),
        ("model.lr: {low: 0.01, high: 0.1}", ["--sampler=grid"], "model.lr"),
        ("model.lr: [0.1]", ["--jobs=0"], "--jobs"),
        ("model.lr: [0.1]", ["--name=.."], "--name"),
        ("model.lr: [0.1]", ["--name=a/b"], "--name"),
        ("model.lr: [0.1]", ["--seeds=2"], "--seeds"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_trial(
    bake: Bake, space: str, flags: list[str], named: str
) -> None:
    project = bake(project_name="refused")
    write_space(project, space)
    done = project.run("training/sweep.py", "--trials", "2", *flags, status=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and named in line
    assert not list((project.path / "logs" / "sweeps").glob("*"))


def test_dry_run_prints_the_commands(sweeper: Sweeper) -> None:
    write_space(sweeper.project, "model.lr: [1e-3, 0.01]\nmodel.channels: [16, 32]\n")
    printed = sweeper.run("--trials", "9", "--sampler", "grid", "--dry_run", "--", "--trainer.max_epochs", "3")
    commands = [f"--model.lr={lr} --model.channels={n}" for lr in ("1e-3", "0.01") for n in (16, 32)]
    assert printed.splitlines() == [f"python training/train.py --trainer.max_epochs 3 {each}" for each in commands]
    assert not sweeper.folder.exists()


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_choices_depend_on_the_trials_before_only(sweeper: Sweeper, sampler: str) -> None:
    """So a search is the same whichever process continues it."""
    lr = "model.lr: {low: 0.001, high: 0.1, log: true}"
    write_space(sweeper.project, f"{lr}\nmodel.channels: {{low: 8, high: 32, step: 8}}")
    flags = ["--sampler", sampler, *SHORT]
    printed = sweeper.run("--trials", "3", "--dry_run", *flags)
    for trials in ("1", "3"):
        sweeper.run("--trials", trials, *flags)
    used = [json.loads((sweeper.folder / f"{i:04}" / "flags.json").read_text(encoding="utf-8")) for i in range(3)]
    assert printed.splitlines() == [" ".join(["python training/train.py", *each]) for each in used]
    assert all(each[:3] == SHORT for each in used)
    assert {each[4].split("=")[1] for each in used} <= {"8", "16", "24", "32"}


def test_search_shows_the_best_trial_first_and_draws_it(sweeper: Sweeper) -> None:
    write_space(sweeper.project, "model.lr: {low: 0.001, high: 0.1, log: true}\nmodel.channels: [16, 32]")
    sweeper.tell(scores={"0000": 60, "0001": 80, "0002": 70})
    printed = sweeper.run("--trials", "3")
    order = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert order == ["1", "2", "0"]
    assert "best run: logs/sweeps/study/0001" in printed
    assert [row["value"] for row in read_results(sweeper.folder)] == ["0.6", "0.8", "0.7"]
    for name in ("history", "slices", "importances"):
        assert (sweeper.folder / f"{name}.png").stat().st_size > 1000


def test_search_of_one_setting_is_drawn(sweeper: Sweeper) -> None:
    write_space(sweeper.project, "model.lr: [0.001, 0.01]")
    assert "warning" not in sweeper.run("--trials", "2", "--sampler", "grid")
    for name in ("history", "slices"):
        assert (sweeper.folder / f"{name}.png").stat().st_size > 1000


def test_same_command_repeats_nothing_and_more_trials_are_added(sweeper: Sweeper) -> None:
    sweeper.run("--seeds", "2")
    sweeper.run("--seeds", "2")
    sweeper.run("--seeds", "3")
    assert sweeper.starts() == ["0000 started", "0001 started", "0002 started"]


def test_other_settings_need_another_name(sweeper: Sweeper) -> None:
    sweeper.run("--seeds", "1")
    assert "--name" in sweeper.run("--seeds", "1", "--trainer.max_epochs=3", status=2)
    assert "--name" in sweeper.run("--trials", "1", status=2)
    assert sweeper.starts() == ["0000 started"]


def test_failing_trial_is_recorded_and_the_sweep_continues(sweeper: Sweeper) -> None:
    sweeper.tell(_0001=["fail"])
    sweeper.run("--seeds", "3")
    rows = read_results(sweeper.folder)
    assert [row["state"] for row in rows] == ["finished", "failed", "finished"]
    assert rows[1]["error"] == "error: the loss is NaN after step 3"
    listed = json.loads(sweeper.run("--list", "--format", "json"))
    assert {row["run"][-4:]: row["state"] for row in listed}["0001"] == "failed"
    sweeper.run("--seeds", "3")
    assert "0001 resumed" not in sweeper.starts()


def test_all_failing_is_status_1(sweeper: Sweeper) -> None:
    sweeper.tell(_0000=["fail"], _0001=["fail"])
    sweeper.run("--seeds", "2", status=1)
    assert states(sweeper.folder) == ["failed", "failed"]


def test_killed_trial_is_resumed_by_the_same_command(sweeper: Sweeper) -> None:
    sweeper.tell(_0000=["wait"])
    process = sweeper.start("--seeds", "2")
    sweeper.waiting(0)
    sweeper.kill_trial(0)
    process.join()
    assert process.exitcode == 1
    assert states(sweeper.folder) == ["unfinished", "finished"]
    sweeper.go()
    sweeper.run("--seeds", "2")
    assert sweeper.starts() == ["0000 resumed", "0000 started", "0001 started"]
    assert states(sweeper.folder) == ["finished", "finished"]


def test_trial_of_a_killed_sweep_is_awaited(sweeper: Sweeper) -> None:
    sweeper.tell(_0000=["wait"])
    sweeper.start_and_kill("--seeds", "2", "--jobs", "1")
    second = sweeper.start("--seeds", "2", "--jobs", "2")
    until(lambda: states(sweeper.folder)[1:] == ["finished"])  # it has looked at the trial, too
    sweeper.go()
    second.join()
    assert second.exitcode == 0
    assert sweeper.starts() == ["0000 started", "0001 started"]
    assert states(sweeper.folder) == ["finished", "finished"]


def test_trial_that_had_not_started_when_its_sweep_was_killed_is_trained_once(sweeper: Sweeper) -> None:
    """Then the second sweep starts a process of its own, and one of both finds the folder in use."""
    sweeper.tell(_0000=["before"])
    sweeper.start_and_kill("--seeds", "1")
    (sweeper.folder / "waits-0000").unlink()
    second = sweeper.start("--seeds", "1")
    sweeper.waiting(0)
    sweeper.go()  # both
    second.join()
    assert second.exitcode == 0
    assert sweeper.starts() == ["0000 started"]
    assert states(sweeper.folder) == ["finished"]


def test_folder_of_a_trial_that_was_killed_before_it_began_is_used(sweeper: Sweeper) -> None:
    sweeper.tell(_0000=["before"])
    sweeper.start_and_kill("--seeds", "1")
    sweeper.go()
    until((sweeper.folder / "0000" / "test_metrics.json").exists)
    for file in (sweeper.folder / "0000").glob("*.json"):
        file.unlink()
    until(lambda: not_locked(sweeper.folder / "0000" / ".lock"))
    sweeper.run("--seeds", "1")
    assert states(sweeper.folder) == ["finished"]


def not_locked(file: Path) -> bool:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return False
    lock.release()
    return True


def test_finished_trial_of_a_killed_sweep_is_not_repeated(sweeper: Sweeper) -> None:
    sweeper.tell(_0000=["wait"])
    sweeper.start_and_kill("--seeds", "1")
    sweeper.go()
    until((sweeper.folder / "0000" / "test_metrics.json").exists)
    sweeper.run("--seeds", "1")
    assert sweeper.starts() == ["0000 started"]
    assert states(sweeper.folder) == ["finished"]


def test_two_sweeps_share_the_trials(sweeper: Sweeper) -> None:
    processes = [sweeper.start("--seeds", "6", "--jobs", "2") for _ in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sweeper.starts() == [f"{i:04} started" for i in range(6)]
    assert states(sweeper.folder) == ["finished"] * 6


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_signal_stops_sweep_and_trial(sweeper: Sweeper, number: int, status: int) -> None:
    sweeper.tell(_0000=["wait"])
    process = sweeper.start("--seeds", "2")
    sweeper.waiting(0)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == status
    assert states(sweeper.folder) == ["unfinished"]
    assert not_locked(sweeper.folder / "0000" / ".lock")
    listed = json.loads(sweeper.run("--list", "--format", "json"))
    assert {row["run"]: row["state"] for row in listed} == dict.fromkeys(
        ("sweeps/study", "sweeps/study/0000"), "interrupted"
    )
    sweeper.go()
    sweeper.run("--seeds", "2")
    assert sweeper.starts() == ["0000 resumed", "0000 started", "0001 started"]


def test_slurm_requeues_the_job_of_a_sweep_once(sweeper: Sweeper, tmp_path: Path) -> None:
    sweeper.tell(_0000=["wait"], _0001=["wait"])
    variables, called = slurm_job(tmp_path)
    process = sweeper.start("--seeds", "3", "--jobs", "2", **variables)
    sweeper.waiting(0)
    sweeper.waiting(1)
    assert process.pid
    os.kill(process.pid, signal.SIGUSR1)
    process.join()
    assert process.exitcode == 128 + signal.SIGUSR1
    assert called.read_text(encoding="utf-8") == "requeue 4711\n"
    sweeper.go()
    sweeper.run("--seeds", "3", "--jobs", "2")
    assert sweeper.starts() == ["0000 resumed", "0000 started", "0001 resumed", "0001 started", "0002 started"]


def test_running_trials_are_listed_as_running(sweeper: Sweeper) -> None:
    sweeper.tell(_0000=["wait"])
    process = sweeper.start("--seeds", "1")
    sweeper.waiting(0)
    listed = json.loads(sweeper.run("--list", "--format", "json"))
    assert {row["run"]: row["state"] for row in listed} == dict.fromkeys(
        ("sweeps/study", "sweeps/study/0000"), "running"
    )
    sweeper.go()
    process.join()
    assert process.exitcode == 0


def test_bad_trial_is_pruned(sweeper: Sweeper) -> None:
    """The pruner stops a trial once it knows five others."""
    sweeper.tell(scores={"0005": 10}, _0005=["wait"])
    sweeper.run("--seeds", "6", "--pruner", "median")
    assert states(sweeper.folder) == ["finished"] * 5 + ["pruned"]


def test_half_a_record_is_dropped(sweeper: Sweeper) -> None:
    """A full disk or a power cut may leave one."""
    sweeper.run("--seeds", "1")
    with open(sweeper.folder / "journal.log", "ab") as journal:
        journal.write(b'{"op_code":4,"wor')
    sweeper.run("--seeds", "3")
    assert states(sweeper.folder) == ["finished"] * 3


def test_database_can_hold_the_results(sweeper: Sweeper, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    sweeper.tell(_0000=["wait"])
    process = sweeper.start("--seeds", "2", "--storage", url)
    sweeper.waiting(0)
    process.kill()
    process.join()
    sweeper.kill_trial(0)
    sweeper.go()
    sweeper.run("--seeds", "2", "--storage", url)
    assert states(sweeper.folder) == ["finished", "finished"]
    assert not (sweeper.folder / "journal.log").exists()


@pytest.mark.slow
def test_folds_are_trained_and_each_sample_is_predicted_by_a_model_that_has_not_seen_it(bake: Bake) -> None:
    project = bake(fresh=True, project_name="folded")
    done = project.run("training/sweep.py", "--folds", "3", "--name", "folds", *SHORT)
    assert done.stderr == ""
    folder = project.path / "logs" / "sweeps" / "folds"
    assert sorted(row["data.fold"] for row in read_results(folder)) == ["1", "2", "3"]
    assert set(states(folder)) == {"finished"}
    assert (folder / "folds.png").exists()
    rows = read_rows(folder / "out_of_fold.csv", "fold")
    code = """
from training.sweeps.plan import ROOT
from training.sweeps.folds import MyDataModule, MyModel, predict_fold
data = MyDataModule(folds=3, fold=2)
data.setup("fit")
print(len(data.train) + len(data.val))
print([data.class_names[target] for target in data.val.tensors[1]])
checkpoint = ROOT / "logs/sweeps/folds/0001/checkpoints/best.ckpt"
del MyDataModule.predict_split
try:
    predict_fold(checkpoint)
except OSError as error:
    print(error)
del MyModel.predict_step
print(len(predict_fold(checkpoint)), len(data.val))
"""
    count, truths, refusal, sizes = project.run("-c", code).stdout.splitlines()
    assert len(rows) == int(count)
    assert [row["truth"] for row in rows if row["fold"] == "2"] == json.loads(truths.replace("'", '"'))
    accuracy = mean(row["truth"] == row["class"] for row in rows)
    assert f"{accuracy:.4f}" in done.stdout
    assert "predict_step" in refusal and "predict_split" in refusal
    assert len(set(sizes.split())) == 1
    checkpoints = [f"{folder}/{number:04}/checkpoints/best.ckpt" for number in range(3)]
    averaged = json.loads(project.run("training/predict.py", "--format=json", "--ckpt_path", *checkpoints).stdout)
    code = f"""
import torch
from training.sweeps.folds import MyDataModule, MyModel
data = MyDataModule()
data.setup("fit")
models = [MyModel.load_from_checkpoint(file, weights_only=True).eval() for file in {checkpoints}]
with torch.no_grad():
    mean = sum(model(data.test.tensors[0][:8]).softmax(dim=1) for model in models) / 3
print(mean.max(dim=1).values.tolist())
print(mean.argmax(dim=1).tolist())
"""
    probabilities, classes = map(json.loads, project.run("-c", code).stdout.splitlines())
    assert [row["probability"] for row in averaged] == pytest.approx(probabilities, abs=1e-4)
    assert [int(row["class"]) for row in averaged] == classes


@pytest.mark.slow
def test_folds_of_a_series_forecast_each_time_once(bake: Bake) -> None:
    project = bake(fresh=True, variant="forecast", project_name="rolled")
    printed = project.run("training/sweep.py", "--folds", "2", "--name", "folds", *SHORT).stdout
    rows = read_rows(project.path / "logs" / "sweeps" / "folds" / "out_of_fold.csv", "fold")
    times = {fold: [row["time"] for row in rows if row["fold"] == fold] for fold in ("1", "2")}
    assert all(len(set(each)) == len(each) > 100 for each in times.values())
    assert max(times["1"]) < min(times["2"])
    error = mean(abs(float(row["truth"]) - float(row["forecast"])) for row in rows)
    assert f"{error:.4f}" in printed
    again = next(line for line in printed.splitlines() if line.startswith("to train on the usual splits: "))
    assert "--data.fold" not in again


def test_sweep_over_folds_is_resumed_and_names_the_remaining_ones(sweeper: Sweeper) -> None:
    sweeper.tell(_0001=["wait"])
    sweeper.start_and_kill_at("--folds=3", trial=1)
    assert states(sweeper.folder) == ["finished", "unfinished", "unfinished"][: len(states(sweeper.folder))]
    sweeper.go()
    sweeper.run("--folds=3")
    assert states(sweeper.folder) == ["finished"] * 3
    assert [row["data.fold"] for row in read_results(sweeper.folder)] == ["1", "2", "3"]
    assert len([line for line in sweeper.starts() if "started" in line]) == 3


def test_failed_fold_leaves_no_out_of_fold_predictions(sweeper: Sweeper) -> None:
    sweeper.tell(_0001=["fail"])
    printed = sweeper.run("--folds=3")
    assert "no out-of-fold predictions: 1 of 3 folds have not finished" in printed
    assert not (sweeper.folder / "out_of_fold.csv").exists()


def test_folds_are_planned_by_number(sweeper: Sweeper) -> None:
    lines = sweeper.run("--folds=2", "--dry_run", "--model.lr=0.01").splitlines()
    commands = [f"python training/train.py --model.lr=0.01 --data.folds=2 --data.fold={fold}" for fold in (1, 2)]
    assert lines == commands
    for flags in (["--folds=1"], ["--folds=2", "--data.fold=1"], ["--folds=2", "--data.folds=2"]):
        assert "error:" in sweeper.run(*flags, status=2)


@pytest.mark.parametrize("variant", ["detection", "segmentation"])
def test_boxes_and_masks_are_not_averaged(bake: Bake, variant: str) -> None:
    done = bake(variant=variant).run("training/predict.py", "--ckpt_path", "a.ckpt", "b.ckpt", status=2)
    assert "cannot be averaged" in done.stderr
