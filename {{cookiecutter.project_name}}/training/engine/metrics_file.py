"""The file `metrics.csv` of a run."""

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from training.engine.files import replacing


class MetricsFile(Logger):
    """Appends a row to `metrics.csv` each time that metrics are logged; for a new metric, adds a column.

    Args:
        file: The file.
        rows: Number of rows to keep. Those after them are removed, because a resumed run logs them again.
    """

    name, version, save_dir = "", "", ""

    def __init__(self, file: Path, rows: int) -> None:
        super().__init__()
        self.file, self.rows, self.save_dir = file, rows, str(file.parent)
        self.step = 0
        self.columns: list[str] = []
        self.stream: TextIO | None = None

    @property
    def log_dir(self) -> str:
        return self.save_dir

    @property
    def experiment(self) -> Any:
        """Object whose methods do nothing, so that a model made for another logger's experiment runs with this one."""
        return _DummyExperiment()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.step = self.step if step is None else step
        row = {"step": self.step, **metrics}
        try:
            if self.stream is None or not row.keys() <= set(self.columns):
                self.stream = self._reopen(row)
            csv.DictWriter(self.stream, self.columns).writerow(row)
            self.stream.flush()
            self.rows += 1
        except OSError as error:
            raise OSError(f"{self.file} cannot be written: {error.strerror or error}") from error

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` holds them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.stream:
            self.stream.close()
            self.stream = None

    def _reopen(self, row: dict[str, Any]) -> TextIO:
        """Rewrite the file with the columns of `row` added, and open it for appending."""
        self.finalize("")
        self.columns = list(dict.fromkeys([*next(self._rows(), {}), *self.columns, *row]))
        with replacing(self.file) as partial, open(partial, "w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(islice(self._rows(), self.rows))
        return open(self.file, "a", newline="", encoding="utf-8")

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self.file.exists():
            with open(self.file, newline="", encoding="utf-8") as text:
                yield from csv.DictReader(text)
