"""Nothing that a file brings along is run."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Bake, Run
from data_files import write_cifar_batches

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def repacked(source: Path, compression: int, name: str, content: bytes) -> bytes:
    """The entries of a checkpoint, and one more, in another archive."""
    target = io.BytesIO()
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", compression) as copy:
        for entry in archive.infolist():
            copy.writestr(entry.filename, archive.read(entry), compression)
        copy.writestr(name, content, compression)
    return target.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        "a pickle",
        "a pickle in the hyperparameters",
        "an instantiator in the hyperparameters",
        "an instantiator in the data module's hyperparameters",
        "a compressed archive",
        "a name outside of the archive",
        "a tensor larger than the file",
    ],
)
def test_hostile_checkpoint_is_refused_and_runs_nothing(train: Callable[[str], Run], tmp_path: Path, kind: str) -> None:
    run = train("digits-cnn")
    file, marker = tmp_path / "hostile.ckpt", tmp_path / "executed"
    checkpoint = torch.load(run.best, weights_only=True)
    hparams, data = checkpoint["hyper_parameters"], checkpoint.get("datamodule_hyper_parameters", {})
    if kind == "a pickle":
        file.write_bytes(pickle.dumps(Payload(marker)))
    elif kind == "a pickle in the hyperparameters":
        torch.save(checkpoint | {"hyper_parameters": hparams | {"lr": Payload(marker)}}, file)
    elif kind == "an instantiator in the hyperparameters":
        torch.save(checkpoint | {"hyper_parameters": hparams | {"_instantiator": "os.mkdir"}}, file)
    elif kind == "an instantiator in the data module's hyperparameters":
        torch.save(checkpoint | {"datamodule_hyper_parameters": data | {"_instantiator": "os.mkdir"}}, file)
    elif kind == "a compressed archive":
        file.write_bytes(repacked(run.best, zipfile.ZIP_DEFLATED, "bomb", bytes(1 << 28)))
    elif kind == "a name outside of the archive":
        file.write_bytes(repacked(run.best, zipfile.ZIP_STORED, f"../../{marker.name}", b"here"))
    else:
        cut = torch.zeros(4)
        torch.save(checkpoint | {"state_dict": {"weight": cut.as_strided((1 << 40,), (0,))}}, file)
    status = 2 if "instantiator" in kind else 1  # an unknown option
    done = run.project.run("training/evaluate.py", "--ckpt_path", file, status=status)
    assert done.stderr.startswith("error: ") and str(file) in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not marker.exists()
    assert not (tmp_path.parent / marker.name).exists()


@pytest.mark.parametrize(
    "config",
    [
        "model: !!python/object/apply:os.mkdir [{marker}]\n",
        "trainer: {{callbacks: [{{class_path: os.mkdir, init_args: {{path: {marker}}}}}]}}\n",
        "trainer: {{callbacks: [{{class_path: subprocess.Popen, init_args: {{args: [mkdir, {marker}]}}}}]}}\n",
        "trainer: {{logger: {{class_path: pathlib.Path, init_args: {{args: {marker}}}}}}}\n",
        "data: {{class_path: os.mkdir, init_args: {{path: {marker}}}}}\n",
    ],
)
def test_configuration_constructs_only_objects_of_the_annotated_types(bake: Bake, tmp_path: Path, config: str) -> None:
    marker, file = tmp_path / "executed", tmp_path / "hostile.yaml"
    file.write_text(config.format(marker=marker), encoding="utf-8")
    done = bake().run("training/train.py", f"--config={file}", status=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar_batch_of_objects_is_refused(bake: Bake, tmp_path: Path, protocol: int) -> None:
    """NumPy would take the bytes of such an array for addresses."""
    write_cifar_batches(tmp_path, np.zeros((60, 32, 32, 3), np.uint8), np.arange(60) % 3, 50)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    objects = np.array([[None] * 3072] * 10, dtype=object)
    file.write_bytes(pickle.dumps({"data": objects, "labels": [0] * 10}, protocol=protocol))
    project = bake(variant="cifar10-resnet18")
    done = project.run("training/train.py", f"--data.data_dir={tmp_path}", "--model.weights=null", status=1)
    assert done.stderr.startswith(f"error: {file} ") and done.stderr.count("\n") == 1, done.stderr


def test_names_of_classes_are_drawn_as_they_are(bake: Bake, tmp_path: Path) -> None:
    """Matplotlib takes text between dollars for formulas, and fails on a broken one."""
    for name in ("$x^{$", r"$\\frac", "[b]"):
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{len(name)}_{i}.png")
    project = bake(fresh=True, variant="image-folder", project_name="formulas")
    flags = [f"--data.data_dir={tmp_path}", "--data.num_workers=0", "--trainer.max_epochs=1", "--data.image_size=32"]
    done = project.run("training/train.py", *flags, "--trainer.limit_train_batches=1")
    assert "not drawn" not in done.stderr, done.stderr
    assert {"confusion_matrix.png", "learning_curves.png"} <= {file.name for file in project.runs()[0].iterdir()}
    assert "$x^{$" in project.run("training/predict.py", "--format=csv").stdout
