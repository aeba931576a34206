"""Compile the kernels for this machine on first use, and keep the libraries in the user's cache folder.

There are two: the kernels, plain C++, and the glue that makes MindSpore operators of them (20 to 30 seconds, since it
includes MindSpore's header). A library's file name contains a digest of everything that it depends on, so another
source, compiler, flag or processor gives another file, and several versions may share the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from mistral.errors import InputError, one_line
from mistral.ops import library_cache

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-fno-math-errno", "-Wno-psabi")
# For the processor that this runs on. On aarch64, -march would choose its instructions and not how they are scheduled.
NATIVE = ("-mcpu=native",) if platform.machine() == "aarch64" else ("-march=native",)
# The units that take longest are compiled in parallel, each on its own. All others are compiled as one unit, because
# most of their time is spent on standard headers.
COMPILED_ALONE = (
    "attention/online_softmax.cpp",
    "blocks/in_place.cpp",
    "blocks/panel_neon.cpp",
    "blocks/panel_tiles.cpp",
    "blocks/row_lanes_large.cpp",
    "blocks/row_lanes_small.cpp",
    "matmul/microkernel_bf16.cpp",
    "matmul/microkernel_float.cpp",
)
# Flags of single units. GCC would keep pointers to rows in a vector, and take each out of it again.
OWN_FLAGS = {f"blocks/row_lanes_{size}.cpp": ("-fno-tree-slp-vectorize",) for size in ("large", "small")}
# MindSpore's builder finds ninja on PATH, and leaves NAME.so in the folder.
GLUE = (
    "import sys; from mindspore import ops; ops.CustomOpBuilder(*sys.argv[1:3], 'CPU', build_dir=sys.argv[3]).build()"
)
COMPILING = "note: compiling the kernels for this machine, once; this takes up to a minute"
REMEDY = library_cache.PORTABLE
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Library:
    """A library in the cache, and the commands that build it.

    name: its name. key: a digest of everything that the file depends on.
    steps: groups of commands, which leave NAME.so in the folder that they run in. The commands of a group run in
    parallel; a group starts when the one before it is done.
    """

    name: str
    key: str
    steps: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def file(self) -> str:
        """The name of its file in the cache folder."""
        return f"{self.name}-{self.key}.so"

    def find(self) -> Path | None:
        """The path of the library; None if it has not been built, or another user could have written it."""
        paths = [folder / self.file for folder in library_cache.usable_folders()]
        return next((path for path in paths if library_cache.is_safe_file(path)), None)

    def build(self) -> Path:
        """The path of the library, which is built if necessary. Raises InputError if that fails.

        Of several processes one builds and the others wait. Files left by a killed build are removed.
        """
        found = self.find()
        if found:
            library_cache.note_use(found)
            return found
        folder = library_cache.writable_folder()
        path = folder / self.file
        with os.fdopen(library_cache.open_new(folder / f"{self.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system if the process dies
            if not library_cache.is_safe_file(path):
                for left in folder.glob(f"{self.name}.building-*"):
                    shutil.rmtree(left, ignore_errors=True)
                work = Path(tempfile.mkdtemp(prefix=f"{self.name}.building-", dir=folder))
                try:
                    for step in self.steps:
                        run(step, work)
                    library_cache.move_in(work / f"{self.name}.so", path)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
                library_cache.prune(path, self.name)
        return path

    def load(self, opened: Callable[[Path], Loaded]) -> Loaded:
        """The result of `opened` for the library's file; a file that cannot be loaded is built again, once.

        Raises InputError if the new one cannot be loaded either.
        """
        path = self.build()
        try:
            if library_cache.is_whole(path):
                return opened(path)
        except (OSError, ImportError, RuntimeError):  # made for another machine, or damaged
            pass
        try:
            path.unlink(missing_ok=True)
            return opened(self.build())
        except (OSError, ImportError, RuntimeError) as error:
            message = f"{path} cannot be loaded ({one_line(error)}); {REMEDY}"
            raise InputError(message, option="backend", value="native") from None


def build_all(libraries: Sequence[Library]) -> list[Path]:
    """The paths of the libraries. Missing ones are built in parallel, after a note on standard error."""
    if not sys.stderr.isatty() and not all(library.find() for library in libraries):
        print(COMPILING, file=sys.stderr, flush=True)  # on a terminal, `run` counts the seconds
    with ThreadPoolExecutor(len(libraries)) as pool:
        return list(pool.map(Library.build, libraries))


def compiler() -> str | None:
    """The path of the C++ compiler: CXX of the environment, or g++, as in MindSpore's builder; None without one."""
    return shutil.which(os.environ.get("CXX") or "g++")


def is_built() -> bool:
    """Whether the libraries of the native backend are in the cache already. Without a compiler they are not."""
    return compiler() is not None and all(library.find() for library in (glue(), kernels()))


def require_native() -> None:
    """Raise InputError, with the remedy, if there is no compiler, or no folder for the libraries."""
    require_compiler()
    if not is_built():
        library_cache.writable_folder()


def require_compiler() -> str:
    """The path of the C++ compiler. Without one, raises an InputError that says how to get it."""
    found = compiler()
    if found is None:
        name = os.environ.get("CXX") or "g++"
        raise InputError(
            f"needs a C++ compiler and there is no {name}; install one (Debian and Ubuntu: apt install g++; Fedora and"
            f" openEuler: dnf install gcc-c++), or {REMEDY}",
            option="backend",
            value="native",
        )
    return found


def glue() -> Library:
    """The Python module that makes MindSpore operators of the kernels."""
    sources = [SOURCES / "glue.cpp", SOURCES / "kernels.h"]
    # what it is linked against; its rpath has the prefix
    abi = [version("mindspore"), sysconfig.get_config_var("EXT_SUFFIX"), sys.prefix]
    command = (sys.executable, "-c", GLUE, "mistral_glue", str(sources[0]), ".")
    return Library("mistral_glue", key_of(sources, [*abi, compiler_version(require_compiler())]), ((command,),))


def kernels(machine: Sequence[str] = NATIVE) -> Library:
    """The library of kernels. `machine`: compiler flags that choose the processor."""
    cxx, flags = require_compiler(), [*FLAGS, *machine]
    units = sorted(file for file in SOURCES.rglob("*.cpp") if file.name != "glue.cpp")
    sources = [*units, *sorted(SOURCES.rglob("*.h"))]
    alone = {SOURCES / name: OWN_FLAGS.get(name, ()) for name in COMPILED_ALONE}
    together = [part for unit in units if unit not in alone for part in ("-include", str(unit))]
    include = ("-I", str(SOURCES))  # not in the key: the path of the sources makes no difference
    rest = (cxx, *flags, *include, "-c", "-x", "c++", os.devnull, "-o", "rest.o", *together)
    objects = (*((cxx, *flags, *own, *include, "-c", str(unit)) for unit, own in alone.items()), rest)
    link = (cxx, *flags, "-shared", *(f"{unit.stem}.o" for unit in alone), "rest.o", "-o", "kernels.so")
    key = key_of(sources, [*flags, str(OWN_FLAGS), compiler_version(cxx), processor()])
    return Library("kernels", key, (objects, (link,)))


def key_of(sources: Sequence[Path], parts: Sequence[str]) -> str:
    """A digest of the contents of these files and of the other `parts` of a build: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in [*(source.read_bytes() for source in sources), *(part.encode() for part in parts)]:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


@lru_cache(4)
def compiler_version(cxx: str) -> str:
    """The first line that `cxx --version` prints."""
    done = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0]


def processor() -> str:
    """Model and instruction sets of the processor, as listed by the system."""
    lines = set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
        lines = {line for line in info.read_text(errors="replace").splitlines() if line.startswith(wanted)}
    return "\n".join([platform.machine(), *sorted(lines)])


def run(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Run commands in parallel in a folder, at most one for each core.

    On a terminal a line counts the seconds. Raises InputError with the compiler's first message if a command fails.
    """
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "GLOG_v": "4", "TMPDIR": str(folder)}  # there may be no other
    started, waiting, running = time.monotonic(), list(commands), list[subprocess.Popen[str]]()
    with (folder / "log").open("w+") as log:
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    running.append(
                        subprocess.Popen(
                            waiting.pop(0), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                            env=environment, text=True,
                        )
                    )  # fmt: skip
                time.sleep(0.05)
                if sys.stderr.isatty():
                    seconds = time.monotonic() - started
                    print(f"\r\x1b[Kcompiling for this machine, once: {seconds:.0f} s", end="", file=sys.stderr)
                failed = any(process.poll() for process in running)
                running = [process for process in running if process.returncode is None]
                if failed:
                    break
        finally:
            for process in running:
                process.kill()
                process.wait()
            if sys.stderr.isatty():
                print("\r\x1b[K", end="", file=sys.stderr)
        if failed:
            log.seek(0)
            lines = [line.strip() for line in log if "error" in line.lower() or "Ninja is required" in line]
            lines.sort(key=lambda line: "error: " not in line)  # a compiler's own, before traces of what has called it
            raise InputError(
                f"does not compile ({(lines or ['no message'])[0][:200]}); {REMEDY}", option="backend", value="native"
            )
