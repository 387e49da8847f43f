"""What docs/deploying.md shows: its settings are taken, and what it names is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from helpers import ROOT

from sandhost.serve.config import Settings

TEXT = (ROOT / "docs/deploying.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def test_the_tokens_are_ones_and_nobody_else_reads_them(tmp_path: Path) -> None:
    tokens = BLOCKS[0]
    subprocess.run(["sh", "-euc", tokens], cwd=tmp_path, timeout=60, check=True)
    settings = Settings.load(tmp_path / "sandhost.toml")
    assert settings.admin_token is not None
    assert settings.observe_token is not None
    assert settings.observe_token.get_secret_value() == (tmp_path / "observe_token").read_text()
    assert settings.drain_time == 30
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {"0o600"}


def test_the_files_that_are_named_exist():
    files = re.findall(r"\bdeploy/[\w/@.-]*\w", TEXT)
    assert len(files) > 5
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_alerts_that_are_named_exist():
    named = set(re.findall(r"\bSandhost\w+", TEXT))
    there = re.findall(r"alert: (\w+)", (ROOT / "deploy/prometheus/alerts.yml").read_text())
    assert named <= set(there)


def test_the_units_are_installed_where_they_look():
    unit = (ROOT / "deploy/systemd/sandhost.service").read_text()
    for place in ("/opt/sandhost/bin/", "/etc/sandhost/sandhost.toml"):
        assert place in unit
        assert place in BLOCKS[1]
