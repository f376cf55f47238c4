"""output: no print ends a command, and nothing that is shown controls a terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import pytest
from tiny import ROOT, make

from qs import output
from qs.output import Lines, harmless, lasting_streams, nearest, progress

TALKS = """
import sys
from qs import cli
def command(argv):
    for number in range(1000):
        print("∅ ", number)
    open(argv[0], "w").write("done")
sys.exit(cli.main(command))
"""


def talk(done, stdout, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", TALKS, str(done)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_character_that_a_terminal_does_not_have_is_escaped(tmp_path, encoding):
    made = talk(tmp_path / "done", subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("\\u2205  0\n")


def test_a_command_outlives_the_reader_of_its_output(tmp_path):
    read, write = os.pipe()
    os.close(read)
    made = talk(tmp_path / "done", write)
    os.close(write)
    assert (made.returncode, made.stderr) == (0, "")
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_a_command_outlives_a_full_disk_and_says_so_once(tmp_path):
    with open("/dev/full", "w") as full:
        made = talk(tmp_path / "done", full)
    assert made.returncode == 0
    assert made.stderr == "warning: <stdout>: No space left on device; the rest is not shown\n"
    assert (tmp_path / "done").read_text() == "done"


def with_closed(streams: str, *command: str) -> subprocess.CompletedProcess:
    """Run a command from `ROOT` whose standard streams are closed, as `>&- 2>&-` closes them."""
    shell = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, *command]
    return subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(os.name == "nt", reason="no shell that closes streams")
def test_a_command_whose_streams_are_closed_works_as_into_nowhere(tmp_path):
    tiny = make(tmp_path / "tiny")
    source, runs, data = tmp_path / "tiny" / "source.jsonl", tmp_path / "runs", tmp_path / "data"
    train = ["train.py", *tiny.flags(runs), "--steps=1", "--eval-rows=0"]
    prepare = ["-m", "qs.data", "prepare", str(source), f"--out={data}", "--workers=1"]
    generate = ["evaluate.py", "generate", str(tiny.weights), "3 plus", "--max-tokens=2"]
    generate += ["--device=cpu", "--thoughts=1"]
    for command in (train, [*prepare, f"--tokenizer={tiny.tokenizer}"], generate):
        made = with_closed(">&- 2>&- <&-", *command)
        assert (made.returncode, made.stdout, made.stderr) == (0, "", ""), command
    assert list(runs.glob("*/step_*/model.safetensors"))
    assert (data / "meta.json").exists()
    made = with_closed("<&-", *generate[:3], "-", *generate[4:])
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr.endswith(
        "error: -: expected prompts on standard input, found it closed; pipe some in\n"
    )


def test_streams_that_were_none_are_none_again(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with lasting_streams():
        print("nowhere", flush=True)
    assert sys.stdout is None


def test_a_stream_without_an_encoding_is_taken_as_it_is(monkeypatch):
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stdout", notebook)
    with lasting_streams():
        print("∅")
    assert sys.stdout is notebook
    assert notebook.getvalue() == "∅\n"


def test_progress_that_no_terminal_shows_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    bar = progress(range(9), "counting", unit=" steps")
    assert isinstance(bar, Lines)
    for number in bar:
        bar.set_postfix_str(f"loss {number}")
    lines = capsys.readouterr().err.split("\n")
    assert lines[0] == "counting: 3 of 9 steps, 01:40, loss 2"
    assert lines[-2].startswith("counting: 9 of 9 steps, ")
    assert len(lines) < 6
    assert list(progress(iter("ab"), "hidden", leave=False)) == ["a", "b"]
    with progress(None, "hidden", 3, shown=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert "counting: 100%" in sys.stderr.getvalue()


def test_controls_of_a_text_are_shown_and_its_lines_stay():
    text = "a\tb\n\x1b[2J\x07\r\u202e\x9b c"
    assert harmless(text) == "a\tb\n\\x1b[2J\\x07\\r\\u202e\\x9b c"


def test_the_nearest_name_is_proposed():
    assert nearest("tny", ["sums", "tiny"]) == "; did you mean tiny?"
    assert nearest("--thougts", ["--thoughts", "--seq"]) == "; did you mean --thoughts?"
    assert nearest("mistral", ["sums", "tiny"]) == ""


def test_a_word_is_told_at_once_even_within_a_print(capfd):
    output.tell("stopping ∅")
    assert capfd.readouterr().err == "stopping ∅\n"
