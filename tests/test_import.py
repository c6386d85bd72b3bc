"""Runs of lm-evaluation-harness as runs of ours: ids, rules, what is marked, and what is refused.

The logs in lm_eval_logs were written by lm-evaluation-harness 0.4.13 itself (make_logs.py): six items of the small GSM8K
and of two subjects of the small MMLU, answered right, right without the marker, wrong and empty in turn.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_eval import compare, load_run, registry, run
from qwen_eval.data import find_dataset
from qwen_eval.importing import _base, _task_of
from qwen_eval.lm_eval import Log, read_log
from qwen_eval.loaded import LoadedRun
from qwen_eval.matching import Matcher, question_of
from qwen_eval.task import Sample

Cli = Callable[..., tuple[int, str, str]]
LOGS = Path(__file__).parent / "lm_eval_logs" / "toys__scripted"
STRICT, FLEXIBLE = "lm-eval:exact_match,strict-match", "lm-eval:exact_match,flexible-extract"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A copy of their folder, to be changed."""
    return Path(shutil.copytree(LOGS, tmp_path / "logs"))


def of_gsm8k(logs: Path) -> Path:
    return next(logs.glob("samples_gsm8k_*.jsonl"))


def imported(task: str) -> LoadedRun:
    (folder,) = Path("results").glob(f"*/{task}@*")
    return load_run(folder)


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit every line of a log."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        edit(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_results(logs: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    file = next(logs.glob("results_*.json"))
    results = json.loads(file.read_text())
    edit(results)
    file.write_text(json.dumps(results))


def renamed(logs: Path, task: str) -> Path:
    """The log of GSM8K under another name of their task."""
    file = of_gsm8k(logs)
    other = file.with_name(file.name.replace("_gsm8k_", f"_{task}_"))
    file.rename(other)
    return other


# -------------------------------------------------------------------------------------------------- what is imported


def test_a_folder_of_logs_becomes_runs_with_our_ids_and_says_how_many_matched(cli: Cli, logs: Path) -> None:
    code, out, err = cli("import", str(logs))
    assert code == 0, err
    assert "gsm8k@lm-eval: 6 of 6 samples matched: results/" in err
    assert "mmlu@imported-mmlu: 12 of 12 samples matched: results/" in err
    assert STRICT in out
    gsm8k, mmlu = imported("gsm8k"), imported("mmlu")
    assert [record["doc_id"] for record in gsm8k.records()] == [str(number) for number in range(6)]
    subjects = ("elementary_mathematics", "miscellaneous")
    assert {record["doc_id"] for record in mmlu.records()} == {
        f"{each}/test/{n}" for each in subjects for n in range(6)
    }
    assert sorted(file.name for file in gsm8k.path.iterdir()) == ["manifest.json", "metrics.json", "records.jsonl"]


def test_their_scores_are_ours_by_rule_group_and_sample(cli: Cli, logs: Path) -> None:
    cli("import", str(logs))
    theirs = json.loads(next(LOGS.glob("results_*.json")).read_text())["results"]
    gsm8k, mmlu = imported("gsm8k"), imported("mmlu")
    assert gsm8k.metrics["rules"][STRICT]["score"] == theirs["gsm8k"]["exact_match,strict-match"] == 2 / 6
    assert gsm8k.metrics["rules"][FLEXIBLE]["score"] == theirs["gsm8k"]["exact_match,flexible-extract"] == 4 / 6
    assert mmlu.score == theirs["mmlu"]["acc,none"]
    for subject, part in mmlu.metrics["groups"].items():
        assert part["score"] == theirs[f"mmlu_{subject}"]["acc,none"]
    samples = [json.loads(line) for line in of_gsm8k(logs).read_text().splitlines()]
    records = {record["doc_id"]: record for record in gsm8k.records()}
    for sample in samples:
        verdict = records[str(sample["doc_id"])]["verdicts"][f"lm-eval:exact_match,{sample['filter']}"]
        left = sample["filtered_resps"][0]
        assert verdict == {
            "correct": bool(sample["exact_match"]),
            "extracted": None if left == "[invalid]" else left,
        }
    assert mmlu.metrics["rule"] == "lm-eval:acc,none"
    assert gsm8k.metrics["unparsed"] == sum(
        sample["filter"] == "strict-match" and sample["filtered_resps"] == ["[invalid]"] for sample in samples
    )
    assert gsm8k.metrics["empty"] == 1


def test_our_rules_read_the_same_outputs_and_ours_of_theirs_agrees_with_theirs(cli: Cli, logs: Path) -> None:
    cli("import", str(logs))
    for record in imported("gsm8k").records():
        verdicts = record["verdicts"]
        assert verdicts["lm-eval-strict"]["correct"] == verdicts[STRICT]["correct"]
        assert verdicts["lm-eval-flexible"]["correct"] == verdicts[FLEXIBLE]["correct"]
    for record in imported("mmlu").records():
        assert record["verdicts"]["choice"] == record["verdicts"]["lm-eval:acc,none"]


def test_a_run_of_ours_and_an_imported_one_meet_item_by_item(
    cli: Cli, scripted: dict[str, object], logs: Path, tmp_path: Path
) -> None:
    cli("import", str(logs))
    own = run(task=["gsm8k@lm-eval", "mmlu@lm-eval"], model="toy", output_dir=tmp_path / "own")
    for ours, theirs in zip(own, (imported("gsm8k"), imported("mmlu")), strict=True):
        mine = {record["doc_id"]: record for record in ours.records()}
        for record in theirs.records():
            same = mine[record["doc_id"]]
            for key in ("doc", "target", "doc_hash", "group", "repeat"):
                assert record[key] == same[key]
            assert set(same["verdicts"]) < set(record["verdicts"])
        assert set(ours.metrics["rules"]) < set(theirs.metrics["rules"])
        split = theirs.manifest["split"]
        assert theirs.manifest["dataset"]["fingerprints"][split] == ours.manifest["dataset"]["fingerprints"][split]


def test_the_manifest_is_marked_and_says_what_their_results_say(cli: Cli, logs: Path) -> None:
    cli("import", str(logs))
    loaded = imported("mmlu")
    manifest = loaded.manifest
    assert manifest["imported"]["from"] == "lm-evaluation-harness"
    assert set(manifest["imported"]["files"]) == {file.name for file in logs.glob("samples_mmlu*")}
    assert manifest["imported"]["matched"] == 12
    assert manifest["model"]["name"] == "toys/scripted"
    assert manifest["model"]["engine"] == "lm-evaluation-harness"
    assert manifest["versions"]["lm_eval"] == "0.4.13"
    assert (manifest["shots"], manifest["split"], manifest["mini"], manifest["samples"]) == (0, "test", True, 12)
    assert manifest["sampling"] is None
    assert {**loaded.metrics, **manifest} == loaded.metrics


def test_prompts_that_are_those_of_a_protocol_make_it_a_run_of_that_protocol(cli: Cli, logs: Path) -> None:
    cli("import", str(of_gsm8k(logs)))
    loaded = imported("gsm8k")
    assert (loaded.manifest["protocol"], loaded.metrics["rule"]) == ("lm-eval", "lm-eval-strict")
    assert loaded.score == loaded.metrics["rules"][STRICT]["score"]
    assert loaded.manifest["prompts"] is None
    file = of_gsm8k(logs)
    lines = file.read_text().splitlines(keepends=True)
    one = json.loads(lines[3])
    file.write_text("".join([*lines[:3], json.dumps({**one, "prompt_hash": "another"}) + "\n", *lines[4:]]))
    cli("import", str(file), "--output-dir", "others")
    (folder,) = Path("others").glob("*/*")
    assert folder.name == "gsm8k@imported-gsm8k-mini"
    assert load_run(folder).metrics["rule"] == STRICT
    cli("import", str(file), "--output-dir", "said", "--task", "gsm8k@qwen")
    (folder,) = Path("said").glob("*/*")
    assert (folder.name, load_run(folder).metrics["rule"]) == ("gsm8k@qwen-mini", "qwen")


def test_an_imported_baseline_is_compared_and_gated_item_by_item(
    cli: Cli, scripted: dict[str, object], logs: Path
) -> None:
    cli("import", str(of_gsm8k(logs)), "--output-dir", "old")
    cli("import", *map(str, logs.glob("samples_mmlu*")), "--output-dir", "old", "--task", "mmlu@lm-eval")
    run(task="gsm8k@lm-eval", model="toy", limit=6, shots=0, output_dir="new")
    (pair,) = compare("new", baseline=next(Path("old").glob("*/gsm8k*")))
    assert (pair.rule, pair.difference.n) == ("lm-eval-strict", 6)
    code, out, err = cli("gate", "--baseline", "old", "--candidate", "new", "--format", "json")
    assert code in (1, 6), err
    tasks = {each["task"]: each for each in json.loads(out)["tasks"]}
    assert set(tasks) == {"gsm8k@lm-eval (mini)", "mmlu@lm-eval"}
    # Another number of exemplars is another question.
    run(task="gsm8k@lm-eval", model="toy", limit=6, output_dir="other")
    code, _, err = cli("gate", "--baseline", "old", "--candidate", "other")
    assert code == 2
    assert "expected shots 0 as in" in err


def test_sampling_and_exemplars_are_taken_from_their_configuration(cli: Cli, logs: Path) -> None:
    def drawn(results: dict[str, Any]) -> None:
        results["configs"]["gsm8k"]["generation_kwargs"] |= {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
        results["n-shot"]["gsm8k"] = 5
        results["model_name"] = "/somewhere/my_model"

    change_results(logs, drawn)
    cli("import", str(of_gsm8k(logs)))
    manifest = imported("gsm8k").manifest
    assert manifest["sampling"] == {"temperature": 0.6, "top_p": 0.9, "top_k": 0}
    assert (manifest["shots"], manifest["model"]["name"]) == (5, "my_model")


def test_the_same_files_give_the_same_bytes_and_other_ones_are_another_import(cli: Cli, logs: Path) -> None:
    cli("import", str(logs))
    before = {file: file.read_bytes() for file in Path("results").rglob("*.json*")}
    code, _, err = cli("import", *map(str, sorted(logs.glob("samples_*"), reverse=True)))
    assert code == 0, err
    assert {file: file.read_bytes() for file in Path("results").rglob("*.json*")} == before
    change(of_gsm8k(logs), lambda row: row.update(exact_match=1.0))
    code, _, err = cli("import", str(of_gsm8k(logs)))
    assert code == 2
    assert "holds another import" in err
    assert "--overwrite" in err
    code, _, err = cli("import", str(of_gsm8k(logs)), "--overwrite")
    assert code == 0, err
    assert imported("gsm8k").metrics["rules"][STRICT]["score"] == 1


# --------------------------------------------------------------------------------------------------------- matching


def test_items_are_found_by_their_text_whatever_their_number(cli: Cli, logs: Path) -> None:
    change(of_gsm8k(logs), lambda row: row.update(doc_id=100 - row["doc_id"]))
    change(of_gsm8k(logs), lambda row: row["doc"].update(question="  " + row["doc"]["question"].replace(" ", "\n")))
    code, _, err = cli("import", str(of_gsm8k(logs)))
    assert code == 0, err
    assert "6 of 6 samples matched" in err
    assert [record["doc_id"] for record in imported("gsm8k").records()] == ["0", "1", "2", "3", "4", "5"]


def test_what_is_not_found_keeps_its_number_and_has_their_rules_only(cli: Cli, logs: Path) -> None:
    def other(row: dict[str, Any]) -> None:
        if row["doc_id"] == 0:
            row["doc"]["question"] += " Really?"

    change(of_gsm8k(logs), other)
    code, _, err = cli("import", str(of_gsm8k(logs)))
    assert code == 0, err
    assert "gsm8k@imported-gsm8k: 5 of 6 samples matched" in err
    assert "the others keep their doc_id" in err
    loaded = imported("gsm8k")
    records = {record["doc_id"]: record for record in loaded.records()}
    assert list(records) == ["1", "2", "3", "4", "5", "gsm8k/0"]
    assert set(records["gsm8k/0"]["verdicts"]) == {STRICT, FLEXIBLE}
    assert "corrected" in records["1"]["verdicts"]
    assert set(loaded.metrics["rules"]) == {STRICT, FLEXIBLE}
    assert loaded.score == 2 / 6
    assert loaded.manifest["imported"]["matched"] == 5


def test_where_nothing_is_found_everything_keeps_its_number(cli: Cli, logs: Path) -> None:
    change(of_gsm8k(logs), lambda row: row["doc"].update(question="How many?"))
    code, _, err = cli("import", str(of_gsm8k(logs)))
    assert code == 0, err
    assert "0 of 6 samples matched" in err
    loaded = imported("gsm8k")
    assert [record["doc_id"] for record in loaded.records()] == [f"gsm8k/{number}" for number in range(6)]
    assert loaded.manifest["dataset"]["fingerprints"] == {}
    assert loaded.manifest["mini"] is False


def sample(identifier: str, question: str, group: str = "", **row: str) -> Sample:
    return Sample(identifier, {"question": question, **row}, "A", group)


def test_alike_questions_are_told_apart_by_subject_options_and_last_by_number() -> None:
    options = {"A": "1", "B": "2", "C": "3", "D": "4"}
    samples = [
        sample("anatomy/test/0", "Which?", "anatomy", **options),
        sample("virology/test/0", "Which?", "virology", **options),
        sample("virology/test/1", "Which?", "virology", **{**options, "D": "5"}),
        sample("virology/test/2", "Which?", "virology", **options),
        sample("virology/test/12", "Which?", "virology", **options),
    ]
    item = {"question": "Which?", "choices": ["1", "2", "3", "4"]}

    def found(item: dict[str, Any], group: str = "", number: int = -1) -> str | None:
        match = Matcher(samples).find(item, group=group, number=number)
        return match and match.id

    assert found(item, "virology", 2) == "virology/test/2"
    assert found(item, "virology", 12) == "virology/test/12"
    assert found(item, "virology", 7) == "virology/test/0"
    assert found(item, "anatomy", 2) == "anatomy/test/0"
    assert found({**item, "choices": ["1", "2", "3", "5"]}, "virology") == "virology/test/1"
    assert found({**item, "choices": ["1", "2", "3", "6"]}) is None
    assert found({"question": "Which one?"}) is None
    assert found({"doc": "nothing to go by"}, number=0) is None
    matcher = Matcher(samples[:1])
    assert matcher.find(item) is not None
    assert matcher.find(item) is None, "a sample is given once"


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"question": "q", "answer": "a"}, "q"),
        ({"Question": "q", "A": "1"}, "q"),
        ({"problem": "p", "solution": "s"}, "p"),
        ({"input": "i", "target": "t"}, "i"),
        ({"task_id": 11, "text": "t", "code": "c"}, "t"),
        ({"task_id": "HumanEval/0", "prompt": "p", "test": "t"}, "p"),
        ({"sentence": "s"}, ""),
    ],
)
def test_the_question_of_a_row_has_many_names(row: dict[str, Any], question: str) -> None:
    assert question_of(row) == question


def test_the_split_is_the_one_that_has_most_of_the_items(cli: Cli, logs: Path, mini: Callable[[str], Any]) -> None:
    """A log of C-Eval's test split, in the columns of lm-evaluation-harness."""
    subject = mini("ceval").rows("test")[0]["group"]
    rows = [row for row in mini("ceval").rows("test") if row["group"] == subject][:2]
    file = next(logs.glob("samples_mmlu_misc*"))
    other = file.with_name(file.name.replace("mmlu_miscellaneous", f"ceval-valid_{subject}"))
    lines = [json.loads(line) for line in file.read_text().splitlines()][: len(rows)]
    for line, row in zip(lines, rows, strict=True):
        line["doc"] = {name: row[name] for name in ("question", "A", "B", "C", "D")}
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, err = cli("import", str(other))
    assert code == 0, err
    assert f"{len(rows)} of {len(rows)} samples matched" in err
    loaded = imported("ceval")
    assert loaded.manifest["split"] == "test"
    assert loaded.path.name == "ceval@imported-ceval-valid-test-mini"
    assert {record["group"] for record in loaded.records()} == {subject}
    code, _, err = cli("import", str(other), "--split", "val", "--output-dir", "others")
    assert f"0 of {len(rows)} samples matched" in err
    code, _, err = cli("import", str(other), "--split", "train")
    assert code == 2
    assert "ceval is evaluated on val or test" in err


def test_real_items_are_found_in_the_real_data(cli: Cli, logs: Path, real_data: Path) -> None:
    questions = [json.loads(line) for line in (real_data / "gsm8k" / "test.jsonl").read_text().splitlines()]
    change(of_gsm8k(logs), lambda row: row.update(doc=questions[1000 - row["doc_id"]]))
    code, _, err = cli("import", str(of_gsm8k(logs)), "--data-dir", str(real_data))
    assert code == 0, err
    assert "6 of 6 samples matched" in err
    loaded = imported("gsm8k")
    assert [record["doc_id"] for record in loaded.records()] == [str(number) for number in range(995, 1001)]
    assert loaded.manifest["mini"] is False


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gsm8k", "gsm8k"),
        ("gsm8k_cot", "gsm8k"),
        ("mmlu_anatomy", "mmlu"),
        ("mmlu_college_mathematics", "mmlu"),
        ("mmlu_pro_math", "mmlu"),
        ("cmmlu_agronomy", "cmmlu"),
        ("ceval-valid_accountant", "ceval"),
        ("hendrycks_math_algebra", "math"),
        ("minerva_math_prealgebra", "math"),
        ("bbh_cot_fewshot_boolean_expressions", "bbh"),
        ("humaneval_plus", "humaneval_plus"),
        ("humaneval_64_instruct", "humaneval"),
        ("gsm8k@qwen-mini", "gsm8k"),
    ],
)
def test_our_task_is_told_by_their_name(theirs: str, ours: str) -> None:
    log = Log(Path("f"), theirs, "t", "", (), {})
    assert _task_of(log, registry.find()) == ours


def test_files_of_one_group_are_one_run_and_those_of_two_are_two(entries: dict[str, registry.Entry]) -> None:
    log = Log(Path("f"), "mmlu_anatomy", "t", "", (), {})
    assert _base(log, entries["mmlu"]) == "mmlu"
    cot = replace(log, task="bbh_cot_fewshot_boolean_expressions")
    assert _base(cot, entries["bbh"]) == "bbh_cot_fewshot"
    assert _base(replace(log, task="gsm8k_cot"), entries["gsm8k"]) == "gsm8k_cot"
    groups = {"leaderboard": ["minerva_math"], "minerva_math": ["minerva_math_algebra"]}
    grouped = replace(log, task="minerva_math_algebra", results={"group_subtasks": groups})
    assert _base(grouped, entries["math"]) == "minerva_math"


def test_two_prompts_of_one_task_are_two_runs(cli: Cli, logs: Path) -> None:
    file = of_gsm8k(logs)
    other = shutil.copy(file, file.with_name(file.name.replace("gsm8k", "gsm8k_cot")))
    change(other, lambda row: row.update(prompt_hash="another"))
    code, _, err = cli("import", str(logs))
    assert code == 0, err
    names = sorted(path.name for path in Path("results").glob("*/gsm8k*"))
    assert names == ["gsm8k@imported-gsm8k_cot-mini", "gsm8k@lm-eval-mini"]


# ------------------------------------------------------------------------------------------- what our rules do not read


def test_several_answers_to_an_item_are_kept_but_read_by_their_rules_only(cli: Cli, logs: Path) -> None:
    change(of_gsm8k(logs), lambda row: row.update(resps=[[*row["resps"][0], "another"]]))
    code, _, err = cli("import", str(of_gsm8k(logs)))
    assert code == 0, err
    record = imported("gsm8k").records()[0]
    assert [output["text"] for output in record["outputs"]][1] == "another"
    assert set(record["verdicts"]) == {STRICT, FLEXIBLE}


def test_programs_are_not_run_at_import(cli: Cli, logs: Path, entries: dict[str, registry.Entry]) -> None:
    entry = entries["humaneval"]
    rows = find_dataset(entry.task.data, tasks=entry.folder, network=False).rows("test")
    file = renamed(logs, "humaneval")
    change(file, lambda row: row.update(doc=dict(rows[row["doc_id"]])))
    code, _, err = cli("import", str(file))
    assert code == 0, err
    loaded = imported("humaneval")
    assert [record["doc_id"] for record in loaded.records()] == [row["task_id"] for row in rows[:6]]
    assert set(loaded.metrics["rules"]) == {STRICT, FLEXIBLE}
    assert "pass_at" not in loaded.metrics


def test_a_metric_that_is_not_right_or_wrong_is_left_out_and_named(cli: Cli, logs: Path) -> None:
    def graded(row: dict[str, Any]) -> None:
        if row["filter"] == "flexible-extract":
            row["exact_match"] = 0.5

    change(of_gsm8k(logs), graded)
    code, _, err = cli("import", str(of_gsm8k(logs)))
    assert code == 0, err
    assert "gsm8k: metric exact_match,flexible-extract is not 0 or 1 for every sample; left out." in err
    assert FLEXIBLE not in imported("gsm8k").metrics["rules"]
    change(of_gsm8k(logs), lambda row: row.update(exact_match=0.5))
    code, _, err = cli("import", str(of_gsm8k(logs)), "--output-dir", "others")
    assert code == 2
    assert "expected a metric that is 0 or 1 for every sample" in err


# --------------------------------------------------------------------------------------------------- the other commands


def test_an_imported_run_is_scored_and_exported_like_any_other(cli: Cli, logs: Path, tmp_path: Path) -> None:
    cli("import", str(logs))
    loaded = imported("gsm8k")
    code, _, err = cli("score", "--task", "gsm8k", "--input", str(loaded.path), "--output", "out.jsonl")
    assert code == 0, err
    assert "gsm8k, lm-eval-strict: 2 of 6 correct" in err
    for layout in ("lm-eval", "eee", "csv", "parquet"):
        code, _, err = cli("export", "results", "--format", layout, "--output", layout)
        assert code == 0, err
    (aggregate,) = (tmp_path / "eee" / "data" / "gsm8k-mini").rglob("*[0-9a-f].json")
    assert json.loads(aggregate.read_text())["eval_library"] == {"name": "lm_eval", "version": "0.4.13"}
    assert set(loaded.samples()["rule"]) > {STRICT, FLEXIBLE}


def test_what_we_export_comes_back_with_the_same_verdicts(cli: Cli, scripted_results: Path, tmp_path: Path) -> None:
    runs = [path for path in scripted_results.glob("*/*@*") if "chat" not in path.name]
    code, _, err = cli("export", *map(str, runs), "--format", "lm-eval", "--output", "out")
    assert code == 0, err
    code, _, err = cli("import", str(tmp_path / "out" / "scripted-00000000"))
    assert code == 0, err
    assert err.count("6 of 6 samples matched") == 2
    for path in runs:
        before = load_run(path)
        after = imported(before.metrics["task"])
        assert after.score == before.metrics["micro"]["score"]
        records = {record["doc_id"]: record for record in after.records()}
        for record in before.records():
            again = records[record["doc_id"]]
            for rule, verdict in record["verdicts"].items():
                theirs = "acc,none" if rule == "choice" else f"exact_match,{rule}"
                assert again["verdicts"][f"lm-eval:{theirs}"] == verdict == again["verdicts"][rule]


# ------------------------------------------------------------------------------------------------------ what is refused


def without_results(logs: Path) -> None:
    next(logs.glob("results_*")).unlink()


def torn(logs: Path) -> None:
    file = of_gsm8k(logs)
    file.write_bytes(file.read_bytes()[:-40])


def short(logs: Path) -> None:
    file = of_gsm8k(logs)
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if '"doc_id": 5,' not in line))


def foreign(logs: Path) -> None:
    of_gsm8k(logs).write_text('{"id": "0", "output": "18"}\n')


def no_object(logs: Path) -> None:
    of_gsm8k(logs).write_text("[1, 2]\n")


def odd_responses(logs: Path) -> None:
    change(of_gsm8k(logs), lambda row: row.update(resps=[]))


def no_metric(logs: Path) -> None:
    change(of_gsm8k(logs), lambda row: row.pop("exact_match"))


def other_results(logs: Path) -> None:
    next(logs.glob("results_*")).write_text('{"results": [1]}')


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (without_results, 2, "beside it, which says what was run; found none"),
        (other_results, 2, "expected the results of lm-evaluation-harness, found other JSON"),
        (lambda logs: next(logs.glob("results_*")).write_text("{"), 5, "expected JSON, found a damaged file"),
        (torn, 5, "line 12: expected one JSON object, found a damaged line"),
        (short, 5, "expected 6 samples as results_"),
        (lambda logs: of_gsm8k(logs).write_text(""), 5, "expected samples, found an empty file"),
        (lambda logs: of_gsm8k(logs).write_bytes(b"\xff\xfe\x00"), 5, "line 1: expected one JSON object"),
        (foreign, 2, "line 1: expected a sample of lm-evaluation-harness, found no usable 'doc_id'"),
        (no_object, 2, "line 1: expected a sample of lm-evaluation-harness"),
        (odd_responses, 2, "document 0: expected responses and metrics as lm-evaluation-harness writes them"),
        (no_metric, 2, "document 0: expected responses and metrics"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_in_plain_lines(
    cli: Cli, logs: Path, damage: Callable[[Path], object], code: int, says: str
) -> None:
    file = of_gsm8k(logs)
    damage(logs)
    found, out, err = cli("import", str(file))
    assert (found, out) == (code, "")
    assert says in err
    assert len(err.strip().splitlines()) <= 3
    assert not Path("results").exists()


def test_names_that_tell_nothing_are_refused(cli: Cli, logs: Path, tmp_path: Path) -> None:
    for words, says in (
        (["nowhere.jsonl"], "expected a sample log of lm-evaluation-harness"),
        ([str(tmp_path)], "expected sample logs of lm-evaluation-harness"),
        ([str(logs / "samples_gsm8k_t.jsonl")], "cannot be read"),
        ([str(of_gsm8k(logs)), "--task", "gsm9k"], "Did you mean 'gsm8k'"),
    ):
        code, _, err = cli("import", *words)
        assert code == 2
        assert says in err
    file = renamed(logs, "sums")
    code, _, err = cli("import", str(file))
    assert code == 2
    assert "expected a task of ours in the name 'sums'" in err
    code, _, err = cli("import", str(file), "--task", "gsm8k")
    assert code == 0, err
    assert "gsm8k@lm-eval: 6 of 6 samples matched" in err
    for wanted, says in (("gsm8k@nothing", "Unknown protocol 'nothing' of gsm8k"), ("gsm8k@", "Expected TASK")):
        code, _, err = cli("import", str(file), "--task", wanted)
        assert code == 2
        assert says in err


def test_a_log_is_read_with_a_line_a_filter(logs: Path) -> None:
    log = read_log(of_gsm8k(logs))
    assert (log.task, len(log.documents)) == ("gsm8k", 6)
    first = log.documents[0]
    assert first.scores == {"exact_match,strict-match": 1.0, "exact_match,flexible-extract": 1.0}
    assert len(first.texts) == 1
    assert first.logprobs == []
    options = read_log(next(logs.glob("samples_mmlu_misc*"))).documents[0]
    assert options.texts == []
    assert len(options.logprobs) == 4
