"""Splits and folds: no sample is in two of them, copies stay together, and each class is in all of them."""

from collections import Counter
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from conftest import TEMPLATE, VARIANTS, Bake, by


@pytest.fixture(scope="session")
def splits() -> ModuleType:
    spec = util.spec_from_file_location("splits", TEMPLATE / "{{cookiecutter.project_name}}" / "data" / "splits.py")
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GROUPS = np.arange(900) // 3  # three copies of each sample
CLASSES = np.repeat(["a", "b", "c"], [600, 240, 60])


def shares(split: np.ndarray, classes: np.ndarray) -> dict[str, dict[str, int]]:
    return {name: dict(Counter(classes[split == name].tolist())) for name in ("train", "val", "test")}


def test_splits_have_equal_shares_of_each_class(splits: ModuleType) -> None:
    found = shares(splits.make_splits(GROUPS, CLASSES), CLASSES)
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert found[name] == pytest.approx({"a": 600 * share, "b": 240 * share, "c": 60 * share}, abs=3)


def test_groups_stay_together(splits: ModuleType) -> None:
    for options in ({}, {"folds": 4, "fold": 2}):
        split = splits.make_splits(GROUPS, CLASSES, **options).reshape(-1, 3)
        assert (split == split[:, :1]).all()


def test_splits_depend_on_the_samples_and_not_on_their_order(splits: ModuleType) -> None:
    split = splits.make_splits(GROUPS, CLASSES)
    order = np.random.default_rng(0).permutation(len(GROUPS))
    assert (splits.make_splits(GROUPS[order], CLASSES[order]) == split[order]).all()


def test_rare_class_is_trained_before_it_is_tested(splits: ModuleType) -> None:
    classes = np.repeat(["once", "twice", "often"], [1, 2, 97])
    found = shares(splits.make_splits(np.arange(100), classes), classes)
    assert found["train"]["once"] == 1
    assert found["train"]["twice"] == 1


def test_rare_class_in_groups_of_several_classes_is_trained(splits: ModuleType) -> None:
    for seed in range(40):
        random = np.random.default_rng(seed)
        classes = random.choice(["a", "b", "rare", "rarer"], 300, p=[0.5, 0.47, 0.02, 0.01])
        groups = random.integers(0, 36, 300)
        for options in ({}, {"folds": 3, "fold": 1}):
            split = splits.make_splits(groups, classes, **options)
            assert {*classes[split == "train"]} == {*classes}


def test_five_samples_of_each_class_are_enough_for_all_splits(splits: ModuleType) -> None:
    classes = np.repeat(np.arange(20), 5)
    found = shares(splits.make_splits(np.arange(100), classes), classes)
    assert [set(part.values()) for part in found.values()] == [{3}, {1}, {1}]


@pytest.mark.parametrize("classes", [CLASSES, None], ids=["classes", "numbers"])
def test_folds_validate_each_sample_once_and_keep_the_test_split(splits: ModuleType, classes: np.ndarray) -> None:
    test = splits.make_splits(GROUPS, classes) == "test"
    folds = np.stack([splits.make_splits(GROUPS, classes, folds=5, fold=fold) for fold in range(1, 6)])
    assert ((folds == "test") == test).all()
    assert ((folds == "val").sum(axis=0) == ~test).all()
    assert np.ptp((folds == "val").sum(axis=1)) <= 9
    if classes is not None:
        assert all(set(classes[fold == "val"]) == {"a", "b", "c"} for fold in folds)


def test_class_of_one_sample_trains_in_every_fold(splits: ModuleType) -> None:
    classes = ["once"] + ["often"] * 30
    assert {splits.make_splits(np.arange(31), classes, folds=3, fold=fold)[0] for fold in (1, 2, 3)} == {"train"}


def test_given_splits_stay_and_folds_take_train_and_val_together(splits: ModuleType) -> None:
    given = np.repeat(["train", "val", "test"], 300)
    assert (splits.make_splits(np.arange(900), given=given) == given).all()
    folds = np.stack([splits.make_splits(np.arange(900), given=given, folds=5, fold=fold) for fold in range(1, 6)])
    assert ((folds == "test") == (given == "test")).all()
    assert ((folds == "val").sum(axis=0) == (given != "test")).all()


def test_missing_split_is_taken_from_train_without_copies_of_other_splits(splits: ModuleType) -> None:
    groups = np.r_[np.arange(100), np.arange(50)]  # the samples for validation are copies
    split = splits.make_splits(groups, given=["train"] * 100 + ["val"] * 50)
    assert (split[100:] == "val").all()
    assert not set(groups[split == "test"]) & set(range(50))
    assert (split == "test").sum() == 10


def test_too_few_samples_leave_splits_empty_and_refuse_folds(splits: ModuleType) -> None:
    assert splits.make_splits(["a"]).tolist() == ["train"]
    with pytest.raises(MisconfigurationException, match="at most 4"):
        splits.make_splits(list("abcde"), folds=5, fold=1)


@by(VARIANTS)
def test_fold_that_does_not_exist_is_refused_before_data_is_read(bake: Bake, variant: str, tmp_path: Path) -> None:
    code = """
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from data.data_module import MyDataModule
for options in ({"folds": 5}, {"fold": 1}, {"folds": 5, "fold": 6}):
    try:
        MyDataModule(**options)
    except MisconfigurationException as error:
        print(error)
    else:
        raise AssertionError(options)
MyDataModule(folds=5, fold=5)
"""
    printed = bake(variant=variant).run("-c", code).stdout.splitlines()
    without, alone, beyond = printed
    assert "--data.fold is missing" in without and "from 1 to 5" in without
    assert alone == "--data.fold 1 needs --data.folds, the number of folds"
    assert "--data.fold is 6" in beyond and "from 1 to 5" in beyond


def test_one_fold_is_refused(bake: Bake) -> None:
    done = bake().run("training/train.py", "--data.folds=1", "--data.fold=1", status=2)
    assert "data.folds" in done.stderr


OFFLINE = ["digits-cnn", "image-folder", "detection", "segmentation", "text-rnn", "tabular", "forecast"]


@by(OFFLINE)
def test_folds_of_the_embedded_data(bake: Bake, variant: str) -> None:
    code = """
from data.data_module import MyDataModule
data = MyDataModule()
data.setup("fit")
sizes = [len(data.train), len(data.val), len(data.test)]
parts = []
for fold in (1, 2, 3, 4):
    data = MyDataModule(folds=4, fold=fold)
    data.setup("fit")
    parts.append([len(data.train), len(data.val), len(data.test)])
print(sizes, parts, sep="\\n")
"""
    done = bake(variant=variant).run("-c", code)
    *said, sizes, folds = done.stdout.splitlines()
    whole, parts = eval(sizes), eval(folds)
    assert {test for _, _, test in parts} == {whole[2]}
    if variant == "forecast":
        assert [train for train, _, _ in parts] == sorted({train for train, _, _ in parts})
        assert len({val for _, val, _ in parts}) == 1
    else:
        assert sum(val for _, val, _ in parts) == sum(whole[:2])
        assert {train + val for train, val, _ in parts} == {sum(whole[:2])}
    if variant != "digits-cnn":
        assert [line for line in said if "fold 4 of 4" in line]
