"""Answers become a project whose files parse, or are refused with nothing left behind."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from cookiecutter.exceptions import CookiecutterException, FailedHookException
from cookiecutter.main import cookiecutter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from conftest import TEMPLATE


def bake(output: Path, *answers: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `cookiecutter TEMPLATE` with answers on the command line, or typed."""
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--output-dir", str(output), *answers]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    command += [] if typed is not None else ["--no-input"]
    return subprocess.run(command, input=typed, env=environment, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _own_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep cookiecutter from reading the user's settings, and from writing the answers into the home folder."""
    folder = tmp_path_factory.mktemp("configuration")
    replays = {"replay_dir": str(folder / "replay"), "cookiecutters_dir": str(folder / "templates")}
    (folder / "config.yaml").write_text(yaml.safe_dump(replays), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COOKIECUTTER_CONFIG", str(folder / "config.yaml"))
        yield


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../x", "not a portable folder name"),
        ("a/b", "not a portable folder name"),
        ("x/../../y", "not a portable folder name"),
        ("a/b/../c", "not a portable folder name"),
        ("x/", "not a portable folder name"),
        ("9lives", "not a portable folder name"),
        ("-dash", "not a portable folder name"),
        ("two words", "not a portable folder name"),
        ("dot.", "not a portable folder name"),
        ("space ", "not a portable folder name"),
        ("ünicode", "not a portable folder name"),
        ("a" * 65, "not a portable folder name"),
        ('"""', "not a portable folder name"),
        ("CON", "is the name of a device on Windows"),
        ("nul", "is the name of a device on Windows"),
        ("Com1", "is the name of a device on Windows"),
        ("torch", "would shadow the Python package of that name"),
        ("Lightning", "would shadow the Python package of that name"),
        ("sklearn", "would shadow the Python package of that name"),
        ("pycocotools", "would shadow the Python package of that name"),
        ("tokenizers", "would shadow the Python package of that name"),
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
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("place", ["x", "x/y", "output/x"])
def test_absolute_path_is_refused_and_the_output_folder_stays(output: Path, place: str) -> None:
    done = bake(output, f"project_name={(output.parent / place).as_posix()}")
    assert done.returncode != 0
    assert "not a portable folder name" in done.stderr.splitlines()[0]
    assert list(output.parent.iterdir()) == [output]
    assert list(output.iterdir()) == []


def test_empty_name_is_refused(output: Path) -> None:
    done = bake(output, "project_name=")  # cookiecutter takes it for the output folder
    assert done.returncode != 0
    assert "already exists" in done.stdout + done.stderr
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_name_of_the_output_folder_is_refused_when_it_may_be_overwritten(output: Path, name: str) -> None:
    (output / "mine.txt").write_text("mine", encoding="utf-8")
    done = bake(output, f"project_name={name}", "--overwrite-if-exists")
    assert done.returncode != 0
    assert "not a portable folder name" in done.stderr.splitlines()[0]
    assert list(output.parent.iterdir()) == [output]
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_name_beyond_what_a_file_system_holds_is_refused(output: Path) -> None:
    assert bake(output, f"project_name={'a' * 300}").returncode != 0
    assert list(output.iterdir()) == []


def imported() -> set[str]:
    """The top-level names of all that a project imports, whatever its variant and logger."""
    nodes = [
        node
        for folder in (TEMPLATE / "templates", TEMPLATE / "{{cookiecutter.project_name}}")
        for path in folder.rglob("*.py")
        if "{%" not in path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


def test_names_of_devices_and_of_imported_packages_are_refused(output: Path) -> None:
    devices = {"CON", "PRN", "AUX", "NUL"} | {f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10)}
    named = {"pytorch_lightning", "torchmetrics", "PIL", "onnx", "onnxscript", "tensorboard", "wandb", "mlflow"}
    assert {"torch", "lightning", "data", "training", "sklearn", "yaml"} <= imported()
    for name in sorted(devices | named | imported() | {name.upper() for name in imported()}):
        with pytest.raises(FailedHookException):
            cookiecutter(str(TEMPLATE), no_input=True, extra_context={"project_name": name}, output_dir=str(output))
        assert list(output.iterdir()) == []


def test_existing_folder_is_refused_and_unchanged(output: Path) -> None:
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
    assert done.stderr.startswith(f"error: {question} contains the control character '\\x07'")
    assert list(output.iterdir()) == []


def test_end_of_a_bake_prints_the_next_commands(output: Path) -> None:
    done = bake(output, "project_name=mine")
    assert done.stdout.splitlines() == ["cd mine", "pip install -r requirements.txt", "python training/train.py"]


def check_project(folder: Path, description: str, author: str) -> None:
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"))
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?", project["name"])  # what pip and uv accept
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
    done = bake(output, typed=f"typed\n{description}\n{author}\n1\n1\n1\n1\n")
    assert done.returncode == 0, done.stderr
    check_project(output / "typed", description, author)
    assert sorted(path.name for path in output.rglob("owned*")) == []


# The command line's answers are templates to cookiecutter itself, before this one sees them; single braces are not.
text = st.text(max_size=80).filter(lambda s: not any(mark in s for mark in ("{{", "{%", "{#")))


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.text(max_size=12) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,10}", fullmatch=True), line=text, who=text)
@example(name="_", line="", who="")
@example(name="_x-", line="[link](x) | cell", who="@")
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


@pytest.mark.parametrize(
    "given_text", ["{{ 7 * 7 }}", "{{ cookiecutter.author }} {# x #}", "{% raw %}{{ x }}{% endraw %}"]
)
@pytest.mark.parametrize("question", ["description", "author"])
def test_answer_that_cookiecutter_renders_is_not_rendered_again(output: Path, question: str, given_text: str) -> None:
    rendered = {"{{ 7 * 7 }}": "49", "{{ cookiecutter.author }} {# x #}": "Your Name"}.get(given_text, "{{ x }}")
    try:
        cookiecutter(str(TEMPLATE), no_input=True, extra_context={question: given_text}, output_dir=str(output))
    except (CookiecutterException, TemplateError):
        assert list(output.iterdir()) == []
    else:
        answers = {"description": "A PyTorch Lightning project", "author": "Your Name"} | {question: rendered}
        check_project(output / "my_project", **answers)


@pytest.mark.parametrize("given_text", ["{{", "{%", "{% x %}", "{{ x }}", "{{ cookiecutter.__class__.__mro__ }}"])
def test_broken_or_hostile_template_in_an_answer_leaves_a_sound_project_or_none(output: Path, given_text: str) -> None:
    try:
        cookiecutter(str(TEMPLATE), no_input=True, extra_context={"description": given_text}, output_dir=str(output))
    except (CookiecutterException, TemplateError):
        assert list(output.iterdir()) == []
    else:
        project = tomllib.loads((output / "my_project" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        check_project(output / "my_project", project["description"], "Your Name")
