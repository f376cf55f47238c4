"""Decoding with a thought before each output token, or without.

    read    one pass over the prompts, whatever their lengths
    think   <start>, n sampled tokens and <end>, after the text so far
    mix     the prediction after the thought into the prediction without it, as in training
    draw    the output token; the thought is forgotten, the text's keys and values are kept

An output token costs n + 3 slots (start, thought, end, and the token itself) in n + 2 passes, or
n + 1 where every token thinks, since slots that are known together are fed together; without a
thought it costs one. Rows that have ended cost nothing. The host waits for the device once for each
output token, and once more where entropy decides who thinks.

Randomness: a row draws by numbers of its own (`decoding.uniforms`). So its text does not depend on
what it is batched with, and its numbers do not depend on who thinks, or how long.

Source: Quiet-STaR (arXiv:2403.09629), section 4.3; thinking only where it may pay is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from qs.inference.cache import Rows
from qs.inference.decoding import Counts, Decoding, Generated, Reason, ThinkWhen, Token, uniforms
from qs.quietstar.algorithm import PAUSE, QuietStar
from qs.quietstar.losses import entropy
from qs.quietstar.mixer import mixed_log_p
from qs.quietstar.sampler import allowed_ids, choose

Stop = Callable[[int, list[int]], bool]
"""(row, all its output ids so far) -> whether to end it."""


def generate(
    quiet: QuietStar,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    seed: int = 0,
    stop_ids: Collection[int] = (),
    stop: Stop | None = None,
    numbers: Sequence[int] | None = None,
) -> list[Generated]:
    """What follows each prompt. Arguments and errors are those of `Stream`."""
    stream = Stream(quiet, prompts, decoding, seed, stop_ids, stop, numbers)
    for _ in stream:
        pass
    return stream.results()


class Stream:
    """Decoding in progress: iterate for the tokens of each step, a list of (row, Token).

    A row is an index into `prompts`. Every row that has not ended gives one token a step. A row
    ends at EOS, where it is told to stop, after `max_tokens`, or when another token, or the thought
    before it, would not fit in the positions that the model was made for.

    Args:
        quiet: the module. n is its config's; a thought of n = 0 tokens is no thought.
        prompts: ids, at least one in each.
        decoding: how to draw.
        seed: of the numbers that tokens and thoughts are drawn by.
        stop_ids: end a row like EOS.
        stop: asked after each token that has not ended its row.
        numbers: of the rows, by default 0, 1, ..: rows of the same number and seed draw by the
            same numbers. Give them where a larger batch is split.

    Attributes:
        tokens: of each row, so far.
        reasons: why each row ended; None: it has not.
        counts: what was computed so far.

    Raises:
        ValueError: a prompt is empty, too long or holds an id that is none; a stop id is none;
            `numbers` has another length.
    """

    def __init__(
        self,
        quiet: QuietStar,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        seed: int = 0,
        stop_ids: Collection[int] = (),
        stop: Stop | None = None,
        numbers: Sequence[int] | None = None,
    ):
        shape, device = quiet.model.config, quiet.start.device
        self.quiet, self.prompts, self.decoding = quiet, prompts, decoding
        self.stop_ids, self.stop = frozenset(stop_ids), stop
        self.n = quiet.config.thoughts
        self.when = ThinkWhen.parse(decoding.think_when if self.n else "never")
        self.branch = 0 if self.when.never else self.n + 2  # slots of a thought
        self.most = self._check(numbers)
        self.tokens: list[list[Token]] = [[] for _ in prompts]
        self.reasons: list[Reason | None] = [None] * len(prompts)
        self.counts = Counts()

        forbidden = set(shape.forbidden)
        self._thinkable = allowed_ids(shape.vocab_size, forbidden, device)
        self._sayable = allowed_ids(shape.vocab_size, forbidden - {shape.eos_id}, device)
        self._going = list(range(len(prompts)))
        drawn = uniforms(
            seed, self._going if numbers is None else numbers, max(self.most, default=0), self.n
        )
        self._uniforms = [x.to(device) for x in drawn]  # of the rows that go on
        self._step = 0
        self._text: Rows | None = None
        self._base: Tensor | None = None  # (R, D) outputs at the last tokens; None: not read yet
        self._unread: Tensor | None = None  # (R, 1, D) embeddings of the last tokens

    def _check(self, numbers: Sequence[int] | None) -> list[int]:
        """Refuse what cannot be decoded; else the number of tokens that each row may get."""
        shape, most = self.quiet.model.config, []
        for row, prompt in enumerate(self.prompts):
            if not len(prompt):
                raise ValueError(f"prompt {row}: expected at least one token, got none")
            _check_ids(f"prompt {row}", prompt, shape.vocab_size)
            after = max(1, self.branch)
            room = shape.max_positions - len(prompt) - after + 1
            if room < 1:
                more = f"a thought of {after} (start and end included)" if self.branch else "one"
                raise ValueError(
                    f"prompt {row}: {len(prompt)} tokens and {more} after them exceed the "
                    f"{shape.max_positions} positions that the model was made for: shorten it"
                )
            most.append(min(self.decoding.max_tokens, room))
        _check_ids("stop ids", self.stop_ids, shape.vocab_size)
        if numbers is not None and len(numbers) != len(self.prompts):
            raise ValueError(f"expected {len(self.prompts)} numbers of rows, got {len(numbers)}")
        return most

    def __iter__(self) -> Iterator[list[tuple[int, Token]]]:
        while self._going:
            yield self._next()

    def results(self) -> list[Generated]:
        """What followed each prompt, so far."""
        found = []
        for prompt, tokens, reason in zip(self.prompts, self.tokens, self.reasons, strict=True):
            thoughts = sum(token.thought is not None for token in tokens)
            read = len(prompt) + len(tokens) - 1 if tokens else 0  # the last one is not
            found.append(Generated(tuple(tokens), reason, read + self.branch * thoughts))
        return found

    @torch.no_grad()
    def _next(self) -> list[tuple[int, Token]]:
        """Draw the next token of every row that goes on."""
        if self._text is None:
            limit = max(len(p) + most for p, most in zip(self.prompts, self.most, strict=True))
            self._text, self._base = Rows.read(self.quiet.model, self.prompts, limit + self.branch)
            self._count(sum(map(len, self.prompts)))
        said, thought = (x[:, self._step] for x in self._uniforms)
        who, thoughts, weight, nats, log_p = self._predict(thought)
        drawn = choose(log_p, said, self._sayable, self.decoding.temperature, self.decoding.top_p)
        drawn = drawn[:, None]
        columns = (drawn, log_p.gather(1, drawn), nats[:, None], weight[:, None], thoughts)
        table = torch.cat([x.double() for x in columns], 1).tolist()  # one wait for all of it

        step = []
        for i, (row, (token, chosen, nats, w, *thought)) in enumerate(
            zip(self._going, table, strict=True)
        ):
            thinks = (tuple(map(int, thought)), w) if i in who else (None, None)
            step.append((row, Token(int(token), *thinks, nats, chosen)))
            self.tokens[row].append(step[-1][1])
            self.reasons[row] = self._reason(row)
        self.counts.tokens += len(step)
        self.counts.thoughts += len(who)
        self.counts.thought_tokens += self.n * len(who)
        self._step += 1
        self._go_on(drawn)
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
        tokens = self.tokens[row]
        if tokens[-1].id == self.quiet.model.config.eos_id:
            return "eos"
        if tokens[-1].id in self.stop_ids:
            return "stop_id"
        if self.stop is not None and self.stop(row, [token.id for token in tokens]):
            return "stop"
        return "length" if len(tokens) == self.most[row] else None

    def _predict(self, numbers: Tensor) -> tuple[Collection[int], Tensor, Tensor, Tensor, Tensor]:
        """Read the last tokens, think where it may pay, mix.

        Args:
            numbers: (R, n) that thoughts are drawn by.

        Returns:
            which of the R rows thought; their thoughts (R, n) and weights (R,), arbitrary for the
            others; entropy (R,) of the base prediction; log-probabilities (R, V).
        """
        text, R = self._text, len(self._going)
        if self.when.always:
            thoughts, after = self._think(text, numbers)
            plain, log_p, weight = self._mix(self._base, after)
            return range(R), thoughts, weight, entropy(plain), log_p
        if self._base is None:
            self._base = self._feed(text, self._unread)[:, 0]
        log_p = self.quiet.model.logits(self._base).log_softmax(-1)
        nats, weight = entropy(log_p), torch.zeros_like(log_p[:, 0])
        thoughts = torch.full(numbers.shape, PAUSE, device=log_p.device)
        if self.when.never:
            return (), thoughts, weight, nats, log_p
        who = (nats > self.when.above).nonzero().squeeze(1).tolist()
        if who:
            at = torch.tensor(who, device=log_p.device)
            rows = text if len(who) == R else text.some(who, self.branch)
            thoughts[at], after = self._think(rows, numbers[at])
            _, log_p[at], weight[at] = self._mix(self._base[at], after)
        return who, thoughts, weight, nats, log_p

    def _think(self, rows: Rows, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """A thought after each of some rows: tokens (R, n) and outputs (R, D) at <end>.

        Last tokens that are not read yet are read on the way.
        """
        quiet, R = self.quiet, len(numbers)
        start, end = (
            (vector * quiet.config.embedding_scale).to(quiet.model.compute_dtype).expand(R, 1, -1)
            for vector in (quiet.start, quiet.end)
        )
        unread = self._base is None
        waiting = [self._unread, start] if unread else [start]
        outputs, thought = [], []
        for j in range(self.n):
            if quiet.pause:
                waiting.append(start)
                continue
            outputs.append(self._feed(rows, torch.cat(waiting, 1)))
            logits = quiet.model.logits(outputs[-1][:, -1])
            token = choose(logits, numbers[:, j], self._thinkable, self.decoding.think_temperature)
            thought.append(token)
            waiting = [quiet.model.embed(token)[:, None]]
        outputs.append(self._feed(rows, torch.cat([*waiting, end], 1)))
        rows.forget(self.branch)
        if unread:
            self._base = outputs[0][:, 0]
        if quiet.pause:
            return torch.full(numbers.shape, PAUSE, device=numbers.device), outputs[-1][:, -1]
        return torch.stack(thought, 1), outputs[-1][:, -1]

    def _mix(self, base: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (R, D) -> log-probabilities (R, V) without and with thoughts, weights (R,)."""
        anchors = torch.zeros((len(base), 1), dtype=torch.int64, device=base.device)
        with self.quiet.with_settings(ahead=1):
            mixed = self.quiet.mix(
                anchors, base[:, None], after[:, None, None, None], self.decoding.fixed_weight
            )
        plain, log_p = mixed_log_p(mixed, self.quiet.model.head, self.quiet.config.mix_space)
        return plain.flatten(0, 3), log_p.flatten(0, 3), mixed.weight.flatten()

    def _feed(self, rows: Rows, x: Tensor) -> Tensor:
        self._count(x.shape[0] * x.shape[1])
        return rows.feed(x)

    def _count(self, slots: int) -> None:
        self.counts.passes += 1
        self.counts.slots += slots


def _check_ids(what: str, ids: Collection[int], vocabulary: int) -> None:
    wrong = [i for i in ids if not 0 <= i < vocabulary]
    if wrong:
        raise ValueError(f"{what}: expected ids in [0, {vocabulary}), got {wrong[0]}")
