"""The long form of the tests beside it: `python tests/faults/torture.py [--kills 60] [--seed 0] [--variants NAME...]`.

Bakes every variant, and a project with plain Lightning classes pasted in. Trains each undisturbed, and then again under
SIGKILLs at random instants, resuming after each. Then trains several seeds undisturbed, and again while its sweep
processes, trials, or both are killed. The last two lines tell the kills, the resumes, the runs that ended with other
weights or metrics, and the checkpoints that could not be read; and, of sweeps, the trials that are missing or were
trained twice. The exit status is 1 if there were any of these.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cookiecutter.main import cookiecutter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_any_code import DATA, MODEL, fill

from conftest import TEMPLATE, VARIANTS, Project
from data_files import WRITERS
from faults.kills import Report, Runner, compare, runs, survive

FLAGS = [
    "--trainer.max_epochs=4",
    "--trainer.limit_train_batches=12",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.log_every_n_steps=1",
    "--checkpoint_minutes=0.001",
]
SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "workers, moving average": ["--data.num_workers=2", "--trainer.callbacks=EMAWeightAveraging"],
    "accumulated gradients, cosine": ["--trainer.accumulate_grad_batches=3", "--model.scheduler=cosine"],
    "constant rate": ["--model.scheduler=none"],
}
PASTED = "pasted classes"
PLAIN_SETTINGS = {
    "as it is": [],
    "moving average": ["--trainer.callbacks=EMAWeightAveraging"],
    "accumulated gradients": ["--trainer.accumulate_grad_batches=3"],
}
SEEDS = 4


class SweepRunner:
    """Runs `training/sweep.py` of a project, and kills it and its trials."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.command = [sys.executable, str(project / "training" / "sweep.py"), "--seeds", str(SEEDS), "--jobs", "2"]

    def folder(self, name: str) -> Path:
        return self.project / "logs" / "sweeps" / name

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start the sweep and wait until its trials run."""
        process = subprocess.Popen(
            [*self.command, "--name", name, *FLAGS, "--trainer.max_epochs=30"],  # longer than a process takes to start
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        assert process.stdout is not None
        while (line := process.stdout.readline()) and not line.startswith("to resume"):
            pass
        return process

    def to_the_end(self, name: str) -> float:
        """Run the sweep until it is finished; return the seconds that this took."""
        process = self.start(name)
        begun = time.monotonic()
        output, _ = process.communicate()
        if process.returncode:
            raise AssertionError(output)
        return time.monotonic() - begun

    def kill(self, name: str, sweeps: list[subprocess.Popen[str]], what: str) -> None:
        """Send SIGKILL to the sweep processes, to the trials, or to both."""
        if what != "trials":
            for sweep in sweeps:
                sweep.kill()
        mark = f"SWEEP_RUN={self.folder(name)}{os.sep}".encode()
        for file in Path("/proc").glob("[0-9]*/environ") if what != "sweeps" else []:
            with suppress(OSError):  # a process of somebody else, or one that has ended
                if mark in file.read_bytes():
                    os.kill(int(file.parent.name), signal.SIGKILL)

    def faults(self, reference: str, name: str) -> dict[str, int]:
        """Number of trials of a sweep that are missing, were trained twice, or differ from those of another one."""
        with open(self.folder(name) / "results.csv", newline="", encoding="utf-8") as text:
            numbers = [int(row["number"]) for row in csv.DictReader(text) if row["state"] == "finished"]
        logs = [file.read_text(encoding="utf-8") for file in self.folder(name).glob("*.log") if file.stem.isdigit()]
        runs = [f"{number:04}" for number in numbers]
        found = {run: compare(self.folder(reference) / run, self.folder(name) / run) for run in runs}
        # A process that is killed after the test leaves a finished run that lacks pictures.
        differing = [run for run in runs if any(not each.startswith("files ") for each in found[run])]
        return {
            "trials lost": SEEDS - len(set(numbers)),
            "doubled": len(numbers) - len(set(numbers)) + sum(log.count("best epoch: ") > 1 for log in logs),
            "mismatches": len(differing),
        }


def torture_sweeps(project: Path, kills: int, rng: random.Random) -> Counter[str]:
    """Kill sweeps at random instants, one or two processes of each at a time; return the counts."""
    runner, total = SweepRunner(project), Counter[str]()
    seconds = runner.to_the_end("reference")
    while total["kills"] < kills:
        total["sweeps"] += 1
        name = f"killed-{total['sweeps']}"
        for _ in range(8):
            before = total["kills"]
            sweeps = [runner.start(name) for _ in range(rng.choice([1, 2]))]
            while any(sweep.poll() is None for sweep in sweeps):
                time.sleep(rng.uniform(0, seconds / 8))
                total["kills"] += any(sweep.poll() is None for sweep in sweeps)
                runner.kill(name, sweeps, rng.choice(["sweeps", "trials", "both"]))
                time.sleep(0.1)  # until killed processes have ended
            if total["kills"] == before:
                break  # it is finished
        runner.to_the_end(name)
        total.update(runner.faults("reference", name))
        print(f"sweeps: {dict(total)}", flush=True)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="at least; a run takes three at a time")
    parser.add_argument("--sweep_kills", type=int, default=20, help="at least, of sweeps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instants")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, PASTED], default=[*VARIANTS, PASTED])
    options = parser.parse_args()
    rng, report, rounds = random.Random(options.seed), Report(), Counter[str]()
    with TemporaryDirectory() as folder:
        projects: dict[str, tuple[Path, list[str]]] = {}
        for variant in options.variants:
            name = f"tortured_{variant.replace('-', '_')}"
            answers = {"project_name": name.replace(" ", "_"), "variant": VARIANTS[0] if variant == PASTED else variant}
            project = cookiecutter(str(TEMPLATE), no_input=True, output_dir=folder, extra_context=answers)
            if variant == PASTED:
                fill(Project(Path(project), Path(folder)), f"{MODEL}    pass\n", f"{DATA}    pass\n")
                projects[variant] = (Path(project), [])
                continue
            data = Path(folder, f"data_{name}")
            data.mkdir()
            projects[variant] = (Path(project), WRITERS[variant](data).flags)
        while report.kills < options.kills:
            variant = min(projects, key=lambda name: rounds[name])
            settings = PLAIN_SETTINGS if variant == PASTED else SETTINGS
            setting = list(settings)[(rounds[variant] + options.variants.index(variant)) % len(settings)]
            rounds[variant] += 1
            project, flags = projects[variant]
            runner = Runner(project, [*flags, *FLAGS, *settings[setting]])
            if runner.to_the_end(*runner.flags):
                sys.exit(runner.output)
            reference = runs(runner.project)[-1]
            survived = survive(runner, 3, runner.seconds, signal.SIGKILL, report, rng)
            found = compare(reference, survived)
            report.mismatches += bool(found)
            print(f"{variant}, {setting}: {', '.join(found) or 'the same'} ({report})", flush=True)
        project = cookiecutter(
            str(TEMPLATE), no_input=True, output_dir=folder, extra_context={"project_name": "tortured_sweep"}
        )
        sweeps = torture_sweeps(Path(project), options.sweep_kills, rng)
    print(report)
    print("sweeps:", ", ".join(f"{name} {count}" for name, count in sweeps.items()))
    faults = sweeps["trials lost"] + sweeps["doubled"] + sweeps["mismatches"]
    sys.exit(bool(report.mismatches or report.unreadable or faults))


if __name__ == "__main__":
    main()
