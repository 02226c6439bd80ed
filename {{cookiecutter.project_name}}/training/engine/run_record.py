"""The record that a run writes when it starts."""

from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner.lr_finder import _determine_lr_attr_name
from lightning.pytorch.utilities.parsing import lightning_getattr

from training.engine.files import replacing
from training.engine.run_folder import describe_run


class RunRecord(Callback):
    """Callback that writes `config.yaml` and `run.json` when training starts, and sends the settings to the loggers.

    Args:
        cli: The RunCLI of the run.
    """

    def __init__(self, cli: Any) -> None:
        self.cli = cli

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.take_found_values(trainer)
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        cli, config = self.cli, self.cli.plain_config()
        describe_run(cli.run_dir, config, cli.changes(), cli.allow_changed_data)
        with replacing(cli.run_dir / "config.yaml") as partial:
            partial.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        for logger in [] if cli.resumed else trainer.loggers:
            logger.log_hyperparams(config)

    def take_found_values(self, trainer: Trainer) -> None:
        """Record the batch size and the learning rate that Lightning's finders have found, and use that rate."""
        for finder in trainer.callbacks:
            if isinstance(finder, BatchSizeFinder):
                name = finder._batch_arg_name
                size = lightning_getattr(trainer.lightning_module, name)
                for options in (self.cli.config.get("model", {}), self.cli.config.get("data", {})):
                    if options.get(name, size) != size:
                        print(f"batch size found: {size}", flush=True)
                        options[name] = size
            if isinstance(finder, LearningRateFinder) and finder.optimal_lr:
                trainer.strategy.setup_optimizers(trainer)
                print(f"learning rate found: {(rate := finder.optimal_lr.suggestion()):.3g}", flush=True)
                name = _determine_lr_attr_name(trainer.lightning_module, finder._attr_name)
                if name in self.cli.config.get("model", {}):
                    self.cli.config.model[name] = rate
