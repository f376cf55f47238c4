"""Refused before anything is computed with it: a batch that does not fit, what own parts give."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qs.quietstar.ends import ENDED, PAUSE
from qs.settings import type_words

TAKES = {"reward": 3, "baseline": 1, "mixer": 2, "visibility": 2}  # arguments, by the part
SHAPES: dict[str, Callable[..., list[Sequence[int]]]] = {  # of what a part may give, by what it got
    "reward": lambda nll_base, nll_mix, valid: [nll_mix.shape[:-1]],  # (B, A, K)
    "baseline": lambda reward: [(*reward.shape[:-1], 1), reward.shape],
    "mixer": lambda base, after: [base.shape[:-1]],
}


def check_takes(part: str, function: Callable | None) -> None:
    """Refuse a part that cannot be called as it will be.

    Raises:
        ValueError: naming the part and its arguments.
    """
    try:
        signature = function and inspect.signature(function)
    except ValueError:  # of what is written in C nothing is known
        return
    try:
        if signature:
            signature.bind(*range(TAKES[part]))
    except TypeError as error:
        raise ValueError(
            f"Parts.{part}: expected to call it with {TAKES[part]} argument(s), found {signature} "
            f"({error})"
        ) from None


def head_of(mixer: Callable[[int], nn.Module], dim: int) -> nn.Module:
    """The mixing head that `Parts.mixer` makes.

    Raises:
        ValueError: it is, or makes, something else.
    """
    ready = isinstance(mixer, nn.Module)
    try:
        made = None if ready else mixer(dim)
    except TypeError as error:
        raise ValueError(
            "Parts.mixer: expected a class, or a function of D, that makes a module, found "
            f"{mixer}, which fails when called with D = {dim} ({error})"
        ) from error
    if not isinstance(made, nn.Module):
        found = f"a {type(mixer).__name__} itself" if ready else f"one that makes {named(made)}"
        raise ValueError(
            f"Parts.mixer: expected a class, or a function of D, that makes a module, found {found}"
        )
    check_takes("mixer", made.forward)
    return made


def result_of(part: str, function: Callable, *given: Tensor, seen: set[str]) -> Tensor:
    """What a part gives, of the shape that it has to be.

    Args:
        part: reward, baseline or mixer.
        function, given: what is called, with what; a reward or baseline may write into it.
        seen: parts that gave numbers, all finite. Later ones are not looked at, as that waits for
            the device; a step of a run whose loss is not finite is skipped, and counted.

    Raises:
        ValueError: naming the part, what was expected and what came.
    """
    # a mixer's are outputs of the model, too large to copy
    handed = given if part == "mixer" else [x.clone() for x in given]
    result, shapes = function(*handed), SHAPES[part](*given)
    fits = isinstance(result, Tensor) and tuple(result.shape) in map(tuple, shapes)
    if not fits or not result.is_floating_point():
        shape = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"Parts.{part}: expected floats of shape {shape}, found {named(result)}")
    if part not in seen and not torch.compiler.is_compiling():
        wrong = int((~result.isfinite()).sum())
        if wrong and all(x.isfinite().all() for x in given):
            hint = " (the NLL of what does not count is 0)" * (part == "reward")
            raise ValueError(
                f"Parts.{part}: expected finite numbers, found {wrong:,} of {result.numel():,} "
                f"that are NaN or infinite{hint}"
            )
        if result.numel() and not wrong:
            seen.add(part)
    return result


def check_visible(shown: object, *places: Tensor) -> Tensor:
    """What a `Visibility` says of places, if it says it of each pair.

    Raises:
        ValueError: it is no boolean tensor that broadcasts to them.
    """
    pairs = torch.broadcast_shapes(*(place.shape for place in places))
    if isinstance(shown, Tensor) and shown.dtype == torch.bool and shown.ndim <= len(pairs):
        ends = zip(reversed(shown.shape), reversed(pairs), strict=False)  # of the shorter shape
        if all(size in (1, full) for size, full in ends):
            return shown
    raise ValueError(
        f"Parts.visibility: expected booleans of shape {tuple(pairs)}, found {named(shown)}"
    )


def named(found: object) -> str:
    """What came instead of a tensor, or of another one."""
    if isinstance(found, Tensor):
        return f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
    return repr(found) if found is None else f"{type_words(type(found))} {found!r}"


def check_thoughts(thoughts: Tensor, vocab_size: int, end: str) -> None:
    """Refuse places (B, A, K, n) of thoughts that no model could have filled so.

    Args:
        thoughts: of any shape; as `check_batch` it looks at those on the CPU.
        vocab_size: V.
        end: as of `ThoughtConfig`.

    Raises:
        ValueError: an id is no token, PAUSE or ENDED; or ENDED where thoughts have n tokens, or
            before a token.
    """
    if not readable(thoughts):
        return
    least, most = map(int, thoughts.aminmax())
    if most >= vocab_size or least < (ENDED if end == "drawn" else PAUSE):
        raise ValueError(
            f"thoughts: expected ids from 0 to {vocab_size - 1}, {PAUSE} (PAUSE), or with the "
            f"setting end='drawn' {ENDED} (ENDED), found {least} to {most} with end={end!r}"
        )
    over = thoughts == ENDED
    if least == ENDED and (late := int((over[..., :-1] & ~over[..., 1:]).sum())):
        raise ValueError(
            f"thoughts: expected {ENDED} (ENDED) in every place after a thought's end, found "
            f"{late} where something follows it"
        )


def readable(x: object) -> bool:
    """Whether numbers can be looked at without waiting: a fake tensor has none, a GPU is busy."""
    return type(x) is Tensor and x.is_cpu and x.numel() > 0


def check_batch(
    vocab_size: int,
    tokens: Tensor,
    documents: Tensor | None = None,
    counted: Tensor | None = None,
    anchors: Tensor | None = None,
    thoughts: Tensor | None = None,
) -> None:
    """Refuse a batch that does not fit together; `anchors` None: every position.

    Raises:
        ValueError: naming what is no whole number, out of range (on the CPU: a GPU would have to be
            waited for), or of another shape than the rest.
    """
    given = {"tokens": tokens, "documents": documents, "anchors": anchors, "thoughts": thoughts}
    for name, x in given.items():
        if name != "tokens" and x is None:
            continue
        if not isinstance(x, Tensor) or x.dtype != torch.int64:
            raise ValueError(f"{name}: expected whole numbers (int64 tensor), found {named(x)}")
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"tokens: expected (B, T), rows of ids, got {tuple(tokens.shape)}")
    for name, x, end in (("tokens", tokens, vocab_size), ("anchors", anchors, tokens.shape[1])):
        if not readable(x):
            continue
        least, most = map(int, x.aminmax())
        if least < 0 or most >= end:
            raise ValueError(
                f"{name}: expected numbers from 0 to {end - 1}, found {least} to {most}"
            )
    for name, x in (("documents", documents), ("counted", counted)):
        if x is not None and x.shape != tokens.shape:
            raise ValueError(
                f"{name}: expected {tuple(tokens.shape)}, as tokens are, got {tuple(x.shape)}"
            )
    rows = len(tokens)
    if anchors is not None and (anchors.ndim != 2 or len(anchors) != rows):
        raise ValueError(f"anchors: expected ({rows}, A) positions, got {tuple(anchors.shape)}")
    thinking = tuple((tokens if anchors is None else anchors).shape)
    if thoughts is not None and (thoughts.ndim != 4 or thoughts.shape[:2] != thinking):
        raise ValueError(
            f"thoughts {tuple(thoughts.shape)} do not fit {thinking} anchors: expected (B, A, K, n)"
        )
