"""Compare the default configurations with simple baselines on data that stand in a folder: `quality.py --data FOLDER`.

One project is baked for each variant. It is trained with the seeds 1 to `--seeds` on each data set; the baselines are
those that its own test shows. Data are only read. A Markdown table is printed, with one row for each metric.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from subprocess import run
from tempfile import TemporaryDirectory

TEMPLATE = Path(__file__).resolve().parent.parent
HEADERS = ("data set", "variant", "metric", "ours (range)", "baselines", "seconds")


@dataclass(frozen=True)
class DataSet:
    """A file below the folder of data, the variant that reads it, and the flags that this takes."""

    file: str
    variant: str
    metrics: tuple[str, ...]
    flags: tuple[str, ...] = ()


def table(file: str, target: str, metric: str, *flags: str) -> DataSet:
    return DataSet(f"tabular/{file}", "tabular", (metric,), (f"--data.target={target}", *flags))


def series(file: str, *flags: str) -> DataSet:
    return DataSet(f"forecast/{file}", "forecast", ("mse", "mae"), flags)


def texts(file: str, *flags: str) -> Iterator[DataSet]:
    for variant in ("text-rnn", "text-transformer"):
        yield DataSet(f"text/{file}", variant, ("acc", "f1"), flags)


NAMELESS = "--data.header=none"
DATA_SETS = [
    *texts("banking77.csv"),
    *texts("sms_spam.csv", "--data.text=v2", "--data.label=v1"),
    table("abalone.csv", "column_9", "mae", NAMELESS),
    table("adult.csv", "income", "acc"),
    table("auto_imports.csv", "column_26", "mae", NAMELESS),
    table("german.csv", "column_21", "acc", NAMELESS),
    table("horse-colic.csv", "column_23", "acc", NAMELESS, "--data.ignore=[column_3]"),
    table("wine_white.csv", "quality", "acc"),
    series("ETTh2.csv", "--data.lookback=336", "--data.horizon=96"),
    series("daily-min-temperatures.csv"),
    series("pollution.csv", "--data.max_gap=200"),
    series("monthly-airline-passengers.csv", "--data.lookback=24", "--data.horizon=12"),
]


def name_of(data_set: DataSet) -> str:
    return Path(data_set.file).stem


def baselines(metrics: dict[str, float], name: str) -> dict[str, float]:
    """The values of a metric that belong to baselines, such as `test/mae_ridge`, by the name of the baseline."""
    start = f"test/{name}_"
    found = {key.removeprefix(start): value for key, value in metrics.items() if key.startswith(start)}
    return {key: value for key, value in found.items() if not key.startswith("of_")}  # test/mae_of_COLUMN


def bake(variant: str, folder: Path) -> Path:
    """A new project of a variant, with its folder named like the variant."""
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "--output-dir", str(folder)]
    run([*command, f"variant={variant}", f"project_name={variant}", "logger=csv"], check=True, capture_output=True)
    return folder / variant


def train(project: Path, data: Path, data_set: DataSet, seed: int) -> tuple[dict[str, float], float]:
    """The test metrics of a run, and the seconds that it took.

    Raises:
        RuntimeError: The run fails.
    """
    option = f"--data.csv={data / data_set.file}"
    command = [sys.executable, "training/train.py", option, f"--seed_everything={seed}", *data_set.flags]
    begun = time.perf_counter()
    done = run(command, cwd=project, capture_output=True, text=True)
    taken = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{name_of(data_set)} with {data_set.variant}, seed {seed}:\n{done.stderr[-2000:]}")
    newest = max(project.glob("logs/*/test_metrics.json"), key=lambda file: file.stat().st_mtime_ns)
    return json.loads(newest.read_text(encoding="utf-8")), taken


def rows(data_set: DataSet, runs: list[tuple[dict[str, float], float]]) -> Iterator[tuple[str, ...]]:
    """A row for each metric of a data set. A baseline that differs between seeds is shown by its mean."""
    seconds = f"{mean(taken for _, taken in runs):.0f}"
    for name in data_set.metrics:
        ours = [metrics[f"test/{name}"] for metrics, _ in runs]
        shown = f"{mean(ours):.3f} ({min(ours):.3f} to {max(ours):.3f})"
        by_seed = [baselines(metrics, name) for metrics, _ in runs]
        simple = ", ".join(f"{key} {mean(values[key] for values in by_seed):.3f}" for key in by_seed[0])
        yield name_of(data_set), f"`{data_set.variant}`", name, shown, simple or "-", seconds


def line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with text/, tabular/ and forecast/")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="data sets or variants; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    args = parser.parse_args()
    known = {name for each in DATA_SETS for name in (name_of(each), each.variant)}
    if unknown := set(args.only) - known:
        parser.error(f"--only {' '.join(sorted(unknown))}: the names are {', '.join(sorted(known))}")
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least one seed is needed")
    chosen = [each for each in DATA_SETS if not args.only or {name_of(each), each.variant} & set(args.only)]
    missing = [str(args.data / each.file) for each in chosen if not (args.data / each.file).is_file()]
    if missing:
        parser.error(f"--data: there is no file {', '.join(dict.fromkeys(missing))}")
    with TemporaryDirectory() as folder:
        projects: dict[str, Path] = {}
        print(line(HEADERS), line(("---",) * len(HEADERS)), sep="\n", flush=True)
        for each in chosen:
            if each.variant not in projects:
                projects[each.variant] = bake(each.variant, Path(folder))
            seeds = range(1, args.seeds + 1)
            runs = [train(projects[each.variant], args.data.resolve(), each, seed) for seed in seeds]
            print(*map(line, rows(each, runs)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
