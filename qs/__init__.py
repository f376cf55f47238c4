"""qs: Quiet-STaR and STaR in plain PyTorch. Read `qs/quietstar/algorithm.py` first.

qs.load("tiny")    a model with .think(text), .predict(text) and .generate(text)
"""

import sys
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"] and " -m qs." in " ".join(sys.orig_argv):
    # `python -m qs...` imports the packages that its module lies in first, and those PyTorch
    from qs.interrupts import end_quietly

    end_quietly()

if TYPE_CHECKING:
    from qs.library import Parts, Place, Thinker, load

__all__ = ["Parts", "Place", "Thinker", "load"]


def __getattr__(name: str) -> Any:
    """The names above, when they are asked for: PyTorch takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module 'qs' has no attribute {name!r}")
    from qs import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return list(__all__)
