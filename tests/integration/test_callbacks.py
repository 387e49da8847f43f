"""Host objects that call guests back: rings through a guest's environment are collected."""

from __future__ import annotations

import weakref

import pytest
from helpers import collected

import sandhost

WIDGETS = """(module
  (import "ui" "button" (func $button (result i64)))
  (import "ui" "on_click" (func $on_click (param i64 i32 i64)))
  (import "ui" "click" (func $click (param i64) (result i32)))
  (import "sandhost" "record_new" (func $record_new (param i32) (result i64)))
  (import "sandhost" "record_get" (func $record_get (param i64 i32) (result i64)))
  (import "sandhost" "record_set" (func $record_set (param i64 i32 i64)))
  {release}
  (memory (export "memory") 1)
  (table 1 funcref)
  (elem (i32.const 0) $clicked)
  (type $callback (func (param i64 i32) (result i32)))
  (global $clicks (mut i32) (i32.const 0))
  (func $clicked (type $callback) ;; environment, argument
    (global.set $clicks (i32.add (global.get $clicks) (i32.const 1)))
    {look}
    (i32.add (global.get $clicks) (local.get 1)))
  (func (export "callback") (param $function i32) (param $environment i64) (param $argument i32) (result i32)
    (call_indirect (type $callback) (local.get $environment) (local.get $argument) (local.get $function)))
  (func $build (result i64) (local $button i64) (local $environment i64)
    (local.set $button (call $button))
    (local.set $environment (call $record_new (i32.const 1)))
    (call $record_set (local.get $environment) (i32.const 0) (local.get $button))
    (call $on_click (local.get $button) (i32.const 0) (local.get $environment))
    {done}
    (local.get $button))
  (func (export "build") (i64.store (i32.const 8) (call $build)))
  (func (export "button") (result i64) (i64.load (i32.const 8)))
  (func (export "click") (result i32) (call $click (i64.load (i32.const 8))))
  (func (export "drop")
    {drop}
    (i64.store (i32.const 8) (i64.const 0))))"""
SCANNED = {
    "release": "",
    "look": "(if (i64.eqz (call $record_get (local.get 0) (i32.const 0))) (then (unreachable)))",
    "done": "",
    "drop": "",
}
BY_HAND = {
    "release": '(import "sandhost" "release" (func $release (param i64) (result i32)))',
    "look": "(drop (call $release (call $record_get (local.get 0) (i32.const 0))))",
    "done": "(drop (call $release (local.get $environment)))",
    "drop": "(drop (call $release (i64.load (i32.const 8))))",
}


class Button:
    """A host object that keeps a callback."""

    clicked: sandhost.Callback


@pytest.fixture
def buttons(host: sandhost.Host) -> list[weakref.ref[Button]]:
    made: list[weakref.ref[Button]] = []
    heap = host.handles

    @host.function("ui", "button")
    def button() -> sandhost.Handle[Button]:
        made.append(weakref.ref(one := Button()))
        return one

    @host.function("ui", "on_click")
    def on_click(guest: sandhost.Guest, button: int, function: int, environment: int) -> None:
        heap.get(button, guest=guest).clicked = sandhost.Callback(
            heap, button, guest, "callback", function, environment=environment
        )

    @host.function("ui", "click")
    def click(button: sandhost.Handle[Button]) -> int:
        return button.clicked(40)

    return made


def alive(buttons: list[weakref.ref[Button]]) -> int:
    collected()
    return sum(ref() is not None for ref in buttons)


@pytest.mark.parametrize("way", [SCANNED, BY_HAND], ids=["scanned", "by hand"])
def test_a_ring_through_a_callback_is_collected(host, buttons, way):
    with host.load(WIDGETS.format(**way).encode()).spawn() as guest:
        guest.call("build")
        host.gc.collect()
        assert (alive(buttons), host.handles.figures().live_cells) == (1, 2), "button and record"
        assert guest.call("click") == 41
        assert buttons[0]().clicked(1) == 3
        guest.call("drop")
        assert alive(buttons) == 1, "the ring keeps itself until a collection"
        host.gc.collect()
        assert (alive(buttons), host.handles.figures().live_cells) == (0, 0)


@pytest.mark.parametrize("way", [SCANNED, BY_HAND], ids=["scanned", "by hand"])
def test_a_ring_through_callbacks_of_two_guests_is_collected(host, buttons, way):
    plugin, heap = host.load(WIDGETS.format(**way).encode()), host.handles
    with plugin.spawn() as one, plugin.spawn() as other:
        for guest in (one, other):
            guest.call("build")
        first, second = (guest.call("button") for guest in (one, other))
        heap.link(first, second)
        heap.link(second, first)
        one.call("drop")
        host.gc.collect()
        assert (alive(buttons), heap.figures().live_cells) == (2, 4), "the other one reaches it all"
        assert other.call("click") == 41
        assert buttons[0]().clicked(0) == 1
        other.call("drop")
        host.gc.collect()
        assert (alive(buttons), heap.figures().live_cells) == (0, 0)


def test_a_callback_of_a_guest_that_has_ended_is_none(host, buttons):
    plugin, heap = host.load(WIDGETS.format(**SCANNED).encode()), host.handles
    with plugin.spawn() as one, plugin.spawn() as other:
        for guest in (one, other):
            guest.call("build")
        heap.link(other.call("button"), one.call("button"))
        clicked = buttons[0]().clicked
        one.close()
        with pytest.raises(sandhost.InvalidHandle):
            clicked(0)
        host.gc.collect()
        assert (alive(buttons[:1]), heap.figures().live_cells) == (0, 2), "a callback owns nothing"
        assert other.call("click") == 41


def test_a_callback_that_is_dropped_keeps_nothing(host, buttons):
    with host.load(WIDGETS.format(**SCANNED).encode()).spawn() as guest:
        guest.call("build")
        buttons[0]().clicked.drop()
        host.gc.collect()
        assert host.handles.figures().live_cells == 1
        with pytest.raises(sandhost.InvalidHandle):
            guest.call("click")


def test_an_environment_is_the_guests_own(host, buttons):
    plugin, heap = host.load(WIDGETS.format(**SCANNED).encode()), host.handles
    with plugin.spawn() as one, plugin.spawn() as other:
        one.call("build")
        other.call("build")
        with pytest.raises(sandhost.InvalidHandle, match="another guest"):
            sandhost.Callback(
                heap, one.call("button"), one, "callback", 0, environment=other.call("button")
            )
        with pytest.raises(sandhost.InvalidHandle, match="another guest"):
            heap.get(one.call("button"), guest=other)
