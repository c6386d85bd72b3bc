"""Strict reading of dataset files: every cell stays the text it is, every defect is named by file and line.

Our own readers rather than pandas' or pyarrow's: those turn `None`, `NA` and `1e5` into something else and skip or
repair broken lines, and a benchmark that silently loses a row is a different benchmark.
"""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_eval.errors import DataError

__all__ = ["read_csv", "read_json_examples", "read_json_lines", "read_text"]

Values = Mapping[str, Sequence[str]]
_PACKED = {".gz": "gzip", ".xz": "xz"}
_UNPACK: Mapping[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}


def read_text(path: Path) -> str:
    """Return a UTF-8 file as it is (line ends kept), unpacked where its name ends in .gz or .xz.

    Raises DataError when it is missing, not UTF-8 or not packed as its name says.
    """
    try:
        content = path.read_bytes()
        return _UNPACK.get(path.suffix, bytes)(content).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: this file is missing.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: expected a whole {_PACKED[path.suffix]} file ({error}).") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8 text, found the byte 0x{error.object[error.start]:02x}."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def read_json_lines(
    path: Path,
    columns: Sequence[str],
    *,
    values: Values | None = None,
    structured: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> list[dict[str, str]]:
    """Return the objects of a JSON-lines file, reduced to `columns`, all of them text.

    Columns in `structured` hold anything else and become its JSON text; `optional` ones that a row lacks, or has as
    null, are "".
    Raises DataError with file and line for a broken line, an empty line between others, a missing or non-text field.
    """
    lines = read_text(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return [
        _json_row(path, number, line, columns, values or {}, structured, optional)
        for number, line in enumerate(lines, 1)
    ]


def _json_row(
    path: Path,
    number: int,
    line: str,
    columns: Sequence[str],
    values: Values,
    structured: Sequence[str],
    optional: Sequence[str],
) -> dict[str, str]:
    try:
        found: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: expected a JSON object, found {_short(line)} ({error.msg}, column {error.colno})."
        ) from None
    row = _text_fields(f"{path}, line {number}", found, columns, structured, optional)
    _check_values(f"{path}, line {number}", row, values)
    return row


def _text_fields(
    where: str, found: Any, columns: Sequence[str], structured: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    if isinstance(found, list) and len(columns) == 1 and columns[0] in structured:
        found = {columns[0]: found}
    if not isinstance(found, dict):
        raise DataError(f"{where}: expected a JSON object, found {_short(str(found))}.")
    packed = {column: json.dumps(found[column], ensure_ascii=False) for column in structured if column in found}
    given = {column: value for column, value in found.items() if value is not None or column not in optional}
    found = {**dict.fromkeys(optional, ""), **given, **packed}
    columns = (*columns, *optional)
    for column in columns:
        if not isinstance(found.get(column), str):
            has = f"the fields {', '.join(found)}" if column not in found else f"{found[column]!r} in it"
            raise DataError(f"{where}: expected a text field {column!r}, found {has}.")
    return {column: found[column] for column in columns}


def read_json_examples(
    path: Path,
    columns: Sequence[str],
    *,
    values: Values | None = None,
    structured: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> list[dict[str, str]]:
    """Return the objects of a JSON file's list (at its top, or under `examples`), reduced to `columns`, all text.

    Columns in `structured` hold anything else and become its JSON text; `optional` ones that a row lacks are "". Where
    a structured column is the only one, an example may also be a list: its content.

    Raises DataError with the file, and the number of the example (from 0), for what is broken or missing.
    """
    try:
        found: Any = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: expected JSON, found something else ({error.msg}).") from None
    examples = found.get("examples") if isinstance(found, dict) else found
    if not isinstance(examples, list):
        raise DataError(f"{path}: expected a JSON object with a list called 'examples', or a list, found none.")
    rows = [
        _text_fields(f"{path}, example {number}", example, columns, structured, optional)
        for number, example in enumerate(examples)
    ]
    for number, row in enumerate(rows):
        _check_values(f"{path}, example {number}", row, values or {})
    return rows


def read_csv(
    path: Path,
    columns: Sequence[str],
    *,
    header: bool | Sequence[str],
    optional: Sequence[str] = (),
    values: Values | None = None,
) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text: `None`, `NA`, `1e5` and CRLF inside quotes stay what they are.

    `header` says whether the first line names the columns, or how the file spells them; `optional` columns may follow.
    Raises DataError with file and line for a wrong header, a wrong number of cells, or an unclosed quote.
    """
    lines = io.StringIO(read_text(path), newline="")
    reader = csv.reader(lines, strict=True)
    rows: list[dict[str, str]] = []
    try:
        if header:
            expected = tuple(columns) if isinstance(header, bool) else tuple(header)
            found = tuple(next(reader, []))
            if optional and found == (*expected, *optional):
                columns = (*columns, *optional)
            elif found != expected:
                raise DataError(f"{path}, line 1: expected the columns {','.join(expected)}, found {','.join(found)}.")
        for cells in reader:
            if len(cells) != len(columns):
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(columns)} cells ({','.join(columns)}), "
                    f"found {len(cells)}: {_short(','.join(cells))}."
                )
            row = dict(zip(columns, cells, strict=True))
            _check_values(f"{path}, line {reader.line_num}", row, values or {})
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: expected CSV, found something else ({error}).") from None
    return rows


def _check_values(where: str, row: Mapping[str, str], values: Values) -> None:
    for column, allowed in values.items():
        if column in row and row[column] not in allowed:
            raise DataError(
                f"{where}: expected one of {', '.join(allowed)} in column {column!r}, found {_short(row[column])}."
            )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
