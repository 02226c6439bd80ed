"""Train with several seeds or folds, or search for settings: `sweep.py --seeds 5`, `--folds 5`, `--trials 20`."""

import argparse
import shlex
import signal
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import optuna
except ModuleNotFoundError:
    sys.exit('error: sweeps need two more packages: pip install "optuna>=4,<6" "scipy>=1.13,<2"')
from optuna.pruners import MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from training.engine.interrupts import interrupt_signals, requeue_after, run_command
from training.engine.parser import flag_value, refuse
from training.engine.run_folder import NAME
from training.sweeps.plan import FOLD, make_plan
from training.sweeps.results import list_runs, show_out_of_fold, show_results
from training.sweeps.trials import Sweep


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse(f"{message} (--help lists all options)")


def parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this command, and the flags for train.py."""
    parser = Parser(
        usage="%(prog)s (--seeds N | --folds N | --trials N | --list) [--OPTION VALUE ...] [FLAGS OF train.py]",
        description="Train with several seeds or folds, search for the best values of the settings in"
        " configs/sweep.yaml, or list all runs.",
        epilog="All other flags, such as --trainer.max_epochs 3, are passed to training/train.py in every trial.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", type=int, metavar="N", help="train with the seeds 0 to N-1")
    what.add_argument("--folds", type=int, metavar="N", help="cross-validate: train N times, with --data.fold 1 to N")
    what.add_argument("--trials", type=int, metavar="N", help="train N times, with settings from configs/sweep.yaml")
    what.add_argument("--list", action="store_true", help="list all runs and sweeps, the newest first")
    help_ = "folder in logs/sweeps/ (default: the date); the same command with the same name resumes the sweep"
    parser.add_argument("--name", default=datetime.now().strftime(NAME), help=help_)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at the same time (default: 1)")
    help_ = "tpe learns from earlier trials, grid takes each combination of listed values once (default: tpe)"
    parser.add_argument("--sampler", choices=["tpe", "random", "grid"], default="tpe", help=help_)
    help_ = "median stops a trial that is worse than the median of earlier ones at the same epoch (default: none)"
    parser.add_argument("--pruner", choices=["none", "median"], default="none", help=help_)
    help_ = "URL of a database for the results; all processes that use it must share logs/ (default: a file in logs/)"
    parser.add_argument("--storage", metavar="URL", help=help_)
    parser.add_argument("--dry_run", action="store_true", help="print the commands of the trials, and train nothing")
    help_ = "format of --list (default: table)"
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help=help_)
    parser.add_argument("--html", action="store_true", help="with --list, write it to logs/index.html")
    options, flags = parser.parse_known_args(args)
    if options.html and not options.list:
        parser.error("--html needs --list")
    if any(number is not None and number < 1 for number in (options.seeds, options.trials, options.jobs)):
        parser.error("--seeds, --trials and --jobs must be at least 1")
    if options.folds is not None and options.folds < 2:
        parser.error("--folds must be at least 2")
    if Path(options.name).name != options.name or not options.name.strip("."):
        parser.error(f"--name {options.name} must be a name without a path: its folder is made in logs/sweeps/")
    if flag_value("--resume", flags) is not None:
        parser.error("--resume is not an option of sweep.py: to resume a sweep, repeat its command and --name")
    return options, [flag for flag in flags if flag != "--"]


def main(args: list[str] | None = None) -> None:
    given = sys.argv[1:] if args is None else args
    options, flags = parse(given)
    if options.list:
        list_runs(options.format, options.html)
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    plan = make_plan(options, flags)
    if options.dry_run:
        trials: list[FrozenTrial] = []
        while len(trials) < plan.total:
            trials.append(plan.next_trial(trials))
            print(plan.command(trials[-1].params))
        return
    sweep = Sweep(plan, options.storage, MedianPruner() if options.pruner == "median" else NopPruner())
    for number in interrupt_signals():
        signal.signal(number, lambda number, frame: sweep.signals.append(number))
    name = [] if flag_value("--name", given) else ["--name", options.name]
    again = shlex.join(["python", "training/sweep.py", *name, *given])
    print(f"sweep folder: {plan.folder}\nto resume: {again}", flush=True)
    sweep.train(options.jobs)
    if sweep.signals:
        print(f"interrupted by {signal.Signals(sweep.signals[0]).name}; resume with: {again}", file=sys.stderr)
        requeue_after(sweep.signals[0])
        sys.exit(128 + sweep.signals[0])
    conclude(sweep, again)


def conclude(sweep: Sweep, again: str) -> None:
    """Show the results; exit with status 1 if trials were killed, or none has finished.

    Args:
        sweep: A sweep whose own process got no signal.
        again: The command that resumes it.
    """
    states = [trial.state for trial in sweep.study.get_trials(deepcopy=False)]
    if TrialState.COMPLETE in states:
        show_results(sweep.study, sweep.plan.folder, sweep.plan.monitor)
        best = sweep.study.best_trial
        if FOLD in best.params:
            show_out_of_fold(sweep.study, sweep.plan.folder, sweep.plan.total)
            flags = [flag for flag in sweep.plan.flags if not flag.startswith("--data.folds=")]
            print(f"to train on the usual splits: {shlex.join(['python', 'training/train.py', *flags])}")
        else:
            print(f"best run: {best.user_attrs['run']}\nto train it again: {sweep.plan.command(best.params)}")
    if sweep.interrupted:
        sys.exit(f"error: {sweep.interrupted} trials were killed; resume them with: {again}")
    if TrialState.RUNNING in states:
        print(f"other processes still train {states.count(TrialState.RUNNING)} trials")
    elif TrialState.COMPLETE not in states:
        sys.exit(f"error: no trial has finished; their errors are in {sweep.plan.folder / 'results.csv'}")


if __name__ == "__main__":
    run_command(main)
