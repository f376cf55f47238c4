"""checks: what mixes, or can learn to, is taken; refusals are in test_train.py, test_parts.py."""

from __future__ import annotations

import pytest
from torch import nn

from qs.config import Config
from qs.quietstar.mixer import MixingHead
from qs.training.checks import check_mixes

ALONE = Config().changed(likelihood_weight=0.0)


class Own(MixingHead):
    """A head that may begin otherwise: nobody knows what it makes of its tensors."""


@pytest.mark.parametrize(
    "settings",
    [
        {"mix_weight": "one"},
        {"mix_weight": "sigmoid"},
        {"likelihood_weight": 0.1},
        {"objective": "plain"},
        {"curriculum": "0"},
        {"curriculum": "0", "distil": 1.0},
    ],
)
def test_a_new_head_is_refused_only_where_it_stays_shut(settings):
    with pytest.raises(ValueError, match="leaves a new mixing head untrained"):
        check_mixes(ALONE, MixingHead(2))
    check_mixes(ALONE.changed(**settings), MixingHead(2))


def test_a_head_of_a_run_or_of_ones_own_is_taken():
    learned = MixingHead(2)
    nn.init.constant_(learned[-1].weight, 1e-9)
    check_mixes(ALONE, learned)
    check_mixes(ALONE, Own(2))
