"""MLflow that needs no server."""

import logging
import os
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # MLflow announces each table that it makes
logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # Lightning, each new experiment


class LocalMLFlowLogger(MLFlowLogger):
    """Logs into a database inside the run folder, or to the server that MLFLOW_TRACKING_URI names.

    A resumed run goes on with its MLflow run, whose id is kept beside the database.

    Args:
        save_dir: Folder of the database and the artifacts.
        experiment_name: Experiment that the run belongs to.
    """

    def __init__(self, save_dir: str, experiment_name: str) -> None:
        folder = Path(save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        server = os.environ.get("MLFLOW_TRACKING_URI")
        kept = folder / "run_id.txt"
        super().__init__(
            experiment_name,
            tracking_uri=server or f"sqlite:///{folder}/mlflow.db",
            artifact_location=None if server else (folder / "artifacts").as_uri(),
            run_id=kept.read_text(encoding="utf-8") if kept.exists() else None,
        )
        if rank_zero_only.rank == 0 and not kept.exists():  # type: ignore[attr-defined]
            kept.write_text(str(self.run_id), encoding="utf-8")
