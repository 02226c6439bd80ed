"""The trials of a sweep, each a run of its own in a process of its own.

A trial belongs to the sweep process that holds its lock. So an unfinished trial whose lock is free was interrupted, and
is resumed.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from training.engine.files import read_json, write_json
from training.engine.parser import refuse
from training.engine.run_folder import ROOT, discard_run
from training.sweeps.plan import Plan, as_flags
from training.sweeps.results import is_locked, read_rows, write_results

TRAIN = ROOT / "training" / "train.py"
POLL = 0.5  # seconds


@dataclass
class Job:
    """A trial that this process manages.

    Attributes:
        run: Run folder.
        reported: Epochs whose metric the study knows.
        signals: Number of signals that were passed on.
        pruned: Whether the process was told to end because other trials are better.
        retried: Whether the trial was started a second time. This is done once, if the first process could not lock the
            run because a process of a killed sweep still used it.
    """

    number: int
    params: dict[str, Any]
    run: Path
    lock: FileLock
    reported: set[int]
    process: subprocess.Popen[bytes] | None = None
    signals: int = 0
    pruned: bool = False
    progress: str = ""
    retried: bool = False


class Sweep:
    """An Optuna study, and those of its trials that this process manages.

    Args:
        plan: The trials to train.
        storage: URL of a database; None keeps the results in the folder of the sweep.
        pruner: Decides which trials end early.

    Attributes:
        signals: The signals that this process has received.
        interrupted: Number of trials that ended early for other reasons than pruning.
    """

    def __init__(self, plan: Plan, storage: str | None, pruner: BasePruner) -> None:
        """Open the study; exit with status 2 if it was started with other settings."""
        self.plan = plan
        self.signals: list[int] = []
        self.interrupted = 0
        self.claimed: set[int] = set()
        plan.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(plan.folder / ".lock")
        with self.lock:
            file, now = plan.folder / "sweep.json", plan.settings()
            before = read_json(file)
            if changed := [key for key in now if before and before[key] != now[key]]:
                refuse(f"sweep {plan.folder.name} was begun with other {', '.join(changed)}: use another --name")
            write_json(file, now | {"trials": max(plan.total, before.get("trials", 0))})
            self.storage: BaseStorage = RDBStorage(storage) if storage else open_journal(plan.folder / "journal.log")
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=plan.folder.name,
                direction=plan.direction,
                pruner=pruner,
                load_if_exists=True,
            )
            write_results(self.study, plan.folder)

    def claim(self) -> Job | None:
        """Take a trial that no process looks after, or begin one; return None if there is nothing to do."""
        with self.lock:
            trials = self.study.get_trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and trial.number not in self.claimed and (job := self.take(trial)):
                    return job
            if len(trials) >= self.plan.total:
                return None
            # A trial is written as one record, so that a killed process cannot leave an incomplete trial.
            self.study.add_trial(self.plan.next_trial(trials))
            write_results(self.study, self.plan.folder)
            return self.take(self.study.get_trials()[-1])

    def take(self, trial: FrozenTrial) -> Job | None:
        """Lock a trial for this process, unless another process looks after it."""
        run = ROOT / trial.user_attrs["run"]
        lock = FileLock(run.with_name(f".{run.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        self.claimed.add(trial.number)
        return Job(trial.number, trial.params, run, lock, set(trial.intermediate_values))

    def train(self, jobs_at_once: int) -> None:
        """Run trials until there is nothing left to do, or a signal comes."""
        jobs: list[Job] = []
        try:
            with Console().status("") as status:  # on a terminal only
                while True:
                    while len(jobs) < jobs_at_once and not self.signals and (job := self.claim()):
                        jobs.append(job)
                    if not jobs:
                        return
                    jobs = [job for job in jobs if not self.advance(job)]
                    status.update("  ".join(job.progress for job in jobs))
                    time.sleep(POLL)
        finally:
            for job in jobs:  # after an error
                if job.process:
                    job.process.terminate()
                    job.process.wait()

    def advance(self, job: Job) -> bool:
        """Do the next step of a trial, and return whether this process is done with it."""
        process = job.process
        lives = process is not None and process.poll() is None
        worse = self.report(job)
        if process and lives:
            if worse and not job.pruned:
                job.pruned = True
                process.terminate()
            if job.signals < len(self.signals):
                job.signals = len(self.signals)
                # SLURM's signal would make each trial requeue the job, which this process does once.
                process.send_signal(signal.SIGINT if self.signals[-1] == signal.SIGINT else signal.SIGTERM)
            return False
        locked, about = is_locked(job.run / ".lock"), read_json(job.run / "run.json")
        if about.get("state") == "finished" and not locked:
            self.finish(job)
        elif self.signals:
            job.lock.release()
        elif locked:
            return False  # a process that a killed sweep has started still trains this run
        elif process is None:
            self.start(job)
            return False
        elif process.returncode in (130, 143) or process.returncode < 0:
            self.end_early(job, process.returncode)
        elif about and about["process"]["id"] != process.pid and not job.retried:
            job.process, job.retried = None, True
            return False
        else:
            self.tell(job, TrialState.FAIL, None, last_error(job.run.with_suffix(".log")))
        return True

    def start(self, job: Job) -> None:
        """Start or resume the run of a trial."""
        discard_run(job.run)  # left by a process that was killed before training started
        begun = (job.run / "run.json").exists()
        flags = ["--resume", str(job.run)] if begun else [*self.plan.flags, *as_flags(job.params)]
        with open(job.run.with_suffix(".log"), "ab") as output:
            job.process = subprocess.Popen(
                [sys.executable, str(TRAIN), *flags],
                env=os.environ | {"SWEEP_RUN": str(job.run)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that it gets Ctrl-C once, from this process
            )

    def report(self, job: Job) -> bool:
        """Report the metric of each new epoch to the study; return whether the pruner would stop the trial."""
        worse = False
        for row in read_rows(job.run / "metrics.csv"):
            if row.get(self.plan.monitor) and row.get("epoch") and int(row["epoch"]) not in job.reported:
                epoch, value = int(row["epoch"]), float(row[self.plan.monitor])
                job.reported.add(epoch)
                job.progress = f"trial {job.number}: epoch {epoch}, {self.plan.monitor} {value:.4f}"
                trial = self.trial(job)
                trial.report(value, epoch)
                worse = worse or trial.should_prune()
        return worse

    def trial(self, job: Job) -> Trial:
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(study, job.number))

    def finish(self, job: Job) -> None:
        """Tell the study the best value of the metric of a finished run."""
        checkpoint = torch.load(job.run / "checkpoints" / "best.ckpt", mmap=True, weights_only=True)
        value = checkpoint["callbacks"]["Checkpoints"]["best_score"]
        if value is None:
            self.tell(job, TrialState.FAIL, None, f"the run logged no {self.plan.monitor}: use another --monitor")
        else:
            self.tell(job, TrialState.COMPLETE, value, f"{self.plan.monitor} {value:.4f}")

    def end_early(self, job: Job, status: int) -> None:
        if job.pruned:
            self.tell(job, TrialState.PRUNED, None, f"pruned after epoch {max(job.reported)}")
            return
        self.interrupted += 1
        print(f"trial {job.number} ended early, with status {status}; the same command resumes it", flush=True)
        job.lock.release()

    def tell(self, job: Job, state: TrialState, value: float | None, text: str) -> None:
        with self.lock:
            if state == TrialState.FAIL:
                self.trial(job).set_user_attr("error", text)
            self.study.tell(job.number, value, state)
            write_results(self.study, self.plan.folder)
        job.lock.release()
        print(f"trial {job.number} ({' '.join(as_flags(job.params))}): {text}", flush=True)


def open_journal(file: Path) -> JournalStorage:
    """Open the results, without the part of a record that a full disk or a power cut may have left."""
    lock = FileLock(f"{file}.lock")  # unlike Optuna's own, it is free when its process is killed
    with lock:
        content = file.read_bytes() if file.exists() else b""
        if not content.endswith(b"\n"):
            file.write_bytes(content[: content.rfind(b"\n") + 1])
    return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))  # type: ignore[arg-type]


def last_error(log: Path) -> str:
    """The error that a process printed last: a sentence, or the last line of a traceback."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["the process has printed nothing"])[-1]
