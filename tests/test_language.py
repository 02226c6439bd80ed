"""Texts that a person reads are plain technical English, and stay so."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import TEMPLATE, Bake, by_variant

PHRASES = [
    r"\bgo(es|ing)? on\b(?! to)",
    r"\bmend(s|ed|ing)?\b",
    r"\bjudged\b",
    r"\balike\b",
    r"\bis one alone\b",
    r"\binfinite or no number\b",
    r"\bdata vanish",
    r"\b(that which|what its)\b",
    r"\bnevertheless\b",
    r"\bfor ever\b",
    r"\bso many (minutes|steps|epochs)\b",
]
STARTS = [r'"""(What|Of|That|How)\b', r'\bhelp_? ?= ?"(Of|What|That)\b', r"^\s+\w+: (Of|What|That|How)\b"]
WRONG = re.compile("|".join([*PHRASES, *STARTS]), re.MULTILINE | re.IGNORECASE)
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".txt", ".json", ""}


def found_in(files: Iterator[Path]) -> list[str]:
    """Return the words or phrases to replace, with their places."""
    found = []
    for file in files:
        text = re.sub(r"(?<=\bdef test_)\w+", lambda name: name[0].replace("_", " "), file.read_text(encoding="utf-8"))
        for match in WRONG.finditer(text):
            found.append(f"{file}:{text.count(chr(10), 0, match.start()) + 1}: {match[0].strip()}")
    return found


@by_variant
def test_rendered_texts_use_plain_words(bake: Bake, variant: str) -> None:
    files = [file for file in bake(variant=variant).path.rglob("*") if file.suffix in SUFFIXES and file.is_file()]
    texts = [file for file in files if not {"logs", "data"}.intersection(file.parts) or file.suffix == ".py"]
    assert len(texts) > 30
    assert found_in(iter(texts)) == []


@pytest.mark.parametrize("folder", ["", "docs", "hooks", "benchmarks", "tests", "tests/faults"])
def test_texts_of_the_template_use_plain_words(folder: str) -> None:
    files = [file for file in (TEMPLATE / folder).iterdir() if file.suffix in SUFFIXES - {""} and file.is_file()]
    texts = [file for file in files if file != Path(__file__)]
    assert texts
    assert found_in(iter(texts)) == []
