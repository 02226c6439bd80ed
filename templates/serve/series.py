"""Requests and answers of the server: CSV files with a series, and the forecast of each."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import File, UploadFile
from lightning import LightningDataModule, LightningModule
from pydantic import BaseModel, Field

SUFFIX = ".csv"


class Upload(NamedTuple):
    """An input: its name in the answer, and the content of the file that the data module reads."""

    name: str
    content: bytes


class Prediction(BaseModel):
    """What predict.py prints for a column at a step."""

    input: str = Field(description="Name of the file.")
    time: str
    column: str
    forecast: float


def prediction_type(model: LightningModule) -> type[BaseModel]:
    return Prediction


def make_reader(data: LightningDataModule) -> Callable[..., Awaitable[list[Upload]]]:
    """A dependency of FastAPI that reads the inputs of a request."""

    async def read(files: Annotated[list[UploadFile], File(description="CSV files with a series.")]) -> list[Upload]:
        return [Upload(file.filename or "series", await file.read()) for file in files]

    return read


def finish_row(row: dict[str, Any], file: Path, name: str) -> dict[str, Any]:
    """Return a row of the answer, with the name of the upload in place of the temporary file."""
    return row | {"input": name}
