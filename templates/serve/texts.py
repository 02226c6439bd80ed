"""Requests and answers of the server: texts, and the class of each."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from lightning import LightningDataModule, LightningModule
from pydantic import BaseModel, Field, WithJsonSchema

SUFFIX = ".json"


class Upload(NamedTuple):
    """An input: its name in the answer, and the content of the file that the data module reads."""

    name: str
    content: bytes


class Prediction(BaseModel):
    """What predict.py prints for a text."""

    input: str = Field(description="The text.")
    class_: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


# The data module checks each text, so that one that is wrong does not fail the others.
Text = Annotated[Any, WithJsonSchema({"type": "string"})]


class Texts(BaseModel):
    texts: list[Text] = Field(min_length=1, examples=[["a text", "another text"]])


def prediction_type(model: LightningModule) -> type[BaseModel]:
    return Prediction


def make_reader(data: LightningDataModule) -> Callable[..., Awaitable[list[Upload]]]:
    """A dependency of FastAPI that reads the inputs of a request."""

    async def read(body: Texts) -> list[Upload]:
        return [Upload(f"texts[{i}]", json.dumps([text]).encode()) for i, text in enumerate(body.texts)]

    return read


def finish_row(row: dict[str, Any], file: Path, name: str) -> dict[str, Any]:
    """Return a row of the answer."""
    return row
