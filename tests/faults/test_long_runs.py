"""Long runs: memory and descriptors stay flat over many steps, and no network is asked for."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path

import pytest
from faulty import forked
from tiny import only, train

import evaluate

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
proc = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc")


@proc
@pytest.mark.parametrize("steps", [80, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_and_descriptors_are_flat(tiny, tmp_path, monkeypatch, steps):
    seen = {}
    step = train.Trainer.step

    def looking(trainer):
        record = step(trainer)
        if trainer.state.step in (steps // 2, steps):
            gc.collect()
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
            seen[trainer.state.step] = resident, len(os.listdir("/proc/self/fd"))
        return record

    monkeypatch.setattr(train.Trainer, "step", looking)
    flags = ["--eval-rows=0", f"--steps={steps}", f"--save-every={steps // 8}", "--batch=1"]
    assert train.main(tiny.flags(tmp_path / "out", *flags)) == 0
    (held, opened), (later, still) = seen[steps // 2], seen[steps]
    assert later - held < 8 * 2**20, f"{(later - held) / 2**20:.1f} MiB more"
    assert still == opened


def test_nothing_asks_for_a_network(tiny, tmp_path):
    def without(main, words):
        def refuse(*arguments, **keywords):
            os._exit(77)

        for name in ("connect", "connect_ex", "sendto"):
            setattr(socket.socket, name, refuse)
        socket.getaddrinfo = socket.create_connection = refuse
        return main(words)

    out = tmp_path / "out"
    flags = tiny.flags(out, "--steps=1", "--eval-rows=1")
    assert forked(lambda: without(train.main, flags)) == 0
    asked = ["arithmetic", "--limit=1", "--samples=1", "--device=cpu"]
    for words in (["score", str(only(out))], ["tasks", str(only(out)), *asked]):
        assert forked(lambda words=words: without(evaluate.main, words)) == 0
    assert forked(lambda: without(lambda _: socket.create_connection(("h", 1)), [])) == 77
