"""Serve predictions over HTTP: `python training/serve.py [--ckpt_path FILE] [--host 127.0.0.1] [--port 8000]`."""

import math
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI
from training.engine.interrupts import Interrupts, run_command

PACKAGES = {
    "fastapi": "fastapi>=0.115,<1",
    "fastapi_offline": "fastapi-offline>=1.7,<2",
    "uvicorn": "uvicorn>=0.30,<1",
    "multipart": "python-multipart>=0.0.18,<1",
    "pydantic": "pydantic>=2.9,<3",
    "anyio": "anyio>=4,<5",
}


class ServeCLI(CheckpointCLI):
    description = "Answer HTTP requests with the predictions of a checkpoint."

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        help_ = "Address to listen on; 0.0.0.0 accepts requests from other machines."
        parser.add_argument("--host", type=str, default="127.0.0.1", help=help_)
        help_ = "Port to listen on; 0 chooses a free one."
        parser.add_argument("--port", type=NonNegativeInt, default=8000, help=help_)
        help_ = "Largest size of a request in megabytes; larger ones get status 413."
        parser.add_argument("--max_megabytes", type=PositiveFloat, default=32.0, help=help_)
        help_ = "Largest number of inputs in a request; more get status 413."
        parser.add_argument("--max_inputs", type=PositiveInt, default=64, help=help_)
        help_ = "Largest number of requests that run or wait at the same time; more get status 503."
        parser.add_argument("--max_requests", type=PositiveInt, default=32, help=help_)
        help_ = "Seconds after which a request gets status 504."
        parser.add_argument("--timeout", type=PositiveFloat, default=60.0, help=help_)


def main(args: list[str] | None = None) -> None:
    if missing := [package for name, package in PACKAGES.items() if not find_spec(name)]:
        names = " ".join(f'"{package}"' for package in missing)
        raise OSError(f"serve.py needs more packages: pip install {names}")
    from uvicorn import Config, Server

    from training.serve_app import make_app

    cli = ServeCLI(MyModel, MyDataModule, args)
    Interrupts().listen()
    checkpoint, host, port, wait = cli.ckpt_path, cli.config.host, cli.config.port, math.ceil(cli.config.timeout)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}; choose another --host or --port") from error
    address = f"[{host}]" if ":" in host else host
    config = Config(make_app(cli), log_level="warning", access_log=False, timeout_graceful_shutdown=wait)
    print(f"serving {checkpoint} at http://{address}:{listener.getsockname()[1]} until Ctrl-C", flush=True)
    Server(config).run(sockets=[listener])


if __name__ == "__main__":
    run_command(main)
