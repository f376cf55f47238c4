"""The installed commands: `qs-train`, `qs-evaluate`, and `qs-X` for `python -m qs.X`.

train.py and evaluate.py are scripts to be read, not modules of the package, so their names are not
taken from others: an installed wheel carries them in `qs/bundle/`, beside data and weights.
"""

from __future__ import annotations

import importlib
import runpy
import sys

from qs.interrupts import end_quietly


def train() -> None:
    """Run train.py with the arguments of this process."""
    _run("train.py")


def evaluate() -> None:
    """Run evaluate.py with the arguments of this process."""
    _run("evaluate.py")


def data() -> int:
    """Run `python -m qs.data` with the arguments of this process."""
    return _main("data")


def model() -> int:
    """Run `python -m qs.model` with the arguments of this process."""
    return _main("model")


def bench() -> int:
    """Run `python -m qs.bench` with the arguments of this process."""
    return _main("bench")


def _run(script: str) -> None:
    end_quietly()
    from qs.files import HOME

    sys.argv[0] = str(HOME / script)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _main(room: str) -> int:
    end_quietly()
    return importlib.import_module(f"qs.{room}.__main__").main()
