"""Profiles as files: what is written is read again, whatever names are in it; what is no profile is refused."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sandhost
from sandhost.observe.pprof import Profile, Sample, ValueType, decode, encode
from sandhost.observe.speedscope import speedscope
from sandhost.observe.text import as_text

TYPES = (ValueType("inuse_objects", "count"), ValueType("inuse_space", "bytes"))
NAMES = st.text(max_size=30).filter(lambda name: not any(0xD800 <= ord(c) < 0xE000 for c in name))
WORDS = NAMES.filter(bool)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
TAGS = st.tuples(WORDS, st.one_of(WORDS, NUMBERS))
SAMPLES = st.builds(
    Sample,
    st.lists(NAMES, max_size=5).map(tuple),
    st.tuples(NUMBERS, NUMBERS),
    st.lists(TAGS, max_size=4).map(tuple),
)
PROFILES = st.builds(
    Profile,
    st.just(TYPES),
    st.lists(SAMPLES, max_size=8).map(tuple),
    NUMBERS,
    NUMBERS,
    NAMES,
    st.lists(NAMES, max_size=3).map(tuple),
)


def profile(*samples: Sample, time_ns: int = 0) -> Profile:
    return Profile(TYPES, samples, time_ns)


@given(PROFILES)
def test_what_is_written_is_read_again(one: Profile) -> None:
    assert decode(encode(one)) == one
    assert decode(gzip.decompress(encode(one))) == one


def test_an_empty_profile_is_one() -> None:
    assert decode(encode(profile())) == profile()
    assert "total inuse_space: 0 B" in as_text(profile())
    assert json.loads(speedscope(profile()))["profiles"][0]["samples"] == []


def test_the_same_profile_is_the_same_bytes() -> None:
    one = profile(Sample(("a", "b"), (1, 2), (("k", "v"),)))
    assert encode(one) == encode(one)


def test_a_name_that_is_no_text_is_written_all_the_same() -> None:
    (sample,) = decode(encode(profile(Sample(("\ud800",), (1, 2))))).samples
    assert sample.stack == ("?",)


def test_fields_of_the_format_are_where_others_look_for_them() -> None:
    """The bytes, field by field, of a profile that is small enough to be written by hand."""
    one = Profile((ValueType("t", "u"),), (Sample(("f",), (5,)),), 7, 0, "t")
    strings = b"".join(b"\x32" + bytes([len(s)]) + s for s in (b"", b"t", b"u", b"sandhost", b"f"))
    assert gzip.decompress(encode(one)) == (
        b"\x0a\x04\x08\x01\x10\x02"  # sample_type: type, unit
        b"\x12\x06\x0a\x01\x01\x12\x01\x05"  # sample: location ids, values
        b"\x1a\x06\x08\x01\x28\x03\x38\x01"  # mapping: id, filename, has_functions
        b"\x22\x08\x08\x01\x10\x01\x22\x02\x08\x01"  # location: id, mapping, line: function
        b"\x2a\x04\x08\x01\x10\x04"  # function: id, name
        + strings
        + b"\x48\x07\x70\x01"  # time_nanos, default_sample_type
    )


@given(st.binary(max_size=200))
def test_what_is_no_profile_is_refused(data: bytes) -> None:
    try:
        decode(data)
    except sandhost.ConfigError as error:
        assert "no profile" in str(error)


@given(PROFILES, st.data())
def test_a_damaged_profile_is_refused_or_read(one: Profile, data: st.DataObject) -> None:
    whole = bytearray(gzip.decompress(encode(one)))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(whole))
    except sandhost.ConfigError as error:
        assert "no profile" in str(error)


@pytest.mark.parametrize("cut", [3, 20, -1])
def test_a_packed_profile_that_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(sandhost.ConfigError, match="no profile"):
        decode(encode(profile(Sample(("a",), (1, 2))))[:cut])


def test_a_difference_has_what_changed_and_nothing_else() -> None:
    steady = Sample(("a",), (1, 10))
    before = profile(steady, Sample(("b",), (2, 20)), Sample(("gone",), (1, 1)), time_ns=5)
    after = profile(steady, Sample(("b",), (3, 50)), Sample(("new",), (4, 4)), time_ns=9)
    change = after.since(before)
    assert {s.stack: s.values for s in change.samples} == {
        ("b",): (1, 30),
        ("gone",): (-1, -1),
        ("new",): (4, 4),
    }
    assert change.duration_ns == 4
    assert decode(encode(change)) == change


def test_text_begins_with_the_largest() -> None:
    text = as_text(
        profile(Sample(("a", "small"), (1, 10)), Sample(("a", "large"), (1, 5000)))._replace(
            shown="inuse_space"
        )
    )
    assert text.index("large") < text.index("small")
    assert "total inuse_space: 4.89 KiB" in text


def test_speedscope_gets_stacks_and_weights() -> None:
    one = profile(Sample(("a", "b"), (1, 10)), Sample(("a",), (0, 5)), Sample(("c",), (-1, -5)))
    record = json.loads(speedscope(one))
    assert [frame["name"] for frame in record["shared"]["frames"]] == ["a", "b"]
    objects, space = record["profiles"]
    assert (objects["name"], objects["unit"], objects["samples"]) == (
        "inuse_objects",
        "none",
        [[0, 1]],
    )
    assert (space["unit"], space["samples"], space["weights"]) == ("bytes", [[0, 1], [0]], [10, 5])
    assert space["endValue"] == 15
    assert [p["name"] for p in json.loads(speedscope(one, "inuse_space"))["profiles"]] == [
        "inuse_space"
    ]
    with pytest.raises(sandhost.ConfigError, match="inuse_objects, inuse_space, not 'cpu'"):
        speedscope(one, "cpu")
