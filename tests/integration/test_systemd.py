"""The systemd units: systemd's own tools read them, and what they promise the process keeps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

UNITS = ROOT / "deploy/systemd"
NAMES = ("sandhost.service", "sandhost@.service")
EXPOSURE = 1.2
"""`systemd-analyze security` says 1.1, of 10; more would be a setting that was lost."""


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze; skip without it, but in CI fail."""
    program = os.environ.get("SANDHOST_TEST_SYSTEMD_ANALYZE") or shutil.which("systemd-analyze")
    if program is None:
        assert not os.environ.get("CI"), "CI has to have systemd-analyze"
        pytest.skip("there is no systemd-analyze here: Debian's package systemd has it")
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    command = [program, "--no-pager", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that is there: `verify` looks for it."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/sandhost/bin/sandhost", "/bin/true"))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_nothing_to_say(units, name):
    done = analyze("verify", "--recursive-errors=no", str(units / name))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_what_is_misspelt(units):
    unit = units / NAMES[0]
    unit.write_text(unit.read_text().replace("LoadCredential=", "LoadCredentials="))
    assert "LoadCredentials" in analyze("verify", "--recursive-errors=no", str(unit)).stderr


@pytest.mark.parametrize("name", NAMES)
def test_little_is_exposed(units, name):
    if "--offline" not in analyze("--help").stdout:
        pytest.skip("systemd before 250 judges running units only")
    done = analyze("security", "--offline=true", str(units / name))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= EXPOSURE, done.stdout


def settings(name: str) -> list[str]:
    lines = (UNITS / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_a_tenants_unit_is_the_service_with_other_names():
    assert settings(NAMES[0]) != settings(NAMES[1])
    with_names = "\n".join(settings(NAMES[1]))
    for its, all_of_them in (
        ("the tenant %i", "many tenants"),
        (" --tenant %i --token-file %d/token", ""),
        ("\nLoadCredential=token:/etc/sandhost/%i.token", ""),
        ("/etc/sandhost/%i.toml", "/etc/sandhost/sandhost.toml"),
        ("sandhost-%i", "sandhost"),
        # Else one tenant's loop would go before another's, whatever CPUWeight= says.
        ("--background on", "--background on --realtime on"),
        ("LimitNOFILE=65536", "LimitNOFILE=65536\nLimitRTPRIO=2"),
        ("RestrictRealtime=yes\n", ""),
    ):
        assert its in with_names
        with_names = with_names.replace(its, all_of_them)
    assert with_names.splitlines() == settings(NAMES[0])


@pytest.mark.parametrize("name", NAMES)
def test_compiled_code_is_kept_beneath_the_symbolic_link_that_systemd_makes(name):
    lines = settings(name)
    assert "DynamicUser=yes" in lines  # CacheDirectory= is then a link, which the cache refuses
    cache = next(line for line in lines if line.startswith("CacheDirectory=")).partition("=")[2]
    assert f"Environment=SANDHOST_CACHE_DIR=%C/{cache}/modules" in lines


def test_each_tenant_has_a_user_of_its_own():
    assert "User=sandhost-%i" in settings(NAMES[1])  # else what stands before the @ is the name


def test_the_units_command_is_one_that_the_service_takes():
    from sandhost.serve.config import Settings, flag_of

    command = next(line for line in settings(NAMES[0]) if line.startswith("ExecStart="))
    flags = set(re.findall(r"--[a-z-]+", command))
    assert flags <= {"--config", *(flag_of(name) for name in Settings.model_fields)}
