"""The engine: every shared prefix is computed once, rows leave when they end and others take their place.

Requests are sorted by the tokens of their prompts and worked off in that order, in packed passes without padding
(`packed.py`, `prefixes.py`). Options cost logits at their own positions only. Generation keeps a number of rows going:
a row that meets its end token, a stop string or its limit is answered at once, and when enough rows are free the next
prompts join. Checked against the reference engine, whose answers it must give.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_eval.models.transformers import reference
from qwen_eval.models.transformers.packed import ATTENTION, Piece, Plan, Prefix, Slab, register
from qwen_eval.models.transformers.prefixes import PrefixWalk
from qwen_eval.models.transformers.reference import ReferenceModel, Row, left_cut
from qwen_eval.task import Answer, Choose, Chosen, Failed, Generate, Perplexity

if TYPE_CHECKING:
    import torch

    from qwen_eval.models.transformers.checkpoint import Checkpoint

__all__ = ["PackedModel", "open_model", "supports"]

PASS_TOKENS = 1024
"""Tokens of prompts in one pass: enough for the processor to work well, few enough to stay in its caches."""
LONG = 256
"""A row's own part of the prompt from so many tokens on is kept as a prefix of its own: in the slab, the longest row
would decide the room of all."""


def open_model(
    checkpoint: "Checkpoint", *, engine: str = "auto", say: Callable[[str], None] = print, **settings: Any
) -> ReferenceModel:
    """Return a local checkpoint behind the engine, or behind the reference engine where that is asked for or needed.

    `settings` are those of `ReferenceModel`. Raises what it raises.
    """
    if engine == "auto":
        model = PackedModel(checkpoint, **settings)
        if model.device.type == "cpu" and supports(model.config):
            return model
        why = f"kind {model.config.model_type}" if model.device.type == "cpu" else "on a GPU"
        say(f"{checkpoint.name} ({why}): answered by the slower reference engine; the other is not tested there yet.")
    return ReferenceModel(checkpoint, **settings)


def supports(config: Any) -> bool:
    """Return whether the engine is known to be right for this kind of model (a transformers text configuration)."""
    return config.model_type in ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")


@dataclass
class _Options:
    """A context and the tokens of its options."""

    ticket: int
    prompt: list[int]
    options: list[list[int]]
    cut: int


@dataclass
class _Running:
    """A row that generates: the prefix it shares, and how many tokens of its own are in the slab."""

    row: Row
    prefix: Prefix | None
    own: int


class _Line:
    """What waits, in the order of prompts, and the walk over the prefixes they share."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = sorted(items, key=lambda item: item.prompt)
        self.walk = PrefixWalk([item.prompt for item in self.items])
        self.at = 0

    def left(self) -> Sequence[Any]:
        """Return what still waits."""
        return self.items[self.at :]


@dataclass
class _Pass:
    """A packed pass in the making. `wanted` are the positions whose logits are asked for."""

    plan: Plan = field(default_factory=Plan)
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)

    def add(
        self, tokens: Sequence[int], prefix: Prefix | None, *, into: Prefix | None = None, row: int | None = None
    ) -> None:
        """Add a piece: tokens that follow a prefix."""
        begin = prefix.end if prefix else 0
        self.plan.pieces.append(Piece(len(self.ids), len(tokens), prefix, into, row))
        self.ids += tokens
        self.positions += range(begin, begin + len(tokens))

    def add_next(self, line: _Line, *, row: int | None = None, keep_from: int | None = None) -> Prefix | None:
        """Add the next prompt of a line, the prefixes that begin with it first; its last logits are wanted.

        Its own tokens go to a row of the slab; or, where there are `keep_from` of them, into a prefix of their own.
        Returns the prefix that what follows attends to.
        """
        prompt, walk = line.walk.prompts[line.at], line.walk
        for end in walk.cuts(line.at):
            prefix = Prefix(walk.held, end - (walk.held.end if walk.held else 0))
            self.add(prompt[prefix.start : end], walk.held, into=prefix)
            walk.held = prefix
        line.at += 1
        own = prompt[walk.held.end if walk.held else 0 :]
        whole = Prefix(walk.held, len(own)) if keep_from is not None and len(own) >= keep_from else None
        self.add(own, walk.held, into=whole, row=None if whole else row)
        self.wanted.append(len(self.ids) - 1)
        return whole or walk.held


class PackedModel(ReferenceModel):
    """A local checkpoint behind the engine."""

    engine = "packed"

    def __init__(self, *args: Any, **settings: Any) -> None:
        """As the reference engine; `batch_size` is the number of rows that generate at a time."""
        super().__init__(*args, **settings)
        self._choices = _Line([])
        self._prompts = _Line([])
        self._running: list[_Running] = []
        self._texts: list[tuple[int, Perplexity]] = []
        self._slab = Slab(self._rows(Generate))

    def collect(self) -> Sequence[tuple[int, Answer | Failed]]:
        """Answer a portion: the options of one pass, or generation until some row ends, or one text's perplexity."""
        import torch

        failed = self._take_in()
        if failed:
            return failed
        with torch.inference_mode():
            if self._choices.left():
                return self._choose_some()
            if self._running or self._prompts.left():
                return self._generate_some()
            if self._texts:
                ticket, request = self._texts.pop(0)
                return [(ticket, self._measure(request))]
        return []

    def _take_in(self) -> list[tuple[int, Answer | Failed]]:
        """Tokenize what was submitted and line it up; return what cannot be asked."""
        failed: list[tuple[int, Answer | Failed]] = []
        choices: list[_Options] = []
        rows: list[Row] = []
        for ticket, request in self._queue:
            if isinstance(request, Generate):
                row = self._row(ticket, request)
                if isinstance(row, Failed):
                    failed.append((ticket, row))
                else:
                    rows.append(row)
            elif isinstance(request, Choose):
                context, options = self.tokenizer.continuations(request.prompt, request.options)
                context, cut = left_cut(context, request.cut)
                if len(context) + max(map(len, options)) - 1 > self.window:
                    failed.append((ticket, self._too_long(len(context))))
                else:
                    choices.append(_Options(ticket, context, options, cut))
            else:
                self._texts.append((ticket, request))
        self._queue = []
        if choices:
            self._choices = _Line([*self._choices.left(), *choices])
        if rows:
            self._prompts = _Line([*self._prompts.left(), *rows])
        return failed

    # -------------------------------------------------------------------------------------------------------- choices

    def _choose_some(self) -> list[tuple[int, Answer | Failed]]:
        """One pass over contexts, and over the options that have more than one token."""
        packed = _Pass()
        batch: list[tuple[_Options, list[list[int]]]] = []
        for each in self._choices.left():
            if batch and (len(packed.ids) >= PASS_TOKENS or len(batch) == self.batch_size):
                break
            longest = max(map(len, each.options))
            context = packed.add_next(self._choices, keep_from=1 if longest > 1 else None)
            end = len(packed.wanted) - 1
            places = []
            for option in each.options:
                # The first token is predicted at the end of the context, the others behind their forerunners.
                places.append([end, *range(len(packed.wanted), len(packed.wanted) + len(option) - 1)])
                if len(option) > 1:
                    packed.add(option[:-1], context)
                    packed.wanted += range(len(packed.ids) - len(option) + 1, len(packed.ids))
            batch.append((each, places))
            self._counters["prompt_tokens"] += len(each.prompt)
        self._counters["batches"] += 1
        logprobs = self._packed(packed).float().log_softmax(-1)
        return [
            (
                each.ticket,
                Chosen(
                    logprobs=tuple(
                        float(logprobs[where, option].sum()) for where, option in zip(places, each.options, strict=True)
                    ),
                    prompt_tokens=len(each.prompt),
                    cut_tokens=each.cut,
                ),
            )
            for each, places in batch
        ]

    # ----------------------------------------------------------------------------------------------------- generation

    def _generate_some(self) -> list[tuple[int, Answer | Failed]]:
        """Let prompts join, or take a step with all rows, until some row is done."""
        while True:
            free = self._slab.rows - len(self._running)
            if self._prompts.left() and (not self._running or free >= max(1, self._slab.rows // 4)):
                moved, logits = self._join()
            else:
                moved, logits = self._running, self._step()
            for each, token in zip(moved, logits.argmax(-1).tolist(), strict=True):
                each.row.new.append(token)
            done = [(each, answer) for each in moved if (answer := self._finished(each.row))]
            for each, _ in done:
                self._retire(each)
            if done:
                return [(each.row.ticket, answer) for each, answer in done]

    def _join(self) -> tuple[list[_Running], "torch.Tensor"]:
        """One pass over prompts that take free rows of the slab; logits [prompts, vocabulary]."""
        packed = _Pass(Plan(self._slab))
        new: list[_Running] = []
        for row in self._prompts.left():
            at = len(self._running) + len(new)
            if at == self._slab.rows or (new and len(packed.ids) >= PASS_TOKENS):
                break
            prefix = packed.add_next(self._prompts, row=at, keep_from=LONG)
            own = packed.plan.pieces[-1]
            new.append(_Running(row, prefix, 0 if own.into else own.count))
            self._counters["prompt_tokens"] += len(row.prompt)
        self._running += new
        self._counters["batches"] += 1
        self._slab.reserve(max(each.own for each in new))
        return new, self._packed(packed)

    def _step(self) -> "torch.Tensor":
        """One new token for every running row; logits [rows, vocabulary]."""
        import torch

        lengths = [each.own for each in self._running]
        self._slab.reserve(max(lengths) + 1)
        members: dict[Prefix, list[int]] = {}
        for index, each in enumerate(self._running):
            if each.prefix is not None:
                members.setdefault(each.prefix, []).append(index)
        packed = _Pass(
            Plan(
                self._slab,
                lengths=torch.tensor(lengths, device=self.device),
                groups=[(prefix, torch.tensor(rows, device=self.device)) for prefix, rows in members.items()],
            ),
            ids=[each.row.new[-1] for each in self._running],
            positions=[(each.prefix.end if each.prefix else 0) + each.own for each in self._running],
            wanted=list(range(len(lengths))),
        )
        self._counters["decode_slots"] += len(lengths)
        for each in self._running:
            each.own += 1
        return self._packed(packed)

    def _retire(self, each: _Running) -> None:
        """Free a row; the last one takes its place in the slab."""
        at, last = self._running.index(each), len(self._running) - 1
        if at != last:
            self._slab.move(last, at)
            self._running[at] = self._running[last]
        self._running.pop()

    def _block_nll(self, block: list[int]) -> float:
        """Negative log-likelihood of a block: every chunk is a prefix of the next."""
        import torch

        total, before = 0.0, None  # type: tuple[float, Prefix | None]
        for at in range(0, len(block) - 1, reference.CHUNK):
            part = block[at : min(at + reference.CHUNK, len(block) - 1)]
            packed, into = _Pass(wanted=list(range(len(part)))), Prefix(before, len(part))
            packed.add(part, before, into=into)
            nll = torch.nn.functional.cross_entropy(
                self._packed(packed).float(),
                torch.tensor(block[at + 1 : at + 1 + len(part)], device=self.device),
                reduction="none",
            )
            total, before = total + float(nll.double().sum()), into
        return total

    def _packed(self, packed: _Pass) -> "torch.Tensor":
        """Run a pass; return the wanted logits, [wanted, vocabulary]."""
        import torch

        self._report(len(packed.ids))
        self._counters["computed_tokens"] += len(packed.ids)
        out = self._weights()(
            input_ids=torch.tensor([packed.ids], device=self.device),
            position_ids=torch.tensor([packed.positions], device=self.device),
            # Four dimensions: taken as it is, not made into a causal mask. Attention reads the plan instead.
            attention_mask=torch.ones(1, 1, 1, 1, device=self.device),
            logits_to_keep=torch.tensor(packed.wanted, device=self.device),
            use_cache=False,
            plan=packed.plan,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _weights(self) -> Any:
        """Load the weights once, with attention replaced."""
        if self._model is None:
            register()
            super()._weights().set_attn_implementation(ATTENTION)
        return self._model
