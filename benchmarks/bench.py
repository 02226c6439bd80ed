"""Measures the baked projects against other programs, in turn: `bench.py [--pairs 5] [--only ROW ...]`.

Each figure is the median of the ratios of pairs of runs, with the range; each run has its own process and a fixed
number of threads. `make bench` writes the table to RESULTS.md beside this file. Fashion-MNIST is read from `--data`,
a folder with its four files, gzipped or not: Debian's package dataset-fashion-mnist has them.
"""

import argparse
import csv
import gzip
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from shutil import copytree, ignore_patterns
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parent
sys.path.insert(0, str(TEMPLATE / "tests"))

from data_files import write_idx  # noqa: E402

Pairs = list[tuple[float, float]]
GPU = "No GPU was measured: `gpu.py` beside this file does that."
THREADS = 2  # of the runs that are timed as a whole; all others have one


@dataclass
class Row:
    """A figure: of each pair the project's value and the other program's, and how they are compared."""

    figure: str
    against: str
    goal: str
    pairs: Pairs
    unit: str
    faster: bool = False  # tells how many times less the project takes, instead of how many times more

    def __str__(self) -> str:
        ratios = sorted(other / own if self.faster else own / other for own, other in self.pairs)
        own, other = (median(values) for values in zip(*self.pairs, strict=True))
        reached = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        cells = (self.figure, self.against, self.goal, reached, f"{own:.4g} {self.unit}", f"{other:.4g} {self.unit}")
        return f"| {' | '.join(cells)} |"


class Bench:
    """Bakes projects, makes data, and runs programs."""

    def __init__(self, folder: Path, source: Path, pairs: int) -> None:
        self.folder, self.source, self.count = folder, source, pairs
        self.notes: list[str] = []

    def bake(self, variant: str) -> Path:
        project = self.folder / variant.replace("-", "_")
        if not project.exists():
            answers = [f"variant={variant}", f"project_name={project.name}"]
            self.python("-m", "cookiecutter", TEMPLATE, "--no-input", "-o", self.folder, *answers)
        return project

    def fashion(self) -> Path:
        """A folder that has Fashion-MNIST where each of the programs looks for it."""
        for name in ("MNIST", "FashionMNIST"):
            raw = self.folder / "fashion" / name / "raw"
            if not raw.exists():
                raw.mkdir(parents=True)
                for file in sorted(self.source.glob("*-ubyte*")):
                    content = file.read_bytes()
                    (raw / file.name.removesuffix(".gz")).write_bytes(
                        gzip.decompress(content) if file.suffix == ".gz" else content
                    )
        return self.folder / "fashion"

    def python(self, *arguments: object, status: int = 0, threads: int = 1) -> tuple[float, str]:
        """Seconds that a Python program takes, from its start to its end, and what it prints."""
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "120"}
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        seconds = time.perf_counter() - begun
        if done.returncode != status:
            sys.exit(f"error: {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr}")
        return seconds, done.stdout

    def timed(self, *arguments: object, threads: int = 1) -> dict[str, Any]:
        """Return the measurements of `timed.py`, the program's output, and the rows of a project's `metrics.csv`."""
        file = self.folder / "timed.json"
        _, printed = self.python(HERE / "timed.py", file, *arguments, threads=threads)
        run = json.loads(file.read_text(encoding="utf-8")) | {"printed": printed}
        if found := re.search(r"^run folder: (.*)$", printed, re.MULTILINE):
            with open(Path(found[1]) / "metrics.csv", newline="", encoding="utf-8") as text:
                run["metrics"] = list(csv.DictReader(text))
        return run

    def pairs(self, own: Callable[[], Any], other: Callable[[], Any]) -> list[tuple[Any, Any]]:
        return [(own(), other()) for _ in range(self.count)]


def accuracy(printed: str) -> float:
    """The accuracy in what a program printed."""
    line = [line for line in printed.splitlines() if "acc" in line and "best epoch" not in line][-1]
    return float(line.replace("│", " ").split()[-1])


@dataclass
class Race:
    """Default runs of a variant beside a recipe of the notes, with a seed a pair."""

    own: list[dict[str, Any]]
    other: list[dict[str, Any]]

    def accuracies(self) -> tuple[list[float], list[float]]:
        own, other = ([accuracy(run["printed"]) for run in side] for side in (self.own, self.other))
        return own, other

    def rows(
        self, figure: str, recipe: str, goals: tuple[str, str], step: Callable[[dict[str, Any]], int]
    ) -> list[Row]:
        """Times to a step of the own run and to the last one of the recipe: from the first step, and from the start."""
        pairs = [(a, a["times"][step(a)], b, b["times"][-1]) for a, b in zip(self.own, self.other, strict=True)]
        fits: Pairs = [(end - a["first"], last - b["first"]) for a, end, b, last in pairs]
        wholes: Pairs = [(end, last) for _, end, _, last in pairs]
        return [
            Row(f"{figure}, from the first step on", recipe, goals[0], fits, "s", faster=True),
            Row(f"{figure}, with imports", recipe, goals[1], wholes, "s", faster=True),
        ]


def race(bench: Bench, variant: str, script: str, recipe: str) -> Race:
    project, data, seeds = bench.bake(variant), bench.fashion(), range(bench.count)
    train = project / "training" / "train.py"
    runs = [
        (
            bench.timed(train, f"--data.data_dir={data}", f"--seed_everything={seed}", threads=THREADS),
            bench.timed(HERE / script, data, seed, threads=THREADS),
        )
        for seed in seeds
    ]
    found = Race(*map(list, zip(*runs, strict=True)))
    sides = [
        f"mean {mean(side):.4f}, median {median(side):.4f} ({min(side):.4f} to {max(side):.4f})"
        for side in found.accuracies()
    ]
    bench.notes.append(
        f"Test accuracy of `{variant}` on Fashion-MNIST with {len(seeds)} seeds: default run {sides[0]};"
        f" {recipe} {sides[1]}."
    )
    return found


def cnn(bench: Bench) -> Iterator[Row]:
    recipe = "vanilla loop, 10 epochs"
    found = race(bench, "mnist-cnn", "notes_cnn.py", recipe)
    yield from found.rows("`mnist-cnn`, default run", recipe, ("6 or more", "4 or more"), lambda run: -1)


def mlp(bench: Bench) -> Iterator[Row]:
    recipe = "quickstart's loop, 5 epochs"
    found = race(bench, "fashion-mnist-mlp", "notes_mlp.py", recipe)
    reached = mean(found.accuracies()[1])

    def step(run: dict[str, Any]) -> int:
        """The first step after the validation that had the recipe's accuracy, so that the validation is in its time."""
        row = next(row for row in run["metrics"] if float(row["val/acc"] or 0) >= reached)
        return int(row["step"]) + 1

    figure = "`fashion-mnist-mlp` to the same accuracy"
    yield from found.rows(figure, recipe, ("8 or more", "4 or more"), step)
    yield from found.rows("`fashion-mnist-mlp`, default run", recipe, ("-", "-"), lambda run: -1)


def epoch_of(run: dict[str, Any], epochs: int) -> float:
    """Seconds from the first step of the second epoch to that of the third, with validation and checkpoint."""
    steps = run["steps"] // epochs
    return run["times"][2 * steps] - run["times"][steps]


def epochs(bench: Bench) -> Iterator[Row]:
    project, data = bench.bake("mnist-cnn"), bench.fashion()
    flags = [f"--data.data_dir={data}", "--trainer.max_epochs=3"]
    for precision, size, goal in (
        ("32-true", 256, "1.15 or less"),
        ("32-true", 32, "1.35 or less"),
        ("bf16-mixed", 256, "-"),
        ("bf16-mixed", 32, "-"),
    ):
        more = [f"--data.batch_size={size}", f"--trainer.precision={precision}"]
        runs = bench.pairs(
            partial(bench.timed, project / "training" / "train.py", *flags, *more),
            partial(bench.timed, HERE / "lean_loop.py", data, 3, size, precision),
        )
        seconds: Pairs = [(epoch_of(a, 3), epoch_of(b, 3)) for a, b in runs]
        yield Row(f"an epoch of `mnist-cnn`, batch {size}, {precision}", "lean loop", goal, seconds, "s")
    runs = bench.pairs(
        partial(bench.timed, project / "training" / "train.py", f"--data.data_dir={data}"),
        partial(bench.timed, HERE / "lean_loop.py", data, 4, 128, "32-true"),
    )
    peaks: Pairs = [(a["peak"], b["peak"]) for a, b in runs]
    surplus = sorted(own - other for own, other in peaks)
    bench.notes.append(
        f"The peak of a default run's memory is {median(surplus):.0f} MB ({surplus[0]:.0f} to {surplus[-1]:.0f}) above"
        " the lean loop's; the goal is at most 155, the samples once as uint8 and 100."
    )
    yield Row("peak of resident memory, default run", "lean loop", "-", peaks, "MB")


def steps(bench: Bench) -> Iterator[Row]:
    random, count = np.random.default_rng(0), 64 * 1500 * 24 // 23 + 64
    data = bench.folder / "tiny"
    pictures, targets = random.integers(0, 256, (count, 8, 8), dtype=np.uint8), random.integers(0, 10, count)
    write_idx(data / "MNIST" / "raw", pictures, targets, count - 64)
    more = ["--rounds", bench.count, "--metrics", 1, 10, 20]
    _, printed = bench.python(HERE / "steps.py", bench.bake("mnist-cnn"), data, *more)
    times = json.loads(printed.splitlines()[-1])

    def pairs(first: str, second: str) -> Pairs:
        return list(zip(times[first], times[second], strict=True))

    step = "a step of next to no arithmetic"
    yield Row(step, "bare Trainer", "1.35 or less", pairs("project", "bare"), "us")
    yield Row(step, "bare Trainer, batches normalised before", "-", pairs("project", "tensors"), "us")
    yield Row(step, "common logging", "0.5 or less", pairs("project", "common"), "us")
    yield Row(step, "lean loop", "-", pairs("project", "loop"), "us")
    for n in (10, 20):
        more_metrics = pairs(f"project, {n} metrics", "project, 1 metrics")
        yield Row(f"a step, {n} metrics", "1 metric", "flat", more_metrics, "us")


def decoding(bench: Bench) -> Iterator[Row]:
    folder, random = bench.folder / "pictures", np.random.default_rng(0)
    for split, count in (("train", 5000), ("val", 20), ("test", 20)):
        for i in range(count):
            file = folder / split / f"class {i % 10}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
            noise = random.integers(-12, 13, smooth.shape, dtype=np.int16)
            Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(file, quality=90)
    script, project = HERE / "pictures.py", bench.bake("image-folder")

    def seconds(mode: str) -> float:
        return float(bench.python(script, project, folder, mode)[1].split()[-1])

    found = bench.pairs(lambda: seconds("project"), lambda: seconds("torchvision"))
    yield Row("an epoch of 5,000 JPEGs decoded", "ImageFolder, PIL", "1.5 or more", found, "s", faster=True)


def baking(bench: Bench) -> Iterator[Row]:
    small = bench.folder / "small" / "{{cookiecutter.name}}"
    small.mkdir(parents=True)
    (small / "README.md").write_text("{{cookiecutter.name}}\n", encoding="utf-8")
    (small.parent / "cookiecutter.json").write_text('{"name": "small"}', encoding="utf-8")
    one = bench.folder / "one"
    copytree(TEMPLATE, one, ignore=ignore_patterns(".*", "demo", "tests", "benchmarks"))
    questions = json.loads((one / "cookiecutter.json").read_text(encoding="utf-8"))
    default = questions["variant"][0]
    questions["variant"] = [default]
    questions["_variants"] = {default: questions["_variants"][default]}
    (one / "cookiecutter.json").write_text(json.dumps(questions), encoding="utf-8")

    def bake(template: Path) -> float:
        with TemporaryDirectory() as folder:
            return bench.python("-m", "cookiecutter", template, "--no-input", "-o", folder)[0]

    for figure, other, against, goal in (
        ("baking", small.parent, "a template of one file", "1.3 or less"),
        ("baking, 11 variants", one, "1 variant", "flat"),
    ):
        found = [(bake(TEMPLATE), bake(other)) for _ in range(5 * bench.count)]  # short, and easily disturbed
        yield Row(figure, against, goal, found, "s")


def starting(bench: Bench) -> Iterator[Row]:
    script = bench.bake("mnist-cnn") / "training" / "train.py"
    flags = [f"--data.data_dir={bench.fashion()}", "--trainer.max_epochs=1", "--trainer.limit_train_batches=20"]

    def imports(names: str) -> float:
        return bench.python("-c", f"import {names}")[0]

    def to_first_step() -> float:
        run = bench.timed(script, *flags)
        return run["first"]

    runs = bench.pairs(to_first_step, lambda: imports("torch, torchvision, lightning"))
    more = sorted(own - other for own, other in runs)
    bench.notes.append(
        f"`train.py` takes {median(more):.2f} s ({more[0]:.2f} to {more[-1]:.2f}) to its first step beyond importing"
        " torch, torchvision and lightning; the goal is under 1.0 s."
    )
    yield Row("`train.py` to its first step", "importing the three", "-", runs, "s")
    for flag, status in (("--help", 0), ("--modle.lr=1", 2)):
        runs = bench.pairs(partial(bench.python, script, flag, status=status), partial(imports, "lightning"))
        own: Pairs = [(ended[0], other) for ended, other in runs]
        yield Row(f"`train.py {flag}`", "importing lightning", "1.3 or less", own, "s")


def growth(bench: Bench) -> Iterator[Row]:
    project, random = bench.bake("mnist-cnn"), np.random.default_rng(0)
    flags = ["--trainer.max_epochs=3", "--trainer.logger=false"]
    folders = {}
    for times in (1, 2, 4, 8):
        count = 12_000 * times
        folders[times] = bench.folder / f"times {times}"
        pictures = random.integers(0, 256, (count + 1000, 28, 28), dtype=np.uint8)
        write_idx(folders[times] / "MNIST" / "raw", pictures, random.integers(0, 10, count + 1000), count)

    def run(data: Path) -> dict[str, Any]:
        return bench.timed(project / "training" / "train.py", f"--data.data_dir={data}", *flags)

    rounds = [{n: run(data) for n, data in folders.items()} for _ in range(bench.count)]
    for n in (2, 4, 8):
        seconds: Pairs = [(epoch_of(runs[n], 3), epoch_of(runs[1], 3)) for runs in rounds]
        peaks: Pairs = [(runs[n]["peak"], runs[1]["peak"]) for runs in rounds]
        yield Row(f"an epoch of {12 * n},000 pictures", "12,000 pictures", f"{n}, linear", seconds, "s")
        yield Row(f"peak memory with {12 * n},000 pictures", "12,000 pictures", "+ 9.4 MB each 12,000", peaks, "MB")


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "steps": steps,
    "starting": starting,
    "baking": baking,
    "epochs": epochs,
    "growth": growth,
    "decoding": decoding,
    "mlp": mlp,
    "cnn": cnn,
}


def machine() -> str:
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightning", "cookiecutter"))
    return f"{date.today()}, {os.cpu_count()} cores of {model[0]}, Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each program")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="figures to measure")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--output", type=Path, help="a Markdown file")
    options = parser.parse_args()
    if len(list(options.data.glob("*-ubyte*"))) < 4:
        sys.exit(f"error: {options.data} lacks the four files of Fashion-MNIST: name their folder by --data")
    lines = ["| figure | against | goal | ratio (range) | project | other |", "|---|---|---|---|---|---|"]
    about = f"{machine()}; {options.pairs} pairs a figure; one thread a process, {THREADS} in whole runs."
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.data, options.pairs)
        print("\n".join(lines), flush=True)
        for name in options.only:
            for row in ROWS[name](bench):
                print(row, flush=True)
                lines.append(str(row))
            if options.output:  # after each, as all of them take an hour
                notes = [f"- {note}" for note in [*bench.notes, GPU]]
                text = "\n".join(["# Measured side by side", "", about, "", *lines, "", *notes, ""])
                options.output.write_text(text, encoding="utf-8")
    print("", *bench.notes, GPU, about, sep="\n")


if __name__ == "__main__":
    main()
