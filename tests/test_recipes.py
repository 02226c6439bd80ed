"""Each recipe of docs/recipes.md is applied to a fresh project from the text of the page, and trains."""

import ast
import csv
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import TEMPLATE, VARIANTS, Bake, Project
from data_files import coloured, digits

PAGE = (TEMPLATE / "docs" / "recipes.md").read_text(encoding="utf-8")
EDIT = re.compile(
    r"(?:In|Add) `(?P<file>[^`]+)`(?:, in the class `(?P<name>\w+)`)?:\n\n```\w+\n(?P<code>.*?)^```$", re.M | re.S
)
COMMANDS = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)
LINES = 50  # of code in a recipe, without blank ones


@dataclass(frozen=True)
class Recipe:
    """A section of the page.

    Attributes:
        text: All of the section.
        variant: Variant that it starts from.
        edits: File, class or None, and code of each edit.
        commands: Commands as lists of words.
    """

    text: str
    variant: str
    edits: list[tuple[str, str | None, str]]
    commands: list[list[str]]


def read_page() -> dict[str, Recipe]:
    """The recipes by their titles."""
    recipes = {}
    for section in PAGE.split("\n## ")[1:]:
        title, text = section.split("\n", 1)
        named = [name for name in VARIANTS if f"`{name}`" in text]
        edits = [(match["file"], match["name"], match["code"]) for match in EDIT.finditer(text)]
        lines = [line for block in COMMANDS.findall(text) for line in block.splitlines()]
        recipes[title] = Recipe(text, (named or VARIANTS)[0], edits, [shlex.split(line) for line in lines])
    return recipes


RECIPES = read_page()


def imports_end(code: str) -> int:
    """The line where the imports at the beginning of a file end."""
    return max(node.end_lineno or 0 for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom))


def first_line(node: ast.stmt) -> int:
    """The line where a statement begins, counted from 0; a decorator belongs to it."""
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1


def merge(code: str, name: str, block: str) -> str:
    """Code in which the methods of a block replace those of a class, or are added; its imports are added, too."""
    lines, tree = block.splitlines(), ast.parse(block)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for method in tree.body:
        if isinstance(method, ast.FunctionDef):
            (target,) = (each for each in ast.parse(code).body if isinstance(each, ast.ClassDef) and each.name == name)
            old = [each for each in target.body if isinstance(each, ast.FunctionDef) and each.name == method.name]
            start, end = (first_line(old[0]), old[0].end_lineno) if old else (target.end_lineno, target.end_lineno)
            text = indent("\n".join(lines[first_line(method) : method.end_lineno]), "    ")
            kept = code.splitlines()
            code = "\n".join([*kept[:start], *([] if old else [""]), text, *kept[end:]]) + "\n"
    kept, end = code.splitlines(), imports_end(code)
    return "\n".join([*kept[:end], *map(ast.unparse, imports), *kept[end:]]) + "\n"


@dataclass(frozen=True)
class Cooked:
    """A project to which a recipe was applied, the run that its commands made, and what the last of them printed."""

    recipe: Recipe
    project: Project
    run: Path
    stdout: str

    @property
    def test_metrics(self) -> dict[str, float]:
        return json.loads((self.run / "test_metrics.json").read_text(encoding="utf-8"))

    @property
    def checkpoint(self) -> dict:
        return torch.load(self.run / "checkpoints" / "best.ckpt", weights_only=True)

    def curve(self, name: str) -> list[float]:
        """The values of a metric over the run."""
        with open(self.run / "metrics.csv", newline="", encoding="utf-8") as text:
            return [float(row[name]) for row in csv.DictReader(text) if row[name]]

    def pictures(self, tag: str) -> list[tuple[int, int]]:
        """Height and width of what was logged to TensorBoard under a tag."""
        events = EventAccumulator(str(self.run / "tensorboard"))
        events.Reload()
        return [(image.height, image.width) for image in events.Images(tag)]

    def python(self, code: str) -> str:
        """Return the output of code that runs in the project's folder."""
        return self.project.run("-c", code).stdout


def apply(recipe: Recipe, project: Project, names: dict[str, str]) -> None:
    """Make the edits of a recipe with some names replaced; ruff must find no error in the files."""
    for name, in_class, code in recipe.edits:
        file = project.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = merge(file.read_text(encoding="utf-8"), in_class, code) if in_class else code
        file.write_text(text, encoding="utf-8")
        if name.endswith(".py"):
            if in_class:  # imports may be doubled, unused or unsorted
                project.module("ruff", "check", "--ignore=I001,F401,F811", name)
            else:
                project.module("ruff", "check", name)
                project.module("ruff", "format", "--check", name)
        for old, new in names.items():
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")


TESTED: set[str] = set()
Cook = Callable[..., Cooked]


def recipe(title: str) -> Callable[[Callable], Callable]:
    """Pass the recipe with this title to a test."""
    TESTED.add(title)
    parametrized = pytest.mark.parametrize("title", [title], ids=[title.lower().replace(" ", "-")])
    return lambda test: pytest.mark.slow(parametrized(test))


@pytest.fixture
def cook(bake: Bake, title: str, monkeypatch: pytest.MonkeyPatch) -> Cook:
    """Apply the recipe of the test, `after` another one, and run the page's commands, train.py with more flags."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def cook(
        *flags: str,
        prepare: Callable[[Path], object] = lambda path: None,
        after: str | None = None,
        names: dict[str, str] | None = None,
    ) -> Cooked:
        recipe, first = RECIPES[title], RECIPES[after or title]
        project = bake(fresh=True, variant=first.variant, project_name=re.sub(r"\W+", "_", title.lower()))
        for each in [first, *([recipe] if after else [])]:
            apply(each, project, names or {})
        prepare(project.path)
        project = replace(project, elsewhere=project.path)  # commands run in the project's folder
        stdout = ""
        for program, *words in recipe.commands:
            if program != "pip":
                assert program == "python"
                more = flags if words[0] == "training/train.py" else ()
                done = project.run(*words, *more)
                stdout = done.stdout
                assert "eval mode" not in done.stderr  # as Lightning warns of layers that would not be trained as such
        return Cooked(recipe, project, project.runs()[-1] if recipe.commands else Path(), stdout)

    return cook


def test_page_is_made_of_tested_recipes() -> None:
    assert set(RECIPES) == TESTED
    links = set(re.findall(r"\[([^]]+)\]\(#([^)]+)\)", PAGE))
    assert links == {(title, title.lower().replace(" ", "-")) for title in RECIPES}


@pytest.mark.parametrize("title", RECIPES)
def test_recipe_is_short_and_whole(title: str) -> None:
    """Every block of code is an edit or a command that the tests apply, but for what a notebook holds."""
    recipe = RECIPES[title]
    blocks = recipe.text.count("\n```") // 2
    assert blocks == len(recipe.edits) + len(COMMANDS.findall(recipe.text)) + ("notebook" in title)
    assert sum(bool(line.strip()) for _, _, code in recipe.edits for line in code.splitlines()) <= LINES


@pytest.mark.parametrize("title", RECIPES)
def test_packages_to_install_are_those_of_the_tests(title: str) -> None:
    required = (TEMPLATE / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    for command in RECIPES[title].commands:
        if command[:2] == ["pip", "install"]:
            assert {f"{name}=={version(name)}" for name in command[2:]} <= set(required)


@recipe("Arrays of your own")
def test_arrays_give_the_model_their_shape(cook: Cook) -> None:
    def prepare(path: Path) -> None:
        images, classes = digits(12)
        np.savez(path / "data" / "arrays.npz", images=images[:, None], classes=classes)

    cooked = cook("--trainer.max_epochs=4", prepare=prepare)
    assert cooked.test_metrics["test/acc"] > 0.8
    assert tuple(cooked.checkpoint["hyper_parameters"]["image_shape"]) == (1, 12, 12)
    assert len(cooked.checkpoint["hyper_parameters"]["class_names"]) == 10
    assert all(column in cooked.stdout for column in ("truth", "class", "probability"))


@recipe("Another torchvision data set")
def test_torchvision_data_set_has_the_same_splits_in_every_command(cook: Cook) -> None:
    def prepare(path: Path) -> None:
        names = re.findall(
            r'"(\w+)"', "".join(re.findall(r"class_names .*", RECIPES["Another torchvision data set"].text))
        )
        assert len(set(names)) == 10
        images, classes = digits(64)
        for i, (pixels, target) in enumerate(zip(coloured(images[:500]), classes[:500], strict=True)):
            file = path / "data" / "eurosat" / "2750" / names[target] / f"{names[target]}_{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)

    cooked = cook("--trainer.max_epochs=4", "--data.batch_size=16", "--data.num_workers=0", prepare=prepare)
    assert cooked.test_metrics["test/acc"] > 0.4
    evaluated = cooked.project.run("training/evaluate.py").stdout
    assert all(f"{value:.4f}" in evaluated for value in cooked.test_metrics.values())


@recipe("Streaming data")
def test_stream_is_trained_for_a_number_of_steps(cook: Cook) -> None:
    def prepare(path: Path) -> None:
        images, classes = digits(8)
        rows = np.hstack([classes[:, None], (images.reshape(-1, 64) * (16 / 255)).round()]).astype(int)
        parts = {"train_0": rows[:500], "train_1": rows[500:1000], "train_2": rows[1000:1500]}
        parts |= {"val": rows[1500:1650], "test": rows[1650:]}
        (path / "data" / "stream").mkdir()
        for name, part in parts.items():
            np.savetxt(path / "data" / "stream" / f"{name}.csv", part, fmt="%d", delimiter=",")

    cooked = cook("--trainer.max_steps=72", prepare=prepare)
    last = torch.load(cooked.run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 72
    assert cooked.test_metrics["test/acc"] > 0.8


# Keeps one in ten of the samples of class 0.
RARE = """
import torch
from data.data_module import BatchDataset, MyDataModule
data = MyDataModule()
data.setup("fit")
images, targets = data.train.tensors
rare = torch.arange(len(targets)) % 10 == 0
data.train = BatchDataset(*(tensor[(targets != 0) | rare] for tensor in data.train.tensors))
"""


WEIGHED = """
import json
from torch.nn.functional import cross_entropy
from models.my_model import MyModel
model = MyModel(data.class_names, data.image_shape, data.mean, data.std)
batch = next(iter(data.train_dataloader()))
losses = cross_entropy(model(batch[0]), batch[1], reduction="none")
print(json.dumps([batch[1].tolist(), losses.tolist(), model.training_step(batch, 0).item()]))
"""


@recipe("Class weights")
def test_chosen_class_weighs_more(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=3")
    assert cooked.test_metrics["test/acc"] > 0.8
    targets, losses, loss = json.loads(cooked.python(RARE + WEIGHED))
    weights = [2 if target == 3 else 1 for target in targets]
    expected = sum(weight * each for weight, each in zip(weights, losses, strict=True)) / sum(weights)
    assert set(weights) == {1, 2} and loss == pytest.approx(expected, rel=1e-4)


@recipe("A weighted sampler")
def test_rare_class_is_drawn_as_often_as_the_others(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=3")
    assert cooked.test_metrics["test/acc"] > 0.8
    seen = "torch.cat([targets for _, targets in data.train_dataloader()]).bincount().tolist()"
    counts = json.loads(cooked.python(f"{RARE}torch.manual_seed(0)\nprint({seen})"))
    assert counts[0] > 0.7 * sum(counts) / len(counts)


@recipe("Multi-label classification")
def test_several_labels_are_learned(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=10")
    assert {"test/acc", "test/f1", "test/map"} == set(cooked.test_metrics)
    assert cooked.test_metrics["test/f1"] > 0.6
    assert len(cooked.curve("val/map")) == 10


@recipe("A timm backbone")
def test_network_of_timm_learns(cook: Cook) -> None:
    cooked = cook("--model.pretrained=false", "--trainer.max_epochs=2", "--data.num_workers=0")
    names = list(cooked.checkpoint["state_dict"])
    assert any("conv_stem" in name for name in names), names
    losses = cooked.curve("val/loss")
    assert losses[-1] < losses[0]
    assert "test/acc" in cooked.test_metrics


@recipe("A Hugging Face encoder")
def test_encoder_has_a_rate_of_its_own_that_rises_first(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=2", "--trainer.log_every_n_steps=1")
    encoder, head = cooked.curve("train/lr_encoder"), cooked.curve("train/lr_head")
    assert [rate / 30 for rate in head] == pytest.approx(encoder)
    peak = head.index(max(head))
    assert 0 < peak < len(head) / 5
    assert head[:peak] == sorted(head[:peak]) and head[peak:] == sorted(head[peak:], reverse=True)
    assert max(head) == pytest.approx(0.003)
    assert cooked.test_metrics["test/acc"] > 0.2  # of ten classes


@recipe("Published Hugging Face weights")
def test_published_weights_are_fine_tuned(cook: Cook, tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel, DistilBertTokenizerFast  # takes seconds

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = DistilBertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    torch.manual_seed(0)
    encoder = DistilBertModel(DistilBertConfig(vocab_size=len(words), dim=16, hidden_dim=32, n_layers=1, n_heads=2))
    for saved in (tokenizer, encoder):
        saved.save_pretrained(tmp_path)

    cooked = cook(
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        "--model.encoder_lr=0",
        after="A Hugging Face encoder",
        names={'"distilbert-base-uncased"': repr(str(tmp_path))},
    )
    weights = cooked.checkpoint["state_dict"]
    assert all(torch.equal(weights[f"encoder.{name}"], each) for name, each in encoder.state_dict().items())
    assert "test/acc" in cooked.test_metrics
    tokens = cooked.python(
        "from data.data_module import *; print(Tokenizer.from_str(MyDataModule().tokenizer).encode('Ab').ids)"
    )
    assert json.loads(tokens) == tokenizer("Ab")["input_ids"]


@recipe("A custom loss")
def test_custom_loss_is_minimised(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=5")
    losses = cooked.curve("train/loss")
    assert 0.1 < losses[0] < 0.19  # of ten probabilities by chance: 0.18
    assert losses[-1] < 0.6 * losses[0]
    assert cooked.test_metrics["test/acc"] > 0.8


@recipe("An autoencoder")
def test_autoencoder_restores_and_draws(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=10")
    losses = cooked.curve("val/loss")
    assert losses[-1] < losses[0] / 2
    assert (cooked.run / "restored.png").exists()


@recipe("A GAN")
def test_gan_trains_both_networks_and_logs_pictures(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=3")
    assert len(cooked.pictures("generated")) == 3
    assert cooked.curve("train/g_loss") and cooked.curve("train/d_loss")
    moments = [state["state"] for state in cooked.checkpoint["optimizer_states"]]
    assert [len(each) for each in moments] == [4, 4]
    exported = cooked.project.run("training/export.py", "--format=onnx").stdout
    assert Path(exported.splitlines()[0]).exists()


@recipe("A plateau schedule")
def test_rate_falls_on_a_plateau(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=7", "--model.lr=1e-7")
    rates = cooked.curve("train/lr")
    assert rates[0] == pytest.approx(1e-7, abs=0)
    assert rates[-1] == pytest.approx(1e-8, abs=0)


@recipe("More metrics")
def test_metrics_are_logged_together(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=5")
    names = {"acc", "auroc", "f1", "recall"}
    assert {f"test/{name}" for name in names} == set(cooked.test_metrics)
    assert cooked.test_metrics["test/f1"] > 0.8
    assert all(len(cooked.curve(f"val/{name}")) == 5 for name in names)


@recipe("A callback that logs pictures")
def test_callback_logs_pictures_each_epoch(cook: Cook) -> None:
    cooked = cook("--trainer.max_epochs=2")
    sizes = cooked.pictures("val/mistakes")
    assert 0 < len(sizes) <= 2
    assert all(height * width <= 8 * 12 * 12 for height, width in sizes)


@recipe("Experiments as small configs")
def test_small_configs_combine(cook: Cook) -> None:
    cooked = cook("--trainer.limit_train_batches=2")
    config = yaml.safe_load((cooked.run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["model"]["channels"], config["model"]["lr"], config["model"]["label_smoothing"]) == (64, 0.003, 0.1)
    assert (config["trainer"]["max_epochs"], config["seed_everything"], config["monitor"]) == (10, 1, "val/acc")


@recipe("A trained model in a notebook")
def test_notebook_uses_a_trained_model(cook: Cook) -> None:
    cooked = cook()
    cooked.project.run("training/train.py", "--trainer.max_epochs=1")
    (run,) = cooked.project.runs()
    (cell,) = re.findall(r"^```python\n(.*?)^```$", cooked.recipe.text, re.M | re.S)
    before = "import torch, warnings\nwarnings.simplefilter('error')\nimages = torch.rand(2, 1, 8, 8)\n"
    after = "print(probabilities.sum(dim=1).tolist(), len(probabilities[0]))"
    done = cooked.python(before + cell.replace("RUN", run.name) + after)
    assert re.fullmatch(r"\[(0\.99|1\.)\d+, (0\.99|1\.)\d+\] 10\n", done), done
