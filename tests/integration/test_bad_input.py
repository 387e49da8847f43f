"""Settings and arguments that cannot be meant: a named error, and the host goes on."""

from __future__ import annotations

import pytest
from helpers import guest_file

import sandhost

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_limit": "16 XB"},
        {"memory_limit": -1},
        {"memory_limit": 2**70},
        {"memory_limit": 1.5},
        {"reclaim": "never"},
        {"reclaim": None},
        {"max_guests": 0},
        {"max_guests": -1},
        {"max_guests": 10**9},
        {"max_guests": 1.5},
        {"max_guests": "8"},
        {"stack": 1},
        {"stack": "1 TiB"},
        {"stack": None},
        {"warm_guest": -1},
        {"warm_guest": "x"},
        {"warm_total": 2**64},
        {"warm_idle": -1},
        {"warm_idle": NAN},
        {"warm_idle": INF},
        {"warm_idle": 1e300},
        {"warm_idle": "soon"},
        {"tenant_memory": "many"},
        {"cache": True, "cache_limit": "-5 MiB"},
    ],
    ids=str,
)
def test_a_setting_of_a_host_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(sandhost.ConfigError):
        sandhost.Host(**{"cache": False, "max_guests": 4, **wrong})
    sandhost.Host(cache=False, max_guests=4).close()


@pytest.mark.parametrize(
    "text",
    ["16 XB", "", " ", "MiB", "1e3", "1,5 MiB", "-1 KiB", "0x10", "nan", "١٢ KiB", "1 MiB 2"],
)
def test_a_size_that_is_no_size_is_refused(text):
    with pytest.raises(sandhost.ConfigError):
        sandhost.Limits(memory=text)


@pytest.mark.parametrize("name", [None, 7, b"add", ("add",)])
def test_a_function_name_that_is_no_text_is_refused(host, name):
    with host.load(guest_file("add")).spawn() as guest:
        with pytest.raises((sandhost.ConfigError, TypeError)):
            guest.call(name)
        with pytest.raises((sandhost.ConfigError, TypeError)):
            guest.func(name)


@pytest.mark.parametrize("argument", [{"limits": 5}, {"tenant": 7}, {"wasi": {}}, {"limits": {}}])
def test_a_spawn_argument_of_another_type_is_refused(host, argument):
    plugin = host.load(guest_file("echo"))
    with pytest.raises((sandhost.ConfigError, TypeError, AttributeError)):
        plugin.spawn(**argument)
    plugin.spawn().close()


@pytest.mark.parametrize("index", [1, -1, 2**32, 2**64, None, "0", 1.5])
def test_a_memory_that_is_not_there_is_refused(host, index):
    with host.load(guest_file("secrets")).spawn() as guest:
        with pytest.raises((sandhost.ConfigError, TypeError)):
            guest.memory_at(index)


def test_unknown_keywords_are_type_errors(host):
    with pytest.raises(TypeError):
        sandhost.Host(memory="1 GiB")
    with pytest.raises(TypeError):
        sandhost.Limits(mem=1)
    with pytest.raises(TypeError):
        host.load(guest_file("add")).spawn(limit=1)


@pytest.mark.parametrize("name", [("env", "f\0g"), ("", ""), ("a" * 10_000, "b")])
def test_any_name_of_a_host_function_may_be_defined_and_harms_nobody(host, name):
    host.function(*name, "()")(lambda: None)
    with host.load(guest_file("add")).spawn() as guest:
        assert guest.call("add", 1, 2) == 3
    text = b'(module (import "env" "f\\00g" (func $f)) (func (export "go") (call $f)))'
    try:
        with host.load(text).spawn() as guest:
            guest.call("go")
    except sandhost.ModuleError:
        pass


def test_one_host_serves_on_after_every_kind_of_bad_input(host):
    plugin = host.load(guest_file("secrets"))
    guest = plugin.spawn()
    for attempt in (
        lambda: host.load(b"junk"),
        lambda: host.load("/nonexistent"),
        lambda: guest.call("nope"),
        lambda: guest.call("write"),
        lambda: guest.call("write", "x"),
        lambda: guest.call("write", 2**40),
        lambda: guest.memory.read(-1, 1),
        lambda: guest.memory.write(2**40, b"x"),
        lambda: guest.memory.view(0, -1),
        lambda: plugin.spawn(limits=sandhost.Limits(memory=1)),
        lambda: plugin.spawn(limits=sandhost.Limits(fuel=1)),
        lambda: host.tenant("t", memory_limit="x"),
        lambda: host.function("env", "f", "(x)")(print),
    ):
        with pytest.raises((sandhost.SandhostError, TypeError, OverflowError)):
            attempt()
        assert guest.call("size") == 4
    guest.close()
