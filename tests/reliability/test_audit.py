"""The hook of the campaigns hears what it must not hear there."""

import pickle

import pytest

from tests.data.hostile import CANARY, HOSTILE

from .audit import audited


@pytest.mark.parametrize(
    ("name", "event"),
    [("reduce os.system by GLOBAL", "os.system"), ("builtins eval", "compile"), ("builtins exec", "exec")],
)
def test_it_hears_a_pickle_that_is_executed(tmp_path, monkeypatch, name, event):
    monkeypatch.chdir(tmp_path)
    with audited() as events:
        pickle.loads(HOSTILE[name])
    assert any(heard.startswith(event) for heard in events)


def test_it_hears_files_other_than_the_one_that_may_be_opened(tmp_path):
    mine, other = str(tmp_path / "mine"), str(tmp_path / CANARY)
    with audited(mine) as events:
        open(mine, "w").close()
        assert not events
        open(other, "w").close()
    assert len(events) == 1 and other in events[0]


def test_it_does_not_listen_outside(tmp_path):
    with audited() as events:
        pass
    open(tmp_path / "file", "w").close()
    assert not events
