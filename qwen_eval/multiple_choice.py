"""What multiple-choice benchmarks with subjects share: MMLU, C-Eval and CMMLU differ in texts, not in structure.

A row has a question, four options `A` … `D` and the letter of the right one; each subject is a file. A base protocol
shows exemplars and compares the log-probabilities of the letters; a chat protocol generates and reads a letter from
the reply. Exemplars are the first dev rows of the item's own subject.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from qwen_eval import prompts
from qwen_eval.prompts import LETTERS
from qwen_eval.scorers import choice
from qwen_eval.task import Choose, Generate, LeftCut, Protocol, Row, Rows, Rule, Sample, Verdict

__all__ = [
    "BARE",
    "SPACED",
    "chat",
    "chinese_chat_item",
    "chinese_item",
    "chinese_lm_eval_item",
    "choose",
    "filled",
    "lettered_rules",
    "protocols",
    "rounds",
    "samples",
]

Build = Callable[[Rows, int], Callable[[Sample], Choose | Generate]]
Text = Callable[[Row], str]

# The option tokens: after "Answer:" the natural continuation is the *spaced* letter, after 答案： the bare one.
# " A" and "A" are different tokens; swapping them silently ruins a score.
SPACED = tuple(f" {letter}" for letter in LETTERS)
BARE = LETTERS


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample; its id is `subject/split/row`, its gold the letter ("" where the split has no answers)."""
    return [
        Sample(f"{row['group']}/{split}/{row['row']}", row, row.get("answer", ""), row["group"])
        for row in dataset.rows(split)
    ]


def lettered_rules(
    chat_rule: Callable[[str, str, Mapping[str, str]], Verdict],
) -> dict[str, Rule]:
    """The rules over a reply: the benchmark's own, which sees question and options, and the first capital letter."""
    return {
        "qwen-chat": lambda output, sample: chat_rule(output, sample.gold, sample.row),
        "first-capital": lambda output, sample: choice.first_capital(output, sample.gold),
    }


# ------------------------------------------------------------------------------------------------------------- building


def choose(
    item: Text,
    *,
    options: Sequence[str],
    header: Callable[[str], str] = lambda subject: "",
    between: str = "\n\n",
    before_item: str | None = None,
) -> Build:
    """Build a base prompt: header once, exemplars with their letter, the item; the options are what is compared.

    `item` renders a row up to its letter, `header` a subject. `between` follows every exemplar; `before_item`, where it
    is given, takes its place after the last one.
    """

    def build(dataset: Rows, shots: int) -> Callable[[Sample], Choose]:
        shown: dict[str, str] = {}
        for subject, rows in _exemplars(dataset, shots).items():
            parts = [item(row) + options[LETTERS.index(row["answer"])] for row in rows]
            shown[subject] = between.join(parts) + (between if before_item is None else before_item)

        def request(sample: Sample) -> Choose:
            start = header(sample.group) + shown.get(sample.group, "")
            return Choose(prompt=start + item(sample.row), options=tuple(options))

        return request

    return build


def chat(text: Text) -> Build:
    """Build a 0-shot conversation: one user turn after the default system turn."""
    return lambda dataset, shots: lambda sample: Generate(prompt=prompts.chat(text(sample.row)))


def rounds(user: Text, assistant: Text, *, asked: Text | None = None) -> Build:
    """Build OpenCompass' few-shot conversation: every exemplar a round. `asked` is the last turn where it differs."""

    def build(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
        shown = {
            subject: [(user(row), assistant(row)) for row in rows]
            for subject, rows in _exemplars(dataset, shots).items()
        }

        def request(sample: Sample) -> Generate:
            return Generate(prompt=prompts.opencompass_chat(shown.get(sample.group, ()), (asked or user)(sample.row)))

        return request

    return build


def filled(template: str, row: Row, columns: Sequence[str]) -> str:
    """Fill `{column}` fields one after the other, as OpenCompass does.

    A text that was filled in is searched again: a question that contains `{A}` (from LaTeX such as `\\overline{A}`)
    gets the text of option A pasted in. The published prompts have this defect, so ours have it too.
    """
    for column in columns:
        template = template.replace(f"{{{column}}}", row[column])
    return template


# ------------------------------------------------------------------------------- what C-Eval and CMMLU have in common


def chinese_item(row: Row) -> str:
    """An item of Qwen's base prompt: full-width colons, no header, no space before the letter."""
    return f"问题：{row['question']}\n{prompts.lettered(row)}\n答案："


def chinese_chat_item(row: Row) -> str:
    """The user turn of Qwen's 0-shot chat prompt: no instruction."""
    return f"{row['question']}\n\n{prompts.lettered(row)}\n"


def chinese_lm_eval_item(row: Row) -> str:
    """An item of lm-evaluation-harness: no prefix, the question stripped."""
    return f"{row['question'].strip()}\n{prompts.lettered(row)}\n答案："


def _exemplars(dataset: Rows, shots: int) -> dict[str, list[Row]]:
    """The first dev rows of every subject."""
    shown: dict[str, list[Row]] = {}
    if shots:
        for row in dataset.rows("dev"):
            rows = shown.setdefault(row["group"], [])
            if len(rows) < shots:
                rows.append(row)
    return shown


# ------------------------------------------------------------------------------------------------------------ protocols


def protocols(
    *,
    qwen: tuple[Build, str],
    qwen_chat: tuple[Build, str],
    opencompass: tuple[Build, str],
    opencompass_chat: tuple[Build, str],
    lm_eval: tuple[Build, str],
    average: Literal["micro", "macro"],
    qwen_cut: LeftCut | None = None,
) -> tuple[Protocol, ...]:
    """Declare the five protocols, each from its builder and a line about it.

    `average` is that of Qwen's scripts. OpenCompass averages subjects, lm-evaluation-harness items.
    """

    def protocol(
        name: str,
        made: tuple[Build, str],
        *,
        shots: int = 5,
        chat: bool = False,
        rule: str = "choice",
        average: Literal["micro", "macro"],
        cut: LeftCut | None = None,
    ) -> Protocol:
        build, about = made
        allowed = range(shots + 1)
        return Protocol(
            name=name,
            chat=chat,
            shots=shots,
            shots_allowed=allowed,
            rule=rule,
            build=build,
            about=about,
            average=average,
            cut=cut,
        )

    return (
        protocol("qwen", qwen, average=average, cut=qwen_cut),
        protocol("qwen-chat", qwen_chat, shots=0, chat=True, rule="qwen-chat", average=average),
        protocol("opencompass", opencompass, average="macro"),
        protocol(
            "opencompass-chat",
            opencompass_chat,
            chat=True,
            rule="first-capital",
            average="macro",
            cut=prompts.OPENCOMPASS_CUT,
        ),
        protocol("lm-eval", lm_eval, average="micro"),
    )
