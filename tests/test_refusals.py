"""Answers become a project whose files parse, or are refused with nothing left behind."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from cookiecutter.exceptions import CookiecutterException
from cookiecutter.main import cookiecutter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from conftest import TEMPLATE


def bake(output: Path, *answers: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `cookiecutter TEMPLATE` with answers on the command line, or typed."""
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--output-dir", str(output), *answers]
    environment = os.environ | {"COOKIECUTTER_CONFIG": str(output.parent / "none.yaml"), "PYTHONIOENCODING": "utf-8"}
    (output.parent / "none.yaml").write_text("{}", encoding="utf-8")
    command += [] if typed is not None else ["--no-input"]
    return subprocess.run(command, input=typed, env=environment, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../x", "is no portable folder name"),
        ("/tmp/x", "is no portable folder name"),
        ("a/b", "is no portable folder name"),
        ("9lives", "is no portable folder name"),
        ("-dash", "is no portable folder name"),
        ("two words", "is no portable folder name"),
        ("dot.", "is no portable folder name"),
        ("space ", "is no portable folder name"),
        ("ünicode", "is no portable folder name"),
        ("a" * 65, "is no portable folder name"),
        ('"""', "is no portable folder name"),
        ("CON", "is the name of a device on Windows"),
        ("nul", "is the name of a device on Windows"),
        ("Com1", "is the name of a device on Windows"),
        ("torch", "would shadow the Python package of that name"),
        ("Lightning", "would shadow the Python package of that name"),
        ("sklearn", "would shadow the Python package of that name"),
        ("models", "would shadow the Python package of that name"),
        ("json", "would shadow the Python package of that name"),
    ],
)
def test_name_is_refused_in_one_sentence(output: Path, name: str, sentence: str) -> None:
    done = bake(output, f"project_name={name}")
    assert done.returncode != 0
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: project_name ")
    assert sentence in first
    assert list(output.iterdir()) == []
    assert {path.name for path in output.parent.iterdir()} == {"output", "none.yaml"}
    assert not Path("/tmp/x").exists()


def test_empty_name_is_refused(output: Path) -> None:
    done = bake(output, "project_name=")
    assert done.returncode != 0
    assert list(output.iterdir()) == []


def test_existing_folder_is_refused_and_left_alone(output: Path) -> None:
    mine = output / "mine" / "precious.txt"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    done = bake(output, "project_name=mine")
    assert done.returncode != 0
    assert "already exists" in done.stdout + done.stderr
    assert list(mine.parent.iterdir()) == [mine]
    assert mine.read_text(encoding="utf-8") == "mine"


def test_unknown_variant_is_refused(output: Path) -> None:
    done = bake(output, "variant=digits-rnn")
    assert done.returncode != 0
    assert "digits-rnn" in done.stdout + done.stderr
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("question", ["description", "author"])
def test_control_character_is_refused(output: Path, question: str) -> None:
    done = bake(output, f"{question}=a\x07b")
    assert done.stderr.startswith(f"error: {question} holds the control character '\\x07': leave it out\n")
    assert list(output.iterdir()) == []


def test_end_of_a_bake_says_what_to_type(output: Path) -> None:
    done = bake(output, "project_name=mine")
    assert done.stdout.splitlines() == ["cd mine", "pip install -r requirements.txt", "python training/train.py"]


def check_project(folder: Path, description: str, author: str) -> None:
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"))
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["description"] == " ".join(description.split())
    assert project["authors"] == [{"name": " ".join(author.split())}]
    yaml.safe_load((folder / "configs" / "config.yaml").read_text(encoding="utf-8"))
    readme = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    assert readme[0] == f"# {folder.name}"
    assert readme[2].startswith("About: ")
    assert readme[4].startswith("By: ")
    assert readme[6] == "## Start"  # whatever the answers hold, they end where their lines end
    assert "<" not in readme[2] + readme[4]


def test_typed_answers_are_taken_literally(output: Path) -> None:
    description = (
        r"""{{ cookiecutter }} {% raw %} {# "quotes" 'and' \backslashes\ 😀 <!-- ``` $(touch owned) `id` ]]> &amp;"""
    )
    author = 'Ünï {{ 7 * 7 }} O\'Neil "x" \\'
    done = bake(output, typed=f"typed\n{description}\n{author}\n1\n1\n")
    assert done.returncode == 0, done.stderr
    check_project(output / "typed", description, author)
    assert sorted(path.name for path in output.rglob("owned*")) == []


# The command line's answers are templates to cookiecutter itself, before this one sees them; single braces are not.
text = st.text(max_size=80).filter(lambda s: not any(mark in s for mark in ("{{", "{%", "{#")))


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.text(max_size=12) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,10}", fullmatch=True), line=text, who=text)
@example(name="mine", line='"""', who="'''")
@example(name="mine", line="\\", who="a\\")
@example(name="mine", line="a\nb\r\nc\td\u2028e\x85f", who="\n")
@example(name="mine", line="} }} %} #} {x} { {", who="}{")
@example(name="mine", line="# - [x] ``` <!-- ~~~", who="<b>")
@example(name="mine", line="😀 \ufeff \uffff", who="\U0010ffff")
def test_any_answer_bakes_or_is_refused(name: str, line: str, who: str) -> None:
    with TemporaryDirectory() as temporary:
        output = Path(temporary, "output")
        output.mkdir()
        answers = {"project_name": name, "description": line, "author": who}
        try:
            folder = cookiecutter(str(TEMPLATE), no_input=True, extra_context=answers, output_dir=str(output))
        except (CookiecutterException, TemplateError, OSError, UnicodeError, ValueError):
            assert list(output.iterdir()) == []
        else:
            assert Path(folder) == output / name
            check_project(Path(folder), line, who)
        assert list(Path(temporary).iterdir()) == [output]
