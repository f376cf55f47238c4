"""EleutherAI's lm-evaluation-harness on a model that thinks, and on the same model without.

    pip install -e '.[harness]'
    python -m qs.evaluation.harness run --model qs --model_args pretrained=runs/NAME --tasks TASK
    python -m qs.evaluation.harness run --model qs --model_args pretrained=runs/NAME,think=false ...

That is the harness's own command line, `lm-eval`, with one model more. Its `--model_args`:

    pretrained=RUN        a run, a checkpoint, or a name in weights/
    think=true|false      whether to think [a model that was trained to does, another one where
                          thoughts or think_when are given]
    thoughts=N            n: tokens in one thought [the run's]
    think_when=WHEN       always, never, or entropy>X in nats, decided by the base prediction
    samples=K             probabilities are means over K thoughts at each position [1]
    think_temperature=T   of thoughts; 0 is greedy [0]
    max_length=N          longest text in tokens [what the model was made for, less a thought]
    max_gen_toks=N        output tokens where the task does not say [256]
    batch_size=N|auto, device=cpu|cuda, seed=N

Only positions that predict a scored token think. Text begins as the checkpoint's texts do, with BOS
or without, as wherever this model is measured. What does not fit loses its beginning, BOS included,
as with the harness's own models, and is counted. Thoughts are drawn by the seed and their own text,
so a result depends neither on the batch nor on which other questions are asked. A file of
--use_cache is of one model with one way to think; another one is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qs import cli
from qs.data.prompts import cut
from qs.evaluation.generation_kwargs import Generation, read_generation
from qs.inference.decoding import think_above
from qs.inference.loglikelihood import ScoredText, Thinking, score, seed_of
from qs.inference.write import write
from qs.model import weights
from qs.output import progress
from qs.presets import ANY_TEXT
from qs.quietstar.load import open_model
from qs.settings import check_limits, check_types, setting

AUTO = 8  # texts at a time where the harness is to find out
OWNER = "qs"  # in a cache of the harness: whose answers it holds
NO_HARNESS = "expected lm-evaluation-harness, found none; run pip install -e '.[harness]'"
log = logging.getLogger("lm_eval.qs")  # shown as the harness shows its own lines


@dataclass(frozen=True)
class Arguments:
    """`--model_args`, see the top of this file. None: what the checkpoint says."""

    pretrained: str
    think: bool | None = None
    thoughts: int | None = None
    think_when: str | None = None
    samples: int = setting(1, "K", least=1)
    think_temperature: float = setting(0.0, "of thoughts", least=0, temperature=True)
    max_length: int = setting(0, "tokens; 0: all that the model was made for", least=0)
    max_gen_toks: int = setting(256, "tokens", least=1)
    batch_size: int = setting(AUTO, "texts at a time", least=1)
    device: Literal["auto", "cpu", "cuda", "cuda:0"] = "auto"  # the last is the harness's default
    seed: int = setting(0, "of thoughts and text", least=0)

    def __post_init__(self) -> None:
        check_types("--model_args", Arguments, vars(self))
        check_limits(self)
        think_above(self.think_when or "always")
        if self.samples > 1 and self.think_temperature == 0:
            raise ValueError(
                f"samples={self.samples}: greedy thoughts are all the same; add think_temperature=1"
            )

    @staticmethod
    def read(arguments: Mapping[str, Any]) -> Arguments:
        """Check names and kinds.

        Raises:
            ValueError: an argument is unknown, missing or of a wrong kind.
        """
        known = [f.name for f in dataclasses.fields(Arguments)]
        values = {name: value for name, value in arguments.items() if value is not None}
        most = values.pop("max_batch_size", AUTO)  # of the harness: a bound for auto
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"--model_args: expected some of {', '.join(known)}; got {unknown[0]}")
        if "pretrained" not in values:
            raise ValueError("--model_args: expected pretrained=RUN, a run or a checkpoint")
        # the harness turns what looks like a number into one, but not the value of --batch_size
        values["pretrained"] = str(values["pretrained"])
        size = str(values.get("batch_size", ""))
        if re.fullmatch(r"auto(:\d+)?", size):
            values["batch_size"] = min(AUTO, int(most))
        elif size.isdigit():
            values["batch_size"] = int(size)
        return Arguments(**values)


class Adapter:
    """What the harness's `TemplateLM` asks of a model; keyword arguments are those of `Arguments`.

    Attributes:
        thinking: how it thinks, and where.
        max_length: tokens in a row, the one that is only predicted not counted.
        tally: "tokens" scored or said, "thoughts" at them, and texts that were "cut".

    Raises:
        ValueError: an argument or the checkpoint is none, or they do not fit.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = Arguments.read(arguments)
        own = ANY_TEXT | {"thoughts": self.arguments.thoughts, "seed": self.arguments.seed}
        device = "auto" if self.arguments.device == "cuda:0" else self.arguments.device
        self.opened = open_model(self.arguments.pretrained, **own, device=device)
        n, given = self.opened.quiet.config.thoughts, self.arguments
        asked = given.thoughts is not None or given.think_when is not None
        think = (self.opened.thinks or asked) if given.think is None else given.think
        when = (given.think_when or "always") if think and n else "never"
        self.thinking = Thinking(when, given.samples, given.think_temperature, given.seed)
        room = self.opened.quiet.model.config.max_positions - (0 if when == "never" else n + 2)
        self.max_length = min(room, self.arguments.max_length or room)
        self.tally: Counter[str] = Counter(tokens=0, thoughts=0, cut=0)
        size = self.arguments.batch_size
        log.info(f"{self.opened.folder} on {self.opened.placement}, thinks {when}, {size} at once")

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> Any:
        """As of the harness's own models, but what was given twice is no error."""
        return cls(**(additional_config or {}) | arg_dict)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Use a file of answers, whose own keys know neither model nor settings.

        Raises:
            ValueError: it has answers of another model, or of other settings.
        """
        # not the folder's name but its weights; not the batch, which changes nothing
        given = dataclasses.replace(self.arguments, pretrained="", batch_size=1, device="auto")
        settings = [dataclasses.asdict(x) for x in (given, self.opened.config.thought)]
        own = [weights.digest(self.opened.folder), str(self.opened.placement), *settings]
        owner, answers = json.dumps(own, sort_keys=True), cache_hook.dbdict
        if len(answers) and answers.get(OWNER) != owner:
            raise ValueError(
                f"--use_cache: expected answers of {self.opened.folder} with these settings, found "
                f"others in {answers.filename}; name another file"
            )
        answers[OWNER] = owner
        super().set_cache_hook(cache_hook)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """None: a model of plain text.

        Raises:
            ValueError: one is asked for.
        """
        if chat_template:
            raise ValueError("--apply_chat_template: this model has no chat template; leave it out")
        return ""

    @property
    def tokenizer_name(self) -> str:
        """Asked only where there is a chat template."""
        return self.chat_template(True)

    @property
    def eot_token_id(self) -> int:
        """What stands before a text without a context: BOS, or EOS where there is none."""
        return self.opened.tokenizer.prompt("")[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids, BOS first where the checkpoint's texts have it, unless told otherwise."""
        return self.opened.tokenizer.encode(string, bos=add_special_tokens is not False)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """A last token may hold the end of the context and the whole continuation."""
        before, after = super()._encode_pair(context, continuation)
        if not after:
            whole = self.tok_encode(context + continuation)
            before, after = whole[:-1], whole[-1:]
        if not after:
            raise ValueError(f"expected a continuation of {context[-40:]!r}, got one of no tokens")
        return before or [self.eot_token_id], after

    def loglikelihood(self, requests: Sequence[Any], **options: Any) -> list[tuple[float, bool]]:
        """Log-probability of continuations in nats, and whether greedy decoding says them."""
        for context, continuation in (request.args for request in requests):
            if not (continuation and (context or self.opened.tokenizer.encode(continuation))):
                raise ValueError(f"expected a continuation of {context[-40:]!r}, got an empty one")
        return super().loglikelihood(requests, **options)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        from lm_eval.models.utils import Collator

        # the longest first: the first batch needs most memory
        order = Collator(requests, sort_fn=lambda request: -len(request[1]) - len(request[2]))
        answers, cut_before = [], self.tally["cut"]
        for batch in progress(order.get_batched(self.arguments.batch_size), "qs", unit=" batches"):
            texts = [self._fitted(before, after) for _, before, after in batch]
            (scores,) = score(self.opened.quiet, texts, [self.thinking])
            for (pair, _, after), one in zip(batch, scores, strict=True):
                self.tally.update(tokens=len(after), thoughts=one.thoughts)
                mean = one.log_p.logsumexp(0) - math.log(len(one.log_p))  # over thoughts
                answers.append((mean.sum().item(), one.likeliest.tolist() == after))
                if pair is not None:
                    self.cache_hook.add_partial("loglikelihood", pair, answers[-1])
        self._warn_of_cut(cut_before, len(requests))
        return order.get_original(answers)

    def _fitted(self, before: list[int], after: list[int]) -> ScoredText:
        """A continuation after as much of its context as fits."""
        over = max(0, len(before) + len(after) - self.max_length - 1)
        if over >= len(before):
            raise ValueError(
                f"a continuation of {len(after)} tokens does not fit in {self.max_length}"
            )
        self.tally["cut"] += over > 0
        ids = (*before[over:], *after)
        return ScoredText(ids, tuple(range(len(before) - over - 1, len(ids) - 1)))

    def _warn_of_cut(self, before: int, texts: int) -> None:
        if now := self.tally["cut"] - before:
            log.warning(f"{now} of {texts} texts did not fit and were cut")

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Log-probability of whole texts in nats, each token once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        owners, windows = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.eot_token_id, self.max_length, 1):
                owners.append(owner)
                windows.append((None, *make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for owner, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_p
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Go on from contexts up to the first stop string; one that comes again draws anew.

        One thought a token, whatever `samples` is.

        Raises:
            ValueError: what a task asks for is not here, or leaves no room for a context.
        """
        from lm_eval.models.utils import Collator

        order = Collator(
            [request.args for request in requests],
            sort_fn=lambda args: -len(self.tok_encode(args[0])),
            group_fn=lambda args: args[1],
            group_by="gen_kwargs",
        )
        texts, repeats, cut_before = [], Counter(), self.tally["cut"]
        for batch in progress(order.get_batched(self.arguments.batch_size), "qs", unit=" batches"):
            decoding, stops, _ = generation = self.generation(batch[0][1])
            room = self.max_length - decoding.max_tokens
            if room < 1:
                raise ValueError(
                    f"{decoding.max_tokens} output tokens leave no room for a context in "
                    f"{self.max_length}: lower them with --gen_kwargs max_gen_toks=N"
                )
            prompts, numbers = [], []
            for context, gen_kwargs in batch:
                ids = self.opened.tokenizer.prompt(context)
                self.tally["cut"] += len(ids) > room
                prompts.append(ids[-room:])
                generation.check_length(len(prompts[-1]))
                same = (*prompts[-1], repr(gen_kwargs))
                numbers.append(seed_of(prompts[-1]) + repeats[same])
                repeats[same] += 1
            model, seed = (self.opened.quiet, self.opened.tokenizer), self.arguments.seed
            written = write(*model, prompts, decoding, seed, stops, numbers=numbers)
            for args, each in zip(batch, written, strict=True):
                thoughts = sum(token.thought is not None for token in each.tokens)
                self.tally.update(tokens=len(each.tokens), thoughts=thoughts)
                texts.append(cut(each.text, stops))
                self.cache_hook.add_partial("generate_until", args, texts[-1])
        self._warn_of_cut(cut_before, len(requests))
        return order.get_original(texts)

    def generation(self, gen_kwargs: Mapping[str, Any]) -> Generation:
        """What a task's `generation_kwargs` mean, see `read_generation`."""
        return read_generation(gen_kwargs, self.arguments.max_gen_toks, self.thinking)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results."""
        thinking = self.thinking._asdict() | {"length": self.opened.quiet.config.thoughts}
        return {"thinking": thinking, "counts": dict(self.tally)}


@functools.cache
def harness_model() -> type:
    """The harness's model `qs`, registered under this name.

    Raises:
        ValueError: the harness is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401 - its own models, which only an empty registry looks for
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise ValueError(NO_HARNESS) from None

    @register_model("qs")
    class QuietLM(Adapter, TemplateLM):
        """A thinking model for the harness."""

    return QuietLM


def command(argv: list[str]) -> None:
    """The harness's own command line, with one model more."""
    harness_model()
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["qs.evaluation.harness", *argv]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def main(argv: list[str] | None = None) -> int:
    """Command line: `command`."""
    return cli.main(command, argv, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
