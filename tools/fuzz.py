"""Give the program changed inputs, and report each that ends in anything but success or one line for the user.

    python -m tools.fuzz                         # a minute on all cores
    python -m tools.fuzz --seconds 3600          # an hour
    python -m tools.fuzz --target params --replay FILE
    python -m tools.fuzz --target drafts         # answers with guesses against those without; only where it is named

What escapes: an exception other than InputError, an input that takes longer than ten seconds, a process that dies (a
signal, or out of its memory). The input is written to a file of the folder --out, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mistral.errors import InputError
from tools.fuzzing.mutators import mutated
from tools.fuzzing.targets import Target, all_targets

MEMORY = 8 << 30  # bytes of address space that a worker may take
PATIENCE = 10  # seconds for one input


class TooSlow(BaseException):
    """An input took longer than `PATIENCE` seconds. No Exception, so that nothing takes it for an ordinary error."""


@dataclass(frozen=True)
class Escape:
    """An input that ended badly: what came of it, and the file that holds it."""

    target: str
    what: str
    file: str


def run_one(target: Target, data: bytes) -> str | None:
    """Give an input to a target -> what escaped, in one line; None where nothing did."""
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            target.run(data)
    except InputError as error:
        return "an error of several lines" if "\n" in str(error) else None
    except TooSlow:
        return f"more than {PATIENCE} seconds"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"{type(error).__name__}: {' '.join(str(error).split())[:120]} ({Path(place.filename).name}:{place.lineno})"
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def chosen_targets(folder: Path, names: Sequence[str]) -> list[Target]:
    """The targets of these names; where there are none, all but those that load models."""
    found = [target for target in all_targets(folder) if not names or target.name in names]
    if "drafts" in names:
        from tools.fuzzing.drafts import draft_target

        found.append(draft_target())
    return found


def work(names: Sequence[str], seconds: float, seed: int, out: Path) -> dict[str, object]:
    """Fuzz for a time -> counts by target, and the escapes; the input at hand lies in `out` until it is done."""

    def alarm(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, alarm)
    chance, counts, escapes = random.Random(seed), Counter[str](), list[Escape]()
    current, seen = out / f"current-{seed}", set[str]()
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        targets = chosen_targets(Path(folder), names)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            target = chance.choices(targets, [target.share for target in targets])[0]
            data = mutated(target.seeds, chance)
            current.write_bytes(target.name.encode() + b"\n" + data)
            found = run_one(target, data)
            counts[target.name] += 1
            if found and found not in seen:
                seen.add(found)
                file = out / f"{target.name}-{seed}-{len(seen)}"
                file.write_bytes(data)
                escapes.append(Escape(target.name, found, str(file)))
    current.unlink()
    return {"counts": counts, "escapes": [vars(escape) for escape in escapes]}


def _memory_folder() -> str | None:
    """A folder whose files are memory; None for the usual temporary one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run_workers(names: Sequence[str], seconds: float, seed: int, jobs: int, out: Path) -> tuple[int, list[Escape]]:
    """Fuzz in several processes -> how many inputs, and what escaped; a process that died is an escape."""
    command = [sys.executable, "-m", "tools.fuzz", "--worker", "--seconds", str(seconds), "--out", str(out)]
    for name in names:
        command += ["--target", name]
    root = Path(__file__).parents[1]
    workers = [
        subprocess.Popen([*command, "--seed", str(seed + number)], stdout=subprocess.PIPE, text=True, cwd=root)
        for number in range(jobs)
    ]
    total, escapes = Counter[str](), list[Escape]()
    for number, worker in enumerate(workers):
        text, _ = worker.communicate()
        if worker.returncode == 0:
            report = json.loads(text)
            total.update(report["counts"])
            escapes += [Escape(**escape) for escape in report["escapes"]]
            continue
        current = out / f"current-{seed + number}"
        held = current.read_bytes() if current.exists() else b"none\n"
        target, data = held.split(b"\n", 1)[0].decode(), held.split(b"\n", 1)[1]
        file = out / f"{target}-{seed + number}-died"
        file.write_bytes(data)
        escapes.append(Escape(target, f"the process ended with {worker.returncode}", str(file)))
    for name, count in sorted(total.items()):
        print(f"{name:20}{count:10}")
    return sum(total.values()), escapes


def replay(name: str, file: Path) -> str | None:
    """What escapes when one file is given to one target."""
    with tempfile.TemporaryDirectory() as folder:
        return run_one(chosen_targets(Path(folder), [name])[0], file.read_bytes())


@contextlib.contextmanager
def out_folder(named: Path | None) -> Iterator[Path]:
    """The folder for inputs that escape: the one named, or a new one that is kept."""
    folder = named or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if not any(folder.iterdir()) and named is None:
        folder.rmdir()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where anything escaped."""
    parser = argparse.ArgumentParser(description="Fuzz what reads files, texts and options.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="printed at the end, to repeat a run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--target", action="append", default=[], help="only this one; may be given again")
    parser.add_argument("--out", type=Path, help="folder for inputs that escape")
    parser.add_argument("--replay", type=Path, help="give this file to the target")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.replay:
        print(found := replay(options.target[0], options.replay))
        return int(found is not None)
    with out_folder(options.out) as out:
        if options.worker:
            print(json.dumps(work(options.target, options.seconds, options.seed, out)))
            return 0
        count, escapes = run_workers(options.target, options.seconds, options.seed, options.jobs, out)
    for escape in escapes:
        print(f"ESCAPE {escape.target}: {escape.what}\n       {escape.file}")
    print(f"{count} inputs, {len(escapes)} escapes, seed {options.seed}")
    return int(bool(escapes))


if __name__ == "__main__":
    sys.exit(main())
