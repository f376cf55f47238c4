"""interrupts: Ctrl-C ends a command without a traceback, whenever it comes; `import qs` is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from qs.interrupts import end_quietly, kept_from_children

TIMED = "-Ximporttime"  # a line on stderr for each module that was imported
COMMANDS = {
    "train.py": [TIMED, ROOT / "train.py", "--preset=demo"],
    "evaluate.py": [TIMED, ROOT / "evaluate.py", "score", "tiny"],
    "qs.data": [TIMED, "-m", "qs.data", "synthetic", "--out=made"],
    "qs.evaluation.harness": [TIMED, "-m", "qs.evaluation.harness", "ls"],
    "qs-train": [TIMED, "-c", "from qs.commands import train; train()", "--preset=demo"],
    "qs-model": [TIMED, "-c", "from qs.commands import model; model()", "export", "tiny"],
}


def started(command: list[str | Path], folder: Path) -> subprocess.Popen:
    """Python in a process of its own, which finds this checkout."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        *(("train.py", "qs.settings"), ("train.py", "numpy"), ("train.py", "qs.star.run")),
        *(("evaluate.py", "torch"), ("qs.data", "numpy"), ("qs.evaluation.harness", "torch")),
        *(("qs-train", "qs.files"), ("qs-model", "numpy")),
    ],
)
def test_ctrl_c_while_a_command_imports_is_no_traceback(tmp_path, name, imported):
    with started(COMMANDS[name], tmp_path) as process:
        lines = iter(process.stderr.readline, "")
        assert any(line.rpartition("|")[2].strip() == imported for line in lines)
        process.send_signal(signal.SIGINT)
        said = [x for x in process.communicate(timeout=60)[1].split("\n") if "| " not in x]
    if process.returncode == -signal.SIGINT:
        assert said == [""]
    else:  # it was faster, and answered
        assert process.returncode == 128 + signal.SIGINT
        assert "Traceback" not in said[0]


def test_what_imports_the_library_keeps_its_own_ctrl_c(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("import qs, qs.commands")
    own = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    (tmp_path / "own" / "main.py").write_text(own)
    for command in (["-m", "own.main"], ["-c", f"import own.main; {own}"]):
        with started(command, tmp_path) as process:
            assert set(process.communicate(timeout=60)[0].split()) == {"True"}


def test_what_was_told_to_ignore_ctrl_c_ignores_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_quietly()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_never_comes_to_a_child_begun_meanwhile(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('alive')"
    with kept_from_children(), started(["-c", code], tmp_path) as child:
        assert child.communicate(timeout=60)[0] == "alive\n"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
