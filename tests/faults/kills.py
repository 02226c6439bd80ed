"""Kills runs at random instants, resumes them, and compares what they leave with an uninterrupted run."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from forked import Forked

RESUMED = "resuming"  # what train.py prints before a resumed run trains


@dataclass
class Report:
    """The counts of kills and of their results."""

    kills: int = 0
    resumes: int = 0
    mismatches: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        return (
            f"kills {self.kills}, resumes {self.resumes}, mismatches {self.mismatches},"
            f" unreadable checkpoints {self.unreadable}"
        )


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """The places in which two nested structures of plain values and tensors are not the same, bit for bit."""
    if type(first) is not type(second):
        return [where]
    if isinstance(first, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        return [] if same and torch.equal(first.view(-1), second.view(-1)) else [where]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{where}: {set(first) ^ set(second)}"]
        return [found for key in first for found in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [where]
        pairs = enumerate(zip(first, second, strict=True))
        return [found for i, (a, b) in pairs for found in differences(a, b, f"{where}/{i}")]
    return [] if first == second else [where]


def load(file: Path) -> dict[str, Any]:
    """The parts of a checkpoint from which training is resumed, without the paths of its folder."""
    checkpoint = torch.load(file, weights_only=True)
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    return {part: checkpoint.get(part) for part in (*parts, "epoch")}


def compare(first: Path, second: Path) -> list[str]:
    """Differences of two run folders in weights, optimizers, metrics, or the files that are there."""
    found = []
    for name in ("best.ckpt", "last.ckpt"):
        found += differences(load(first / "checkpoints" / name), load(second / "checkpoints" / name), name)
    for name in ("metrics.csv", "test_metrics.json"):
        files = [run / name for run in (first, second) if (run / name).exists()]  # below it is seen if one is missing
        if len({file.read_text(encoding="utf-8") for file in files}) > 1:
            found.append(name)
    names = [
        sorted(str(path.relative_to(run)) for path in run.rglob("*") if "tensorboard" not in path.parts)
        for run in (first, second)
    ]
    if names[0] != names[1]:
        found.append(f"files {set(names[0]) ^ set(names[1])}")
    return found


Process = subprocess.Popen[str] | Forked


class Runner:
    """Runs `training/train.py` of a project, and kills it if it is told to.

    Args:
        project: The project's folder.
        flags: Flags of every run.
    """

    def __init__(self, project: Path, flags: list[str]) -> None:
        self.project, self.flags = project, flags
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    launcher: Sequence[str] = ()  # arguments of Python before the script

    def start(self, *more: str) -> Process:
        return subprocess.Popen(
            [sys.executable, "-u", *self.launcher, str(self.project / "training" / "train.py"), *more],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def until_fitting(self, process: Process, resumed: bool) -> None:
        """Wait until training begins: a new run then has a folder, a resumed one prints that it is resumed."""
        assert process.stdout is not None
        self.output = ""
        before = len(runs(self.project))
        while not resumed and process.poll() is None and len(runs(self.project)) == before:
            time.sleep(0.01)
        while resumed and (line := process.stdout.readline()):
            self.output += line
            if line.startswith(RESUMED):
                break

    def until_file(self, process: Process, file: Path) -> None:
        """Wait until a file exists, or the process has exited."""
        while process.poll() is None and not file.exists():
            time.sleep(0.01)

    def to_the_end(self, *flags: str) -> int:
        """Run the script without disturbing it; return its exit status, and keep the duration of training."""
        process = self.start(*flags)
        self.until_fitting(process, "--resume" in flags)
        begun = time.monotonic()
        status = self.finish(process)
        self.seconds = time.monotonic() - begun
        return status

    def finish(self, process: Process) -> int:
        assert process.stdout is not None
        self.output += process.stdout.read()
        return process.wait()

    def killed(self, delay: float, number: int, *more: str) -> bool:
        """Send a signal `delay` seconds after training began; return whether it arrived before the end."""
        process = self.start(*more)
        self.until_fitting(process, "--resume" in more)
        reader = threading.Thread(target=self.finish, args=[process])
        reader.start()
        reader.join(delay)
        early = reader.is_alive()
        if early:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, number)
        reader.join()
        self.status = process.wait()
        return early and self.status != 0


class ForkedRunner(Runner):
    """Runs the script in processes that have imported PyTorch and Lightning already."""

    def start(self, *more: str) -> Process:
        return Forked(str(self.project / "training" / "train.py"), list(more), self.environment)


def slurm_job(folder: Path) -> tuple[dict[str, str], Path]:
    """Variables of a SLURM job, and the file in which its `scontrol` writes what it was called with."""
    called, scontrol = folder / "called", folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {called}\n', encoding="utf-8")
    scontrol.chmod(0o755)
    variables = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_NODELIST": "localhost",
    }
    return variables, called


def runs(project: Path) -> list[Path]:
    return sorted(file.parent for file in (project / "logs").glob("*/run.json"))


def survive(runner: Runner, kills: int, seconds: float, number: int, report: Report, rng: random.Random) -> Path:
    """Interrupts one run `kills` times, spread over `seconds` of training, and lets it finish; returns its folder."""
    before = set(runs(runner.project))
    more = [*runner.flags]
    for _ in range(kills):
        interrupted = runner.killed(rng.uniform(0, seconds / (kills + 1) * 2), number, *more)
        (folder,) = set(runs(runner.project)) - before
        if not interrupted:
            if runner.status:
                raise AssertionError(runner.output)
            return folder
        report.kills += 1
        for file in (folder / "checkpoints").glob("*.ckpt"):
            try:
                torch.load(file, weights_only=True)
            except Exception as error:
                print(f"{file}: {error}")
                report.unreadable += 1
        more = ["--resume", folder.name]
        report.resumes += 1
    if runner.to_the_end(*more):
        raise AssertionError(runner.output)
    (folder,) = set(runs(runner.project)) - before
    return folder


def describe(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))
