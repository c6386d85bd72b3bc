"""The house stays as it was drawn: arrows point one way, and looking around costs next to nothing."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each part may import of ours. A longer name wins over a shorter one.
MAY_IMPORT = {
    "qwen_eval": {"qwen_eval.api"},
    "qwen_eval.errors": set(),
    "qwen_eval.paths": set(),
    "qwen_eval.stats": set(),
    "qwen_eval.task": set(),
    "qwen_eval.prompts": {"qwen_eval.errors", "qwen_eval.task"},
    "qwen_eval.wheels": {"qwen_eval.errors"},
    "qwen_eval.vocabulary": {"qwen_eval.errors", "qwen_eval.paths", "qwen_eval.wheels"},
    "qwen_eval.scorers": {"qwen_eval.scorers", "qwen_eval.task", "qwen_eval.vocabulary"},
    "qwen_eval.multiple_choice": {"qwen_eval.prompts", "qwen_eval.scorers", "qwen_eval.task"},
    "qwen_eval.code_interpreter": {"qwen_eval.prompts", "qwen_eval.scorers", "qwen_eval.task"},
    "qwen_eval.readers": {"qwen_eval.errors"},
    "qwen_eval.fetch": {"qwen_eval.errors", "qwen_eval.paths", "qwen_eval.task", "qwen_eval.wheels"},
    "qwen_eval.data": {"qwen_eval.errors", "qwen_eval.fetch", "qwen_eval.paths", "qwen_eval.readers", "qwen_eval.task"},
    "qwen_eval.registry": {"qwen_eval.errors", "qwen_eval.paths", "qwen_eval.task"},
    "qwen_eval.results": {"qwen_eval.errors", "qwen_eval.task"},
    "qwen_eval.scoring": {"qwen_eval.results", "qwen_eval.scorers", "qwen_eval.stats", "qwen_eval.task"},
    "qwen_eval.models": {
        "qwen_eval.errors",
        "qwen_eval.models",
        "qwen_eval.paths",
        "qwen_eval.prompts",
        "qwen_eval.task",
        "qwen_eval.vocabulary",
        "qwen_eval.wheels",
    },
    "qwen_eval.paired": {"qwen_eval.errors", "qwen_eval.results", "qwen_eval.stats"},
    "qwen_eval.gating": {"qwen_eval.errors", "qwen_eval.paired", "qwen_eval.stats"},
    "qwen_eval.report": set(),
    "qwen_eval.report.tables": {"qwen_eval.report.perplexity"},
    "qwen_eval.report.verdict": {"qwen_eval.gating", "qwen_eval.paired", "qwen_eval.report.tables", "qwen_eval.stats"},
    "qwen_eval.profile": {"qwen_eval.errors", "qwen_eval.models", "qwen_eval.task"},
    "qwen_eval.report.plots": {"qwen_eval.errors", "qwen_eval.profile", "qwen_eval.report.perplexity"},
    "qwen_eval.report.profiles": {"qwen_eval.profile", "qwen_eval.report.tables", "qwen_eval.reported"},
    "qwen_eval.report.precision": {"qwen_eval.loaded", "qwen_eval.report.perplexity", "qwen_eval.report.tables"},
    "qwen_eval.report.models": {"qwen_eval.report.comparison", "qwen_eval.report.tables"},
    "qwen_eval.report.comparison": {"qwen_eval.report.tables", "qwen_eval.reported"},
    "qwen_eval.reported": {"qwen_eval.errors", "qwen_eval.paths"},
    "qwen_eval.plan": {"qwen_eval.data", "qwen_eval.errors", "qwen_eval.results", "qwen_eval.task"},
    "qwen_eval.runner": {
        "qwen_eval.errors",
        "qwen_eval.models.base",
        "qwen_eval.plan",
        "qwen_eval.results",
        "qwen_eval.sandbox",
        "qwen_eval.scoring",
        "qwen_eval.task",
    },
    "qwen_eval.sandbox": {"qwen_eval.errors", "qwen_eval.sandbox"},
    "qwen_eval.loaded": {"qwen_eval.errors", "qwen_eval.results"},
    "qwen_eval.matching": {"qwen_eval.task"},
    "qwen_eval.lm_eval": {"qwen_eval.errors"},
    "qwen_eval.importing": {
        "qwen_eval.data",
        "qwen_eval.errors",
        "qwen_eval.lm_eval",
        "qwen_eval.matching",
        "qwen_eval.plan",
        "qwen_eval.registry",
        "qwen_eval.results",
        "qwen_eval.scoring",
        "qwen_eval.task",
    },
    "qwen_eval.export": {
        "qwen_eval.data",
        "qwen_eval.errors",
        "qwen_eval.export",
        "qwen_eval.loaded",
        "qwen_eval.matching",
        "qwen_eval.plan",
        "qwen_eval.registry",
        "qwen_eval.results",
        "qwen_eval.task",
    },
    "qwen_eval.commands": {"qwen_eval"},
    "qwen_eval.api": {
        "qwen_eval.commands",
        "qwen_eval.errors",
        "qwen_eval.gating",
        "qwen_eval.loaded",
        "qwen_eval.paired",
        "qwen_eval.report.comparison",
    },
    "qwen_eval.cli": {"qwen_eval.commands", "qwen_eval.errors", "qwen_eval"},
    "qwen_eval.__main__": {"qwen_eval.cli"},
    "tasks": {
        "qwen_eval.code_interpreter",
        "qwen_eval.multiple_choice",
        "qwen_eval.prompts",
        "qwen_eval.scorers",
        "qwen_eval.task",
    },
}


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            # `from qwen_eval import prompts` imports the module prompts.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "qwen_eval" else {node.module}
    return {name for name in found if name.split(".")[0] == "qwen_eval"}


def allowed(module: str, imported: str) -> bool:
    rule = max((name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")), key=len)
    mine = MAY_IMPORT[rule]
    return imported == "qwen_eval.__version__" or any(f"{imported}.".startswith(f"{name}.") for name in mine)


FILES = sorted([*(ROOT / "qwen_eval").rglob("*.py"), *(ROOT / "tasks").glob("*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_arrow_points_back(file: Path) -> None:
    parts = file.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts).removesuffix(".__init__")
    wrong = sorted(name for name in imports(file) if not allowed(module, name))
    assert not wrong, f"{module} may not import {', '.join(wrong)}"


def test_the_arrow_test_sees_an_arrow_that_points_back() -> None:
    assert not allowed("qwen_eval.scorers.numbers", "qwen_eval.models.base")
    assert not allowed("tasks.gsm8k", "qwen_eval.runner")
    assert not allowed("qwen_eval.stats", "qwen_eval.task")
    assert allowed("tasks.gsm8k", "qwen_eval.scorers.numbers")


@pytest.mark.parametrize("words", [["--help"], ["tasks"], ["data"], ["tasks", "show", "gsm8k@qwen", "--sample", "0"]])
def test_looking_around_imports_nothing_heavy_and_is_quick(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['qwen_eval', *{words!r}]\n"
        "from qwen_eval.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "QWEN_EVAL_HOME": str(tmp_path), "QWEN_EVAL_DATA": str(ROOT / "tasks" / "_none")}
        if words[0] != "tasks"
        else {"PYTHONPATH": str(ROOT), "QWEN_EVAL_HOME": str(made_up_cache(tmp_path))},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    if words[0] in ("--help", "tasks") and len(words) == 1:
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert spent < 0.4, f"{spent:.2f} s of CPU"


def made_up_cache(folder: Path) -> Path:
    """A cache that holds GSM8K with made-up rows, so that a prompt can be shown without any network."""
    import json

    target = folder / "data" / "gsm8k"
    target.mkdir(parents=True)
    row = json.dumps({"question": "1+1?", "answer": "#### 2"})
    (target / "test.jsonl").write_text(f"{row}\n" * 1319)
    (target / "train.jsonl").write_text(f"{row}\n" * 7473)
    return folder
