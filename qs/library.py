"""The package from Python, in four names: `load` a model, then `think`, `predict`, `generate`.

    import qs

    model = qs.load("runs/NAME")
    model.think("71600\\n")
    model.predict("71600\\n")
    model.generate("71600\\n")

Whoever needs tensors takes `model.quiet` and `model.tokenizer` (`qs.quietstar`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from qs.config import RunConfig, ThoughtConfig
from qs.inference.decoding import Decoding, OutputToken, check_effect, thought_text
from qs.inference.write import write
from qs.presets import ANY_TEXT
from qs.quietstar.load import Opened, open_model
from qs.quietstar.masks import Place, one_document
from qs.quietstar.mixer import check_fixed
from qs.quietstar.parts import Parts
from qs.settings import checked

__all__ = ["Parts", "Place", "Thinker", "load"]

Line = TypeVar("Line")


class Lines(tuple[Line, ...]):
    """Records that are shown one a line."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))


class Thought(NamedTuple):
    """What was thought: its text and its n ids, fewer if it ended itself."""

    text: str
    ids: tuple[int, ...]

    def __repr__(self) -> str:
        return repr(self.text)


class Likely(NamedTuple):
    """A token that may follow, and its probability."""

    text: str
    p: float
    id: int

    def __repr__(self) -> str:
        return f"{self.text!r} {self.p:.2f}"


class Prediction(NamedTuple):
    """The likeliest next tokens, without a thought and mixed with those after it by a weight."""

    thought: Thought
    weight: float
    without: tuple[Likely, ...]
    mixed: tuple[Likely, ...]

    def __repr__(self) -> str:
        without, mixed = (", ".join(map(repr, each)) for each in (self.without, self.mixed))
        return f"{self.thought!r:10} weight {self.weight:+.2f}  without {without}  with {mixed}"


class Said(NamedTuple):
    """One generated token, and the thought before it (None: nothing was thought)."""

    text: str
    thought: Thought | None
    weight: float | None
    entropy: float  # of the prediction without a thought, in nats

    def __repr__(self) -> str:
        line = f"{self.text!r:10} entropy {self.entropy:.2f} nats"
        if self.thought is None:
            return line
        return f"{line}, thought {self.thought!r} weight {self.weight:+.2f}"


class Continuation(NamedTuple):
    """What follows a text; `whole` if EOS or a stop ended it, not the number of tokens."""

    text: str
    tokens: Lines[Said]
    whole: bool

    def __repr__(self) -> str:
        return repr(self.text)


class Thinker:
    """A model that is ready to think about texts. The same call gives the same result.

    Attributes:
        opened: folder, settings and placement.
        quiet: the module.
        tokenizer: that goes with it.
        fixed_weight: mixing weight to use instead of the head's, or None.
        seed: of what is drawn.
    """

    def __init__(self, opened: Opened, fixed_weight: float | None, seed: int):
        self.opened, self.fixed_weight, self.seed = opened, fixed_weight, seed
        self.quiet, self.tokenizer = opened.quiet, opened.tokenizer

    def __repr__(self) -> str:
        config, weight = self.quiet.config, self.fixed_weight
        mixed = "" if weight is None else f", weight {weight:g}"
        lengths = f"{config.samples} thoughts of {config.thoughts} tokens{mixed}"
        return f"{self.opened.folder} on {self.opened.placement}: {lengths}"

    @checked(RunConfig)
    def think(self, text: str, seed: int | None = None) -> Lines[Thought]:
        """K thoughts after a text.

        Args:
            text: any; it begins as texts of the tokenizer do (with BOS).
            seed: of the thoughts; None: the model's.

        Raises:
            ValueError: it leaves no room for a thought in the positions of the model, or an
                argument is of another type or out of range.
        """
        tokens, thoughts = self._think(text, seed)
        ids = tokens[0].tolist()
        return Lines(self._thought(ids, thought) for thought in thoughts[0, 0].tolist())

    @checked(RunConfig, top={"least": 1})
    def predict(self, text: str, top: int = 3, seed: int | None = None) -> Lines[Prediction]:
        """The likeliest next tokens without a thought, and with each of K thoughts.

        Args:
            text, seed: as of `think`, whose thoughts these are.
            top: how many tokens.

        Raises:
            ValueError: as of `think`.
        """
        tokens, thoughts = self._think(text, seed)
        anchors, documents = tokens.new_full((1, 1), tokens.shape[1] - 1), one_document(tokens)
        with torch.no_grad():
            without, mixed, weights = self.quiet.predict(
                tokens, documents, anchors, thoughts, fixed_weight=self.fixed_weight
            )  # (1, 1, K, 1, V), (1, 1, K, 1, V), (1, 1, K, 1)
        ids = tokens[0].tolist()
        return Lines(
            Prediction(
                self._thought(ids, thought),
                float(weights[0, 0, k, 0]),
                self._likeliest(without[0, 0, k, 0], top),
                self._likeliest(mixed[0, 0, k, 0], top),
            )
            for k, thought in enumerate(thoughts[0, 0].tolist())
        )

    @checked(RunConfig, Decoding)
    def generate(
        self,
        text: str,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        think_temperature: float = 0.0,
        think_when: str = "always",
        stops: Sequence[str] = (),
        seed: int | None = None,
    ) -> Continuation:
        """Go on from a text, with one thought before each token.

        Args:
            text: as of `think`.
            max_tokens: to write at most.
            temperature: of the tokens; 0 takes the likeliest.
            top_p: draw from the likeliest tokens that have this much probability together.
            think_temperature: of the thoughts; 0 takes the likeliest tokens.
            think_when: always, never, or entropy>X with X in nats: where the model is unsure.
            stops: end with the token that completes the first of these.
            seed: of what is drawn; None: the model's.

        Raises:
            ValueError: an argument is of another type or out of range, others leave it nothing to
                change, or the text leaves no room.
        """
        weight = None if think_when == "never" else self.fixed_weight
        decoding = Decoding(max_tokens, temperature, top_p, think_temperature, think_when, weight)
        check_effect(decoding)
        ids, seed = self._ids(text), self.seed if seed is None else seed
        (written,) = write(self.quiet, self.tokenizer, [ids], decoding, seed, stops)
        assert written is not None  # a text that leaves no room is refused
        said = []
        for token in written.tokens:
            said.append(self._said(ids, token))
            ids = [*ids, token.id]
        return Continuation(written.text, Lines(said), written.whole)

    def _ids(self, text: str) -> list[int]:
        """Ids of a text that leaves room for a thought and the token that it predicts."""
        ids, most = self.tokenizer.prompt(text), self.quiet.model.config.max_positions
        slots = self.quiet.config.thoughts + 2
        if len(ids) + slots > most:
            raise ValueError(
                f"expected a text of at most {most - slots} tokens, since the model was made for "
                f"{most} positions and a thought takes {slots}, got one of {len(ids)}; shorten it"
            )
        return ids

    def _think(self, text: str, seed: int | None) -> tuple[Tensor, Tensor]:
        """Tokens (1, T) of a text, and thoughts (1, 1, K, n) after the last one."""
        tokens = torch.tensor([self._ids(text)], device=self.quiet.start.device)
        anchors = tokens.new_full((1, 1), tokens.shape[1] - 1)
        generator = torch.Generator()
        generator.manual_seed((self.seed if seed is None else seed) % 2**64)  # what PyTorch takes
        _, thoughts = self.quiet.think(tokens, one_document(tokens), anchors, generator)
        return tokens, thoughts

    def _thought(self, before: Sequence[int], ids: Iterable[int]) -> Thought:
        ids = tuple(ids)
        return Thought(thought_text(self.tokenizer, before, ids), ids)

    def _likeliest(self, log_p: Tensor, top: int) -> tuple[Likely, ...]:
        """(V,) log-probabilities -> the likeliest tokens; ids that are no text say their number."""
        p, ids = log_p.exp().topk(min(top, len(log_p)))
        pairs = zip(p.tolist(), ids.tolist(), strict=True)
        return tuple(Likely(self._piece(i), x, i) for x, i in pairs)

    def _piece(self, token: int) -> str:
        return self.tokenizer.piece(token) if token < self.tokenizer.vocab_size else f"<{token}>"

    def _said(self, before: Sequence[int], token: OutputToken) -> Said:
        thought = None if token.thought is None else self._thought(before, token.thought)
        return Said(self._piece(token.id), thought, token.weight, token.entropy)


@checked(RunConfig, ThoughtConfig, Decoding)
def load(
    folder: str | Path,
    *,
    thoughts: int | None = None,
    samples: int | None = None,
    start_text: str | None = None,
    end_text: str | None = None,
    fixed_weight: float | None = None,
    beta: float = 0.0,
    objective: Literal["quiet"] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    parts: Parts = Parts(),  # noqa: B008
) -> Thinker:
    """Open a model that thinks.

    Args:
        folder: a run, a checkpoint, or a name in weights/ ("tiny" and "sums" are bundled).
        thoughts: n, tokens of a thought; None: as its run or its checkpoint says, of any other
            checkpoint 9.
        samples: K, thoughts after a text; None: 4, but 1 of pauses, which are all equal.
        start_text, end_text: what the start and end vectors begin from, if it has none yet.
        fixed_weight: mixing weight to use instead of the head's: 1 is the prediction after the
            thought alone, 0 the one without it; where probabilities are mixed it is from 0 to 1. A
            model that has not learned to mix has weight 0.
        beta: weight of the policy loss in `model.quiet.loss`, where thoughts are judged on the next
            token alone (m = 1); needs 2 samples or more.
        objective: "quiet": by the weights of a run of another objective think as Quiet-STaR does;
            None: its own.
        device: auto takes CUDA where there is one.
        seed: of thoughts, of what is generated, and of a mixing head if it has none.
        parts: of one's own; reward and baseline count in `model.quiet.loss`, with a beta above 0.

    Raises:
        ValueError: there is no such model, it is damaged, it does not fit what was asked, its
            objective takes no such beta or samples, or an argument is of another type or out of
            range.
    """
    settings = dict(thoughts=thoughts, start_text=start_text, end_text=end_text)
    settings |= ANY_TEXT | dict(samples=4 if samples is None else samples, beta=beta)
    settings |= dict(objective=objective, device=device, seed=seed)
    if beta:
        del settings["baseline"]  # the model's own
    opened = open_model(str(folder), parts=parts, **settings)
    check_fixed(fixed_weight, opened.quiet.config)
    for name, value in (("samples", samples), ("beta", beta)):
        if value is not None and value != (kept := getattr(opened.quiet.config, name)):
            raise ValueError(
                f"{folder}: {name} is {kept} by its --objective {opened.config.run.objective}, got "
                f"{value}; leave it out, or pass objective='quiet'"
            )
    return Thinker(opened, fixed_weight, seed)
