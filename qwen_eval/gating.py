"""Whether a checkpoint is worse than its baseline: a non-inferiority test for each task, corrected for their number.

The candidate may be worse by so many points, the allowed drop. Where the whole interval of the paired difference lies
beyond it, that is a regression; where the whole interval lies inside, a pass; where it straddles, nothing is known yet.
The interval is that of two one-sided tests at 5 % (Schuirmann 1987), so 90 % wide: a checkpoint that is worse by just
the allowed drop is called a regression in at most 5 % of all cases, over all critical tasks together (Holm 1979).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

from qwen_eval.errors import UsageError, did_you_mean
from qwen_eval.paired import Pair
from qwen_eval.stats import Difference, detectable_difference, holm, pooled, wilson

__all__ = [
    "ON_INCONCLUSIVE",
    "Allowance",
    "Decision",
    "Policy",
    "Report",
    "Unpaired",
    "decide",
    "decide_unpaired",
    "read_policy",
]

PASS: Final = "PASS"
REGRESSION: Final = "REGRESSION"
INCONCLUSIVE: Final = "INCONCLUSIVE"
JUST_ALLOWED: Final = "the difference is just the allowed one: no number of items decides"
TIERS: Final = ("critical", "advisory")
ON_INCONCLUSIVE: Final = ("report", "pass", "fail")


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What is allowed of one task. `max_drop` is a fraction: of the whole scale, or of the baseline's score."""

    max_drop: float = 0.01
    relative: bool = False
    tier: str = "critical"
    min_items: int = 1

    def drop(self, baseline: float) -> float:
        """Return the allowed drop on the scale of scores."""
        return self.max_drop * baseline if self.relative else self.max_drop


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is allowed. `alpha` is the error of each one-sided test; `tasks` go by `gsm8k@qwen` or `gsm8k`."""

    default: Allowance = Allowance()
    tasks: Mapping[str, Allowance] = field(default_factory=dict)
    alpha: float = 0.05
    on_inconclusive: str = "report"

    def of(self, task: str, protocol: str) -> Allowance:
        """Return what is allowed of a task."""
        return self.tasks.get(f"{task}@{protocol}") or self.tasks.get(task) or self.default

    @property
    def confidence(self) -> float:
        """The width of the intervals that decide, as a fraction."""
        return 1 - 2 * self.alpha


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is known of one task. `outcome` is one of the three words, `why` says more in one line.

    `p` is the p-value of "no worse than allowed", corrected for the number of critical tasks. `needed` is how many
    items would decide if the difference stays as it is.
    """

    name: str
    tier: str
    baseline: float | None
    candidate: float | None
    difference: Difference | None
    low: float | None
    high: float | None
    allowed: float
    outcome: str
    why: str
    p: float | None = None
    needed: int | None = None
    detectable: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The decisions of all tasks, and the one that counts."""

    decisions: tuple[Decision, ...]
    policy: Policy
    together: Difference | None  # the mean over the critical tasks

    @property
    def outcome(self) -> str:
        """A regression of any critical task, else what is inconclusive, else a pass."""
        found = [each.outcome for each in self.decisions if each.tier == "critical"]
        return next((outcome for outcome in (REGRESSION, INCONCLUSIVE) if outcome in found), PASS)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 6 inconclusive, unless the policy makes two outcomes of three."""
        inconclusive = {"report": 6, "pass": 0, "fail": 1}[self.policy.on_inconclusive]
        return {PASS: 0, REGRESSION: 1, INCONCLUSIVE: inconclusive}[self.outcome]


def decide(pairs: Sequence[Pair], missing: Sequence[str], policy: Policy) -> Report:
    """Decide on every pair of runs; `missing` names the baseline's runs that the candidate has not."""
    allowances = [policy.of(each.baseline["task"], each.baseline["protocol"]) for each in pairs]
    drops = [allowance.drop(each.means[0]) for each, allowance in zip(pairs, allowances, strict=True)]
    p_values = _corrected(allowances, [each.difference.p_below(-drop) for each, drop in zip(pairs, drops, strict=True)])
    decisions = [_decision(*each, policy) for each in zip(pairs, allowances, drops, p_values, strict=True)]
    decisions += [_missing(name, policy.of(*name.split("@", 1))) for name in missing]
    critical = [each.difference for each, own in zip(pairs, allowances, strict=True) if own.tier == "critical"]
    together = pooled(critical) if len(critical) > 1 else None
    return Report(decisions=tuple(decisions), policy=policy, together=together)


def _corrected(allowances: Sequence[Allowance], p_values: Sequence[float]) -> list[float]:
    """Return the p-values, those of critical tasks corrected for how many there are."""
    critical = [number for number, allowance in enumerate(allowances) if allowance.tier == "critical"]
    found = list(p_values)
    for number, p in zip(critical, holm([p_values[number] for number in critical]), strict=True):
        found[number] = p
    return found


def _decision(pair: Pair, allowance: Allowance, drop: float, p: float, policy: Policy) -> Decision:
    found = pair.difference
    low, high = found.interval(policy.confidence)
    outcome, why, needed = INCONCLUSIVE, "", None
    if found.n < allowance.min_items:
        why = f"{found.n:,} items, the policy asks for {allowance.min_items:,}"
        needed = allowance.min_items
    elif pair.identical:
        outcome, why = PASS, "every output is the same"
    elif p < policy.alpha:
        outcome, why = REGRESSION, f"worse by more than {_points(drop)}"
    elif found.p_above(-drop) < policy.alpha:
        outcome, why = PASS, f"not worse by {_points(drop)}"
    else:
        needed = found.items_to_decide(-drop, policy.confidence)
        more = found.repeats_to_decide(-drop, policy.confidence, pair.drawn_error)
        repeats = math.ceil(more * pair.repeats) if more else None
        why = _undecided(found, high, drop, needed, repeats)
    before, after = pair.means
    return Decision(
        name=pair.name,
        tier=allowance.tier,
        baseline=before,
        candidate=after,
        difference=found,
        low=low,
        high=high,
        allowed=drop,
        outcome=outcome,
        why=why,
        p=p,
        needed=needed,
        detectable=detectable_difference(found.n, discordance=max(1, found.wins + found.losses) / found.n),
    )


def _undecided(found: Difference, high: float, drop: float, needed: int | None, repeats: int | None) -> str:
    if high < -drop:
        return "beyond what is allowed, but not after correction for the number of tasks"
    if needed is None:
        return JUST_ALLOWED
    again = f", or {repeats:,} repeats of these" if repeats else ""
    return f"about {needed:,} items would decide, here are {found.n:,}{again}"


def _missing(name: str, allowance: Allowance) -> Decision:
    return Decision(
        name=name,
        tier=allowance.tier,
        baseline=None,
        candidate=None,
        difference=None,
        low=None,
        high=None,
        allowed=allowance.max_drop,
        outcome=INCONCLUSIVE,
        why="the candidate was not run on it",
    )


@dataclass(frozen=True, kw_only=True)
class Unpaired:
    """A run beside a published score, both as fractions. The published one is taken as fixed."""

    task: str
    protocol: str
    n: int
    score: float
    published: float


def decide_unpaired(runs: Sequence[Unpaired], policy: Policy) -> Report:
    """Decide on runs beside published scores, whose answers nobody has: the error is that of the run alone.

    The test is the score test of one proportion, whose interval is Wilson's.
    """
    allowances = [policy.of(each.task, each.protocol) for each in runs]
    drops = [allowance.drop(each.published) for each, allowance in zip(runs, allowances, strict=True)]
    p_values = _corrected(allowances, [_score_test(each, drop) for each, drop in zip(runs, drops, strict=True)])
    decisions = [_unpaired(*each, policy) for each in zip(runs, allowances, drops, p_values, strict=True)]
    return Report(decisions=tuple(decisions), policy=policy, together=None)


def _score_test(run: Unpaired, drop: float) -> float:
    """Return the p-value of "the true score is at most `drop` below the published one"."""
    bound = run.published - drop
    error = math.sqrt(max(0.0, bound * (1 - bound)) / run.n)
    if not error:
        return 1.0 if run.score >= bound else 0.0
    return NormalDist().cdf((run.score - bound) / error)


def _unpaired(run: Unpaired, allowance: Allowance, drop: float, p: float, policy: Policy) -> Decision:
    low, high = (end - run.published for end in wilson(run.score, run.n, confidence=policy.confidence))
    outcome, why, needed = INCONCLUSIVE, "", None
    value = run.score - run.published
    if run.n < allowance.min_items:
        why, needed = f"{run.n:,} items, the policy asks for {allowance.min_items:,}", allowance.min_items
    elif p < policy.alpha:
        outcome, why = REGRESSION, f"worse by more than {_points(drop)}"
    elif 1 - _score_test(run, drop) < policy.alpha:
        outcome, why = PASS, f"not worse by {_points(drop)}"
    else:
        away = abs(value + drop)
        needed = math.ceil(run.n * ((high - low) / 2 / away) ** 2) if away > 1e-12 else None
        why = f"about {needed:,} items would decide, here are {run.n:,}" if needed else JUST_ALLOWED
    return Decision(
        name=f"{run.task}@{run.protocol}",
        tier=allowance.tier,
        baseline=run.published,
        candidate=run.score,
        difference=None,
        low=low,
        high=high,
        allowed=drop,
        outcome=outcome,
        why=why,
        p=p,
        needed=needed,
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2g} points"


# ----------------------------------------------------------------------------------------------------------- the policy


def read_policy(file: Path) -> Policy:
    """Read a policy from YAML. Raises UsageError for what is none, naming the key.

    alpha: 5                  # percent, of each one-sided test
    on_inconclusive: report   # exit 6; or pass (0), fail (1)
    default: {max_drop: 1.0, tier: critical, min_items: 100}    # points
    tasks:
      humaneval: {max_drop: 5 %, tier: advisory}                # of the baseline's score
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{file}: expected YAML ({' '.join(str(error).split())[:200]}).") from None
    fields = _mapping(content, f"{file}", ("alpha", "on_inconclusive", "default", "tasks"))
    alpha = _number(fields.get("alpha", 5), f"{file}: alpha", most=50) / 100
    if not alpha:
        raise UsageError(f"{file}: alpha: expected a number above 0; at 0 nothing is ever decided.")
    on_inconclusive = _one_of(fields.get("on_inconclusive", "report"), f"{file}: on_inconclusive", ON_INCONCLUSIVE)
    default = _allowance(fields.get("default"), f"{file}: default", Allowance())
    tasks = _mapping(fields.get("tasks"), f"{file}: tasks")
    return Policy(
        default=default,
        tasks={name: _allowance(each, f"{file}: tasks.{name}", default) for name, each in tasks.items()},
        alpha=alpha,
        on_inconclusive=on_inconclusive,
    )


def _allowance(content: Any, place: str, default: Allowance) -> Allowance:
    fields = _mapping(content, place, ("max_drop", "tier", "min_items"))
    drop, relative = default.max_drop, default.relative
    if "max_drop" in fields:
        given = fields["max_drop"]
        relative = isinstance(given, str) and given.strip().endswith("%")
        text = given.strip().removesuffix("%") if isinstance(given, str) else given
        try:
            drop = _number(float(text), f"{place}.max_drop", most=100) / 100
        except (TypeError, ValueError):
            raise UsageError(f'{place}.max_drop: expected points (1.0) or a share ("2 %"), found {given!r}.') from None
    items = fields.get("min_items", default.min_items)
    if isinstance(items, bool) or not isinstance(items, int) or items < 1:
        raise UsageError(f"{place}.min_items: expected a number of items from 1, found {items!r}.")
    tier = _one_of(fields.get("tier", default.tier), f"{place}.tier", TIERS)
    return Allowance(max_drop=drop, relative=relative, tier=tier, min_items=items)


def _mapping(content: Any, place: str, known: Sequence[str] = ()) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"{place}: expected keys and values, found {type(content).__name__}.")
    for name in content:
        if known and name not in known:
            raise UsageError(f"{place}: unknown key '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return dict(content)


def _number(value: Any, place: str, *, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise UsageError(f"{place}: expected a number from 0 to {most:g}, found {value!r}.")
    return float(value)


def _one_of(value: Any, place: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UsageError(f"{place}: expected {' or '.join(known)}, found {value!r}.")
    return str(value)
