"""The container's files name what is there: the build's sources, the service's options, times that fit."""

from __future__ import annotations

import fnmatch
import json
import re
from typing import Any

from helpers import ROOT
from yaml import safe_load

from sandhost.serve.config import Settings, flag_of

FOLDER = ROOT / "deploy/container"
FILE = (FOLDER / "Containerfile").read_text()
COMPOSE: Any = safe_load((FOLDER / "compose.yaml").read_text())["services"]


def test_the_build_gets_every_file_that_the_package_is_made_of(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from tools.install import package_sources

    lines = (FOLDER / "Containerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "*"
    for path in package_sources():
        name = str(path.relative_to(ROOT))
        assert any(fnmatch.fnmatch(name, f"{k}*") for k in kept), name
    assert "README.md" in kept  # pyproject.toml names it


def test_the_programs_are_started_without_a_shell_and_with_options_that_exist():
    words = json.loads(re.findall(r"^ENTRYPOINT (.*)$", FILE, re.MULTILINE)[0])
    words += COMPOSE["sandhost"]["command"]
    assert words[:2] == ["sandhost", "serve"]
    flags = {word for word in words if word.startswith("--")}
    assert flags <= {"--config", *(flag_of(name) for name in Settings.model_fields)}
    health = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.*)$", FILE, re.MULTILINE)[0])
    compile(health[-1], "health", "exec")
    assert not re.search(r"^USER (root|0)", FILE, re.MULTILINE)
    assert re.search(r"^USER \d+", FILE, re.MULTILINE)


def test_the_service_may_end_before_it_is_killed():
    words = COMPOSE["sandhost"]["command"]
    drain = words[words.index("--drain-time") + 1]
    settings = Settings.load(arguments={"drain_time": drain})
    assert int(COMPOSE["sandhost"]["stop_grace_period"].rstrip("s")) >= settings.drain_time + 5


def test_images_are_pinned():
    images = re.findall(r"^ARG BASE=(\S+)$", FILE, re.MULTILINE)
    images += [s["image"] for s in COMPOSE.values() if "build" not in s]
    assert len(images) == 3
    assert all(re.search(r":v?\d+\.\d+", image) for image in images)
