"""The gate's decisions for people and for machines: a table, Markdown, JUnit XML, JSON."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from qwen_eval.gating import Decision, Report
from qwen_eval.paired import Flip, Pair
from qwen_eval.report.tables import draw
from qwen_eval.stats import holm, pooled

__all__ = ["changed", "differences", "flips", "junit", "markdown", "record", "text"]


def text(report: Mapping[str, Any], *, format: str = "text") -> str:
    """Return the table of all tasks, what holds for all of them together, and the outcome."""
    rows = [_row(each, report) for each in report["tasks"]]
    if format == "csv":
        return draw(rows, format)
    parts = [draw(rows, format)]
    together = report["together"]
    if together:
        reach = f"{_points(together['low'])} to {_points(together['high'])}"
        value = _points(together["difference"])
        parts.append(f"Mean over the critical tasks: {value} ({reach}), p = {together['p']:.3g}.")
    if report["unpaired"]:
        parts.append("The published answers are not known, so this is no paired comparison: it sees less.")
    bold = "**" if format == "md" else ""
    parts.append(f"{bold}{report['outcome']}{bold}")
    return "\n\n".join(parts)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the summary that a pull request shows."""
    title = f"## {report['candidate']} against {report['baseline']}"
    return f"{title}\n\n{text(report, format='md')}\n"


def record(report: Report, *, baseline: str, candidate: str, unpaired: bool = False) -> dict[str, Any]:
    """Return the report as plain data, scores and differences as fractions: what the JSON file holds."""
    together = report.together
    confidence = report.policy.confidence
    low, high = together.interval(confidence) if together else (None, None)
    return {
        "outcome": report.outcome,
        "exit_code": report.exit_code,
        "baseline": baseline,
        "candidate": candidate,
        "unpaired": unpaired,
        "confidence": confidence,
        "tasks": [_record(each) for each in report.decisions],
        "together": together
        and {"difference": together.value, "low": low, "high": high, "p": together.p, "n": together.n},
    }


def junit(report: Mapping[str, Any]) -> str:
    """Return JUnit XML: a test case a task. A regression is a failure, what is not known an error or skipped."""
    tasks = report["tasks"]
    suite = ElementTree.Element("testsuite", name="qwen_eval gate", tests=str(len(tasks)))
    counts = {"failure": 0, "skipped": 0, "error": 0}
    for each in tasks:
        case = ElementTree.SubElement(suite, "testcase", classname=f"qwen_eval.{each['tier']}", name=each["task"])
        tag = _tag(each, report)
        if tag:
            counts[tag] += 1
            ElementTree.SubElement(case, tag, message=f"{each['outcome']}: {each['why']}")
        ElementTree.SubElement(case, "system-out").text = " ".join(f"{k}={v}" for k, v in _row(each, report).items())
    suite.attrib |= {
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
    }
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return f"{ElementTree.tostring(root, encoding='unicode', xml_declaration=True)}\n"


def _tag(task: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    if task["outcome"] == "PASS":
        return ""
    if task["tier"] == "advisory" or (task["outcome"] == "INCONCLUSIVE" and report["exit_code"] == 0):
        return "skipped"
    return "failure" if task["outcome"] == "REGRESSION" or report["exit_code"] == 1 else "error"


def _record(decision: Decision) -> dict[str, Any]:
    found = decision.difference
    paired = {"n": found.n, "wins": found.wins, "losses": found.losses, "ties": found.ties} if found else {}
    names = ("baseline", "candidate", "low", "high", "allowed", "outcome", "why", "p", "needed", "detectable")
    known = decision.candidate is not None and decision.baseline is not None
    value = decision.candidate - decision.baseline if known else None  # type: ignore[operator]
    own = {"task": decision.name, "tier": decision.tier, "difference": found.value if found else value}
    return {**own, **{name: getattr(decision, name) for name in names}, **paired}


def _row(task: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, str]:
    percent = round(100 * report["confidence"])
    row = {
        "Task": task["task"],
        "n": f"{task['n']:,}" if "n" in task else "-",
        "Baseline": _score(task["baseline"]),
        "Candidate": _score(task["candidate"]),
        "Difference": _points(task["difference"]),
        f"{percent} % interval": "-" if task["low"] is None else f"{_points(task['low'])} to {_points(task['high'])}",
        "Allowed": f"-{100 * task['allowed']:.2g}",
        "Won, lost": f"{task['wins']:,}, {task['losses']:,}" if "wins" in task else "-",
        "Outcome": task["outcome"] if task["tier"] == "critical" else f"({task['outcome']})",
        "Why": task["why"],
    }
    return row


def _score(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value + 0.0:+.2f}"


def differences(found: Sequence[Pair], *, format: str = "text") -> str:
    """Return paired comparisons as a table: 95 % intervals, p-values alone and corrected for their number (Holm)."""
    corrected = holm([each.difference.p for each in found])
    rows = []
    for each, p in zip(found, corrected, strict=True):
        own = each.difference
        low, high = own.interval()
        rows.append(
            {
                "Task": each.name,
                "Model": each.candidate["model"]["name"],
                "n": f"{own.n:,}",
                "Baseline": _score(each.means[0]),
                "Candidate": _score(each.means[1]),
                "Difference": _points(own.value),
                "95 % interval": f"{_points(low)} to {_points(high)}",
                "p": f"{own.p:.3g}",
                "p (Holm)": f"{p:.3g}",
                "Won, lost, tied": f"{own.wins:,}, {own.losses:,}, {own.ties:,}",
            }
        )
    body = draw(rows, format)
    if len(found) == 1 or format == "csv":
        return body
    together = pooled([each.difference for each in found])
    low, high = together.interval()
    reach = f"{_points(low)} to {_points(high)}"
    return f"{body}\n\nMean over these: {_points(together.value)} ({reach}), p = {together.p:.3g}."


def changed(pair: Pair) -> list[Flip]:
    """Return the samples whose score changed, those that got worse first."""
    return sorted(pair.flips, key=lambda flip: flip.candidate - flip.baseline)


def flips(pair: Pair, *, most: int, format: str = "text") -> str:
    """Return the samples whose score changed as a table of no more than `most` lines, those that got worse first."""
    found = changed(pair)
    if not found:
        return f"{pair.name}: no sample changed."
    rows = [
        {
            "Sample": flip.sample,
            "Change": f"{flip.baseline:g} to {flip.candidate:g}",
            "Target": _short(flip.target),
            "Baseline said": _short(flip.was),
            "Candidate says": _short(flip.now),
        }
        for flip in found[:most]
    ]
    more = f"\n… and {len(found) - most:,} more (--format json has all)" if len(found) > most else ""
    return f"{pair.name}: {len(found):,} of {len(pair.samples):,} samples changed.\n\n{draw(rows, format)}{more}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:37]}..."
