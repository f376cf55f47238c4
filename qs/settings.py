"""What a setting is: a field of a dataclass with its help sentence, limits and type, checked."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin

P, R = ParamSpec("P"), TypeVar("R")
MOST = 10**9  # of any number that has no limit of its own
COLDEST = 1e-6  # temperature above 0: logits divided by less than that overflow


def setting(default: Any, help: str, **limits: float) -> Any:
    """A field with its help sentence and limits: `least` and `most` (incl.), `above` (excl.).

    Without limits of its own a number is at most MOST either way. `named`: a text that is never
    empty, as of a shell's variable that is not set.

    `temperature`: at least COLDEST, or 0 where `least` allows it, which is greedy.

    `later`: runs of earlier versions do not have it; they did as its default does.
    """
    return field(default=default, metadata={"help": help, **limits})


def check_limits(config: Any) -> None:
    """Take NumPy's numbers as Python's, which JSON has.

    Raises:
        ValueError: naming the first flag beyond its limits, or not of its type.
    """
    for f in dataclasses.fields(config):
        name, value = f"--{f.name.replace('_', '-')}", python_number(getattr(config, f.name))
        object.__setattr__(config, f.name, value)  # it is frozen, and being made
        check_value(name, value, hints_of(type(config))[f.name], f.metadata)


def python_number(value: Any) -> Any:
    """A number of NumPy's (an element of `numpy.arange`) as Python's; anything else as it is."""
    one = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if one else value


hints_of = functools.cache(typing.get_type_hints)


def check_value(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> None:
    """Refuse a value that is not of an annotated type, or beyond limits as `setting` takes them.

    Raises:
        ValueError: naming it, what was expected and what was found.
    """
    if not is_of(value, hint):
        raise ValueError(f"{name}: expected {type_words(hint)}, found {value!r}")
    if value == "" and limits.get("named"):
        raise ValueError(f"{name}: expected a name, found none")
    if type(value) not in (int, float):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, found {value}")
    if "above" in limits and not value > limits["above"]:
        raise ValueError(f"{name} must be above {limits['above']}, got {value}")
    if not value >= (least := limits.get("least", -MOST)):
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if limits.get("temperature") and 0 < value < COLDEST:
        raise ValueError(f"{name} must be 0 or at least {COLDEST}, got {value}")
    if value > (most := limits.get("most", MOST)):
        raise ValueError(f"{name} must be at most {most}, got {value}")


def checked(*groups: type, **limits: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose arguments are checked by its annotations before it runs (`python_number`).

    Args:
        groups: dataclasses of settings, whose limits hold for arguments of the same name.
        limits: of other arguments, by name.
    """
    known = {f.name: f.metadata for group in groups for f in dataclasses.fields(group)} | limits

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            for name, value in given.arguments.items():
                if name in hints_of(function):
                    given.arguments[name] = value = python_number(value)
                    check_value(name, value, hints_of(function)[name], known.get(name, {}))
            return function(*given.args, **given.kwargs)

        return call

    return decorate


def check_types(where: str, group: type, values: dict[str, Any]) -> None:
    """Raise ValueError naming the first value that its flag would not have given."""
    for name, hint in hints_of(group).items():
        if not is_of(values[name], hint):
            raise ValueError(f"{where}.{name}: expected {type_words(hint)}, found {values[name]!r}")


def check_names(where: str, found: typing.Iterable[str], expected: typing.Iterable[str]) -> None:
    """Strict both ways.

    Raises:
        ValueError: what is missing and what is unexpected.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        raise ValueError(
            f"{where}: {len(missing)} missing ({', '.join(missing) or 'none'}), "
            f"{len(extra)} unexpected ({', '.join(extra) or 'none'})"
        )


def read_record(where: str, record: type, values: dict[str, Any]) -> Any:
    """A record with values that were read as JSON; what has a default may be missing.

    Raises:
        ValueError: names are missing or unexpected, or a value is not of its field's type.
    """
    fields = dataclasses.fields(record)
    values = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | values
    check_names(where, values, {f.name for f in fields})
    check_types(where, record, values)
    return record(**values)


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; a text is no list of texts, True no number."""
    parts, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return value in parts
    if origin is collections.abc.Callable:
        return callable(value)
    if origin in (list, collections.abc.Sequence):
        kinds = list if origin is list else (list, tuple)
        return isinstance(value, kinds) and all(is_of(each, parts[0]) for each in value)
    if parts:
        return any(is_of(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def type_words(hint: Any) -> str:
    """An annotated type in words."""
    parts, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is collections.abc.Callable:
        return "a function"
    if origin in (list, collections.abc.Sequence):
        return f"a list of {type_words(parts[0])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(type_words, parts))
    return "None" if hint is types.NoneType else str(hint) if parts else hint.__name__
