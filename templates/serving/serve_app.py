"""The web application: its limits on requests, its predictions and its page."""

import asyncio
import platform
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from anyio import move_on_after
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field, create_model

from training.engine.evaluation import CheckpointCLI, predict
from training.engine.files import fingerprint
from training.predict import rows_of
from training.serve_inputs import SUFFIX, Upload, finish_row, make_reader, prediction_type

PAGE = Path(__file__).with_name("serve_page.html")
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Problem(BaseModel):
    """Why a request has no answer."""

    detail: str


class Health(BaseModel):
    """What the server predicts with."""

    checkpoint: str
    sha256: str = Field(description="Digest of the checkpoint file.")
    versions: dict[str, str]


def answer_type(prediction: type[BaseModel]) -> type[BaseModel]:
    """The answer to a request: for each input, its predictions, or why it cannot be read."""
    many = list[prediction]  # type: ignore[valid-type]
    result: Any = create_model("Result", input=(str, ...), predictions=(many, ...), error=(str | None, ...))
    return create_model("Answer", results=(list[result], Field(description="In the order of the inputs.")))


class Limits:
    """Middleware that refuses requests that are too large, too many or too slow, with a status and one sentence.

    Args:
        app: The application.
        size: Largest size of a request's body in bytes.
        count: Largest number of requests that run or wait at the same time.
        seconds: Longest time of a request, including the time that the client takes to send it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], size: int, count: int, seconds: float) -> None:
        self.app, self.size, self.count, self.seconds = app, size, count, seconds
        self.running = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self.running >= self.count:
            reason = f"the limit of {self.count} running or waiting requests is reached: try again later"
            await self._refuse(503, reason, scope, receive, send)
        elif int(dict(scope["headers"]).get(b"content-length", 0)) > self.size:
            await self._refuse(413, self._too_large(), scope, receive, send)
        else:
            self.running += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self.running -= 1

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        received, started = 0, False

        async def receive_some() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.size:
                raise HTTPException(413, self._too_large())
            return message

        async def send_some(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        with move_on_after(self.seconds) as limit:
            await self.app(scope, receive_some, send_some)
        if limit.cancelled_caught and not started:
            reason = f"there is no answer after {self.seconds:g} seconds: send fewer inputs, or raise --timeout"
            await self._refuse(504, reason, scope, receive, send)

    def _too_large(self) -> str:
        return f"the request is larger than {self.size} bytes: send fewer or smaller inputs"

    @staticmethod
    async def _refuse(status: int, sentence: str, scope: Any, receive: Receive, send: Send) -> None:
        await JSONResponse({"detail": sentence}, status)(scope, receive, send)


class Predictor:
    """Predictor that works as predict.py does, by the same data module, model and trainer.

    Args:
        cli: The model with its data.
    """

    def __init__(self, cli: CheckpointCLI) -> None:
        self.cli = cli
        cli.restore()
        # setup and configure_model would make layers again, with random weights.
        cli.model.setup = cli.model.configure_model = lambda **options: None  # type: ignore[method-assign]
        cli.ckpt_path = None  # type: ignore[assignment] # the trainer would read it again for each request
        cli.datamodule.num_workers = 0  # starting worker processes would take longer than reading a few inputs

    def __call__(self, uploads: Sequence[Upload]) -> list[dict[str, Any]]:
        """Predict the inputs that can be read, and return a result for each input; the others have an error."""
        with TemporaryDirectory(prefix="serve-") as folder:
            files = [Path(folder, f"{i}{SUFFIX}") for i in range(len(uploads))]
            results: list[dict[str, Any]] = []
            for file, upload in zip(files, uploads, strict=True):
                file.write_bytes(upload.content)
                results.append({"input": upload.name, "predictions": [], "error": self._find_error(file, upload.name)})
            good = [i for i, result in enumerate(results) if result["error"] is None]
            if good:
                rows = self._predict([files[i] for i in good])
                for i, part in zip(good, rows, strict=True):
                    results[i]["predictions"] = [finish_row(row, files[i], uploads[i].name) for row in part]
        return results

    def _find_error(self, file: Path, name: str) -> str | None:
        """The sentence that says why an input cannot be read, or None."""
        data = self.cli.datamodule
        data.inputs = [str(file)]
        try:
            data.setup("predict")
            dataset = data.predict_dataloader().dataset
            for i in range(len(dataset)):
                dataset[i]
        except (OSError, ValueError) as error:
            return " ".join(str(error).replace(repr(file), repr(name)).replace(str(file), name).split())
        return None

    def _predict(self, files: list[Path]) -> list[list[dict[str, Any]]]:
        """The rows of each file."""
        outputs = predict(self.cli, [str(file) for file in files])
        rows = [row for output in outputs for row in rows_of(output)]
        groups = [[row for row in rows if row["input"] == str(file)] for file in files]
        if not any(groups):  # no row names its file in the column "input"; then all files have equally many rows
            share = len(rows) // len(files)
            groups = [rows[i * share : (i + 1) * share] for i in range(len(files))]
        return groups


def make_app(cli: CheckpointCLI) -> FastAPI:
    """The application that answers with the predictions of a checkpoint."""
    health = Health(
        checkpoint=str(Path(*cli.ckpt_path.parts[-3:])),
        sha256=fingerprint(cli.ckpt_path),
        versions={name: version(name) for name in ("torch", "lightning")} | {"python": platform.python_version()},
    )
    predictor, pool = Predictor(cli), ThreadPoolExecutor(1)  # one request at a time uses the model
    read_uploads, answer, config = make_reader(cli.datamodule), answer_type(prediction_type(cli.model)), cli.config
    app = FastAPIOffline(title=f"Predictions of {health.checkpoint}", redoc_url=None)
    size = int(config.max_megabytes * 1e6)
    app.add_middleware(Limits, size=size, count=config.max_requests, seconds=config.timeout)

    problems: dict[int | str, dict[str, Any]] = {
        413: {"model": Problem, "description": "The request is too large, or has too many inputs."},
        422: {"model": Problem, "description": "No input can be read."},
        503: {"model": Problem, "description": "Too many requests are running."},
        504: {"model": Problem, "description": "The request takes too long."},
    }

    @app.exception_handler(RequestValidationError)
    def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def show_page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    def report_health() -> Health:
        return health

    @app.post("/predict", response_model=answer, responses=problems, response_model_exclude_unset=True)
    async def predict_inputs(uploads: Annotated[list[Upload], Depends(read_uploads)]) -> dict[str, Any]:
        if len(uploads) > config.max_inputs:
            raise HTTPException(413, f"{len(uploads)} inputs are too many: send at most {config.max_inputs}")
        results = await asyncio.get_running_loop().run_in_executor(pool, partial(predictor, uploads))
        errors = [result["error"] for result in results if result["error"]]
        if len(errors) == len(results):
            raise HTTPException(422, "; ".join(errors))
        return {"results": results}

    return app
