"""Folders of pictures, boxes and masks as people and tools leave them: read as meant, or refused with the reason."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Bake, Project

READ = """
import json, sys
from data.data_module import MyDataModule
from training.engine.interrupts import run_command

def main():
    data = MyDataModule(**json.loads(sys.argv[1]), num_workers=0)
    data.setup("fit")
    EXTRA

run_command(main)
"""
SPLITS = """
    print(json.dumps({split: [[str(file), name] for file, name in part] for split, part in data.samples.items()}))
"""


class Reader:
    """Reads data with a variant's data module."""

    def __init__(self, project: Project, extra: str) -> None:
        self.project, self.code = project, READ.replace("    EXTRA", extra)

    def __call__(self, folder: Path, **options: Any) -> tuple[Any, str]:
        """What was read, and what was said about it before training."""
        done = self.project.run("-c", self.code, json.dumps({"data_dir": str(folder), **options}))
        said, last = done.stdout.rstrip("\n").rsplit("\n", 1)
        return json.loads(last), said + "\n" + done.stderr

    def refuses(self, folder: Path, **options: Any) -> str:
        """The error, which is not a traceback."""
        done = self.project.run("-c", self.code, json.dumps({"data_dir": str(folder), **options}), status=1)
        assert "\nerror: " in "\n" + done.stderr and "Traceback" not in done.stderr, done.stderr
        return done.stderr


def picture(file: Path, number: int = 0, size: tuple[int, int] = (12, 10), **options: Any) -> Path:
    """Writes noise, which differs from number to number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)
    return file


def pictures(folder: Path, count: int, suffix: str = ".png") -> list[Path]:
    """Writes pictures that differ from each other and from those of other folders."""
    first = sum(map(ord, str(folder))) * 1000
    return [picture(folder / f"{i}{suffix}", first + i) for i in range(count)]


def classes(folder: Path, count: int, names: Sequence[str] = ("green", "red")) -> None:
    for name in names:
        pictures(folder / name, count)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.fixture(scope="module")
def image_folder(bake: Bake) -> Reader:
    return Reader(bake(variant="image-folder"), SPLITS)


def origins(splits: dict[str, list[list[str]]], folder: Path) -> dict[str, set[str]]:
    """The names of the folders in `folder` from which the pictures of each split come."""
    return {split: {Path(file).relative_to(folder).parts[0] for file, _ in part} for split, part in splits.items()}


def names(splits: dict[str, list[list[str]]]) -> set[str]:
    return {name for part in splits.values() for _, name in part}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("training", "validation", "testing"),
        ("Training_Set", "Valid", "TEST-SET"),
        ("trainset", "dev", "testset"),
        ("train_images", "val images", "test_data"),
    ],
)
def test_split_folders_have_usual_names_in_any_case(
    image_folder: Reader, tmp_path: Path, train: str, val: str, test: str
) -> None:
    for name in (train, val, test):
        classes(tmp_path / name, 3)
    splits, _ = image_folder(tmp_path)
    assert origins(splits, tmp_path) == {"train": {train}, "val": {val}, "test": {test}}
    assert names(splits) == {"green", "red"}


def test_training_and_test_folders_without_validation(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path / "training_set", 10)
    classes(tmp_path / "test_set", 5)
    splits, said = image_folder(tmp_path)
    assert origins(splits, tmp_path) == {"train": {"training_set"}, "val": {"training_set"}, "test": {"test_set"}}
    assert len(splits["test"]) == 10 and len(splits["train"]) + len(splits["val"]) == 20
    assert f"test {len(splits['test'])}" in said


def test_folders_of_classes_alone_are_split(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 10, ["bus", "train"])  # a class of this name
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"bus", "train"}
    assert sum(map(len, splits.values())) == 20 and all(splits.values())
    assert "bus 10" in said and "train 10" in said


def test_splits_may_be_folders_in_those_of_classes(image_folder: Reader, tmp_path: Path) -> None:
    for name in ("green", "red"):
        pictures(tmp_path / name / "Train", 4)
        pictures(tmp_path / name / "Valid", 2)
        pictures(tmp_path / name / "Test", 3)
    splits, _ = image_folder(tmp_path)
    assert {split: len(part) for split, part in splits.items()} == {"train": 8, "val": 4, "test": 6}
    assert names(splits) == {"green", "red"}


def test_folder_of_an_archive_is_entered(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path / "flowers" / "train", 5)
    pictures(tmp_path / "__MACOSX" / "flowers", 2)
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"green", "red"}
    assert str(tmp_path / "flowers") in said


@pytest.mark.parametrize("inner", ["", "unknown"])
def test_unlabelled_test_pictures_are_neither_a_split_nor_a_class(
    image_folder: Reader, tmp_path: Path, inner: str
) -> None:
    classes(tmp_path / "train", 10)
    pictures(tmp_path / "test" / inner, 7)
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"green", "red"}
    assert origins(splits, tmp_path) == {"train": {"train"}, "val": {"train"}, "test": {"train"}}
    assert "left out: 7 " in said


def test_splits_without_folders_of_classes_are_refused(image_folder: Reader, tmp_path: Path) -> None:
    pictures(tmp_path / "train", 10)
    pictures(tmp_path / "test", 10)
    assert "train/CLASS/*" in image_folder.refuses(tmp_path)


def test_folders_for_testing_alone_are_refused(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path / "test", 10)
    classes(tmp_path / "validation", 10)
    assert "train/CLASS/*" in image_folder.refuses(tmp_path)


def test_two_folders_for_one_split_are_refused(image_folder: Reader, tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        classes(tmp_path / name, 5)
    assert "val and valid" in image_folder.refuses(tmp_path)


def test_files_and_folders_of_systems_are_no_data(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 6)
    pictures(tmp_path / "__MACOSX" / "red", 2)
    pictures(tmp_path / ".ipynb_checkpoints", 2)
    for name in ("._0.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / "red" / name).write_bytes(b"\0\5\x16\7")
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"green", "red"}
    assert sum(map(len, splits.values())) == 12
    assert "left out" not in said


def test_empty_folders_and_other_files_are_left_out_and_named(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 6)
    (tmp_path / "blue").mkdir()
    (tmp_path / "red" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "labels.csv").write_text("file,label\n", encoding="utf-8")
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"green", "red"}
    for name in ("blue/", "phone.heic", "labels.csv"):
        assert f"{name}" in said.split("left out", 1)[1]


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", ".jpe", ".avif", ".webp", ".jp2", ".bmp", ".tif", ".gif", ".qoi"])
def test_formats_that_pillow_decodes_itself_are_read(image_folder: Reader, tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path / "green", 5, suffix)
    pictures(tmp_path / "red", 5, suffix)
    splits, said = image_folder(tmp_path)
    assert sum(map(len, splits.values())) == 10
    assert "left out" not in said


def test_postscript_is_never_run(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 6)
    picture(tmp_path / "red" / "drawing.eps")
    (tmp_path / "red" / "drawing.eps").rename(tmp_path / "red" / "drawing.png")
    picture(tmp_path / "red" / "other.eps")
    splits, said = image_folder(tmp_path)
    assert sum(map(len, splits.values())) == 12
    assert "drawing.png" in said and "other.eps" in said


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".avif"])
def test_truncated_pictures_are_found_before_training(image_folder: Reader, tmp_path: Path, suffix: str) -> None:
    classes(tmp_path, 6)
    file = picture(tmp_path / "red" / f"cut{suffix}", size=(200, 200))
    file.write_bytes(file.read_bytes()[:-400])
    splits, said = image_folder(tmp_path)
    assert str(file) not in [name for part in splits.values() for name, _ in part]
    assert str(file) in said


def test_class_of_unreadable_pictures_is_refused(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 6)
    (tmp_path / "blue").mkdir()
    (tmp_path / "blue" / "0.png").write_bytes(b"no picture")
    assert "blue" in image_folder.refuses(tmp_path)
