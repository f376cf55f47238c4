"""What a setting is: a field of a dataclass with its help sentence, limits and type, checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import field
from typing import Any, Literal, get_args, get_origin

MOST = 10**9  # of any number that has no limit of its own


def setting(default: Any, help: str, **limits: float) -> Any:
    """A field with its help sentence and limits: `least` and `most` (incl.), `above` (excl.).

    Without limits of its own a number is at most MOST either way.

    `later`: runs of earlier versions do not have it; they did as its default does.
    """
    return field(default=default, metadata={"help": help, **limits})


def check_limits(config: Any) -> None:
    """Raise ValueError naming the first flag beyond its limits (or not a number)."""
    for f in dataclasses.fields(config):
        value, flag = getattr(config, f.name), f.name.replace("_", "-")
        if type(value) not in (int, float):
            continue
        if "above" in f.metadata and not value > f.metadata["above"]:
            raise ValueError(f"--{flag} must be above {f.metadata['above']}, got {value}")
        if not value >= (least := f.metadata.get("least", -MOST)):
            raise ValueError(f"--{flag} must be at least {least}, got {value}")
        if value > (most := f.metadata.get("most", MOST)):
            raise ValueError(f"--{flag} must be at most {most}, got {value}")


def check_types(where: str, group: type, values: dict[str, Any]) -> None:
    """Raise ValueError naming the first value that its flag would not have given."""
    for name, hint in typing.get_type_hints(group).items():
        options = get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        value = values[name]
        if not any(
            value in get_args(option)
            if get_origin(option) is Literal
            else type(value) in ((int, float) if option is float else (option,))
            for option in options
        ):
            raise ValueError(f"{where}.{name}: expected {hint}, found {value!r}")


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


def typed(record: type, values: dict[str, Any]) -> Any:
    """A record with values that were read as JSON.

    Raises:
        TypeError: names are missing or unexpected, or a value is not of its field's type.
    """
    made, hints = record(**values), typing.get_type_hints(record)
    for name, value in values.items():
        if not is_of(value, hints[name]):
            raise TypeError(f"expected {name} to be {hints[name]}, found {value!r}")
    return made


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value that was read as JSON is of an annotated type: a list, one of several."""
    parts = get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(is_of(each, parts[0]) for each in value)
    if parts:
        return any(is_of(value, part) for part in parts)
    return type(value) in ((int, float) if hint is float else (hint,))
