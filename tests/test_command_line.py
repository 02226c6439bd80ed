"""The command line accepts every option, and refuses mistakes before anything starts."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from conftest import VARIANTS, Bake, Project, by_variant

pytestmark = pytest.mark.slow

QUICK = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def digits(bake: Bake) -> Project:
    return bake(fresh=True, project_name="command_line")


def train(project: Project, *flags: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    return project.run("training/train.py", *QUICK, *flags, status=status, **variables)


def newest(project: Project) -> Path:
    return project.runs()[-1]


def uncomment(project: Project, name: str) -> None:
    """Switch a callback of the config on, as a person would in an editor."""
    config = project.path / "configs" / "config.yaml"
    lines = config.read_text(encoding="utf-8").splitlines()
    first = lines.index(f"    # - class_path: {name}")
    lines[first] = lines[first].replace("# ", "")
    if "#   init_args" in lines[first + 1]:
        lines[first + 1] = lines[first + 1].replace("# ", "")
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--modle.lr=0.1", "modle.lr"),
        ("--model.lrr=0.1", "lrr"),
        ("--model.lr=fast", "could not convert string to float: 'fast'"),
        ("--model.lr=-1", "does not conform to restriction v>0"),
        ("--model.label_smoothing=1.5", "does not conform to restriction"),
        ("--model.optimizer=adagrad", "Got value: adagrad"),
        ("--data.batch_size=0", "does not conform to restriction v>0"),
        ("--data.batch_size=2.5", "PositiveInt"),
        ("--trainer.max_epoch=3", "unrecognized arguments: --trainer.max_epoch=3"),
        ("--trainer.accelerator=abacus", "You selected an invalid accelerator name"),
        ("--trainer.precision=7", "Given value: 7"),
        ("--trainer.precision=16-true", "16-mixed"),
        ("--trainer.precision=bf16-true", "bf16-mixed"),
        ("--trainer.enable_checkpointing=false", "enable_checkpointing"),
        ("--trainer.default_root_dir=elsewhere", "default_root_dir"),
        ("--trainer.strategy=ddp_spawn", "use ddp"),
        ("--monitor_mode=best", "best"),
    ],
)
def test_typo_cannot_start_a_run(digits: Project, flag: str, sentence: str) -> None:
    before = digits.runs()
    done = digits.run("training/train.py", flag, status=2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert re.fullmatch(r"error: .* \(--help_all lists all options\)\n", done.stderr)
    assert digits.runs() == before


def test_typo_in_the_config_file_cannot_start_a_run(digits: Project, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: {lrr: 0.1}\n", encoding="utf-8")
    assert "lrr" in digits.run("training/train.py", "--config", config, status=2).stderr


def test_typo_in_the_default_config_is_named_with_its_file(bake: Bake) -> None:
    project = bake(fresh=True, project_name="mistyped")
    config = project.path / "configs" / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "  # lr: " in text
    config.write_text(text.replace("  # lr: ", "  lrr: "), encoding="utf-8")
    for command in ("train", "evaluate", "predict", "export"):
        status = 2 if command == "train" else 1  # without a run, the others have no config
        done = project.run(f"training/{command}.py", status=status)
        assert done.stderr.count("\n") == 1
        assert command != "train" or (str(config) in done.stderr and "model.lrr" in done.stderr)


@pytest.mark.parametrize(
    "content", ["data: 3", "trainer: {precision: fast}", "model: [1", "- 1", "trainer: {callbacks: 3}"]
)
def test_config_of_the_wrong_kind_is_refused_in_one_sentence(bake: Bake, content: str) -> None:
    project = bake(fresh=True, project_name="wrong_kind")
    (project.path / "configs" / "config.yaml").write_text(f"{content}\n", encoding="utf-8")
    done = project.run("training/train.py", status=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert project.runs() == []


@by_variant
def test_comments_of_the_config_show_the_defaults_of_the_code(bake: Bake, variant: str) -> None:
    """A person who uncomments a line changes nothing by that alone."""
    project = bake(variant=variant)
    text = (project.path / "configs" / "config.yaml").read_text(encoding="utf-8")
    shown: dict[str, object] = {}
    for section in ("model", "data"):
        lines = text.split(f"\n{section}:")[1].split("\n\n")[0].splitlines()[1:]
        values = yaml.safe_load("\n".join(re.sub(r"^( *)# ", r"\1", line) for line in lines))
        shown |= {f"{section}.{name}": value for name, value in values.items()}
    resolved = yaml.safe_load(project.run("training/train.py", "--print_config").stdout)
    flat = {f"{section}.{name}": value for section in ("model", "data") for name, value in resolved[section].items()}
    assert shown == flat


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused_in_one_sentence(digits: Project) -> None:
    done = digits.run("training/train.py", "--trainer.accelerator=gpu", status=1)
    assert re.fullmatch(r"error: .*gpu.*\n", done.stderr)


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_other_commands_say_what_to_do_without_a_run(bake: Bake, command: str) -> None:
    done = bake(project_name="untrained").run(f"training/{command}.py", status=1)
    assert re.fullmatch(
        r"error: no checkpoint in .*: run training/train.py first, or use --ckpt_path FILE\n", done.stderr
    )


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04truncated"])
def test_file_that_is_no_checkpoint_is_named(bake: Bake, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.ckpt"
    file.write_bytes(content)
    done = bake(project_name="untrained").run("training/evaluate.py", "--ckpt_path", file, status=1)
    assert done.stderr.startswith(f"error: {file} is damaged or not a checkpoint")
    assert done.stderr.count("\n") == 1


def test_help_shows_the_documentation_of_every_option(digits: Project) -> None:
    lines = digits.run("training/train.py", "--help").stdout.splitlines()
    text = " ".join(" ".join(lines).split())
    assert len(lines) < 160 and "--trainer.detect_anomaly" not in text
    assert "--model.lr LR Learning rate" in text
    assert "(type: PositiveFloat, default: 0." in text
    assert "--data.batch_size BATCH_SIZE Samples per step" in text
    assert "model.class_names" in text
    places = [text.index(flag) for flag in ("--resume", "--model.lr ", "--data.batch_size ", "--trainer.max_epochs ")]
    assert places == sorted(places), "what a person changes first comes first"
    for script in ("train", "evaluate"):
        assert "--trainer.detect_anomaly" in digits.run(f"training/{script}.py", "--help_all").stdout


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_optimizer_by_name(digits: Project, optimizer: str) -> None:
    train(digits, f"--model.optimizer={optimizer}", "--model.lr=0.01", "--trainer.precision=bf16-mixed")
    checkpoint = torch.load(newest(digits) / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["optimizer"] == optimizer
    digits.run("training/evaluate.py")


@pytest.mark.parametrize(("scheduler", "final"), [("onecycle", 0.0), ("cosine", 0.0), ("none", 0.01)])
def test_scheduler_by_name(digits: Project, scheduler: str, final: float) -> None:
    train(digits, f"--model.scheduler={scheduler}", "--model.lr=0.01", "--model.optimizer=sgd")
    checkpoint = torch.load(newest(digits) / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(final, abs=1e-4)


def test_schedule_without_an_end_is_refused(digits: Project) -> None:
    done = train(digits, "--trainer.max_epochs=-1", "--model.scheduler=onecycle", status=1)
    assert re.fullmatch(r"error: scheduler onecycle .*max_epochs.*scheduler none\n", done.stderr)


def test_callbacks_by_flag(digits: Project) -> None:
    done = train(digits, "--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks+=EMAWeightAveraging")
    assert "lr-Adam" in (newest(digits) / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "current_model_state" in torch.load(newest(digits) / "checkpoints" / "best.ckpt", weights_only=True)
    table = done.stdout[done.stdout.index("┏") : done.stdout.index("┘")]
    assert table in digits.run("training/evaluate.py").stdout


def test_callbacks_by_uncommenting(bake: Bake) -> None:
    project = bake(fresh=True, project_name="uncommented")
    for name in ("EarlyStopping", "EMAWeightAveraging"):
        uncomment(project, name)
    train(project, "--trainer.max_epochs=40", "--model.lr=0.000001")
    checkpoint = torch.load(newest(project) / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] < 40, "EarlyStopping has not stopped the run"
    assert "current_model_state" in checkpoint


def test_progress_bar_can_be_switched_off(digits: Project) -> None:
    assert "Epoch" not in train(digits, "--trainer.enable_progress_bar=false").stdout


def test_settings_of_an_earlier_run_make_a_new_run(digits: Project) -> None:
    train(digits, "--model.channels=5")
    first = newest(digits)
    events = sorted((first / "tensorboard").iterdir())
    train(digits, "--config", str(first / "config.yaml"))
    assert newest(digits) != first
    assert sorted((first / "tensorboard").iterdir()) == events
    assert "channels: 5" in (newest(digits) / "config.yaml").read_text(encoding="utf-8")


def test_same_seed_gives_the_same_weights(digits: Project) -> None:
    def weights(*flags: str) -> torch.Tensor:
        train(digits, *flags)
        state = torch.load(newest(digits) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return torch.cat([parameter.flatten() for parameter in state.values()])

    first = weights()
    assert torch.equal(first, weights())
    assert not torch.equal(first, weights("--seed_everything=1"))


@pytest.fixture
def unreachable() -> Iterator[dict[str, str]]:
    """Environment variables under which every download fails at once."""
    closed = "http://127.0.0.1:9"
    yield {name: closed for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")} | {"no_proxy": ""}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith(("mnist", "fashion", "cifar"))])
def test_missing_network_is_reported_in_one_sentence(
    bake: Bake, variant: str, tmp_path: Path, unreachable: dict[str, str]
) -> None:
    project = bake(fresh=True, variant=variant, project_name="offline")
    done = project.run("training/train.py", f"--data.data_dir={tmp_path}", status=1, **unreachable)
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert str(tmp_path) in sentence
    assert "digits-cnn" in sentence
    assert project.runs() == []


def test_missing_weights_are_reported_in_one_sentence(bake: Bake, tmp_path: Path, unreachable: dict[str, str]) -> None:
    project = bake(variant="image-folder", project_name="offline_weights")
    flags = ["--model.weights=DEFAULT", "--trainer.accelerator=cpu"]
    done = project.run("training/train.py", *flags, status=1, TORCH_HOME=str(tmp_path), **unreachable)
    assert "--model.weights null" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16", "convnext_tiny"])
def test_any_classifier_gets_a_new_head(bake: Bake, network: str) -> None:
    """A network with 1,000 classes stands for the pretrained one, which would have to be downloaded."""
    project = bake(variant="image-folder", project_name="networks")
    code = f"""
import torch, torchvision
from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.run import RunCLI
source = torchvision.models.get_model({network!r}, weights=None).state_dict()
weights = torchvision.models.get_model_weights({network!r})["DEFAULT"]
type(weights).get_state_dict = lambda self, *args, **kwargs: dict(source)
flags = ["--model.network={network}", "--model.weights=DEFAULT", "--model.freeze=true", "--data.image_size=224"]
cli = RunCLI(MyModel, MyDataModule, flags)
model = cli.model
model.trainer = cli.trainer
model.setup("fit")
own = model.network.state_dict()
same = [key for key, value in source.items() if own[key].shape == value.shape and torch.equal(own[key], value)]
fresh = [key for key in own if own[key].shape != source[key].shape]
trained = [name for name, parameter in model.network.named_parameters() if parameter.requires_grad]
assert sorted(fresh) == sorted(trained), (fresh, trained)
assert len(fresh) == 2 and len(same) == len(source) - 2
assert model(torch.rand(2, 3, 224, 224)).shape == (2, 10)
"""
    project.run("-c", code)


def test_unknown_classifier_is_refused(bake: Bake) -> None:
    done = bake(variant="image-folder").run("training/train.py", "--model.network=resnet19", status=2)
    assert "torchvision has no classifier 'resnet19'" in done.stderr


@by_variant
def test_own_callback_is_one_line(bake: Bake, variant: str) -> None:
    config = (bake(variant=variant).path / "configs" / "config.yaml").read_text(encoding="utf-8")
    assert "    # - class_path: training.my_callbacks.MyCallback" in config.splitlines()


def test_own_callback_is_called(bake: Bake) -> None:
    project = bake(fresh=True, project_name="callback")
    (project.path / "training" / "my_callbacks.py").write_text(
        "from lightning import Callback\n\n\nclass MyCallback(Callback):\n"
        '    def on_fit_end(self, trainer, pl_module):\n        print("my callback was here")\n',
        encoding="utf-8",
    )
    uncomment(project, "training.my_callbacks.MyCallback")
    assert "my callback was here" in train(project).stdout


@pytest.mark.parametrize(
    "package, command",
    [("optuna", ["training/sweep.py", "--list"]), ("onnxruntime", ["training/export.py", "--format=onnx"])],
)
def test_packages_that_a_command_lacks_are_named(digits: Project, package: str, command: list[str]) -> None:
    script, *rest = command
    code = f"""
import runpy, sys
sys.modules[{package!r}] = None  # as if it were not installed
sys.path.insert(0, {str(digits.path)!r})
sys.argv = [{script!r}, *{rest}]
runpy.run_path({str(digits.path / script)!r}, run_name="__main__")
"""
    if "export" in script:
        digits.run("training/train.py", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2")
    done = digits.run("-c", code, status=1)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert f'pip install "{package}>=' in done.stderr
