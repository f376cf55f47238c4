"""Decoding that computes the whole row again for every slot, to time and to check the cache by.

python tests/uncached.py weights/tiny --thoughts 5 --rows 8 --prompt 64 --tokens 64
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from qs.inference.decoding import Decoding, sayable_ids
from qs.inference.generate import Stream, predict_next
from qs.presets import ONE_THOUGHT
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.attention import CachedText, new_cache
from qs.quietstar.load import open_model
from qs.quietstar.masks import dense_mask, one_document, text_slots
from qs.quietstar.sampler import allowed_ids


def whole_row(quiet: QuietStar, x: Tensor) -> Tensor:
    """(B, S, D) embeddings -> (B, S, D) outputs of one causal pass."""
    shape, positions = quiet.model.config, torch.arange(x.shape[1], device=x.device)[None]
    cache = new_cache(shape.layers, tuple(x.shape[:2]), shape.kv_heads, shape.head_dim, x)
    slots = text_slots(one_document(positions))
    return quiet.model(x, positions, CachedText(dense_mask(slots, slots, shape.window)), cache)


@torch.no_grad()
def uncached(quiet: QuietStar, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Greedy text with greedy thoughts before each token, after prompts of one length.

    A thought is fed as if it were text; nothing is kept from one pass to the next.
    """
    model, shape = quiet.model, quiet.model.config
    start, end = (v.to(model.compute_dtype)[None, None] for v in quiet.vectors)
    thinkable = allowed_ids(shape.vocab_size, set(shape.forbidden), start.device)
    sayable = sayable_ids(shape, start.device)
    text = torch.tensor(prompts, device=start.device)
    for _ in range(tokens):
        row = torch.cat([model.embed(text), start.expand(len(text), -1, -1)], 1)
        for _ in range(quiet.config.thoughts):
            outputs = whole_row(quiet, row)
            likeliest = thinkable[model.logits(outputs[:, -1])[:, thinkable].argmax(1)]
            row = torch.cat([row, model.embed(likeliest)[:, None]], 1)
        outputs = whole_row(quiet, torch.cat([row, end.expand(len(text), -1, -1)], 1))
        base, after = outputs[:, text.shape[1] - 1], outputs[:, -1]
        log_p = predict_next(quiet, base, after)[1]
        text = torch.cat([text, sayable[log_p[:, sayable].argmax(1)][:, None]], 1)
    return text[:, len(prompts[0]) :].tolist()


def main() -> None:
    """Tokens a second with and without the cache, twice each, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    for name, default in (("thoughts", 5), ("rows", 8), ("prompt", 64), ("tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    thought = ONE_THOUGHT | {"thoughts": args.thoughts}
    quiet = open_model(args.model, **thought, seq=2, device="cpu", compile=False).quiet
    numbers = torch.Generator().manual_seed(0)
    shape = quiet.model.config
    prompts = torch.randint(3, shape.vocab_size, (args.rows, args.prompt), generator=numbers)
    prompts, count = prompts.tolist(), args.rows * args.tokens
    for _ in range(2):
        began = time.process_time()
        found = Stream(quiet, prompts, Decoding(max_tokens=args.tokens)).finish()
        cached = time.process_time() - began
        said = sum(len(row.ids) for row in found)
        began = time.process_time()
        whole = uncached(quiet, prompts, args.tokens)
        slow = time.process_time() - began
        same = all(row.ids == ids[: len(row.ids)] for row, ids in zip(found, whole, strict=True))
        print(
            f"cached {said / cached:.0f} tokens a second, whole rows {count / slow:.0f}, "
            f"{said / cached / (count / slow):.1f} times; same text: {same}"
        )


if __name__ == "__main__":
    main()
