"""The file `metrics.csv` of a run."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from training.engine.files import replacing


class MetricsFile(Logger):
    """Appends a row to `metrics.csv` each time that metrics are logged.

    A new metric adds a column, for which the file is written anew.

    Args:
        file: The file.
        step: Rows of this step and later ones, which a resumed run logs again, are removed; None keeps no row.
    """

    name, version = "", ""

    def __init__(self, file: Path, step: int | None) -> None:
        super().__init__()
        self.file, self.step = file, step
        self.columns: list[str] = []
        self.stream: TextIO | None = None

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @property
    def experiment(self) -> Any:
        """An object whose every method does nothing, for code that writes to the logger of the project."""
        return _DummyExperiment()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        with self._explaining():
            if self.stream is None or not row.keys() <= set(self.columns):
                self._rewrite(list(row))
            assert self.stream is not None
            csv.DictWriter(self.stream, self.columns).writerow(row)
            self.stream.flush()

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: `config.yaml` holds them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.stream:
            self.stream.close()
            self.stream, self.step = None, 2**63  # what is logged later is appended

    def _rewrite(self, names: list[str]) -> None:
        """Copies the rows to keep into a file with further columns, and opens it to append to it."""
        if self.stream:
            self.stream.close()
        rows = self._kept_rows()
        self.columns = list(dict.fromkeys([*next(rows, {}), *self.columns, *names]))
        with replacing(self.file) as partial, open(partial, "w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(self._kept_rows())
        self.step = 2**63
        self.stream = open(self.file, "a", newline="", encoding="utf-8")  # noqa: SIM115

    def _kept_rows(self) -> Iterator[dict[str, Any]]:
        if self.step is not None and self.file.exists():
            with open(self.file, newline="", encoding="utf-8") as text:
                for row in csv.DictReader(text):
                    if (row["step"] or "").isdigit() and int(row["step"]) < self.step and None not in row.values():
                        yield row

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"{self.file} cannot be written: {error.strerror or error}") from error
