"""Ctrl-C in a terminal reaches every process of a run: it is saved all the same, and resumed exactly."""

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conftest import Bake
from data_files import WRITERS
from faults.kills import ForkedRunner, Process, Runner, compare, runs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")]
FLAGS = ["--trainer.max_epochs=3", "--trainer.logger=false", "--data.num_workers=2", "--checkpoint_minutes=60"]


class Terminal(Runner):
    """Runs the script as the foreground process of a terminal."""

    def start(self, *more: str) -> subprocess.Popen[str]:
        self.controller, terminal = pty.openpty()
        command = [sys.executable, "-u", str(self.project / "training" / "train.py"), *more]
        process = subprocess.Popen(
            command,
            env=self.environment | {"TERM": "xterm"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the controlling terminal
        )
        os.close(terminal)
        self.shown = b""
        self.reader = threading.Thread(target=self.read)  # a terminal that nobody reads would block the run
        self.reader.start()
        return process

    def read(self) -> None:
        try:
            while part := os.read(self.controller, 65536):
                self.shown += part
        except OSError:  # the last process has closed the terminal
            pass

    def finish(self, process: Process) -> int:
        self.reader.join()
        os.close(self.controller)
        self.output = self.shown.decode(errors="replace")
        return process.wait()


@pytest.mark.parametrize(
    ("by", "variant"),
    [
        ("Ctrl-C", "digits-cnn"),
        ("Ctrl-C", "image-folder"),
        ("Ctrl-C", "segmentation"),
        ("SIGTERM to the group", "digits-cnn"),
    ],
)
def test_interrupting_a_run_with_workers_saves_it(bake: Bake, variant: str, by: str, tmp_path: Path) -> None:
    project = bake(fresh=True, variant=variant, project_name="interrupted").path
    flags = [*WRITERS[variant](tmp_path).flags, *FLAGS, "--trainer.limit_test_batches=1"]
    if variant != "digits-cnn":
        flags += ["--data.batch_size=8", "--trainer.limit_train_batches=6", "--trainer.limit_val_batches=1"]
    plain = ForkedRunner(project, flags)
    assert plain.to_the_end(*flags) == 0, plain.output
    reference = runs(project)[-1]

    terminal = Terminal(project, flags)
    process = terminal.start(*flags)
    before = set(runs(project))
    while process.poll() is None and set(runs(project)) == before:
        pass
    (folder,) = set(runs(project)) - before
    terminal.until_file(process, folder / "checkpoints" / "last.ckpt")
    if by == "Ctrl-C":
        os.write(terminal.controller, b"\x03")
    else:
        os.killpg(process.pid, signal.SIGTERM)
    status = terminal.finish(process)
    assert status == (130 if by == "Ctrl-C" else 143), terminal.output
    assert "Traceback" not in terminal.output and "DataLoader worker" not in terminal.output
    assert "--resume" in terminal.output
    assert plain.to_the_end("--resume", folder.name) == 0, plain.output
    assert compare(reference, folder) == []
