"""Folders of pictures, boxes and masks as people and tools leave them: read as meant, or refused with the reason."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Bake, Project
from data_files import coloured, digits, write_cifar_batches, write_idx

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
        """The samples that were read, and the text that was printed about them before training."""
        done = self.project.run("-c", self.code, json.dumps({"data_dir": str(folder), **options}))
        said, last = done.stdout.rstrip("\n").rsplit("\n", 1)
        return json.loads(last), said + "\n" + done.stderr

    def refuses(self, folder: Path, **options: Any) -> str:
        """The error, which is not a traceback."""
        done = self.project.run("-c", self.code, json.dumps({"data_dir": str(folder), **options}), status=1)
        assert "\nerror: " in "\n" + done.stderr and "Traceback" not in done.stderr, done.stderr
        return done.stderr


def picture(file: Path, number: int = 0, size: tuple[int, int] = (12, 10), **options: Any) -> Path:
    """Write noise that differs by number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)
    return file


def pictures(folder: Path, count: int, suffix: str = ".png") -> list[Path]:
    """Write pictures that differ from each other and from those of other folders."""
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
        ("train2017", "val2017", "test2017"),
        ("seg_train", "seg_val", "seg_test"),
        ("train-cats-v2", "valid-cats-v2", "test-cats-v2"),
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
    assert f"{len(splits['test'])} test" in said


def test_folders_of_classes_alone_are_split(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 10, ["bus", "train"])  # a class of this name
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"bus", "train"}
    assert sum(map(len, splits.values())) == 20 and all(splits.values())
    assert "bus (10)" in said and "train (10)" in said


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


@pytest.mark.parametrize(
    ("train", "test"), [("seg_train", "seg_test"), ("training_set", "test_set"), ("train", "test")]
)
def test_folders_in_folders_of_the_same_name_are_entered(
    image_folder: Reader, tmp_path: Path, train: str, test: str
) -> None:
    classes(tmp_path / train / train, 10)
    classes(tmp_path / test / test, 5)
    pictures(tmp_path / "seg_pred" / "seg_pred", 4)
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"green", "red"}
    assert origins(splits, tmp_path) == {"train": {train}, "val": {train}, "test": {test}}
    assert "4 pictures in seg_pred/" in said and "holds no pictures" not in said


def test_doubled_folders_with_unlabelled_test_pictures_are_read(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path / "signs_train" / "signs_train", 10)
    pictures(tmp_path / "signs_test" / "signs_test", 4)
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"green", "red"}
    assert "left out: 4 pictures in signs_test/" in said


def test_class_in_a_split_may_have_the_name_of_the_split(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path / "train", 10, ["bus", "train"])
    splits, _ = image_folder(tmp_path)
    assert names(splits) == {"bus", "train"}


@pytest.mark.parametrize(
    "folders",
    [("my_train", "test_set_2", "other"), ("dogs_train", "cats_test"), ("train1", "train2")],
)
def test_classes_with_names_of_splits_are_refused(image_folder: Reader, tmp_path: Path, folders: Sequence[str]) -> None:
    for name in folders:
        pictures(tmp_path / name, 6)
    said = image_folder.refuses(tmp_path)
    assert all(name in said for name in folders) and "train/CLASS/*" in said


def test_folders_beside_splits_are_left_out(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path / "train", 10)
    classes(tmp_path / "eval", 5)
    splits, said = image_folder(tmp_path)
    assert origins(splits, tmp_path)["test"] == {"train"}
    assert "left out: 10 pictures in eval/ that are not in SPLIT/CLASS/" in said


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


def test_files_and_folders_of_systems_are_ignored(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 6)
    pictures(tmp_path / "__MACOSX" / "red", 2)
    pictures(tmp_path / ".ipynb_checkpoints", 2)
    pictures(tmp_path / "red" / "@eaDir" / "0.png", 2)
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


def test_postscript_is_never_executed(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 6)
    picture(tmp_path / "red" / "drawing.eps")
    (tmp_path / "red" / "drawing.eps").rename(tmp_path / "red" / "drawing.png")
    picture(tmp_path / "red" / "other.eps")
    splits, said = image_folder(tmp_path)
    assert sum(map(len, splits.values())) == 12
    assert "drawing.png" in said and "other.eps" in said


@pytest.mark.skipif(sys.platform == "win32", reason="has neither")
def test_pipes_and_dangling_links_neither_hang_nor_end_a_run(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 6)
    os.mkfifo(tmp_path / "red" / "pipe.png")
    (tmp_path / "red" / "link.png").symlink_to(tmp_path / "gone.png")
    splits, said = image_folder(tmp_path)
    assert sum(map(len, splits.values())) == 12
    assert "link.png" in said


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


def test_masks_in_the_folder_of_their_pictures_are_left_out(image_folder: Reader, tmp_path: Path) -> None:
    for name in ("benign", "normal"):
        for i in range(6):
            for ending in ("", "_mask", "_mask_1", "_Segmentation", "-gt"):
                picture(tmp_path / name / f"{name} ({i}){ending}.png", i)
    classes(tmp_path, 6, ["with_mask"])
    picture(tmp_path / "with_mask" / "7_mask.png")  # of no other picture
    _, said = image_folder(tmp_path)
    assert "benign (6), normal (6), with_mask (7)" in said
    assert "left out: 48 masks" in said and "benign (0)_mask.png" in said


@pytest.mark.parametrize("masks", ["masks", "Ground Truth", "lung masks"])
@pytest.mark.parametrize("place", ["{name}/{kind}", "train/{name}/{kind}", "{kind}/{name}"])
def test_folders_of_masks_are_left_out(image_folder: Reader, tmp_path: Path, masks: str, place: str) -> None:
    for name in ("covid", "normal"):
        for kind in ("images", masks):
            pictures(tmp_path / place.format(name=name, kind=kind), 6)
    splits, said = image_folder(tmp_path)
    assert "covid (6), normal (6)" in said
    files = [Path(file) for part in splits.values() for file, _ in part]
    assert len(files) == 12 and all("images" in file.parts for file in files)
    assert "warning" not in said


def test_classes_may_be_named_after_masks(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path, 6, ["live", "mask", "photo"])
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"live", "mask", "photo"} and "left out" not in said


@pytest.mark.parametrize(
    "folders",
    [
        ["set_images_part_1", "set_images_part_2"],
        ["images_001", "images_002"],
        ["images", "annotations/trimaps"],
        ["images", "masks"],
        ["train/images", "train/labels", "test/images"],
        ["jpg"],
    ],
)
def test_parts_of_a_data_set_are_no_classes(image_folder: Reader, tmp_path: Path, folders: Sequence[str]) -> None:
    for name in folders:
        pictures(tmp_path / name, 6)
    assert "do not look like classes" in image_folder.refuses(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [["0", "1", "2"], ["class_1", "class_2"], ["sun", "sunset"], ["cat_images", "dog_images"], ["Cat", "cat"]],
)
def test_classes_may_have_names_that_resemble_each_other(
    image_folder: Reader, tmp_path: Path, folders: Sequence[str]
) -> None:
    classes(tmp_path, 6, folders)
    splits, said = image_folder(tmp_path)
    assert names(splits) == {*folders} and "warning" not in said


@pytest.mark.parametrize("top", ["", "train"])
def test_second_copy_of_all_classes_is_refused(image_folder: Reader, tmp_path: Path, top: str) -> None:
    classes(tmp_path / top, 6)
    classes(tmp_path / top / "flowers", 6)
    assert "flowers" in image_folder.refuses(tmp_path)


@pytest.mark.parametrize("top", ["", "train"])
@pytest.mark.parametrize(
    ("subfolders", "warns"),
    [
        (["apple/healthy", "apple/scab", "corn/healthy", "corn/rust"], True),
        (["apple/healthy", "apple/scab", "corn/healthy", "corn/scab"], True),
        (["apple/red", "apple/green", "corn/raw", "corn/cooked"], False),
        (["apple/files", "corn/files"], False),
    ],
)
def test_subfolders_that_may_be_the_classes_are_warned_about(
    image_folder: Reader, tmp_path: Path, top: str, subfolders: Sequence[str], warns: bool
) -> None:
    for name in subfolders:
        pictures(tmp_path / top / name, 6)
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"apple", "corn"}
    assert ("warning: " in said) == warns


@pytest.mark.parametrize(
    ("top", "others"),
    [
        ("images", ["meta/train.txt", "meta/classes.txt"]),
        ("Images", ["Annotation/green/1"]),
        ("dataset/images", ["README.md", "dataset/labels.csv"]),
        ("real_vs_fake/real-vs-fake/train", ["train.csv"]),
    ],
)
def test_folder_of_pictures_in_an_archive_is_entered(
    image_folder: Reader, tmp_path: Path, top: str, others: Sequence[str]
) -> None:
    classes(tmp_path / top, 6)
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text", encoding="utf-8")
    splits, said = image_folder(tmp_path)
    assert names(splits) == {"green", "red"} and "warning" not in said


def test_folder_of_a_class_is_not_entered(image_folder: Reader, tmp_path: Path) -> None:
    pictures(tmp_path / "cat", 9)
    classes(tmp_path / "cat", 2, ["small", "large"])
    assert "only one class, cat" in image_folder.refuses(tmp_path)


def test_pictures_of_yolo_are_refused(image_folder: Reader, tmp_path: Path) -> None:
    for split in ("train", "val"):
        pictures(tmp_path / "images" / split, 6)
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "0.txt").write_text("0 .5 .5 .1 .1", encoding="utf-8")
    assert "train, val look like splits" in image_folder.refuses(tmp_path)


@pytest.mark.parametrize("suffix", [".HEIC", ".heif", ".nef", ".psd"])
def test_formats_that_cannot_be_read_are_named(image_folder: Reader, tmp_path: Path, suffix: str) -> None:
    classes(tmp_path, 6)
    picture(tmp_path / "red" / "thumbnail.tif").rename(tmp_path / "red" / f"phone{suffix}")
    splits, said = image_folder(tmp_path)
    assert sum(map(len, splits.values())) == 12
    assert f"formats that cannot be read: {Path('red', 'phone')}{suffix}" in said
    (tmp_path / "blue").mkdir()
    (tmp_path / "red" / f"phone{suffix}").rename(tmp_path / "blue" / f"phone{suffix}")
    assert "blue" in image_folder.refuses(tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system changes the form of names")
def test_accents_of_classes_may_be_written_in_two_forms(image_folder: Reader, tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    classes(tmp_path / two / "train", 6, [two, "tea"])
    classes(tmp_path / two / "test", 6, [one, "tea"])
    splits, _ = image_folder(tmp_path)
    assert names(splits) == {one, "tea"} and len(splits["test"]) == 12


MASKS = """
    masks = {}
    for split in ("train", "val", "test"):
        for i, (picture, mask) in enumerate(data.samples[1][split]):
            part = getattr(data, split)
            values = sorted(set(part[i][1].flatten().tolist())) if split != "train" else []
            masks[str(picture.file)] = [split, str(mask), values, picture.size, picture.upright]
    print(json.dumps([data.class_names, masks]))
"""


@pytest.fixture(scope="module")
def segmentation(bake: Bake) -> Reader:
    return Reader(bake(variant="segmentation"), MASKS)


def mask(values: Sequence[int], number: int = 0, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """A mask of these values in columns."""
    pixels = np.resize(np.array(values, np.uint8), size[0])
    return Image.fromarray(np.tile(np.roll(pixels, number), (size[1], 1)))


def pairs(images: Path, masks: Path, values: Sequence[int] = (0, 1), ending: str = "", count: int = 20) -> None:
    masks.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(pictures(images, count)):
        mask(values, i).save(masks / f"{file.stem}{ending}.png")


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [
        ("images", "masks", ""),
        ("images", "masks", "_mask"),
        ("Images", "labels", ""),
        ("img", "annotations", "_gt"),
        ("JPEGImages", "SegmentationClass", ""),
        ("photos", "GT", "-label"),
        (".", ".", "_mask"),
        ("scans", "scans/masks", ""),
    ],
)
def test_masks_are_found_by_folder_and_ending(
    segmentation: Reader, tmp_path: Path, images: str, masks: str, ending: str
) -> None:
    pairs(tmp_path / images, tmp_path / masks, ending=ending)
    (names, found), said = segmentation(tmp_path)
    assert names == ["0", "1"]
    assert len(found) == 20
    assert all(Path(picture).stem + ending == Path(entry[1]).stem for picture, entry in found.items())
    assert "14 train, 2 val, 4 test" in said


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("{}/images", "{}/masks"),
        ("images/{}", "masks/{}"),
        ("{}", "{}_labels"),
        ("{}_images", "{}_masks"),
        ("{}", "{}annot"),
        ("city_{}/images", "city_{}/masks"),
    ],
)
def test_masks_have_folders_of_splits(segmentation: Reader, tmp_path: Path, images: str, masks: str) -> None:
    for split in ("Train", "val", "test"):
        pairs(tmp_path / images.format(split), tmp_path / masks.format(split), count=3)
    (_, found), said = segmentation(tmp_path)
    assert "3 train, 3 val, 3 test" in said
    assert all(entry[0] in picture.removeprefix(str(tmp_path)).lower() for picture, entry in found.items())


def test_test_pictures_without_masks_are_left_out(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "train" / "images", tmp_path / "train" / "masks")
    pictures(tmp_path / "test" / "images", 5)
    (_, found), said = segmentation(tmp_path)
    assert len(found) == 20
    assert "left out: the test pictures" in said


def test_masks_of_0_and_255_have_two_classes(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 255))
    (names, found), said = segmentation(tmp_path)
    assert names == ["0", "255"]
    assert [entry[2] for entry in found.values() if entry[0] == "test"] == [[0, 1]] * 4
    assert "255 (50.0%)" in said


def test_value_255_beside_other_values_is_ignored(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 1, 255))
    (names, found), _ = segmentation(tmp_path)
    assert names == ["0", "1"]
    assert [entry[2] for entry in found.values() if entry[0] == "test"] == [[0, 1, 255]] * 4


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "LA"])
def test_grey_masks_may_have_any_mode(segmentation: Reader, tmp_path: Path, mode: str) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 255))
    for file in (tmp_path / "masks").iterdir():
        Image.open(file).convert(mode).save(file)
    (names, _), said = segmentation(tmp_path)
    assert len(names) == 2
    assert "50.0%" in said


def recolour(folder: Path, colours: Sequence[tuple[int, int, int]], palette: bool) -> None:
    for file in folder.iterdir():
        image = Image.open(file)
        image.putpalette([channel for colour in colours for channel in colour])
        (image if palette else image.convert("RGB")).save(file)


COLOURS = [(0, 0, 0), (128, 64, 128), (0, 0, 255)]


def test_palettes_count_by_index(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 1, 2))
    recolour(tmp_path / "masks", COLOURS, palette=True)
    (names, found), _ = segmentation(tmp_path)
    assert names == ["0", "1", "2"]
    assert [entry[2] for entry in found.values() if entry[0] == "test"] == [[0, 1, 2]] * 4


def test_palettes_that_differ_are_refused(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 1, 2))
    recolour(tmp_path / "masks", COLOURS, palette=True)
    image = Image.open(tmp_path / "masks" / "3.png")
    image.putpalette([0, 0, 0, 0, 0, 255, 128, 64, 128])
    image.save(tmp_path / "masks" / "3.png")
    assert "classes.txt" in segmentation.refuses(tmp_path)


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "nothing 0 0 0\nroad 128 64 128\nblue sky 0 0 255\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nnothing:0,0,0::\nroad:128,64,128::\nblue sky:0,0,255::\n"),
        ("class_dict.csv", "name,r,g,b\nnothing,0,0,0\nroad,128,64,128\nblue sky,0,0,255\n"),
    ],
)
def test_colours_of_classes_are_read_from_a_file(
    segmentation: Reader, tmp_path: Path, name: str, text: str, palette: bool
) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 1, 2))
    recolour(tmp_path / "masks", COLOURS, palette)
    (tmp_path / name).write_text(text, encoding="utf-8")
    (names, found), _ = segmentation(tmp_path)
    assert names == ["nothing", "road", "blue sky"]
    assert [entry[2] for entry in found.values() if entry[0] == "test"] == [[0, 1, 2]] * 4


def test_colours_without_names_are_refused(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 1, 2))
    recolour(tmp_path / "masks", COLOURS, palette=False)
    assert "NAME RED GREEN BLUE" in segmentation.refuses(tmp_path)
    (tmp_path / "classes.txt").write_text("nothing 0 0 0\nroad 128 64 128\n", encoding="utf-8")
    assert "colour 0 0 255" in segmentation.refuses(tmp_path)


@pytest.mark.parametrize("text", ["", "nothing\ncat\n"])
def test_values_1_and_255_of_different_masks_are_refused(segmentation: Reader, tmp_path: Path, text: str) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 255))
    mask((0, 1)).save(tmp_path / "masks" / "3.png")
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    said = segmentation.refuses(tmp_path)
    assert str(tmp_path / "masks" / "3.png") in said and str(tmp_path / "masks" / "0.png") in said


@pytest.mark.parametrize("values", [(0, 1), (0, 255)])
@pytest.mark.parametrize(("text", "said"), [("cat\n", "background"), ("nothing\ncat\ndog\n", "3 classes")])
def test_number_of_names_fits_the_number_of_values(
    segmentation: Reader, tmp_path: Path, values: tuple[int, int], text: str, said: str
) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", values)
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    if values == (0, 255) or said == "background":
        assert said in segmentation.refuses(tmp_path)
    else:
        assert segmentation(tmp_path)[0][0] == ["nothing", "cat", "dog"]


def test_spread_values_are_read_as_the_error_message_tells(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 127, 255))
    assert "NAME RED GREEN BLUE" in segmentation.refuses(tmp_path)
    (tmp_path / "classes.txt").write_text("nothing\nroad\nsky\n", encoding="utf-8")
    assert "NAME RED GREEN BLUE" in segmentation.refuses(tmp_path)
    (tmp_path / "classes.txt").write_text("nothing 0 0 0\nroad 127 127 127\nsky 255 255 255\n", encoding="utf-8")
    (names, found), _ = segmentation(tmp_path)
    assert names == ["nothing", "road", "sky"]
    assert [entry[2] for entry in found.values() if entry[0] == "test"] == [[0, 1, 2]] * 4


@pytest.mark.parametrize("folders", [{"cat": range(10), "dog": range(10, 20)}, {"a": range(10), "b": range(10, 20)}])
def test_masks_in_other_subfolders_than_their_pictures_are_refused(
    segmentation: Reader, tmp_path: Path, folders: dict[str, range]
) -> None:
    """Masks in folders of classes, and pictures in other folders than their masks."""
    files = pictures(tmp_path / "images", 20)
    for name, numbers in folders.items():
        (tmp_path / "masks" / name).mkdir(parents=True)
        for i in numbers:
            mask((0, 255)).save(tmp_path / "masks" / name / f"{i}.png")
    if "a" in folders:
        for i, file in enumerate(files):
            (tmp_path / "images" / "ab"[i % 2]).mkdir(exist_ok=True)
            file.rename(tmp_path / "images" / "ab"[i % 2] / file.name)
    assert "different subfolders" in segmentation.refuses(tmp_path)


def test_masks_in_one_folder_belong_to_pictures_in_several(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks")
    for i in range(20):
        (tmp_path / "images" / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.png").rename(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    (_, found), _ = segmentation(tmp_path)
    assert all(Path(file).name == Path(entry[1]).name for file, entry in found.items()) and len(found) == 20


@pytest.mark.parametrize("folders", [("main", "dev kit"), ("test_site",)])
def test_folders_whose_names_contain_a_split_are_no_splits(
    segmentation: Reader, tmp_path: Path, folders: Sequence[str]
) -> None:
    for name in folders:
        pairs(tmp_path / name / "images", tmp_path / name / "masks", count=20 // len(folders))
    assert "14 train, 2 val, 4 test" in segmentation(tmp_path)[1]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_masks_that_went_through_jpeg_are_refused(segmentation: Reader, tmp_path: Path, suffix: str) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", (0, 0, 0, 255, 255))
    for file in list((tmp_path / "masks").iterdir()):
        image = Image.open(file)
        file.unlink()
        image.save(file.with_suffix(".jpg"), quality=60)
        if suffix == ".png":
            Image.open(file.with_suffix(".jpg")).save(file)
            file.with_suffix(".jpg").unlink()
    assert "JPEG" in segmentation.refuses(tmp_path)


def test_pictures_without_masks_are_left_out_by_a_flag(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "masks" / "3.png").unlink()
    assert "--data.drop_unpaired" in segmentation.refuses(tmp_path)
    (_, found), said = segmentation(tmp_path, drop_unpaired=True)
    assert len(found) == 19
    assert "left out: 1 " in said


@pytest.mark.parametrize("drop_unpaired", [False, True])
@pytest.mark.parametrize("other", ["1st_manual/{}_manual1.gif", "manual1/{}.png"], ids=["DRIVE", "HRF"])
def test_two_folders_of_masks_for_the_same_pictures_are_refused(
    segmentation: Reader, tmp_path: Path, other: str, drop_unpaired: bool
) -> None:
    pairs(tmp_path / "images", tmp_path / "mask", (0, 255), "_mask")
    (tmp_path / other).parent.mkdir()
    for i in range(20):
        mask((0, 255), i).save(tmp_path / other.format(i))
    said = segmentation.refuses(tmp_path, drop_unpaired=drop_unpaired)
    assert str((tmp_path / other).parent) in said and str(tmp_path / "mask") in said
    assert "drop_unpaired" not in said


def test_folder_of_other_pictures_beside_masks_is_left_out(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "Train" / "Imgs", tmp_path / "Train" / "GT", (0, 255))
    pictures(tmp_path / "Train" / "Edge", 20)
    (_, found), said = segmentation(tmp_path)
    assert {Path(entry[1]).parent.name for entry in found.values()} == {"GT"}
    assert "left out: 20 pictures in Train/Edge/" in said


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("stage1_train/{}/images/{}.png", ["stage1_train/{}/masks/1.png", "stage1_train/{}/masks/2.png"]),
        ("leftImg8bit/train/a/{}_leftImg8bit.png", ["gtFine/train/a/{}_gtFine_labelIds.png"]),
    ],
    ids=["DSB2018", "Cityscapes"],
)
def test_masks_with_other_names_than_pictures_are_named(
    segmentation: Reader, tmp_path: Path, image: str, parts: list[str]
) -> None:
    for name in ("ab", "cd", "ef"):
        picture(tmp_path / image.format(name, name))
        for part in parts:
            file = tmp_path / part.format(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            mask((0, 1)).save(file)
    said = segmentation.refuses(tmp_path)
    assert all(f"{tmp_path / part.format('cd')} has no picture" in said for part in parts)
    assert "there are no pictures" not in said and "drop_unpaired" not in said


@pytest.mark.parametrize("drop_unpaired", [False, True])
def test_parts_of_a_mask_are_never_dropped(segmentation: Reader, tmp_path: Path, drop_unpaired: bool) -> None:
    pairs(tmp_path / "benign", tmp_path / "benign", (0, 255), "_mask")
    mask((0, 255), 1).save(tmp_path / "benign" / "3_mask_1.png")
    said = segmentation.refuses(tmp_path, drop_unpaired=drop_unpaired)
    assert "3.png has two masks" in said and "3_mask_1.png" in said


def test_pictures_that_are_named_like_parts_of_masks_have_masks(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks", ending="_mask")
    for file in tmp_path.rglob("*.png"):
        file.rename(file.with_stem(f"face_mask_{file.stem}"))
    (_, found), _ = segmentation(tmp_path)
    assert all(f"{Path(file).stem}_mask" == Path(entry[1]).stem for file, entry in found.items()) and len(found) == 20


def test_more_classes_than_noise_would_have_need_names(segmentation: Reader, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 3)
    (tmp_path / "masks").mkdir()
    for file in images:
        Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(tmp_path / "masks" / file.name)
    assert "name the classes" in segmentation.refuses(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(120)), encoding="utf-8")
    (names, found), _ = segmentation(tmp_path)
    assert len(names) == 120
    assert all(entry[2] == [*range(120)] for entry in found.values() if entry[0] == "test")


def test_lists_of_pascal_voc_decide_about_pictures_with_masks(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", (0, 1, 255), count=9)
    pictures(tmp_path / "JPEGImages", 12)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, numbers in (("train", range(4)), ("val", range(4, 8)), ("trainval", range(8))):
        (lists / f"{split}.txt").write_text("\n".join(map(str, numbers)), encoding="utf-8")
    (_, found), said = segmentation(tmp_path)
    assert {Path(file).stem for file, entry in found.items() if entry[0] == "val"} == {"4", "5", "6", "7"}
    assert {Path(file).stem for file in found} == {str(i) for i in range(8)}
    assert "left out: 4 pictures in no list" in said


def test_lists_for_several_folders_of_masks_are_reported_as_unused(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks")
    for year in ("VOC2007", "VOC2012"):
        (tmp_path / year / "ImageSets" / "Segmentation").mkdir(parents=True)
    assert "left out: 2 folders ImageSets/" in segmentation(tmp_path)[1]


@pytest.mark.parametrize("upright", [False, True])
def test_size_of_a_mask_decides_whether_exif_turns_its_picture(
    segmentation: Reader, tmp_path: Path, upright: bool
) -> None:
    pairs(tmp_path / "images", tmp_path / "masks")
    file = tmp_path / "images" / "3.png"
    picture(file.with_suffix(".jpg"), size=(10, 12) if upright else (12, 10), exif=exif(6))
    file.unlink()
    (_, found), _ = segmentation(tmp_path)
    assert found[str(file.with_suffix(".jpg"))][3:] == [[10, 12], upright]


def test_picture_that_exif_turns_by_half_is_asked_about(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks")
    file = picture(tmp_path / "images" / "3.jpg", exif=exif(3))
    file.with_suffix(".png").unlink()
    assert "--data.turn" in segmentation.refuses(tmp_path)
    for turn in (False, True):
        (_, found), _ = segmentation(tmp_path, turn=turn)
        assert found[str(file)][4] == turn


BOXES = """
    boxes = {}
    for split, part in data.samples[1].items():
        for picture, target in part:
            names = [data.class_names[i - 1] for i in target["labels"].tolist()]
            entry = [split, target["boxes"].tolist(), names, target["image_id"], picture.upright]
            boxes[str(picture.file)] = entry
    print(json.dumps([data.category_ids, data.class_names, boxes]))
"""
Json = dict[str, Any]


@pytest.fixture(scope="module")
def detection(bake: Bake) -> Reader:
    return Reader(bake(variant="detection"), BOXES)


def coco(files: Sequence[Path], names: Sequence[str], first: int = 0) -> Json:
    """A box in each picture, of two categories."""
    images = [{"id": first + i, "file_name": name, "width": 12, "height": 10} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": first + i, "category_id": i % 2, "bbox": [1, 2, 5, 6]} for i in range(len(files))]
    return {"images": images, "annotations": boxes, "categories": [{"id": i, "name": "ab"[i]} for i in (0, 1)]}


def write(file: Path, content: Json) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "images", "prefix"),
    [
        ("annotations.json", "images", ""),
        ("result.json", "images", "images\\"),
        ("result.json", "images", "images/"),
        ("result.json", "images", "../../label-studio/upload/1/"),
        ("result.json", "images", "C:\\data\\images\\"),
        ("annotations/instances_default.json", "images", ""),
        ("annotations/instances_default.json", "images/default", ""),
        ("_annotations.coco.json", ".", ""),
        ("train/_annotations.coco.json", "train", ""),
        ("coco/annotations/instances_default.json", "coco/images", ""),
        ("my/data/coco/annotations.json", "my/data/coco/images", ""),
    ],
)
def test_one_annotation_file_is_found_with_its_pictures(
    detection: Reader, tmp_path: Path, file: str, images: str, prefix: str
) -> None:
    files = pictures(tmp_path / images, 20)
    write(tmp_path / file, coco(files, [prefix + each.name for each in files]))
    (ids, names, boxes), said = detection(tmp_path)
    assert (ids, names) == ([0, 1], ["a", "b"])
    assert sorted(boxes) == sorted(map(str, files))
    assert "14 train, 2 val, 4 test" in said and "a (10), b (10)" in said


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("{}/_annotations.coco.json", "{}"),
        ("{}.json", "images"),
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/{}/instances.json", "images/{}"),
        ("coco2017/annotations/instances_{}2017.json", "coco2017/{}2017"),
        ("{}_annotations.json", "images"),
    ],
)
@pytest.mark.parametrize("words", [("train", "val", "test"), ("Train", "valid", "test")])
def test_annotations_of_splits_are_found_with_their_pictures(
    detection: Reader, tmp_path: Path, file: str, images: str, words: Sequence[str]
) -> None:
    for i, word in enumerate(words):
        files = pictures(tmp_path / images.format(word), 4 * i + 4)[4 * i if images == "images" else 0 :]
        write(tmp_path / file.format(word), coco(files, [each.name for each in files], first=100 * i))
    (_, _, boxes), _ = detection(tmp_path)
    ids = {0: "train", 1: "val", 2: "test"}
    assert all(entry[0] == ids[entry[3] // 100] for entry in boxes.values())
    assert {entry[0] for entry in boxes.values()} == {"train", "val", "test"}


def test_json_files_in_deep_folders_are_not_used_beside_pascal_voc(detection: Reader, tmp_path: Path) -> None:
    for file in pictures(tmp_path / "images", 20):
        voc(tmp_path / "annotations" / f"{file.stem}.xml", file.name, "a")
    write(tmp_path / "tools" / "old" / "labels.json", {"annotations": [{"x": 1}]})
    assert len(detection(tmp_path)[0][2]) == 20


def change(folder: Path, count: int = 20) -> tuple[Json, Path]:
    files = pictures(folder / "images", count)
    return coco(files, [file.name for file in files]), folder / "annotations.json"


def test_two_annotation_files_for_one_split_are_refused(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    write(file, content)
    write(tmp_path / "corrected.json", content)
    assert "corrected.json" in detection.refuses(tmp_path)


def voc(file: Path, name: str, kind: str, more: str = "", size: str = "<width>12</width><height>10</height>") -> None:
    """A Pascal VOC file with a box."""
    file.parent.mkdir(parents=True, exist_ok=True)
    edges = "<xmin>1</xmin><ymin>2</ymin><xmax>6</xmax><ymax>8</ymax>"
    box = f"<object><name>{kind}</name><difficult>0</difficult><bndbox>{edges}</bndbox></object>{more}"
    content = f"<annotation><filename>{name}</filename><size>{size}</size>{box}</annotation>"
    file.write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    ("folder", "beside", "named"),
    [
        ("Annotations", "JPEGImages", "{}.jpg"),
        ("annotations", "images", "{}.jpg"),
        ("", "", "{}.jpg"),
        ("labels", "pictures", "IMG_{}.png"),
    ],
    ids=["VOC's folders", "folders of other tools", "one folder", "names of other files"],
)
def test_pascal_voc_is_read(detection: Reader, tmp_path: Path, folder: str, beside: str, named: str) -> None:
    for file in pictures(tmp_path / beside, 20, ".jpg"):
        voc(tmp_path / folder / f"{file.stem}.xml", named.format(file.stem), "ab"[int(file.stem) % 2])
    (ids, names, boxes), _ = detection(tmp_path)
    assert (ids, names) == ([0, 1], ["a", "b"])
    assert {file: entry[1:3] for file, entry in boxes.items()} == {
        str(tmp_path / beside / f"{i}.jpg"): [[[1, 2, 6, 8]], ["ab"[i % 2]]] for i in range(20)
    }
    assert {entry[0] for entry in boxes.values()} == {"train", "val", "test"}


def test_lists_of_pascal_voc_decide_about_splits(detection: Reader, tmp_path: Path) -> None:
    for file in pictures(tmp_path / "JPEGImages", 12):
        voc(tmp_path / "Annotations" / f"{file.stem}.xml", file.name, "a")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, numbers in (("train", range(6)), ("Valid", range(6, 9)), ("test", range(9, 11)), ("a_val", range(11))):
        (lists / f"{split}.txt").write_text("\n".join(map(str, numbers)), encoding="utf-8")
    (_, _, boxes), said = detection(tmp_path)
    found = {Path(file).stem: entry[0] for file, entry in boxes.items()}
    assert found == {str(i): "train" if i < 6 else "val" if i < 9 else "test" for i in range(11)}
    assert "left out: 1 XML files" in said


@pytest.mark.parametrize("line", ["{}", "{}  1", "{} -1", "{}.png", "JPEGImages/{}.png"])
def test_lists_of_pascal_voc_hold_names_with_spaces(detection: Reader, tmp_path: Path, line: str) -> None:
    names = [f"my picture {file.stem}" for file in pictures(tmp_path / "JPEGImages", 12)]
    for i, name in enumerate(names):
        (tmp_path / "JPEGImages" / f"{i}.png").rename(tmp_path / "JPEGImages" / f"{name}.png")
        voc(tmp_path / "Annotations" / f"{name}.xml", f"{name}.png", "a")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, part in (("train", names[:6]), ("val", names[6:9]), ("test", names[9:])):
        (lists / f"{split}.txt").write_text("\n".join(map(line.format, part)) + "\n", encoding="utf-8")
    (_, _, boxes), said = detection(tmp_path)
    found = [
        {Path(file).stem for file, entry in boxes.items() if entry[0] == split} for split in ("train", "val", "test")
    ]
    assert found == [{*names[:6]}, {*names[6:9]}, {*names[9:]}]
    assert "left out" not in said


def test_lists_of_pascal_voc_with_other_names_are_reported(detection: Reader, tmp_path: Path) -> None:
    for file in pictures(tmp_path / "JPEGImages", 5):
        voc(tmp_path / "Annotations" / f"{file.stem}.xml", file.name, "a")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("x\ny\n", encoding="utf-8")
    assert "5 XML files in no list" in detection.refuses(tmp_path)


def test_folders_of_splits_hold_pascal_voc_and_difficult_boxes_do_not_train(detection: Reader, tmp_path: Path) -> None:
    hard = "<object><name>b</name><difficult>1</difficult><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>3</xmax>"
    hard += "<ymax>3</ymax></bndbox></object>"
    for split in ("train", "valid", "test"):
        for file in pictures(tmp_path / split, 4):
            voc(file.with_suffix(".xml"), file.name, "a", hard, size="")
    (_, names, boxes), _ = detection(tmp_path)
    assert names == ["a", "b"]
    assert boxes[str(tmp_path / "train" / "0.png")][:3] == ["train", [[1, 2, 6, 8]], ["a"]]
    assert boxes[str(tmp_path / "valid" / "0.png")][:3] == ["val", [[1, 2, 6, 8], [0, 0, 3, 3]], ["a", "b"]]


@pytest.mark.parametrize("content", ["<annotation>", "<svg></svg>", "<annotations/>"])
def test_damaged_pascal_voc_is_named(detection: Reader, tmp_path: Path, content: str) -> None:
    pictures(tmp_path / "JPEGImages", 3)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "0.xml").write_text(content, encoding="utf-8")
    assert "0.xml is not a Pascal VOC file" in detection.refuses(tmp_path)


def test_folder_without_annotations_is_refused(detection: Reader, tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1", encoding="utf-8")
    assert "COCO file, or XML files of Pascal VOC" in detection.refuses(tmp_path)


def test_categories_of_one_name_are_one_class(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    content["categories"][1]["name"] = "a"
    write(file, content)
    (ids, names, boxes), _ = detection(tmp_path)
    assert (ids, names) == ([0], ["a"])
    assert all(entry[2] == ["a"] for entry in boxes.values())


def test_splits_agree_by_the_names_of_categories(detection: Reader, tmp_path: Path) -> None:
    for split, ids in (("train", (0, 1)), ("val", (1, 0)), ("test", (0, 1))):
        files = pictures(tmp_path / split, 4)
        content = coco(files, [each.name for each in files])
        content["categories"] = [{"id": i, "name": name} for i, name in zip(ids, "ab", strict=True)]
        write(tmp_path / split / "_annotations.coco.json", content)
    (ids, names, boxes), _ = detection(tmp_path)
    assert (ids, names) == ([0, 1], ["a", "b"])
    assert boxes[str(tmp_path / "train" / "0.png")][2] == ["a"]
    assert boxes[str(tmp_path / "val" / "0.png")][2] == ["b"]


def test_ids_may_be_texts(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    for image in content["images"]:
        image["id"] = f"p{image['id']}"
    for category in content["categories"]:
        category["id"] = str(category["id"])
    for box in content["annotations"]:
        box["image_id"] = f"p{box['image_id']}"
    write(file, content)
    (ids, names, boxes), _ = detection(tmp_path)
    assert (ids, names) == (["0", "1"], ["a", "b"])
    assert boxes[str(tmp_path / "images" / "3.png")][3] == "p3"
    assert all(len(entry[1]) == 1 for entry in boxes.values())


def test_ids_may_be_whole_numbers_with_decimals(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    for box in content["annotations"]:
        box |= {"image_id": float(box["image_id"]), "category_id": float(box["category_id"])}
    write(file, content)
    (ids, _, boxes), said = detection(tmp_path)
    assert ids == [0, 1] and "a (10), b (10)" in said
    assert boxes[str(tmp_path / "images" / "3.png")][3] == 3


@pytest.mark.parametrize(
    ("stated", "stored"),
    [("{}.jpg", "{}.JPG"), ("{}.PNG", "{}.png"), ("/data/upload/my%20picture%20{}.jpg", "my picture {}.jpg")],
)
def test_names_of_pictures_may_differ_in_the_case_of_the_suffix_or_be_encoded(
    detection: Reader, tmp_path: Path, stated: str, stored: str
) -> None:
    content, file = change(tmp_path)
    for i, image in enumerate(content["images"]):
        (tmp_path / "images" / image["file_name"]).rename(tmp_path / "images" / stored.format(i))
        image["file_name"] = stated.format(i)
    write(file, content)
    (_, _, boxes), _ = detection(tmp_path)
    assert {name: entry[3] for name, entry in boxes.items()} == {
        str(tmp_path / "images" / stored.format(i)): i for i in range(20)
    }


def test_picture_with_the_right_case_is_used_first(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    (tmp_path / "images").rename(tmp_path / "pictures")
    picture(tmp_path / "other" / "3.PNG")
    write(file, content)
    (_, _, boxes), _ = detection(tmp_path)
    assert sorted(boxes) == sorted(map(str, (tmp_path / "pictures").iterdir()))


def test_boxes_without_area_are_left_out_and_counted(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    content["annotations"][4]["bbox"] = [1, 2, 0, 6]
    write(file, content)
    (_, _, boxes), said = detection(tmp_path)
    assert boxes[str(tmp_path / "images" / "4.png")][1] == []
    assert "left out: 1 boxes without area" in said


@pytest.mark.parametrize("box", [[9, 2, 9, 6], [50, 2, 5, 6], [5, 5, -4, 3]])
def test_boxes_outside_of_pictures_are_refused_unless_a_flag_drops_them(
    detection: Reader, tmp_path: Path, box: list[int]
) -> None:
    content, file = change(tmp_path)
    content["annotations"][4]["bbox"] = box
    write(file, content)
    assert "--data.drop_bad_boxes" in detection.refuses(tmp_path)
    (_, _, boxes), _ = detection(tmp_path, drop_bad_boxes=True)
    assert boxes[str(tmp_path / "images" / "4.png")][1] == ([[9, 2, 12, 8]] if box[0] == 9 else [])


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.5, 0.5], [0.8, 0.5, 0.4, 0.3]], ids=["corner", "centre"])
def test_boxes_that_are_fractions_are_refused(detection: Reader, tmp_path: Path, box: list[float]) -> None:
    content, file = change(tmp_path)
    for entry in content["annotations"]:
        entry["bbox"] = box
    write(file, content)
    assert "fractions" in detection.refuses(tmp_path)


@pytest.mark.parametrize(
    "polygons", [[[1, 2, 6, 2, 4, 8], [2, 3, 7, 3, 3, 4]], [1, 2, 7, 2, 4, 8]], ids=["two", "flat"]
)
def test_polygons_have_boxes(detection: Reader, tmp_path: Path, polygons: list[Any]) -> None:
    content, file = change(tmp_path)
    for box in content["annotations"]:
        del box["bbox"]
        box["segmentation"] = polygons
    write(file, content)
    (_, _, boxes), _ = detection(tmp_path)
    assert all(entry[1] == [[1, 2, 7, 8]] for entry in boxes.values())


@pytest.mark.parametrize(
    "segmentation", [None, [], {"size": [10, 12], "counts": [0, 120]}], ids=["none", "empty", "RLE"]
)
def test_annotations_without_box_and_polygons_are_refused(detection: Reader, tmp_path: Path, segmentation: Any) -> None:
    content, file = change(tmp_path)
    for box in content["annotations"]:
        del box["bbox"]
        box["segmentation"] = segmentation
    write(file, content)
    said = detection.refuses(tmp_path)
    assert "annotation 3: " in said and "no bbox" in said and "bbox is None" not in said


@pytest.mark.parametrize("upright", [False, True])
def test_annotated_size_decides_whether_exif_turns_a_picture(detection: Reader, tmp_path: Path, upright: bool) -> None:
    content, file = change(tmp_path)
    turned = picture(tmp_path / "images" / "turned.jpg", size=(10, 12) if upright else (12, 10), exif=exif(6))
    content["images"][3]["file_name"] = turned.name
    write(file, content)
    (_, _, boxes), _ = detection(tmp_path)
    assert boxes[str(turned)][1:2] == [[[1, 2, 6, 8]]]
    assert boxes[str(turned)][4] == upright


def test_pictures_without_annotated_size_are_asked_about_if_exif_turns_them(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    turned = picture(tmp_path / "images" / "turned.jpg", size=(12, 12), exif=exif(8))
    content["images"][3] = {"id": 3, "file_name": turned.name}
    write(file, content)
    assert "--data.turn" in detection.refuses(tmp_path)
    assert detection(tmp_path, turn=True)[0][2][str(turned)][4]


def test_truncated_annotated_picture_is_refused(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    write(file, content)
    cut = picture(tmp_path / "images" / "3.png", size=(12, 10))
    cut.write_bytes(cut.read_bytes()[:-30])
    assert str(cut) in detection.refuses(tmp_path)


@pytest.mark.parametrize(
    "hidden", ["._annotations.json", ".vscode/settings.json", "__MACOSX/annotations.json", "@eaDir/annotations.json"]
)
def test_hidden_json_files_are_no_annotations(detection: Reader, tmp_path: Path, hidden: str) -> None:
    content, file = change(tmp_path)
    write(file, content)
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).write_bytes(b"\0\5\x16\7")
    assert len(detection(tmp_path)[0][2]) == 20


def test_json_files_without_annotations_are_left_out(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    write(file, content)
    write(tmp_path / "classes.json", {"classes": ["a", "b"]})
    info = {key: content[key] for key in ("images", "categories")}
    write(tmp_path / "annotations" / "image_info_test2017.json", info)
    (_, _, boxes), said = detection(tmp_path)
    assert len(boxes) == 20 and {entry[0] for entry in boxes.values()} == {"train", "val", "test"}
    assert "left out: 2 JSON files, such as annotations/image_info_test2017.json" in said


def test_json_files_of_labelme_are_refused(detection: Reader, tmp_path: Path) -> None:
    for file in pictures(tmp_path, 4):
        write(file.with_suffix(".json"), {"version": "5.0", "shapes": [], "imagePath": file.name})
    assert "LabelMe" in detection.refuses(tmp_path)


def test_numbers_may_be_texts(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    for image in content["images"]:
        image |= {"width": "12", "height": 10.0}
    for box in content["annotations"]:
        box["iscrowd"] = "0"
    write(file, content)
    (_, _, boxes), said = detection(tmp_path)
    assert sum(len(entry[1]) for entry in boxes.values()) == 20
    assert "a (10), b (10)" in said


@pytest.mark.parametrize("prefix", ["/content/drive/data/", "C:\\data\\"])
def test_ends_of_absolute_names_are_found(detection: Reader, tmp_path: Path, prefix: str) -> None:
    for i, split in enumerate(("train", "val", "test")):
        files = pictures(tmp_path / split, 4)
        content = coco(files, [f"{prefix}{split}/{file.name}" for file in files], first=100 * i)
        write(tmp_path / "annotations" / f"{split}.json", content)
    (_, _, boxes), _ = detection(tmp_path)
    assert {file: entry[0] for file, entry in boxes.items()} == {
        str(tmp_path / split / f"{i}.png"): split for split in ("train", "val", "test") for i in range(4)
    }


def test_missing_picture_is_not_taken_from_another_split(detection: Reader, tmp_path: Path) -> None:
    for i, split in enumerate(("train", "valid", "test")):
        files = pictures(tmp_path / split, 6 - i)
        write(tmp_path / split / "_annotations.coco.json", coco(files, [file.name for file in files]))
    (tmp_path / "train" / "5.png").rename(tmp_path / "valid" / "5.png")
    assert str(Path("train", "5.png")) in detection.refuses(tmp_path)


def test_picture_beside_its_annotations_is_used_first(detection: Reader, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        files = pictures(tmp_path / split, 4)
        write(tmp_path / split / "_annotations.coco.json", coco(files, [file.name for file in files]))
    pictures(tmp_path / "images", 4)
    (_, _, boxes), _ = detection(tmp_path)
    assert len(boxes) == 12 and not any("images" in file for file in boxes)


def test_two_images_of_one_file_are_refused(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    content["images"][3]["file_name"] = content["images"][7]["file_name"]
    write(file, content)
    assert "image 3 and image 7 have the same picture" in detection.refuses(tmp_path)


@pytest.mark.parametrize("name", ["0.jpg", "", "a\\0.jpg"])
def test_pascal_voc_with_wrong_names_belongs_to_the_picture_of_its_own_name(
    detection: Reader, tmp_path: Path, name: str
) -> None:
    for split in ("train", "valid", "test"):
        for file in pictures(tmp_path / split, 4, ".jpg"):
            voc(file.with_suffix(".xml"), name, "ab"[int(file.stem) % 2])
    (_, _, boxes), _ = detection(tmp_path)
    assert len(boxes) == 12
    assert all(entry[2] == ["ab"[int(Path(file).stem) % 2]] for file, entry in boxes.items())


def test_two_xml_files_of_one_picture_are_refused(detection: Reader, tmp_path: Path) -> None:
    pictures(tmp_path / "images", 4)
    for i in range(4):
        voc(tmp_path / "annotations" / f"a{i}.xml", f"{i // 2}.png", "a")
    said = detection.refuses(tmp_path)
    assert all(f"a{i}.xml" in said for i in range(4)) and "have the same picture" in said


@pytest.mark.parametrize("sets", ["VOC2007/ImageSets/Main", "ImageSets/Main"])
@pytest.mark.parametrize("train", ["train", "trainval"])
def test_lists_of_pascal_voc_may_be_below_and_have_suffixes(
    detection: Reader, tmp_path: Path, sets: str, train: str
) -> None:
    for file in pictures(tmp_path / "VOC2007" / "JPEGImages", 12):
        voc(tmp_path / "VOC2007" / "Annotations" / f"{file.stem}.xml", file.name, "a")
    (tmp_path / sets).mkdir(parents=True)
    for split, numbers in ((train, range(9)), ("test", range(9, 12))):
        text = "\n".join(f"JPEGImages/{i}.png" for i in numbers)
        (tmp_path / sets / f"{split}.txt").write_text(text, encoding="utf-8")
    (_, _, boxes), _ = detection(tmp_path)
    assert {Path(file).stem for file, entry in boxes.items() if entry[0] == "test"} == {"9", "10", "11"}
    assert {entry[0] for entry in boxes.values()} == {"train", "val", "test"}


def test_lists_for_several_pascal_voc_folders_are_reported_as_unused(detection: Reader, tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        for file in pictures(tmp_path / year / "JPEGImages", 10):
            file = file.rename(file.with_stem(f"{year}_{file.stem}"))
            voc(tmp_path / year / "Annotations" / f"{file.stem}.xml", file.name, "a")
        (tmp_path / year / "ImageSets" / "Main").mkdir(parents=True)
    (_, _, boxes), said = detection(tmp_path)
    assert len(boxes) == 20
    assert "left out: 2 folders ImageSets/" in said


def test_names_of_xml_files_are_no_splits(detection: Reader, tmp_path: Path) -> None:
    for file in pictures(tmp_path / "images", 20):
        file = file.rename(file.with_stem(f"test_{file.stem}"))
        voc(tmp_path / "annotations" / f"{file.stem}.xml", file.name, "a")
    (tmp_path / "annotations" / "._test_1.xml").write_bytes(b"\0\5\x16\7")
    (_, _, boxes), said = detection(tmp_path)
    assert len(boxes) == 20 and "14 train, 2 val, 4 test" in said


def test_sizes_of_pascal_voc_may_have_decimals(detection: Reader, tmp_path: Path) -> None:
    for file in pictures(tmp_path / "images", 20):
        voc(tmp_path / f"{file.stem}.xml", file.name, "a", size="<width>12.0</width><height>10.0</height>")
    assert len(detection(tmp_path)[0][2]) == 20


@pytest.mark.parametrize("wrong", ["<xmax></xmax>", "<name></name>"])
def test_incomplete_objects_of_pascal_voc_are_named(detection: Reader, tmp_path: Path, wrong: str) -> None:
    for file in pictures(tmp_path / "images", 4):
        voc(tmp_path / f"{file.stem}.xml", file.name, "a")
    text = (tmp_path / "2.xml").read_text(encoding="utf-8")
    right = "<xmax>6</xmax>" if "xmax" in wrong else "<name>a</name>"
    (tmp_path / "2.xml").write_text(text.replace(right, wrong), encoding="utf-8")
    assert "2.xml is not a Pascal VOC file" in detection.refuses(tmp_path)


def test_metrics_of_splits_without_boxes_are_not_kept(bake: Bake, tmp_path: Path) -> None:
    project = bake(variant="detection", project_name="no_boxes", fresh=True)
    for i, split in enumerate(("train", "val", "test")):
        files = [picture(tmp_path / split / f"{j}.png", 10 * i + j, size=(40, 40)) for j in range(4)]
        content = coco(files, [each.name for each in files])
        for image in content["images"]:
            image |= {"width": 40, "height": 40}
        content["annotations"] = [] if split == "test" else content["annotations"]
        write(tmp_path / split / "_annotations.coco.json", content)
    flags = [f"--data.data_dir={tmp_path}", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    done = project.run("training/train.py", *flags, "--trainer.logger=false")
    assert done.stderr.count("warning") == 1 and "test/map" in done.stderr
    assert "map -1" not in done.stdout and "test" not in done.stdout.split("best epoch", 1)[1].split("run folder")[0]
    assert not (project.runs()[0] / "test_metrics.json").exists()


DEEP = """
import json, sys
from pathlib import Path
from data import IMPORTS

print(json.dumps([READ for file in map(Path, sys.argv[1:])]))
"""
READERS = {
    "image-folder": ("pictures", "[pictures.is_readable(file), pictures.read_picture(file, (1, 10, 12)).tolist()]"),
    "detection": (
        "canvases",
        "[True, (canvases.read_picture(canvases.Picture(file, (10, 12), False)) / 255).tolist()]",
    ),
}


@pytest.mark.parametrize("variant", READERS)
def test_pictures_of_16_bits_are_scaled_by_the_same_range(bake: Bake, tmp_path: Path, variant: str) -> None:
    files = []
    for largest in (4000, 65535):
        values = np.linspace(0, largest, 120).astype(np.uint16).reshape(10, 12)
        Image.fromarray(values).save(tmp_path / f"{largest}.png")
        Image.frombytes("I;16B", (12, 10), values.astype(">u2").tobytes()).save(tmp_path / f"{largest}.tif")
        files += [(tmp_path / f"{largest}{end}", values) for end in (".png", ".tif")]
    module, read = READERS[variant]
    code = DEEP.replace("IMPORTS", module).replace("READ", read)
    printed = bake(variant=variant).run("-c", code, *[file for file, _ in files]).stdout
    for (readable, pixels), (_, values) in zip(json.loads(printed), files, strict=True):
        assert readable
        assert np.abs(np.array(pixels[0]) - values / 65535).max() <= 1 / 255


@pytest.mark.parametrize("bits", [8, 12])
def test_16_bit_pictures_that_would_be_black_are_refused(image_folder: Reader, tmp_path: Path, bits: int) -> None:
    for i, name in enumerate(12 * ["a", "b"]):
        (tmp_path / name).mkdir(exist_ok=True)
        values = np.random.default_rng(i).integers(0, 2**bits, (10, 12)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / name / f"{i}.png")
    assert "16-bit" in image_folder.refuses(tmp_path)


def write_dark(file: Path) -> None:
    """Write a 16-bit picture that uses 12 bits."""
    Image.fromarray(np.full((10, 12), 4000, np.uint16)).save(file)


def test_16_bit_pictures_with_boxes_that_would_be_black_are_refused(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    write(file, content)
    for entry in content["images"]:
        write_dark(tmp_path / "images" / entry["file_name"])
    assert "16-bit" in detection.refuses(tmp_path)


def test_16_bit_pictures_with_masks_that_would_be_black_are_refused(segmentation: Reader, tmp_path: Path) -> None:
    pairs(tmp_path / "images", tmp_path / "masks")
    for file in (tmp_path / "images").iterdir():
        write_dark(file)
    assert "16-bit" in segmentation.refuses(tmp_path)


def test_splits_may_share_some_words_of_their_names(segmentation: Reader, tmp_path: Path) -> None:
    for split, count in (("Training", 8), ("Validation", 4), ("Test", 4)):
        start = f"ISIC2018_Task1_{split}"
        pairs(tmp_path / f"{start}_Input", tmp_path / f"{start}_GroundTruth", count=count)
    _, said = segmentation(tmp_path)
    assert "8 train, 4 val, 4 test" in said


def test_folder_that_may_be_a_split_is_not_trained_on(segmentation: Reader, tmp_path: Path) -> None:
    for split in ("train", "test_final"):
        pairs(tmp_path / split / "images", tmp_path / split / "masks")
    assert "test_final" in segmentation.refuses(tmp_path)


def test_pictures_of_all_splits_may_lie_in_the_folder_of_one(detection: Reader, tmp_path: Path) -> None:
    files = pictures(tmp_path / "train", 16)
    for split, part in (("train", files[:12]), ("val", files[12:])):
        write(tmp_path / f"{split}.json", coco(part, [file.name for file in part]))
    _, said = detection(tmp_path)
    assert "9 train, 4 val, 3 test" in said


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pictures_of_unknown_range_are_found_before_training(image_folder: Reader, tmp_path: Path, dtype: Any) -> None:
    classes(tmp_path, 6)
    Image.fromarray(np.full((10, 12), 70000).astype(dtype)).save(tmp_path / "red" / "deep.tif")
    splits, said = image_folder(tmp_path)
    assert sum(map(len, splits.values())) == 12
    assert "deep.tif" in said


def test_annotated_pictures_of_unknown_range_are_refused(detection: Reader, tmp_path: Path) -> None:
    content, file = change(tmp_path)
    Image.fromarray(np.zeros((10, 12), np.float32)).save(tmp_path / "images" / "deep.tif")
    content["images"][3]["file_name"] = "deep.tif"
    write(file, content)
    assert "deep.tif is not a readable picture" in detection.refuses(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_links_to_folders_around_them_are_not_followed(image_folder: Reader, tmp_path: Path) -> None:
    classes(tmp_path / "data", 6, ["green"])
    pictures(tmp_path / "elsewhere", 6)
    (tmp_path / "data" / "red").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "green" / "up").symlink_to("..")
    splits, said = image_folder(tmp_path / "data")
    assert sum(map(len, splits.values())) == 12
    assert "green (6), red (6)" in said


SETS = {"mnist-cnn": "MNIST", "fashion-mnist-mlp": "FashionMNIST"}


def refuses_before_downloading(bake: Bake, variant: str, folder: Path) -> str:
    said = Reader(bake(variant=variant), SPLITS).refuses(folder)
    assert "downloading" not in said and "remove" not in said
    return said


@pytest.mark.parametrize("variant", SETS)
@pytest.mark.parametrize(
    ("files", "given", "right"),
    [
        ("{name}/raw", "{name}/raw", ""),
        ("{name}/raw", "{name}", ""),
        ("mine", "mine", "mine/{name}/raw"),
        ("mine/raw", "mine", "mine/{name}/raw"),
        ("mine/{name}", "mine", "mine/{name}/raw"),
    ],
)
def test_idx_files_elsewhere_are_not_replaced_by_a_download(
    bake: Bake, tmp_path: Path, variant: str, files: str, given: str, right: str
) -> None:
    files, given, right = (path.format(name=SETS[variant]) for path in (files, given, right))
    write_idx(tmp_path / files, *digits(28))
    said = refuses_before_downloading(bake, variant, tmp_path / given)
    assert (str(tmp_path / right) if right else f"--data.data_dir {tmp_path}\n") in said


@pytest.mark.parametrize("variant", SETS)
@pytest.mark.parametrize("place", ["{name}/raw", "."])
@pytest.mark.parametrize("change", [lambda name: f"{name}.gz", lambda name: name.replace("-idx", ".idx")])
def test_idx_files_that_are_packed_or_renamed_are_named(
    bake: Bake, tmp_path: Path, variant: str, place: str, change: Callable[[str], str]
) -> None:
    folder = tmp_path / "data" / place.format(name=SETS[variant])
    write_idx(folder, *digits(28))
    for file in list(folder.iterdir()):
        file.rename(folder / change(file.name))
    said = refuses_before_downloading(bake, variant, tmp_path / "data")
    assert change("train-images-idx3-ubyte") in said and "unpack" in said
    assert str(tmp_path / "data" / SETS[variant] / "raw" / "train-images-idx3-ubyte") in said


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "mine"])
def test_batches_of_cifar_elsewhere_are_not_replaced_by_a_download(bake: Bake, tmp_path: Path, name: str) -> None:
    write_cifar_batches(tmp_path, coloured(digits(32)[0][:60]), digits(32)[1][:60], 40)
    folder = (tmp_path / "cifar-10-batches-py").rename(tmp_path / name)
    said = refuses_before_downloading(bake, "cifar10-resnet18", folder)
    right = f"--data.data_dir {tmp_path}\n" if name == "cifar-10-batches-py" else str(folder / "cifar-10-batches-py")
    assert right in said


def test_packed_batches_of_cifar_are_not_downloaded_again(bake: Bake, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"packed")
    said = refuses_before_downloading(bake, "cifar10-resnet18", tmp_path)
    assert "unpack" in said and str(tmp_path / "cifar-10-batches-py") in said


REPLACE = """
import sys
from pathlib import Path
import torch
from training import predict

folder = Path(sys.argv[1])
files = sorted(folder.iterdir())
if hasattr(predict, "save_masks"):
    rows = [{"input": str(file), "mask": torch.zeros(10, 12, dtype=torch.uint8)} for file in files]
    predict.save_masks(rows, folder)
else:
    predict.draw_rows([], [(torch.zeros(3, 10, 12), {"input": str(file)}) for file in files], folder)
"""


@pytest.mark.parametrize("variant", ["detection", "segmentation"])
def test_predictions_never_replace_their_inputs(bake: Bake, tmp_path: Path, variant: str) -> None:
    for name in ("a.jpg", "b.png") if variant == "segmentation" else ("0-.jpg", "0000-0-.png"):
        picture(tmp_path / name)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    done = bake(variant=variant).run("-c", REPLACE, tmp_path, status=2)
    assert ".png" in done.stderr and "choose another folder" in done.stderr
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


PREDICT = """
    data.inputs = sys.argv[2:]
    for _ in range(2):
        data.setup("predict")
    print(json.dumps([list(data.predict[i][0].shape[1:]) for i in range(len(data.predict))]))
"""


def predict_inputs(project: Project, inputs: Sequence[Path], **options: Any) -> tuple[list[list[int]], str]:
    """Height and width of the inputs as a new data module reads them, and what it prints to stderr."""
    code = READ.replace('    data.setup("fit")\n', "").replace("    EXTRA", PREDICT)
    done = project.run("-c", code, json.dumps(options), *inputs)
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("variant", ["detection", "segmentation"])
def test_turned_inputs_are_reported_once_without_the_option(bake: Bake, tmp_path: Path, variant: str) -> None:
    turned, plain = picture(tmp_path / "turned.jpg", exif=exif(6)), picture(tmp_path / "plain.jpg")
    project = bake(variant=variant)
    sizes, said = predict_inputs(project, [turned, plain])
    assert sizes == [[12, 10], [10, 12]]
    assert said.count("\n") == 1 and str(turned) in said and "--data.turn false" in said
    assert predict_inputs(project, [plain]) == ([[10, 12]], "")
    assert predict_inputs(project, [turned], turn=True) == ([[12, 10]], "")
    assert predict_inputs(project, [turned], turn=False) == ([[10, 12]], "")


@pytest.mark.parametrize("content", ["{", '{"annotations": [{"x": 1}]}', "[]"])
def test_inputs_are_read_without_the_annotations(detection: Reader, tmp_path: Path, content: str) -> None:
    inside, outside = picture(tmp_path / "data" / "images" / "0.png"), picture(tmp_path / "elsewhere" / "new.png")
    (tmp_path / "data" / "annotations.json").write_text(content, encoding="utf-8")
    options = {"data_dir": str(tmp_path / "data")}
    assert predict_inputs(detection.project, [outside], **options) == ([[10, 12]], "")
    for inputs in ([inside], [tmp_path]):
        sizes, said = predict_inputs(detection.project, inputs, **options)
        assert sizes == [[10, 12]] * (1 if inputs == [inside] else 2)
        assert said.startswith("warning: ") and str(tmp_path / "data") in said
    assert predict_inputs(detection.project, [outside], data_dir=str(tmp_path / "gone")) == ([[10, 12]], "")


@pytest.mark.parametrize("place", ["images", "."])
def test_annotated_inputs_keep_their_size(detection: Reader, tmp_path: Path, place: str) -> None:
    content, file = change(tmp_path, 1)
    turned = picture(tmp_path / "images" / "0.png", exif=exif(6))
    write(file, content)
    assert predict_inputs(detection.project, [tmp_path / place], data_dir=str(tmp_path)) == ([[10, 12]], "")
    assert predict_inputs(detection.project, [turned])[0] == [[12, 10]]
