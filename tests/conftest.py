"""Bakes and trains projects, each once a session, and runs their commands as their users would."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import forked
import pytest

import data_files

TEMPLATE = Path(__file__).resolve().parents[1]
QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
VARIANTS: list[str] = QUESTIONS["variant"]
LOGGERS: list[str] = QUESTIONS["logger"]

Bake = Callable[..., "Project"]


@dataclass(frozen=True)
class Project:
    """A baked project."""

    path: Path
    elsewhere: Path

    def run(self, *command: str | Path, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `python COMMAND`, a script of the project, from a folder outside of it, and assert its exit status.

        The process has imported PyTorch and Lightning already.
        """
        script, rest, folder, environment = self._prepare(command, variables)
        if sys.platform == "win32":
            return self._run_in_a_new_interpreter(script, rest, folder, environment, status)
        with TemporaryDirectory() as output:
            code = forked.run(script, rest, folder, environment, Path(output))
            printed = (Path(output, name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
            done = subprocess.CompletedProcess([script, *rest], code, *printed)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def run_fresh(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """The same in an interpreter that has imported nothing, as a person starts it."""
        return self._run_in_a_new_interpreter(*self._prepare(command, {}), 0)

    def _prepare(
        self, command: tuple[str | Path, ...], variables: dict[str, str]
    ) -> tuple[str, list[str], Path, dict[str, str]]:
        script, *rest = map(str, command)
        if script.endswith(".py"):
            script = str(self.path / script)
        environment = os.environ | {"COLUMNS": "200", "MPLCONFIGDIR": str(self.elsewhere)} | variables
        return script, rest, self.path if script.startswith("-") else self.elsewhere, environment

    @staticmethod
    def _run_in_a_new_interpreter(
        script: str, rest: list[str], folder: Path, environment: dict[str, str], status: int
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, script, *rest],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def module(self, name: str, *rest: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m NAME` in the project's folder."""
        return self.run_fresh("-m", name, *rest)

    def runs(self) -> list[Path]:
        """The run folders, the oldest first."""
        return sorted(file.parent for file in (self.path / "logs").glob("*/run.json"))


@dataclass(frozen=True)
class Run:
    """A project that was trained, what it trained on, and what it printed."""

    variant: str
    project: Project
    folder: Path
    data: data_files.Data
    stdout: str
    stderr: str

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="session")
def bake(cookies_session, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """Bake a project, or return the one with the same answers unless it must be `fresh`."""
    baked: dict[str, Project] = {}

    def bake(fresh: bool = False, **answers: str) -> Project:
        key = json.dumps(answers, sort_keys=True)
        if fresh or key not in baked:
            result = cookies_session.bake(extra_context=answers, template=str(TEMPLATE))
            assert result.exception is None, result.exception
            project = Project(result.project_path, tmp_path_factory.mktemp("elsewhere"))
            if fresh:
                return project
            baked[key] = project
        return baked[key]

    return bake


@pytest.fixture(scope="session")
def train(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Train a variant on learnable data in the variant's own format."""
    trained: dict[str, Run] = {}

    def train(variant: str) -> Run:
        if variant not in trained:
            project = bake(fresh=True, variant=variant, project_name=f"trained_{variant.replace('-', '_')}")
            data = data_files.WRITERS[variant](tmp_path_factory.mktemp("data"))
            done = project.run_fresh("training/train.py", *data.flags)
            (folder,) = project.runs()
            trained[variant] = Run(variant, project, folder, data, done.stdout, done.stderr)
        return trained[variant]

    return train


def by(variants: list[str]) -> Callable[[Callable], Callable]:
    """Run a test once for each variant; tests of one variant share a process, so that it is trained once."""
    cases = [pytest.param(variant, id=variant, marks=pytest.mark.xdist_group(variant)) for variant in variants]
    return pytest.mark.parametrize("variant", cases)


by_variant = by(VARIANTS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, of playwright or of the system."""
    api = pytest.importorskip("playwright.sync_api", reason="pages are tested with playwright")
    with api.sync_playwright() as playwright:
        installed = playwright.chromium.executable_path
        chromium = installed if Path(installed).exists() else which("chromium") or which("chromium-browser")
        if not chromium:
            pytest.skip("there is no Chromium to test pages with")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
