"""What will be run: which samples of a task, and how each of them is asked."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_eval.data import Dataset
from qwen_eval.errors import UsageError, did_you_mean
from qwen_eval.results import checksum, request_hash
from qwen_eval.task import (
    Answer,
    Cell,
    Choose,
    Dialogue,
    Execute,
    Generate,
    Generated,
    Judge,
    Protocol,
    Request,
    Sample,
    Sampling,
    Task,
)

__all__ = ["Plan", "make_plan", "own_split"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be run: the samples of one task@protocol, and how each is asked.

    `total` counts the samples of the whole split; `prompts` is a hash over the first requests of all of them, so it
    does not depend on the limit, nor on sampling. Each sample is asked `repeats` times. `sampling` holds the seed of
    the run, from which `with_sampling` derives one for every answer; None is greedy. A `deterministic` run asks in
    chunks of `CHUNK` samples. `judged` says that there is a judge to be asked, `rouge_tokenizer` whose tokens are
    counted where they are not those of the task's own vocabulary. `lengths` are those in tokens that a task is measured
    at.
    """

    task: Task
    protocol: Protocol
    split: str
    shots: int
    dataset: Dataset
    samples: Sequence[Sample]
    total: int
    prompts: str
    ask: Callable[[Sample], Dialogue]
    published_truncation: bool = False
    sampling: Sampling | None = None
    repeats: int = 1
    deterministic: bool = False
    lengths: tuple[int, ...] = ()
    judged: bool = False
    rouge_tokenizer: str = ""

    @property
    def needs_sandbox(self) -> bool:
        """Whether code that the model wrote is run."""
        return bool(self.task.programs) or self.protocol.sessions

    @property
    def name(self) -> str:
        """The spelling in messages: `gsm8k@qwen`, with ` (mini)` for the small shipped set."""
        return f"{self.task.name}@{self.protocol.name}{' (mini)' if self.dataset.mini else ''}"

    @property
    def folder(self) -> str:
        """The spelling in folder names: with the split where it is not the task's default."""
        split = "" if self.split == own_split(self.task, self.protocol) else f"-{self.split}"
        return f"{self.task.name}@{self.protocol.name}{split}{'-mini' if self.dataset.mini else ''}"

    def first_requests(self) -> Iterator[tuple[Sample, Request]]:
        """Yield every planned sample with its first request."""
        for sample in self.samples:
            yield sample, _first(self.ask(sample))

    def repeated(self) -> list[tuple[Sample, int]]:
        """Return every planned sample with the number (from 0) of each of its repeats, in order."""
        return [(sample, repeat) for sample in self.samples for repeat in range(self.repeats)]

    def with_sampling(
        self, request: Request | Execute | Cell | Judge, sample: Sample, repeat: int, turn: int
    ) -> Request | Execute | Cell | Judge:
        """Return a request as it is put to the model: what is generated carries the sampling, with a seed of its own.

        The seed follows from the run's seed and the answer's place alone, so no batch, order, limit or interruption
        changes what is drawn.
        """
        if self.sampling is None or not isinstance(request, Generate):
            return request
        seed = int(checksum([self.sampling.seed, sample.id, repeat, turn]), 16)
        return replace(request, sampling=replace(self.sampling, seed=seed))

    def manifest(self) -> dict[str, Any]:
        """Return what identifies this run apart from the model and the seed."""
        drawn = self.sampling
        return {
            "task": self.task.name,
            "protocol": self.protocol.name,
            "rule": self.protocol.rule,
            "split": self.split,
            "shots": self.shots,
            "samples": len(self.samples),
            "mini": self.dataset.mini,
            "dataset": {"name": self.task.data.name, "fingerprints": dict(self.dataset.fingerprints)},
            "prompts": self.prompts,
            "published_truncation": self.published_truncation,
            "sampling": drawn and {"temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": drawn.top_k},
            "repeats": self.repeats,
            "deterministic": self.deterministic,
            **({"lengths": list(self.lengths)} if self.lengths else {}),
            **({"rouge_tokenizer": self.rouge_tokenizer} if self.rouge_tokenizer else {}),
        }


def make_plan(
    task: Task,
    protocol: Protocol,
    dataset: Dataset,
    *,
    split: str | None = None,
    shots: int | None = None,
    limit: int | float | None = None,
    published_truncation: bool = False,
    sampling: Sampling | None = None,
    repeats: int = 1,
    deterministic: bool = False,
    lengths: Sequence[int] = (),
    blocks: int | None = None,
    judged: bool = False,
) -> Plan:
    """Read the data, build every prompt, choose the samples. Raises UsageError for a split or shots that do not exist.

    `limit` is a number of samples, or a share of them when it is a float. Where samples have groups (subjects), a limit
    spreads over them: in equal numbers where the score is a mean over groups, in proportion to their sizes where it is
    one over items. A larger limit always contains a smaller. Where the first request does not generate, there is
    nothing to sample: such a plan is without `sampling` and asks once.
    """
    split = own_split(task, protocol) if split is None else split
    if split not in task.splits:
        meant = did_you_mean(split, task.splits)
        raise UsageError(f"--split {split}: {task.name} is evaluated on {' or '.join(task.splits)}.{meant}")
    if protocol.split and split != protocol.split:
        raise UsageError(
            f"--split {split}: {task.name}@{protocol.name} is evaluated on {protocol.split}.\n"
            "Next: leave out --split, or choose another protocol."
        )
    count = protocol.shots if shots is None else shots
    if count not in protocol.shots_allowed:
        allowed = protocol.shots_allowed
        raise UsageError(
            f"--shots {count}: {task.name}@{protocol.name} is defined for "
            f"{allowed.start if len(allowed) == 1 else f'{allowed.start} to {allowed.stop - 1}'} exemplars."
        )
    dataset = dataset.apart()  # a run names what it has read itself, whatever else is run beside it
    lengths = tuple(sorted(set(lengths))) or task.lengths
    samples = task.at_lengths(lengths, blocks)(dataset, split) if task.at_lengths else task.samples(dataset, split)
    build = protocol.build(dataset, count)
    cut = protocol.cut if published_truncation else None

    def ask(sample: Sample) -> Dialogue:
        asked = build(sample)
        if isinstance(asked, Request):
            request = replace(asked, cut=cut) if cut and isinstance(asked, Generate | Choose) else asked
            asked = one_turn(request)
        needed = task.programs or (task.checks and (protocol.sessions or judged))
        return checked(asked, task, sample, sessions=protocol.sessions, judged=judged) if needed else asked

    # More blocks of the same lengths extend a run: the first ones say which texts these are.
    named = task.at_lengths(lengths, 1)(dataset, split) if task.at_lengths else samples
    prompts = checksum([[sample.id, request_hash(_first(ask(sample)))] for sample in named])
    chosen = _spread(samples, proportional=protocol.average == "micro")[: _limited(len(samples), limit)]
    order = {sample.id: index for index, sample in enumerate(samples)}
    generates = any(isinstance(_first(ask(sample)), Generate) for sample in samples[:1])
    return Plan(
        task=task,
        protocol=protocol,
        split=split,
        shots=count,
        dataset=dataset,
        samples=sorted(chosen, key=lambda sample: order[sample.id]),
        total=len(samples),
        prompts=prompts,
        ask=ask,
        published_truncation=published_truncation,
        sampling=sampling if generates else None,
        repeats=repeats if generates else 1,
        deterministic=deterministic,
        lengths=lengths if task.at_lengths else (),
    )


def one_turn(request: Request) -> Dialogue:
    """The default dialogue: one request, its answer is what is scored."""
    answer = yield request
    return answer


def checked(dialogue: Dialogue, task: Task, sample: Sample, *, sessions: bool, judged: bool) -> Dialogue:
    """A dialogue, and behind it what the rules need: every distinct program or step that one finds, the judge's word.

    They come one after another, while those of other samples run. What there is nobody to answer is left out.
    """
    answers: list[Answer] = []
    try:
        request = next(dialogue)
        while True:
            answers.append((yield request))
            request = dialogue.send(answers[-1])
    except StopIteration as end:
        answer: Answer = end.value
    if isinstance(answer, Generated):
        wanted: list[Execute | Cell | Judge | None] = [rule(answer.text, sample) for rule in task.programs.values()]
        wanted += [check.request(answer.text, sample, answers) for check in task.checks.values()]
        for needed in dict.fromkeys(wanted):
            if isinstance(needed, Execute) or (isinstance(needed, Cell) and sessions) or (judged and needed):
                yield needed
    return answer


def own_split(task: Task, protocol: Protocol) -> str:
    """Return the split that a protocol is run on where the user names none."""
    return protocol.split or task.splits[0]


def _first(dialogue: Dialogue) -> Request:
    """Return what a dialogue begins with: always a question to the model."""
    request = next(dialogue)
    if not isinstance(request, Request):
        raise TypeError("expected a dialogue that asks the model first, found one that runs a program")
    return request


def _limited(total: int, limit: int | float | None) -> int:
    if limit is None:
        return total
    return min(total, limit if isinstance(limit, int) else math.ceil(limit * total))


def _spread(samples: Sequence[Sample], *, proportional: bool) -> list[Sample]:
    """Order samples so that any beginning is spread over the groups, equally or in proportion to their sizes.

    Which groups come first is drawn by a hash of their names, so that a small part is no choice by alphabet or size.
    """
    sizes = Counter(sample.group for sample in samples)
    drawn = {group: int(checksum(group), 16) / 16**16 for group in sizes}
    seen: Counter[str] = Counter()
    rank = []
    for sample in samples:
        rank.append((seen[sample.group] + drawn[sample.group]) / (sizes[sample.group] if proportional else 1))
        seen[sample.group] += 1
    return [sample for _, sample in sorted(zip(rank, samples, strict=True), key=lambda pair: pair[0])]
