"""Write files completely or not at all, and rows as CSV."""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path beside `file`, which replaces `file` once it is written and synced to disk.

    Raises:
        OSError: The file cannot be written; an existing `file` is unchanged.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when the disk is full
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or getattr(error.__context__, "strerror", None) or error
        hint = "free disk space or check permissions, then repeat the command (train.py: with --resume)"
        raise OSError(f"{file} cannot be written: {reason}; {hint}") from error


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    with replacing(file) as partial:
        partial.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file, empty if the file is missing or incomplete."""
    with suppress(OSError, ValueError):
        return dict(json.loads(file.read_text(encoding="utf-8")))
    return {}


def fingerprint(*paths: Path) -> str:
    """Return a SHA-256 digest of the bytes of files, and of names and sizes in folders, .py and .pyc left out."""
    digest = sha256()
    for path in paths:
        if path.is_file():
            with open(path, "rb") as file:
                while part := file.read(2**20):
                    digest.update(part)
        for each in sorted(path.rglob("*")):
            if each.is_file() and each.suffix not in (".py", ".pyc"):
                digest.update(f"{each.relative_to(path)} {each.stat().st_size}\n".encode())
    return digest.hexdigest()


def write_csv(rows: list[dict[str, Any]], file: TextIO) -> None:
    """Write rows with the same keys as CSV with a header and quoted text."""
    writer = csv.DictWriter(file, rows[0], lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(rows)
