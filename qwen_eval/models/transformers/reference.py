"""The reference engine: batched transformers, left padding, one forward pass at a time. Slow, simple, exactly right.

Every fast path is measured against this one. What it promises: the same answers at any batch size and in any order
(float32), a row's own stop strings and end tokens, logits only at the positions that are needed, no prompt cut in
silence. What it does not do: share prefixes between prompts.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from qwen_eval.errors import DeviceError, ModelError, QwenEvalError, UsageError
from qwen_eval.models import qwen1
from qwen_eval.models.base import NOT_A_NUMBER, Identity, chosen
from qwen_eval.models.transformers import loading
from qwen_eval.models.transformers.checkpoint import Checkpoint, checked_dtype, first_line, has_own_code, identify
from qwen_eval.models.transformers.machine import (
    choose_threads,
    free_memory,
    is_out_of_memory,
    peak_memory,
    release_memory,
    reset_peak_memory,
)
from qwen_eval.models.transformers.quantisation import (
    SHARE_OF_STORED,
    check_quantisation,
    is_quantised,
    packages,
    precision_name,
)
from qwen_eval.models.transformers.stream import Stream
from qwen_eval.models.transformers.tokenization import Tokenizer
from qwen_eval.task import (
    Answer,
    Chat,
    Choose,
    Chosen,
    Failed,
    Generate,
    Generated,
    LeftCut,
    Measured,
    Perplexity,
    Request,
)

if TYPE_CHECKING:
    import torch

    from qwen_eval.models.transformers.rotary import Rotary

__all__ = ["ReferenceModel", "Row", "cache_bytes", "left_cut", "scales_with_length"]

AUTO_BATCH = 32
AUTO_BATCH_CHOOSE_CPU = 8
"""On a CPU small batches are the faster ones where a request costs one long forward pass and no decoding."""
WEIGHTS_SHARE = 0.8
"""Weights that take more of one GPU's memory leave too little for keys, values and what is computed."""
CHUNK = 512
"""Positions a forward pass of a perplexity block: bounds the logits at CHUNK x vocabulary."""


@dataclass
class Row:
    """One request in a batch, and what has been generated for it."""

    ticket: int
    request: Generate
    prompt: list[int]
    cut: int
    limit: int
    new: list[int] = field(default_factory=list)
    stretch: float = 1.0

    @property
    def tokens(self) -> list[int]:
        """What the next token follows: the prompt and what was generated so far."""
        return self.prompt + self.new


class ReferenceModel:
    """A local checkpoint. The tokenizer is loaded at once, the weights when the first answer is wanted."""

    engine = "reference"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int | None = None,
        deterministic: bool = False,
        verify: bool = False,
        setting: str | None = None,
        trusted: bool = False,
    ) -> None:
        """Identify the checkpoint. Raises ModelError, DeviceError, UsageError.

        `deterministic`: neither free memory nor a clock decides what is computed together, nor with how many threads.
        `verify`: read every file for the fingerprint, also those whose digest is remembered.
        `setting`: how contexts beyond the training length are met (`longcontext.py`); None: as the checkpoint says.
        `trusted`: code that comes with the checkpoint may be run.
        """
        import importlib.metadata

        import torch

        self.checkpoint = checkpoint
        self.trusted = trusted
        self.device = _device(device)
        kind = self.device.type
        if checkpoint.precision and not checkpoint.quantisation:
            dtype = checkpoint.precision
        self.dtype = (
            checked_dtype("float32" if kind == "cpu" else "bfloat16") if dtype == "auto" else checked_dtype(dtype)
        )
        self.kind, self.config = loading.read_config(checkpoint.folder, trusted=trusted)
        if self.kind == qwen1.KIND and checkpoint.quantisation:
            raise UsageError(
                f"--precision {checkpoint.quantisation}: Qwen's first models are not quantised when they are loaded.\n"
                "Next: give the Int4 or Int8 checkpoint of the model, or leave out --precision for it."
            )
        try:
            check_quantisation(checkpoint, self.config)
        except ModelError:
            if self.kind == qwen1.KIND and kind != "cuda":
                # Nobody should install packages for nothing.
                raise loading.without_gpu(checkpoint.folder, self.device) from None
            raise
        self.quantised = is_quantised(checkpoint, self.config)
        self.tokenizer = Tokenizer(
            checkpoint.tokenizer,
            model=checkpoint.folder,
            trusted=trusted,
            # What code of a checkpoint's own calls by this name is not known.
            size=None if trusted else getattr(self.config, "vocab_size", None),
        )
        self.batch_size = batch_size
        self.deterministic = deterministic
        self.window: int = getattr(self.config, "max_position_embeddings", None) or 1 << 30
        own = loading.own_long_context(checkpoint.folder, self.kind, self.config)
        remote = trusted and has_own_code(checkpoint.folder)
        kind_said = "its own code" if remote else self.kind
        self.long = own if setting is None else loading.with_setting(own, setting, kind_said, self.config)
        if self.kind != qwen1.KIND and self.long.rope != "plain":
            self.window = 1 << 30
        self.repetition_penalty = _repetition_penalty(checkpoint.folder)
        self._auto_batch = AUTO_BATCH if kind == "cuda" else _rows_in_memory(self.config)
        template = self.tokenizer.template
        self.identity = Identity(
            name=checkpoint.name,
            fingerprint=self._fingerprint(verify=verify),
            dtype=precision_name(checkpoint, self.config, self.dtype),
            device=torch.cuda.get_device_name(self.device) if kind == "cuda" else kind,
            engine=self.engine,
            chat=self.tokenizer.is_chat,
            chat_template=None if template is None else _hash(template),
            exact=self.dtype == "float32" and not self.quantised,
            rope=None if self.kind != qwen1.KIND and self.long == own else self.long.name,
            remote_code=remote,
            versions={
                name: importlib.metadata.version(name)
                for name in ("torch", "transformers", "tokenizers", *packages(checkpoint, self.config))
            },
        )
        self._queue: list[tuple[int, Request]] = []
        self._sorted = True
        self._report: Callable[[int], None] = lambda tokens: None
        self._counters = dict.fromkeys(("prompt_tokens", "computed_tokens", "new_tokens", "decode_slots", "batches"), 0)
        self._model: Any = None
        self._load_seconds = 0.0
        self._load_peak = 0
        self._rotary: Rotary | None = None
        self._stream: Stream | None = None

    # ---------------------------------------------------------------------------------------------- the model protocol

    def submit(self, ticket: int, request: Request) -> None:
        """Queue a request."""
        self._queue.append((ticket, request))
        self._sorted = False

    def collect(self) -> Sequence[tuple[int, Answer | Failed]]:
        """Answer the next batch: requests of one kind, of similar length. Halves the batch when memory runs out."""
        import torch

        if not self._queue:
            return []
        if not self._sorted:
            # Similar lengths side by side, the longest first: little padding, and memory runs out early or never.
            self._queue.sort(key=_kind_and_length)
            self._sorted = True
        kind = type(self._queue[0][1])
        rows = self._rows(kind)
        batch = list(itertools.takewhile(lambda item: type(item[1]) is kind, self._queue[:rows]))
        del self._queue[: len(batch)]
        try:
            with torch.inference_mode():
                return self._answer(kind, batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                return [(batch[0][0], Failed(reason="out of memory at batch size 1"))]
            self.batch_size = max(1, len(batch) // 2)
            self._queue = batch + self._queue
        torch.cuda.empty_cache()
        return self.collect()

    def prompt_tokens(self, request: Request) -> tuple[int, ...]:
        """Return the token ids of a request's prompt."""
        if isinstance(request, Perplexity):
            blocks = list(self._blocks(request))
            return tuple(itertools.chain.from_iterable(blocks))
        return tuple(self.tokenizer.encode_prompt(request.prompt))

    def pieces(self, text: str) -> tuple[str, ...]:
        """Return the tokens of a text, each decoded on its own."""
        return tuple(self.tokenizer.decode([token]) for token in self.tokenizer.encode(text, control=False))

    def withdraw(self) -> int:
        """Nothing here is worth waiting for: return 0."""
        return 0

    def forget(self) -> None:
        """Nothing is remembered from request to request."""

    def unload(self) -> None:
        """Let go of the weights and of what is queued."""
        self._queue = []
        self._model = None
        self._rotary = None
        self._stream = None
        self._report = lambda tokens: None
        release_memory(self.device)

    def on_progress(self, report: Callable[[int], None]) -> None:
        """Call `report` with the tokens of every forward pass."""
        self._report = report

    def counters(self) -> Mapping[str, int | float | str]:
        """Return tokens computed, decode slots used, batches, the batch size in force, and what loading took."""
        return {**self._counters, **self._resources(), "batch_size": self.batch_size or "auto"}

    def load(self) -> None:
        """Load the weights now, instead of with the first request. Raises ModelError, DeviceError."""
        import torch

        with torch.inference_mode():
            self._weights()

    @property
    def attention(self) -> str:
        """The name of the attention function of the weights, once they are loaded."""
        return "" if self._model is None else str(self._model.config._attn_implementation)

    def _resources(self) -> dict[str, int | float]:
        """Return how long loading took, and the peaks of memory: with loading, and since then."""
        peak = peak_memory(self.device)
        return {
            "load_seconds": round(self._load_seconds, 3),
            "peak_memory_bytes": max(peak, self._load_peak),
            "peak_memory_answering_bytes": peak,
        }

    # ------------------------------------------------------------------------------------------------------- requests

    def _rows(self, kind: type) -> int:
        """Return how many requests are answered together: what the user said, else by kind and memory."""
        if kind is Perplexity or scales_with_length(self.config):
            return 1
        if self.batch_size:
            return self.batch_size
        if kind is Choose and self.device.type == "cpu":
            return min(self._auto_batch, AUTO_BATCH_CHOOSE_CPU)
        return self._auto_batch

    def _answer(self, kind: type, batch: Sequence[tuple[int, Any]]) -> list[tuple[int, Answer | Failed]]:
        self._counters["batches"] += 1
        if kind is Generate:
            return self._generate(batch)
        if kind is Choose:
            return self._choose(batch)
        return [(ticket, self._measure(request)) for ticket, request in batch]

    def _generate(self, batch: Sequence[tuple[int, Generate]]) -> list[tuple[int, Answer | Failed]]:
        """Decode; a row leaves the batch with its end token, its stop string or its limit."""
        answers: list[tuple[int, Answer | Failed]] = []
        rows: list[Row] = []
        for ticket, request in batch:
            row = self._row(ticket, request)
            if isinstance(row, Failed):
                answers.append((ticket, row))
            else:
                rows.append(row)
        if not rows:
            return answers
        ids, mask = self._left_padded([row.prompt for row in rows])
        self._counters["prompt_tokens"] += int(mask.sum())
        logits, cache = self._forward(ids, mask, None, keep=1, stretches=[row.stretch for row in rows])
        while True:
            self._take_tokens(rows, logits[:, -1])
            finished = [self._finished(row) for row in rows]
            answers += [(row.ticket, answer) for row, answer in zip(rows, finished, strict=True) if answer]
            staying = [index for index, answer in enumerate(finished) if answer is None]
            if not staying:
                return answers
            if len(staying) < len(rows):
                keep = ids.new_tensor(staying)
                cache.batch_select_indices(keep)
                mask = mask[keep]
                rows = [rows[index] for index in staying]
            ids = ids.new_tensor([[row.new[-1]] for row in rows])
            mask = _with_column(mask)
            self._counters["decode_slots"] += len(rows)
            logits, cache = self._forward(ids, mask, cache, keep=1, stretches=[row.stretch for row in rows])

    def _row(self, ticket: int, request: Generate) -> Row | Failed:
        """Tokenize a prompt; fail where it leaves no room in the window."""
        return self._encoded_row(ticket, request, self.tokenizer.encode_prompt(request.prompt))

    def _encoded_row(self, ticket: int, request: Generate, ids: list[int]) -> Row | Failed:
        prompt, cut = left_cut(ids, request.cut)
        refused = self._refused(len(prompt), 1)
        if refused:
            return refused
        limit = min(request.max_new_tokens, self.window - len(prompt))
        return Row(ticket, request, prompt, cut, limit, stretch=self.long.stretch(len(prompt)))

    def _take_tokens(self, rows: Sequence[Row], logits: "torch.Tensor") -> None:
        """Give every row its next token, -1 where there is none; logits [rows, vocabulary]."""
        from qwen_eval.models.transformers.sampling import next_tokens

        logits = self._penalised(rows, logits)
        samplings = [row.request.sampling for row in rows]
        # A draw follows from the request's seed and the token's place, so that no other row changes it.
        draws = [
            Random(f"{row.request.sampling.seed} {len(row.new)}").random() if row.request.sampling else 0.0
            for row in rows
        ]
        for row, token in zip(rows, next_tokens(logits, samplings, draws), strict=True):
            row.new.append(token)
        self._counters["new_tokens"] += len(rows)

    def _penalised(self, rows: Sequence[Row], logits: "torch.Tensor") -> "torch.Tensor":
        """Make what a row has seen or said less likely, where it asks for the checkpoint's own repetition penalty.

        A positive logit is divided by it, a negative one multiplied (Keskar et al. 2019, section 4.1, as transformers
        has it: tokens of the prompt count, and none twice).
        """
        import torch

        asking = [index for index, row in enumerate(rows) if row.request.own_penalty and self.repetition_penalty != 1]
        if not asking:
            return logits
        logits = logits.to(torch.float32, copy=True)
        for index in asking:
            seen = torch.tensor(sorted(set(rows[index].tokens)), device=logits.device)
            value = logits[index, seen]
            factor = self.repetition_penalty
            logits[index, seen] = torch.where(value > 0, value / factor, value * factor)
        return logits

    def _finished(self, row: Row) -> Generated | Failed | None:
        """Return the answer of a row that is done, else None."""
        if row.new[-1] < 0:
            return NOT_A_NUMBER
        ended = self._ended(row)
        ids = row.new[:-1] if ended else row.new
        if not ended and not row.request.stops and len(row.new) < row.limit:
            return None
        text = self.tokenizer.decode(ids, after=row.prompt)
        stop = min((at for at in map(text.find, row.request.stops) if at >= 0), default=-1)
        if not ended and stop < 0 and len(row.new) < row.limit:
            return None
        return Generated(
            text=text[:stop] if stop >= 0 else text,
            finish="stop" if stop >= 0 else "end" if ended else "length",
            prompt_tokens=len(row.prompt),
            new_tokens=len(row.new),
            cut_tokens=row.cut,
        )

    def _ended(self, row: Row) -> bool:
        """Return whether the last token is one that ends an answer."""
        chat = isinstance(row.request.prompt, Chat)
        return row.new[-1] in (self.tokenizer.chat_end_tokens if chat else self.tokenizer.end_tokens)

    def _choose(self, batch: Sequence[tuple[int, Choose]]) -> list[tuple[int, Answer | Failed]]:
        """Log-probabilities of the options: one position where all are single tokens, else all of theirs."""
        answers: dict[int, Answer | Failed] = {}
        single: list[tuple[int, list[int], list[int], int]] = []
        for ticket, request in batch:
            [(context, options)] = self.tokenizer.continuations([(request.prompt, request.options)])
            context, cut = left_cut(context, request.cut)
            refused = self._refused(len(context), max(map(len, options)) - 1)
            if refused:
                answers[ticket] = refused
            elif all(len(option) == 1 for option in options):
                single.append((ticket, context, [option[0] for option in options], cut))
            else:
                answers[ticket] = self._choose_long(context, options, cut)
        if single:
            ids, mask = self._left_padded([context for _, context, _, _ in single])
            self._counters["prompt_tokens"] += int(mask.sum())
            stretches = [self.long.stretch(len(context)) for _, context, _, _ in single]
            logits, _ = self._forward(ids, mask, None, keep=1, stretches=stretches)
            logprobs = logits[:, -1].float().log_softmax(-1)
            for (ticket, context, tokens, cut), row in zip(single, logprobs, strict=True):
                answers[ticket] = chosen(row[tokens].tolist(), prompt_tokens=len(context), cut_tokens=cut)
        return [(ticket, answers[ticket]) for ticket, _ in batch]

    def _choose_long(self, context: list[int], options: list[list[int]], cut: int) -> Chosen | Failed:
        """The whole log-likelihood of options of several tokens."""
        longest = max(map(len, options))
        ids, mask = self._left_padded([context + option for option in options])
        self._counters["prompt_tokens"] += int(mask.sum())
        # Stretched as for the context alone, so that the options stay comparable.
        stretches = [self.long.stretch(len(context))] * len(options)
        logprobs = self._forward(ids, mask, None, keep=longest + 1, stretches=stretches)[0].float().log_softmax(-1)
        values = []
        for row, option in enumerate(options):
            # All rows end together, so the option's tokens are predicted at the positions just before its own.
            at = logprobs[row, -len(option) - 1 : -1]
            values.append(float(at.gather(-1, ids.new_tensor(option)[:, None]).sum()))
        return chosen(values, prompt_tokens=len(context), cut_tokens=cut)

    def _measure(self, request: Perplexity) -> Measured | Failed:
        """Negative log-likelihood block by block."""
        refused = self._refused(request.block, 0)
        if refused and not (request.beyond and getattr(self.config, "rope_parameters", None)):
            return refused
        nll: list[float] = []
        sizes: list[int] = []
        for block in self._blocks(request):
            nll.append(self._block_nll(block))
            if not math.isfinite(nll[-1]):
                return NOT_A_NUMBER
            # The first token is not predicted.
            sizes.append(self.tokenizer.count_bytes(block[1:], after=block[:1]))
            self._counters["prompt_tokens"] += len(block)
        return Measured(nll=tuple(nll), tokens=(request.block - 1,) * len(nll), bytes=tuple(sizes))

    def _blocks(self, request: Perplexity) -> Iterator[list[int]]:
        """Yield the blocks that are asked for, as far as there are such."""
        if self._stream is None or self._stream.texts is not request.text:
            self._stream = Stream(request.text, self.tokenizer)
        for index in itertools.count() if request.index is None else [request.index]:
            block = self._stream.block(index, request.block)
            if block is None:
                return
            yield block

    def _block_nll(self, block: list[int]) -> float:
        """Negative log-likelihood of a block, chunk by chunk after its own cache; the sum in float64."""
        import torch

        total, cache, stretch = 0.0, None, self.long.stretch(len(block))
        for at in range(0, len(block) - 1, CHUNK):
            part = torch.tensor([block[at : min(at + CHUNK, len(block) - 1)]], device=self.device)
            mask = torch.ones(1, at + part.shape[1], dtype=torch.long, device=self.device)
            logits, cache = self._forward(part, mask, cache, keep=0, stretches=[stretch])
            wanted = torch.tensor(block[at + 1 : at + 1 + part.shape[1]], device=self.device)
            nll = torch.nn.functional.cross_entropy(logits[0].float(), wanted, reduction="none")
            total += float(nll.double().sum())
        return total

    # ------------------------------------------------------------------------------------------------------- forwards

    def _left_padded(self, rows: Sequence[Sequence[int]]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return ids and mask, [rows, longest]: every row ends at the right edge."""
        import torch

        longest = max(map(len, rows))
        # Any id will do for padding: the mask hides it.
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=self.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=self.device)
        return ids, mask

    def _forward(
        self, ids: "torch.Tensor", mask: "torch.Tensor", cache: Any, *, keep: int, stretches: Sequence[float]
    ) -> tuple["torch.Tensor", Any]:
        """Return the logits of the last `keep` positions (0: all), [rows, keep, vocabulary], and the cache.

        `stretches` are those of the rotary embedding, one a row.
        """
        # Positions count a row's own tokens, so that padding on the left changes nothing.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self._weights()(
            **self._long_context([[each] for each in stretches], positions),
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self._report(ids.numel())
        self._counters["computed_tokens"] += ids.numel()
        return out.logits, out.past_key_values

    def _long_context(self, stretches: Sequence[Sequence[float]], positions: "torch.Tensor") -> dict[str, Any]:
        """Set the stretches, [rows, 1 or tokens], for the next pass; return what attention is told beyond the usual.

        `positions` are [rows, tokens].
        """
        self._weights()
        if self._rotary is None:
            return {}
        from qwen_eval.models.transformers.rotary import query_scales

        self._rotary.stretches = stretches
        windows = self.long.windows(self.config.num_hidden_layers)
        return {"query_scale": query_scales(self.long, positions), "windows": windows}

    def _weights(self) -> Any:
        """Load the weights once."""
        if self._model is None:
            import torch

            if self.device.type == "cpu":
                choose_threads(measure=not self.deterministic)
            elif self.deterministic:
                # Without a fixed workspace cuBLAS may choose another algorithm from one run to the next.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.use_deterministic_algorithms(True, warn_only=True)
            begun = time.perf_counter()
            reset_peak_memory(self.device)
            try:
                model = loading.load_weights(
                    self.checkpoint,
                    self.config,
                    dtype=self.dtype,
                    device=self.device,
                    spread=self._is_spread(),
                    trusted=self.trusted,
                )
            except QwenEvalError:
                raise
            except Exception as error:  # transformers raises whatever the file at fault makes it raise
                if is_out_of_memory(error):
                    raise DeviceError(
                        f"{self.checkpoint.name}: the weights do not fit into the memory of {self.device} in "
                        f"{self.identity.dtype}.\nNext: choose another --device, or a smaller --dtype."
                    ) from error
                raise ModelError(
                    f"{self.checkpoint.folder}: this checkpoint cannot be loaded ({first_line(error)})."
                ) from error
            if self._fingerprint() != self.identity.fingerprint:
                raise ModelError(
                    f"{self.checkpoint.folder}: expected the checkpoint that this run began with, found it changed.\n"
                    "Next: run again; what is answered by the changed one is kept apart."
                )
            self.device = model.get_input_embeddings().weight.device
            self._model = model.eval()
            self._install_long_context()
            release_memory(self.device)
            self._load_peak = peak_memory(self.device)
            reset_peak_memory(self.device)
            self._load_seconds += time.perf_counter() - begun
        return self._model

    def _install_long_context(self) -> None:
        """Give the model what its setting asks for, if anything."""
        if self.long.name != "plain":
            from qwen_eval.models.transformers.rotary import SCALED, install, register_scaled

            self._rotary = install(self._model, self.config, self.long)
            register_scaled()
            self._model.set_attn_implementation(SCALED)

    def _fingerprint(self, *, verify: bool = False) -> str:
        """Return the fingerprint of what is loaded, with the setting where that is not the checkpoint's own."""
        found = identify(self.checkpoint, verify=verify)
        own = loading.own_long_context(self.checkpoint.folder, self.kind, self.config)
        return found if self.long == own else _hash(f"{found} {self.long.name}")

    def _is_spread(self) -> bool:
        """Return whether the layers stand on several GPUs: none was named and one is too small for the weights.

        The layers then stand on the GPUs one after the other (needs the package accelerate).
        """
        import torch

        if self.device.type != "cuda" or self.device.index is not None or torch.cuda.device_count() < 2:
            return False
        stored = sum(
            file.stat().st_size for kind in ("*.safetensors", "*.bin") for file in self.checkpoint.folder.glob(kind)
        ) * SHARE_OF_STORED.get(self.checkpoint.quantisation or "", 1)
        return stored > WEIGHTS_SHARE * free_memory(self.device)

    def _refused(self, length: int, more: int) -> Failed | None:
        """Say why a prompt of so many tokens cannot be asked, with so many more behind it; None where it can."""
        if not length:
            return Failed(reason="the prompt has no tokens")
        if length + more > self.window:
            return Failed(reason=f"the prompt has {length:,} tokens, the model's window is {self.window:,}")
        return None


def scales_with_length(config: Any) -> bool:
    """Return whether rotary frequencies follow the longest sequence that is computed: nothing else may be beside it."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def cache_bytes(config: Any, dtype: str) -> int:
    """Return how many bytes the keys and values of one token take."""
    import torch

    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    width: int = (getattr(config, "num_key_value_heads", None) or heads) * head_size
    return 2 * int(config.num_hidden_layers) * width * int(getattr(torch, dtype).itemsize)


def _rows_in_memory(config: Any) -> int:
    """Return how many rows of 2,048 tokens keep keys and values, in float32, in an eighth of the memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(AUTO_BATCH, memory // 8 // (2048 * cache_bytes(config, "float32"))))


def _with_column(mask: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)


def _kind_and_length(item: tuple[int, Request]) -> tuple[str, int]:
    request = item[1]
    if isinstance(request, Perplexity):
        length = request.block
    elif isinstance(request.prompt, str):
        length = len(request.prompt)
    else:
        length = sum(len(turn.content) for turn in request.prompt.turns)
    return type(request).__name__, -length


def _repetition_penalty(folder: Path) -> float:
    """Return the repetition penalty of a checkpoint's generation configuration, 1 for none."""
    import json

    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("repetition_penalty")
    except (OSError, ValueError, AttributeError):
        return 1.0
    return float(found) if isinstance(found, int | float) and found > 0 else 1.0


def left_cut(ids: list[int], cut: LeftCut | None) -> tuple[list[int], int]:
    """Apply a protocol's own cut; return the ids that stay and how many went."""
    if cut is None or len(ids) <= cut.over:
        return ids, 0
    return ids[-cut.keep :], len(ids) - cut.keep


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"--device {name}: expected auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s).")
    return device


def _hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]
