"""Runs in the layouts of others: what stands in them, that the same run gives the same bytes, and what is refused."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eee
import pandas
import pytest
import yaml

from qwen_eval import load_run, registry, run
from qwen_eval.export import eee as eee_layout
from qwen_eval.export import frame, hub, lm_eval
from qwen_eval.export.source import Source, json_bytes, text_of
from qwen_eval.loaded import LoadedRun
from qwen_eval.prompts import chat
from qwen_eval.results import sealed

Cli = Callable[..., tuple[int, str, str]]
LOGS = Path(__file__).parent / "lm_eval_logs" / "toys__scripted"
FORMATS = ("lm-eval", "eee", "parquet", "csv")


@pytest.fixture
def made(scripted_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, LoadedRun]:
    """Runs of a scripted model by their names, in `results` below an empty folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scripted_results, "results")
    return {path.name: load_run(path) for path in sorted(Path("results").glob("*/*@*"))}


def lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().splitlines()]


def named(found: dict[str, bytes], pattern: str) -> bytes:
    (name,) = [name for name in found if re.search(pattern, name)]
    return found[name]


def edited(loaded: LoadedRun, **changes: object) -> Source:
    """The run with other metrics, as an export reads them."""
    file = loaded.path / "metrics.json"
    file.write_text(json.dumps({**loaded.metrics, **changes}))
    return Source(load_run(loaded.path))


# ---------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("layout", FORMATS)
def test_several_runs_are_exported_at_once_and_always_to_the_same_bytes(
    cli: Cli, made: dict[str, LoadedRun], tmp_path: Path, layout: str
) -> None:
    written = []
    for target in ("one", "two"):
        code, out, err = cli("export", "results", "--format", layout, "--output", target)
        assert (code, out) == (0, ""), err
        assert "3 run(s)" in err
        assert "cannot be built anew" not in err
        files = sorted(file for file in (tmp_path / target).rglob("*") if file.is_file())
        written.append({str(file.relative_to(tmp_path / target)): file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert not [name for name in written[0] if "partial" in name]


def test_a_run_that_is_named_twice_counts_once(cli: Cli, made: dict[str, LoadedRun], tmp_path: Path) -> None:
    (one, *_) = made.values()
    code, _, err = cli("export", str(one.path), str(tmp_path / one.path), "--format", "csv", "--output", "out")
    assert code == 0, err
    assert "1 run(s), 1 file(s)" in err
    assert len(pandas.read_csv(tmp_path / "out" / "samples.csv")) == len(one.samples())


def test_where_the_data_is_not_here_the_files_have_no_prompts_and_that_is_said(
    cli: Cli, made: dict[str, LoadedRun], tmp_path: Path
) -> None:
    path = made["gsm8k@lm-eval-mini"].path
    edited(made["gsm8k@lm-eval-mini"], prompts="0" * 16)
    code, _, err = cli("export", str(path), "--format", "lm-eval", "--output", "out")
    assert code == 0, err
    assert "its prompts cannot be built anew from the data, so the files have none" in err
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert lines(samples.read_bytes())[0]["arguments"] == {"gen_args_0": {"arg_0": "", "arg_1": {}}}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["export", "results"], 2, "Expected --format: one of lm-eval, eee"),
        (["export", "--format", "csv"], 2, "Missing argument"),
        (["export", "nowhere", "--format", "csv"], 2, "Expected a folder with finished runs"),
        (["export", "results", "--format", "xml"], 2, "'xml' is not one of"),
        (["export", "results", "--format", "csv", "--output", "file"], 2, "cannot be written"),
        (["export", "results", "--format", "hf"], 2, "expected a run on all 1,319 official items"),
    ],
)
def test_a_mistake_ends_in_plain_lines(
    cli: Cli, made: dict[str, LoadedRun], tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    (tmp_path / "file").write_text("")
    found, _, err = cli(*words)
    assert found == code
    assert says in err
    assert len(err.strip().splitlines()) <= 3


def test_a_damaged_run_is_refused(cli: Cli, made: dict[str, LoadedRun]) -> None:
    records = made["gsm8k@lm-eval-mini"].path / "records.jsonl"
    records.write_bytes(records.read_bytes().replace(b"correct", b"carrect", 1))
    code, _, err = cli("export", "results", "--format", "csv")
    assert code == 5
    assert "line 1: this record is damaged" in err


@pytest.mark.parametrize("layout", ["lm-eval", "eee", "hf"])
def test_a_run_without_a_score_is_published_nowhere_but_its_samples_are_tabled(
    cli: Cli, made: dict[str, LoadedRun], layout: str
) -> None:
    loaded = made["gsm8k@lm-eval-mini"]
    edited(loaded, score=None, errors=2, samples=8)
    code, _, err = cli("export", str(loaded.path), "--format", layout, "--output", "out")
    assert code == 4
    assert "expected a run with a score, found none (2 sample(s) ended in an error" in err
    code, _, err = cli("export", str(loaded.path), "--format", "csv", "--output", "out")
    assert code == 0, err


# ---------------------------------------------------------------------------------------------- lm-evaluation-harness


def test_their_files_have_the_keys_that_their_own_have(made: dict[str, LoadedRun]) -> None:
    found = lm_eval.files([Source(loaded) for loaded in made.values() if "chat" not in loaded.path.name])
    theirs = json.loads(next(LOGS.glob("results_*.json")).read_text())
    ours = json.loads(named(found, "results_"))
    # What their machine and tokenizer were, and what only they have: seeds of other generators, resampling.
    theirs_only = {"lm_eval_version", "upper_git_hash"}
    assert set(theirs) - theirs_only <= set(ours)
    for table in ("results", "groups", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes"):
        assert set(ours[table]) <= {*ours["results"]}
        assert type(ours[table]) is type(theirs[table])
    assert {"name", "alias", "sample_len"} <= set(ours["results"]["gsm8k@lm-eval-mini"])
    for kind, own in (("gsm8k@", "gsm8k_"), ("mmlu_elementary_mathematics@", "mmlu_elementary_mathematics_")):
        their_sample = lines(next(LOGS.glob(f"samples_{own}*")).read_bytes())[0]
        our_sample = lines(named(found, f"samples_{kind}"))[0]
        assert list(our_sample) == list(their_sample)
        for key, value in their_sample.items():
            assert type(our_sample[key]) is type(value), key
        assert set(our_sample["arguments"]) == set(their_sample["arguments"])
        assert set(our_sample["arguments"]["gen_args_0"]) == {"arg_0", "arg_1"}


def test_the_same_item_has_their_hashes_and_their_place(made: dict[str, LoadedRun]) -> None:
    """The logs in lm_eval_logs are theirs, of the same small set, without exemplars."""
    found = lm_eval.files([Source(made["gsm8k@lm-eval-mini"])])
    theirs = {each["doc_id"]: each for each in lines(next(LOGS.glob("samples_gsm8k_*")).read_bytes())}
    ours = [each for each in lines(named(found, "samples_")) if each["filter"] == "lm-eval-strict"]
    assert [each["doc_id"] for each in ours] == list(range(6)) == sorted(theirs)
    for each in ours:
        for key in ("doc", "doc_hash", "target", "target_hash"):
            assert each[key] == theirs[each["doc_id"]][key]
        prompt = each["arguments"]["gen_args_0"]["arg_0"]
        assert prompt.endswith(theirs[each["doc_id"]]["arguments"]["gen_args_0"]["arg_0"])
        assert each["prompt_hash"] == hashlib.sha256(prompt.encode()).hexdigest()
        assert each["arguments"]["gen_args_0"]["arg_1"] == {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "max_gen_toks": 512,
            "do_sample": False,
            "temperature": 0.0,
        }


def test_every_rule_is_a_filter_with_its_score_and_the_metric_of_each_sample(made: dict[str, LoadedRun]) -> None:
    loaded = made["gsm8k@lm-eval-mini"]
    found = lm_eval.files([Source(loaded)])
    results = json.loads(named(found, "results_"))["results"]["gsm8k@lm-eval-mini"]
    samples = lines(named(found, "samples_"))
    assert samples[0]["filter"] == loaded.metrics["rule"]
    records = {record["doc_id"]: record for record in loaded.records()}
    for rule, part in loaded.metrics["rules"].items():
        of_rule = [each for each in samples if each["filter"] == rule]
        assert sum(each["exact_match"] for each in of_rule) / len(of_rule) == part["score"]
        assert results[f"exact_match,{rule}"] == part["score"]
        for each in of_rule:
            verdict = records[str(each["doc_id"])]["verdicts"][rule]
            assert each["metrics"] == ["exact_match"]
            assert each["exact_match"] == float(verdict["correct"])
            assert each["filtered_resps"] == [verdict["extracted"] or "[invalid]"]
            assert each["resps"] == [[records[str(each["doc_id"])]["outputs"][0]["text"]]]


def test_their_standard_error_is_that_of_their_mean() -> None:
    # sqrt(sum of squares / (n - 1) / n), as lm_eval.api.metrics.mean_stderr: 0.2886751345948129 for 1, 1, 0, 0.
    assert lm_eval._standard_error([1, 1, 0, 0]) == pytest.approx(0.2886751345948129)
    assert lm_eval._standard_error([1]) == "N/A"


def test_subjects_are_tasks_of_a_group_and_count_their_own_items(made: dict[str, LoadedRun]) -> None:
    loaded = made["mmlu@qwen-mini"]
    found = lm_eval.files([Source(loaded)])
    results = json.loads(named(found, "results_"))
    subjects = sorted({record["group"] for record in loaded.records()})
    assert results["group_subtasks"] == {"mmlu@qwen-mini": [f"mmlu_{subject}@qwen-mini" for subject in subjects]}
    assert results["groups"]["mmlu@qwen-mini"]["acc,none"] == loaded.score
    assert results["groups"]["mmlu@qwen-mini"]["sample_len"] == 6
    for subject in subjects:
        samples = lines(named(found, f"samples_mmlu_{subject}@qwen-mini_"))
        records = [record for record in loaded.records() if record["group"] == subject]
        assert [each["doc_id"] for each in samples] == [int(each["doc_id"].split("/")[-1]) for each in records]
        for each, record in zip(samples, records, strict=True):
            assert [float(option[0]) for option in each["filtered_resps"]] == record["outputs"][0]["logprobs"]
            assert [argument["arg_1"] for argument in each["arguments"].values()] == [" A", " B", " C", " D"]
            assert each["acc"] == float(record["verdicts"]["choice"]["correct"])
        assert results["results"][f"mmlu_{subject}@qwen-mini"]["acc,none"] == loaded.metrics["groups"][subject]["score"]
        rows = sum(sample.group == subject for sample in Source(loaded).plan.samples)  # type: ignore[union-attr]
        assert results["n-samples"][f"mmlu_{subject}@qwen-mini"] == {"original": rows, "effective": len(records)}


def test_a_number_at_the_end_of_our_id_is_their_doc_id_where_it_tells_items_apart() -> None:
    def places(*ids: str) -> list[int]:
        return lm_eval._places([[{"doc_id": each}] for each in ids])

    assert places("anatomy/test/3", "anatomy/test/5") == [3, 5]
    assert places("7", "12") == [7, 12]
    assert places("b/1", "c/1") == [0, 1]
    assert places("first", "2") == [0, 1]


def test_repeats_are_responses_of_one_request_and_their_mean_is_the_metric(made: dict[str, LoadedRun]) -> None:
    loaded = made["gsm8k@qwen-chat-mini"]
    found = lm_eval.files([Source(loaded)])
    samples = [each for each in lines(named(found, "samples_")) if each["filter"] == "qwen-chat"]
    assert len(samples) == 4
    for each in samples:
        records = [record for record in loaded.records() if record["doc_id"] == str(each["doc_id"])]
        assert each["resps"] == [[record["outputs"][0]["text"] for record in records]]
        assert len(each["filtered_resps"]) == 3
        assert each["exact_match"] == sum(record["verdicts"]["qwen-chat"]["correct"] for record in records) / 3
        messages = json.loads(each["arguments"]["gen_args_0"]["arg_0"])
        assert [message["role"] for message in messages] == ["system", "user"]
        assert messages[1]["content"] == each["doc"]["question"]
        assert each["arguments"]["gen_args_0"]["arg_1"]["do_sample"] is True
    assert json.loads(named(found, "results_"))["configs"]["gsm8k@qwen-chat-mini"]["repeats"] == 3


def test_the_time_is_that_of_the_run_and_of_the_latest_where_there_are_several(made: dict[str, LoadedRun]) -> None:
    for place, loaded in enumerate(made.values()):
        os.utime(loaded.path / "metrics.json", ns=(0, 1_700_000_000_123_456_000 + place * 10**9))
    first, *_ = made.values()
    assert next(iter(lm_eval.files([Source(first)]))) == "scripted-00000000/results_2023-11-14T22-13-20.123456.json"
    found = lm_eval.files([Source(loaded) for loaded in made.values()])
    assert {name.rpartition("_")[2].partition(".json")[0] for name in found} == {"2023-11-14T22-13-22.123456"}
    assert json.loads(named(found, "results_"))["date"] == 1_700_000_002.123456


def test_the_same_task_twice_would_be_one_file_and_is_refused(
    cli: Cli, made: dict[str, LoadedRun], scripted: dict[str, object]
) -> None:
    run(task="gsm8k@lm-eval", model="toy", limit=3, output_dir="other")
    code, _, err = cli("export", "results", "other", "--format", "lm-eval")
    assert code == 2
    assert "gsm8k@lm-eval-mini of scripted is here twice" in err
    assert not Path("export").exists(), "all or nothing"
    code, _, err = cli("export", "results", "other", "--format", "csv")
    assert code == 0, err


def test_half_a_pair_never_makes_a_file_that_others_cannot_read(made: dict[str, LoadedRun]) -> None:
    loaded = made["gsm8k@lm-eval-mini"]
    records = loaded.records()
    records[0]["outputs"][0]["text"] = "half \ud83d a pair"
    (loaded.path / "records.jsonl").write_bytes("".join(map(sealed, records)).encode("utf-8", "surrogatepass"))
    source = Source(load_run(loaded.path))
    assert lines(named(lm_eval.files([source]), "samples_"))[0]["resps"] == [["half ? a pair"]]
    assert "half ? a pair" in named(eee_layout.files([source]), "_samples").decode()
    read = pandas.read_parquet(io.BytesIO(frame.parquet([source])["samples.parquet"]))
    assert read["output"][0] == "half ? a pair"
    assert json_bytes("\ud83d") == b'"?"'


def test_code_is_scored_as_pass_at_k(made: dict[str, LoadedRun], entries: dict[str, registry.Entry]) -> None:
    """A run of HumanEval, written by hand: no sandbox is needed to export one."""
    records = [
        {
            "doc_id": f"HumanEval/{number}",
            "repeat": repeat,
            "group": "",
            "doc": {"task_id": f"HumanEval/{number}", "prompt": "def f():\n"},
            "target": "    return 1\n",
            "doc_hash": "0",
            "prompt_hash": "0",
            "outputs": [
                {"text": "    return 1", "finish": "end", "prompt_tokens": 3, "new_tokens": 4, "cut_tokens": 0},
                {"program": "p", "passed": repeat == 0, "result": "passed", "judge": "split", "official": None},
            ],
            "verdicts": {"standard": {"correct": repeat == 0, "extracted": "def f():\n    return 1"}},
        }
        for number in range(2)
        for repeat in range(2)
    ]
    part = {"correct": 2, "n": 2, "score": 0.5, "low": 0.1, "high": 0.9}
    metrics = {
        **made["gsm8k@lm-eval-mini"].metrics,
        "task": "humaneval",
        "protocol": "standard",
        "rule": "standard",
        "score": 0.5,
        "n": 2,
        "samples": 2,
        "repeats": 2,
        "rules": {"standard": part},
        "pass_at": {"1": 0.5, "2": 1.0},
        "dataset": {"name": "humaneval", "fingerprints": {"test": "0"}},
    }
    folder = Path("code/humaneval@standard")
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(map(sealed, records)))
    for name in ("metrics.json", "manifest.json"):
        (folder / name).write_text(json.dumps(metrics))
    found = lm_eval.files([Source(load_run(folder))])
    results = json.loads(named(found, "results_"))["results"]["humaneval@standard-mini"]
    assert (results["pass@1,standard"], results["pass@2,standard"]) == (0.5, 1.0)
    samples = lines(named(found, "samples_"))
    assert [(each["doc_id"], each["pass@1"]) for each in samples] == [(0, 0.5), (1, 0.5)]
    aggregate = json.loads(named(eee_layout.files([Source(load_run(folder))]), r"\d\.json|[a-f]\.json"))
    assert aggregate["evaluation_results"][0]["metric_config"]["metric_id"] == "pass_at_k"
    assert aggregate["evaluation_results"][0]["metric_config"]["metric_parameters"]["k"] == 1
    assert not list(eee.faults(aggregate, eee.AGGREGATE))


# ---------------------------------------------------------------------------------------------------- Every Eval Ever


def test_every_file_meets_the_schema_and_the_two_files_of_a_run_belong_together(made: dict[str, LoadedRun]) -> None:
    found = eee_layout.files([Source(loaded) for loaded in made.values()])
    assert len(found) == 6
    for name, content in found.items():
        if name.endswith("_samples.jsonl"):
            continue
        aggregate = json.loads(content)
        assert list(eee.faults(aggregate, eee.AGGREGATE)) == []
        of_samples = aggregate["detailed_evaluation_results"]
        assert of_samples["file_path"] == name.replace(".json", "_samples.jsonl")
        samples = found[of_samples["file_path"]]
        assert of_samples["checksum"] == hashlib.sha256(samples).hexdigest()
        rows = lines(samples)
        assert of_samples["total_rows"] == len(rows)
        ids = {result["evaluation_result_id"]: result for result in aggregate["evaluation_results"]}
        for row in rows:
            assert list(eee.faults(row, eee.INSTANCE)) == []
            assert row["evaluation_id"] == aggregate["evaluation_id"]
            assert row["model_id"] == aggregate["model_info"]["id"]
        for result_id, result in ids.items():
            own = [row["evaluation"]["score"] for row in rows if row["evaluation_result_id"] == result_id]
            assert sum(own) / len(own) == pytest.approx(result["score_details"]["score"])
            interval = result["score_details"]["uncertainty"]["confidence_interval"]
            assert interval["lower"] - 1e-9 <= result["score_details"]["score"] <= interval["upper"]


def test_the_checker_of_the_schema_sees_what_is_wrong(made: dict[str, LoadedRun]) -> None:
    found = eee_layout.files([Source(made["gsm8k@lm-eval-mini"])])
    aggregate = json.loads(named(found, r"[0-9a-f]\.json"))
    aggregate["schema_version"] = "0.2.0"
    aggregate["extra"] = 1
    aggregate["evaluation_results"][0]["metric_config"].pop("min_score")
    aggregate["evaluation_results"][0]["generation_config"]["generation_args"]["temperature"] = "0"
    assert len(list(eee.faults(aggregate, eee.AGGREGATE))) == 4


def test_an_item_carries_prompt_options_and_what_was_read(made: dict[str, LoadedRun]) -> None:
    found = eee_layout.files([Source(made["mmlu@qwen-mini"])])
    row, record = lines(named(found, "_samples"))[0], made["mmlu@qwen-mini"].records()[0]
    assert row["sample_id"] == record["doc_id"]
    assert row["input"]["raw"] == record["doc"]["question"]
    assert row["input"]["formatted"].endswith("Answer:")
    assert row["input"]["choices"] == [record["doc"][letter] for letter in "ABCD"]
    assert row["input"]["reference"] == [record["target"]]
    assert row["output"]["raw"] == [record["verdicts"]["choice"]["extracted"]]
    assert json.loads(row["metadata"]["logprobs"]) == record["outputs"][0]["logprobs"]
    chatted = lines(named(eee_layout.files([Source(made["gsm8k@qwen-chat-mini"])]), "_samples"))
    assert [each["metadata"]["repeat"] for each in chatted[:: len(made["gsm8k@qwen-chat-mini"].metrics["rules"])]][
        :3
    ] == [
        "0",
        "1",
        "2",
    ]
    assert chatted[0]["token_usage"] == {"input_tokens": 5, "output_tokens": 4, "total_tokens": 9}
    assert json.loads(chatted[0]["input"]["formatted"])[1]["content"] == chatted[0]["input"]["raw"]


def test_a_source_is_named_by_what_is_known_of_it(made: dict[str, LoadedRun]) -> None:
    def source_data(loaded: LoadedRun, **changes: object) -> dict[str, Any]:
        found = eee_layout.files([edited(loaded, **changes)])
        aggregate = json.loads(named(found, r"[0-9a-f]\.json"))
        assert not list(eee.faults(aggregate, eee.AGGREGATE))
        return dict(aggregate["evaluation_results"][0]["source_data"], model=aggregate["model_info"]["id"])

    loaded = made["gsm8k@lm-eval-mini"]
    small = source_data(loaded)
    assert (small["source_type"], small["dataset_name"], small["model"]) == ("other", "gsm8k (mini)", "local/scripted")
    hub_model = {**loaded.metrics["model"], "name": "Qwen/Qwen2.5-7B"}
    real = source_data(loaded, mini=False, model=hub_model)
    assert (real["source_type"], real["hf_repo"], real["model"]) == ("hf_dataset", "openai/gsm8k", "Qwen/Qwen2.5-7B")
    math = source_data(loaded, mini=False, task="math")
    assert (math["source_type"], math["url"]) == ("url", ["https://github.com/hendrycks/math"])


# ------------------------------------------------------------------------------------------------------------ the hub


def test_a_whole_run_becomes_an_entry_that_the_hubs_own_library_reads(made: dict[str, LoadedRun]) -> None:
    from huggingface_hub import parse_eval_result_entries
    from huggingface_hub._eval_results import eval_result_entries_to_yaml

    loaded = made["gsm8k@lm-eval-mini"]
    split = registry.load("gsm8k", registry.find()).task.data.splits["test"]
    whole: dict[str, Any] = {
        "mini": False,
        "n": split.rows,
        "score": 0.4123,
        "low": 0.386,
        "high": 0.439,
        "dataset": {"name": "gsm8k", "fingerprints": {"test": split.fingerprint}},
        "samples": 6,
    }
    os.utime(loaded.path / "metrics.json", ns=(0, 1_700_000_000_000_000_000))
    source = edited(loaded, **whole)
    os.utime(loaded.path / "metrics.json", ns=(0, 1_700_000_000_000_000_000))
    found = hub.files([source])
    assert list(found) == ["scripted-00000000/.eval_results/gsm8k-lm-eval.yaml"]
    data = yaml.safe_load(found["scripted-00000000/.eval_results/gsm8k-lm-eval.yaml"])
    (entry,) = parse_eval_result_entries(data)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 41.23)
    assert entry.date == "2023-11-14T22:13:20Z"
    assert entry.notes is not None
    assert "gsm8k@lm-eval, 5-shot, rule lm-eval-strict" in entry.notes
    assert "38.6 to 43.9" in entry.notes
    assert eval_result_entries_to_yaml([entry]) == data


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 1318}, "expected a run on all 1,319 official items, found 1,318"),
        ({"dataset": {"name": "gsm8k", "fingerprints": {"test": "other"}}}, "found 1,319 of other data"),
        ({"task": "math"}, "expected a task whose dataset is on the hub, found math"),
        ({"task": "my_own"}, "expected a task whose dataset is on the hub, found my_own"),
    ],
)
def test_what_is_no_leaderboards_is_refused(
    cli: Cli, made: dict[str, LoadedRun], changes: dict[str, object], says: str
) -> None:
    loaded = made["gsm8k@lm-eval-mini"]
    split = registry.load("gsm8k", registry.find()).task.data.splits["test"]
    official = {"name": "gsm8k", "fingerprints": {"test": split.fingerprint}}
    edited(loaded, **{"mini": False, "n": 1319, "dataset": official, **changes})
    code, _, err = cli("export", str(loaded.path), "--format", "hf")
    assert code == 2
    assert says in err


# ---------------------------------------------------------------------------------------------------------- the frame


def test_the_frame_has_a_row_a_sample_repeat_and_rule_in_both_formats(made: dict[str, LoadedRun]) -> None:
    sources = [Source(loaded) for loaded in made.values()]
    parquet = pandas.read_parquet(io.BytesIO(frame.parquet(sources)["samples.parquet"]))
    rows = list(csv.DictReader(io.StringIO(frame.csv(sources)["samples.csv"].decode())))
    assert len(parquet) == len(rows) == sum(len(loaded.samples()) for loaded in made.values())
    assert list(parquet.columns) == list(rows[0])
    assert list(parquet.columns)[:9] == [
        "model", "fingerprint", "task", "protocol", "split", "mini", "sample", "repeat", "group",
    ]  # fmt: skip
    keys = ["fingerprint", "task", "protocol", "sample", "repeat", "rule"]
    assert not parquet.duplicated(keys).any()
    for loaded in made.values():
        own = parquet[(parquet["task"] == loaded.metrics["task"]) & (parquet["protocol"] == loaded.metrics["protocol"])]
        for rule, part in loaded.metrics["rules"].items():
            assert own[own["rule"] == rule]["correct"].mean() == pytest.approx(part["score"])
    assert [row["correct"] for row in rows] == [str(value) for value in parquet["correct"]]


def test_a_conversation_as_text_is_the_list_of_its_messages() -> None:
    assert text_of("plain") == "plain"
    assert json.loads(text_of(chat("你好")))[1] == {"role": "user", "content": "你好"}
