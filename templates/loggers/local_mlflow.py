"""MLflow that needs no server."""

import logging
import os
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # MLflow announces each table that it makes
logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # Lightning, each new experiment


class LocalMLFlowLogger(MLFlowLogger):
    """Logs into a database inside the run folder, or to the server that MLFLOW_TRACKING_URI names.

    Args:
        save_dir: Folder of the database and the artifacts.
        experiment_name: Experiment that the run belongs to.
    """

    def __init__(self, save_dir: str, experiment_name: str) -> None:
        server = os.environ.get("MLFLOW_TRACKING_URI")
        if server:
            super().__init__(experiment_name, tracking_uri=server)
        else:
            folder = Path(save_dir)
            folder.mkdir(parents=True, exist_ok=True)
            artifacts = (folder / "artifacts").as_uri()
            super().__init__(experiment_name, tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=artifacts)
