"""What holds for every test: the installed package is tested, and nothing of the user's is touched."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import sandhost

ROOT = Path(__file__).resolve().parents[1]

# No deadline for an example: a loaded machine must not fail a test. In CI the examples are the same
# each time, elsewhere they are new ones.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_configure() -> None:
    """Refuse the folder of sources in place of the installed package, under `./run`."""
    # A shell starts its background jobs with Ctrl-C ignored, and so would the guests be that are sent one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("SANDHOST_TEST_INSTALLED") and ROOT in Path(sandhost.__file__).parents:
        installed = [ROOT / ".venv", ROOT / ".cache"]
        if not any(folder in Path(sandhost.__file__).parents for folder in installed):
            raise pytest.UsageError(f"sandhost comes from {sandhost.__file__}: it is not installed")


def pytest_report_header() -> str:
    """Say what is tested."""
    return f"sandhost {sandhost.__version__} from {Path(sandhost.__file__).parent}"


@pytest.fixture(scope="session", autouse=True)
def _own_cache_directory() -> Iterator[None]:
    """Keep compiled code out of the user's cache."""
    before = os.environ.get("SANDHOST_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="sandhost-cache-") as folder:
        os.environ["SANDHOST_CACHE_DIR"] = folder
        yield
        if before is None:
            del os.environ["SANDHOST_CACHE_DIR"]
        else:
            os.environ["SANDHOST_CACHE_DIR"] = before


@pytest.fixture(scope="module", autouse=True)
def _what_stood_before_is_spared() -> None:
    """Keep the collector, which many tests run to its end, from going through everything each time."""
    gc.unfreeze()  # what an earlier module has left was spared then, and may be garbage by now
    gc.collect()
    gc.freeze()
