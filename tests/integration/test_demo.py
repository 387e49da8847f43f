"""`sandhost demo`: hostile guests are stopped as they should, and it would say if they were not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandhost import Host
from sandhost.bench.machine import describe
from sandhost.demo.cast import MISDEEDS, TENANTS, Cast, Misdeed, Stopped, hoard, peek
from sandhost.demo.contest import Contest, percentile
from sandhost.demo.live import sparkline
from sandhost.demo.load import Load
from sandhost.demo.report import Outcome

SANDHOST = Path(sysconfig.get_path("scripts"), "sandhost")
HOSTILE = list(TENANTS)[-1]


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    with Host(reclaim="immediate") as host:
        made = Cast(host)
        made.load()
        yield made
        assert host.stats().guests_live == 0


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [SANDHOST, "demo", "--seconds", "2", "--json", "out.json"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text()), done.stdout, folder


@pytest.mark.parametrize("misdeed", MISDEEDS, ids=lambda misdeed: misdeed.name)
def test_a_misdeed_is_stopped_by_what_should_stop_it(cast: Cast, misdeed: Misdeed) -> None:
    assert misdeed.commit(cast, HOSTILE).as_it_should


def test_a_hoarder_is_stopped_by_its_tenants_limit(cast: Cast) -> None:
    stopped = hoard(cast, HOSTILE)
    assert stopped.as_it_should
    assert TENANTS[HOSTILE] in stopped.by
    assert cast.tenants[HOSTILE].memory_bytes == 0


def test_nothing_is_found_in_fresh_memory(cast: Cast) -> None:
    assert peek(cast, "acme", HOSTILE) == 0


def test_a_secret_that_is_there_would_be_found(cast: Cast) -> None:
    with cast.spawn("secrets", "acme") as guest:
        guest.call("write", 0x5E)
        assert guest.call("scan", 0) == guest.memory.size


def test_honest_work_is_right(cast: Cast) -> None:
    import random

    for plugin, work, _ in cast.honest_work():
        with cast.spawn(plugin, "acme") as guest:
            assert work(guest, random.Random(1)), plugin


def test_the_demo_shows_thousands_of_guests_and_finds_no_failure(
    shown: tuple[dict[str, Any], str, Path],
) -> None:
    data, output, _ = shown
    assert data["failures"] == []
    assert data["guests_done"] > 500
    assert data["bytes_of_others_found"] == 0
    assert data["reclaims_checked"] > 0
    assert data["reclaims_wrong"] == 0
    assert data["resident_bytes"]["peak"] > data["resident_bytes"]["before"]
    assert {"sandhost warm", "wasmtime-py", "wasmtime-py pooled"} <= set(data["in_turn_ns"])
    assert "Memory that came back" in output


def test_the_demo_fits_80_columns_and_uses_no_escapes_in_a_pipe(
    shown: tuple[dict[str, Any], str, Path],
) -> None:
    _, output, _ = shown
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output


def test_the_demo_draws_a_picture_or_says_why_not(shown: tuple[dict[str, Any], str, Path]) -> None:
    _, output, folder = shown
    if "matplotlib is not installed" in output:
        assert not (folder / "sandhost-demo.png").exists()
    else:
        assert (folder / "sandhost-demo.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupt_ends_the_demo_quietly(tmp_path: Path) -> None:
    with subprocess.Popen(
        [SANDHOST, "demo", "--seconds", "60"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("loaded ")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in errors


@pytest.mark.parametrize("option", ["--json", "--picture"])
def test_a_path_that_cannot_be_written_is_said_at_once(option: str) -> None:
    done = subprocess.run(
        [SANDHOST, "demo", option, "/no/such/folder/file"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1


# ---- it would say so ----


@pytest.fixture
def outcome() -> Iterator[Outcome]:
    """Return a run that went well."""
    with Host(reclaim="immediate") as host:
        cast = Cast(host)
        cast.load()
        load = Load(cast, 0.5)
        load.start()
        while load.running:
            load.sample()
            time.sleep(0.02)
        load.finish()
        size = 100 << 20
        yield Outcome(describe(), cast, load, Contest(), size, 2 * size, size, host.stats())


def test_a_run_that_went_well_has_no_failure(outcome: Outcome) -> None:
    assert outcome.failures() == []


def test_bytes_of_another_tenant_are_a_failure(outcome: Outcome) -> None:
    outcome.load.workers[0].found = 3
    assert any("3 bytes of other tenants" in line for line in outcome.failures())


def test_a_reclaim_that_is_not_true_is_a_failure(outcome: Outcome) -> None:
    outcome.load.workers[1].mismatches = 1
    assert any("reclaims differ" in line for line in outcome.failures())


def test_memory_that_stays_is_a_failure(outcome: Outcome) -> None:
    outcome.after = outcome.before + (32 << 20)
    assert any("32 MiB more are resident" in line for line in outcome.failures())


def test_a_hostile_guest_that_gets_away_is_a_failure(outcome: Outcome) -> None:
    outcome.load.workers[0].stopped["loops for ever"] = [Stopped(False, "nothing", 1)]
    assert any("loops for ever" in line for line in outcome.failures())


def test_a_failure_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with Host() as host:
        cast = Cast(host)
        cast.load()

        def refuse(*_arguments: object) -> None:
            raise ValueError("planted")

        monkeypatch.setattr(cast, "spawn", refuse)
        load = Load(cast, 5)
        load.start()
        with pytest.raises(ValueError, match="planted"):
            load.finish()


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([0, 1, 2, 4, 8]) == " ▁▂▄█"
    assert len(sparkline(range(1000), 40)) == 40
    assert sparkline([]) == ""


def test_a_percentile_is_one_of_the_samples() -> None:
    values = list(range(1, 101))
    assert [percentile(values, p) for p in (0, 50, 99, 100)] == [1, 50, 99, 100]
