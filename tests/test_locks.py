"""locks: one process at a time writes, the others are told who does; the dead hold nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from qs import locks
from qs.atomic import new_folder, write_bytes
from qs.locks import hold

HOLDS = """
import sys, time
from pathlib import Path
from qs.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
WRITES = """
import sys
from pathlib import Path
from qs.atomic import write_bytes
for _ in range(30):
    write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 20_000)
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def holder(path: Path, seconds: float = 60) -> subprocess.Popen:
    """A process that holds a lock."""
    process = start(HOLDS, path, seconds)
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def test_the_second_is_told_process_machine_and_since_when(tmp_path):
    path = tmp_path / "run" / ".lock"
    other = holder(path)
    who = rf"process {other.pid} on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d \d"
    with (
        pytest.raises(ValueError, match=rf"run: expected no other process .*, found {who}"),
        hold(path),
    ):
        pass
    end(other)


def test_a_lock_of_a_dead_process_is_taken_over_and_said(tmp_path, capsys):
    path = tmp_path / ".lock"
    other = holder(path)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert path.is_file()
    with hold(path):
        assert json.loads(path.read_text())["process"] == os.getpid()
    said = capsys.readouterr().err
    assert re.search(rf"taken over from process {other.pid} on .*, which has ended\n$", said)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"process": 1}', b"\xff", b"[" * 10**5])
def test_a_lock_file_that_says_nothing_is_no_trouble(tmp_path, capsys, content):
    (tmp_path / ".lock").write_bytes(content)
    with hold(tmp_path / ".lock"), locks.taken(tmp_path / "other", wait=False):
        pass
    assert capsys.readouterr().err == ""
    (tmp_path / "other").write_bytes(content)
    with (
        locks.taken(tmp_path / "other", wait=False),
        pytest.raises(ValueError, match="found another process"),
        hold(tmp_path / "other"),
    ):
        pass


def test_a_lock_is_let_go_whatever_happens(tmp_path):
    with pytest.raises(KeyError), hold(tmp_path / ".lock"):
        raise KeyError
    assert not any(tmp_path.iterdir())
    with hold(tmp_path / ".lock"):
        pass


def test_who_waits_comes_after(tmp_path):
    other = holder(tmp_path / ".lock", 0.3)
    with hold(tmp_path / ".lock", wait=True):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    other.communicate()


@pytest.mark.skipif(locks.fcntl is None, reason="no locks on this system")
def test_a_file_system_without_locks_is_said_and_nothing_is_refused(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with hold(tmp_path / ".lock"):
        pass
    warning = r"warning: .*\.lock: No locks available: nothing keeps a second process from here\n"
    assert re.fullmatch(warning, capsys.readouterr().err)


def test_of_several_writers_of_a_file_each_writes_all_of_it(tmp_path):
    path = tmp_path / "x.json"
    path.with_name("x.json.tmp").write_text("what a killed process left" * 9999)
    writers = [start(WRITES, path, letter) for letter in "abc"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_bytes()
            assert content in {letter * 20_000 for letter in (b"a", b"b", b"c")}
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_another_process_makes_is_left_to_it(tmp_path):
    made = "from qs.atomic import new_folder\nfrom qs.locks import *\nimport sys, time\n"
    made += "with new_folder(Path(sys.argv[1])) as folder:\n    (folder / 'x').touch()\n"
    made += "    print('held', flush=True)\n    time.sleep(60)"
    other = start(made, tmp_path / "new")
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(ValueError, match=rf"found process {other.pid} on"),
        new_folder(tmp_path / "new"),
    ):
        pass
    assert (tmp_path / ".new.tmp" / "x").is_file()
    end(other)
    with new_folder(tmp_path / "new") as folder:
        assert not any(folder.iterdir())  # what was left is gone
    assert [each.name for each in tmp_path.iterdir()] == ["new"]


def test_files_are_as_open_as_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"")
        with new_folder(tmp_path / "new") as folder:
            write_bytes(folder / "y", b"")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("x", "new", "new/y")]
    assert modes == [0o640, 0o750, 0o640]


@pytest.mark.parametrize("deep", ["lock", "a/b/lock"])
def test_a_folder_that_takes_nothing_is_named(tmp_path, deep):
    (tmp_path / "file").write_text("")
    said = rf"cannot be made in {tmp_path} \(File exists\)|cannot be made in {tmp_path / 'file'} \("
    with pytest.raises(OSError, match=said), hold(tmp_path / "file" / deep):
        pass
    (tmp_path / "lock").mkdir()
    with pytest.raises(OSError, match=rf"no file can be made in it .*'{tmp_path}'"):
        hold(tmp_path / "lock").__enter__()


def test_the_root_is_no_name_for_what_is_made():
    message = r"^/: expected something to be made in a folder"
    with pytest.raises(ValueError, match=message), new_folder(Path("/"), replace=True):
        pass
    with pytest.raises(ValueError, match=message):
        write_bytes(Path("/"), b"1")
