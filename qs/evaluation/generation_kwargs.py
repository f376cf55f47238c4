"""What a task of lm-evaluation-harness says about generation -> how this model decodes.

Task files are written for other libraries. What would change nothing here is taken, whatever
library it is of; what would change something is done, or refused by its name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qs.inference.decoding import Decoding
from qs.inference.loglikelihood import Thinking

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DECODING = ("until", "do_sample", "temperature", "top_p", *LIMITS)
# settings of other libraries, with the value that changes nothing
OFF = {"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "n": 1, "best_of": 1}
OFF |= dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), 1)
OFF |= dict.fromkeys(("presence_penalty", "frequency_penalty", "no_repeat_ngram_size"), 0)
OFF |= dict.fromkeys(("penalty_alpha", "min_length", "min_new_tokens", "min_tokens"), 0)
SAMPLING = {"top_k": 0, "min_p": 0, "typical_p": 1}  # greedy decoding does not look at them
UNUSED = ("early_stopping", "length_penalty", "use_cache", "pad_token_id")  # without beams


class Generation(NamedTuple):
    """How to draw, the strings to stop at, and a bound on prompt and output together, if any."""

    decoding: Decoding
    stops: list[str]
    max_length: int | None

    def check_length(self, prompt: int) -> None:
        """Refuse a bound that would end the output after a prompt of so many tokens early."""
        if self.max_length is not None and prompt + self.decoding.max_tokens > self.max_length:
            raise ValueError(
                f"generation_kwargs: max_length={self.max_length} would cut an output of "
                f"{self.decoding.max_tokens} tokens after a prompt of {prompt}; bound the output "
                "alone with --gen_kwargs max_gen_toks=N,max_length=None"
            )


def read_generation(
    gen_kwargs: Mapping[str, Any], max_gen_toks: int, thinking: Thinking
) -> Generation:
    """What `generation_kwargs` of a task mean.

    Args:
        gen_kwargs: as the harness gives them; None stands for what is not given.
        max_gen_toks: output tokens where the task does not say.
        thinking: how the model thinks, and where.

    Raises:
        ValueError: they hold what is not here and would change what is computed.
    """
    given = {name: value for name, value in gen_kwargs.items() if value not in (None, "None")}
    sampled = given.get("do_sample")
    heat = 0 if sampled is False else float(given.get("temperature", 1 if sampled else 0))
    taken = {*DECODING, *UNUSED, "max_length", *(SAMPLING if heat == 0 else ())}
    for name in sorted(set(given) - taken):
        if given[name] != (OFF | SAMPLING).get(name):
            raise ValueError(
                f"generation_kwargs: expected some of {', '.join(DECODING)}, or what changes "
                f"nothing; got {name}={given[name]!r}"
            )
    limits = [given[name] for name in LIMITS if name in given]
    decoding = Decoding(
        max_tokens=int((limits or [max_gen_toks])[0]),
        temperature=heat,
        top_p=float(given.get("top_p", 1)),
        think_temperature=thinking.temperature,
        think_when=thinking.when,
    )
    until = given.get("until") or []
    stops = list(filter(None, [until] if isinstance(until, str) else until))
    return Generation(decoding, stops, int(given["max_length"]) if "max_length" in given else None)
