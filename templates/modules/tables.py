"""Reading CSV files, and saying all that is wrong with one at once."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

SEPARATORS = (",", "\t", ";", "|")


def refuse(source: object, problems: Sequence[str]) -> None:
    """Raises OSError with the first twenty `problems` of `source`, if there are any."""
    if problems:
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise OSError("\n  ".join([f"{source} cannot be used, mend it first:", *problems[:20], *more]))


def read_text(file: Path, encoding: str) -> str:
    """Reads a text file.

    Raises:
        OSError: There is no such file, or it is not in this encoding.
    """
    if not file.is_file():
        raise OSError(f"{file} is no file: give the path of a CSV file")
    data = file.read_bytes()
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise OSError(
            f"there is no encoding {encoding!r}: --data.encoding takes names such as utf-8 or cp1252"
        ) from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise OSError(f"{file}, line {line}, is not {encoding}: name the file's own with --data.encoding") from error


def read_table(file: Path, encoding: str = "utf-8", separator: str | None = None, **options: Any) -> pd.DataFrame:
    """Reads a CSV file with a header; the index says in which line of the file each row ends.

    Args:
        file: The file.
        encoding: Its encoding.
        separator: Character between fields; None takes the most frequent one of , tab ; and | in the header.
        options: Passed on to `pandas.read_csv`.

    Raises:
        OSError: The file cannot be read, or rows differ in length; all of them are named.
    """
    text = read_text(file, encoding)
    separator = separator or max(SEPARATORS, key=text.partition("\n")[0].count)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    header: list[str] = []
    lines, problems = [], []
    try:
        header = [name.strip() or f"column {i + 1}" for i, name in enumerate(next(reader, []))]
        for row in reader:
            if row:
                lines.append(reader.line_num)
            if row and len(row) != len(header):
                problems.append(f"line {reader.line_num}: {len(row)} fields, but the header has {len(header)}")
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
    problems += [f"line 1: two columns are named {name!r}" for name in sorted(set(header)) if header.count(name) > 1]
    refuse(file, problems or ([] if lines else ["there is no row below the header"]))
    frame = pd.read_csv(
        StringIO(text), sep=separator, skipinitialspace=True, names=header, header=0, index_col=False, **options
    )
    return frame.set_index(pd.Index(lines))
