"""Measure how the cost of a project grows with rows, parameters, runs, files, trials and processes: `costs.py`.

A default project is baked into a temporary folder. Each figure is the median of `--times` measurements on one thread.
docs/larger.md holds a table that this program printed.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import torch
from optuna.storages.journal import JournalFileBackend, JournalStorage
from torch import distributed, multiprocessing

TEMPLATE = Path(__file__).resolve().parent.parent
Row = tuple[str, str, str]


def seconds(work: Callable[[], Any], times: int) -> float:
    """The median of the seconds that a function takes."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return median(taken)


def metrics_rows(folder: Path, times: int) -> Iterator[Row]:
    from training.engine.metrics_file import MetricsFile

    for count in (1_000, 1_000_000):
        file = folder / f"{count}.csv"
        log = MetricsFile(file, count)
        log.log_metrics({"train/lr": 0.001234, "train/loss": 0.123456}, 0)
        with open(file, "a", encoding="utf-8") as text:
            text.writelines(f"{step},0.001234,0.123456\n" for step in range(1, count))
        taken = seconds(partial(log.log_metrics, {"train/loss": 0.123456}, 1), 100 * times)
        size = f"{file.stat().st_size / 1e6:.3g} MB"
        yield "a row of `metrics.csv`", f"{count:,} rows, {size}", f"{1e6 * taken:.0f} us"
        begun = time.perf_counter()
        log.log_metrics({"val/loss": 0.123456}, 2)
        yield "a new column of `metrics.csv`, or a resume", f"{count:,} rows", f"{time.perf_counter() - begun:.2g} s"


def checkpoint_rows(folder: Path, times: int) -> Iterator[Row]:
    from training.engine.checkpoint_files import SafeCheckpointIO, read_checkpoint

    for millions in (1, 10, 100):
        weights = torch.rand(millions * 1_000_000)
        checkpoint = {"state_dict": {"w": weights}, "optimizer_states": [weights.clone(), weights.clone()]}
        file = folder / "model.ckpt"
        saved = seconds(partial(SafeCheckpointIO().save_checkpoint, checkpoint, file), times)
        read = seconds(partial(read_checkpoint, file), times)
        size = f"{file.stat().st_size / 1e6:,.0f} MB"
        yield f"a checkpoint of {millions} million parameters with Adam", size, f"{saved:.2g} s, read {read:.2g} s"


def run_rows(folder: Path, times: int) -> Iterator[Row]:
    from training.engine.files import write_json
    from training.engine.run_folder import find_run, new_run

    for count in (100, 10_000):
        logs = folder / f"logs{count}"
        for i in range(count):
            run = logs / f"2026-01-{1 + i // 1000:02}_00-00-00-{i:06}"
            run.mkdir(parents=True)
            write_json(run / "run.json", {"state": "unfinished", "packages": {}})

        def name_and_find(logs: Path = logs) -> None:
            new_run(logs)
            find_run(logs, "")

        taken = seconds(name_and_find, times)
        yield "naming a new run, and finding the newest", f"{count:,} runs", f"{taken:.2g} s"


def data_rows(folder: Path, times: int) -> Iterator[Row]:
    from training.engine.files import fingerprint

    table = folder / "table.csv"
    table.write_bytes(os.urandom(100_000_000))
    yield "digest of a data file", "100 MB", f"{seconds(lambda: fingerprint(table), times):.2g} s"
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(10_000):
        (pictures / f"{i}.png").touch()
    yield "digest of a data folder", "10,000 files", f"{seconds(lambda: fingerprint(pictures), times):.2g} s"


def trial_rows(folder: Path, times: int) -> Iterator[Row]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: Any = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("a", "b", "c")}
    for count in (10, 1_000):
        file = folder / f"journal{count}.log"
        study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(file))), study_name="costs")
        for i in range(count):
            trial = study.ask(space)
            trial.set_user_attr("run", f"{i:04}")
            for step in range(10):
                trial.report(step, step)
            study.tell(trial, i)
        size = f"{file.stat().st_size / count / 1000:.2g} kB a trial"

        def load(file: Path = file) -> None:
            optuna.load_study(storage=JournalStorage(JournalFileBackend(str(file))), study_name="costs").ask(space)

        yield f"reading {count:,} trials and choosing the next", size, f"{seconds(load, times):.2g} s"


def agree_often(rank: int, processes: int, file: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=processes)
    flags = torch.zeros(3, dtype=torch.int32)
    taken = seconds(lambda: distributed.all_reduce(flags), 1000)
    if rank == 0:
        Path(f"{file}.result").write_text(str(taken), encoding="utf-8")
    distributed.destroy_process_group()


def process_rows(folder: Path, times: int) -> Iterator[Row]:
    for processes in (2, 4):
        file = folder / f"store{processes}"
        multiprocessing.spawn(agree_often, (processes, str(file)), nprocs=processes)  # type: ignore[no-untyped-call]
        taken = float(Path(f"{file}.result").read_text(encoding="utf-8"))
        yield "agreement whether to stop, each step (gloo)", f"{processes} processes", f"{1e6 * taken:.0f} us"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="measurements of each figure")
    times = parser.parse_args().times
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        bake = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "--output-dir", name]
        subprocess.run(bake, check=True, capture_output=True)
        sys.path.insert(0, str(folder / "my_project"))
        print("| what | size | cost |\n|---|---|---|", flush=True)
        for rows in (metrics_rows, checkpoint_rows, run_rows, data_rows, trial_rows, process_rows):
            for row in rows(folder, times):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
