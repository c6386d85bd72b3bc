"""The engine: every shared prefix is computed once, rows leave when they end and others take their place.

Requests wait in the order of their prompts' tokens (`prefixes.py`) and are worked off in packed passes without padding
(`packed.py`). Options cost logits at their own positions only. Generation keeps a number of rows going: a row that
meets its end token, a stop string or its limit is answered at once, and when enough rows are free the next prompts
join. How many rows that are follows from free memory and from whether more rows make a step cheaper; where memory runs
out, what was being computed waits again and less is computed together. Checked against the reference engine, whose
answers it must give.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qwen_eval.models.base import chosen
from qwen_eval.models.transformers import reference
from qwen_eval.models.transformers.machine import free_memory, is_out_of_memory
from qwen_eval.models.transformers.packed import ATTENTION, Pass, Prefix, Slab, Step, register
from qwen_eval.models.transformers.packing import Options, Pace, Packing, Running, Same
from qwen_eval.models.transformers.prefixes import PrefixTree, Waiting
from qwen_eval.models.transformers.reference import ReferenceModel, Row, cache_bytes, left_cut, scales_with_length
from qwen_eval.task import Answer, Choose, Failed, Generate, Generated, Perplexity

if TYPE_CHECKING:
    import torch

    from qwen_eval.models.transformers.checkpoint import Checkpoint

__all__ = ["PackedModel", "open_model", "supports"]

PASS_TOKENS = {"cpu": 384, "cuda": 8192}
"""Tokens of prompts in one pass: enough for the processor to work well; on a CPU, few enough to stay in its caches."""
LONG = {"cpu": 256, "cuda": 2048}
"""A row's own part of the prompt from so many tokens on is kept as a prefix of its own: in the slab, the longest row
would decide the room of all. On a GPU one more product for a row costs more than some room."""
ROWS = {"cpu": (32, 128), "cuda": (64, 512)}
"""Rows that generate at a time, at first and at most, where the user says nothing."""
ROWS_FIXED = 32
"""The same where neither memory nor a clock may decide."""
MEMORY_FOR_ROWS = 1 / 2
MEMORY_FOR_PREFIXES = 1 / 16
"""Shares of the memory that is free once the weights are loaded."""
PREFIXES_FIXED = 32768
"""Tokens of prefixes that are kept where free memory may not decide."""

TOKENIZED_TOGETHER = 512
"""Requests whose texts are tokenized in one call: on all processors, without all token lists at once in memory."""

KINDS = (
    "cohere",
    "cohere2",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma3",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_neox",
    "granite",
    "granitemoe",
    "hunyuan_v1_dense",
    "llama",
    "ministral",
    "mistral",
    "mixtral",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi",
    "phi3",
    "qwen",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "starcoder2",
)
"""The models (`model_type`) on which the engine is tested. Not among them: those that do more in attention than it
knows, such as capped scores (gemma2), sinks (gpt_oss) or recurrent layers (qwen3_next)."""


def open_model(
    checkpoint: "Checkpoint", *, engine: str = "auto", say: Callable[[str], None] = print, **settings: Any
) -> ReferenceModel:
    """Return a local checkpoint behind the engine, or behind the reference engine where that is asked for or needed.

    `settings` are those of `ReferenceModel`. Raises what it raises.
    """
    if engine == "auto":
        model = PackedModel(checkpoint, **settings)
        # What code of the checkpoint's own does in attention is unknown, whatever kind it calls itself.
        if supports(model.kind, model.config) and not model.identity.remote_code:
            return model
        say(
            f"{checkpoint.name} (kind {model.kind}): answered by the slower reference engine; the other is not tested "
            "on it."
        )
    return ReferenceModel(checkpoint, **settings)


def supports(kind: str, config: Any) -> bool:
    """Return whether the engine is known to be right for a model: its `model_type`, its text configuration."""
    # A Qwen2 MoE does not tell attention about windows of its own: they are in the mask only, which is not read.
    untold = kind == "qwen2_moe" and config.use_sliding_window
    return kind in KINDS and not scales_with_length(config) and not untold


class PackedModel(ReferenceModel):
    """A local checkpoint behind the engine."""

    engine = "packed"

    def __init__(self, *args: Any, **settings: Any) -> None:
        """As the reference engine; `batch_size` is the number of rows that generate at a time."""
        super().__init__(*args, **settings)
        kind = self.device.type
        rows, most = ROWS.get(kind, ROWS["cuda"])
        if self.batch_size or self.deterministic:
            rows = most = self.batch_size or ROWS_FIXED
        self._pace = Pace(rows, most)
        self._pass_tokens = PASS_TOKENS.get(kind, PASS_TOKENS["cuda"])
        self._chunk = reference.CHUNK
        self._counters |= dict.fromkeys(("decoded_tokens", "out_of_memory"), 0)
        self._choices: Waiting[Options] = Waiting()
        self._prompts: Waiting[Row] = Waiting()
        self._texts: list[tuple[int, Perplexity]] = []
        self._running: list[Running] = []
        self._same: Same | None = None
        self._slab = Slab()
        self._tree = PrefixTree(0)
        self._row_tokens = 0
        self._tried = 0

    def collect(self) -> Sequence[tuple[int, Answer | Failed]]:
        """Answer a portion: the options of one pass, or generation until some row ends, or one text's perplexity."""
        import torch

        answers = self._take_in()
        with torch.inference_mode():
            while not answers:
                if self._choices:
                    answer, ask_less = self._choose_some, self._less_choices
                elif self._running or self._prompts:
                    answer, ask_less = self._generate_some, self._less_generation
                elif self._texts:
                    answer, ask_less = self._measure_one, self._less_perplexity
                else:
                    break
                try:
                    return answer()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                # Only here, where the error no longer holds on to what was computed.
                self._counters["out_of_memory"] += 1
                self._tree.trim(0)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                answers = ask_less()
        return answers

    def forget(self) -> None:
        """Let go of cached prefixes and of the room of rows. Nothing may be running."""
        self._tree = PrefixTree(self._tree.most)
        self._slab = Slab()
        self._same = None

    def unload(self) -> None:
        """Let go of the weights, of cached prefixes and rows, and of what is queued."""
        self._choices, self._prompts, self._texts, self._running = Waiting(), Waiting(), [], []
        self.forget()
        super().unload()

    def counters(self) -> dict[str, int | float | str]:
        """Return tokens computed, decode slots, those of them that gave no token, passes, and the rows in force."""
        wasted = self._counters["decode_slots"] - self._counters["decoded_tokens"]
        return {**self._counters, **self._resources(), "wasted_slots": wasted, "batch_size": self._pace.rows}

    def _take_in(self) -> list[tuple[int, Answer | Failed]]:
        """Tokenize what was submitted and line it up; return what cannot be asked."""
        failed: list[tuple[int, Answer | Failed]] = []
        for at in range(0, len(self._queue), TOKENIZED_TOGETHER):
            part = self._queue[at : at + TOKENIZED_TOGETHER]
            generations = [(ticket, request) for ticket, request in part if isinstance(request, Generate)]
            choices = [(ticket, request) for ticket, request in part if isinstance(request, Choose)]
            self._texts += [(ticket, request) for ticket, request in part if isinstance(request, Perplexity)]
            prompts = self.tokenizer.encode_prompts([request.prompt for _, request in generations])
            for (ticket, asked), ids in zip(generations, prompts, strict=True):
                row = self._encoded_row(ticket, asked, ids)
                if isinstance(row, Failed):
                    failed.append((ticket, row))
                else:
                    self._prompts.add([row])
            found = self.tokenizer.continuations([(request.prompt, request.options) for _, request in choices])
            for (ticket, request), (context, options) in zip(choices, found, strict=True):
                context, cut = left_cut(context, request.cut)
                refused = self._refused(len(context), max(map(len, options)) - 1)
                if refused:
                    failed.append((ticket, refused))
                else:
                    self._choices.add([Options(ticket, context, options, cut, self.long.stretch(len(context)))])
        self._queue = []
        return failed

    # -------------------------------------------------------------------------------------------------------- choices

    def _choose_some(self) -> list[tuple[int, Answer | Failed]]:
        """One pass over contexts, and over the options that have more than one token."""
        self._weights()
        packing = Packing(self._tree)
        taken: list[Options] = []
        asked: list[tuple[int, int]] = []
        while self._choices and (not taken or len(packing.ids) < self._pass_tokens):
            if self.batch_size and len(taken) == self.batch_size:
                break
            each = self._choices.first
            longest = max(map(len, each.options))
            context, _ = packing.add_first(self._choices, keep_from=1 if longest > 1 else None)
            taken.append(self._choices.take())
            end = len(packing.wanted) - 1
            for option in each.options:
                # The first token is predicted at the end of the context, the others behind their forerunners.
                places = [end, *range(len(packing.wanted), len(packing.wanted) + len(option) - 1)][: len(option)]
                asked += zip(places, option, strict=True)
                if len(option) > 1:
                    packing.add(option[:-1], context)
                    packing.wanted += range(len(packing.ids) - len(option) + 1, len(packing.ids))
        self._tried = len(taken)
        try:
            logprobs = self._computed(packing).float().log_softmax(-1)
            values = iter(logprobs[[place for place, _ in asked], [token for _, token in asked]].tolist())
        except BaseException:
            packing.undo()
            self._choices.put_back(taken)
            raise
        self._counters["prompt_tokens"] += sum(len(each.tokens) for each in taken)
        self._tree.trim()
        return [
            (
                each.ticket,
                chosen(
                    [sum(next(values) for _ in option) for option in each.options],
                    prompt_tokens=len(each.tokens),
                    cut_tokens=each.cut,
                ),
            )
            for each in taken
        ]

    def _less_choices(self) -> list[tuple[int, Answer | Failed]]:
        """Memory ran out: halve the passes; a request that was alone in one fails."""
        if self._tried == 1:
            return [(self._choices.take().ticket, _out_of_memory())]
        self._pass_tokens = max(1, self._pass_tokens // 2)
        return []

    # ----------------------------------------------------------------------------------------------------- generation

    def _generate_some(self) -> list[tuple[int, Answer | Failed]]:
        """Let prompts join, or take a step with all rows, until some row is done."""
        self._weights()
        while True:
            free = self._pace.rows - len(self._running)
            wanted = self._prompts and (not self._running or free >= max(1, self._pace.rows // 4))
            moved = self._join() if wanted and self._fits(self._running) else self._step()
            done = [(each, answer) for each in moved if (answer := self._finished(each.row))]
            for each, answer in done:
                if isinstance(answer, Failed):
                    # What is hidden from the next row there weighs nothing, and nothing times NaN is NaN.
                    self._slab.clear(self._running.index(each))
                self._retire(each)
            if done:
                return [(each.row.ticket, answer) for each, answer in done]

    def _finished(self, row: Row) -> Generated | Failed | None:
        """As the reference; but the text is only looked at when the last token can end it."""
        going_on = row.new[-1] >= 0 and len(row.new) < row.limit and not self._ended(row)
        if going_on and not self.tokenizer.closes(row.new[-1], row.request.stops):
            return None
        return super()._finished(row)

    def _fits(self, rows: Sequence[Running]) -> bool:
        """Return whether the next prompt has room in memory beside these rows, should all reach their limits."""
        if not rows or self.deterministic:
            return True
        row = self._prompts.first
        own = len(row.tokens) - self._tree.find(row.tokens, row.stretch).end
        kept = sum(each.kept for each in rows)
        if own >= LONG.get(self.device.type, LONG["cuda"]):
            own, kept = 0, kept + own
        longest = max(self._slab.tokens, own + row.limit - len(row.new), *(each.most for each in rows))
        return (len(rows) + 1) * longest + kept <= self._row_tokens

    def _join(self) -> list[Running]:
        """One pass over prompts that take free rows of the slab, and their first tokens. Returns the new rows."""
        import torch

        rows, before = list(self._running), len(self._running)
        if not rows:
            # Nobody needs its room any more, and the next rows may need less.
            self._slab = Slab()
        packing = Packing(self._tree, self._slab)
        behind: list[int | torch.Tensor] = []
        same = self._same
        while self._prompts and len(rows) < self._pace.rows:
            if len(rows) > before and (len(packing.ids) >= self._pass_tokens or not self._fits(rows)):
                break
            repeats, row = self._prompts.repeats, self._prompts.first
            if same is None or (same.prefix.stretch, same.tokens) != (row.stretch, row.tokens):
                keep_from = 1 if repeats else LONG.get(self.device.type, LONG["cuda"])
                prefix, kept = packing.add_first(self._prompts, row=len(rows), keep_from=keep_from)
                same = Same(row.tokens, prefix) if repeats else None
                rows.append(Running(row, prefix, len(row.tokens) - prefix.end, kept))
            else:
                rows.append(Running(row, same.prefix, 0))
            behind.append(len(packing.wanted) - 1 if same is None or same.logits is None else same.logits)
            self._prompts.take()
        new = rows[before:]
        self._tried = len(new)
        try:
            self._slab.reserve(len(rows), max(each.own for each in rows))
            computed: Any = self._computed(packing) if packing.ids else None
            logits = torch.stack([computed[at] if isinstance(at, int) else at for at in behind])
            if same is not None and same.logits is None:
                same.logits = logits[-1].clone()
            self._take_tokens([each.row for each in new], logits)
        except BaseException:
            packing.undo()
            self._prompts.put_back([each.row for each in new])
            self._same = None
            raise
        self._same = same
        self._running = rows
        for each in new:
            each.prefix.count_users(1)
            # A row that waited again has more than its first token.
            self._counters["prompt_tokens"] += len(each.row.prompt) if len(each.row.new) == 1 else 0
        self._tree.trim()
        return new

    def _step(self) -> list[Running]:
        """One new token for every running row. Returns all of them."""
        begun = time.perf_counter()
        rows = self._running
        self._tried = 0
        self._slab.reserve(len(rows), max(each.own for each in rows) + 1)
        members: dict[Prefix, list[int]] = {}
        for index, each in enumerate(rows):
            if each.prefix.end:
                members.setdefault(each.prefix, []).append(index)
        self._counters["decode_slots"] += len(rows)
        logits = self._forward_packed(
            Step(self._slab, [each.own for each in rows], list(members.items())),
            ids=[each.row.new[-1] for each in rows],
            positions=[each.prefix.end + each.own for each in rows],
            stretches=[each.prefix.stretch for each in rows],
            wanted=list(range(len(rows))),
        )
        self._take_tokens([each.row for each in rows], logits)
        for each in rows:
            each.own += 1
        self._counters["decoded_tokens"] += len(rows)
        if self._prompts:
            self._pace.note(len(rows), time.perf_counter() - begun)
        return rows

    def _retire(self, each: Running) -> None:
        """Free a row; the last one takes its place in the slab."""
        each.prefix.count_users(-1)
        at, last = self._running.index(each), len(self._running) - 1
        if at != last:
            self._slab.move(last, at)
            self._running[at] = self._running[last]
        self._running.pop()

    def _less_generation(self) -> list[tuple[int, Answer | Failed]]:
        """Memory ran out: let fewer rows join, or half of the running ones wait again; a row that was alone fails."""
        running = len(self._running)
        if self._tried:
            if self._tried == 1 and not running:
                return [(self._prompts.take().ticket, _out_of_memory())]
            self._pass_tokens = max(1, self._pass_tokens // 2)
            self._pace.at_most(running + self._tried // 2)
            return []
        if running == 1:
            each = self._running[0]
            self._retire(each)
            return [(each.row.ticket, _out_of_memory())]
        self._pace.at_most(running // 2)
        for each in self._running[running // 2 :]:
            self._retire(each)
            # What it has generated so far is part of its prompt from now on.
            self._prompts.add([each.row])
        self._slab.shrink(running // 2)
        return []

    # ----------------------------------------------------------------------------------------------------- perplexity

    def _measure_one(self) -> list[tuple[int, Answer | Failed]]:
        """Measure one text."""
        ticket, request = self._texts[0]
        answer = self._measure(request)
        del self._texts[0]
        return [(ticket, answer)]

    def _less_perplexity(self) -> list[tuple[int, Answer | Failed]]:
        """Memory ran out: halve the chunks."""
        if self._chunk > 1:
            self._chunk //= 2
            return []
        self._chunk = reference.CHUNK
        return [(self._texts.pop(0)[0], _out_of_memory())]

    def _block_nll(self, block: list[int]) -> float:
        """Negative log-likelihood of a block: every chunk is a prefix of the next."""
        import torch

        total, prefix = 0.0, Prefix(None, (), stretch=self.long.stretch(len(block)))
        for at in range(0, len(block) - 1, self._chunk):
            part = block[at : min(at + self._chunk, len(block) - 1)]
            packing = Packing(self._tree)
            prefix = packing.add_prefix(part, prefix)
            packing.wanted += range(len(part))
            nll = torch.nn.functional.cross_entropy(
                self._computed(packing).float(),
                torch.tensor(block[at + 1 : at + 1 + len(part)], device=self.device),
                reduction="none",
            )
            total += float(nll.double().sum())
        return total

    # --------------------------------------------------------------------------------------------------------- passes

    def _computed(self, packing: Packing) -> "torch.Tensor":
        """Run a pass over prompts; return the wanted logits, [wanted, vocabulary]."""
        self._counters["batches"] += 1
        return self._forward_packed(
            packing.prompts,
            ids=packing.ids,
            positions=packing.positions,
            stretches=packing.stretches,
            wanted=packing.wanted,
        )

    def _forward_packed(
        self,
        packed: Pass,
        *,
        ids: Sequence[int],
        positions: Sequence[int],
        stretches: Sequence[float],
        wanted: Sequence[int],
    ) -> "torch.Tensor":
        """Run a packed pass; return the wanted logits, [wanted, vocabulary].

        Ids, positions and the stretches of the rotary embedding have one entry a token.
        """
        import torch

        self._report(len(ids))
        self._counters["computed_tokens"] += len(ids)
        places = torch.tensor([positions], device=self.device)
        out = self._weights()(
            **self._long_context([stretches], places),
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=places,
            # Four dimensions: taken as it is, not made into a causal mask. Attention reads the pass instead.
            attention_mask=torch.ones(1, 1, 1, 1, device=self.device),
            # A list: it fits whichever device the last layer is on.
            logits_to_keep=list(wanted),
            use_cache=False,
            packed=packed,
        )
        logits: torch.Tensor = out.logits[0]
        return logits

    def _weights(self) -> Any:
        """Load the weights once, with attention replaced, and see how much memory is left."""
        if self._model is None:
            register()
            super()._weights().set_attn_implementation(ATTENTION)
            tokens = free_memory(self.device) // cache_bytes(self.config, self.dtype)
            self._row_tokens = int(MEMORY_FOR_ROWS * tokens)
            self._tree.most = PREFIXES_FIXED if self.deterministic else int(MEMORY_FOR_PREFIXES * tokens)
        return self._model


def _out_of_memory() -> Failed:
    return Failed(reason="out of memory at batch size 1")
