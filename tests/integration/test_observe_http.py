"""Profiles over HTTP: what is answered, to whom, and where it is not listened."""

from __future__ import annotations

import json
import os
import stat
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from helpers import Background, guest_file, wait_until

import sandhost
from sandhost.observe import handle, serve
from sandhost.observe.asking import ask_url
from sandhost.observe.places import find
from sandhost.observe.pprof import decode


class Table:
    """What guests hold."""


@pytest.fixture(autouse=True)
def _own_runtime_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)


@pytest.fixture
def plugin(host):
    @host.function("env", "open")
    def open_table(number: int) -> sandhost.Handle[Table]:
        return Table()

    @host.function("env", "read")
    def read(table: sandhost.Handle[Table]) -> int:
        return 0

    return host.load(guest_file("handles"), name="shop")


def get(url: str, **headers: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def sums(body: bytes) -> list[int]:
    return [sum(column) for column in zip(*(s.values for s in decode(body).samples))]


def test_profiles_are_answered_in_all_their_forms(plugin, host):
    with plugin.spawn(tenant="acme") as guest:
        guest.call("leak", 5)
        guest.call("churn", 5)
        status, kind, body = handle(host, "/debug/pprof/heap")
        assert (status, kind) == (200, "application/octet-stream")
        assert decode(body).shown == "inuse_space"
        assert sums(body)[::2] == [10, 5]
        assert decode(handle(host, "/debug/pprof/allocs").body).shown == "alloc_space"
        assert sums(handle(host, "/debug/pprof/guests").body) == [
            1,
            0,
            5,
            5 * sys.getsizeof(Table()),
        ]
        status, kind, body = handle(host, "/debug/pprof/heap", "debug=1")
        assert kind.startswith("text/plain")
        assert "5 inuse_objects" in body.decode()
        assert "plugin shop" in body.decode()
        status, kind, body = handle(host, "/debug/pprof/heap", {"format": "speedscope"})
        assert kind == "application/json"
        assert len(json.loads(body)["profiles"]) == 4


def test_the_index_names_all_profiles(host):
    for path in ("/debug/pprof", "/debug/pprof/"):
        status, _, body = handle(host, path)
        assert status == 200
        for name in ("heap", "allocs", "guests"):
            assert f"/debug/pprof/{name}" in body.decode()


def test_gc_collects_before(plugin, host):
    with plugin.spawn() as guest:
        circle = guest.call("list_new")
        guest.call("list_push", circle, circle)
        guest.call("release", circle)
        assert sums(handle(host, "/debug/pprof/heap", "gc=0").body)[2] == 1
        assert sums(handle(host, "/debug/pprof/heap", "gc=1").body)[2:] == [0, 0]


def test_seconds_ask_for_what_changes_meanwhile(plugin, host):
    with plugin.spawn() as guest, plugin.spawn() as other:
        guest.call("leak", 50)
        thread = Background(handle, host, "/debug/pprof/heap", "seconds=0.5")
        wait_until(lambda: not thread.done)
        import time

        time.sleep(0.2)
        guest.call("leak", 7)
        profile = decode(thread.result().body)
        assert sums(thread.result().body)[::2] == [7, 7]
        assert profile.duration_ns >= 0.4e9
        thread = Background(handle, host, "/debug/pprof/guests", "seconds=0.5")
        time.sleep(0.2)
        other.close()
        assert sums(thread.result().body)[0] == -1


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/debug/pprof/profile", "", 404),
        ("/debug/pprof/heap/x", "", 404),
        ("/", "", 404),
        ("/debug/pprofheap", "", 404),
        ("/debug/pprof/../../etc/passwd", "", 404),
        ("/debug/pprof/heap", "seconds=-1", 400),
        ("/debug/pprof/heap", "seconds=301", 400),
        ("/debug/pprof/heap", "seconds=nan", 400),
        ("/debug/pprof/heap", "seconds=x", 400),
        ("/debug/pprof/heap", "debug=x", 400),
        ("/debug/pprof/heap", "&".join(["a=1"] * 50), 200),
    ],
)
def test_what_cannot_be_meant_is_refused(host, path, query, status):
    assert handle(host, path, query).status == status


def test_who_does_not_know_the_token_gets_nothing(plugin, host):
    with serve(host) as server:
        assert len(server.token) >= 32
        heap = f"{server.base}/debug/pprof/heap"
        for url in (
            heap,
            f"{heap}?token=",
            f"{heap}?token={server.token[:-1]}",
            f"{heap}?token=%ff",
        ):
            status, _, body = get(url)
            assert status == 403
            assert server.token.encode() not in body
        assert get(heap, Authorization=f"Basic {server.token}")[0] == 403
        assert get(heap, Authorization=f"Bearer {server.token}")[0] == 200
        assert get(server.url())[0] == 200
        assert get(server.url("heap", debug=1))[2].startswith(b"sandhost: 0 handles")
        assert get(server.url("nothing"))[0] == 404
        request = urllib.request.Request(server.url(), method="POST", data=b"x")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value:
            assert caught.value.code == 501


def test_two_servers_have_two_tokens(host):
    with serve(host) as one, serve(host) as two:
        assert one.token != two.token
        assert get(f"{one.base}/debug/pprof/?token={two.token}")[0] == 403


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::"])
def test_other_interfaces_are_refused_unless_asked_for(host, address):
    with pytest.raises(sandhost.ConfigError, match="exposed=True"):
        serve(host, address=address)


def test_other_interfaces_are_taken_when_asked_for(host):
    with serve(host, address="0.0.0.0", exposed=True) as server:
        assert get(f"http://127.0.0.1:{server.port}/debug/pprof/?token={server.token}")[0] == 200


@pytest.mark.parametrize("address", ["localhost", "", "127.0.0.1; rm"])
def test_what_is_no_address_is_refused(host, address):
    with pytest.raises(sandhost.ConfigError, match="give an IP address"):
        serve(host, address=address)


def test_no_token_is_refused_unless_asked_for(host):
    with pytest.raises(sandhost.ConfigError, match="anybody may ask"):
        serve(host, token="")
    with pytest.raises(sandhost.ConfigError, match="ASCII"):
        serve(host, token="a b")
    with serve(host, token="", exposed=True) as server:
        assert get(f"{server.base}/debug/pprof/")[0] == 200


def test_a_request_that_fails_leaves_the_server_there(host, monkeypatch):
    with serve(host) as server:
        host_names = type(host).names
        monkeypatch.setattr(type(host), "names", lambda self: 1 / 0)
        status, _, body = get(server.url())
        assert (status, body) == (500, b"ZeroDivisionError: division by zero\n")
        monkeypatch.setattr(type(host), "names", host_names)
        assert get(server.url())[0] == 200


def test_a_closed_server_answers_nobody_and_leaves_nothing(host, tmp_path):
    server = serve(host)
    place = tmp_path / "run" / "sandhost" / f"{os.getpid()}.json"
    assert find(os.getpid()) == (server.base, server.token)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    server.close()
    server.close()
    assert not place.exists()
    with pytest.raises(urllib.error.URLError):
        get(server.url())
    with pytest.raises(sandhost.SandhostError, match="does not serve profiles to you"):
        find(os.getpid())


def test_a_folder_that_others_may_write_to_is_not_trusted(host, tmp_path):
    folder = tmp_path / "run" / "sandhost"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with serve(host):
        assert list(folder.iterdir()) == []
    (folder / "1.json").write_text('{"url": "http://evil", "token": "x"}')
    with pytest.raises(sandhost.SandhostError, match="does not serve"):
        find(1)


def test_without_a_runtime_directory_a_private_one_is_made(host, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with serve(host) as server:
        assert find(os.getpid()) == (server.base, server.token)
        assert Path(tmp_path / f"sandhost-{os.getuid()}").is_dir()


def test_the_view_of_a_host_is_there_for_who_has_the_token(plugin, host):
    with plugin.spawn(tenant="acme"), serve(host) as server:
        view = ask_url(server.base, server.token)
        assert view.process.pid == os.getpid()
        assert [tenant.name for tenant in view.tenants] == ["acme"]
        with pytest.raises(sandhost.SandhostError):
            ask_url(server.base, "wrong")
