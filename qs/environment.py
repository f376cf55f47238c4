"""What a run was made by and on."""

import platform
import subprocess
from pathlib import Path
from typing import Any


def environment(device: str) -> dict[str, Any]:
    """What a run or a result is made by and on."""
    import torch  # data preparation writes files too, and its workers start without it

    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The commit of this code; None where git does not know it, as when it was installed."""
    here = Path(__file__)
    if not _git(here.parent, "ls-files", "--", here.name):  # in somebody else's repository
        return None
    return _git(here.parent, "rev-parse", "HEAD") or None


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
    except OSError:  # no git on this machine, or none that may run
        return ""
    return done.stdout.strip()
