"""Values of wasm in JSON: what fits goes in as it is meant, and the rest is refused by name."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandhost.modules.types import FuncType
from sandhost.serve.problems import Invalid
from sandhost.serve.values import from_json, to_json


@pytest.mark.parametrize(
    ("kind", "value", "taken"),
    [
        ("i32", -(2**31), -(2**31)),
        ("i32", 2**32 - 1, 2**32 - 1),
        ("i64", -(2**63), -(2**63)),
        ("i64", 2**64 - 1, 2**64 - 1),
        ("f32", 1, 1.0),
        ("f64", -0.5, -0.5),
        ("f64", "Infinity", math.inf),
        ("f64", "-Infinity", -math.inf),
        ("v128", "00" * 15 + "fF", bytes(15) + b"\xff"),
    ],
)
def test_what_fits_is_taken(kind, value, taken):
    assert from_json("f", FuncType((kind,), ()), [value]) == [taken]


def test_nan_has_a_word():
    (value,) = from_json("f", FuncType(("f32",), ()), ["NaN"])
    assert isinstance(value, float)
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("i32", 2**32),
        ("i32", -(2**31) - 1),
        ("i64", 2**64),
        ("i64", 10**4000),
        ("i32", True),
        ("i32", 1.0),
        ("i32", "1"),
        ("i64", None),
        ("f64", True),
        ("f64", "nan"),
        ("f64", 10**400),
        ("f32", float("inf")),  # what Python reads 1e999 as
        ("f64", [1.0]),
        ("v128", "00"),
        ("v128", "00 " * 10 + "00"),
        ("v128", "\uff10" * 32),
        ("v128", 0),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(kind, value):
    with pytest.raises(Invalid, match="argument 1"):
        from_json("f", FuncType(("i32", kind), ()), [0, value])


@pytest.mark.parametrize("arguments", [None, {}, "[]", 3, [], [1, 2]])
def test_the_number_of_arguments_has_to_be_right(arguments):
    with pytest.raises(Invalid):
        from_json("f", FuncType(("i32",), ()), arguments)


@pytest.mark.parametrize("kind", ["externref", "funcref", "(ref 3)"])
def test_references_are_nothing_for_json(kind):
    for type_ in (FuncType((kind,), ()), FuncType((), (kind,))):
        with pytest.raises(Invalid, match="JSON"):
            from_json("f", type_, [None] * len(type_.params))


@given(
    st.lists(
        st.one_of(
            st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(min_size=16, max_size=16)
        )
    )
)
def test_results_are_json_that_every_reader_takes_and_come_back_the_same(values):
    kinds = tuple({int: "i64", float: "f64", bytes: "v128"}[type(value)] for value in values)
    returned = None if not values else values[0] if len(values) == 1 else tuple(values)
    text = json.dumps(to_json(FuncType((), kinds), returned), allow_nan=False)
    back = from_json("f", FuncType(kinds, ()), json.loads(text))
    assert [repr(value) for value in back] == [repr(value) for value in values]
