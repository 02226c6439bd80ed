"""Signals that interrupt a run, and errors that end a command."""

import atexit
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from multiprocessing import active_children
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

USER_ERRORS = (OSError, FloatingPointError, MisconfigurationException)
# Warnings about Lightning's use of other packages, or about things that the engine handles.
IRRELEVANT = (
    ".*does not have many workers",
    ".*LeafSpec.* is deprecated",
    ".*exists and is not empty",
    ".*smaller than the logging interval",
    ".*have no `validation_step`",
    ".*callbacks used to create the checkpoint",
    ".*were assigned during export",
    r"\s*Unable to serialize instance",
)


def is_first_process() -> bool:
    """Return whether this is the only process of a run or the one with rank 0, which writes and prints."""
    return int(rank_zero_only.rank) == 0


class Interrupts:
    """Record of SIGINT, SIGTERM and, under SLURM, SIGUSR1, kept until the training loop acts on them.

    Outside of the loop, and at the second signal, the process exits at once with status 128 plus the signal's number.
    DataLoader workers also receive signals to the process group. They ignore the first one, because the main process
    still needs them.

    Attributes:
        signal: Number of the received signal, or None.
        deferred: Whether the training loop is running and acts on the signal itself.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.deferred = False
        self.process = os.getpid()
        atexit.register(end_workers)

    def listen(self) -> None:
        """Install the signal handlers, replacing those of Lightning."""
        for number in interrupt_signals():
            signal.signal(number, self._receive)

    def start_worker(self, then: Callable[[int], Any] | None, worker: int) -> None:
        """Install the handlers again in a DataLoader worker, where PyTorch has replaced that of SIGTERM."""
        self.listen()
        if then:
            then(worker)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        is_worker = os.getpid() != self.process
        if again or not (self.deferred or is_worker):
            sys.exit(128 + number)

    def leave(self, run: str) -> None:
        """Exit after a checkpoint was saved; requeue the job if SLURM announced its time limit.

        Args:
            run: Name of the run folder, for the message.
        """
        number = self.signal or signal.SIGTERM  # another process received it
        name = signal.Signals(number).name
        if is_first_process():
            print(f"interrupted by {name}; resume with: python training/train.py --resume {run}", file=sys.stderr)
            requeue_after(number)
        sys.exit(128 + number)


def interrupt_signals() -> list[signal.Signals]:
    """Return the signals that interrupt a run; under SLURM, SIGUSR1 announces the end of the job's time."""
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if SLURMEnvironment.detect() else [])]


def requeue_after(number: int) -> None:
    """Requeue the SLURM job, if the signal announced the end of its time."""
    if number not in (signal.SIGINT, signal.SIGTERM):
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)


def end_workers() -> None:
    """Kill the remaining DataLoader workers, which ignore the SIGTERM that they get at exit."""
    if os.name != "nt":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error for each
    for child in active_children():
        if child.daemon:
            child.kill()


def run_command(main: Callable[[], None]) -> None:
    """Run a command. Print the message of an error that the user can fix, no traceback; exit with status 1."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # prints its report
    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message=message)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output, such as head, has exited
        os._exit(128 + signal.SIGPIPE)
    except (*USER_ERRORS, RuntimeError, TypeError) as error:
        sentence = explain(error)
        if sentence is None or "--debug" in sys.argv:
            raise
        sys.exit(f"error: {sentence}")


def explain(error: Exception) -> str | None:
    """Return the message of an error that the user can fix, or None for a bug in the code."""
    # The message of an error in a worker process begins with the worker's traceback.
    message = re.split(r"\n\w+Error: ", str(error))[-1].rstrip()
    if isinstance(error, USER_ERRORS):
        return message
    if "DataLoader worker (pid" in message:
        return f"{message} It may have run out of memory: use fewer --data.num_workers"
    if "An invalid dataloader was returned" in message:
        return f"{message.splitlines()[0]} Return a DataLoader, or remove the method"
    if re.search("gloo|NCCL|Connection (closed|reset) by peer", message):
        return f"another process of the run has exited: resume with --resume ({message.splitlines()[0].split('. ')[0]})"
    return None


def warn(message: Any) -> None:
    """Print a warning to standard error, once for all processes."""
    if is_first_process():
        print(f"warning: {message}", file=sys.stderr, flush=True)
