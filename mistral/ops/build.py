"""Libraries compiled for this machine on first use, and kept in the user's cache folder."""

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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mistral.errors import InputError

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-fno-math-errno", "-Wno-psabi")
# Units that take seconds each; all others are compiled together.
COMPILED_ALONE = (
    "attention/online_softmax.cpp",
    "matmul/microkernel_bf16.cpp",
    "matmul/microkernel_float.cpp",
    "matmul/microkernel_int16.cpp",
)
# MindSpore's builder finds ninja on PATH, and leaves NAME.so in the folder.
GLUE = (
    "import sys; from mindspore import ops; ops.CustomOpBuilder(*sys.argv[1:3], 'CPU', build_dir=sys.argv[3]).build()"
)
REMEDY = "use --backend portable"


@dataclass(frozen=True)
class Library:
    """A library in the cache: its name, what it depends on, and the commands that leave NAME.so in their folder.

    `steps`: commands that may run side by side, and those that follow when they are done.
    """

    name: str
    key: str
    steps: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def file(self) -> str:
        """Its name in the cache folder."""
        return f"{self.name}-{self.key}.so"

    def find(self) -> Path | None:
        """Where it is, if it has been built."""
        return next((folder / self.file for folder in cache_folders() if (folder / self.file).is_file()), None)

    def build(self) -> Path:
        """Where it is, once it is there. One process builds and others wait; what a killed one left does not matter."""
        found = self.find()
        if found:
            return found
        folder = writable_folder()
        with (folder / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it when its holder dies
            if not (folder / self.file).is_file():
                for left in folder.glob(f"{self.name}.building-*"):
                    shutil.rmtree(left, ignore_errors=True)
                work = Path(tempfile.mkdtemp(prefix=f"{self.name}.building-", dir=folder))
                try:
                    for step in self.steps:
                        run(step, work)
                    os.replace(work / f"{self.name}.so", folder / self.file)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
        return folder / self.file


def build_all(libraries: Sequence[Library]) -> list[Path]:
    """Where they are, once they are there; those that are not are built side by side."""
    with ThreadPoolExecutor(len(libraries)) as pool:
        return list(pool.map(Library.build, libraries))


def compiler() -> str | None:
    """The C++ compiler: CXX of the environment or g++, as MindSpore's builder chooses; None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


def require_compiler() -> str:
    """The C++ compiler; raises InputError that says how to get one."""
    found = compiler()
    if found is None:
        name = os.environ.get("CXX") or "g++"
        raise InputError(
            f"--backend native: needs a C++ compiler and there is no {name}; install one (Debian and Ubuntu:"
            f" apt install g++; Fedora and openEuler: dnf install gcc-c++), or {REMEDY}"
        )
    return found


def glue() -> Library:
    """What makes MindSpore operators of the kernels: 20 to 30 seconds to build."""
    sources = [SOURCES / "glue.cpp", SOURCES / "kernels.h"]
    abi = [version("mindspore"), sysconfig.get_config_var("EXT_SUFFIX"), sys.prefix]  # the prefix is in its rpath
    command = (sys.executable, "-c", GLUE, "mistral_glue", str(sources[0]), ".")
    return Library("mistral_glue", key_of(sources, [*abi, compiler_version(require_compiler())]), ((command,),))


def kernels(machine: Sequence[str] = ("-march=native",)) -> Library:
    """The kernels: a few seconds to build. `machine`: compiler flags that say for which processor."""
    cxx, flags = require_compiler(), [*FLAGS, *machine]
    units = [file for file in SOURCES.rglob("*.cpp") if file.name != "glue.cpp"]
    sources = [*sorted(units), *sorted(SOURCES.rglob("*.h"))]
    large = [unit for unit in sorted(units) if unit.relative_to(SOURCES).as_posix() in COMPILED_ALONE]
    # the others together: most of the time for each of them would go into the compiler's own headers
    together = [part for unit in sorted(units) if unit not in large for part in ("-include", str(unit))]
    include = ("-I", str(SOURCES))  # no part of the key: a library is the same wherever its sources lie
    rest = (cxx, *flags, *include, "-c", "-x", "c++", os.devnull, "-o", "rest.o", *together)
    objects = (*((cxx, *flags, *include, "-c", str(unit)) for unit in large), rest)
    link = (cxx, *flags, "-shared", *(f"{unit.stem}.o" for unit in large), "rest.o", "-o", "kernels.so")
    return Library("kernels", key_of(sources, [*flags, compiler_version(cxx), processor()]), (objects, (link,)))


def key_of(sources: Sequence[Path], parts: Sequence[str]) -> str:
    """A name for the contents of these files together with all else that a build depends on."""
    digest = hashlib.sha256()
    for part in [*(source.read_bytes() for source in sources), *(part.encode() for part in parts)]:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def compiler_version(cxx: str) -> str:
    """The first line that the compiler says of itself."""
    done = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0]


def processor() -> str:
    """Model and instruction sets of the processor, as far as the system tells."""
    lines = set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
        lines = {line for line in info.read_text(errors="replace").splitlines() if line.startswith(wanted)}
    return "\n".join([platform.machine(), *sorted(lines)])


def cache_folders() -> tuple[Path, Path]:
    """Where libraries are looked for: the user's cache, and a folder of the user's own among temporary files."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    temporary = Path(tempfile.gettempdir()) / f"mistral-mindspore-{os.getuid()}"
    private = temporary.is_dir() and temporary.stat().st_uid == os.getuid() and not temporary.stat().st_mode & 0o022
    return cache / "mistral-mindspore", temporary if private else cache / "mistral-mindspore"


def writable_folder() -> Path:
    """The user's cache where one can write there, else a temporary folder. Raises InputError without either."""
    first, _ = cache_folders()
    temporary = Path(tempfile.gettempdir()) / f"mistral-mindspore-{os.getuid()}"
    for folder, mode in ((first, 0o777), (temporary, 0o700)):
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError:
            continue
        if folder in cache_folders():  # a temporary folder of someone else's making is not
            return folder
    raise InputError(f"--backend native: cannot write to {first} or {temporary}; set XDG_CACHE_HOME, or {REMEDY}")


def run(commands: Sequence[Sequence[str]], folder: Path) -> None:
    """Commands of a build, side by side, with a line on a terminal that counts the seconds.

    Raises InputError with the compiler's first message where one fails.
    """
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "GLOG_v": "4"}
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
            raise InputError(f"--backend native: does not compile ({(lines or ['no message'])[0][:200]}); {REMEDY}")
