"""Which memory cgroup counts, and what its files say: both versions, in containers too."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandhost.govern.cgroup import find_group, stall_file


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": "1000\n",
            "sys/fs/cgroup/a/memory.current": "500\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "20\n",
            "sys/fs/cgroup/a/memory.stat": "anon 7\ninactive_file 30\nactive_file 2\n",
            "sys/fs/cgroup/a/memory.events": "low 1\nhigh 2\nmax 3\noom 0\n",
            "sys/fs/cgroup/a/memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
        },
    )
    group = find_group(root)
    assert group is not None
    assert (group.version, group.limit_bytes, group.used_bytes) == (2, 1000, 500)
    assert (group.idle_file_bytes(), group.hits()) == (30, 5)
    assert group.usage_file.read_text() == "500\n"
    assert stall_file(root, group) == group.folder / "memory.pressure"


def test_version_1_in_a_container_whose_path_is_one_of_the_machine_outside(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "77\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 5\n",
            "sys/fs/cgroup/memory/memory.failcnt": "4\n",
            "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
        },
    )
    group = find_group(root)
    assert group is not None
    assert (group.version, group.limit_bytes, group.used_bytes) == (1, None, 77)
    assert (group.idle_file_bytes(), group.hits()) == (5, 4)
    assert stall_file(root, group) == root / "proc/pressure/memory"


@pytest.mark.parametrize("text", ["", "garbage", "0::", "0::/../../etc", "4:memory", "\x00\xff"])
def test_what_cannot_be_read_is_no_group(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": text})
    assert find_group(root) is None
    assert stall_file(root) is None
