"""files: what bears its final name is complete, and reads back as it was written."""

import errno
import io
import json
import math
import os
from pathlib import Path

import pytest
from cases import examples
from hypothesis import given
from hypothesis import strategies as st

from qs import atomic, files
from qs.config import Config, OptimConfig, RunConfig, ThoughtConfig
from qs.files import (
    LOG,
    RESULTS,
    JsonLines,
    add_results,
    finished,
    made_by,
    new_run,
    newest_step,
    read_config,
    read_json,
    read_log,
    save_step,
    saved_steps,
    write_json,
)
from qs.presets import PRESETS

QUIET = Config(ThoughtConfig(thoughts=2, ahead=2), OptimConfig(lr=0.1), RunConfig(seq=7))
RECORDS = st.lists(st.fixed_dictionaries({"text": st.text(max_size=4)}), max_size=5)


@examples(0.2)  # each one waits for the disk
@given(some=RECORDS, more=RECORDS, cut=st.integers(0, 60), keep=st.integers(0, 6))
def test_what_is_whole_is_kept_and_the_rest_can_be_added_again(
    tmp_path_factory, some, more, cut, keep
):
    path = tmp_path_factory.mktemp("lines") / "deep" / "x.jsonl"
    lines = JsonLines(path)
    assert list(lines.records()) == []
    lines.append(some)
    lines.append(more)
    assert list(lines.records()) == some + more
    assert path.read_text() == "".join(json.dumps(line) + "\n" for line in some + more)

    whole = path.read_bytes()[:-cut] if cut else path.read_bytes()
    path.write_bytes(whole)
    again = JsonLines(path)
    left = list(again.records())
    assert left == (some + more)[: whole.count(b"\n")]
    again.rewrite(left[:keep])
    assert list(again.records()) == left[:keep]
    again.append((some + more)[len(left[:keep]) :])
    assert list(again.records()) == some + more
    assert [x.name for x in path.parent.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "brackets nested too deeply"),
        (b'{"a": ' * 100_000, "brackets nested too deeply"),
        (b'{"step": -' + b"9" * 400 + b"}", "an integer of 401 digits"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_cannot_be_is_refused_with_the_name_of_its_file(tmp_path, content, reason):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.json: expected JSON, found: .*{reason}.*; again"):
        read_json(path, "again")
    path.write_bytes(b'{"a": 1}\n' + content.replace(b"\n", b"") + b"\n")
    if content:
        with pytest.raises(ValueError, match=r"x\.json, line 2: expected a JSON object"):
            JsonLines(path).records()


def test_json_larger_than_any_of_ours_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(ValueError, match=r"x\.json: expected JSON, found: 1,099,511,627,776 bytes"):
        read_json(path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"model_max_length": 1000000000000000019884624838656}')
    assert read_json(path) == {"model_max_length": 1000000000000000019884624838656}


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: expected a file with JSON, found: no plain file"):
        read_json(tmp_path / "pipe")


def test_lines_of_text_are_parted_by_newlines_alone():
    raw = "\ufeffone\u2028prompt\x0cwith\x85separators\r\n\n\ufefftwo\rthree".encode()
    expected = ["one\u2028prompt\x0cwith\x85separators", "", "\ufefftwo\rthree"]
    assert list(files.text_lines(io.BytesIO(raw), "x")) == expected
    with pytest.raises(
        ValueError, match=r"^x, line 2: expected text in UTF-8, found b'\\xe9'; save"
    ):
        list(files.text_lines([b"one\n", b"caf\xe9\n"], "x"))


@pytest.mark.parametrize("line", ["nonsense", "7", "[]", '{"a": 1'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="x.jsonl, line 2: expected a JSON object, .* remove the"):
        list(JsonLines(path).records())


# Settings and JSON


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_run_gives_back_its_settings(tmp_path, preset):
    run = new_run(tmp_path / "runs", "name", PRESETS[preset])
    assert read_config(run) == PRESETS[preset]
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "digests.json"]


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [("run", "seed", 1), ("optim", "lr", 0.5), ("thought", "thoughts", 4), ("run", "steps", 23)],
)
def test_settings_that_are_not_what_training_wrote_are_refused(tmp_path, group, name, value):
    run = new_run(tmp_path, "name", QUIET)
    values = QUIET.to_json()
    values[group][name] = value
    write_json(run / "config.json", values)
    with pytest.raises(ValueError, match=r"config.json: expected the settings that training wrote"):
        read_config(run)
    (run / "config.json").write_text(json.dumps(QUIET.to_json()))  # in another layout
    assert read_config(run.rename(tmp_path / "moved")) == QUIET
    (tmp_path / "moved" / "digests.json").write_text("[")
    with pytest.raises(ValueError, match=r"digests.json: expected JSON.*or remove it if the set"):
        read_config(tmp_path / "moved")


def test_settings_of_a_run_of_an_earlier_version_are_taken_as_they_are(tmp_path):
    run = new_run(tmp_path, "name", QUIET)
    (run / "digests.json").unlink()
    write_json(run / "config.json", QUIET.changed(seed=1).to_json())
    assert read_config(run) == QUIET.changed(seed=1)


def test_runs_of_one_name_have_folders_of_their_own(tmp_path):
    found = [new_run(tmp_path, "name", QUIET).name for _ in range(3)]
    assert found == ["name", "name-2", "name-3"]


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_runs_that_have_no_folder_to_go_to_are_refused(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="out"):
        new_run(out, "name", QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"expected the folder of a run, found no config.json in it; give one of those in"),
        ("{", "config.json: expected JSON, found: "),
        (b"\xff", "config.json: expected JSON, found: "),
        ("null", r"config.json: expected the settings of a run.*is .* a run folder\?"),
        ("3", "config.json: expected the settings of a run"),
        ('{"model_type": "mistral"}', r"4 missing \(optim, run, star, thought\), 1 unexpected"),
        (json.dumps(QUIET.to_json()).replace('"seq": 7', '"seq": "7"'), "settings of a run"),
        (json.dumps(QUIET.to_json()).replace('"seq"', '"sequence"'), "1 missing .seq."),
        (json.dumps(QUIET.to_json()).replace('"seq": 7', '"seq": 1'), "--seq must be at least 2"),
    ],
)
def test_a_folder_without_sound_settings_is_no_run(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_what_is_no_run_is_told_with_the_newest_and_the_nearest_that_there_are(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        write_json(new_run("runs", f"2026-{number:02}", QUIET) / "run.json", {})
    (tmp_path / "runs" / "other").mkdir()
    said = r"no such folder; .* in runs \(\.\.\., 2026-11, .*, 2026-19\); did you mean 2026-07\?$"
    with pytest.raises(ValueError, match=said):
        read_config(Path("runs/2026_07"))


def test_an_interrupted_write_leaves_the_old_json(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(atomic, "flush", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_or_device_is_never_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="no plain file"):
            write_json(tmp_path / name, {})
    assert (tmp_path / "link").is_fifo()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "pipe"]


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/a.json")
    for value in (1, 2):  # there is nothing, and something
        write_json(tmp_path / "link", value)
        assert read_json(tmp_path / "elsewhere" / "a.json") == value
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.rglob("*"))) == 3


def test_a_name_that_is_no_utf_8_can_be_told_in_a_page(tmp_path):
    atomic.write_text(tmp_path / "page.md", os.fsdecode(b"runs/caf\xe9"))
    assert (tmp_path / "page.md").read_text() == r"runs/caf\udce9"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_a_full_disk_is_told_with_the_file_and_what_it_was_to_take(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="9 bytes could not be written: No space.*log.jsonl") as end:
        JsonLines(tmp_path / "log.jsonl").append([{"a": 1}])
    assert end.value.errno == errno.ENOSPC


# Checkpoints


def fill(text):
    return lambda folder: [(folder / name).write_text(text) for name in ("a", "b")]


def test_results_are_added_to_what_is_there_and_a_run_is_finished_by_its_last_step(tmp_path):
    run = new_run(tmp_path, "run", PRESETS["tiny"])
    for found in ({"exams": {"a": 1}}, {"after": 2}, {"after": 3}):
        add_results(run, found)
    assert read_json(run / RESULTS) == {"exams": {"a": 1}, "after": 3}
    last = PRESETS["tiny"].run.steps
    for step in (1, last - 1, last):
        assert not finished(run)
        save_step(run, step, fill("x"))
    assert finished(run)


def test_an_interrupted_save_leaves_no_checkpoint_that_is_read(tmp_path):
    first = save_step(tmp_path, 2, fill("whole"))

    def interrupted(folder):
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_step(tmp_path, 4, interrupted)
    assert newest_step(tmp_path) == first
    assert saved_steps(tmp_path) == {2: first}
    # what was left over does not come into the next attempt
    again = save_step(tmp_path, 4, lambda folder: (folder / "b").write_text("whole"))
    assert newest_step(tmp_path) == again
    assert [path.name for path in again.iterdir()] == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000004"]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed = []

    def flush(path):
        assert not (tmp_path / "step_000001").exists() or path == tmp_path
        flushed.append(path.name)

    monkeypatch.setattr(atomic, "flush", flush)
    save_step(tmp_path, 1, fill("x"))
    assert sorted(flushed[:2]) == ["a", "b"]
    assert flushed[2:] == [".step_000001.tmp", tmp_path.name]


def test_a_step_saved_twice_keeps_the_complete_one(tmp_path):
    save_step(tmp_path, 3, fill("first"))
    assert save_step(tmp_path, 3, fill("second")) == tmp_path / "step_000003"
    assert (tmp_path / "step_000003" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003"]


def test_the_newest_step_is_the_highest_number_and_not_the_last_word(tmp_path):
    for name in ("step_999999", "step_1000000", "step_000004", ".step_2000000.tmp", "step_best"):
        (tmp_path / name).mkdir()
    assert newest_step(tmp_path).name == "step_1000000"
    assert [*saved_steps(tmp_path)] == [4, 999999, 1000000]


def test_a_run_without_checkpoint_says_what_to_do(tmp_path):
    (tmp_path / ".step_000002.tmp").mkdir()
    with pytest.raises(
        ValueError, match=r"no checkpoint \(step_\*/\) to go on from; start .* again"
    ):
        newest_step(tmp_path)


# The log

LINES = [{"commit": "c"}, {"step": 1, "loss": 0.1}, {"step": 2, "loss": None}, {"step": 3}]


def logged(folder):
    log = JsonLines(folder / LOG)
    for line in LINES:
        log.append([line], flushed=False)
    return log


def test_a_log_gives_back_its_records(tmp_path):
    assert logged(tmp_path).records() == LINES


@pytest.mark.parametrize("end", ['{"step": 4, "lo', '"', "4", " "])
def test_a_line_cut_short_is_left_out_and_goes_before_the_next(tmp_path, capsys, end):
    log = logged(tmp_path)
    with log.path.open("a") as file:
        file.write(end)
    assert log.records() == LINES
    assert read_log(tmp_path) == LINES[1:]
    assert made_by(tmp_path) == LINES[0]  # of an old run
    write_json(tmp_path / "run.json", {"commit": "d"})
    assert made_by(tmp_path) == {"commit": "d"}
    log.append([{"step": 10}])
    assert log.records() == [*LINES, {"step": 10}]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("line", ['{"step": 4, "loss": ', "4", "[" * 100_000, ""])
def test_a_damaged_line_of_a_log_is_named_and_those_after_it_are_kept(tmp_path, capsys, line):
    log = logged(tmp_path)
    with log.path.open("a") as file:
        file.write(f"{line}\n")
    log.append([{"step": 5}])
    assert read_log(tmp_path) == [*LINES[1:], {"step": 5}]
    assert "log.jsonl, line 5: expected a JSON object, found" in capsys.readouterr().err


def test_what_is_not_finite_is_written_as_null(tmp_path):
    log = JsonLines(tmp_path / LOG)
    write_json(tmp_path / "rows.json", {"rows": [{"x": (math.nan, 1.0)}]})
    assert json.loads((tmp_path / "rows.json").read_text()) == {"rows": [{"x": [None, 1.0]}]}
    log.append([{"step": 1, "loss": math.nan, "reward": -math.inf, "lr": 0.5}])
    assert log.records() == [{"step": 1, "loss": None, "reward": None, "lr": 0.5}]
    write_json(tmp_path / "x.json", {"a": {"b": math.inf}, "c": 1})
    assert read_json(tmp_path / "x.json") == {"a": {"b": None}, "c": 1}
