"""A granted directory with a secret beside it, and guests that are nothing but WASI."""

from __future__ import annotations

import pytest
from helpers.wasi import (
    MODULE,
    raw,
)

import sandhost
from sandhost import Dir, Wasi


@pytest.fixture
def tree(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "sub" / "deep").mkdir(parents=True)
    outside.mkdir()
    (inside / "hello").write_text("hello world")
    (inside / "sub" / "leaf").write_text("leaf")
    (outside / "secret").write_text("secret")
    (inside / "near").symlink_to("sub/leaf")
    (inside / "abs").symlink_to(outside / "secret")
    (inside / "up").symlink_to("../outside/secret")
    (inside / "updir").symlink_to("../outside")
    (inside / "loop").symlink_to("loop")
    return inside


@pytest.fixture
def plugin(host):
    return host.load(MODULE)


@pytest.fixture
def guest(plugin, tree):
    wasi = Wasi(dirs={"/data": Dir(tree, writable=True)})
    with plugin.spawn(wasi=wasi, limits=sandhost.Limits(deadline=60)) as guest:
        yield guest


@pytest.fixture
def wasi(guest):
    return raw(guest)


@pytest.fixture
def read_only(plugin, tree):
    with plugin.spawn(wasi=Wasi(dirs={"/data": tree})) as guest:
        yield raw(guest)
