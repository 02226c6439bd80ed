"""Several processes train one model: one run folder, and the metrics of one process."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_train import metrics

from conftest import Bake, Project, by_variant
from data_files import WRITERS, digits
from faults.kills import Runner, compare, runs

pytestmark = pytest.mark.slow
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
EPOCHS = ["--trainer.max_epochs=6", "--trainer.logger=false"]
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.logger=false"]


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_metrics_are_those_of_one_process(project: Project) -> None:
    """`evaluate.py` runs in one process, and reads the checkpoint that two have trained."""
    folder = project.runs()[-1]
    tested = json.loads((folder / "test_metrics.json").read_text(encoding="utf-8"))
    printed = metrics(project.run("training/evaluate.py").stdout)
    assert {name: f"{value:.4f}" for name, value in tested.items()} == printed
    validated = metrics(project.run("training/evaluate.py", "--split=val").stdout)
    within_fit = {name: f"{float(value):.4f}" for row in rows(folder) for name, value in row.items() if value}
    assert {name: within_fit[name] for name in validated} == validated != {}


@by_variant
def test_two_processes_give_the_metrics_of_one(bake: Bake, variant: str, tmp_path: Path) -> None:
    project = bake(fresh=True, variant=variant, project_name="two_processes")
    done = project.run("training/train.py", *WRITERS[variant](tmp_path).flags, *TWO, *SHORT)
    assert done.stdout.count("run folder: ") == 1
    assert len(project.runs()) == 1
    assert_metrics_are_those_of_one_process(project)


def test_splits_of_odd_sizes_and_batch_normalisation_give_the_metrics_of_one_process(
    bake: Bake, tmp_path: Path
) -> None:
    """Nine pictures in batches of four are three batches in one process, and two and one in two."""
    pictures, targets = digits(32)
    for split, first, count in (("train", 0, 96), ("val", 96, 9), ("test", 105, 13)):
        for i in range(first, first + count):
            file = tmp_path / split / str(targets[i] % 2) / f"{i:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[i]).save(file)
    project = bake(fresh=True, variant="image-folder", project_name="odd")
    flags = [f"--data.data_dir={tmp_path}", "--data.batch_size=4", "--trainer.max_epochs=1", "--trainer.logger=false"]
    project.run("training/train.py", *flags, *TWO)
    assert_metrics_are_those_of_one_process(project)


@pytest.fixture(scope="module")
def undisturbed(bake: Bake) -> tuple[Project, Path]:
    """A project, and its run in two processes that nothing has disturbed."""
    project = bake(fresh=True, project_name="undisturbed")
    project.run("training/train.py", *TWO, *EPOCHS)
    return project, project.runs()[-1]


class Launched(Runner):
    """Runs the script in two processes that torchrun starts, and starts again when one of them dies."""

    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3")


def test_torchrun_sets_the_number_of_processes(bake: Bake) -> None:
    project = bake(fresh=True, project_name="launched")
    runner = Launched(project.path, [])
    assert runner.to_the_end("--trainer.max_epochs=2", "--trainer.accelerator=cpu") == 0, runner.output
    (folder,) = project.runs()
    # 1,257 samples in batches of 64 are 20 steps for one process, and 10 for each of two.
    assert max(int(row["step"]) for row in rows(folder) if row["train/loss"]) == 19
    assert runner.output.count("run folder: ") == 1
    assert_metrics_are_those_of_one_process(project)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.xdist_group("undisturbed")
def test_torchrun_restarts_a_killed_process_and_the_run_is_resumed_exactly(undisturbed: tuple[Project, Path]) -> None:
    project, reference = undisturbed
    runner = Launched(project.path, [])
    before = project.runs()
    process = runner.start(*EPOCHS, "--trainer.accelerator=cpu")
    runner.until_fitting(process, resumed=False)
    folder = project.runs()[-1]
    runner.until_file(process, folder / "checkpoints" / "last.ckpt")
    os.kill(max(processes_of(runner.project) - {process.pid}), signal.SIGKILL)
    assert runner.finish(process) == 0, runner.output
    assert "resuming" in runner.output
    assert project.runs() == [*before, folder]
    assert compare(reference, folder) == []
    wait_until_gone(project.path)


def test_tasks_of_slurm_train_one_run(bake: Bake) -> None:
    project = bake(fresh=True, project_name="tasks")
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    where = {"SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(project.path / "training" / "train.py"), "--trainer.max_epochs=2"],
            env=os.environ | job | where | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    (folder,) = project.runs()
    assert max(int(row["step"]) for row in rows(folder) if row["train/loss"]) == 19
    assert [output.count("run folder: ") for output in outputs] == [1, 0]


class Host:
    """A network namespace with a project of its own: nothing is shared with the other host but the network."""

    def __init__(self, project: Project, namespace: str, rank: int) -> None:
        self.project, self.namespace, self.rank = project, namespace, rank

    def start(self, *flags: str) -> subprocess.Popen[str]:
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={self.rank}", "--nproc_per_node=1"]
        where = ["--master_addr=10.99.0.1", "--master_port=29500", str(self.project.path / "training" / "train.py")]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, sys.executable, *torchrun, *where, *flags],
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "GLOO_SOCKET_IFNAME": self.namespace},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )


@pytest.fixture
def network() -> Iterator[list[str]]:
    """Two network namespaces that a cable connects, each with a device of its own name."""
    names = [f"host{os.getpid()}{end}" for end in "ab"]
    commands = [
        *(f"ip netns add {name}" for name in names),
        f"ip link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}",
        *(f"ip -n {name} address add 10.99.0.{i + 1}/24 dev {name}" for i, name in enumerate(names)),
        *(f"ip -n {name} link set {device} up" for name in names for device in ("lo", name)),
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    yield names
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_two_hosts_train_one_run_and_need_a_shared_folder_to_resume_it(bake: Bake, network: list[str]) -> None:
    hosts = [Host(bake(fresh=True, project_name="hosts"), name, rank) for rank, name in enumerate(network)]
    flags = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    started = [host.start(*flags) for host in hosts]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [len(host.project.runs()) for host in hosts] == [1, 0]
    assert [output.count("run folder: ") for output in outputs] == [1, 0]
    assert_metrics_are_those_of_one_process(hosts[0].project)

    (run,) = hosts[0].project.runs()
    started = [hosts[0].start("--resume", run.name, "--trainer.max_epochs=3"), hosts[1].start(*flags)]
    outputs = [process.communicate()[0] for process in started]
    assert all(process.returncode for process in started)
    assert any("share" in line for output in outputs for line in output.splitlines() if "error: " in line), outputs


def test_two_hosts_with_workers_train_one_run(bake: Bake, network: list[str], tmp_path: Path) -> None:
    bakes = [bake(fresh=True, variant="image-folder", project_name="hosts_with_workers") for _ in network]
    hosts = [Host(project, name, rank) for rank, (project, name) in enumerate(zip(bakes, network, strict=True))]
    data = [*WRITERS["image-folder"](tmp_path).flags, "--data.batch_size=8"]
    started = [host.start(*data, *SHORT, "--data.num_workers=2", "--trainer.accelerator=cpu") for host in hosts]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert [len(host.project.runs()) for host in hosts] == [1, 0]
    assert_metrics_are_those_of_one_process(hosts[0].project)
    for host in hosts:
        wait_until_gone(host.project.path)


def test_number_of_processes_that_differs_from_the_launchers_is_refused(bake: Bake) -> None:
    project = bake(project_name="refused_devices")
    launched = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    done = project.run("training/train.py", "--trainer.devices=3", status=2, **launched)
    assert "trainer.devices 3" in done.stderr and "2 processes" in done.stderr


def processes_of(project: Path) -> set[int]:
    """The processes that run a script of a project."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(project).encode() in command and b"train.py" in command:
                found.add(int(entry.name))
    return found


def wait_until_gone(project: Path) -> None:
    deadline = time.monotonic() + 60
    while processes_of(project) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of(project)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.xdist_group("undisturbed")
@pytest.mark.parametrize("to", ["the first process", "all processes"])
def test_signal_ends_all_processes_and_the_run_is_resumed_exactly(undisturbed: tuple[Project, Path], to: str) -> None:
    project, reference = undisturbed
    runner = Runner(project.path, [])
    process = runner.start(*TWO, *EPOCHS)
    runner.until_fitting(process, resumed=False)
    folder = project.runs()[-1]
    runner.until_file(process, folder / "checkpoints" / "last.ckpt")
    if to == "the first process":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    assert runner.finish(process) == (143 if to == "the first process" else 130), runner.output
    assert "Traceback" not in runner.output
    assert runner.output.count("resume with: ") == 1
    wait_until_gone(project.path)
    project.run("training/train.py", "--resume")
    assert compare(reference, folder) == []


NAN_IN_ONE_PROCESS = """
from lightning import Callback


class SpoilOneProcess(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            batch[0].fill_(float("nan"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nan_in_one_process_ends_all_with_one_sentence(bake: Bake) -> None:
    project = bake(fresh=True, project_name="spoiled")
    (project.path / "training" / "spoil.py").write_text(NAN_IN_ONE_PROCESS, encoding="utf-8")
    runner = Runner(project.path, [])
    assert runner.to_the_end(*TWO, "--trainer.callbacks=training.spoil.SpoilOneProcess") == 1
    errors = [line for line in runner.output.splitlines() if "error: " in line]
    assert len(set(errors)) == 1 and "the loss is nan at step" in errors[0], runner.output
    assert "Traceback" not in runner.output
    wait_until_gone(project.path)
    for file in (project.runs()[-1] / "checkpoints").glob("*.ckpt"):
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(weights.isfinite().all() for weights in state.values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_process_ends_the_others_with_the_command_to_resume(bake: Bake) -> None:
    runner = Runner(bake(fresh=True, project_name="bereft").path, [])
    process = runner.start(*TWO, "--trainer.max_epochs=2000", "--model.scheduler=none", "--trainer.logger=false")
    runner.until_fitting(process, resumed=False)
    runner.until_file(process, runs(runner.project)[-1] / "checkpoints" / "last.ckpt")
    (child,) = processes_of(runner.project) - {process.pid}
    os.kill(child, signal.SIGKILL)
    assert runner.finish(process) == 1, runner.output
    assert "error: another process of the run has exited: resume with --resume" in runner.output
    assert "Traceback" not in runner.output
    wait_until_gone(runner.project)


RHYTHM = """
from types import SimpleNamespace
from training.engine import processes

clock = 0.0
processes.time = SimpleNamespace(monotonic=lambda: clock)
processes.largest = lambda trainer, *values: list(values)
rhythm, two = processes.Rhythm(), SimpleNamespace(world_size=2)
for seconds in (0.001, 2.0):
    agreed = 0
    for _ in range(300):
        clock += seconds
        if rhythm.is_due(two, False):
            agreed += 1
            rhythm.restart(two)
    print(agreed)
"""


def test_processes_agree_after_each_slow_step_and_after_one_of_many_fast_ones(bake: Bake) -> None:
    fast, slow = map(int, bake(variant="digits-cnn").run("-c", RHYTHM).stdout.split())
    assert 2 <= fast <= 10
    assert slow >= 250
