"""Learnable data sets, made of scikit-learn's digits, in the files that each variant reads."""

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TRAIN = 1400


@dataclass(frozen=True)
class Data:
    """The flags that train on a data set, and what to expect of the run, its predictions and its exports."""

    flags: list[str]
    at_least: dict[str, float]
    unreadable: list[Path] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = ("input", "truth", "class", "probability")
    pictures: tuple[str, ...] = ("confusion_matrix.png", "test_samples.png")
    files: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("weights", "model", "onnx", "pt2")


def digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits enlarged to (N, size, size) uint8, and their classes, shuffled always alike."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    pixels = (bunch.images[order] * (255 / 16)).astype(np.uint8)
    pictures = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR)) for p in pixels]
    return np.stack(pictures), bunch.target[order]


def write_idx(folder: Path, pictures: np.ndarray, targets: np.ndarray) -> None:
    """Writes the four IDX files of MNIST and its kin: http://yann.lecun.com/exdb/mnist/"""
    folder.mkdir(parents=True)
    for name, part in (("train", slice(TRAIN)), ("t10k", slice(TRAIN, None))):
        images, labels = pictures[part], targets[part]
        header = struct.pack(">4I", 2051, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">2I", 2049, len(labels))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


def write_digits(folder: Path) -> Data:
    return Data([], {"test/acc": 0.97})


def write_mnist(folder: Path) -> Data:
    write_idx(folder / "MNIST" / "raw", *digits(28))
    return Data([f"--data.data_dir={folder}"], {"test/acc": 0.95})


def write_fashion_mnist(folder: Path) -> Data:
    write_idx(folder / "FashionMNIST" / "raw", *digits(28))
    return Data([f"--data.data_dir={folder}"], {"test/acc": 0.93})


def coloured(pictures: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W) as (N, H, W, 3), each in two random colours of which the figure's is the lighter one."""
    random = np.random.default_rng(1)
    light = random.integers(128, 256, (len(pictures), 1, 1, 3))
    dark = random.integers(0, 96, (len(pictures), 1, 1, 3))
    share = pictures[..., None] / 255
    return (share * light + (1 - share) * dark).astype(np.uint8)


def write_cifar10(folder: Path) -> Data:
    """Writes the pickled batches of https://www.cs.toronto.edu/~kriz/cifar.html"""
    pictures, targets = digits(32)
    rows = coloured(pictures).transpose(0, 3, 1, 2).reshape(len(pictures), -1)
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    for i in range(5):
        part = slice(TRAIN // 5 * i, TRAIN // 5 * (i + 1))
        batch = {"batch_label": f"batch {i + 1}", "labels": targets[part].tolist(), "data": rows[part]}
        (batches / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch, protocol=2))
    batch = {"batch_label": "test", "labels": targets[TRAIN:].tolist(), "data": rows[TRAIN:]}
    (batches / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"digit {i}" for i in range(10)]
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": names, "num_vis": 3072}, protocol=2))
    flags = ["--data.image_size=32", "--data.batch_size=32", "--data.flip=false", "--model.weights=null"]
    return Data([f"--data.data_dir={folder}", *flags, "--trainer.max_epochs=5"], {"test/acc": 0.9})


def write_pictures(folder: Path) -> Data:
    """Pictures of mixed sizes, modes and formats in a folder a class, and a file that is no picture."""
    pictures, targets = digits(32)
    colours = coloured(pictures)
    kinds = [
        ("L", "png"),
        ("RGB", "jpg"),
        ("RGBA", "png"),
        ("P", "gif"),
        ("CMYK", "jpg"),
        ("RGB", "bmp"),
        ("RGB", "webp"),
        ("I;16", "tiff"),
    ]
    for i, target in enumerate(targets):
        mode, suffix = kinds[i % len(kinds)]
        (folder / f"digit {target}").mkdir(exist_ok=True)
        if mode == "I;16":
            picture = Image.fromarray(pictures[i].astype(np.uint16) * 257)
        elif mode == "L":
            picture = Image.fromarray(pictures[i])
        else:
            picture = Image.fromarray(colours[i])
        size = 32 + i % 17
        picture = picture.resize((size, size))
        (picture if mode == "I;16" else picture.convert(mode)).save(folder / f"digit {target}" / f"{i}.{suffix}")
    unreadable = folder / "digit 3" / "unreadable.png"
    unreadable.write_bytes(b"this is no picture")
    return Data([f"--data.data_dir={folder}"], {"test/acc": 0.9}, [unreadable])


WRITERS: dict[str, Callable[[Path], Data]] = {
    "digits-cnn": write_digits,
    "mnist-cnn": write_mnist,
    "fashion-mnist-mlp": write_fashion_mnist,
    "cifar10-resnet18": write_cifar10,
    "image-folder": write_pictures,
}
