"""rows: a run of any preset and flag has every row of controls and ladder, and each trains."""

import pytest

from qs.presets import PRESETS
from qs.studies.controls import EVALUATED, Selection, baselines, length_changes
from qs.studies.ladder import RUNGS, rung_config
from qs.studies.rows import row_config
from qs.training.checks import check_trains

SETTINGS = [
    {},
    {"reward": "exact"},
    {"reward": "probability"},
    {"reference": "average"},
    {"mix_weight": "sigmoid", "mix_space": "probability"},
    {"mix_weight": "one", "likelihood_weight": 0.0},
    {"base_weight": 1.0},
    {"base_weight": 0.0, "beta": 0.0},
    {"end": "drawn", "thought_cost": 0.1},
    {"curriculum": "5-1,4-1,0"},
    {"curriculum": "5-1,4-1,0", "distil": 0.5},
    {"anchors": "random", "anchor_share": 0.5},
]
OWN = [(name, {}) for name in PRESETS] + [("tiny", each) for each in SETTINGS]


@pytest.mark.parametrize(("preset", "settings"), OWN, ids=str)
def test_a_run_has_every_row_and_each_trains(preset, settings):
    own = PRESETS[preset].changed(objective="quiet", **settings)
    rows = {baseline.name: baseline.config for baseline in baselines(own)}
    rows |= {rung.key: rung_config(rung, own) for rung in RUNGS}
    rows |= {f"measured {n}": row_config(own, "", length_changes(own, n)) for n in EVALUATED}
    for config in rows.values():
        check_trains(config)
    assert rows["quiet"] == own
    assert rows["plain"].run.objective == "plain"
    assert rows["pause"].run.objective == "pause"
    assert (rows["exact"].thought.reward, rows["exact"].thought.reference) == ("exact", "own")
    for key in ("average", "rlp"):
        found = rows[key].thought
        assert (found.reward, found.reference) == ("information-gain", "average")


def test_a_row_that_rules_nothing_out_keeps_all_of_the_run():
    own = PRESETS["tiny"].changed(curriculum="5-1,4-1,0", distil=0.5, steps=3)
    assert row_config(own, "", {"thoughts": 5, "ahead": 1}) == own
    assert row_config(own, "", {"baseline": "others"}) == own.changed(baseline="others")
    assert row_config(own, "", {"ahead": 2}) == PRESETS["tiny"].changed(ahead=2, steps=3)


def test_a_row_that_a_run_cannot_have_is_named_unless_it_is_left_out():
    own = PRESETS["tiny"].changed(seq=4)
    with pytest.raises(ValueError, match=r"^row m = 4: --ahead 4 does not fit .*; or leave this"):
        baselines(own)
    assert len(baselines(own, Selection(("plain", "m=2")))) == 2
