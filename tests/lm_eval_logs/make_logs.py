"""Writes the logs beside this file anew: lm-evaluation-harness 0.4.13 on our small sets, answered by a script.

    PYTHONPATH=. HF_HUB_OFFLINE=1 .venv-lm-eval/bin/python tests/lm_eval_logs/make_logs.py

The answers are right, right without the marker, wrong, empty, in turn. Needs no qwen_eval; rewrites paths out of the files.
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

HERE = Path(__file__).resolve().parent
MINI = HERE.parent.parent / "tasks" / "_mini"
SUBJECTS = ("elementary_mathematics", "miscellaneous")


class Scripted(LM):
    """Knows the golds; what it says of an item follows from its number."""

    def generate_until(self, requests, disable_tqdm=False):
        said = []
        for request in requests:
            number = request.doc["answer"].rpartition("#### ")[2]
            said.append(
                (f" So it is {number}.\n#### {number}", f" The answer is {number}", " #### 123456", "")[
                    request.doc_id % 4
                ]
            )
        return said

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(-float((request.doc_id * 5 + request.idx * 3) % 7) - 0.25, False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def main(target: Path, gsm8k: Path, limit: int | None) -> None:
    """Write the logs of GSM8K (from a folder with test.jsonl) and two subjects of the small MMLU."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "gsm8k.yaml").write_text(GSM8K.format(file=gsm8k / "test.jsonl"))
        for subject in SUBJECTS:
            rows = []
            with (MINI / "mmlu" / "test" / f"{subject}_test.csv").open(newline="") as stream:
                for row in csv.reader(stream):
                    rows.append(
                        {"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5])}
                    )
            (folder / f"{subject}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / f"mmlu_{subject}.yaml").write_text(MMLU.format(file=folder / f"{subject}.jsonl", subject=subject))
        (folder / "mmlu.yaml").write_text(GROUP.format(tasks=", ".join(f"mmlu_{subject}" for subject in SUBJECTS)))
        tracker = EvaluationTracker(output_path=str(target))
        tasks = TaskManager(include_path=str(folder), include_defaults=False)
        result = simple_evaluate(
            Scripted(),
            model_args="pretrained=toys/scripted",
            tasks=["gsm8k", "mmlu"],
            task_manager=tasks,
            limit=limit,
            evaluation_tracker=tracker,
            bootstrap_iters=0,
        )
        samples = result.pop("samples")
        result.pop("pretty_env_info", None)
        tracker.general_config_tracker.log_experiment_args("toy", "pretrained=toys/scripted", None, None, False)
        tracker.save_results_aggregated(results=result, samples=samples)
        for task, lines in samples.items():
            tracker.save_results_samples(task_name=task, samples=lines)
    for file in target.rglob("*.json"):
        file.write_text(file.read_text().replace(str(folder), "/data").replace(str(gsm8k), "/data"))


GSM8K = """
task: gsm8k
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
generation_kwargs: {{until: ["Question:"], do_sample: false, temperature: 0.0}}
filter_list:
  - name: strict-match
    filter: [{{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}, {{function: take_first}}]
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"}}
      - {{function: take_first}}
metadata: {{version: 3.0}}
"""
MMLU = """
task: mmlu_{subject}
task_alias: {subject}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
GROUP = """
group: mmlu
task: [{tasks}]
aggregate_metric_list: [{{metric: acc, weight_by_size: true}}]
metadata: {{version: 2}}
"""

if __name__ == "__main__":
    gsm8k = Path(sys.argv[2]) if len(sys.argv) > 2 else MINI / "gsm8k"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE, gsm8k, None if len(sys.argv) > 2 else 6)
