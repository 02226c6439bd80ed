"""Reading CSV files, and reporting all errors in a file at once."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

SEPARATORS = (",", "\t", ";", "|")
MAX_LISTED = 20  # problems in one error message


def refuse(source: Path | None, problems: Sequence[str]) -> None:
    """Raises an error if there are problems.

    Args:
        source: File that has the problems; None for the embedded data.
        problems: One sentence for each problem.

    Raises:
        OSError: It lists the problems.
    """
    if not problems:
        return
    lines = [f"{source or 'the embedded data'} has errors:", *problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"and {len(problems) - MAX_LISTED} more")
    raise OSError("\n  ".join(lines))


def read_text(file: Path, encoding: str) -> str:
    """Reads a text file.

    Raises:
        OSError: The file is missing or not in this encoding.
    """
    if not file.is_file():
        raise OSError(f"{file} is not a file: give the path of a text or CSV file")
    data = file.read_bytes()
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise OSError(f"unknown encoding {encoding!r}: set --data.encoding to a name like utf-8 or cp1252") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise OSError(f"{file}, line {line}, is not {encoding}: set --data.encoding to the file's encoding") from error


def read_rows(file: Path, text: str, separator: str) -> tuple[list[str], list[int]]:
    """The column names of a CSV text, and the number of the line on which each row ends.

    Raises:
        OSError: There are no rows, rows differ in length, or two columns have the same name.
    """
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    header: list[str] = []
    lines: list[int] = []
    problems: list[str] = []
    try:
        header = [name.strip() or f"column {i + 1}" for i, name in enumerate(next(reader, []))]
        for row in filter(None, reader):
            lines.append(reader.line_num)
            if len(row) != len(header):
                problems.append(f"line {reader.line_num}: {len(row)} fields, but the header has {len(header)}")
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
    repeated = sorted({name for name in header if header.count(name) > 1})
    problems += [f"line 1: two columns are named {name!r}" for name in repeated]
    if not (lines or problems):
        problems.append("there are no rows below the header")
    refuse(file, problems)
    return header, lines


def read_table(file: Path, encoding: str = "utf-8", separator: str | None = None, **options: Any) -> pd.DataFrame:
    """Reads a CSV file with a header. The index is the number of the line on which a row ends.

    Args:
        file: CSV file.
        encoding: Encoding of the file.
        separator: Character between fields; None selects the most frequent one of comma, tab, ; and | in the header.
        options: Options of `pandas.read_csv`.

    Raises:
        OSError: The file cannot be read.
    """
    text = read_text(file, encoding)
    separator = separator or max(SEPARATORS, key=text.partition("\n")[0].count)
    header, lines = read_rows(file, text, separator)
    options |= {"names": header, "header": 0, "index_col": False}
    frame = pd.read_csv(StringIO(text), sep=separator, skipinitialspace=True, **options)
    return frame.set_index(pd.Index(lines))
