"""The plan of a sweep: its trials and their settings."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from training.engine.parser import flag_value, read_config, refuse
from training.engine.run_folder import LOGS, ROOT
from training.train import main as train

FILE = ROOT / "configs" / "sweep.yaml"
SEED, FOLD = "seed_everything", "data.fold"
Space = dict[str, BaseDistribution]


def as_flags(params: dict[str, Any]) -> list[str]:
    """Settings as flags of train.py."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in params.items()]


def as_distribution(given: Any) -> BaseDistribution:
    """Make a distribution of a list of values or of a range.

    Raises:
        ValueError: It is neither of them, or its bounds do not fit.
    """
    if isinstance(given, list) and given:
        plain = (bool, int, float, str, type(None))  # Optuna takes no others
        return CategoricalDistribution([each if isinstance(each, plain) else json.dumps(each) for each in given])
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log", "step"}:
        raise ValueError("give a list of values, or low and high and optionally log or step")
    log, numbers = bool(given.get("log")), {key: value for key, value in given.items() if key != "log"}
    if all(type(number) is int for number in numbers.values()):
        return IntDistribution(log=log, **numbers)
    return FloatDistribution(log=log, **{key: float(number) for key, number in numbers.items()})  # YAML's 1e-3 is text


def read_space(check: Callable[[list[str]], Any]) -> Space:
    """Read `configs/sweep.yaml`; exit with status 2 if it holds anything but settings and their values.

    Args:
        check: Exits with status 2 if train.py refuses flags; called for every value of a list and both ends of a range.
    """
    space: Space = {}
    values = {}
    for key, given in read_config(FILE).items():
        try:
            space[key] = as_distribution(given)
        except (TypeError, ValueError) as error:
            refuse(f"{FILE}: {key}: {error}")
        values[key] = given if isinstance(given, list) else [given["low"], given["high"]]
    if not space:
        refuse(f"{FILE} is empty: add a setting, such as `model.lr: [0.001, 0.01]`")
    first = {key: each[0] for key, each in values.items()}
    for key, each in values.items():
        for value in each:
            check(as_flags(first | {key: value}))
    return space


def refuse_fixed(space: Space, flags: list[str]) -> None:
    """Exit with status 2 if a flag gives a setting that the sweep varies."""
    for key in space:
        if flag_value(f"--{key}", flags) is not None:
            refuse(f"--{key} is given, but the sweep varies {key}: remove the flag")


def list_grid(space: Space) -> list[dict[str, Any]]:
    """All combinations of lists; exits with status 2 if there is a range among them."""
    lists = {key: each.choices for key, each in space.items() if isinstance(each, CategoricalDistribution)}
    for key in space.keys() - lists:
        refuse(f"{FILE}: --sampler grid needs a list of values for {key}")
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]


@dataclass
class Plan:
    """The trials of a sweep.

    Attributes:
        folder: Folder of the sweep; its name is the name of the study.
        flags: Flags of train.py that all trials have.
        monitor: Metric by which trials are compared.
        total: Number of trials.
        grid: Settings of each trial; if there are none, the sampler chooses them.
        sampler: "tpe" or "random"; "grid" if there is a grid of lists.
    """

    folder: Path
    flags: list[str]
    monitor: str
    direction: StudyDirection
    total: int
    space: Space
    grid: list[dict[str, Any]]
    sampler: str

    def next_trial(self, trials: list[FrozenTrial]) -> FrozenTrial:
        """Return the trial that follows `trials`. The result depends on them alone, so all processes agree on it."""
        number = len(trials)
        if self.grid:
            params = self.grid[number]
        else:
            tpe = self.sampler == "tpe"
            sampler = TPESampler(seed=number, constant_liar=True) if tpe else RandomSampler(seed=number)
            copy = optuna.create_study(direction=self.direction, sampler=sampler)
            copy.add_trials(trials)
            params = copy.ask(self.space).params
        run = {"run": (self.folder / f"{number:04}").relative_to(ROOT).as_posix()}
        return create_trial(state=TrialState.RUNNING, params=params, distributions=self.space, user_attrs=run)

    def settings(self) -> dict[str, Any]:
        """Settings that stay the same when the sweep is resumed."""
        space = {key: distribution_to_json(each) for key, each in self.space.items()}
        return {"flags": self.flags, "monitor": self.monitor, "direction": self.direction.name, "space": space}

    def command(self, params: dict[str, Any]) -> str:
        """The command that trains with some settings."""
        return shlex.join(["python", "training/train.py", *self.flags, *as_flags(params)])


def resolve(flags: list[str]) -> dict[str, Any]:
    """All settings of a run with these flags; exits with status 2 where train.py would."""
    argv, sys.argv = sys.argv, ["train.py", *flags, "--print_config"]
    try:
        with redirect_stdout(StringIO()) as output:
            train()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = argv
    return dict(yaml.safe_load(output.getvalue()))


def make_plan(options: argparse.Namespace, flags: list[str]) -> Plan:
    """Make the plan from options and flags; exit with status 2 if they cannot be used together."""
    config = resolve(flags)
    if not config["monitor"]:
        refuse("--monitor null: a sweep compares trials by a metric: name one of those that the model logs")
    if config["trainer"]["fast_dev_run"]:
        refuse("--trainer.fast_dev_run saves no runs to compare: use --trainer.max_epochs 1 instead")
    direction = StudyDirection.MAXIMIZE if config["monitor_mode"] == "max" else StudyDirection.MINIMIZE
    space: Space = {SEED: IntDistribution(0, 2**32 - 1)}
    grid: list[dict[str, Any]] = [{SEED: seed} for seed in range(options.seeds or 0)]
    if options.folds:
        refuse_fixed({"data.folds": space[SEED]}, flags)
        flags = [*flags, f"--data.folds={options.folds}"]
        resolve(flags)  # a data module may not have folds
        space = {FOLD: IntDistribution(1, options.folds)}
        grid = [{FOLD: fold} for fold in range(1, options.folds + 1)]
    if options.trials:
        space = read_space(lambda more: resolve([*flags, *more]))
        grid = list_grid(space) if options.sampler == "grid" else []
    refuse_fixed(space, flags)
    total = min(options.trials or len(grid), len(grid)) if grid else options.trials
    folder = LOGS / "sweeps" / options.name
    return Plan(folder, flags, config["monitor"], direction, total, space, grid, options.sampler)
