"""Hypothesis profiles `dev` (default), `ci` (derandomised), `thorough`: HYPOTHESIS_PROFILE."""

import contextlib
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

with contextlib.suppress(ImportError):  # what it replaces, distutils, may be imported otherwise
    import setuptools  # noqa: F401

CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=CHECKS)
settings.register_profile("ci", settings.get_profile("dev"), max_examples=100, derandomize=True)
settings.register_profile("thorough", settings.get_profile("dev"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

torch.set_num_threads(1)  # tensors of tests are too small to share


@pytest.fixture(autouse=True, scope="session")
def interrupts():
    """Ctrl-C and a lost terminal reach every process, as if tests did not run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):  # nohup ignores it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
