"""Sizes and durations as text."""

from __future__ import annotations

import pytest

from sandhost.errors import ConfigError
from sandhost.units import format_bytes, format_ns, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("16 MiB", 16 * 2**20),
        ("16MiB", 16 * 2**20),
        (" 16 mib ", 16 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("16 MB", 16_000_000),
        ("64 kB", 64_000),
        ("64 KiB", 65536),
        ("7 B", 7),
        ("0.1 GiB", 107374182),
        ("9223372036854775807", 2**63 - 1),
        ("7.9 EiB", 79 * 2**60 // 10),
        (0, 0),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "16 XB",
        "16M",
        "64k",
        "-1",
        "-1 MiB",
        "+1 MiB",
        "",
        "MiB",
        "nan",
        "NaN MiB",
        "inf",
        "1e9",
        "1_000",
        "0x10",
        "1,5 GiB",
        "1.",
        ".5 GiB",
        "1 Mi B",
        "١٦ MiB",
        "8 EiB",
        "9223372036854775808",
        "9" * 5000,
        -1,
        2**63,
        pytest.param(-(10**5000), id="5000 digits"),
        True,
        1.5,
        float("nan"),
        None,
        b"16 MiB",
    ],
)
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ConfigError):
        parse_bytes(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (65536, "64 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (16 * 2**20, "16 MiB"),
        (2**20 - 1, "1 MiB"),
        (1000 * 2**20, "1000 MiB"),
        (12_345_678, "11.8 MiB"),
        (-65536, "-64 KiB"),
        (2**63 - 1, "8 EiB"),
        (2**75, "32768 EiB"),
    ],
)
def test_sizes_are_shown(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize("exponent", range(61))
def test_a_power_of_two_survives_the_round_trip(exponent: int) -> None:
    assert parse_bytes(format_bytes(2**exponent)) == 2**exponent


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250 ms", 0.25),
        ("1.5s", 1.5),
        ("0.25", 0.25),
        ("2 min", 120.0),
        ("1 h", 3600.0),
        ("100us", 1e-4),
        ("100 µs", 1e-4),  # micro sign
        ("100 μs", 1e-4),  # Greek letter
        ("5 ns", 5e-9),
        (0, 0.0),
        (3, 3.0),
        (0.25, 0.25),
    ],
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "1 day",
        "-1 s",
        "",
        "s",
        "nan",
        "inf",
        "1e400",
        "9999999999999 h",
        -1,
        -0.5,
        float("nan"),
        float("inf"),
        1e300,
        pytest.param(10**5000, id="5000 digits"),
        False,
        None,
    ],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ConfigError):
        parse_seconds(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (320, "320 ns"),
        (999, "999 ns"),
        (1000, "1 µs"),
        (1_500_000, "1.5 ms"),
        (999_999, "1 ms"),
        (12_340_000_000, "12.3 s"),
        (59_949_000_000, "59.9 s"),
        (59_970_000_000, "1 min"),
        (125_000_000_000, "2 min 5 s"),
        (11_520_000_000_000, "3 h 12 min"),
        (-1500, "-1.5 µs"),
    ],
)
def test_durations_are_shown(nanoseconds: int, text: str) -> None:
    assert format_ns(nanoseconds) == text


def test_the_error_shows_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"'16 XB' is not a size: write .*16 MiB"):
        parse_bytes("16 XB")
