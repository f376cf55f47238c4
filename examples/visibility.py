"""Own visibility: nobody looks back further than REACH tokens. Needs pip install -e '.[test]'."""

from hypothesis import given, settings
from hypothesis import strategies as st

import qs

REACH = 4


def near(query: qs.Place, key: qs.Place):
    return query.position - key.position < REACH


parts = qs.Parts(visibility=near)
model = qs.load("tiny", thoughts=5, start_text=":", end_text=";", fixed_weight=1.0, parts=parts)
FAR = model.quiet.model.config.layers * (REACH - 1)  # each layer looks back once more
digits = st.text("0123456789", min_size=3, max_size=3)


@settings(max_examples=20, deadline=None)
@given(one=digits, other=digits, seed=st.integers(0, 99))
def test_what_is_further_than_the_layers_reach_changes_nothing(one: str, other: str, seed: int):
    recent = "7160" * FAR
    assert model.think(one + recent, seed) == model.think(other + recent, seed)


test_what_is_further_than_the_layers_reach_changes_nothing()
print(f"thoughts depend on {FAR} tokens before them at most")
