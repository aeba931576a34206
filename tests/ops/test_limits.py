"""What a container and the shell let the program have, from trees of files as Linux shows them."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from mistral.limits import MemoryLimit, address_space, cpu_limit, data_memory, memory_limit, whole_cpus
from mistral.memory import available_memory
from mistral.ops import device
from tests.support.command_line import ROOT, CommandLine

GB = 10**9
NO_LIMIT_V1 = 9223372036854771712


def tree(root: Path, groups: str, files: Mapping[str, object]) -> Path:
    """A system whose /proc/self/cgroup has these lines, and with these files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_nothing_is_limited_where_nothing_says_so(tmp_path: Path) -> None:
    assert (memory_limit(tmp_path), cpu_limit(tmp_path), whole_cpus(tmp_path)) == (None, None, None)
    tree(tmp_path, "0::/", {"memory.max": "max", "memory.current": 5, "cpu.max": "max 100000"})
    assert (memory_limit(tmp_path), cpu_limit(tmp_path), whole_cpus(tmp_path)) == (None, None, None)


def test_version_2_in_a_container_of_its_own_name_space(tmp_path: Path) -> None:
    stat = f"anon 1\ninactive_file {GB}\nactive_file 7"
    files = {"memory.max": 4 * GB, "memory.current": 3 * GB, "memory.stat": stat, "cpu.max": "150000 100000"}
    root = tree(tmp_path, "0::/", files)
    assert memory_limit(root) == MemoryLimit(4 * GB, 2 * GB)
    assert (cpu_limit(root), whole_cpus(root)) == (1.5, 2)


def test_the_tightest_of_all_groups_around_counts(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": 8 * GB, "a/b/memory.current": 1 * GB, "a/b/cpu.max": "max 100000",
        "a/memory.max": 9 * GB, "a/memory.current": 7 * GB, "a/cpu.max": "50000 100000",
        "memory.max": "max", "other/memory.max": 1,
    }  # fmt: skip
    root = tree(tmp_path, "0::/a/b", files)
    assert memory_limit(root) == MemoryLimit(9 * GB, 2 * GB)
    assert (cpu_limit(root), whole_cpus(root)) == (0.5, 1)


def test_a_limit_that_only_slows_down_counts_too(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", {"memory.max": "max", "memory.high": 2 * GB, "memory.current": 3 * GB})
    assert memory_limit(root) == MemoryLimit(2 * GB, 0)


def test_version_1_whose_group_is_seen_or_not(tmp_path: Path) -> None:
    groups = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n1:name=systemd:/docker/x\n0::/y"
    cpu = {"cpu,cpuacct/cpu.cfs_quota_us": 250_000, "cpu,cpuacct/cpu.cfs_period_us": 100_000}
    files = {
        "memory/memory.limit_in_bytes": 2 * GB, "memory/memory.usage_in_bytes": GB,
        "memory/memory.stat": "inactive_file 9\ntotal_inactive_file 400",
    } | cpu  # fmt: skip
    root = tree(tmp_path, groups, files)
    assert memory_limit(root) == MemoryLimit(2 * GB, GB + 400)
    assert (cpu_limit(root), whole_cpus(root)) == (2.5, 3)
    inside = {"memory/docker/x/memory.limit_in_bytes": GB, "memory/docker/x/memory.usage_in_bytes": 0}
    assert memory_limit(tree(tmp_path, groups, inside)) == MemoryLimit(GB, GB)
    tree(tmp_path, groups, dict.fromkeys([*files, *inside], NO_LIMIT_V1) | {"cpu,cpuacct/cpu.cfs_quota_us": -1})
    assert (memory_limit(root), cpu_limit(root)) == (None, None)


@pytest.mark.parametrize("text", ["", "x", "1:2", "0::/../../..", "0::/a/../../../etc", ":::"])
def test_groups_of_any_text_are_no_error(tmp_path: Path, text: str) -> None:
    root = tree(
        tmp_path, text, {"memory.max": GB, "memory.current": "x", "memory.stat": "inactive_file", "cpu.max": "7"}
    )
    (tmp_path / "sys/fs/cgroup/memory.stat").write_text("other 1\n")
    assert memory_limit(root) == MemoryLimit(GB, GB)
    assert cpu_limit(root) is None


def test_what_is_free_is_the_least_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory(tmp_path) <= psutil.virtual_memory().total
    root = tree(tmp_path, "0::/", {"memory.max": 5000, "memory.current": 2000})
    assert available_memory(root) == 3000
    monkeypatch.setattr("mistral.memory.address_space", lambda: (4000, 1000))
    assert available_memory(root) == 1000
    monkeypatch.setattr("mistral.memory.data_memory", lambda: (4000, 10))
    assert available_memory(root) == 10


def test_threads_are_those_that_a_container_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    for limit, threads in ((None, 8), (3, 3), (1, 1), (16, 8)):
        monkeypatch.setattr("mistral.ops.device.whole_cpus", lambda limit=limit: limit)
        assert device.thread_count() == threads


def test_info_shows_what_the_container_is_limited_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = CommandLine(capsys, monkeypatch)
    monkeypatch.setattr("mistral.cli.info.command.memory_limit", lambda: None)
    monkeypatch.setattr("mistral.cli.info.command.cpu_limit", lambda: None)
    assert "container" not in run("info").out
    monkeypatch.setattr("mistral.cli.info.command.memory_limit", lambda: MemoryLimit(4 * GB, GB))
    monkeypatch.setattr("mistral.cli.info.command.cpu_limit", lambda: 1.5)
    assert "are free here (the container is limited to 4.0 GB and 1.5 processors)\n" in run("info").out


def test_the_limits_of_the_shell_are_seen() -> None:
    code = """
import resource
from mistral.limits import address_space, data_memory
assert address_space() is data_memory() is None
resource.setrlimit(resource.RLIMIT_AS, (10**12, 10**12))
resource.setrlimit(resource.RLIMIT_DATA, (10**11, 10**11))
for (limit, left), whole in ((address_space(), 10**12), (data_memory(), 10**11)):
    assert limit == whole and 0.9 * whole < left < whole
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert (address_space() is None) == (resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY)
    assert (data_memory() is None) == (resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY)


@pytest.mark.parametrize(("option", "kilobytes", "needed"), [("-v", 700_000, "2.3 GB"), ("-d", 600_000, "1.5 GB")])
def test_too_little_memory_for_mindspore_is_one_line(option: str, kilobytes: int, needed: str) -> None:
    """Without the check the process ends in an abort, or not at all."""
    done = subprocess.run(
        ["bash", "-c", f"ulimit {option} {kilobytes}; exec {sys.executable} -m main demo --max_tokens 1"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    line = f"error: the shell's limit of memory (ulimit {option}) is {kilobytes * 1024 / 1e9:.1f} GB, "
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"MindSpore needs {needed}; raise it: ulimit {option} unlimited\n")
