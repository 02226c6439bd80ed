"""Tables and pictures of a sweep, and the list of all runs."""

import csv
import warnings
from math import nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib
import optuna
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots
from scipy.stats import t

from training.engine.files import read_json, replacing
from training.engine.reports import print_rows, print_table, save_figures
from training.engine.run_folder import LOGS, ROOT
from training.sweeps.folds import write_out_of_fold
from training.sweeps.index import write_index
from training.sweeps.plan import FOLD, SEED

STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
Row = dict[str, Any]


def is_locked(file: Path) -> bool:
    """Return whether a process holds a lock file."""
    try:
        if file.exists():
            with FileLock(file, timeout=0):
                pass
    except Timeout:
        return True
    return False


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if it is missing."""
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def same_columns(rows: list[Row]) -> list[Row]:
    """Give each row the columns of all rows; missing values become empty text."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]


def write_results(study: optuna.Study, folder: Path) -> None:
    """Write a row for each trial, with its metrics on the test split, to `results.csv`."""
    rows: list[Row] = [dict.fromkeys(("number", "state", "value"))]
    for trial in study.get_trials(deepcopy=False):
        run, state = trial.user_attrs["run"], STATES.get(trial.state, "unfinished")
        row = {"number": trial.number, "state": state, "value": trial.value, **trial.params, "run": run}
        rows.append(row | {"error": trial.user_attrs.get("error")} | read_json(ROOT / run / "test_metrics.json"))
    header, *rows = same_columns(rows)
    with replacing(folder / "results.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, header)
        writer.writeheader()
        writer.writerows(rows)


def show_results(study: optuna.Study, folder: Path, monitor: str) -> None:
    """Print and draw the finished trials, the best first; for seeds and folds, also the mean and its 95% interval."""
    trials = study.get_trials(states=[TrialState.COMPLETE])
    trials.sort(key=lambda trial: trial.value or 0.0, reverse=study.direction == StudyDirection.MAXIMIZE)
    key = next((key for key in (SEED, FOLD) if key in study.best_params), None)
    if key is None:
        print_table([{"trial": trial.number, monitor: trial.value} | as_text(trial.params) for trial in trials])
        save_figures(folder, {"search": lambda: draw_search(study, monitor)}, [])
        return
    tests = [read_json(ROOT / trial.user_attrs["run"] / "test_metrics.json") for trial in trials]
    what = "seed" if key == SEED else "fold"
    rows = [{what: trial.params[key], monitor: trial.value} for trial in trials]
    rows = same_columns([row | test for row, test in zip(rows, tests, strict=True)])
    shown = [what, monitor, monitor.replace("val", "test", 1)]  # a terminal has no room for all
    print_table([{name: row[name] for name in shown if name in row} for row in rows])
    names = [name for name in rows[0] if name != what]
    metrics = {name: {row[what]: row[name] for row in rows if row[name] != ""} for name in names}
    print_table([describe(name, list(values.values())) for name, values in metrics.items()])
    save_figures(folder, {f"{what}s": lambda: draw_repeats(metrics, what)}, [])


def show_out_of_fold(study: optuna.Study, folder: Path, folds: int) -> None:
    """Write the out-of-fold predictions of a sweep over all folds, and print their metrics."""
    trials = study.get_trials(states=[TrialState.COMPLETE])
    if len(trials) < folds:
        print(f"no out-of-fold predictions: {folds - len(trials)} of {folds} folds have not finished")
        return
    runs = {trial.params[FOLD]: ROOT / trial.user_attrs["run"] for trial in trials}
    try:
        count, metrics = write_out_of_fold(folder, {fold: run / "checkpoints/best.ckpt" for fold, run in runs.items()})
    except OSError as error:
        print(f"no out-of-fold predictions: {error}")
        return
    print(f"out-of-fold predictions: {count} rows in {folder / 'out_of_fold.csv'}")
    if metrics:
        print_table([{"metric": name, "all folds together": value} for name, value in metrics.items()])
    else:
        hint = 'they need a column "truth" beside "class", "prediction" or "forecast", with one value for each sample'
        print(f"no metrics over all folds together: {hint}")


def as_text(settings: dict[str, Any]) -> dict[str, str]:
    """Settings with four significant digits."""
    return {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in settings.items()}


def join(settings: dict[str, Any]) -> str:
    """Settings or metrics as one text."""
    return " ".join(f"{key}={value}" for key, value in as_text(settings).items())


def describe(name: str, values: list[float]) -> Row:
    """A row about the values of a metric."""
    mean, deviation, half = estimate_mean(values)
    interval = f"{mean - half:.4f} to {mean + half:.4f}"
    return {"metric": name, "mean": mean, "standard deviation": deviation, "95% interval of the mean": interval}


def estimate_mean(values: list[float]) -> tuple[float, float, float]:
    """Mean, standard deviation, and half the 95% interval of the mean by Student's t; NaN for a single value."""
    deviation = stdev(values) if len(values) > 1 else nan
    return fmean(values), deviation, float(t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5


def draw_repeats(metrics: dict[str, dict[int, float]], what: str) -> Figure:
    """Draw metrics by seed or fold, with their mean and its interval."""
    columns = min(len(metrics), 4)
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4 * columns, 3.5 * rows), layout="constrained")
    for i, (name, values) in enumerate(metrics.items()):
        axis = figure.add_subplot(rows, columns, i + 1)
        mean, _, half = estimate_mean(list(values.values()))
        axis.axhspan(mean - half, mean + half, alpha=0.2, label="95% interval of the mean")
        axis.axhline(mean, label="mean")
        axis.plot(list(values), list(values.values()), "ko")
        axis.set_xticks(sorted(values))
        axis.set_xlabel(what)
        axis.set_ylabel(name, parse_math=False)
        axis.legend(fontsize=8)
    return figure


def draw_search(study: optuna.Study, monitor: str) -> dict[str, Figure]:
    """Draw the history of a search, the metric by setting, and the importance of each setting."""
    matplotlib.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna's plots: experimental, or all values are equal
        axes: dict[str, Any] = {
            "history": plots.plot_optimization_history(study, target_name=monitor),
            "slices": plots.plot_slice(study, target_name=monitor),
        }
        if len(study.best_params) > 1 and len(study.get_trials(states=[TrialState.COMPLETE])) > 1:
            evaluator = PedAnovaImportanceEvaluator()
            axes["importances"] = plots.plot_param_importances(study, evaluator=evaluator, target_name=monitor)
            axes["importances"].figure.set_layout_engine("constrained")  # Optuna cuts long names off
    return {name: getattr(axis, "flat", [axis])[0].figure for name, axis in axes.items()}


def list_runs(form: str, html: bool) -> None:
    """Print all runs and sweeps, the newest first, with their metrics on the test split.

    Args:
        form: "table", "csv" or "json".
        html: Whether to write `logs/index.html` instead.
    """
    patterns = ("*/run.json", "sweeps/*/*/run.json", "sweeps/*/sweep.json")
    files = [file for pattern in patterns for file in LOGS.glob(pattern)]
    rows, settings = [], []
    for file in sorted(files, key=changed_at, reverse=True):
        folder = file.parent
        is_sweep = file.name == "sweep.json"
        state = state_of_sweep(folder) if is_sweep else state_of_run(folder)
        row = {"run": folder.relative_to(LOGS).as_posix(), "state": state}
        metrics = read_json(folder / "test_metrics.json")
        in_terminal = form == "table" and not html  # with no room for a column per metric
        rows.append(row | ({"metrics": join(metrics)} if in_terminal else metrics))
        settings.append(" ".join(read_json(file).get("flags", [])) if is_sweep else describe_changes(folder))
    if not rows:
        print(f"no runs in {LOGS}")
        return
    rows = [row | {"settings": each} for row, each in zip(same_columns(rows), settings, strict=True)]
    if html:
        write_index(rows)
    else:
        print_rows(rows, form)


def changed_at(file: Path) -> float:
    """Return the time at which a run, or any run of a sweep, last started or ended."""
    files = file.parent.glob("*/run.json") if file.name == "sweep.json" else []
    return max(each.stat().st_mtime for each in [file, *files])


def state_of_run(run: Path) -> str:
    if is_locked(run / ".lock"):
        return "running"
    if read_json(run / "run.json").get("state") == "finished":
        return "finished"
    states = {Path(row["run"]).name: row["state"] for row in read_rows(run.parent / "results.csv")}
    return states.get(run.name, "unfinished").replace("unfinished", "interrupted")


def state_of_sweep(folder: Path) -> str:
    if any(is_locked(file) for file in [*folder.glob(".*.lock"), *folder.glob("*/.lock")]):
        return "running"
    states = [row["state"] for row in read_rows(folder / "results.csv") if row["state"] != "unfinished"]
    if len(states) < read_json(folder / "sweep.json")["trials"]:
        return "interrupted"
    return "finished" if "finished" in states else "failed"


def describe_changes(run: Path) -> str:
    """The settings of a run that differ from the defaults."""
    return join(flatten(read_json(run / "run.json").get("changed", {})))


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
