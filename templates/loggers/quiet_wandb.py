"""Weights & Biases without its announcements."""

import os
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

os.environ.setdefault("WANDB_SILENT", "true")


class QuietWandbLogger(WandbLogger):
    """Logger for the run folder or, after `wandb login`, to the server; a resumed run continues under its name.

    Args:
        save_dir: Folder in which wandb makes its own.
        project: Project that the run belongs to.
        offline: Whether to send nothing; `wandb sync` can upload the run later.
    """

    def __init__(self, save_dir: str, project: str, offline: bool = True) -> None:
        super().__init__(save_dir=save_dir, project=project, offline=offline, version=Path(save_dir).name)
        self._wandb_init.pop("anonymous", None)  # Lightning 2.6 sets it, and wandb 0.31 warns of it
