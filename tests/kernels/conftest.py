"""Fixtures of the kernel tests: one thread of torch, and the native core forced to one instruction set."""

import pytest

from . import driver


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The references are small; the native core has threads of its own."""


@pytest.fixture(params=driver.ISAS)
def isa(request, monkeypatch) -> str:
    """Each instruction set that this machine can use, in force for the test."""
    monkeypatch.setenv("ROHYDR_FAST_CPU", request.param)
    return request.param


@pytest.fixture
def each_isa(monkeypatch):
    """An iterator that forces one instruction set after the other, for tests that share an expensive reference."""

    def every():
        for name in driver.ISAS:
            monkeypatch.setenv("ROHYDR_FAST_CPU", name)
            yield name

    return every
