"""The rules that find a program: cases as data, what reference solutions survive, and outputs that no rule may choke on."""

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_eval.data import Dataset, find_dataset
from qwen_eval.errors import SandboxError
from qwen_eval.registry import Entry
from qwen_eval.sandbox import Program, Sandbox
from qwen_eval.scorers import code
from qwen_eval.task import Sample

CASES = [json.loads(line) for line in (Path(__file__).parent / "code.jsonl").read_text(encoding="utf-8").splitlines()]
BEFORE = 'from typing import List\n\n\ndef half(n: int) -> int:\n    """Half of n."""\n    return n // 2\n\n\n'
PROMPT = f'{BEFORE}def grow(items: List[int]) -> List[int]:\n    """Double every item.\n\n    >>> grow([1])\n    [2]\n    """\n'


def found(task: str, rule: str, output: str) -> str:
    return code.HUMANEVAL[rule](output, PROMPT, "grow") if task == "humaneval" else code.MBPP[rule](output, "grow")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['task']} {case['rule']}: {case['why']}")
def test_case(case: dict[str, Any]) -> None:
    assert found(case["task"], case["rule"], case["output"]) == case["program"], case["why"]


def test_every_rule_has_fifty_cases() -> None:
    for task, rules in (("humaneval", code.HUMANEVAL), ("mbpp", code.MBPP)):
        counts = {rule: sum((each["task"], each["rule"]) == (task, rule) for each in CASES) for rule in rules}
        assert min(counts.values()) >= 50, counts


def test_the_defects_of_published_rules_are_kept() -> None:
    """Each is named on a protocol page, and none of them is ours."""
    inline = "```python\ndef grow(items):\n    return items```"
    assert found("humaneval", "qwen-chat", inline) == f"{PROMPT}    return items```"
    assert found("humaneval", "standard", inline) == f"{BEFORE}def grow(items):\n    return items"
    remark = "def grow(items):\n    # as follows:\n    return items"
    assert found("humaneval", "qwen-chat", remark.replace("):\n", "): ")) == f"{PROMPT}    return items"
    done = "def grow(items):\n    DONE = 1\n    return DONE"
    assert found("mbpp", "opencompass-2023", done) == "def grow(items):"
    assert found("mbpp", "standard", done) == done
    quote = "def name():\n    return 'x'\n[DONE]"
    assert found("mbpp", "opencompass-2023", quote) == "def name():\n    return 'x"
    assert found("mbpp", "standard", quote) == "def name():\n    return 'x'\n"


def test_the_signature_and_docstring_that_qwens_chat_prompt_quotes() -> None:
    assert code.signature_and_docstring(PROMPT, "grow") == ("grow(items: List[int]) -> List[int]", "Half of n.")
    assert (
        code.signature_and_docstring(PROMPT[len(BEFORE) :], "grow")[1] == "Double every item.\n\n>>> grow([1])\n[2]\n"
    )


@given(st.text(max_size=200), st.sampled_from(sorted(code.HUMANEVAL)))
def test_no_output_makes_a_rule_of_humaneval_raise(output: str, rule: str) -> None:
    assert found("humaneval", rule, output) is not None


@given(st.text(alphabet="`'[]BEGINDO \ndefgrow():\t#", max_size=80), st.sampled_from(sorted(code.MBPP)))
def test_no_output_makes_a_rule_of_mbpp_raise(output: str, rule: str) -> None:
    assert found("mbpp", rule, output) is not None


@pytest.mark.parametrize("piece", ["```", "```\n", "\n", " ", "\t", "def ", "def grow", ":\n", "'", "Here", "A ", "# "])
def test_hostile_lengths_are_read_in_no_time(piece: str) -> None:
    for task, rules in (("humaneval", code.HUMANEVAL), ("mbpp", code.MBPP)):
        for rule in rules:
            found(task, rule, piece * (40_000 // len(piece)))
            found(task, rule, f"def grow():\n{piece * (40_000 // len(piece))}  x")


# --------------------------------------------------------------------------------- what reference solutions survive


@pytest.fixture(scope="module")
def passing() -> Callable[[Entry, list[Sample], str, Callable[[Sample], str]], set[str]]:
    """Run what a rule finds in a made-up reply to every sample; return the ids that pass."""
    try:
        with Sandbox() as sandbox:
            sandbox.submit(0, Program(source="def f(): pass", test="assert f() is None", entry_point="f"))
            (_, outcome), *_ = sandbox.collect()
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    if not outcome.passed:
        pytest.skip(f"the sandbox does not run programs: {outcome.result}")

    def run(entry: Entry, samples: list[Sample], rule: str, reply: Callable[[Sample], str]) -> set[str]:
        from qwen_eval.runner import program_of

        passed: set[str] = set()
        with Sandbox() as box:
            for ticket, sample in enumerate(samples):
                box.submit(ticket, program_of(entry.task.programs[rule](reply(sample), sample)))
            while outcomes := box.collect():
                for ticket, each in outcomes:
                    assert not each.result.startswith("error"), each.result
                    passed |= {samples[ticket].id} if each.passed else set()
        return passed

    return run


def samples_of(entry: Entry, dataset: Dataset, split: str = "test") -> list[Sample]:
    return list(entry.task.samples(dataset, split))


@pytest.fixture
def real(entries: dict[str, Entry], real_data: Path) -> Callable[..., list[Sample]]:
    def load(name: str, split: str = "test") -> list[Sample]:
        entry = entries[name]
        dataset = find_dataset(entry.task.data, tasks=entry.folder, data_dir=real_data, network=False)
        return samples_of(entry, dataset, split)

    return load


def body(sample: Sample) -> str:
    return sample.gold


def whole(sample: Sample) -> str:
    return sample.row["prompt"] + sample.gold


def without_docstring(sample: Sample) -> str:
    name = sample.row["entry_point"]
    before, definition, _ = sample.row["prompt"].partition(f"def {name}")
    header = re.search(rf"def {name}.*?:\n", sample.row["prompt"], re.DOTALL)
    assert definition
    assert header
    return before + header[0] + sample.gold


def fenced(text: str) -> str:
    return f"Sure!\n\n```python\n{text.rstrip()}\n```\n\nThat is all."


REPLIES: dict[str, Callable[[Sample], str]] = {
    "body": body,
    "body at the margin": lambda sample: textwrap.dedent(sample.gold),
    "fenced": lambda sample: fenced(whole(sample)),
    "fenced, no docstring": lambda sample: fenced(without_docstring(sample)),
    "unfenced, no docstring": without_docstring,
    "unfenced": whole,
}


@pytest.mark.parametrize(
    ("rule", "reply", "count"),
    [
        ("standard", "body", 164),
        ("standard", "fenced", 164),
        ("standard", "unfenced", 164),
        ("lm-eval", "body", 164),
        ("qwen", "body", 127),
        ("qwen-chat", "fenced", 164),
        ("qwen-chat", "fenced, no docstring", 164),
        ("qwen-chat", "unfenced, no docstring", 164),
        ("qwen-chat", "body", 0),
        ("opencompass-2023", "body", 126),
        ("opencompass-2023", "fenced", 8),
    ],
)
def test_what_a_rule_of_humaneval_leaves_of_the_reference_solutions(
    real: Any, entries: dict[str, Entry], passing: Any, rule: str, reply: str, count: int
) -> None:
    assert len(passing(entries["humaneval"], real("humaneval"), rule, REPLIES[reply])) == count


@pytest.mark.parametrize(
    ("split", "rule", "reply", "lost"),
    [
        ("test", "standard", "{}\n[DONE]", set()),
        ("test", "standard", "Here.\n```python\n{}\n```\nDone.", set()),
        ("test", "opencompass-2023", "'{}'\n[DONE]", {"44", "217", "337", "367"}),
        ("test", "opencompass-2023-chat", "```python\n{}\n```", {"44", "217", "337", "367"}),
        ("sanitized", "standard", "{}\n[DONE]", set()),
        ("prompt", "standard", "{}\n[DONE]", set()),
        ("validation", "standard", "{}\n[DONE]", set()),
        ("train", "standard", "{}\n[DONE]", set()),
    ],
)
def test_what_a_rule_of_mbpp_leaves_of_the_reference_solutions(
    real: Any, entries: dict[str, Entry], passing: Any, split: str, rule: str, reply: str, lost: set[str]
) -> None:
    samples = real("mbpp", split)
    kept = passing(entries["mbpp"], samples, rule, lambda sample: reply.format(sample.gold))
    # The reference of item 123 needs two seconds, OpenCompass' limit, or more.
    slow = set() if rule == "standard" else {"123"}
    assert {sample.id for sample in samples} - kept - slow == lost


@pytest.mark.parametrize("rule", ["base", "plus"])
@pytest.mark.parametrize(("name", "count"), [("humaneval_plus", 164), ("mbpp_plus", 378)])
def test_reference_solutions_of_the_plus_sets_pass(
    real: Any, entries: dict[str, Entry], passing: Any, name: str, rule: str, count: int
) -> None:
    reply = REPLIES["fenced"] if name == "humaneval_plus" else lambda sample: fenced(sample.gold)
    samples = real(name)
    assert len(samples) == count
    # Hundreds of inputs each: every third of them is run here.
    samples = samples[::3]
    assert {sample.id for sample in samples} - passing(entries[name], samples, rule, reply) == set()


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "humaneval_plus", "mbpp_plus"])
def test_all_reference_solutions_of_the_small_sets_pass(
    mini: Callable[[str], Dataset], entries: dict[str, Entry], passing: Any, name: str
) -> None:
    samples = samples_of(entries[name], mini(name))
    for rule in entries[name].task.programs:
        reply = fenced if name != "humaneval" else str
        kept = passing(entries[name], samples, rule, lambda sample, reply=reply: reply(sample.gold))
        cannot = {("humaneval", "qwen-chat"), ("mbpp", "opencompass-2023")}  # indented already; no fences
        assert len(kept) == (0 if (name, rule) in cannot else len(samples)), rule


def test_every_item_of_mbpp_has_an_entry_point(real: Any, entries: dict[str, Entry]) -> None:
    for split in entries["mbpp"].task.splits:
        for sample in real("mbpp", split):
            program = entries["mbpp"].task.programs["standard"]("", sample)
            assert program.entry_point
            assert re.search(rf"\b{program.entry_point}\b", program.test)


def test_set_up_code_stands_behind_the_solution_under_the_standard_rule_alone(
    real: Any, entries: dict[str, Entry]
) -> None:
    sample = next(each for each in real("mbpp") if each.id == "367")
    programs = {rule: find("x = 1", sample) for rule, find in entries["mbpp"].task.programs.items()}
    assert programs["standard"].test.startswith(sample.row["test_setup_code"])
    assert sample.row["test_setup_code"]
    assert all(sample.row["test_setup_code"] not in each.test for rule, each in programs.items() if rule != "standard")
    assert {rule: each.timeout for rule, each in programs.items()} == {
        "standard": 10.0,
        "opencompass-2023": 2.0,
        "opencompass-2023-chat": 2.0,
    }
