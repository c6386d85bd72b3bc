"""Dataset files are read as they are; every defect is named by file and line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.errors import DataError
from qwen_eval.readers import read_csv, read_json_examples, read_json_lines

COLUMNS = ("question", "A", "answer")


def test_cells_stay_the_text_they_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'None,NA,A\r\n1e5,007,B\r\n"a ""quoted"", cell\r\nof two lines",  spaced ,C\r\n')
    rows = read_csv(file, COLUMNS, header=False)
    assert [tuple(row.values()) for row in rows] == [
        ("None", "NA", "A"),
        ("1e5", "007", "B"),
        ('a "quoted", cell\r\nof two lines', "  spaced ", "C"),
    ]


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=5))
def test_whatever_csv_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    import csv

    # A surrogate cannot be encoded, a lone empty cell is no row; neither is in any dataset.
    rows = [tuple(cell.encode("utf-8", "ignore").decode().replace("\0", "") for cell in row) for row in rows]
    file = tmp_path_factory.mktemp("csv") / "rows.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(rows)
    if rows and rows[0][0].startswith("\ufeff"):
        return
    assert [tuple(row.values()) for row in read_csv(file, COLUMNS, header=False)] == rows


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        ("q,1,A\nq,2\n", 2, "found 2"),
        ("q,1,A\nq,2,B,x\n", 2, "found 4"),
        ('q,1,A\n"q,2,B\n', 2, "found something else"),
        ("q,1,A\n\nq,2,B\n", 2, "found 0"),
        ("q,1,E\n", 1, "found 'E'"),
    ],
)
def test_a_broken_csv_line_is_named(tmp_path: Path, content: str, line: int, found: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=f"rows.csv, line {line}.*{found}"):
        read_csv(file, COLUMNS, header=False, values={"answer": ("A", "B")})


def test_a_wrong_header_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,B,answer\n")
    with pytest.raises(DataError, match=r"line 1: expected the columns question,A,answer, found question,B,answer"):
        read_csv(file, COLUMNS, header=True)


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        ('{"q": "1"}\n{"q": \n', 2, "expected a JSON object"),
        ('{"q": "1"}\n\n{"q": "2"}\n', 2, "expected a JSON object"),
        ('{"q": "1"}\n[1]\n', 2, "expected a JSON object"),
        ('{"question": "1"}\n', 1, "expected a text field 'q', found the fields question"),
        ('{"q": 5}\n', 1, "expected a text field 'q', found 5"),
    ],
)
def test_a_broken_json_line_is_named(tmp_path: Path, content: str, line: int, found: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=f"rows.jsonl, line {line}: {found}"):
        read_json_lines(file, ("q",))


def test_a_header_may_be_spelled_otherwise_and_optional_columns_may_follow(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(",Question\n0,1+1?\n")
    assert read_csv(file, ("number", "question"), header=("", "Question")) == [{"number": "0", "question": "1+1?"}]
    file.write_text("id,question,answer\n0,1+1?,B\n")
    read = {"header": True, "optional": ("answer",), "values": {"answer": ("A", "B")}}
    assert read_csv(file, ("id", "question"), **read) == [{"id": "0", "question": "1+1?", "answer": "B"}]
    file.write_text("id,question\n0,1+1?\n")
    assert read_csv(file, ("id", "question"), **read) == [{"id": "0", "question": "1+1?"}]
    file.write_text("id,question,answer\n0,1+1?,E\n")
    with pytest.raises(DataError, match="line 2: expected one of A, B in column 'answer'"):
        read_csv(file, ("id", "question"), **read)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"examples": [{"input": "a", "target": "b"}, {"input": 3}]}', "example 1: expected a text field 'input'"),
        ('{"examples": [{"input": "a", "target": "b"}, "x"]}', "example 1: expected a JSON object"),
        ('{"canary": "x"}', "expected a JSON object with a list called 'examples'"),
        ('{"examples": [\n', "line 2: expected JSON"),
    ],
)
def test_a_broken_list_of_examples_is_named(tmp_path: Path, content: str, found: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(DataError, match=re.escape(found)):
        read_json_examples(file, ("input", "target"))


def test_examples_keep_their_named_fields_only(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"canary": "x", "examples": [{"input": "a", "target": "b", "more": 1}]}')
    assert read_json_examples(file, ("input", "target")) == [{"input": "a", "target": "b"}]


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"q": "1"}\n{"q": "\xff"}\n')
    with pytest.raises(DataError, match=r"line 2: expected UTF-8 text, found the byte 0xff"):
        read_json_lines(file, ("q",))


@pytest.mark.parametrize(
    "read", [lambda file: read_json_lines(file, ("q",)), lambda file: read_csv(file, COLUMNS, header=False)]
)
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match="nowhere: this file is missing"):
        read(tmp_path / "nowhere")


def test_what_is_no_text_becomes_its_json_text(tmp_path: Path) -> None:
    line = '{"id": 7, "tests": ["a == \\"ü\\"", "b"], "text": "t", "more": 1}'
    (tmp_path / "rows.jsonl").write_text(line + "\n", encoding="utf-8")
    (tmp_path / "rows.json").write_text(f"[{line}]", encoding="utf-8")
    expected = [{"id": "7", "tests": '["a == \\"ü\\"", "b"]', "text": "t"}]
    columns, structured = ("id", "tests", "text"), ("id", "tests")
    assert read_json_lines(tmp_path / "rows.jsonl", columns, structured=structured) == expected
    assert read_json_examples(tmp_path / "rows.json", columns, structured=structured) == expected
    with pytest.raises(DataError, match="expected a text field 'id'"):
        read_json_lines(tmp_path / "rows.jsonl", columns, structured=("tests",))
    with pytest.raises(DataError, match="expected a text field 'none'"):
        read_json_lines(tmp_path / "rows.jsonl", (*columns, "none"), structured=(*structured, "none"))


@pytest.mark.parametrize("keep", [slice(0, -9), slice(3, None)])
def test_a_compressed_file_is_read_and_a_broken_one_named(tmp_path: Path, keep: slice) -> None:
    import gzip

    whole = gzip.compress(b'{"question": "q", "A": "1", "answer": "A"}\n' * 20)
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(whole)
    assert len(read_json_lines(file, COLUMNS)) == 20
    file.write_bytes(whole[keep])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: expected a whole gzip file"):
        read_json_lines(file, COLUMNS)


def test_an_example_may_be_the_list_that_its_only_column_holds(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[[{"a": 1}, {"a": "ü"}], []]', encoding="utf-8")
    rows = read_json_examples(tmp_path / "rows.json", ("steps",), structured=("steps",))
    assert rows == [{"steps": '[{"a": 1}, {"a": "ü"}]'}, {"steps": "[]"}]
    for columns, structured in ((("steps",), ()), (("steps", "id"), ("steps",))):
        with pytest.raises(DataError, match=r"example 0: expected a JSON object, found"):
            read_json_examples(tmp_path / "rows.json", columns, structured=structured)
