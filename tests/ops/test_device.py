"""Where MindSpore computes: seen with a stand-in for MindSpore that tells what it is asked for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mistral.errors import InputError
from mistral.ops.device import DEVICES, MAX_THREADS, check_device, check_surroundings, start_device
from tests.support.command_line import ROOT
from tests.support.cores import all_cores

STAND_IN = """
import os, signal
from types import SimpleNamespace
print("threads", os.environ["OMP_NUM_THREADS"])
if "PRESS" in os.environ: signal.raise_signal(signal.SIGINT)
def set_device(name):
    if name == "Ascend" and "ASCEND" not in os.environ:
        raise RuntimeError("No such device.\\nSee the manual. And more.")
    print("device", name)
hal = SimpleNamespace(is_available=lambda name: "ASCEND" in os.environ)
runtime = SimpleNamespace(launch_blocking=lambda: print("blocking"))
print("whole")
"""
START = """
import sys
from mistral.ops.device import start_device
from mistral.errors import InputError
try:
    start_device(*eval(sys.argv[1]))
except (InputError, KeyboardInterrupt) as error:
    print(type(error).__name__, error)
"""


def start(folder: Path, *arguments: object, **environment: str) -> list[str]:
    """What is printed where MindSpore is the stand-in."""
    (folder / "mindspore.py").write_text(STAND_IN)
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= inherited | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-c", START, repr(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("device", ["", "cpu", "GPU", "TPU", "Ascend:0", "CPU\n"])
def test_a_device_that_does_not_exist_is_refused_with_those_that_do(device: str) -> None:
    for refuse in (check_device, start_device):
        with pytest.raises(InputError, match=r"^device ") as caught:
            refuse(device)
        assert all(name in str(caught.value) for name in DEVICES)
        assert (caught.value.option, caught.value.value) == ("device", device)


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1, 10**30])
def test_threads_that_cannot_be_are_refused(threads: int) -> None:
    with pytest.raises(InputError, match=rf"^threads {threads}: must be from 1 to {MAX_THREADS}"):
        check_device("CPU", threads)
    check_device("CPU", 1)
    check_device("CPU", MAX_THREADS)


def test_auto_is_an_ascend_processor_where_there_is_one(tmp_path: Path) -> None:
    assert start(tmp_path)[-2:] == ["device CPU", "blocking"]
    assert start(tmp_path, ASCEND="1")[-1] == "device Ascend"
    assert start(tmp_path, "CPU", ASCEND="1")[-2:] == ["device CPU", "blocking"]


def test_a_device_that_is_not_there_is_one_line_with_the_reason(tmp_path: Path) -> None:
    reason = "InputError device Ascend: MindSpore cannot use it here (No such device); leave it at auto"
    assert start(tmp_path, "Ascend")[-1] == reason


def test_threads_are_those_asked_for_or_inherited_or_one_for_each_core(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert start(tmp_path)[0] == f"threads {cores}"
    assert start(tmp_path, OMP_NUM_THREADS="7")[0] == "threads 7"
    assert start(tmp_path, "CPU", 3, OMP_NUM_THREADS="7")[0] == "threads 3"


@pytest.mark.parametrize("threads", [None, 3])
def test_mindspore_that_was_imported_before_leaves_the_kernels_their_threads(threads: int | None) -> None:
    """Its import sets the variable that they read to 1 where it is not set, unseen by `os.environ`."""
    program = """
import ctypes, sys, mindspore
from mistral.ops.device import start_device, thread_count
start_device("CPU", eval(sys.argv[1]))
read = ctypes.CDLL(None).getenv
read.restype = ctypes.c_char_p
print(read(b"OMP_NUM_THREADS").decode(), thread_count())
"""
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program, repr(threads)]
    with all_cores():
        expected = threads or len(os.sched_getaffinity(0))
        done = subprocess.run(command, capture_output=True, text=True, env=inherited, cwd=ROOT, check=True, timeout=60)
    assert done.stdout.split() == [str(expected)] * 2


def test_ctrl_c_waits_until_mindspore_is_whole(tmp_path: Path) -> None:
    """Imported by half, the real one aborts the process, with pages of traces."""
    assert start(tmp_path, PRESS="1")[1:] == ["whole", "KeyboardInterrupt "]


def test_the_device_can_be_started_from_any_thread() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            start_device("CPU")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert not failures and not thread.is_alive()


def test_a_removed_working_folder_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from mistral.cli.main import main; sys.exit(main())"
    line = f"cd {gone} && rmdir {gone} && exec {sys.executable} -c"
    for arguments, message in (
        ("demo", "the working folder was removed; change to one that is there (cd) and start again"),
        ("info .", ".: is empty; download a model into it or name another folder"),
        ("info there", "there: no such folder; name the folder of a downloaded model"),
    ):
        gone.mkdir(exist_ok=True)
        command = ["bash", "-c", f"{line} {shlex.quote(code)} {arguments}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_without_a_temporary_folder_mindspore_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    check_surroundings()
    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(InputError, match="no temporary folder can be written; set TMPDIR to"):
        check_surroundings()
