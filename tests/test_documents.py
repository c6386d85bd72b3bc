"""What the documents say follows from the code."""

import re
from pathlib import Path

import pytest

from qwen_eval import errors
from qwen_eval.gating import Allowance, Policy, read_policy
from qwen_eval.sandbox.enclosure import Limits
from qwen_eval.stats import detectable_difference

ROOT = Path(__file__).resolve().parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "README_CN.md"])
def test_every_error_stands_in_the_table_of_exit_codes(name: str) -> None:
    found = {error: int(code) for code, error in re.findall(r"^\| (\d+) \| `(\w+)` \|", text(name), re.MULTILINE)}
    kinds = {each: getattr(errors, each) for each in errors.__all__ if isinstance(getattr(errors, each), type)}
    assert found == {
        name: kind.exit_code for name, kind in kinds.items() if name not in ("QwenEvalError", "MissingError")
    }


def test_the_detectable_drops_of_the_gates_page() -> None:
    rows = re.findall(
        r"^\| \w+ \| ([\d,]+) \| ([\d.]+)(?: points)? \| ([\d.]+) \| ([\d.]+) \|$", text("GATE.md"), re.MULTILINE
    )
    assert len(rows) == 3
    for items, *figures in rows:
        n = int(items.replace(",", ""))
        for figure, discordance in zip(figures, (0.02, 0.05, 0.1), strict=True):
            digits = len(figure.partition(".")[2])
            expected = 100 * detectable_difference(n, discordance=discordance)
            assert float(figure) == pytest.approx(expected, abs=0.51 * 10**-digits)


def test_the_policy_of_the_gates_page_is_read(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(alpha:.*?)```", text("GATE.md"), re.DOTALL)
    (tmp_path / "gate.yaml").write_text(example)
    policy = read_policy(tmp_path / "gate.yaml")
    assert policy.tasks["humaneval"] == Allowance(max_drop=0.04, tier="advisory", min_items=100)
    assert policy.alpha == Policy().alpha


def test_the_limits_of_the_sandboxs_page() -> None:
    limits, page = Limits(), text("SANDBOX.md")
    assert f"{limits.memory >> 30} GiB resident" in page
    assert f"{limits.address_space >> 30} GiB of addresses" in page
    assert f"| {limits.processes} |" in page
    assert f"{limits.disk >> 20} MiB and {limits.files:,} files" in page
    assert f"{limits.descriptors} open ones" in page


def test_both_readmes_name_the_same_flags_and_pages() -> None:
    english, chinese = ({*re.findall(r"`(--[a-z-]+)", text(name))} for name in ("README.md", "README_CN.md"))
    assert english == chinese
    links = [{*re.findall(r"\]\((?!README)([\w/.#-]+)\)", text(name))} for name in ("README.md", "README_CN.md")]
    assert links[0] == links[1]
    for link in links[0]:
        assert (ROOT / link.partition("#")[0]).exists(), link
