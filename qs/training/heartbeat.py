"""Which of several processes is gone: each says that it lives, and a silent one ends the job.

A collective operation waits for every process, for an hour; one that is stopped, or whose machine
is out of reach, would let the others wait that long and say nothing about who is missing. So a
thread of each counts in the store that the processes met by; the first one listens to all others,
they listen to the first. A process that only takes long goes on counting.
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable

import torch.distributed as dist

from qs.output import tell

EVERY, SILENCE = 10.0, 300.0  # seconds between beats, and without one until the job ends
LEFT = 2**40  # more beats than there will be: a process that has ended as it should
AGAIN = "go on from the last checkpoint, if there is one, with --resume"


class Heartbeat:
    """The beats of this process, until it is stopped, and the watch over others."""

    def __init__(self, rank: int, count: int):
        self.rank, self.count = rank, count
        self.ended = threading.Event()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = datetime.timedelta(seconds=SILENCE)
        store = dist.TCPStore(*place, is_master=False, timeout=wait)
        self.store = dist.PrefixStore(f"qs/{attempt}", store)
        self.store.set(f"who/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """The end of this process is no reason to end others."""
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        try:
            self._listen(range(1, self.count) if self.rank == 0 else [0])
            self.store.add(f"beats/{self.rank}", LEFT)
        except RuntimeError as error:  # of the store
            if not self.ended.wait(EVERY):  # else the first process, which may keep it, has left
                _end(f"the store of this job cannot be reached ({error})")

    def _listen(self, others: Iterable[int]) -> None:
        now = time.monotonic()
        beats, heard = dict.fromkeys(others, 0), dict.fromkeys(others, now)
        while not self.ended.wait(EVERY):
            before, now = now, time.monotonic()
            self.store.add(f"beats/{self.rank}", 1)
            for other in heard:
                count = self.store.add(f"beats/{other}", 0)
                # who was stopped itself does not know how long others were silent
                if count != beats[other] or count >= LEFT or now - before > EVERY + SILENCE / 2:
                    beats[other], heard[other] = count, now
                elif now - heard[other] > SILENCE:
                    who = f"rank {other} of {self.count} ({self._who(other)})"
                    _end(f"{who} has not been heard from for {now - heard[other]:.0f} s")

    def _who(self, rank: int) -> str:
        key = f"who/{rank}"
        return self.store.get(key).decode() if self.store.check([key]) else "which never began"


def _end(problem: str) -> None:
    """Leave from a thread, while the main one waits where nothing can reach it."""
    sys.stdout.flush()
    tell(f"\nerror: {problem}: this job ends; {AGAIN}")
    os._exit(1)
