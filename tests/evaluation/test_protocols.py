"""The rows of each evaluation protocol."""

import pytest

from rohydr_fast.errors import UsageError
from rohydr_fast.evaluation.protocols import protocol_rows


def test_rates_are_the_eight_of_table_1():
    rows = protocol_rows("rates", ("a", "t", "v"))
    assert [name for name, _ in rows] == [f"exact 0.{i}" for i in range(8)]
    assert [spec.rate for _, spec in rows] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ("modalities", "names"),
    [
        (("a", "t", "v"), ["{a}", "{t}", "{v}", "{a,t}", "{a,v}", "{t,v}", "{a,t,v}"]),
        (("v", "t"), ["{t}", "{v}", "{t,v}"]),
        (("t",), ["{t}"]),
    ],
)
def test_fixed_sets_come_in_the_order_of_table_2(modalities, names):
    rows = protocol_rows("fixed", modalities)
    assert [name for name, _ in rows] == names
    assert all(spec.protocol == "fixed" and spec.name == name for name, spec in rows)


def test_natural_is_one_row():
    assert [(name, spec.protocol) for name, spec in protocol_rows("natural", ("t",))] == [("natural", "natural")]


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UsageError, match="protocol must be one of rates, fixed, natural, exact, .*, got 'all'"):
        protocol_rows("all", ("a",))
