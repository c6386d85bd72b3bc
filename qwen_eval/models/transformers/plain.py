"""transformers' own `generate`, batch 1, greedily and always to the limit: what an engine's speed is set beside."""

from collections.abc import Sequence
from typing import Any

from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.task import Answer, Failed, Generate, Generated

__all__ = ["PlainModel"]


class PlainModel(ReferenceModel):
    """A local checkpoint that generates as a user of transformers would let it. For measuring, not for evaluating."""

    engine = "transformers"

    def _generate(self, batch: Sequence[tuple[int, Generate]]) -> list[tuple[int, Answer | Failed]]:
        return [(ticket, self._generated(ticket, request)) for ticket, request in batch]

    def _generated(self, ticket: int, request: Generate) -> Answer | Failed:
        import torch
        from transformers import GenerationConfig

        row = self._row(ticket, request)
        if isinstance(row, Failed):
            return row
        model: Any = self._weights()
        ids = torch.tensor([row.prompt], device=self.device)
        config = GenerationConfig(
            do_sample=False,
            # End tokens are impossible until the limit is reached, as in the published script.
            min_new_tokens=row.limit,
            max_new_tokens=row.limit,
            eos_token_id=sorted(self.tokenizer.end_tokens) or None,
            pad_token_id=0,
        )
        new = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(row.prompt) :]
        row.new += new.tolist()
        self._counters["prompt_tokens"] += len(row.prompt)
        self._counters["new_tokens"] += len(row.new)
        text = self.tokenizer.decode(row.new, after=row.prompt)
        return Generated(text=text, finish="length", prompt_tokens=len(row.prompt), new_tokens=len(row.new))
