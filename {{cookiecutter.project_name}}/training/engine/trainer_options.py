"""Options of the trainer."""

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from training.engine.plain_values import as_list, make_plain


def check_options(config: Namespace, parser: LightningArgumentParser) -> None:
    """Exit with status 2 for options that a run cannot have, and prepare the others for `config.yaml`."""
    for each in as_list(config.callbacks):
        for name, value in vars(each.get("init_args", Namespace())).items():
            each.init_args[name] = make_plain(value)  # jsonargparse cannot write a StrEnum
    if config.precision in ("16-true", "bf16-true"):
        mixed = config.precision.replace("true", "mixed")
        parser.error(f"trainer.precision {config.precision} computes metrics in 16 bits; use {mixed}")
    if config.enable_checkpointing is False:
        parser.error("trainer.enable_checkpointing must be true, as a run saves checkpoints: remove it")
    if config.max_epochs == 0 or config.barebones:
        parser.error("trainer.max_epochs 0 trains no model, and trainer.barebones saves none: remove them")
    if config.default_root_dir:
        parser.error("trainer.default_root_dir must be null, as a run writes to logs/: remove it")
    if any(word in str(config.strategy) for word in ("spawn", "fork", "notebook")):
        parser.error(f"trainer.strategy {config.strategy} is not supported: use ddp")
    if config.fast_dev_run:
        config.logger = None
