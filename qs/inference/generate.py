"""Decoding with a thought before each output token, or without.

    read    one pass over the prompts, whatever their lengths
    think   <start>, n sampled tokens (or fewer, where a thought ends itself) and <end>
    mix     the prediction after the thought into the prediction without it, as in training
    draw    the output token; the thought is forgotten, the text's keys and values are kept

An output token costs n + 3 slots (start, thought, end, and the token itself) in n + 2 passes, or
n + 1 where every token thinks, since slots that are known together are fed together; without a
thought it costs one. Rows that have ended cost nothing. The host waits for the device once for each
output token, once more where entropy decides who thinks, and for each token of thoughts that end
themselves: they take the passes of the longest, and what the others are fed meanwhile is forgotten.

Randomness: a row draws by numbers of its own (`decoding.uniforms`). So its text does not depend on
what it is batched with, and its numbers do not depend on who thinks, or how long.

Source: Quiet-STaR (arXiv:2403.09629), section 4.3; thinking only where it may pay is ours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qs.inference.cache import Reading, Rows, read_texts
from qs.inference.decoding import (
    Counts,
    Decoding,
    Generated,
    OutputToken,
    Reason,
    sayable_ids,
    think_above,
    uniforms,
)
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.ends import ENDED, after_end, lengths, pauses
from qs.quietstar.losses import entropy
from qs.quietstar.mixer import check_fixed, mixed_log_p
from qs.quietstar.sampler import allowed_ids, choose, thought_logits

Stop = Callable[[int, list[int]], bool]
"""(row, all its output ids so far) -> whether to end it."""


class Prediction(NamedTuple):
    """What follows R rows, W of which thought about it."""

    log_p: Tensor  # (R, V) in nats, mixed where a row thought
    entropy: Tensor  # (R,) of the prediction without a thought, in nats
    thinkers: Sequence[int]  # the W rows
    thoughts: Tensor  # (W, n) tokens, or PAUSE; ENDED in places that are left over
    weights: Tensor  # (W,) of the mixing


class Stream:
    """Decoding in progress: iterate for the tokens of each step, a list of (row, OutputToken).

    A row is an index into `prompts`. Every row that has not ended gives one token a step. A row
    ends at EOS, where it is told to stop, after `max_tokens`, or when another token, or the thought
    before it, would not fit in the positions that the model was made for.

    Args:
        quiet: the module. n is its config's; a thought of n = 0 tokens is no thought.
        prompts: ids, at least one in each.
        decoding: how to draw.
        seed: of the numbers that tokens and thoughts are drawn by.
        stop: asked after each token that has not ended its row.
        numbers: of the rows, by default 0, 1, ..: rows of the same number and seed draw by the
            same numbers. Give them where a larger batch is split.
        reading: the prompts, if they were read already; it is used up.

    Attributes:
        tokens: of each row, so far.
        reasons: why each row ended; None: it has not.
        counts: what was computed so far.

    Raises:
        ValueError: a prompt is empty, too long or holds an id that is none; `numbers` has another
            length; the model cannot mix by the weight.
    """

    def __init__(
        self,
        quiet: QuietStar,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        seed: int = 0,
        stop: Stop | None = None,
        numbers: Sequence[int] | None = None,
        reading: Reading | None = None,
    ):
        check_fixed(decoding.fixed_weight, quiet.config)
        shape, device = quiet.model.config, quiet.start.device
        self.quiet, self.prompts, self.decoding, self.stop = quiet, prompts, decoding, stop
        self.n = quiet.config.thoughts
        self.think_above = think_above(decoding.think_when if self.n else "never")
        self.branch = 0 if self.think_above == math.inf else self.n + 2  # slots of a thought
        self.most = [self._most(row) for row in range(len(prompts))]
        self.tokens: list[list[OutputToken]] = [[] for _ in prompts]
        self.reasons: list[Reason | None] = [None] * len(prompts)
        self.counts = Counts()

        thinkable = shape.vocab_size + (quiet.end_row is not None)  # the last one is <end>
        self._thinkable = allowed_ids(thinkable, set(shape.forbidden), device)
        self._sayable = sayable_ids(shape, device)
        self._going = list(range(len(prompts)))
        numbers = self._going if numbers is None else numbers
        if len(numbers) != len(prompts):
            raise ValueError(f"expected {len(prompts)} numbers of rows, got {len(numbers)}")
        drawn = uniforms(seed, numbers, max(self.most, default=0), self.n)
        self._uniforms = [x.to(device) for x in drawn]  # of the rows that go on
        self._step = 0
        self._text = None if reading is None else reading.rows
        # (R, D) outputs at the last tokens; None: those (R, 1, D) embeddings are not read yet
        self._base = None if reading is None else reading.last
        self._unread: Tensor | None = None

    def _most(self, row: int) -> int:
        """Tokens that a row may get; refuses a prompt that cannot be gone on from."""
        shape, prompt, after = self.quiet.model.config, self.prompts[row], max(1, self.branch)
        if not len(prompt):
            raise ValueError(f"prompt {row}: expected at least one token, got none")
        if wrong := [i for i in prompt if not 0 <= i < shape.vocab_size]:
            raise ValueError(
                f"prompt {row}: expected ids in [0, {shape.vocab_size}), got {wrong[0]}"
            )
        room = shape.max_positions - len(prompt) - after + 1
        if room < 1:
            more = f"a thought of {after} (start and end included)" if self.branch else "one"
            raise ValueError(
                f"prompt {row}: {len(prompt)} tokens and {more} after them exceed the "
                f"{shape.max_positions} positions that the model was made for: shorten it"
            )
        return min(self.decoding.max_tokens, room)

    def __iter__(self) -> Iterator[list[tuple[int, OutputToken]]]:
        while self._going:
            yield self._next()

    def finish(self) -> list[Generated]:
        """What follows each prompt, when every row has ended."""
        for _ in self:
            pass
        return self.results()

    def results(self) -> list[Generated]:
        """What followed each prompt, so far."""
        rows = zip(self.tokens, self.reasons, strict=True)
        return [Generated(tuple(tokens), reason) for tokens, reason in rows]

    @torch.no_grad()
    def _next(self) -> list[tuple[int, OutputToken]]:
        """Draw the next token of every row that goes on."""
        if self._text is None:
            limit = max(len(p) + most for p, most in zip(self.prompts, self.most, strict=True))
            slots, own = limit + self.branch, self.quiet.visibility
            reading = read_texts(self.quiet.model, self.prompts, slots, own)
            self._text, self._base = reading.rows, reading.last
            self._count(sum(map(len, self.prompts)))
        said, thinking = (x[:, self._step] for x in self._uniforms)
        prediction = self._predict(thinking)
        log_p, decoding = prediction.log_p, self.decoding
        drawn = choose(log_p, said, self._sayable, decoding.temperature, decoding.top_p)
        # the first of these waits for the device; then the others are ready
        ids, chosen = drawn.tolist(), log_p.gather(1, drawn[:, None]).squeeze(1).tolist()
        nats, thoughts, weights = (
            x.tolist() for x in (prediction.entropy, prediction.thoughts, prediction.weights)
        )
        thinkers = {i: at for at, i in enumerate(prediction.thinkers)}

        step = []
        for i, row in enumerate(self._going):
            at = thinkers.get(i)
            thought, weight = None, None
            if at is not None:
                thought, weight = tuple(i for i in thoughts[at] if i != ENDED), weights[at]
            token = OutputToken(ids[i], thought, weight, nats[i], chosen[i])
            step.append((row, token))
            self.tokens[row].append(token)
            self.reasons[row] = self._reason(row)
        self.counts.tokens += len(step)
        self.counts.thoughts += len(thinkers)
        self._step += 1
        self._go_on(drawn[:, None])
        return step

    def _go_on(self, drawn: Tensor) -> None:
        """Drop the rows that have ended; (R, 1) tokens are what the others read next."""
        keep = [i for i, row in enumerate(self._going) if self.reasons[row] is None]
        if keep and len(keep) < len(self._going):
            at = torch.tensor(keep, device=drawn.device)
            self._text.keep(keep)
            drawn, self._uniforms = drawn[at], [x[at] for x in self._uniforms]
        self._going = [self._going[i] for i in keep]
        self._base, self._unread = None, self.quiet.model.embed(drawn)

    def _reason(self, row: int) -> Reason | None:
        """Why a row ends after its last token; None: it goes on."""
        ids = [token.id for token in self.tokens[row]]
        if ids[-1] in self.quiet.model.config.ends:
            return "eos"
        if self.stop is not None and self.stop(row, ids):
            return "stop"
        return "length" if len(ids) == self.most[row] else None

    def _predict(self, numbers: Tensor) -> Prediction:
        """Read the last tokens, think by (R, n) numbers where it may pay, mix."""
        text, R, weight = self._text, len(self._going), self.decoding.fixed_weight
        if self.think_above == -math.inf:
            thoughts, after = self._think(text, numbers)
            base, log_p, weights = predict_next(self.quiet, self._base, after, weight)
            return Prediction(log_p, entropy(base), range(R), thoughts, weights)
        if self._base is None:
            self._base = self._feed(text, self._unread)[:, 0]
        log_p = self.quiet.model.logits(self._base).log_softmax(-1)
        nats = entropy(log_p)
        thinkers = (nats > self.think_above).nonzero().squeeze(1).tolist() if self.branch else []
        if not thinkers:
            return Prediction(log_p, nats, (), numbers[:0], nats[:0])
        at = torch.tensor(thinkers, device=log_p.device)
        rows = text if len(thinkers) == R else text.copy(thinkers, self.branch)
        thoughts, after = self._think(rows, numbers[at])
        _, log_p[at], weights = predict_next(self.quiet, self._base[at], after, weight)
        return Prediction(log_p, nats, thinkers, thoughts, weights)

    def _think(self, rows: Rows, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """A thought after each of W rows: tokens (W, n) and outputs (W, D) at <end>.

        Last tokens that are not read yet are read on the way. A row whose thought has ended is fed
        <end>, and then again as long as others go on, which it forgets.
        """
        quiet, model, (W, n) = self.quiet, self.quiet.model, numbers.shape
        temperature = self.decoding.think_temperature
        start, end = (v.to(model.compute_dtype).expand(W, 1, -1) for v in quiet.vectors)
        x = start if self._base is not None else torch.cat([self._unread, start], 1)
        thought = pauses((W, n), x.device)
        text = x.shape[1] - 1
        if quiet.pause:
            x = torch.cat([x, start.expand(W, n, -1)], 1)
        outputs, going = [], torch.ones((W, 1), dtype=torch.bool, device=x.device)
        for j in range(0 if quiet.pause else n):
            outputs.append(self._feed(rows, x, text if j == 0 else 0))
            logits = thought_logits(model, outputs[-1][:, -1], quiet.end_row)
            drawn = choose(logits, numbers[:, j], self._thinkable, temperature)[:, None]
            going = going & (drawn < len(model.head))
            thought[:, j:] = drawn.where(going, ENDED)
            x = torch.where(going[..., None], model.embed(thought[:, j, None].clamp(min=0)), end)
            if quiet.end_row is not None and not going.any():
                break
        else:
            x = torch.cat([x, end], 1)
        outputs.append(self._feed(rows, x, 0 if outputs else text))
        fed = torch.cat(outputs, 1)  # (W, 1 + n + 2 at most, D)
        if self._base is None:
            self._base, fed = fed[:, 0], fed[:, 1:]
        rows.forget(fed.shape[1])
        if quiet.end_row is not None:
            self.counts.slots -= W * fed.shape[1] - int((lengths(thought) + 2).sum())
        return thought, after_end(fed, thought, 1)[:, 0]

    def _feed(self, rows: Rows, x: Tensor, text: int = 1) -> Tensor:
        """Go on by slots of which the first `text` are text, the others of a thought."""
        self._count(x.shape[0] * x.shape[1])
        return rows.feed(x, x.shape[1] - text)

    def _count(self, slots: int) -> None:
        self.counts.passes += 1
        self.counts.slots += slots


def predict_next(
    quiet: QuietStar, base: Tensor, after: Tensor, fixed_weight: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix two predictions of the next token.

    Args:
        quiet: the module.
        base: (N, D) outputs at the last token.
        after: (N, D) outputs at <end> of the thought after it.
        fixed_weight: mixing weight to use instead of the head's.

    Returns:
        log-probabilities (N, V) without and with the thought, and mixing weights (N,).
    """
    anchors = torch.zeros((len(base), 1), dtype=torch.int64, device=base.device)
    with quiet.with_settings(ahead=1):
        mixed = quiet.mix(anchors, base[:, None], after[:, None, None, None], fixed_weight)
    plain, log_p = mixed_log_p(mixed, quiet.model.head, quiet.config.mix_space)
    return plain.flatten(0, 3), log_p.flatten(0, 3), mixed.weight.flatten()
