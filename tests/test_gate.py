"""The gate: what it decides, with what error, and what it says; through the command line where a user would."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
from runs import verdicts, write_run

from qwen_eval.errors import IncompleteError, StoreError, UsageError
from qwen_eval.gating import Allowance, Policy, Unpaired, decide, decide_unpaired, read_policy
from qwen_eval.paired import Pair, pair, pairs
from qwen_eval.stats import Difference

Command = Callable[..., subprocess.CompletedProcess[str]]


def two(folder: Path, n: int, *, name: str = "toy", **counts: Any) -> tuple[Path, Path]:
    before, after = verdicts(n, **counts)
    return (
        write_run(folder / "old" / f"{name}@plain", before, task=name),
        write_run(folder / "new" / f"{name}@plain", after, task=name),
    )


def outcome(folder: Path, n: int, **counts: Any) -> str:
    return decide([pair(*two(folder, n, **counts))], [], Policy()).outcome


# ------------------------------------------------------------------------------------------------------------ deciding


def test_without_a_true_change_a_large_benchmark_passes(tmp_path: Path) -> None:
    """14,042 items, 6 % of which differ, half each way; one point allowed."""
    assert outcome(tmp_path, 14_042, wins=421, losses=421) == "PASS"


@pytest.mark.parametrize(
    ("n", "wins", "losses", "expected"),
    [
        (1319, 10, 60, "REGRESSION"),  # 3.8 points worse
        (1319, 30, 30, "PASS"),
        (1319, 30, 44, "INCONCLUSIVE"),  # a point worse, a point allowed
        (164, 5, 5, "INCONCLUSIVE"),  # too few items for one point
        (164, 2, 30, "REGRESSION"),
        (1319, 60, 10, "PASS"),
    ],
)
def test_the_whole_interval_decides(n: int, wins: int, losses: int, expected: str, tmp_path: Path) -> None:
    report = decide([pair(*two(tmp_path, n, wins=wins, losses=losses))], [], Policy())
    [each] = report.decisions
    assert each.outcome == report.outcome == expected
    assert each.low is not None
    assert each.high is not None
    beyond, inside = each.high < -0.01, each.low > -0.01
    assert (beyond, inside) == (expected == "REGRESSION", expected == "PASS")
    assert report.exit_code == {"PASS": 0, "REGRESSION": 1, "INCONCLUSIVE": 6}[expected]


def test_the_same_outputs_pass_however_few(tmp_path: Path) -> None:
    said = [f"answer {number}" for number in range(24)]
    old = write_run(tmp_path / "old", [True] * 24, texts=said)
    new = write_run(tmp_path / "new", [True] * 24, texts=said)
    [each] = decide([pair(old, new)], [], Policy()).decisions
    assert (each.outcome, each.why) == ("PASS", "every output is the same")
    other = write_run(tmp_path / "other", [True] * 24)
    assert decide([pair(old, other)], [], Policy()).outcome == "INCONCLUSIVE"


def test_what_is_inconclusive_says_how_many_items_would_decide(tmp_path: Path) -> None:
    [each] = decide([pair(*two(tmp_path / "few", 164, wins=5, losses=5))], [], Policy()).decisions
    assert each.needed is not None
    assert f"about {each.needed:,} items would decide, here are 164" == each.why
    times = -(-each.needed // 164)
    assert outcome(tmp_path / "many", 164 * times, wins=5 * times, losses=5 * times) == "PASS"


def test_repeats_decide_where_the_doubt_comes_from_drawing(tmp_path: Path) -> None:
    draw = numpy.random.default_rng(12)

    def runs(name: str, repeats: int, chances: Any) -> Path:
        drawn = draw.random((400, repeats)) < chances[:, None]
        return write_run(tmp_path / name, [[bool(each) for each in row] for row in drawn])

    chances = draw.uniform(0.2, 0.8, size=400)  # the same for both: all doubt is of drawing
    [few] = decide([pair(runs("old", 4, chances), runs("new", 4, chances))], [], Policy()).decisions
    assert few.outcome == "INCONCLUSIVE"
    repeats = int(few.why.split(", or ")[1].split(" repeats")[0].replace(",", ""))
    assert 4 < repeats < 2000
    many = pair(runs("old2", 2 * repeats, chances), runs("new2", 2 * repeats, chances))
    assert many.drawn_error == pytest.approx(many.difference.error**2, rel=0.25)
    assert decide([many], [], Policy()).outcome == "PASS"
    apart = numpy.where(numpy.arange(400) % 2, 0.95, 0.05)  # items differ much and surely: no number of repeats helps
    [each] = decide([pair(runs("old3", 50, apart), runs("new3", 50, 1 - apart))], [], Policy()).decisions
    assert each.outcome == "INCONCLUSIVE"
    assert "repeats" not in each.why


def test_items_tiers_and_missing_tasks(tmp_path: Path) -> None:
    bad = pair(*two(tmp_path / "bad", 1319, name="bad", wins=0, losses=100))
    good = pair(*two(tmp_path / "good", 1319, name="good", wins=20, losses=20))
    assert decide([bad, good], [], Policy()).outcome == "REGRESSION"
    shrug = Policy(tasks={"bad": Allowance(tier="advisory")})
    assert decide([bad, good], [], shrug).outcome == "PASS"
    more = Policy(tasks={"good@plain": Allowance(min_items=2000)}, default=Allowance(max_drop=0.2))
    report = decide([bad, good], [], more)
    assert [each.outcome for each in report.decisions] == ["PASS", "INCONCLUSIVE"]
    assert report.decisions[1].why == "1,319 items, the policy asks for 2,000"
    assert decide([good], ["gone@plain"], Policy()).outcome == "INCONCLUSIVE"
    assert decide([good], ["gone@plain"], Policy(tasks={"gone": Allowance(tier="advisory")})).outcome == "PASS"


def test_a_relative_drop_is_one_of_the_baselines_score(tmp_path: Path) -> None:
    found = pair(*two(tmp_path, 4000, wins=10, losses=50, right=0.25))
    assert found.means[0] == pytest.approx(0.26, abs=0.005)
    tight, wide = (Policy(default=Allowance(max_drop=share, relative=True)) for share in (0.01, 0.1))
    assert decide([found], [], tight).outcome == "REGRESSION"
    assert decide([found], [], wide).outcome == "PASS"
    assert decide([found], [], wide).decisions[0].allowed == pytest.approx(0.1 * found.means[0])


def made(n: int, wins: int, losses: int) -> Pair:
    """A pair of which only the counts matter."""
    metrics = {"task": "t", "protocol": "p", "mini": False, "rules": {"r": {"score": 0.5}}}
    found = Pair(baseline=metrics, candidate=metrics, rule="r", samples=(), scores=((), ()), flips=(), identical=False)
    value = (wins - losses) / n
    error = ((wins + losses - n * value**2) / (n - 1) / n) ** 0.5
    known = Difference(n=n, value=value, error=error, freedom=n - 1, wins=wins, losses=losses, counted=True)
    object.__setattr__(found, "difference", known)
    return found


@pytest.mark.parametrize(("tasks", "n", "discordance"), [(1, 1319, 0.08), (1, 300, 0.1), (5, 500, 0.1)])
def test_a_checkpoint_worse_by_just_what_is_allowed_is_stopped_as_seldom_as_it_says(
    tasks: int, n: int, discordance: float
) -> None:
    draw = numpy.random.default_rng(6)
    drop = 0.01
    chances = [(discordance - drop) / 2, (discordance + drop) / 2, 1 - discordance]
    stopped = 0
    for _ in range(600):
        counts = draw.multinomial(n, chances, size=tasks).tolist()
        report = decide([made(n, wins, losses) for wins, losses, _ in counts], [], Policy())
        stopped += report.outcome == "REGRESSION"
    assert stopped / 600 <= 0.075
    assert stopped / 600 >= (0.025 if tasks == 1 else 0.01)


def test_a_worse_checkpoint_is_stopped(tmp_path: Path) -> None:
    """Three points of 1,319 items, 8 % of which differ: found nearly always."""
    draw = numpy.random.default_rng(7)
    found = [
        decide([made(1319, wins, losses)], [], Policy()).outcome
        for wins, losses, _ in draw.multinomial(1319, [0.02, 0.06, 0.92], size=300).tolist()
    ]
    assert found.count("REGRESSION") / 300 > 0.85
    assert "PASS" not in found


def test_beside_a_published_score_only_one_side_has_noise() -> None:
    policy = Policy(default=Allowance(max_drop=0.02))

    def one(score: float, n: int) -> str:
        run = Unpaired(task="toy", protocol="plain", n=n, score=score, published=0.5)
        return decide_unpaired([run], policy).outcome

    assert [one(0.40, 1000), one(0.50, 10_000), one(0.49, 500)] == ["REGRESSION", "PASS", "INCONCLUSIVE"]


# ------------------------------------------------------------------------------------------------------- pairing runs


def test_pairs_are_by_sample_and_not_by_place(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", [True, False, True])
    new = write_run(tmp_path / "new", [False, False, True])
    lines = (new / "records.jsonl").read_text().splitlines(keepends=True)
    (new / "records.jsonl").write_text("".join(lines[::-1]))
    found = pair(old, new)
    assert [flip.sample for flip in found.flips] == ["0"]
    assert (found.flips[0].was, found.flips[0].now) == ("5", "6")
    assert (found.difference.wins, found.difference.losses, found.difference.ties) == (0, 1, 2)


def test_repeats_are_averaged_and_may_differ_in_number(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", [[True, False], [True, True], [False, False]])
    new = write_run(tmp_path / "new", [[True, True, True, False], [True] * 4, [False] * 4])
    found = pair(old, new)
    assert found.scores == ((0.5, 1, 0), (0.75, 1, 0))
    assert not found.difference.counted
    assert found.difference.value == pytest.approx(0.25 / 3)


def test_a_macro_average_weighs_groups_alike(tmp_path: Path) -> None:
    groups = ["a"] * 2 + ["b"] * 4
    old = write_run(
        tmp_path / "old", [True, False, True, True, True, True], subjects=groups, average="macro", score=0.75
    )
    new = write_run(
        tmp_path / "new", [True, True, False, True, True, True], subjects=groups, average="macro", score=0.875
    )
    assert pair(old, new).difference.value == pytest.approx((0.5 - 0.25) / 2)
    assert pair(old, new, cluster=True).difference.freedom == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dataset": {"name": "toy", "fingerprints": {"test": "f" * 16}}}, "dataset.fingerprints.test"),
        ({"prompts": "0" * 16}, "prompts"),
        ({"shots": 5}, "expected shots 0"),
        ({"mini": True}, "mini"),
        ({"sampling": {"temperature": 0.7, "top_p": 1.0, "top_k": 0}}, "sampling"),
    ],
)
def test_runs_that_asked_something_else_are_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", [True, False])
    with pytest.raises(UsageError, match=said):
        pair(old, write_run(tmp_path / "new", [True, False], **fields))


def test_other_refusals(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", [True, False])
    with pytest.raises(UsageError, match=r"expected the 2 samples of .*, found 3 \(2 is in one only\)"):
        pair(old, write_run(tmp_path / "longer", [True, False, True]))
    with pytest.raises(IncompleteError, match="has no score"):
        pair(old, write_run(tmp_path / "errors", [True, False], score=None))
    with pytest.raises(UsageError, match="They share: last-number"):
        pair(old, write_run(tmp_path / "same", [True, False]), rule="first")
    with pytest.raises(UsageError, match="found none"):
        pairs(old, tmp_path / "nothing")
    with pytest.raises(UsageError, match="expected one run of toy@plain"):
        pairs(old, tmp_path)
    broken = write_run(tmp_path / "broken", [True, False])
    text = (broken / "records.jsonl").read_text().replace('"correct":true', '"correct":false')
    (broken / "records.jsonl").write_text(text)
    with pytest.raises(StoreError, match="line 1"):
        pair(old, broken)


# ---------------------------------------------------------------------------------------------------------- the policy


def test_a_policy_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(
        "alpha: 1\non_inconclusive: fail\ndefault: {max_drop: 0.5, min_items: 50}\n"
        "tasks:\n  humaneval: {max_drop: 5 %, tier: advisory}\n  mmlu@qwen: {min_items: 1000}\n"
    )
    policy = read_policy(file)
    assert (policy.alpha, policy.confidence, policy.on_inconclusive) == (0.01, 0.98, "fail")
    assert policy.of("gsm8k", "qwen") == Allowance(max_drop=0.005, min_items=50)
    assert policy.of("humaneval", "x") == Allowance(max_drop=0.05, relative=True, tier="advisory", min_items=50)
    assert policy.of("mmlu", "qwen") == Allowance(max_drop=0.005, min_items=1000)
    assert policy.of("mmlu", "lm-eval") == policy.default
    file.write_text("")
    assert read_policy(file) == Policy()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: [1]", "tasks: expected keys and values, found list"),
        ("defualt: {}", "unknown key 'defualt'. Did you mean 'default'?"),
        ("default: {max_drop: lots}", r"default.max_drop: expected points \(1.0\) or a share"),
        ("default: {max_drop: -1}", "expected a number from 0 to 100|expected points"),
        ("default: {tier: vital}", "expected critical or advisory, found 'vital'"),
        ("default: {min_items: 0}", "expected a number of items from 1"),
        ("on_inconclusive: shrug", "expected report or pass or fail"),
        ("alpha: 0", "alpha: expected a number above 0"),
        ("alpha: true", "alpha: expected a number"),
        ("a: [", "expected YAML"),
    ],
)
def test_what_is_no_policy_is_said_with_its_key(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_policy(tmp_path / "gate.yaml")


# --------------------------------------------------------------------------------------------------------- the command


def test_exit_codes_and_files(tmp_path: Path, command: Command) -> None:
    two(tmp_path / "pass", 2000, wins=30, losses=30)
    two(tmp_path / "fail", 2000, wins=0, losses=100)
    two(tmp_path / "open", 100, wins=3, losses=3)
    summary = tmp_path / "summary.md"
    for name, code, tag in (("pass", 0, None), ("fail", 1, "failure"), ("open", 6, "error")):
        words = ["gate", "--baseline", f"{name}/old", "--candidate", f"{name}/new", "--show-flips"]
        done = command(*words, GITHUB_STEP_SUMMARY=str(summary))
        assert done.returncode == code, done.stdout + done.stderr
        folder = tmp_path / name / "new"
        record = json.loads((folder / "gate.json").read_text())
        assert record["exit_code"] == code
        assert record["outcome"] in done.stdout
        assert record["tasks"][0]["task"] == "toy@plain"
        [suite] = ElementTree.fromstring((folder / "gate.xml").read_text())
        [case] = suite
        assert (case.attrib["name"], suite.attrib["tests"]) == ("toy@plain", "1")
        assert [child.tag for child in case if child.tag != "system-out"] == ([tag] if tag else [])
        assert (folder / "gate.md").read_text() in summary.read_text()
        assert "samples changed" in done.stdout
    assert command(*words, "--on-inconclusive", "pass").returncode == 0
    assert command(*words, "--on-inconclusive", "fail").returncode == 1
    assert command(*words, "--max-drop", "20").returncode == 0
    done = command(*words, "--format", "json", "--output", "elsewhere")
    record = json.loads(done.stdout)
    assert record["confidence"] == 0.9
    assert [flip["sample"] for flip in record["flips"]["toy@plain"]] == ["3", "4", "5", "0", "1", "2"]
    rows = command(*words, "--format", "csv").stdout.splitlines()
    assert len(rows) == 2
    assert rows[0].startswith("Task,n,Baseline")
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["gate.json", "gate.md", "gate.xml"]


def test_a_gate_against_a_published_score_says_that_it_is_not_paired(tmp_path: Path, command: Command) -> None:
    fields: dict[str, Any] = {"task": "gsm8k", "protocol": "qwen", "shots": 8, "rule": "qwen"}
    write_run(tmp_path / "new" / "gsm8k@qwen", [number % 10 < 3 for number in range(1319)], **fields)
    done = command("gate", "--reported", "Qwen-7B", "--candidate", "new")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no paired comparison" in done.stdout
    assert "51.7" in done.stdout


def test_what_a_user_can_get_wrong(tmp_path: Path, command: Command) -> None:
    two(tmp_path, 100)
    for words, said in (
        (["--candidate", "new"], "Expected --baseline DIR or --reported MODEL"),
        (["--candidate", "none", "--baseline", "old"], "expected a folder with finished runs"),
        (["--candidate", "new", "--baseline", "old", "--policy", "no.yaml"], "cannot be read"),
        (["--candidate", "new", "--reported", "Qwen-7B"], "expected a run that Qwen-7B has a published score for"),
    ):
        done = command("gate", *words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    (tmp_path / "gate.yaml").write_text("tasks: {tou: {max_drop: 3}}")
    done = command("gate", "--baseline", "old", "--candidate", "new", "--policy", "gate.yaml")
    assert "tou is no task of the baseline. Did you mean 'toy'?" in done.stderr
