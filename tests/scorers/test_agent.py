"""The rules of the agent benchmark and their interpreter: cases as data, hostile programs, and whatever text comes.

The interpreter is executed here directly: it is our own code, which walks the syntax tree of a program and never
compiles or runs it.
"""

import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.scorers import agent
from qwen_eval.scorers.agent_interpreter import TOOLS, evaluate, report
from qwen_eval.task import Cell, Message, Observed, Sample, Verdict

CASES = [json.loads(line) for line in (Path(__file__).parent / "agent.jsonl").read_text(encoding="utf-8").splitlines()]


def sample(mode: str, steps: list[dict[str, Any]]) -> Sample:
    """As the task file makes them of problems in one phrasing."""
    made = [
        {
            "task": step["task"],
            "inputs": step["inputs"] if isinstance(step["inputs"], dict) else {n: f"<<{n}>>" for n in step["inputs"]},
            "answers": [step["answer"]] if isinstance(step["answer"], str) else step["answer"],
        }
        for step in steps
    ]
    return Sample("x", {"mode": mode, "steps": json.dumps(made)}, "")


def observed(cell: Cell) -> Observed:
    """What a session says of a cell."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(cell.code, {"__name__": "session"})
    return Observed(cell="", messages=(Message("stdout", said.getvalue()),), end="ok")


def scored(rule: str, output: str, item: Sample) -> Verdict:
    check = agent.CHECKS[rule]
    cell = check.request(output, item, ())
    assert isinstance(cell, Cell)
    verdict = check.verdict(output, item, observed(cell))
    assert verdict is not None
    return verdict


PAINT = {"task": "t", "inputs": ["text_input"], "answer": "image_generator(text_input)"}
PAINTED = " tool: `image_generator`.\n\nAnswer:\n```py\nimage_generator(text_input)\n```"


# -------------------------------------------------------------------------------------------------------------- cases


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['mode']}: {case['why']}")
def test_case(case: dict[str, Any]) -> None:
    item = sample(case["mode"], case["steps"])
    output = json.dumps(case["replies"]) if case["mode"] == "chat" else case["replies"][0]
    published, strict = scored("transformers", output, item), scored("strict", output, item)
    steps = [list(step) for step in zip(*(published.measures[name] for name in agent.MEASURES), strict=True)]
    assert steps == case["scores"]
    assert list(strict.measures["code"]) == case["strict"]
    assert strict.value == pytest.approx(sum(case["strict"]) / len(steps))
    assert published.value == pytest.approx(sum(code for _, _, code in steps) / len(steps))
    assert published.correct == strict.correct == all(code == 1 for code in case["strict"])
    assert published.steps == len(case["scores"])


def test_there_are_cases_enough() -> None:
    assert len(CASES) >= 80
    assert len({(case["mode"], case["why"]) for case in CASES}) == len(CASES)
    assert {code for case in CASES for _, _, code in case["scores"]} == {0.3, 0.75, 1}


def test_where_the_published_scorer_raises_there_is_no_program() -> None:
    """`upstream` in the data says whether it goes on; the one long loop aside, which it would run for days."""
    for case in CASES:
        item = sample(case["mode"], case["steps"])
        output = json.dumps(case["replies"]) if case["mode"] == "chat" else case["replies"][0]
        found = agent.programs(output, item)
        raises = any(program.code is None for program in found)
        assert raises == (not case["upstream"] and "far too long" not in case["why"]), case["why"]
        assert (scored("strict", output, item).extracted is None) == raises


# -------------------------------------------------------------------------------------------------- one cell for both


def test_both_rules_ask_for_the_same_cell() -> None:
    item = sample("run", [PAINT])
    cells = {check.request(PAINTED, item, ()) for check in agent.CHECKS.values()}
    assert len(cells) == 1


def test_a_cell_needs_nothing_but_the_standard_library() -> None:
    cell = agent.CHECKS["strict"].request(PAINTED, sample("run", [PAINT]), ())
    assert isinstance(cell, Cell)
    assert "qwen_eval" not in cell.code
    assert cell.before == ()


def test_no_program_text_becomes_code_of_the_cell() -> None:
    evil = PAINTED.replace("image_generator(text_input)", "'''\\\"\"\"'); print('[]'); x = ('\n# \\")
    verdict = scored("transformers", evil, sample("run", [PAINT]))
    assert verdict.measures["code"] == (0.3,)


@pytest.mark.parametrize("end", ["memory", "timed out", "died", "error"])
def test_a_lost_session_leaves_no_value(end: str) -> None:
    lost = Observed(cell="", messages=(Message("stdout", "["),), end=end)
    item = sample("run", [PAINT])
    for rule, floor in (("transformers", 0.3), ("strict", 0.0)):
        verdict = agent.CHECKS[rule].verdict(PAINTED, item, lost)
        assert verdict is not None
        assert verdict.measures == {"tool selection": (1.0,), "tool used": (1.0,), "code": (floor,)}


def test_an_output_of_a_dialogue_that_is_no_list_is_its_first_reply() -> None:
    item = sample("chat", [PAINT, {**PAINT, "inputs": []}])
    for output in ("`image_generator`\n```\nimage_generator(text_input)\n```", "[1, 2]", '{"a": "b"}', "[" * 100_000):
        found = agent.programs(output, item)
        assert len(found) == 2
        assert found[0].explanation in (output, "`image_generator`")
        assert found[1] == agent.Program("", None)


def test_speakers_are_named_back_after_the_stop_is_gone() -> None:
    assert agent.clean(" a _ASSISTANT_: b\n_HUMAN_:", "chat") == "a Assistant: b\n"
    assert agent.clean("a Human:", "chat") == "a Human:"
    assert agent.clean("=====_HUMAN_:", "chat") == ""
    assert agent.clean("_HUMAN_:=====", "chat") == "Human:"
    assert agent.renamed("Human: Assistant: Task:") == "_HUMAN_: _ASSISTANT_: Task:"


# -------------------------------------------------------------------------------------------------------- interpreter


def value(code: str, **state: Any) -> Any:
    return evaluate(code, state)


def test_the_tools_are_the_fourteen() -> None:
    assert len(TOOLS) == 14
    assert value("video_generator(prompt='a')") == "A video of a"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = 'a'", "a"),
        ("x = 'a'\nprint(x)", "a"),
        ("int('7')", 7),
        ("float('1.5')", 1.5),
        ("bool('')", False),
        ("str(3)", "3"),
        ("f'{n}{n!r:>9}'", "33"),
        ("{'a': n}['a']", 3),
        ("{'picture': n}['pictures']", 3),
        ("[1, n][1.9]", 3),
        ("[1, n]['1']", 3),
        ("range(4)[2]", 2),
        ("'abc'['a']", None),
        ("m", None),
        ("nn", 3),
        ("for i in range(n):\n    i", 2),
        ("for i in 'ab':\n    j = i\nj", "b"),
        ("if n is not None:\n    'yes'", "yes"),
        ("if n:\n    1", None),
        ("a = b = 'xy'\nb", "y"),
        ("a = b = 'xyz'", None),
        ("a, b = 'xy'", None),
        ("n += 1", None),
        ("'kept'\nimport os\n'lost'", "kept"),
        ("'lost'\nint('x')", None),
        ("'lost'\nx = ('", None),
        ("'lost'\nprint(1, sep=1)", None),
        ("'lost'\nprint(1, file=n)", None),
        ("'kept'\nprint(1, file=None, end='')", "kept"),
        ("b'x'", b"x"),
        ("...", ...),
        ("'\\d'", "\\d"),
        ("\x00", None),
    ],
)
def test_the_language(code: str, expected: object) -> None:
    assert value(code, n=3) == expected


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    value("print('a')\nprint('b', file=None)")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "text.__class__",
        "open('/etc/passwd')",
        "eval('1')",
        "exec('x = 1')",
        "getattr(text, 'upper')",
        "str.format('{0.__class__}', text)",
        "f'{text.__class__}'",
        "print.__self__",
        "(lambda: 1)()",
        "__builtins__['open']",
        "str(__builtins__)",
        "TOOLS",
        "self",
    ],
)
def test_nothing_else_is_within_reach(code: str) -> None:
    assert value(code, text="x") is None


LOOPS = {
    "a loop of a trillion": "for i in range(1000000000000):\n    x = i",
    "loops in loops": "\n".join("    " * depth + f"for a{depth} in range(1000000):" for depth in range(8))
    + "\n"
    + "    " * 8
    + "x = 1",
    "a text that doubles": "x = 'a'\nfor i in range(1000):\n    x = f'{x}{x}'",
    "a list that doubles": "x = [1]\nfor i in range(1000):\n    x = [x, x]\nprint(x)",
    "a dictionary that doubles": "x = {}\nfor i in range(1000):\n    x = {'a': x, 'b': x}",
    "lists that double, compared": "x = [1]\ny = [1]\n" + "x = [x, x]\ny = [y, y]\n" * 70 + "if x == y:\n    z = 1",
    "lists in lists in lists": "x = 1\nfor i in range(100000):\n    x = [x]",
    "a search through a range": "if 'a' in range(100000000000):\n    x = 1",
    "a search through a longer one": "if 1.5 in range(10000000000000000000000000):\n    x = 1",
    "an index of a range": "x = range(1000000000000)\nx['a']",
    "brackets": "(" * 100_000,
    "calls": "summarizer(" * 50_000 + "1" + ")" * 50_000,
    "subscripts": "x" + "[0]" * 25_000,
    "signs": "-" * 50_000 + "1",
    "digits": "x = " + "9" * 100_000 + "\nprint(x)",
    "hexadecimal digits": "x = 0x" + "f" * 50_000 + "\nprint(x)",
    "a very long program": "x = 1\n" * 1_000_000,
    "wrong names among many": "\n".join(f"name{number} = 1" for number in range(4_000)) + "\nnamee\n" * 3_000,
    "long wrong names": "a" * 3_000 + " = 1\n" + ("a" * 2_999 + "b\n") * 10,
    "a wrong name, often": "abcdefghij = 1\nfor i in range(1000000):\n    x = abcdefghik",
}


@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS)
def test_what_takes_too_much_ends_soon_and_without_a_value(code: str) -> None:
    begun = time.process_time()
    state: dict[str, Any] = {"text": "t"}
    assert evaluate(f"{code}\n'after'" if "for" in code else code, state) is None
    assert time.process_time() - begun < 10


def test_a_hostile_step_leaves_the_others_their_values() -> None:
    steps = [
        {"inputs": {"a": "1"}, "code": LOOPS["a loop of a trillion"], "answers": ["a"]},
        {"inputs": {}, "code": None, "answers": ["a"]},
        {"inputs": {}, "code": "a", "answers": ["'b'", "a"]},
    ]
    first, second, third = json.loads(report(json.dumps(steps)))
    assert first == second == {"value": None, "answers": ["1"], "equal": [False], "holding": [False]}
    assert third == {"value": "1", "answers": ["b", "1"], "equal": [False, True], "holding": [False, False]}


def test_the_report_shows_the_beginning_of_a_value() -> None:
    step = {"inputs": {}, "code": "x = 'a'\nfor i in range(12):\n    x = f'{x}{x}'", "answers": ["1"]}
    assert json.loads(report(json.dumps([step])))[0]["value"] == "a" * 2000
    step["code"] = "[int('" + "f" * 5_000 + "', 16)]"
    assert json.loads(report(json.dumps([step])))[0]["value"] == "(list)"


# -------------------------------------------------------------------------------------------------------- properties

PIECES = (
    "image_generator|`summarizer`|(|)|text_input|=|\n|    |x|'|\"|[|]|{|}|:|```py\n|```|Answer:|Human:|Task:|for | in |if |"
    "range(3)|print(|f'|,|1|."
)
WORDS = st.sampled_from(PIECES.split("|"))
TEXT = st.one_of(st.text(), st.lists(WORDS, max_size=40).map("".join))


@given(TEXT)
def test_any_program_has_a_value_or_none(code: str) -> None:
    first, second = ({"text_input": "<<text_input>>"} for _ in range(2))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert repr(evaluate(code, first)) == repr(evaluate(code, second))
    assert said.getvalue() == ""
    assert repr(first) == repr(second)


@given(st.sampled_from(["run", "chat"]), TEXT)
def test_any_output_is_scored(mode: str, output: str) -> None:
    item = sample(mode, [PAINT])
    published, strict = scored("transformers", output, item), scored("strict", output, item)
    assert published.value is not None
    assert strict.value is not None
    assert published.value - strict.value in (0, 0.3)
    assert all(0 <= number <= 1 for numbers in published.measures.values() for number in numbers)
    assert published.measures["tool selection"] == strict.measures["tool selection"]
    assert published.measures["tool used"] == strict.measures["tool used"]
    assert {published.value, strict.value} <= {0, 0.3, 0.75, 1}


@given(st.lists(TEXT, min_size=3, max_size=3))
def test_a_dialogue_is_the_list_of_its_replies(replies: list[str]) -> None:
    item = sample("chat", [PAINT] * 3)
    found = agent.programs(json.dumps(replies, ensure_ascii=False), item)
    assert found == [agent.read_chat(agent.clean(reply, "chat")) for reply in replies]
