"""Reading tables in the forms in which programs write them, and reporting all errors in a file at once."""

import csv
import json
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from charset_normalizer import from_bytes
from lightning.pytorch.utilities import rank_zero_only

SEPARATORS = {"\t": "tabs", ";": "';'", "|": "'|'", ",": "','", " ": "blanks"}  # in the order in which they are tried
ENCODINGS = ["cp1252", "cp1251", "cp932", "gb18030", "big5", "euc_kr"]  # of files that are not UTF-8
BINARY = re.compile(rb"PK\x03\x04|PAR1|ARROW1|SQLite|\xd0\xcf\x11\xe0|\x1f\x8b|BZh|\xfd7zXZ|\(\xb5/\xfd")
GAPS = {"", "?", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none", "nat", r"\n"}
ARFF = re.compile(r"(\s|%.*\n)*@relation", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?\d*[.,]?\d+([eE][+-]?\d+)?")
UNITS = "%$€£¥₹₩₽"
SPLITS = {"train": "train(ing)?", "val": "val(id(ation)?)?|dev(elopment)?", "test": "test(ing)?"}
DATES = (
    *("ISO8601", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%d %b %Y"),
    *("%d-%b-%Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%m/%Y", "%m-%Y", "%m.%Y", "%b %Y", "%b-%Y"),
    *("%B %Y", "%Y %b", "%Y-%b", "%Y/%m", "%Y %m", "%Y %m %d"),
)
CLOCKS = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%H.%M", "%H.%M.%S", "%I:%M %p", "%I:%M:%S %p", "%H")
FORMATS = (*DATES, *(f"{date} {clock}" for date in ("%Y-%m-%d", *DATES) if "%d" in date for clock in CLOCKS))
MAX_LISTED = 20  # problems in one error message
Header = Literal["first", "none"]
Quotes = Literal["csv", "literal"]


def refuse(source: Path | None, problems: Sequence[str]) -> None:
    """Raise an OSError that lists the problems, if any, of a file or of the embedded data."""
    if problems:
        lines = [f"{source or 'the embedded data'} has errors:", *problems[:MAX_LISTED]]
        if len(problems) > MAX_LISTED:
            lines.append(f"and {len(problems) - MAX_LISTED} more")
        raise OSError("\n  ".join(lines))


def warn(message: str) -> None:
    rank_zero_only(print)(f"warning: {message}", file=sys.stderr)


def warn_of_guesses(notes: list[str]) -> None:
    """Print as warnings the notes that name an option, such as the note on a detected encoding, and clear the list."""
    while notes:
        if "--data." in (note := notes.pop(0)):
            warn(note)


def find_encoding(data: bytes) -> str:
    """Return the name of the most probable encoding.

    UTF-16 if the data begin with its byte order mark or have a zero among the first two bytes; else UTF-8 if more
    than four fifths of the characters beyond ASCII are valid; else cp1252 if most letters are ASCII; else what
    charset_normalizer finds.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if 0 in data[:2]:
        return "utf-16-le" if data[0] else "utf-16-be"
    text = data.decode(errors="replace")
    errors = text.count("\ufffd") - data.count("\ufffd".encode())
    if not errors or len(re.findall(r"[^\x00-\x7f]", text)) > 4 * errors:
        return "utf-8"
    lines = b"\n".join(line for line in data.splitlines() if not line.isascii())[:50_000]
    few = sum(byte > 127 for byte in lines) < sum(bytes([byte]).isalpha() for byte in lines)
    best = from_bytes(lines, cp_isolation=["cp1252"] if few else ENCODINGS).best()
    return best.encoding if best else ENCODINGS[0]


def read_text(file: Path, encoding: str | None, notes: list[str]) -> str:
    """Read a text file; without an encoding, find it, and add a note if it is not UTF-8."""
    if not file.is_file():
        raise OSError(f"{file} is not a file: give the path of a text or CSV file")
    data = file.read_bytes()
    if BINARY.match(data):
        raise OSError(f"{file} is a workbook, binary or compressed: save it as CSV")
    name = encoding or find_encoding(data)
    if not encoding and name != "utf-8":
        notes.append(f"{file.name} is not UTF-8, so it is read as {name}: --data.encoding overrides this")
    try:
        return data.decode(name).removeprefix("\ufeff")
    except LookupError as error:
        raise OSError(f"unknown encoding {encoding!r}: set --data.encoding to a name like utf-8 or cp1252") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise OSError(f"{file}, line {line}, is not {name}: correct it, or set --data.encoding") from error


def read_json(file: Path, kind: type) -> list[Any]:
    """Read a JSON list of texts (str) or of rows (dict), in UTF-8."""
    try:
        items = json.loads(read_text(file, "utf-8", []))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{file} is not valid JSON: {error}") from error
    what = "a text" if kind is str else 'a row such as {"column": 1}'
    refuse(file, [] if isinstance(items, list) else [f"it must be a list; each item is {what}"])
    refuse(file, [f"item {i} is not {what}" for i, item in enumerate(items, 1) if not isinstance(item, kind)])
    if any("\ud800" <= character <= "\udfff" for character in json.dumps(items, ensure_ascii=False)):
        refuse(file, ["it contains an unpaired surrogate, such as \\ud800, which is not a character: remove it"])
    return items


def read_json_rows(file: Path, forms: Mapping[str, str]) -> pd.DataFrame:
    """Read rows as a table of texts, in which numbers are written as in the training file (see `to_text`).

    A null becomes a gap, and the index counts from 1.
    """
    rows = read_json(file, dict)
    fields = [(i, name, value) for i, row in enumerate(rows, 1) for name, value in row.items()]
    wrong = [(i, name) for i, name, value in fields if isinstance(value, list | dict)]
    refuse(file, [f"item {i}: {name!r} is a list or an object: give one value" for i, name in wrong])
    texts = [{name: to_text(value, forms.get(name, ".")) for name, value in row.items()} for row in rows]
    return pd.DataFrame(texts, index=range(1, len(rows) + 1), dtype=object).fillna("")


def to_text(value: float | str | None, form: str) -> str:
    """A number as text in the form of its column; see `to_numbers`. Text is kept, and None becomes empty."""
    if isinstance(value, int | float) and form[0] in ".,":
        return repr(value).replace(".", form[0]) + form[1:]
    return "" if value is None else str(value)


def parse(text: str, separator: str, **options: Any) -> tuple[dict[int, list[str]], str]:
    """The fields of each row by the number of the line on which it ends, and the error that ended reading, or ''."""
    csv.field_size_limit(2**31 - 1)
    blanks = separator == " "
    if blanks:  # runs of them separate fields
        text = re.sub(r"(?m)^ | $", "", re.sub(r"[^\S\n]+", " ", text))
    options |= {"delimiter": separator, "skipinitialspace": not blanks, "strict": True}
    reader = csv.reader(StringIO(text, newline=""), **options)
    rows: dict[int, list[str]] = {}
    try:
        for row in reader:
            if "".join(row).strip():
                rows[reader.line_num] = row
    except csv.Error as error:
        return rows, f"line {reader.line_num}: {error}"
    return rows, ""


def find_separator(text: str) -> str:
    """Return the first separator with which the first rows all have the same number of fields, at least two.

    If there is none, return the separator that occurs most often in the first line.
    """
    lines = [line for line in text.splitlines()[:200] if line.strip()]
    counts = {s: [len(row) for row in parse("\n".join(lines), s)[0].values()] for s in SEPARATORS}
    equal = {s: c[0] for s, c in counts.items() if len(set(c)) == 1 and c[0] > 1}
    if all("  " in line.strip() for line in lines) and equal.get(" ", 0) == max(equal.values(), default=0) > 1:
        return " "  # aligned columns
    return next(iter(equal), None) or max(",|;\t", key=text.lstrip().partition("\n")[0].count)


def blank_comments(text: str, separator: str | None, header: Header | None) -> str:
    """Empty the lines at the start that begin with # or % and have fewer fields than the first line after them.

    If that line is a header (no value is a number or occurs again below), empty all lines before it.
    """
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.strip() and line[0] not in "#%"), 0)
    rest = "".join(lines[first : first + 200])
    by = separator or find_separator(rest)
    rows = list(parse(rest, by)[0].values())
    is_data = any(NUMBER.fullmatch(value.strip()) or value in below for value, *below in zip(*rows, strict=False))
    for i in range(first):
        comment = re.sub("^[#%] ", "", lines[i])
        width = sum(map(len, parse(comment, by)[0].values()))
        if width < len(rows[0]) or not (is_data or header == "none"):
            lines[i] = "\n"
        elif by == " ":  # the header of numpy.savetxt
            lines[i] = comment
    return "".join(lines)


def read_rows(
    file: Path, text: str, separator: str, options: Mapping[str, Any], notes: list[str]
) -> dict[int, list[str]]:
    """Return the fields of each row by its line number.

    Quotes enclose fields ("csv") or are characters ("literal"); only data modules for texts set `options["quotes"]`.
    None means "csv"; if that fails or joins lines of a tab-separated file, "literal" is used if it gives all lines
    equally many fields.
    """
    rows, error = parse(text, separator)
    if error and '\\"' in text:
        rows, error = parse(text, separator, escapechar="\\")
    quotes = options.get("quotes", "csv")
    joined = separator == "\t" and max(rows, default=0) > len(rows)  # unpaired quotes occur mainly in such files
    if quotes == "literal" or (not quotes and (error or joined)):
        literal, _ = parse(text, separator, quoting=csv.QUOTE_NONE)
        if quotes or (len(literal) > len(rows) and len(set(map(len, literal.values()))) == 1):
            notes.append(f"quotes in {file.name} are read as characters: --data.quotes csv overrides this")
            return literal
    hint = "close each quoted field, double each quote inside it, or set another --data.separator"
    hint += ", or --data.quotes literal to read quotes as characters" if "quotes" in options else ""
    refuse(file, [f"{error}: {hint}"] if error else [])
    return rows


def looks_like_data(names: list[str], rows: Collection[list[str]]) -> bool:
    """Return whether the first row, `names`, looks like data rather than the names of columns.

    It does if at least half of its values occur again in the same column, or if it has numbers in columns of mostly
    numbers. Numbers that only count up (0, 1, 2 or 1, 2, 3) are names; a lone 0 or 1 in the first of several columns is
    data.
    """
    numbers, repeated = [], 0
    for name, *values in zip(names, *list(rows)[:1000], strict=False):
        if NUMBER.fullmatch(name) and sum(bool(NUMBER.fullmatch(v.strip())) for v in values) > len(values) / 2:
            numbers.append(name)
        repeated += bool(name) and name in values and not NUMBER.fullmatch(name)
    counted = [[str(i) for i in range(start, start + len(numbers))] for start in (0, 1)]
    alone = len(names) > 1 and numbers == names[:1]
    return alone or numbers not in ([], *counted) or 2 * repeated >= len(names)


def have_names(rows: Mapping[int, list[str]], text: str, separator: str) -> bool:
    """Return whether the first fields of all rows are names of the rows.

    They are names if all differ and each is quoted or followed by a tab: else they may be pieces of split values. They
    are also names if they count the rows, from 0 or 1 on, and several columns follow.
    """
    first, lines = [row[0] for row in rows.values()], list(StringIO(text, newline=""))
    quoted = separator == "\t" or all(lines[line - 1].lstrip().startswith('"') for line in rows)
    counted = first in ([str(start + i) for i in range(len(first))] for start in (0, 1))
    several = min(len(first), *map(len, rows.values())) > 2
    return (quoted and len({*first}) == len(first)) or (counted and several)


def name_columns(names: list[str]) -> list[str]:
    """Name columns without a name by their position, as pandas does, and add a number to repeated names."""
    names = [name or f"Unnamed: {i}" for i, name in enumerate(names)]
    for i, name in enumerate(names):
        if name in names[:i]:
            names[i] = next(new for n in count(1) if (new := f"{name}.{n}") not in names)
    return names


def read_table(file: Path, notes: list[str], named: Collection[str], options: Mapping[str, Any]) -> pd.DataFrame:
    """Read a table of texts. The index is the number of the line on which a row ends.

    Args:
        file: Text file.
        notes: List to which a sentence is appended for each guess, such as the detected separator.
        named: Columns that options name; a first row with one of them is a header.
        options: Values of encoding, separator and header, and perhaps of quotes.

    Raises:
        OSError: The file cannot be read, or its first row may be data.
    """
    text, header = read_text(file, options["encoding"], notes), options["header"]
    other = "JSON" if re.match(r'\s*(\{\s*"|\[\s*["{[])', text) else "ARFF" if re.match(ARFF, text) else ""
    refuse(file, [f"it is {other}, not a table: save it as CSV"] if other else [])
    separator = {"tab": "\t", "\\t": "\t", "blank": " "}.get(options["separator"], options["separator"])
    if given := re.match(r"sep=(.)\r?\n", text):  # for Excel; an empty line in its place keeps the line numbers right
        separator, text = separator or given[1], "\n" + text[given.end() :]
    if len(separator or "") > 1:
        raise OSError(f"--data.separator is {separator!r}: give one character, or the word tab or blank (space)")
    if text.startswith(("#", "%")) and (blanked := blank_comments(text, separator, header)) != text:
        notes.append(f"lines at the start of {file.name} that begin with {text[0]} are comments or the header")
        text = blanked
    separator = separator or find_separator(text)
    if separator != ",":
        notes.append(f"{file.name} is separated by {SEPARATORS.get(separator, repr(separator))}")
    rows = read_rows(file, text, separator, options, notes)
    first = next(iter(rows), 0)
    names = [name.strip() for name in rows.get(first, [])]
    below = {line: row for line, row in rows.items() if row != rows[first]}
    if below and not header and not {*names}.intersection(named) and looks_like_data(names, below.values()):
        hint = "set --data.header none if it is, --data.header first if it is not"
        refuse(file, [f"line {first} looks like a row of data, not like the names of columns: {hint}"])
    if header != "none" and len(below) < len(rows) - 1:
        notes.append(f"{len(rows) - 1 - len(below)} rows of {file.name} that repeat the header are left out")
    rows, names = (rows, [f"column_{i + 1}" for i in range(len(names))]) if header == "none" else (below, names)
    refuse(file, [] if rows else ["there are no rows below the header"])
    widths = {len(row) for row in rows.values()}
    if widths == {len(names) + 1} and any(row[-1] for row in rows.values()) and have_names(rows, text, separator):
        names = ["", *names]  # as R writes them
        notes.append(f"the first fields of the rows of {file.name} are row names, as the header has one field fewer")
    names = names if any(names[max(widths) :]) else names[: max(widths)]
    repeated = {name for name in names if name and names.count(name) > 1}
    refuse(file, [f"several columns are named {name!r}: rename them" for name in sorted(repeated.intersection(named))])
    if repeated:
        notes.append(f"several columns are named {' and '.join(sorted(repeated))}: all but the first get a number")
    names = name_columns(names)
    rows = {line: row if any(row[len(names) :]) else row[: len(names)] for line, row in rows.items()}
    wrong = [(line, len(row)) for line, row in rows.items() if len(row) != len(names)]
    where = "the first row" if header == "none" else "the header"
    problems = [f"line {line}: {count} fields, but {where} has {len(names)}" for line, count in wrong]
    hint = "quote fields that contain the separator, name each column, or set another --data.separator"
    if len(wrong) > max(len(rows) / 2, 1) and len({count for _, count in wrong}) == 1:
        problems = [f"{problems[0]} (the same in {len(wrong) - 1} other rows): remove line {first} if it is a title"]
    refuse(file, [f"the numbers of fields differ: {hint}", *problems] if problems else [])
    frame = pd.DataFrame(list(rows.values()), index=list(rows), columns=names, dtype=object)
    nameless = "column_" if header == "none" else "Unnamed: "
    return frame.loc[:, [not name.startswith(nameless) or frame[name].str.strip().any() for name in names]]


def find_splits(folder: Path) -> dict[str, Path]:
    """Return the file of each split, found by its name. Train is required; a split with several files is an error."""
    files = [file for file in sorted(folder.glob("[!.]*.*")) if file.is_file()]
    forms = {split: re.compile(rf"(.*[\W_])?({names})([\W_].*)?", re.IGNORECASE) for split, names in SPLITS.items()}
    found = {split: [file for file in files if form.fullmatch(file.stem)] for split, form in forms.items()}
    several = [split for split, files in found.items() if len(files) > 1]
    hint = "keep one, or rename or remove the others"
    refuse(folder, [f"several files are for {s}: {', '.join(file.name for file in found[s])}: {hint}" for s in several])
    refuse(folder, [] if found["train"] else ["there is no file for train, such as train.csv"])
    return {split: files[0] for split, files in found.items() if files}


def mask_gaps(frame: pd.DataFrame, missing: Sequence[str] | None) -> pd.DataFrame:
    """Return the table with NaN in place of the texts in GAPS and in `missing`, in upper or lower case."""
    gaps = GAPS.union(text.casefold() for text in missing or [])
    return frame.mask(frame.apply(lambda column: column.str.casefold().isin(gaps)))


def warn_of_unused(frame: pd.DataFrame, missing: Sequence[str] | None) -> None:
    """Print a warning for each value in `missing` that no field has, as text or as a number."""
    for text in missing or []:
        form = re.escape(re.sub(r"[.,]0+$", "", text)) + r"([.,]0+)?"
        if not frame.apply(lambda column, form=form: column.str.fullmatch(form, case=False, na=False)).any(axis=None):
            warn(f"--data.missing names {text!r}, but no field has this value")


def find_formats(texts: pd.Series, share: float = 0.9) -> list[str]:
    """Return the date formats, with four-digit years, that fit at least `share` of the texts.

    Return several only if they read the texts as different dates.
    """
    texts = texts.dropna()
    sample = texts[texts.str.contains(r"(?:1[6-9]|20)\d\d", regex=True)].iloc[:1]  # the first may be 0000-00-00
    times: dict[str, pd.Series] = {}
    if sample.empty or sample.str.isdecimal().any():
        return []
    for form in FORMATS:
        if pd.to_datetime(sample, format=form, errors="coerce", utc=True).notna().all():
            times[form] = pd.to_datetime(texts, format=form, errors="coerce", utc=True)
    most = max((values.count() for values in times.values()), default=0)
    best = [form for form, values in times.items() if values.count() == most >= share * len(texts)]
    return best[:1] if all(times[form].equals(times[best[0]]) for form in best) else best


def mostly_numbers(texts: pd.Series) -> bool:
    """Return whether more than half of the texts are numbers, or at least half are dates."""
    return texts.dropna().str.fullmatch(NUMBER.pattern).mean() > 0.5 or bool(find_formats(texts, 0.5))


def to_numbers(texts: pd.Series, form: str) -> pd.Series:
    """Convert texts (N,) to float64 (N,); gaps, given as NaN, and texts that do not have the form become NaN.

    A form is a decimal sign, followed by the unit if there is one, such as "." or ",€"; or it is a format of dates,
    which become days since 1970.
    """
    if form[0] not in ".,":
        times = pd.to_datetime(texts, format=form, errors="coerce", utc=True)
        return (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)
    numbers = pd.to_numeric(texts, errors="coerce").astype(float)
    if form == "." and not (numbers.isna() & texts.notna()).any():
        return numbers
    known = texts[texts.notna()].str.strip().str.replace("\u2212", "-").str.replace(r"^\((.+)\)$", r"-\1", regex=True)
    sign, unit = form[0], form[1:]
    if unit:
        known = known.where(known.str.count(re.escape(unit)) == 1, "").str.replace(unit, "", regex=False).str.strip()
    group = {".": ",", ",": "."}[sign]
    grouped = rf"[+-]?[1-9]\d?\d?(?:[{group}'\u2019\u00a0\u202f ]\d\d\d)+(?:\{sign}\d*)?"
    bare = known.str.replace(rf"[^\d\{sign}+-]", "", regex=True)
    known = bare.where(known.str.fullmatch(grouped), known)
    known = known.str.translate({ord(","): ".", ord("."): ","} if sign == "," else {})
    return pd.to_numeric(known, errors="coerce").astype(float).reindex(texts.index)


def find_forms(source: Path, frame: pd.DataFrame, decimal: str | None, forced: Collection[str] = ()) -> dict[str, str]:
    """Return the form of each column that is in `forced` or in which nine of ten texts are numbers; see `to_numbers`.

    If `decimal` is None, the sign that reads more numbers is used; if both signs remain possible, commas are an error.
    """
    known = {str(name): texts.dropna() for name, texts in frame.items()}
    joined = {name: "\n".join(texts) for name, texts in known.items()}
    commas = [name for name, text in joined.items() if re.search(r"\d,\d", text)]
    signs = decimal or (".," if commas else ".")
    found: dict[str, dict[str, str]] = {sign: {} for sign in signs}
    total = dict.fromkeys(signs, 0)
    for sign in signs:
        for name, texts in known.items():
            forms = [sign, *(sign + unit for unit in UNITS if unit in joined[name])]
            counts = {form: int(to_numbers(texts, form).notna().sum()) for form in forms}
            form = max(counts, key=lambda form: counts[form])
            if name in forced or counts[form] >= max(0.9 * len(texts), 1):
                found[sign][name] = form
                total[sign] += counts[form]
    best, *others = sorted(signs, key=lambda sign: -total[sign])
    doubtful = any(total[sign] == total[best] or found[sign].keys() - found[best].keys() for sign in others)
    unclear = [name for name in commas if name in found[","]] if doubtful else []
    hint = "set --data.decimal ',' if they are decimal commas, --data.decimal '.' if they separate thousands"
    refuse(source, [f"the commas in the numbers of {name!r} can be read in two ways: {hint}" for name in unclear])
    return found[best]


def convert_numbers(
    frame: pd.DataFrame, forms: dict[str, str], missing: Sequence[str] | None, advice: str = "correct them"
) -> list[str]:
    """Convert texts to float64, NaN for gaps and numbers in `missing`; return a sentence for each wrong text."""
    problems, gaps = [], [*(missing or [])]
    for name, form in forms.items():
        numbers = to_numbers(frame[name], form)
        wrong = frame[name].notna() & ~np.isfinite(numbers)
        kind = f"a date of the form {form}"
        if form[0] in ".,":
            kind = f"a number with {form[1:]}" if form[1:] else "a number"
            numbers[numbers.isin(to_numbers(pd.Series(gaps, dtype=object), form[0]).dropna())] = np.nan
        if wrong.sum() > 1:
            flag = shlex.quote(json.dumps([*gaps, frame[name][wrong].mode()[0]], ensure_ascii=False))
            hint = f"{advice}, or set --data.missing={flag} if they stand for gaps"
            problems.append(f"{wrong.sum()} values of {name!r} are not {kind}: {hint}")
        problems += [f"line {line}: {name!r} is '{frame[name][line]}', not {kind}" for line in frame.index[wrong]]
        frame[name] = numbers
    return problems
