"""What every test of bad days begins with."""

from __future__ import annotations

import pytest
from tiny import make


@pytest.fixture(scope="package")
def tiny(tmp_path_factory):
    """A small model with its data."""
    return make(tmp_path_factory.mktemp("tiny"))
