"""MLflow that needs no server."""

import logging
import os
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # MLflow announces each table that it creates
logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # Lightning, each new experiment


class LocalMLFlowLogger(MLFlowLogger):
    """Logger that writes to one database for all runs, logs/mlflow.db, or to the server that MLFLOW_TRACKING_URI names.

    A resumed run continues its MLflow run, whose id is kept in the run folder.

    Args:
        save_dir: Folder for the id, in the run folder.
        experiment_name: Experiment that the run belongs to.
    """

    def __init__(self, save_dir: str, experiment_name: str) -> None:
        run, logs = Path(save_dir).parent, Path(save_dir).parents[1]
        server = os.environ.get("MLFLOW_TRACKING_URI")
        kept = Path(save_dir) / "run_id.txt"
        super().__init__(
            experiment_name,
            run_name=run.name,
            tracking_uri=server or f"sqlite:///{logs}/mlflow.db",
            artifact_location=None if server else (logs / "mlflow").as_uri(),
            run_id=kept.read_text(encoding="utf-8") if kept.exists() else None,
        )
        if rank_zero_only.rank == 0 and not kept.exists():  # type: ignore[attr-defined]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(str(self.run_id), encoding="utf-8")
