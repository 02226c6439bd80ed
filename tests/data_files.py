"""Learnable data sets in the files that each variant reads."""

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    at_most: dict[str, float] = field(default_factory=dict)
    stderr: str = ""
    columns: tuple[str, ...] = ("input", "truth", "class", "probability")
    pictures: tuple[str, ...] = ("confusion_matrix.png", "test_samples.png")
    files: tuple[str, ...] = ("per_class.csv",)
    formats: tuple[str, ...] = ("weights", "model", "onnx", "pt2")


def digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits enlarged to (N, size, size) uint8, and their classes, always in the same random order."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    pixels = (bunch.images[order] * (255 / 16)).astype(np.uint8)
    pictures = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR)) for p in pixels]
    return np.stack(pictures), bunch.target[order]


def write_idx(folder: Path, pictures: np.ndarray, targets: np.ndarray, train: int = TRAIN) -> None:
    """Write the four IDX files of MNIST and similar data sets: http://yann.lecun.com/exdb/mnist/"""
    folder.mkdir(parents=True)
    for name, part in (("train", slice(train)), ("t10k", slice(train, None))):
        images, labels = pictures[part], targets[part]
        header = struct.pack(">4I", 2051, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">2I", 2049, len(labels))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


def write_digits(folder: Path) -> Data:
    return Data([], {"test/acc": 0.97})


def write_mnist(folder: Path) -> Data:
    write_idx(folder / "MNIST" / "raw", *digits(28))
    # A batch of the default size would leave a fortieth of MNIST's samples 44 steps.
    return Data([f"--data.data_dir={folder}", "--data.batch_size=32"], {"test/acc": 0.95})


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


def write_cifar_batches(folder: Path, pictures: np.ndarray, targets: np.ndarray, train: int) -> None:
    """Write pictures (N, 32, 32, 3) as the pickled batches of https://www.cs.toronto.edu/~kriz/cifar.html"""
    rows = pictures.transpose(0, 3, 1, 2).reshape(len(pictures), -1)
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    for i in range(5):
        part = slice(train // 5 * i, train // 5 * (i + 1))
        batch = {"batch_label": f"batch {i + 1}", "labels": targets[part].tolist(), "data": rows[part]}
        (batches / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch, protocol=2))
    batch = {"batch_label": "test", "labels": targets[train:].tolist(), "data": rows[train:]}
    (batches / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"digit {i}" for i in range(10)]
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": names, "num_vis": 3072}, protocol=2))


def write_cifar10(folder: Path) -> Data:
    pictures, targets = digits(32)
    write_cifar_batches(folder, coloured(pictures), targets, TRAIN)
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
    return Data(
        [f"--data.data_dir={folder}"],
        {"test/acc": 0.9},
        stderr=f"warning: unreadable pictures left out (1): {unreadable}",
    )


def scenes(count: int) -> list[tuple[np.ndarray, list[tuple[int, int, int, int]]]]:
    """Dim noise (H, W, 3) uint8 of mixed sizes, and in it one or two bright squares: class 1 red, class 2 green.

    A square is given by its left and top pixel, its side and its class.
    """
    random = np.random.default_rng(0)
    pictures = []
    for i in range(count):
        pixels = random.integers(0, 80, (64 + i % 5, 96, 3), dtype=np.uint8)
        squares = []
        for left, kind in ((4, 1 + i % 2), (52, 1 + i // 2 % 2))[: 1 + i % 3 % 2]:
            x, y, side = left + random.integers(10), random.integers(24), random.integers(16, 33)
            pixels[y : y + side, x : x + side, kind - 1] += 160
            squares.append((int(x), int(y), int(side), kind))
        pictures.append((pixels, squares))
    return pictures


def write_masks(folder: Path) -> Data:
    """Pictures and masks with names of classes, palette masks among them, and pixels of no class."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i, (pixels, squares) in enumerate(scenes(60)):
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[0] = 255
        for x, y, side, kind in squares:
            mask[y : y + side, x : x + side] = kind
        picture = Image.fromarray(mask)
        if i % 2:
            picture = picture.convert("P")
        picture.save(folder / "masks" / f"{i}.png")
        Image.fromarray(pixels).save(folder / "images" / f"{i}.{('png', 'bmp')[i % 2]}")
    (folder / "classes.txt").write_text("nothing\nred\ngreen\n", encoding="utf-8")
    flags = [f"--data.data_dir={folder}", "--data.num_workers=0", "--trainer.max_epochs=16"]
    columns = ("input", "mask", "classes")
    least = {"test/iou": 0.4, "test/iou_nothing": 0.8, "test/acc": 0.85}
    return Data(flags, least, columns=columns, pictures=("test_samples.png",))


def write_coco(folder: Path) -> Data:
    """COCO's format with ids that neither start at 1 nor are contiguous, a crowd and a picture without boxes."""
    (folder / "images").mkdir()
    images, boxes = [], list[dict[str, object]]()
    for i, (pixels, squares) in enumerate(scenes(60)):
        name = f"{i}.{('png', 'bmp')[i % 2]}"
        Image.fromarray(pixels if i else pixels // 3).save(folder / "images" / name)
        images.append({"id": 1000 + 7 * i, "file_name": name, "height": pixels.shape[0], "width": 96})
        for x, y, side, kind in squares if i else []:
            box = {"bbox": [x, y, side, side], "area": side**2, "iscrowd": int(i == 2)}
            boxes.append({"id": len(boxes) + 1, "image_id": 1000 + 7 * i, "category_id": (0, 90, 17)[kind]} | box)
    categories = [{"id": 90, "name": "red"}, {"id": 17, "name": "green"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    flags = [f"--data.data_dir={folder}", "--data.num_workers=0", "--trainer.max_epochs=10"]
    columns = ("input", "image_id", "category_id", "class", "bbox", "score")
    least = {"test/map_50": 0.3, "test/map": 0.1}
    return Data(flags, least, columns=columns, pictures=("test_samples.png",), files=(), formats=("weights", "model"))


def write_texts(folder: Path) -> Data:
    """Sentences in Latin-1, with quotes, separators and line breaks, of which one word tells the class."""
    random = np.random.default_rng(0)
    words = {"Tier": ["Hündin", "Löwe", "Kuh", "Pferd"], "Speise": ["Brot", "Käse", "Möhre", "Suppe"]}
    filler = np.array(["ein", "zwei", "drei", "der", "und", "mit", "ohne", "schön", "gut;", "alt,"])
    rows = []
    for i in range(600):
        kind = list(words)[i % 2]
        sentence = [*random.choice(filler, random.integers(1, 12)), random.choice(words[kind]), str(i)]
        random.shuffle(sentence)
        text = ('"" ' if i % 5 == 0 else "") + ("\n" if i % 3 == 0 else " ").join(sentence)
        rows.append(f'{kind};"{text}"')
    (folder / "texts.csv").write_text("\n".join(["Art;Satz", *rows]), encoding="latin-1")
    names = ["--data.text=Satz", "--data.label=Art", "--data.encoding=latin-1"]
    flags = [f"--data.csv={folder / 'texts.csv'}", *names, "--trainer.max_epochs=12"]
    least = {"test/acc": 0.85, "test/f1": 0.85}
    return Data(flags, least, pictures=("confusion_matrix.png",), files=("per_class.csv", "tokenizer.json"))


def write_texts_rnn(folder: Path) -> Data:
    return replace(write_texts(folder), formats=("weights", "model"))


def write_rows(folder: Path) -> Data:
    """Numbers with gaps, categories with gaps, a constant column and one that counts the rows."""
    random = np.random.default_rng(0)
    count = 1200
    width, length = random.normal(10, 2, count), random.normal(1e6, 1e5, count)
    colour = random.choice(["red", "green", "blue", ""], count)
    price = 3 * width + (length - 1e6) / 1e5 + 5 * (colour == "red") + random.normal(0, 0.3, count)
    lines = ["row;width;length;colour;unit;price"]
    for i in range(count):
        known = f"{width[i]:.4f}" if i % 10 else ("", "?", "NA")[i // 10 % 3]
        lines.append(f"{i};{known};{length[i]:.1f};{colour[i]};cm;{price[i]:.4f}")
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    flags = [f"--data.csv={folder / 'rows.csv'}", "--data.target=price", "--data.ignore=[row]"]
    pictures = ("predicted_against_true.png", "residuals.png")
    warning = "warning: column 'unit' is constant and left out"
    columns = ("input", "truth", "prediction")
    least = {"test/r2": 0.8, "test/r2_ridge": 0.8}
    return Data(flags, least, stderr=warning, columns=columns, pictures=pictures, files=())


def write_series(folder: Path) -> Data:
    """Nothing: the series that statsmodels ships."""
    columns = ("input", "time", "column", "truth", "forecast")
    pictures = ("forecasts.png", "error_by_step.png")
    return Data([], {"test/mae_naive": 0.1}, {"test/mae": 0.06}, columns=columns, pictures=pictures, files=())


WRITERS: dict[str, Callable[[Path], Data]] = {
    "digits-cnn": write_digits,
    "mnist-cnn": write_mnist,
    "fashion-mnist-mlp": write_fashion_mnist,
    "cifar10-resnet18": write_cifar10,
    "image-folder": write_pictures,
    "detection": write_coco,
    "segmentation": write_masks,
    "text-rnn": write_texts_rnn,
    "text-transformer": write_texts,
    "tabular": write_rows,
    "forecast": write_series,
}
