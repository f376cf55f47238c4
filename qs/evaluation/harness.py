"""EleutherAI's lm-evaluation-harness on a model that thinks, and on the same model without.

    pip install -e '.[harness]'
    python -m qs.harness run --model qs --model_args pretrained=runs/NAME --tasks lambada_openai
    python -m qs.harness run --model qs --model_args pretrained=runs/NAME,think=false --tasks ...

That is the harness's own command line, `lm-eval`, with one model more. Its `--model_args`:

    pretrained=RUN        a run, a checkpoint, or a name in weights/
    think=false           without thoughts
    thoughts=N            n: tokens in one thought [the run's]
    think_when=WHEN       always, never, or entropy>X in nats, decided by the base prediction
    samples=K             probabilities are means over K thoughts at each position [1]
    think_temperature=T   of thoughts; 0 is greedy [0]
    max_length=N          longest text in tokens [what the model was made for, less a thought]
    max_gen_toks=N        output tokens where the task does not say [256]
    batch_size=N, device=cpu|cuda, seed=N

Only positions that predict a scored token think. Text begins with BOS, as wherever this model is
measured. What does not fit loses its beginning, BOS included, as with the harness's own models, and
is counted. Thoughts are drawn by the seed and their own text, so a result depends neither on the
batch nor on which other questions are asked.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from qs import cli
from qs.config import ONE_THOUGHT, at_least
from qs.inference.decoding import Decoding, ThinkWhen
from qs.inference.generate import generate
from qs.inference.loglikelihood import Row, Scored, Thinking, fitted, score, seed_of, split, windows
from qs.model.tokenizer import Tokenizer
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import open_model

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DECODING = ("until", "do_sample", "temperature", "top_p", *LIMITS)
KINDS = {"int": int, "float": float, "str": str, "bool": {"True": True, "False": False}.__getitem__}
MISSING = "expected lm-evaluation-harness, found none; run pip install -e '.[harness]'"
log = logging.getLogger("lm_eval.qs")  # shown as the harness shows its own lines


@dataclass(frozen=True)
class Arguments:
    """`--model_args`, see the top of this file. None: what the checkpoint says."""

    pretrained: str
    think: bool | None = None
    thoughts: int | None = None
    think_when: str = "always"
    samples: int = 1
    think_temperature: float = 0.0
    max_length: int = 0
    max_gen_toks: int = 256
    batch_size: int = 8
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, samples=1, think_temperature=0, max_length=0, max_gen_toks=1)
        at_least(self, batch_size=1, seed=0)
        ThinkWhen.parse(self.think_when)
        if self.samples > 1 and self.think_temperature == 0:
            raise ValueError(
                f"samples={self.samples}: greedy thoughts are all the same; add think_temperature=1"
            )

    @staticmethod
    def read(given: Mapping[str, Any]) -> Arguments:
        """Check names and kinds; the harness gives values as text or as what they look like.

        Raises:
            ValueError: an argument is unknown, missing or of a wrong kind.
        """
        kinds = {f.name: str(f.type).removesuffix(" | None") for f in dataclasses.fields(Arguments)}
        values = {name: value for name, value in given.items() if value is not None}
        if unknown := sorted(set(values) - set(kinds)):
            raise ValueError(f"--model_args: expected some of {', '.join(kinds)}; got {unknown[0]}")
        if "pretrained" not in values:
            raise ValueError("--model_args: expected pretrained=RUN, a run or a checkpoint")
        for name, value in values.items():
            try:
                values[name] = KINDS[kinds[name]](str(value))
            except (KeyError, ValueError):
                raise ValueError(
                    f"--model_args {name}: expected {kinds[name]}, got {value!r}"
                ) from None
        return Arguments(**values)


class Adapter:
    """What the harness asks of a model, without the harness.

    Args:
        quiet: the module; n is its config's.
        tokenizer: that goes with it.
        given: how to think.

    Attributes:
        thinking: how it thinks, and where.
        longest: tokens in a row, the one that is only predicted not counted.
        tally: "tokens" scored or said, "thoughts" at them, and texts that were "cut".
    """

    def __init__(self, quiet: QuietStar, tokenizer: Tokenizer, given: Arguments):
        self.quiet, self.tokenizer, self.given = quiet, tokenizer, given
        thinks = given.think is not False and quiet.config.thoughts > 0
        when = ThinkWhen.parse(given.think_when if thinks else "never")
        self.thinking = Thinking(when, given.samples, given.think_temperature, given.seed)
        branch = 0 if when.never else quiet.config.thoughts + 2
        room = quiet.model.config.max_positions - branch
        self.longest = min(room, given.max_length or room)
        self.tally: Counter[str] = Counter(tokens=0, thoughts=0, cut=0)

    @staticmethod
    def open(given: Arguments) -> Adapter:
        """Load a run or a checkpoint.

        Raises:
            ValueError: it is none, or does not fit what was asked for.
        """
        device = "auto" if given.device == "cuda:0" else given.device  # the harness's default
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: expected auto, cpu or cuda, got {given.device}")
        thought = ONE_THOUGHT | {"thoughts": given.thoughts}
        # every batch has another shape: layers that are compiled would be compiled for each
        run = {"device": device, "seed": given.seed, "seq": 2, "compile": False}
        opened = open_model(given.pretrained, **thought, **run)
        if not opened.config.run.thinks and given.think is None:
            given = dataclasses.replace(given, think=False)
        adapter = Adapter(opened.quiet, opened.tokenizer, given)
        log.info(f"{opened.folder} on {opened.placement}, thinks {adapter.thinking.when}")
        return adapter

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Scored]]:
        """Continuations after their contexts: (index of the pair, result), longest first."""
        rows = [split(self.tokenizer, *pair) for pair in pairs]
        self.tally["cut"] += sum(len(row.ids) > self.longest + 1 for row in rows)
        yield from self._scored([fitted(row, self.longest) for row in rows])

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-probabilities of whole texts in nats, each token once."""
        encoded = [self.tokenizer.encode(text, bos=True) for text in texts]
        rows = [(i, w) for i, x in enumerate(encoded) for w in windows(x[1:], x[0], self.longest)]
        total = [0.0] * len(texts)
        for at, found in self._scored([row for _, row in rows]):
            total[rows[at][0]] += found.log_p
        return total

    def _scored(self, rows: Sequence[Row]) -> Iterator[tuple[int, Scored]]:
        for batch in self._batches([row.ids for row in rows]):
            found = score(self.quiet, [rows[i] for i in batch], self.thinking)
            for i, x in zip(batch, found, strict=True):
                self.tally.update(tokens=x.tokens, thoughts=x.thoughts)
                yield i, x

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of texts of similar length, longest first: the first batch needs most memory."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for first in tqdm(range(0, len(order), self.given.batch_size), "qs", unit=" batches"):
            yield order[first : first + self.given.batch_size]

    def decoding(self, asked: Mapping[str, Any]) -> tuple[Decoding, list[str]]:
        """What a task's `generation_kwargs` say: how to draw, and the strings to stop at.

        Raises:
            ValueError: they hold what is not here.
        """
        if unknown := sorted(set(asked) - set(DECODING)):
            raise ValueError(
                f"generation_kwargs: expected some of {', '.join(DECODING)}; got {unknown[0]}"
            )
        limits = [asked[name] for name in LIMITS if asked.get(name) is not None]
        sampled = asked.get("do_sample")
        heat = 0 if sampled is False else asked.get("temperature", 1 if sampled else 0)
        decoding = Decoding(
            max_tokens=int((limits or [self.given.max_gen_toks])[0]),
            temperature=float(heat),
            top_p=float(asked.get("top_p", 1)),
            think_temperature=self.given.think_temperature,
            think_when=str(self.thinking.when),
        )
        until = asked.get("until") or []
        return decoding, list(filter(None, [until] if isinstance(until, str) else until))

    def generate_until(
        self, contexts: Sequence[str], asked: Mapping[str, Any]
    ) -> Iterator[tuple[int, str]]:
        """Go on from contexts: (index, text up to the first stop string), longest first.

        One thought a token, whatever `samples` is. A context that comes again draws anew.

        Raises:
            ValueError: `asked` leaves no room for a context, or see `decoding`.
        """
        decoding, stops = self.decoding(asked)
        room = self.longest - decoding.max_tokens
        if room < 1:
            raise ValueError(
                f"{decoding.max_tokens} output tokens leave no room for a context in "
                f"{self.longest}: lower them with --gen_kwargs max_gen_toks=N"
            )
        prompts = [tuple(self.tokenizer.encode(context, bos=True)) for context in contexts]
        self.tally["cut"] += sum(len(ids) > room for ids in prompts)
        prompts = [ids[-room:] for ids in prompts]
        before: Counter[tuple[int, ...]] = Counter()
        numbers = []
        for ids in prompts:
            numbers.append(seed_of(ids) + before[ids])
            before[ids] += 1
        # a stop string has at most as many tokens as bytes, and may begin and end inside of them
        tail = max((len(stop.encode()) for stop in stops), default=0)

        def ended(_: int, said: list[int]) -> bool:
            text = self._text(said[-tail:])
            return any(stop in text for stop in stops)

        for batch in self._batches(prompts):
            found = generate(
                self.quiet,
                [prompts[i] for i in batch],
                decoding,
                self.given.seed,
                stop=ended if stops else None,
                numbers=[numbers[i] for i in batch],
            )
            for i, result in zip(batch, found, strict=True):
                thoughts = sum(token.thought is not None for token in result.tokens)
                self.tally.update(tokens=len(result.tokens), thoughts=thoughts)
                text = self._text(result.text_ids)
                yield i, min((text.partition(stop)[0] for stop in stops), key=len, default=text)

    def _text(self, ids: Iterable[int]) -> str:
        """The text of ids that follow others: a space that it begins with stays."""
        return self.tokenizer.decode([self.tokenizer.encode("\n")[-1], *ids])[1:]


@functools.cache
def harness_model() -> type:
    """The harness's model `qs`, registered under this name.

    Raises:
        ValueError: the harness is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401 - its own models, which only an empty registry looks for
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise ValueError(MISSING) from None

    @register_model("qs")
    class QuietLM(LM):
        """A thinking model for the harness; the arguments are those of `Arguments`."""

        def __init__(self, **given: Any) -> None:
            super().__init__()
            self.adapter = Adapter.open(Arguments.read(given))

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> LM:
            return cls(**(additional_config or {}) | arg_dict)  # what was given comes last

        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            found = self.adapter.loglikelihood([request.args for request in requests])
            return self._all("loglikelihood", requests, ((i, x[:2]) for i, x in found))

        def loglikelihood_rolling(self, requests: list) -> list[float]:
            found = self.adapter.loglikelihood_rolling([request.args[0] for request in requests])
            return self._all("loglikelihood_rolling", requests, enumerate(found))

        def generate_until(self, requests: list) -> list[str]:
            groups: dict[str, list[int]] = {}
            for i, request in enumerate(requests):
                groups.setdefault(repr(request.args[1]), []).append(i)
            found = (
                (group[i], text)
                for group in groups.values()
                for i, text in self.adapter.generate_until(
                    [requests[i].args[0] for i in group], requests[group[0]].args[1]
                )
            )
            return self._all("generate_until", requests, found)

        def _all(self, kind: str, requests: list, found: Iterable[tuple[int, Any]]) -> list:
            before, results = self.adapter.tally["cut"], [None] * len(requests)
            for i, result in found:
                results[i] = result
                self.cache_hook.add_partial(kind, requests[i].args, result)
            if cut := self.adapter.tally["cut"] - before:
                log.warning(f"{kind}: {cut} of {len(requests)} texts did not fit and were cut")
            return results

        def get_model_info(self) -> dict[str, Any]:
            thinking = self.adapter.thinking._asdict() | {"when": str(self.adapter.thinking.when)}
            thinking["length"] = self.adapter.quiet.config.thoughts
            return {"thinking": thinking, "counts": dict(self.adapter.tally)}

    return QuietLM


def evaluate(argv: list[str]) -> None:
    """The harness's own command line, with one model more."""
    harness_model()
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["qs.harness", *argv]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def main(argv: list[str] | None = None) -> int:
    """Command line: `evaluate`."""
    return cli.main(evaluate, argv, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
