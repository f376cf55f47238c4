"""Preparing text: documents to token shards."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from qs.bench.measure import Measured, Stopwatch, measure
from qs.bench.work import Work
from qs.data.prepare import prepare_dataset
from qs.data.synthetic import World, documents


def measure_prepare(work: Work) -> Iterator[tuple[str, Measured]]:
    """Stages: --documents of synthetic text prepared by one process, then by one a core."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "documents.jsonl"
        texts = (each.text for each in documents(World(), 0, "train"))
        lines = (json.dumps({"text": text}) for text in itertools.islice(texts, work.documents))
        source.write_text("\n".join(lines))
        for workers in sorted({1, os.cpu_count() or 1}):
            tokens = 0

            def prepare(watch: Stopwatch, number: int, workers: int = workers) -> None:
                nonlocal tokens
                out = Path(name) / f"{workers}-{number}"
                with contextlib.redirect_stdout(sys.stderr):
                    meta = prepare_dataset([source], out, work.tokenizer, workers=workers)
                tokens = sum(part["tokens"] for part in meta["splits"].values())
                watch.lap("prepare")

            result = measure(work, torch.device("cpu"), prepare)
            seconds = median(result.seconds["total"])
            result.facts = {"tokens_per_second": tokens / seconds}
            result.facts["bytes_per_second"] = source.stat().st_size / seconds
            yield f"workers {workers}", result
