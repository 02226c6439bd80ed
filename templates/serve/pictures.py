"""Requests and answers of the server: picture files, and the class of each."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import File, UploadFile
from lightning import LightningDataModule, LightningModule
from PIL import Image
from pydantic import BaseModel, Field

SUFFIX = ""  # the content tells the format
Image.MAX_IMAGE_PIXELS = 25_000_000  # Pillow refuses more than twice as many


class Upload(NamedTuple):
    """An input: its name in the answer, and the content of the file that the data module reads."""

    name: str
    content: bytes


class Prediction(BaseModel):
    """What predict.py prints for a picture."""

    input: str = Field(description="Name of the file.")
    class_: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


def prediction_type(model: LightningModule) -> type[BaseModel]:
    return Prediction


def make_reader(data: LightningDataModule) -> Callable[..., Awaitable[list[Upload]]]:
    """A dependency of FastAPI that reads the inputs of a request."""

    async def read(
        files: Annotated[list[UploadFile], File(description="JPEG, PNG and other pictures, up to 50 megapixels.")],
    ) -> list[Upload]:
        return [Upload(file.filename or "picture", await file.read()) for file in files]

    return read


def finish_row(row: dict[str, Any], file: Path, name: str) -> dict[str, Any]:
    """Return a row of the answer, with the name of the upload in place of the temporary file."""
    return row | {"input": name}
