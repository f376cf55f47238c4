"""The paper's "accuracy": the probability of the gold answer's tokens.

Source: Quiet-STaR (arXiv:2403.09629), section 5.1; ezelikman/quiet-star, eval_helpers.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qs.data.completions import encoded
from qs.data.prompts import direct_answer, direct_prompt
from qs.data.question_sets import BenchmarkQuestion
from qs.inference.loglikelihood import ScoredText, TextScore
from qs.model.tokenizer import Tokenizer


def gold_probability(log_p: Tensor, targets: Sequence[int], allowed: Sequence[int]) -> Tensor:
    """Probability of an answer's tokens, each renormalised over what an answer may hold.

    Args:
        log_p: (..., L, V) log-probabilities (or logits) at the positions that predict the answer.
        targets: L ids; those not in `allowed` (commas, spaces) are passed over.
        allowed: ids that an answer may hold: digits and newline, or option letters and newline.

    Returns:
        (...) product of the renormalised probabilities, double precision.

    Raises:
        ValueError: no target is allowed.
    """
    kept = [i for i, target in enumerate(targets) if target in allowed]
    if not kept:
        raise ValueError(f"expected an answer with tokens of {list(allowed)}, found none of them")
    chosen = log_p[..., kept, :][..., list(allowed)].double().log_softmax(-1)
    index = torch.tensor([allowed.index(targets[i]) for i in kept], device=log_p.device)
    index = index.expand(chosen.shape[:-1])[..., None]
    return chosen.gather(-1, index).squeeze(-1).sum(-1).exp()


@dataclass(frozen=True)
class Item:
    """One question as tokens."""

    question: BenchmarkQuestion
    text: ScoredText  # prompt, answer and newline; scored is what the answer may hold
    prompt: tuple[int, ...]  # ids before the answer
    options: tuple[int, ...]  # id of each label, in order; empty without choices

    @property
    def allowed(self) -> tuple[int, ...]:
        """Ids that the answer may hold."""
        return self.text.among or ()

    @property
    def chance(self) -> float:
        """Probability of the answer if all that it may hold is equally likely."""
        return len(self.allowed) ** -float(len(self.text.positions))

    def gold(self, score: TextScore) -> float:
        """Probability of the gold answer, the mean over thoughts."""
        targets = [self.allowed.index(self.text.ids[t + 1]) for t in self.text.positions]
        return gold_probability(score.log_p, targets, range(len(self.allowed))).mean().item()

    def chosen(self, score: TextScore) -> bool:
        """Whether the right option is likeliest to come first, by the mean over thoughts."""
        columns = [self.allowed.index(option) for option in self.options]
        p = score.log_p[:, 0, columns].exp().mean(0)
        return self.question.labels[int(p.argmax())] == self.question.gold


def item(question: BenchmarkQuestion, tokenizer: Tokenizer) -> Item:
    """Put a question and its gold answer into tokens.

    Raises:
        ValueError: the tokenizer has no single token for a digit, a label or the newline after
            it, or joins digits of the answer into one.
    """
    options = tuple(_token_of(label, tokenizer) for label in question.labels)
    # a digit may be another token where it comes first, after the space
    places = [(digit, f"\nA: {before}") for before in ("", "4") for digit in "0123456789"]
    among = options or dict.fromkeys(_token_of(digit, tokenizer, at) for digit, at in places)
    after = f"\nA: {question.labels[0] if options else 4}"
    allowed = (*among, _token_of("\n", tokenizer, after))
    example = encoded(tokenizer, direct_prompt(question), direct_answer(question), eos=False)
    ids, start = tuple(example.ids), example.prompt
    scored = tuple(i - 1 for i in range(start, len(ids)) if ids[i] in allowed)
    parts = 1 if options else sum(char in "0123456789" for char in question.written)
    if len(scored) != parts + 1:
        found = [tokenizer.piece(i) for i in ids[start:]]
        raise ValueError(
            f"expected a token for each digit of {question.written!r} and one for the newline, "
            f"found {found}: the paper's measure needs a tokenizer that keeps digits apart"
        )
    return Item(question, ScoredText(ids, scored, allowed), ids[:start], options)


def _token_of(text: str, tokenizer: Tokenizer, before: str = "\nA: ") -> int:
    """The one token that ends `before` and a text."""
    ids = tokenizer.encode(before + text)
    if not ids or tokenizer.piece(ids[-1]).strip(" ") != text:
        raise ValueError(f"expected a token for {text!r}, found none in the tokenizer")
    return ids[-1]
