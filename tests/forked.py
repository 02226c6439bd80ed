"""Runs a script in a process of its own that has imported PyTorch and Lightning already, which takes most of a command.

The processes are forked from a server that has imported the packages and done nothing else.
"""

import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGES = [
    *(
        "lightning.pytorch.cli",
        "lightning.pytorch.loggers",
        "torchvision",
        "torchmetrics.classification",
        "torch.export",
    ),
    *(
        "torch.export",
        "torch.utils.tensorboard",
        "matplotlib.figure",
        "sklearn.datasets",
        "pandas",
        "rich.table",
        "filelock",
        "yaml",
    ),
]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run side by side
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PACKAGES)


def run(script: str, arguments: list[str], folder: Path, environment: dict[str, str], output: Path) -> int:
    """Run `python SCRIPT ARGUMENTS` in a folder, with its output in two files; return the exit status.

    Args:
        script: Path of a script, or "-c" with the code as the first argument.
        arguments: Its arguments.
        folder: Working directory.
        environment: All environment variables.
        output: Folder for the files stdout and stderr.
    """
    process = start(script, arguments, folder, environment, output)
    process.join()
    return process.exitcode or 0


def start(
    script: str, arguments: list[str], folder: Path, environment: dict[str, str], output: Path
) -> multiprocessing.process.BaseProcess:
    """Start the same without waiting for its end."""
    process = CONTEXT.Process(target=_execute, args=(script, arguments, folder, environment, output))
    process.start()
    return process


class Forked:
    """A script in a process of its own, with the methods of `subprocess.Popen` that the tests use.

    Attributes:
        stdout: Output of the script, its errors included.
    """

    def __init__(self, script: str, arguments: list[str], environment: dict[str, str]) -> None:
        self.output = TemporaryDirectory()
        folder = Path(self.output.name)
        os.mkfifo(folder / "stdout")
        (folder / "stderr").symlink_to("stdout")
        self.process = start(script, arguments, folder, environment, folder)
        assert self.process.pid is not None
        self.pid = self.process.pid
        self.stdout = open(folder / "stdout", encoding="utf-8")  # noqa: SIM115

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        self.stdout.close()
        self.output.cleanup()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _execute(script: str, arguments: list[str], folder: Path, environment: dict[str, str], output: Path) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1, "utf-8"), open(2, "w", 1, "utf-8")  # noqa: SIM115
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    warnings.resetwarnings()
    for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", ignored)
    logging.root.handlers.clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tests = str(Path(__file__).parent)
    sys.path[:] = ["" if script == "-c" else str(Path(script).parent), *(p for p in sys.path if p and p != tests)]
    sys.argv = [script, *arguments]
    status = 0
    try:
        if script == "-c":
            sys.argv = ["-c", *arguments[1:]]
            exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if status and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
