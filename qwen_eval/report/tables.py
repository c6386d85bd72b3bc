"""Metrics as tables: plain text, Markdown, LaTeX for people; CSV and JSON for programs.

pandas holds the rows and writes CSV, tabulate draws the rest.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen_eval.report.perplexity import by_length, label, long, notes

__all__ = ["BY", "FORMATS", "draw", "results", "told_apart"]

FORMATS = ("text", "md", "csv", "json", "latex")
BY = ("task", "category", "subject")
_TABULATE = {"text": "simple", "md": "github", "latex": "latex_booktabs", "html": "unsafehtml"}


def results(metrics: Sequence[Mapping[str, Any]], *, format: str = "text", by: str = "category") -> str:
    """Return the tables of one or more finished runs.

    First one line a run with its headline rule; then every rule over the same outputs; then what is measured beside the
    scores, in the columns in which it is published; then pass@k, where a code task was asked several times; then, as
    `by` says, categories or subjects; last, how many golds are known to be wrong.
    Scores are percentages with their 95 % Wilson interval; n counts items ("164 x 10" where each was asked ten times),
    the columns after the interval count answers.
    Perplexity has tables of its own, by length.
    `csv` is one long table, `json` the metrics themselves.
    """
    if format == "json":
        return json.dumps(list(metrics), ensure_ascii=False, indent=1, sort_keys=True)
    # Perplexity names the setting beside the model, which tells runs of one model apart.
    lengthwise = _by_fingerprint([each for each in metrics if "perplexity" in each], label)
    metrics = told_apart([each for each in metrics if "perplexity" not in each])
    if format == "csv":
        return draw([*_long(metrics), *(row for each in lengthwise for row in long(each))], format)
    parts = [draw(rows, format) for rows in by_length(lengthwise)]
    parts += notes(lengthwise) if format != "latex" else []
    return "\n\n".join([*_scores(metrics, format, by), *parts])


def _scores(metrics: Sequence[Mapping[str, Any]], format: str, by: str) -> list[str]:
    """Return the tables of runs that have scores."""
    if not metrics:
        return []
    headlines = [_headline(each) for each in metrics]
    parts = [draw(headlines, format)]
    models = {row["Model"] for row in headlines}
    if format == "text" and len(models) == 1:
        # A terminal is narrow: the one model stands above the table, not in every row.
        model = headlines[0]["Model"]
        rows = [{name: value for name, value in row.items() if name != "Model"} for row in headlines]
        parts = [f"{model}, {metrics[0]['model']['dtype']}", draw(rows, format)]
    several = [each for each in metrics if len(each["rules"]) > 1]
    if several:
        rules = [
            _of_model(each, len(models), _part(each, name, "Rule", part))
            for each in several
            for name, part in each["rules"].items()
        ]
        parts.append(draw(rules, format))
    for name in dict.fromkeys(each["task"] for each in metrics):
        of_task = [each for each in metrics if each["task"] == name]
        tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in (_of_model(each, len(models), row) for each in of_task for row in _measured(each)):
            tables.setdefault(tuple(row), []).append(row)
        parts += [draw(rows, format) for rows in tables.values()]
    if rows := [_of_model(each, len(models), row) for each in metrics for row in _pass_at(each)]:
        parts.append(draw(rows, format))
    for each in metrics:
        if rows := _parts_of(each, by):
            parts.append(draw([_of_model(each, len(models), row) for row in rows], format))
    if format != "latex":
        parts += dict.fromkeys(
            f"{_name(each)}: {each['bad_golds']} of the {each['n']:,} golds are known to be wrong (EVALUATION.md)."
            for each in metrics
            if each["bad_golds"]
        )
    return parts


def draw(rows: Sequence[Mapping[str, Any]], format: str = "text") -> str:
    """Return rows with equal keys as one table."""
    import pandas
    from tabulate import tabulate

    frame = pandas.DataFrame(rows)
    if format == "json":
        return json.dumps(list(rows), ensure_ascii=False, indent=1)
    if format == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    right = {"Score", "n", "Items", "Unparsed", "Truncated", "Empty", "Errors", "Shots"}
    align = ["right" if column in right else "left" for column in frame.columns]
    table = tabulate(
        frame.astype(str).values.tolist(),
        headers=list(frame.columns),
        tablefmt=_TABULATE[format],
        disable_numparse=True,
        colalign=align,
    )
    return table.replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$") if format == "latex" else table


def _name(metrics: Mapping[str, Any]) -> str:
    """A run's name, marked where it is on the small set, or ran model-written code without a sandbox."""
    unsafe = metrics.get("sandbox", {}).get("mode") == "unsafe"
    marks = f"{' (mini)' if metrics['mini'] else ''}{' (unsafe)' if unsafe else ''}"
    return f"{metrics['task']}@{metrics['protocol']}{marks}"


def _model_name(metrics: Mapping[str, Any]) -> str:
    name: str = metrics["model"]["name"]
    return name


def told_apart(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Add to the name of a model what tells it from another one called the same: its setting, else its fingerprint."""
    settings: dict[str, set[str]] = {}
    for each in metrics:
        settings.setdefault(_model_name(each), set()).add(label(each))
    named = [
        {**each, "model": {**each["model"], "name": label(each)}} if len(settings[_model_name(each)]) > 1 else each
        for each in metrics
    ]
    return _by_fingerprint(named, _model_name)


def _by_fingerprint(
    metrics: Sequence[Mapping[str, Any]], called: Callable[[Mapping[str, Any]], str]
) -> list[Mapping[str, Any]]:
    """Add the fingerprint to the name of a model where another model is called the same."""
    prints: dict[str, set[str]] = {}
    for each in metrics:
        prints.setdefault(called(each), set()).add(each["model"].get("fingerprint", ""))
    return [
        {**each, "model": {**each["model"], "name": f"{_model_name(each)} ({each['model']['fingerprint'][:8]})"}}
        if len(prints[called(each)]) > 1
        else each
        for each in metrics
    ]


def _of_model(metrics: Mapping[str, Any], models: int, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a table with its model in it, where there are several."""
    return {"Model": metrics["model"]["name"], **row} if models > 1 else row


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(part: Mapping[str, Any]) -> str:
    return "-" if part["low"] is None else f"{_percent(part['low'])} to {_percent(part['high'])}"


def _items(metrics: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """The number of items, and how often each was asked where that is more than once: "164 x 10"."""
    repeats = metrics.get("repeats", 1)
    return f"{part['n']} x {repeats}" if repeats > 1 else f"{part['n']}"


def _headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Task": _name(metrics),
        "Model": metrics["model"]["name"],
        "Split": metrics["split"],
        "Shots": metrics["shots"],
        "n": _items(metrics, metrics),
        "Rule": metrics["rule"],
        "Score": _percent(metrics["score"]),
        "95 % interval": _interval(metrics),
        "Unparsed": metrics["unparsed"],
        "Truncated": metrics["truncated"],
        "Empty": metrics["empty"],
        "Errors": metrics["errors"],
    }


def _measured(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for every rule that measures something beside its score, on the scale on which that is published."""
    rules = {rule: part["measures"] for rule, part in metrics["rules"].items() if "measures" in part}
    return [
        {"Task": _name(metrics), "Rule": rule}
        | {each["title"]: _cell(part[each["name"]], each) for each in metrics["measures"] if each["name"] in part}
        for rule, part in rules.items()
    ]


def _cell(part: Mapping[str, Any], measure: Mapping[str, Any]) -> str:
    """A measured number with its interval."""
    if part["score"] is None:
        return "-"
    digits, scale = (1 if measure["scale"] >= 100 else 3), measure["scale"]
    score, low, high = (f"{scale * part[name]:.{digits}f}" for name in ("score", "low", "high"))
    return f"{score} ({low} to {high})"


def _pass_at(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of pass@k, for a code task whose items were asked more than once."""
    if metrics.get("repeats", 1) == 1:
        return []
    return [
        {"Task": _name(metrics), "k": k, "pass@k": _percent(part["score"]), "95 % interval": _interval(part)}
        for k, part in metrics.get("pass_at", {}).items()
    ]


def _part(metrics: Mapping[str, Any], name: str, label: str, part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Task": _name(metrics),
        label: name,
        "n": _items(metrics, part),
        "Score": _percent(part["score"]),
        "95 % interval": _interval(part),
    }


def _parts_of(metrics: Mapping[str, Any], by: str) -> list[dict[str, Any]]:
    label, key = {"category": ("Category", "categories"), "subject": ("Subject", "groups")}.get(by, ("", ""))
    if not key or not metrics[key]:
        return []
    rows = [_part(metrics, name, label, part) for name, part in metrics[key].items()]
    rows.append(_part(metrics, "Mean over subjects (macro)", label, metrics["macro"]))
    rows.append(_part(metrics, "Mean over items (micro)", label, metrics["micro"]))
    return rows


def _long(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a number: what it is a score of, by which rule, with counts and interval, as fractions."""
    rows = []
    for each in metrics:
        common = {
            "model": each["model"]["name"],
            "task": _name(each),
            "split": each["split"],
            "shots": each["shots"],
            "average": each["average"],
        }
        counts = {name: each[name] for name in ("unparsed", "truncated", "empty", "errors")}
        # A column that came later stands last.
        last = {"repeats": each.get("repeats", 1)}
        nothing = {"correct": 0, "n": 0, "score": None, "low": None, "high": None}
        for rule, part in (each["rules"] or {each["rule"]: nothing}).items():
            headline = rule == each["rule"]
            more = {"headline": headline, **(counts if headline else {})}
            scores = {name: value for name, value in part.items() if name != "measures"}
            rows.append({**common, "part": "all", "name": "", "rule": rule, **scores, **more, **last})
            rows += [
                {**common, "part": "measure", "name": name, "rule": rule, **measured, **last}
                for name, measured in part.get("measures", {}).items()
            ]
        for k, part in each.get("pass_at", {}).items():
            if k != "1":  # that is the score
                name = {"part": "all", "name": f"pass@{k}", "rule": each["rule"], "n": each["n"]}
                rows.append({**common, **name, **part, **last})
        for kind, key in (("category", "categories"), ("subject", "groups")):
            rows += [
                {**common, "part": kind, "name": name, "rule": each["rule"], **part, **last}
                for name, part in _plain_parts(each[key])
            ]
    return rows


def _plain_parts(parts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Parts by name, without what is measured beside their scores."""
    return [(name, {key: value for key, value in part.items() if key != "measures"}) for name, part in parts.items()]
