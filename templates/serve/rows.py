"""Requests and answers of the server: rows of a table, and the number or the class of each."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from lightning import LightningDataModule, LightningModule
from pydantic import BaseModel, Field, WithJsonSchema, create_model

SUFFIX = ".json"


class Upload(NamedTuple):
    """An input: its name in the answer, and the content of the file that the data module reads."""

    name: str
    content: bytes


class Prediction(BaseModel):
    """What predict.py prints for a row."""

    input: str = Field(description="Place of the row in the request.")
    truth: str | float | None = Field(None, description="Value of the target, if the row has it.")


class NumberPrediction(Prediction):
    prediction: float


class ClassPrediction(Prediction):
    class_: str = Field(alias="class")
    probability: float = Field(ge=0, le=1)


def prediction_type(model: LightningModule) -> type[BaseModel]:
    return NumberPrediction if model.task == "regression" else ClassPrediction


def row_schema(data: LightningDataModule) -> dict[str, Any]:
    """The JSON schema of a row: numbers, or texts in the form of the training data; null is a gap."""
    numbers = {"type": ["number", "string", "null"]}
    columns: dict[str, Any] = {
        name: numbers | {"examples": [round(mean, 4)]} for name, (mean, _) in data.numbers.items()
    }
    for name, values in data.categories.items():
        columns[name] = {"type": ["string", "number", "null"], "examples": values[:20]}
    return {"type": "object", "properties": columns, "required": list(columns)}


def make_reader(data: LightningDataModule) -> Callable[..., Awaitable[list[Upload]]]:
    """A dependency of FastAPI that reads the inputs of a request."""
    # The data module checks each row, so that one that is wrong does not fail the others.
    row = Annotated[Any, WithJsonSchema(row_schema(data))]
    Rows: Any = create_model("Rows", rows=(list[row], Field(min_length=1)))  # type: ignore[valid-type]

    async def read(body: Rows) -> list[Upload]:
        return [Upload(f"rows[{i}]", json.dumps([row]).encode()) for i, row in enumerate(body.rows)]

    return read


def finish_row(row: dict[str, Any], file: Path, name: str) -> dict[str, Any]:
    """Return a row of the answer, with the number of the row of the request in place of the temporary file."""
    return row | {"input": name}
