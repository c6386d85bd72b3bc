"""Finished runs in the layouts of others: each module turns runs into files, by name and content, and writes nothing.

lm_eval.py   lm-evaluation-harness: results_<time>.json and samples_<task>_<time>.jsonl
eee.py       Every Eval Ever, schema 0.3.0: one JSON a run, and a JSON-lines file of its samples
hub.py       the Hugging Face hub: .eval_results/*.yaml of a model repository
frame.py     a pandas frame as Parquet or CSV
source.py    what they share: where a run comes from, when it ended, its prompts
"""
