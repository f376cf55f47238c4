"""cli: any config survives the command line; what a person can mend is one line."""

from __future__ import annotations

import argparse
import dataclasses
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from faulty import forked
from hypothesis import given
from hypothesis import strategies as st
from settings import OUT_OF_RANGE, SETTINGS, configs
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._inductor.exc import InductorError

from qs import cli
from qs.cli import add_settings, chosen, parse, to_args
from qs.config import Config, RunConfig, StarConfig, ThoughtConfig
from qs.presets import PRESETS
from qs.unused import NOT_OF_STAR, used


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(allow_abbrev=False)


@given(config=configs(), preset=st.sampled_from(sorted(PRESETS)))
def test_any_config_survives_the_command_line(config: Config, preset: str):
    args = to_args(config)
    kept = used(config)
    assert used(parse([f"--preset={preset}", *args], parser())) == kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rounds=3", "--rounds: of no effect with --objective quiet; .* add --objective star$"),
        ("--preset=tiny --no-rationalize --task=gsm8k", "--task, --no-rationalize: .*tive quiet"),
        ("--objective=plain --shots=3", "--shots: of no effect with --objective plain"),
        ("--objective=pause --questions=data", "--questions: of no effect with --objective pause"),
        ("--preset=sums --objective=plain --growth=1", "--growth: of no effect with --objective p"),
        (
            "--objective=star --eval-rows=0",
            "--eval-rows: of no effect with --objective star; l",
        ),
        (
            "--preset=star --beta=1 --data=tiny",
            "--beta, --data: of no effect with --objective",
        ),
        (
            "--preset=sums --save-every=1 --save-minutes=1",
            "--save-every, --save-minutes: of no ",
        ),
        ("--preset=sums --thoughts=9 --mixer-lr=1", "--thoughts, --mixer-lr: of no effect with"),
        ("--preset=sums --thought-lr=1", "--thought-lr: of no effect with --objective star"),
        ("--preset=sums --grad-norms-every=1", "--grad-norms-every: of no effect with --objective"),
        ("--preset=sums --questions=data", "--questions: of no effect with --task arithmetic"),
        (
            "--preset=sums --task=world --no-rationalize --questions=x",
            "effect with --task world",
        ),
    ],
)
def test_flags_that_change_nothing_are_refused(flags: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse(flags.split(), parser())


def test_flags_that_change_something_are_not_refused():
    for name in ("commonsense_qa", "gsm8k"):
        flags = ["--objective=star", f"--task={name}", "--questions=x", "--keep=0", "--lr=1"]
        assert parse(flags, parser()).star.questions == "x"
    assert parse(["--objective=plain", "--thoughts=1"], parser()).thought.thoughts == 1
    assert parse(["--preset=sums", "--objective=plain", "--data=x"], parser()).run.data == "x"


def test_settings_of_no_effect_are_settings():
    assert {f.name for _, f, _ in SETTINGS} >= NOT_OF_STAR


@pytest.mark.parametrize(("name", "f"), [(name, f) for name, f, _ in SETTINGS])
def test_every_setting_is_a_flag_with_a_help_sentence(name: str, f: dataclasses.Field):
    made = parser()
    parse([], made)
    shown = "".join(made.format_help().split())
    assert len(f.metadata["help"]) > 10
    assert "".join(f.metadata["help"].split()) in shown
    assert f"--{f.name.replace('_', '-')}" in shown


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_is_what_no_flag_changes(preset: str):
    assert parse([f"--preset={preset}"], parser()) == PRESETS[preset]
    changed = parse([f"--preset={preset}", "--warmup=3"], parser())
    assert changed.optim == dataclasses.replace(PRESETS[preset].optim, warmup=3)
    assert changed.run == PRESETS[preset].run


def test_help_begins_with_what_is_set_first():
    made = cli.Parser("x")
    parse([], made)
    first, *rest = re.split(r"\nto set first:\n|\nthought: ", made.format_help())[1:]
    assert re.findall(r"^  (--\w+)", first, re.MULTILINE) == [
        "--preset",
        *(f"--{name}" for name in cli.FIRST),
    ]
    assert "[tiny/demo/rlp 5, " in " ".join(first.split())
    assert len(rest) == 1


@pytest.mark.parametrize("flag", ["--thought=3", "--tho=3", "--no-recomp", "--see=1"])
def test_abbreviated_flags_are_refused(flag: str, capsys):
    with pytest.raises(SystemExit):
        parse([flag], parser())
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--preset=best", "invalid choice: 'best'"),
        ("--baseline=median", "invalid choice: 'median'"),
        ("--thoughts=2.5", "invalid int value: '2.5'"),
        ("--lr=fast", "invalid float value: 'fast'"),
        ("--recompute=yes", "ignored explicit argument 'yes'"),
    ],
)
def test_values_of_another_kind_are_refused(flag: str, message: str, capsys):
    with pytest.raises(SystemExit):
        parse([flag], parser())
    assert message in capsys.readouterr().err


def test_data_of_ones_own_starts_from_the_published_settings():
    assert parse([], parser()) == PRESETS["tiny"]
    assert parse(["--data=tiny", "--steps=3"], parser()).thought == PRESETS["tiny"].thought
    own = parse(["--data=owm", "--thoughts=16"], parser())
    assert own.thought == dataclasses.replace(PRESETS["published"].thought, thoughts=16)
    assert (own.run.data, own.run.weights) == ("owm", "mistral-7b")
    assert parse(["--data=owm", "--preset=tiny"], parser()).thought == PRESETS["tiny"].thought


@pytest.mark.parametrize(("group", "changes", "message"), OUT_OF_RANGE)
def test_flags_out_of_range_are_refused(group: type, changes: dict[str, Any], message: str):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    with pytest.raises(ValueError, match=message):
        parse(flags, parser())


def test_flags_of_some_fields_leave_no_trace_where_they_are_not_given():
    made = parser()
    add_settings(made, RunConfig, "seed", "compile", shown="its own")
    add_settings(made, StarConfig, "shots")
    assert "None" not in made.format_help()
    assert "[its own]" in made.format_help()
    assert f"[{StarConfig().shots}]" in made.format_help()
    assert vars(made.parse_args([])) == {}
    args = made.parse_args(["--seed=3", "--no-compile"])
    assert chosen(args, RunConfig) == {"seed": 3, "compile": False}
    assert chosen(args, ThoughtConfig, StarConfig) == {}
    with pytest.raises(SystemExit):
        made.parse_args(["--batch=2"])


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (ValueError("--seq 1"), "--seq 1", 2),
        (OSError(28, "disk full"), "disk full", 2),
        (MemoryError(), "what of --batch, --seq, --thoughts and --samples the command has", 2),
        (torch.OutOfMemoryError("CUDA"), "out of memory", 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory", 2),
        (RuntimeError("can't start new thread"), "found no room for one: raise the limit", 2),
        (KeyboardInterrupt(), "interrupted by SIGINT", 130),
        (KeyboardInterrupt(signal.SIGHUP), "interrupted by SIGHUP", 129),
    ],
)
def test_what_a_person_can_mend_is_one_line(capsys, error: BaseException, line: str, status: int):
    def command(argv: list[str]) -> None:
        raise error

    assert cli.main(command, []) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert line in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory, or no /proc")
def test_a_thread_that_cannot_be_had_is_one_line():
    def command(argv: list[str]) -> None:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + 2**20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        threading.stack_size(2**28)  # more, and more than stacks of ended threads are
        threading.Thread(target=time.sleep, args=(1,)).start()

    assert forked(lambda: cli.main(command, [])) == 2


class Layer(torch.nn.Module):
    """A layer whose compiler fails."""

    def __init__(self, error: Exception):
        super().__init__()

        def compiler(graph: object, inputs: object) -> NoReturn:
            raise error

        self.compile(backend=compiler)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("no kernel fits\n  args[0]: TensorBox("), "RuntimeError: no kernel fits"),
        (InductorError(OSError("no C compiler"), None), "OSError: no C compiler"),
        (FailOnRecompileLimitHit("64 shapes"), "FailOnRecompileLimitHit: 64 shapes"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(capsys, error: Exception, line: str):
    torch.compiler.reset()
    assert cli.main(lambda argv: Layer(error)(torch.ones(2)), []) == 2
    said = f"error: torch.compile failed: {line}; --no-compile computes without it\n"
    assert capsys.readouterr() == ("", said)


def test_a_bug_keeps_its_traceback():
    def command(argv: list[str]) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(command, [])


def test_a_command_takes_the_arguments_of_the_process_and_gives_its_status(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "a", "--b"])
    assert cli.main(lambda argv: len(argv)) == 2
    assert cli.main(lambda argv: None) == 0
    assert cli.main(lambda argv: len(argv), ["c"]) == 1


def test_a_list_of_names_is_read_in_its_order_and_what_there_is_not_is_told():
    assert cli.listed("b,a,b", "abc") == ["b", "a"]
    assert cli.listed("none", "abc", none=True) == []
    said = "expected none, or some of one,two; got 'twoo'; did you mean two"
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        cli.listed("one,twoo", ["one", "two"], none=True)
    with pytest.raises(argparse.ArgumentTypeError, match="expected some of one,two; got 'none'"):
        cli.listed("none", ["one", "two"])


def test_a_command_of_few_flags_tells_them_where_none_is_near():
    few = cli.Parser("few")
    few.add_argument("--only")
    with pytest.raises(ValueError, match="unrecognized arguments: --rows 3; there is --only; see"):
        few.parse_args(["--rows", "3"])
    with pytest.raises(ValueError, match="--onyl; did you mean --only"):
        few.parse_args(["--onyl"])
