"""The installed commands `qs-train` and `qs-evaluate`: train.py and evaluate.py where they lie.

They are scripts to be read, not modules of the package, so their names are not taken from others:
an installed wheel carries them in `qs/bundle/`, beside the bundled data and weights.
"""

from __future__ import annotations

import runpy
import sys

from qs.files import HOME


def train() -> None:
    """Run train.py with the arguments of this process."""
    _run("train.py")


def evaluate() -> None:
    """Run evaluate.py with the arguments of this process."""
    _run("evaluate.py")


def _run(script: str) -> None:
    sys.argv[0] = str(HOME / script)
    runpy.run_path(sys.argv[0], run_name="__main__")
