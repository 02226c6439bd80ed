"""Data for the tests."""

from pathlib import Path

import pytest

WORDS = {
    "animal": ["cat", "dog", "cow", "hen"],
    "colour": ["red", "blue", "green", "grey"],
    "tool": ["saw", "axe", "awl"],
}


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line flags for training offline in seconds, on texts in which one word decides the class."""
    file: Path = tmp_path_factory.mktemp("data") / "texts.csv"
    rows = [f'"{i}, ""{word}""\nand {7 * i}",{label}' for i in range(40) for label in WORDS for word in WORDS[label]]
    file.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return [f"--data.csv={file}"]
