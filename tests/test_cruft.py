"""A project can follow its template: `cruft update` brings what is new and keeps what is one's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TEMPLATE, Project

IDENTITY = {f"GIT_{role}_{key}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}


def call(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=os.environ | IDENTITY,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path, message: str) -> None:
    call(folder, "git", "add", "--all")
    call(folder, "git", "commit", "--quiet", "--message", message)


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.slow
def test_project_follows_its_template_and_keeps_its_edits(tmp_path: Path) -> None:
    template = tmp_path / "template"
    if (TEMPLATE / ".git").exists():
        call(tmp_path, "git", "clone", "--quiet", TEMPLATE, template)
    else:  # an unpacked archive
        shutil.copytree(TEMPLATE, template, ignore=shutil.ignore_patterns(".venv", "demo", "__pycache__", ".*_cache"))
        call(template, "git", "init", "--quiet")
        commit(template, "Unpack")
    call(tmp_path, sys.executable, "-m", "cruft", "create", template, "--no-input")
    project = Project(tmp_path / "my_project", tmp_path)
    call(project.path, "git", "init", "--quiet")
    commit(project.path, "Bake")

    replace(project.path / "configs" / "config.yaml", "  # lr: ", "  lr: 0.02  # ")
    replace(project.path / "models" / "my_model.py", "nn.ReLU()", "nn.GELU()")
    commit(project.path, "Make it mine")

    replace(template / "templates" / "models" / "cnn.py", '"""A small', '"""The smallest')
    replace(template / "{{cookiecutter.project_name}}" / "README.md", "## Start", "## Begin")
    commit(template, "Improve")

    call(project.path, sys.executable, "-m", "cruft", "update", "--skip-apply-ask")
    model = (project.path / "models" / "my_model.py").read_text(encoding="utf-8")
    assert model.startswith('"""The smallest')
    assert "nn.GELU()" in model
    assert "## Begin" in (project.path / "README.md").read_text(encoding="utf-8")
    assert "lr: 0.02" in (project.path / "configs" / "config.yaml").read_text(encoding="utf-8")
    assert not list(project.path.rglob("*.rej"))

    project.run("training/train.py", "--trainer.max_epochs=1")
    (run,) = project.runs()
    assert "lr: 0.02" in (run / "config.yaml").read_text(encoding="utf-8")
    described = (run / "run.json").read_text(encoding="utf-8")
    assert call(project.path, "git", "rev-parse", "HEAD").strip() + "-dirty" in described
