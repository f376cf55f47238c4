"""A run or a checkpoint that is ready to be measured, with the settings it was trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from qs import checkpoint, weights
from qs.build import STORED, Placement, check_fits, choose_placement, load
from qs.config import Config
from qs.data import resolve as resolve_data
from qs.masks import PADDING
from qs.model_config import read_config, read_settings
from qs.quiet import QuietStar
from qs.shards import TokenDataset, sequential
from qs.tokenizer import Tokenizer

ROWS = 32  # of held-out text, where neither a flag nor a run says how many


class Opened(NamedTuple):
    """A model that is ready, and where it came from.

    Attributes:
        folder: of the checkpoint.
        run: the run folder that holds it, if any.
        config: settings it is measured with.
        placement: device, dtype and kernels.
        quiet: the module.
        tokenizer: that goes with it.
    """

    folder: Path
    run: Path | None
    config: Config
    placement: Placement
    quiet: QuietStar
    tokenizer: Tokenizer


def open_model(
    model: str,
    thought: Mapping[str, object],
    run: Mapping[str, object],
    reads: bool = False,
) -> Opened:
    """Load a run or a checkpoint with its own settings.

    Args:
        model: a run, a checkpoint folder, or a name in weights/.
        thought, run: settings to use instead of its own; None: its own.
        reads: whether held-out text will be read, of ROWS rows where no number is given.

    Raises:
        ValueError: it is none, it has no text to read, or it does not fit what was asked.
    """
    folder = weights.resolve(model)
    home = folder.parent if (folder / checkpoint.TRAINER).is_file() else None
    if reads and home is None and run.get("data") is None:
        raise ValueError(f"{folder} is no run, so give --data: a name in data/ or a folder")
    config = checkpoint.read_config(home) if home else Config()
    stored = {} if home else read_settings(folder) or {}
    kept = {key: stored[key] for key in (*STORED, "thoughts") if key in stored} | {"beta": 0.0}
    own = {key: stored[key] for key in ("objective",) if key in stored}
    own["eval_rows"] = config.run.eval_rows or ROWS
    config = dataclasses.replace(
        config,
        thought=dataclasses.replace(config.thought, **kept | _given(thought)),
        run=dataclasses.replace(config.run, **own | _given(run)),
    )
    placement = choose_placement(config.run)
    check_fits(read_config(folder), Tokenizer.load(folder), config, folder)
    return Opened(folder, home, config, placement, *load(folder, config, placement))


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def heldout(opened: Opened) -> TokenDataset:
    """The held-out text that a model is evaluated on.

    Raises:
        ValueError: another tokenizer prepared it.
    """
    data = TokenDataset(resolve_data(opened.config.run.data), "heldout")
    data.check_tokenizer(opened.tokenizer)
    return data


def heldout_pairs(opened: Opened) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and documents (B, T) of the held-out text, with a progress bar.

    Documents have their numbers in the whole text, so that one cut by a row's end stays one.
    """
    run, data = opened.config.run, heldout(opened)
    device = opened.placement.device
    for batch in tqdm(
        list(sequential(data, run.seq, run.batch, run.eval_rows)), "held-out text", leave=False
    ):
        numbers = batch.documents + batch.first[:, None]
        documents = numbers.where(batch.documents != PADDING, PADDING)
        yield batch.tokens.to(device), documents.to(device)
