"""Every baked project is complete, small, plain and clean."""

import ast
import re
import shlex
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import LOGGERS, QUESTIONS, TEMPLATE, VARIANTS, Bake, Project, by_variant

FILES = [
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "requirements.txt",
    "configs/config.yaml",
    "configs/sweep.yaml",
    "data/__init__.py",
    "data/data_module.py",
    "data/splits.py",
    "models/__init__.py",
    "models/my_model.py",
    "models/optimizers.py",
    "tests/conftest.py",
    "tests/test_model.py",
    "training/__init__.py",
    "training/evaluate.py",
    "training/export.py",
    "training/predict.py",
    "training/engine/__init__.py",
    "training/engine/checkpoint_files.py",
    "training/engine/checkpoints.py",
    "training/engine/command_line.py",
    "training/engine/estimate.py",
    "training/engine/evaluation.py",
    "training/engine/files.py",
    "training/engine/interrupts.py",
    "training/engine/loops.py",
    "training/engine/metrics_file.py",
    "training/engine/page.py",
    "training/engine/parser.py",
    "training/engine/plain_values.py",
    "training/engine/processes.py",
    "training/engine/reports.py",
    "training/engine/run.py",
    "training/engine/run_folder.py",
    "training/engine/run_record.py",
    "training/engine/resumed_epoch.py",
    "training/engine/trainer_options.py",
    "training/sweep.py",
    "training/sweeps/__init__.py",
    "training/sweeps/folds.py",
    "training/sweeps/index.py",
    "training/sweeps/plan.py",
    "training/sweeps/results.py",
    "training/sweeps/trials.py",
    "training/train.py",
]
LOGGER_FILES = {"wandb": ["training/quiet_wandb.py"], "mlflow": ["training/local_mlflow.py"]}
ROLES = {
    "data": "data",
    "model": "models",
    "module": "modules",
    "predict": "predict",
    "serve": "serve",
    "conftest": "conftest",
}


SERVER_FILES = {"fastapi": [f"training/serve{part}" for part in (".py", "_app.py", "_inputs.py", "_page.html")]}
CI_FILES = {"github": [".github/workflows/test.yml"]}


def expected_files(variant: str, logger: str = LOGGERS[0]) -> list[str]:
    module = QUESTIONS["_variants"][variant]["module"]
    return sorted([*FILES, f"data/{module}", *LOGGER_FILES.get(logger, [])])


def files(project: Project) -> list[str]:
    return sorted(path.relative_to(project.path).as_posix() for path in project.path.rglob("*") if path.is_file())


@by_variant
def test_project_holds_exactly_these_files(bake: Bake, variant: str) -> None:
    assert files(bake(variant=variant)) == expected_files(variant)


@pytest.mark.parametrize("logger", LOGGERS)
def test_logger_adds_its_own_file_at_most(bake: Bake, logger: str) -> None:
    assert files(bake(logger=logger)) == expected_files(VARIANTS[0], logger)


@by_variant
@pytest.mark.parametrize("serving", QUESTIONS["serving"])
def test_server_adds_its_own_files_at_most(bake: Bake, variant: str, serving: str) -> None:
    project = bake(variant=variant, serving=serving)
    assert files(project) == sorted([*expected_files(variant), *SERVER_FILES.get(serving, [])])
    if serving == "fastapi":
        assert size(project, "training/serve.py") <= 70
        project.module("ruff", "check", ".")
        project.module("ruff", "format", "--check", ".")


@pytest.mark.parametrize("ci", QUESTIONS["ci"])
def test_continuous_integration_is_one_file(bake: Bake, ci: str) -> None:
    project = bake(ci=ci)
    assert files(project) == sorted([*expected_files(VARIANTS[0]), *CI_FILES.get(ci, [])])
    assert (project.path / ".github").exists() == (ci == "github")


@pytest.mark.slow
def test_workflow_installs_what_it_runs_and_passes(bake: Bake) -> None:
    project = bake(ci="github")
    (file,) = CI_FILES["github"]
    (job,) = yaml.safe_load((project.path / file).read_text(encoding="utf-8"))["jobs"].values()
    commands = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    installed = " ".join(word for command in commands if command[0] == "pip" for word in command)
    assert "-r requirements.txt" in installed
    tools = [command for command in commands if command[0] != "pip"]
    assert [tool for tool, *_ in tools] == ["ruff", "pytest"]
    for tool, *rest in tools:
        assert f" {tool}>=" in installed
        project.module(tool, *rest)


@by_variant
@pytest.mark.parametrize("logger", LOGGERS)
def test_no_template_syntax_is_left(bake: Bake, variant: str, logger: str) -> None:
    project = bake(variant=variant, logger=logger)
    for path in project.path.rglob("*"):
        assert not re.search(r"[{}]", path.name)
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert "cookiecutter" not in text, path
            if path.name not in ("page.py", "index.py"):  # they hold Jinja templates of pages
                assert not re.search(r"\{\{|\{%|\{#", text), path
            assert text == "" or (text.endswith("\n") and not text.endswith("\n\n")), path


def test_files_of_variants_are_plain() -> None:
    """They are rendered too, so a brace of Jinja's in them would be lost; a logger and a server may use answers."""
    for path in (TEMPLATE / "templates").rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        if path.parent.name in ("loggers", "serving"):
            text = re.sub(r"\{\{ cookiecutter\.[^{}]* \}\}", "", text)
        assert not re.search(r"\{\{|\{%|\{#", text), path


def test_table_and_files_agree() -> None:
    wanted = {f"{ROLES[role]}/{row[role]}" for row in QUESTIONS["_variants"].values() for role in ROLES}
    wanted |= {f"configs/{variant}.yaml" for variant in VARIANTS} | {f"readme/{variant}.md" for variant in VARIANTS}
    wanted |= {f"loggers/{logger}{suffix}" for logger in LOGGERS for suffix in (".yaml", ".md")}
    wanted |= {f"loggers/{row['module']}" for row in QUESTIONS["_loggers"].values() if row["module"]}
    wanted |= {f"serving/{row[role]}" for row in QUESTIONS["_servers"].values() for role in ("command", "app", "page")}
    wanted = {path for path in wanted if not path.endswith("/")} | {"serving/fastapi.md"}
    folder = TEMPLATE / "templates"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if "cache" not in str(path)}
    assert there == wanted
    assert list(QUESTIONS["_variants"]) == VARIANTS
    assert set(QUESTIONS["_modules"]) == {row["module"] for row in QUESTIONS["_variants"].values()}
    assert list(QUESTIONS["_loggers"]) == LOGGERS
    assert list(QUESTIONS["_ci"]) == QUESTIONS["ci"]
    assert list(QUESTIONS["_servers"]) == QUESTIONS["serving"]


def test_every_question_and_choice_has_a_label() -> None:
    asked = [key for key in QUESTIONS if not key.startswith("_")]
    assert list(QUESTIONS["__prompts__"]) == asked
    for key in ("variant", "logger", "serving", "ci"):
        assert [choice for choice in QUESTIONS["__prompts__"][key] if choice != "__prompt__"] == QUESTIONS[key]


def size(project: Project, pattern: str) -> int:
    """Physical lines, blank ones, comments and docstrings included."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in project.path.glob(pattern))


@by_variant
def test_code_of_the_person_stays_short(bake: Bake, variant: str) -> None:
    project = bake(variant=variant)
    shared = size(project, "data/splits.py")
    assert shared <= 80
    own = size(project, "data/*.py") - shared + size(project, "models/*.py")
    assert own <= (530 if variant == VARIANTS[0] else 1380)
    assert size(project, "training/*.py") <= 505


def test_engine_stays_small(bake: Bake) -> None:
    project = bake()
    assert size(project, "training/engine/*.py") <= 2260
    for path in (project.path / "training" / "engine").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 200, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 40, (path, node.name)


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return named | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@by_variant
def test_arrows_point_from_commands_to_the_engine_and_to_the_persons_code(bake: Bake, variant: str) -> None:
    project = bake(variant=variant)
    uses: dict[str, set[str]] = {}
    for path in (project.path / "training" / "engine").glob("*.py"):
        uses[f"training.engine.{path.stem}"] = own = {name for name in imports(path) if name.startswith("training")}
        assert not {name for name in imports(path) if name.split(".")[0] in ("data", "models")}, path
        assert all(name.startswith("training.engine.") for name in own), path
    while uses:  # each round removes what uses nothing that is left, so a circle would stay
        free = {name for name, used in uses.items() if not used & uses.keys()}
        assert free, f"circle among {sorted(uses)}"
        uses = {name: used for name, used in uses.items() if name not in free}
    for path in [*(project.path / "data").glob("*.py"), *(project.path / "models").glob("*.py")]:
        assert len({name for name in imports(path) if name.startswith("training")}) <= 1, path


@by_variant
def test_importing_changes_nothing(bake: Bake, variant: str) -> None:
    """Neither warnings, nor log levels, nor signals, nor matplotlib's backend; other packages are imported before."""
    project = bake(variant=variant)
    folders = ("data", "models", "training")
    paths = [path for path in project.path.rglob("*.py") if path.parent.name in ("data", "models", "engine")]
    others = sorted({name for path in paths for name in imports(path) if name.split(".")[0] not in folders})
    code = f"""
import importlib, logging, signal, warnings
for name in {others}:
    importlib.import_module(name)
import matplotlib, torch
def state():
    levels = [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return warnings.filters[:], levels, handlers, matplotlib.get_backend(), torch.get_float32_matmul_precision()
before = state()
import data.data_module, models.my_model, training.engine.run
assert state() == before
"""
    project.run("-c", code)


def test_run_folders_have_their_place(bake: Bake) -> None:
    assert (bake().path / "logs").is_dir()


@by_variant
@pytest.mark.parametrize("logger", LOGGERS)
def test_requirements_are_what_the_project_imports(bake: Bake, variant: str, logger: str) -> None:
    project = bake(variant=variant, logger=logger)
    imported = {"pytest", "yaml", {"csv": "torch"}.get(logger, logger)}
    for path in project.path.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    assert "pytorch_lightning" not in imported
    imported -= {*sys.stdlib_module_names, "data", "models", "training"}
    providers = {**packages_distributions(), "mlflow": ["mlflow"]}  # several distributions share mlflow's folder
    distributions = {providers[name][0].lower().replace("_", "-") for name in imported}
    text = (project.path / "requirements.txt").read_text(encoding="utf-8")
    declared = tomllib.loads((project.path / "pyproject.toml").read_text(encoding="utf-8"))
    assert text.split() == declared["project"]["dependencies"]
    extras = declared["project"]["optional-dependencies"]
    assert extras.keys() == {"onnx", "sweep"}
    assert [Requirement(each).name for each in declared["dependency-groups"]["dev"]] == ["pytest", "ruff", "mypy"]
    every = [*text.split(), *extras["onnx"], *extras["sweep"], *declared["dependency-groups"]["dev"]]
    requirements = [Requirement(each) for each in every]
    # torch.onnx.export imports onnxscript.
    needed = {"onnxscript", "ruff", "mypy"} | ({"pycocotools"} if variant == "detection" else set())  # by torchmetrics
    assert {requirement.name.lower() for requirement in requirements} == distributions | needed
    for requirement in requirements:
        assert {specifier.operator for specifier in requirement.specifier} == {">=", "<"}, requirement
        assert version(requirement.name) in requirement.specifier, "the tests run with what a project refuses"
    readme = (project.path / "README.md").read_text(encoding="utf-8")
    for extra, script in (("onnx", "export.py"), ("sweep", "sweep.py")):
        for each in extras[extra]:
            assert f'"{each}"' in readme and f'"{each}"' in (project.path / "training" / script).read_text("utf-8")


@by_variant
def test_server_requires_what_it_imports(bake: Bake, variant: str) -> None:
    project = bake(variant=variant, serving="fastapi")
    names = {
        name.split(".")[0]
        for path in project.path.glob("training/serve*.py")
        for name in imports(path)
        if name.split(".")[0] not in {*sys.stdlib_module_names, "data", "models", "training"}
    }
    text = (project.path / "requirements.txt").read_text(encoding="utf-8")
    declared = tomllib.loads((project.path / "pyproject.toml").read_text(encoding="utf-8"))
    extra = declared["project"]["optional-dependencies"]["serve"]
    known = {canonicalize_name(Requirement(each).name) for each in (*extra, *text.split())}
    providers = packages_distributions()
    assert {canonicalize_name(providers[name][0]) for name in names} <= known
    readme, script = ((project.path / file).read_text("utf-8") for file in ("README.md", "training/serve.py"))
    for each in extra:
        assert f'"{each}"' in readme and f'"{each}"' in script
        assert version(Requirement(each).name) in Requirement(each).specifier


@by_variant
def test_readme_names_every_file(bake: Bake, variant: str) -> None:
    text = (bake(variant=variant).path / "README.md").read_text(encoding="utf-8")
    for file in expected_files(variant):
        if not file.endswith(("README.md", "__init__.py")):
            assert f"`{file}`" in text or f"`{Path(file).parent}/`" in text, file


@by_variant
@pytest.mark.parametrize("logger", LOGGERS)
def test_project_is_lint_clean(bake: Bake, variant: str, logger: str) -> None:
    project = bake(variant=variant, logger=logger)
    project.module("ruff", "check", ".")
    project.module("ruff", "format", "--check", ".")
    tomllib.loads((project.path / "pyproject.toml").read_text(encoding="utf-8"))
    config = yaml.safe_load((project.path / "configs" / "config.yaml").read_text(encoding="utf-8"))
    own = {"seed_everything", "monitor", "monitor_mode", "checkpoint_minutes"}
    assert own | {"trainer", "model", "data"} == set(config)


@pytest.mark.slow
@by_variant
def test_project_is_type_clean(
    bake: Bake, variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("MYPY_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "mypy"))  # PyTorch is read once
    bake(variant=variant).module("mypy")


@pytest.mark.slow
@by_variant
def test_project_passes_its_own_tests_offline(bake: Bake, variant: str) -> None:
    done = bake(variant=variant).module("pytest", "-q")
    assert " passed" in done.stdout
    assert "warning" not in done.stdout
    assert "skipped" not in done.stdout
