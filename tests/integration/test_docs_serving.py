"""What docs/serving.md shows works, as a reader would type it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.pages import examples_of, output_of
from helpers.serving import ADMIN, child

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_a_tenant_is_added_deploys_and_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, session, _alone = BLOCKS
    assert start.startswith("sandhost serve --http 127.0.0.1:8080 --data ./plugins")
    shutil.copy(ROOT / "guests/built/add.wasm", tmp_path)
    with child(tmp_path / "plugins") as one:
        environment = {**os.environ, "ADMIN": ADMIN, "URL": one.url}
        answers = []
        for line in session.strip().splitlines():
            if line:
                done = subprocess.run(
                    ["sh", "-c", line],
                    capture_output=True,
                    text=True,
                    cwd=tmp_path,
                    env=environment,
                    timeout=60,
                    check=True,
                )
                answers.append(json.loads(done.stdout))
                environment["TOKEN"] = environment.get("TOKEN") or answers[-1].get("token", "")
        assert answers[0]["quotas"] == {"guests": 100, "cpus": 0.5}
        assert [a.get("state") for a in answers[2:4]] == ["compiling", "ready"]
        assert answers[4] == {"results": [5]}
        monkeypatch.setenv("TOKEN", environment["TOKEN"])
        monkeypatch.setenv("GRPC", f"127.0.0.1:{one.grpc_port}")
        (example,) = examples_of("docs/serving.md")
        assert output_of(example, tmp_path) == "5\n"
        assert one.end() == 0, one.said()
