"""What comes later: next turns, the rest of an interrupted run, the same run once more."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import DEEPER, SHOTS, TEXTS, agree, answers_of, collected, counted, expected, packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_eval.models.transformers.packing import Pace
from qwen_eval.models.transformers.tokenization import common_length
from qwen_eval.task import Answer, Choose, Failed, Generate, Generated, Perplexity, Request, Sampling

MIXED: list[Request] = [
    *(Generate(prompt=text, max_new_tokens=5 + 9 * (at % 3)) for at, text in enumerate(TEXTS)),
    *(Generate(prompt=TEXTS[1], max_new_tokens=8, sampling=Sampling(temperature=1.0, seed=at)) for at in range(3)),
    *(Choose(prompt=text, options=(" A", " B")) for text in TEXTS),
    *(Choose(prompt=text, options=("a", " a long way to go")) for text in TEXTS[1:4]),
    Perplexity(text=" ".join(TEXTS), block=70),
    Perplexity(text=DEEPER, block=50),
]


# --------------------------------------------------------------------------------------------------------- next turns


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_a_next_turn_shares_the_prefix_that_the_first_one_left(
    batch_size: int | None, tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint("qwen2")
    model = packed(folder, batch_size=batch_size)
    first: list[Request] = [Generate(prompt=f"{DEEPER}{letter}", max_new_tokens=6) for letter in "PQRSTU"]
    answers = answers_of(model, first)
    agree(answers, expected(folder, first))
    second: list[Request] = []
    for request, answer in zip(first, answers, strict=True):
        assert isinstance(request, Generate)
        assert isinstance(answer, Generated)
        second.append(Generate(prompt=f"{request.prompt}{answer.text}\nAnd why?", max_new_tokens=7))
    before = model.counters()
    agree(answers_of(model, second), expected(folder, second))
    after = model.counters()
    spent = int(after["computed_tokens"]) - int(before["computed_tokens"])
    spent -= int(after["decode_slots"]) - int(before["decode_slots"])
    prompts = [model.prompt_tokens(request) for request in second]
    shared = min(common_length(model.prompt_tokens(request), model.prompt_tokens(first[0])) for request in first[1:])
    assert shared > 100
    assert spent <= sum(len(prompt) - shared for prompt in prompts)


def test_a_next_turn_joins_while_others_still_run(tiny_checkpoint: Callable[..., Path]) -> None:
    """The turn of a short first answer is answered before a long first answer is."""
    folder = tiny_checkpoint("qwen2")
    model = packed(folder, batch_size=4)
    model.submit(0, Generate(prompt=TEXTS[1], max_new_tokens=60))
    model.submit(1, Generate(prompt=TEXTS[2], max_new_tokens=3))
    order = [ticket for ticket, _ in model.collect()]
    model.submit(2, Generate(prompt=TEXTS[3], max_new_tokens=3))
    model.submit(3, Choose(prompt=TEXTS[3], options=("a", "b")))
    order += [ticket for ticket in collected(model) if ticket]
    assert order == [1, 3, 2]


# -------------------------------------------------------------------------------------------------------- interruption


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 30), st.sampled_from([None, 1, 4]), st.randoms(use_true_random=False))
def test_what_an_interrupted_run_did_not_answer_a_new_one_does(
    tiny_checkpoint: Callable[..., Path], collects: int, batch_size: int | None, draw: Any
) -> None:
    folder = tiny_checkpoint("qwen2")
    requests = draw.sample(MIXED, len(MIXED))
    model = packed(folder, batch_size=batch_size)
    for ticket, request in enumerate(requests):
        model.submit(ticket, request)
    answers: dict[int, Answer | Failed] = {}
    for _ in range(collects):
        answers |= dict(model.collect())
    missing = [at for at in range(len(requests)) if at not in answers]
    rest = answers_of(packed(folder, batch_size=batch_size), [requests[at] for at in missing])
    answers |= dict(zip(missing, rest, strict=True))
    agree([answers[at] for at in range(len(requests))], expected(folder, requests))


# --------------------------------------------------------------------------------------------------------- determinism


def jumpy() -> Callable[[], float]:
    """A clock that runs as no clock does: at every call it is some time between nothing and a second later."""
    now, step = 0.0, 0

    def read() -> float:
        nonlocal now, step
        step += 1
        now += (step * 7919 % 101) / 100
        return now

    return read


def bits(answers: list[Answer | Failed]) -> list[object]:
    """Answers with every bit of their numbers."""
    numbers = [
        [number.hex() for number in (*getattr(answer, "logprobs", ()), *getattr(answer, "nll", ()))]
        for answer in answers
    ]
    return [*numbers, *(answer for answer in answers if isinstance(answer, Generated))]


MANY: list[Request] = [
    *MIXED,
    *(Generate(prompt=f"{text}{at}", max_new_tokens=4 + at) for text in TEXTS[:4] for at in range(10)),
    *(Choose(prompt=f"{text}{at}", options=("a", " long way")) for text in TEXTS[:4] for at in range(10)),
]


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, free: int, clock: Callable[[], float], **how: Any
) -> tuple[list[object], dict[str, int | float | str]]:
    monkeypatch.setattr("qwen_eval.models.transformers.engine.free_memory", lambda device: free)
    monkeypatch.setattr("time.perf_counter", clock)
    model = packed(folder, **how)
    found = bits(answers_of(model, MANY)), counted(model)
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
def test_neither_memory_nor_a_clock_decides_a_bit_of_a_deterministic_run(
    kind: str, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(kind)
    found = [
        run(folder, monkeypatch, free=free, clock=clock, deterministic=True)
        for free, clock in ((1 << 40, lambda: 0.0), (3_000_000, jumpy()), (0, jumpy()))
    ]
    # The same passes in the same order, so that even what is rounded is rounded alike.
    assert found[1:] == found[:1] * 2


def test_without_that_the_pace_may_follow_them_and_the_answers_stay(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint("qwen2")
    wanted = expected(folder, MANY)
    passes = set()
    for free, clock in ((1 << 40, lambda: 0.0), (200_000, jumpy()), (0, jumpy())):
        monkeypatch.setattr("qwen_eval.models.transformers.engine.free_memory", lambda device, free=free: free)
        monkeypatch.setattr("time.perf_counter", clock)
        model = packed(folder)
        agree(answers_of(model, MANY), wanted)
        passes.add(model.counters()["batches"])
        monkeypatch.undo()
    assert len(passes) > 1


@pytest.mark.parametrize("earlier", [MIXED, MANY, [MIXED[0]], [Choose(prompt=DEEPER + "7", options=("a", "b"))] * 3])
def test_what_was_forgotten_leaves_no_trace(earlier: list[Request], tiny_checkpoint: Callable[..., Path]) -> None:
    """A run that answers everything anew computes what a new process would."""
    folder = tiny_checkpoint("qwen2")
    new, used = packed(folder, deterministic=True), packed(folder, deterministic=True)
    answers_of(used, earlier)
    before = counted(used)
    used.forget()
    assert bits(answers_of(used, MANY)) == bits(answers_of(new, MANY))
    for name, count in counted(new).items():
        if name != "batch_size":
            assert int(counted(used)[name]) - int(before[name]) == count


def test_samples_of_a_prompt_just_asked_are_computed_anew_after_forgetting(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    folder = tiny_checkpoint("qwen2")
    model = packed(folder, deterministic=True)
    twice: list[Request] = [Generate(prompt=SHOTS, max_new_tokens=3)] * 2
    spent = []
    for _ in range(2):
        before = int(model.counters()["computed_tokens"])
        answers_of(model, twice)
        spent.append(int(model.counters()["computed_tokens"]) - before)
        model.forget()
    assert spent[0] == spent[1]


def test_the_weights_are_read_on_the_same_number_of_threads(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "qwen_eval.models.transformers.reference.choose_threads", lambda *, measure: asked.append(measure)
    )
    for deterministic in (True, False):
        packed(tiny_checkpoint("qwen2"), deterministic=deterministic)._weights()
    assert asked == [False, True]


# ---------------------------------------------------------------------------------------------------------------- pace


def steps(pace: Pace, seconds: Callable[[int], float], count: int = 1) -> Iterator[int]:
    """The rows in force after so many measurements; a step of so many rows takes `seconds(rows)`."""
    for _ in range(count):
        for _ in range(Pace.STEPS):
            pace.note(pace.rows, seconds(pace.rows))
        yield pace.rows


def test_more_rows_run_as_long_as_that_makes_a_row_cheaper() -> None:
    """A step has a cost of its own, and one for each row; at last, rows are all that counts."""
    assert list(steps(Pace(4, 1000), lambda rows: 1 + 0.02 * rows, 9)) == [8, 16, 32, 64, 128, 256, 512, 256, 256]
    assert list(steps(Pace(4, 64), lambda rows: 1.0, 6)) == [8, 16, 32, 64, 64, 64]
    assert list(steps(Pace(4, 20), lambda rows: 1.0, 4))[-2:] == [20, 20]


def test_rows_that_make_nothing_cheaper_are_given_up_for_good() -> None:
    pace = Pace(4, 64)
    assert list(steps(pace, lambda rows: float(rows), 2)) == [8, 4]
    assert list(steps(pace, lambda rows: 1.0, 3)) == [4, 4, 4]
    assert pace.most == 4


def test_a_tenth_cheaper_is_what_it_takes() -> None:
    assert list(steps(Pace(4, 64), lambda rows: rows * (1.0 if rows == 4 else 0.89), 2)) == [8, 16]
    assert list(steps(Pace(4, 64), lambda rows: rows * (1.0 if rows == 4 else 0.91), 2)) == [8, 4]


def test_a_slow_step_now_and_then_decides_nothing() -> None:
    pace = Pace(4, 64)
    for at in range(2 * Pace.STEPS):
        pace.note(pace.rows, 100.0 if at in (Pace.STEPS, Pace.STEPS + 3) else 1.0)
    assert pace.rows == 16


def test_steps_of_fewer_rows_say_nothing() -> None:
    """At the end of a run, and while a long prompt keeps others out."""
    pace = Pace(4, 64)
    for _ in range(5 * Pace.STEPS):
        pace.note(3, 0.001)
    assert (pace.rows, pace.most) == (4, 64)


@given(
    st.lists(st.one_of(st.tuples(st.just("note"), st.floats(0, 9)), st.tuples(st.just("most"), st.integers(0, 99)))),
    st.integers(1, 32),
    st.integers(0, 200),
)
def test_rows_stay_between_one_and_the_most(plan: list[tuple[str, Any]], rows: int, more: int) -> None:
    pace = Pace(rows, rows + more)
    limit = pace.most
    for what, number in plan:
        if what == "note":
            list(steps(pace, lambda rows, number=number: number))
        else:
            pace.at_most(number)
            limit = min(limit, max(1, number)) if number <= limit else max(1, number)
            assert pace.rows == max(1, number)
        assert 1 <= pace.rows <= pace.most <= limit


def test_where_memory_ran_out_the_rows_are_frozen() -> None:
    pace = Pace(8, 64)
    pace.at_most(5)
    assert list(steps(pace, lambda rows: 1.0, 4)) == [5, 5, 5, 5]
    pace.at_most(0)
    assert pace.rows == 1


@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ({}, 16),
        ({"batch_size": 5}, 5),
        ({"deterministic": True}, 4),
        ({"batch_size": 5, "deterministic": True}, 5),
    ],
    ids=str,
)
def test_what_the_user_says_no_clock_changes(
    how: dict[str, Any], rows: int, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that stands still, more rows are always as good."""
    monkeypatch.setattr("qwen_eval.models.transformers.engine.ROWS", {"cpu": (4, 16), "cuda": (4, 16)})
    monkeypatch.setattr("qwen_eval.models.transformers.engine.ROWS_FIXED", 4)
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    folder = tiny_checkpoint("qwen2")
    requests: list[Request] = [Generate(prompt=f"{DEEPER}{at}", max_new_tokens=20) for at in range(40)]
    model = packed(folder, **how)
    agree(answers_of(model, requests), expected(folder, requests))
    assert model.counters()["batch_size"] == rows
