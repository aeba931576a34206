"""Compiled libraries: where they are kept, who builds them, and what goes wrong."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import stat
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mistral.errors import InputError
from mistral.load import Transformer
from mistral.ops import build, library_cache
from mistral.ops.backend import WORTH_BUILDING, choose_backend
from mistral.ops.build import Library, is_built
from mistral.ops.native import Native
from tests.support.checkpoint_forms import random_tensors, write_checkpoint
from tests.support.small_models import DENSE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and temporary files of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "cache" / "mistral-mindspore"


def library(tmp_path: Path, script: str = "") -> Library:
    """A library that takes a moment to build. Each build adds a line to the file `times`."""
    command = f"sleep 0.2; echo built >> {tmp_path}/times; {script} echo content > thing.so"
    return Library("thing", "0123", ((("sh", "-c", command),),))


def times_built(tmp_path: Path) -> int:
    return len((tmp_path / "times").read_text().splitlines())


def test_a_library_is_built_once_and_then_found(tmp_path: Path, cache: Path) -> None:
    assert library(tmp_path).find() is None
    for _ in range(2):
        found = library(tmp_path).build()
        assert found == cache / "thing-0123.so"
        assert found.read_text() == "content\n"
    assert times_built(tmp_path) == 1
    assert sorted(path.name for path in cache.iterdir()) == ["thing-0123.so", "thing.lock"]


def test_without_a_terminal_one_line_tells_of_compiling(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Library("other", "0123", ((("sh", "-c", "echo content > other.so"),),))
    for _ in range(2):
        build.build_all([library(tmp_path), other])
    assert capsys.readouterr().err == f"{build.COMPILING}\n"


def test_several_processes_wait_for_one_build(tmp_path: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=library(tmp_path).build) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert times_built(tmp_path) == 1


def test_a_killed_build_is_no_obstacle(tmp_path: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=library(tmp_path, "sleep 15;").build)
    process.start()
    while not (tmp_path / "times").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert [path for path in cache.iterdir() if "building" in path.name]
    assert library(tmp_path).build().is_file()
    assert not [path for path in cache.iterdir() if "building" in path.name]


def test_where_the_cache_cannot_be_written_a_private_temporary_folder_serves(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file, where a folder should be")
    for _ in range(2):
        found = library(tmp_path).build()
        assert found.parent == tmp_path / "tmp" / f"mistral-mindspore-{os.getuid()}"
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    assert times_built(tmp_path) == 1


def test_a_temporary_folder_that_others_may_write_is_not_used(tmp_path: Path, cache: Path) -> None:
    cache.parent.write_text("a file, where a folder should be")
    folder = tmp_path / "tmp" / f"mistral-mindspore-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "thing-0123.so").write_text("not ours")
    with pytest.raises(InputError) as caught:
        library(tmp_path).build()
    assert caught.value.with_flags() == (
        f"--backend native: cannot write to {cache}, and {folder} cannot be used either; set XDG_CACHE_HOME to a"
        " folder of your own, or TMPDIR, or use --backend portable"
    )


def test_a_folder_that_others_may_write_or_own_is_not_used(tmp_path: Path, cache: Path) -> None:
    """Nor is one that lies in such a folder: whoever may rename it can put another in its place."""
    temporary = tmp_path / "tmp" / f"mistral-mindspore-{os.getuid()}"
    planted = cache / "thing-0123.so"
    cache.mkdir(parents=True)
    for unsafe, mode in ((cache, 0o777), (cache, 0o702), (cache.parent, 0o777)):
        planted.write_text("not ours")
        unsafe.chmod(mode)
        assert library(tmp_path).find() in (None, temporary / "thing-0123.so")
        found = library(tmp_path).build()
        assert (found.parent, found.read_text()) == (temporary, "content\n")
        unsafe.chmod(0o755)
        assert library(tmp_path).find() == planted
    assert times_built(tmp_path) == 1
    cache.parent.chmod(0o1777)  # as /tmp: others can rename only what is theirs
    assert library(tmp_path).find() == planted


def test_what_another_user_owns_is_not_used(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from the other side, as only root can give files away: we are another user than whoever wrote these."""
    cache.mkdir(parents=True)
    planted = cache / "thing-0123.so"
    planted.write_text("not ours")
    assert library(tmp_path).find() == planted
    monkeypatch.setattr("os.getuid", lambda: 12345)
    lstat = Path.lstat

    def as_if_of(owner: int) -> None:
        def owned(path: Path) -> os.stat_result:
            found = list(lstat(path))
            found[4] = owner if tmp_path in path.parents else 0
            return os.stat_result(found)

        monkeypatch.setattr(Path, "lstat", owned)

    for owner, used in ((12345, True), (0, True), (65534, False)):
        as_if_of(owner)
        assert library(tmp_path).find() == (planted if used else None), owner
    with pytest.raises(InputError, match=f"{cache} belongs to others, or they may write to it, and .* either; set XDG"):
        library(tmp_path).build()


def test_links_are_not_followed(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not ours")
    (cache / "thing-0123.so").symlink_to(elsewhere)
    assert library(tmp_path).find() is None
    assert library(tmp_path).build() == cache / "thing-0123.so"
    assert (elsewhere.read_text(), (cache / "thing-0123.so").read_text()) == ("not ours", "content\n")
    shutil.rmtree(cache)
    cache.write_text("a file, where a folder should be")
    (tmp_path / "other").mkdir()
    (tmp_path / "tmp" / f"mistral-mindspore-{os.getuid()}").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="cannot be used either"):
        library(tmp_path).build()
    assert list((tmp_path / "other").iterdir()) == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "thing.lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        library(tmp_path).build()
    assert not (tmp_path / "target").exists()


def test_without_any_folder_native_is_one_line_and_auto_is_portable(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    cache.parent.write_text("a file, where a folder should be")
    line = (
        f"cannot write to {cache}, and there is no writable temporary folder; set XDG_CACHE_HOME to a folder of your"
        " own, or TMPDIR, or use --backend portable"
    )
    with pytest.raises(InputError) as caught:
        library(tmp_path).build()
    assert caught.value.with_flags() == f"--backend native: {line}"
    assert choose_backend("auto", "CPU", WORTH_BUILDING) == "portable"
    assert capsys.readouterr().err == f"note: slow: --backend native: {line}\n"


def test_old_builds_are_removed_and_the_last_used_stay(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_cache, "KEPT", 4)
    cache.mkdir(parents=True)
    for age in range(7):
        path = cache / f"thing-{age:04}.so"
        path.write_text("old")
        os.utime(path, (1e9 - age, 1e9 - age))
    (cache / "other-0000.so").write_text("of another library")
    used = Library("thing", "0005", ())
    assert used.build() == cache / "thing-0005.so"  # from now on one of the last used
    assert library(tmp_path).build() == cache / "thing-0123.so"
    left = sorted(path.name for path in cache.glob("*.so"))
    assert left == ["other-0000.so", "thing-0000.so", "thing-0001.so", "thing-0005.so", "thing-0123.so"]


def test_a_library_that_does_not_load_is_built_again_once(tmp_path: Path, cache: Path) -> None:
    """Cut short, as a full disk or a lost power leaves it, or for another machine."""
    source = tmp_path / "x.c"
    source.write_text("int seven(void) { return 7; }")
    command = ("sh", "-c", f"echo built >> {tmp_path}/times; gcc -shared -fPIC {source} -o real.so")
    real = Library("real", "0", (((command),),))
    path = real.build()
    whole = path.read_bytes()
    builds = 1
    other = whole[:18] + b"\xf3\0" + whole[20:]  # a RISC-V processor's
    for damaged in (other, whole[:-1], whole[: len(whole) // 2], whole[:20], b"", bytes(len(whole))):
        path.unlink()  # the one before stays mapped
        path.write_bytes(damaged)
        assert real.load(lambda p: ctypes.CDLL(str(p))).seven() == 7
        builds += 1
        assert times_built(tmp_path) == builds
    with pytest.raises(InputError, match=r"real-0\.so cannot be loaded \(.*none_such.*\); use backend portable"):
        real.load(lambda p: ctypes.CDLL("none_such.so"))
    assert times_built(tmp_path) == builds + 1


def test_a_build_that_fails_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    broken = Library("thing", "0123", ((("sh", "-c", "echo 'x.cpp:1: error: no'; echo more; exit 1"),),))
    with pytest.raises(InputError) as caught:
        broken.build()
    assert caught.value.with_flags() == (
        "--backend native: does not compile (x.cpp:1: error: no); use --backend portable"
    )
    assert (caught.value.option, caught.value.value) == ("backend", "native")
    assert [path.name for path in cache.iterdir()] == ["thing.lock"]


def test_another_source_flag_or_compiler_is_another_library(tmp_path: Path) -> None:
    source = tmp_path / "a.cpp"
    source.write_text("1")
    keys = {build.key_of([source], parts) for parts in (["a", "b"], ["ab", ""], ["a", "c"])}
    source.write_text("2")
    keys.add(build.key_of([source], ["a", "b"]))
    assert len(keys) == 4
    assert build.kernels(()).key != build.kernels().key


def test_every_unit_is_compiled_once() -> None:
    """The largest each on its own, all others as one."""
    (compiled, (link,)) = build.kernels().steps
    words = [word for command in compiled for word in command if word.endswith(".cpp")]
    assert sorted(words) == sorted(str(file) for file in build.SOURCES.rglob("*.cpp") if file.name != "glue.cpp")
    objects = {f"{Path(name).stem}.o" for name in build.COMPILED_ALONE} | {"rest.o"}
    assert {word for word in link if word.endswith(".o")} == objects
    assert len(objects) == len(compiled)


def test_without_a_compiler_native_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    folder = write_checkpoint(tmp_path / "m", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    with pytest.raises(InputError, match=r"no-such-compiler; install one .*apt install g\+\+") as caught:
        Transformer.from_folder(folder, backend="native", device="CPU")
    assert "\n" not in str(caught.value)
    shown = caught.value.with_flags()
    assert shown.startswith("--backend native: needs a C++ compiler and there is no no-such-compiler; install one ")
    assert shown.endswith(", or use --backend portable")


def test_auto_is_native_where_it_pays(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_backend("auto", "CPU", WORTH_BUILDING) == "native"
    assert choose_backend("auto", "CPU", WORTH_BUILDING - 1) == "portable"
    assert choose_backend("auto", "Ascend", WORTH_BUILDING) == "portable"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose_backend("auto", "CPU", WORTH_BUILDING) == "portable"
    assert "install one" in capsys.readouterr().err
    assert choose_backend("native", "CPU", 1) == "native"


def test_auto_is_native_for_every_checkpoint_once_the_kernels_are_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Native()
    monkeypatch.setattr(build, "is_built", is_built)
    assert choose_backend("auto", "CPU", 1) == "native" and choose_backend("auto", "Ascend", 1) == "portable"
    folder = write_checkpoint(tmp_path / "m", DENSE, random_tensors(DENSE), "consolidated.safetensors")
    assert Transformer.from_folder(folder).ops.name == "native"
    for change in ({"XDG_CACHE_HOME": str(tmp_path)}, {"CXX": "no-such-compiler"}):  # nothing built there; none at all
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setenv(name, value)
            assert choose_backend("auto", "CPU", 1) == "portable"


def test_weights_stay_in_the_file(tmp_path: Path) -> None:
    """A change of the mapped bytes is seen by the weight: nothing was copied."""
    path = tmp_path / "w"
    np.zeros((3, 5), np.uint16).tofile(path)
    mapped = np.memmap(path, np.uint16, "r+", shape=(3, 5))
    weight = Native().weight(mapped.view(ml_dtypes.bfloat16))
    mapped[1, 2] = 0x3F80
    assert weight.data.arrays[0].view(np.uint16)[1, 2] == 0x3F80
    assert Native().embed(weight, np.array([1])).asnumpy()[0, 2] == 1
