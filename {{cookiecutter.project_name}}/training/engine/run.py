"""Starting and resuming a run."""

import atexit
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from training.engine.checkpoint_files import SafeCheckpointIO
from training.engine.checkpoints import Checkpoints
from training.engine.command_line import ProjectCLI
from training.engine.estimate import EpochEstimate
from training.engine.evaluation import make_evaluator, missing_for
from training.engine.files import read_json, write_json
from training.engine.interrupts import Interrupts, is_first_process
from training.engine.loops import install_loops
from training.engine.metrics_file import MetricsFile
from training.engine.parser import flag_value, read_config
from training.engine.plain_values import as_list, is_plain, keep_plain_hyperparameters, make_plain, without_objects
from training.engine.processes import follow_launcher, rejoin_launcher
from training.engine.reports import LossLogger
from training.engine.run_folder import (
    LOGS,
    ROOT,
    discard_run,
    find_run,
    lock_run,
    make_folder,
    new_run,
    restarted_run,
    time_now,
)
from training.engine.run_record import RunRecord
from training.engine.trainer_options import check_options

LENGTH = ["trainer.max_epochs", "trainer.max_steps", "trainer.max_time"]
# Settings that may differ from those of the run that is resumed.
MAY_CHANGE = [
    *LENGTH,
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.enable_progress_bar", "trainer.log_every_n_steps", "data.num_workers", "checkpoint_minutes"),
]


class RunCLI(ProjectCLI):
    """Start or resume a run.

    Attributes:
        run_dir: Folder of the run.
        checkpoint: File to resume from, or None.
        step: Number of steps in that checkpoint.
        checkpoints: Callback that saves the checkpoints of the run.
    """

    description = "Fit a model, then test its best checkpoint."

    def __init__(
        self, model_class: type[LightningModule], data_class: type[LightningDataModule], args: list[str] | None = None
    ) -> None:
        name = flag_value("--resume", sys.argv[1:] if args is None else args)
        earlier = restarted_run(LOGS) if name is None else find_run(LOGS, name)
        self.resumed, self.run_dir = earlier is not None, earlier or new_run(LOGS)
        if self.resumed and is_first_process():
            self.lock = lock_run(self.run_dir)
        last = self.run_dir / "checkpoints" / "last.ckpt"
        self.checkpoint = last if last.exists() else None
        self.checkpoint_files = SafeCheckpointIO()
        self.step, self.rows = self.checkpoint_files.read_progress(last) if self.checkpoint else (0, 0)
        self.interrupts = Interrupts()
        self.interrupts.listen()
        file = (self.run_dir if self.resumed else ROOT / "configs") / "config.yaml"
        super().__init__(model_class, data_class, args, (read_config(file), file), {})

    def add_options(self, parser: LightningArgumentParser) -> None:
        help_ = "Resume RUN, or the newest unfinished run, with its settings. RUN is a name in logs/ or a path."
        parser.add_argument("--resume", nargs="?", const=True, metavar="RUN", help=help_)
        help_ = "Resume even if the files named by data.* options have changed."
        parser.add_argument("--allow_changed_data", type=bool, default=False, help=help_)
        help_ = "Metric whose best value selects best.ckpt; null selects the last epoch."
        parser.add_argument("--monitor", type=str | None, default=None, help=help_)
        help_ = "Whether the lowest or the highest value is best."
        parser.add_argument("--monitor_mode", type=Literal["min", "max"], default="min", help=help_)
        help_ = "Also save last.ckpt every N minutes within an epoch."
        parser.add_argument("--checkpoint_minutes", type=NonNegativeFloat, default=10.0, help=help_)
        help_ = "torch.compile mode for the model; none disables it."
        modes = Literal["none", "default", "reduce-overhead", "max-autotune"]
        parser.add_argument("--compile", type=modes, default="none", help=help_)

    def before_instantiate_classes(self) -> None:
        for option in ("resume", "debug"):
            self.config.pop(option)
        self.allow_changed_data = self.config.pop("allow_changed_data")
        self.changed = self.find_changes() if self.resumed else []
        config = self.config.trainer
        check_options(config, self.parser)
        follow_launcher(config, self.parser)
        if not (self.resumed or self.config.trainer.fast_dev_run) and is_first_process():
            self.run_dir = make_folder(self.run_dir)
            self.lock = lock_run(self.run_dir)
            atexit.register(discard_run, self.run_dir)

    def find_changes(self) -> list[str]:
        """Return the settings that differ from those of the run; exit with status 2 if one of them must not change."""
        before, now = by_option(read_config(self.run_dir / "config.yaml")), by_option(self.plain_config())
        changed = [key for key, value in now.items() if value != before.get(key)]
        for key in changed:
            if key not in MAY_CHANGE:
                may = ", ".join(MAY_CHANGE)
                self.parser.error(f"{key} is {before.get(key)} in {self.run_dir.name}; only these may change: {may}")
        return changed

    def place(self, config: Namespace) -> None:
        for logger in as_list(config.logger):
            if isinstance(logger, Namespace) and "save_dir" in logger.get("init_args", {}):
                folder = Path(logger.init_args.save_dir or ".")
                if folder.is_absolute() or ".." in folder.parts:
                    self.parser.error(f"trainer.logger save_dir {folder} must be a path inside the run folder")
                logger.init_args.save_dir = str(self.run_dir / folder)

    def make_trainer(self, config: Namespace) -> Trainer:
        given = {name: make_plain(getattr(self.datamodule, name)) for name in self.linked}
        given = {name: value for name, value in given.items() if is_plain(value)}
        how = self.config.monitor, self.config.monitor_mode, self.config.checkpoint_minutes
        self.checkpoints = Checkpoints(self.run_dir / "checkpoints", *how, given)
        self.checkpoints.extended = bool({*LENGTH}.intersection(self.changed))
        unwanted: tuple[type[Callback], ...] = (LearningRateFinder, BatchSizeFinder) if self.resumed else ()
        if config.enable_progress_bar is False or not sys.stdout.isatty():  # each epoch is printed as a line, too
            unwanted, config.enable_progress_bar = (*unwanted, ProgressBar), False
        callbacks = [each for each in as_list(config.callbacks) if not isinstance(each, unwanted)]
        metrics = MetricsFile(self.run_dir / "metrics.csv", self.rows)
        config.default_root_dir = str(self.run_dir)
        config.plugins = [*as_list(config.plugins), self.checkpoint_files]
        config.logger = [*(each for each in as_list(config.logger) if isinstance(each, Logger)), metrics]
        config.callbacks = [*callbacks, RunRecord(self), LossLogger(), EpochEstimate(), self.checkpoints]
        try:
            trainer = Trainer(**config)
        except ValueError as error:
            self.parser.error(str(error))
        rejoin_launcher(trainer)
        install_loops(trainer, self.config.seed_everything, self.checkpoints, self.interrupts)
        return trainer

    def after_instantiate_classes(self) -> None:
        keep_plain_hyperparameters(self.model)
        keep_plain_hyperparameters(self.datamodule)
        self.datamodule._log_hyperparams = False  # RunRecord logs all settings
        if self.config.compile != "none":
            self.model.compile(mode=self.config.compile)

    def make_tester(self) -> tuple[Trainer | None, Path | None]:
        """Return the trainer for the test, and the best checkpoint unless the trainer loads it by itself.

        With several processes, the first one tests on one device, and the others get no trainer.
        """
        if self.trainer.world_size > 1:
            torch.distributed.destroy_process_group()
            if not is_first_process():
                return None, None
        if missing_for(self, "test", self.trainer):  # it validates instead, which is logged already
            return make_evaluator(self.config_init.trainer, self.run_dir, []), self.checkpoints.best
        if self.trainer.world_size == 1:
            return self.trainer, None
        return make_evaluator(self.config_init.trainer, self.run_dir, self.trainer.loggers), self.checkpoints.best

    def finish(self, metrics: dict[str, float]) -> None:
        """Write the metrics of the test, and mark the run as finished."""
        if any(name.startswith("test") for name in metrics):
            write_json(self.run_dir / "test_metrics.json", metrics)
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and metrics:  # shows the settings beside the results
                logger.log_hyperparams(self.plain_config(), {f"hp/{name}": value for name, value in metrics.items()})
        file = self.run_dir / "run.json"
        write_json(file, read_json(file) | {"state": "finished", "ended": time_now()})

    def plain_config(self) -> dict[str, Any]:
        """Return all settings as in a config file."""
        return self._dump(skip_none=False)

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults."""
        return self._dump(skip_default=True)

    def _dump(self, **how: bool) -> dict[str, Any]:
        return dict(without_objects(yaml.safe_load(self.parser.dump(self.config, **how)) or {}, self.config))


def by_option(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config file by option, such as `trainer.max_epochs`."""
    sections = {name: values for name, values in config.items() if name in ("trainer", "model", "data")}
    options = {f"{name}.{key}": value for name, values in sections.items() for key, value in (values or {}).items()}
    return {name: value for name, value in config.items() if name not in sections} | options
