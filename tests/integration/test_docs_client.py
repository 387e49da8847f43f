"""What docs/client.md shows works, as a reader would type it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.pages import examples_of, output_of
from helpers.serving import ADMIN, Child, child

from sandhost.client import Client

SCRIPTS = sysconfig.get_path("scripts")


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    for name in ("add", "echo"):
        shutil.copy(ROOT / f"guests/built/{name}.wasm", tmp_path)
    with child(tmp_path / "plugins") as one, Client(one.url, ADMIN) as admin:
        admin.put_tenant("acme")
        monkeypatch.setenv("SANDHOST_URL", one.url)
        monkeypatch.setenv("SANDHOST_TOKEN", admin.add_token("acme").text)
        yield one
        assert one.end() == 0, one.said()


def test_the_examples_in_python_run(one: Child, tmp_path: Path) -> None:
    first, second, third = (output_of(e, tmp_path) for e in examples_of("docs/client.md"))
    assert first == "5\ninvalid - add takes 2 arguments, not 1\n"
    assert second.splitlines() == [str(list(range(1, 11))), "3"]
    assert third.splitlines()[-1] == "7 b'arg echo\\nall at once'"


def test_the_session_in_the_shell_shows_what_it_shows(one: Child, tmp_path: Path) -> None:
    page = (ROOT / "docs/client.md").read_text()
    (session,) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    commands = re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]
    assert len(commands) == 6
    for command in commands:
        line, _, shown = command.partition("\n")
        done = subprocess.run(
            ["sh", "-c", line],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"},
            timeout=60,
            check=False,
        )
        assert (done.stdout, done.returncode) == (shown, 0), line
