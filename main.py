"""The command line of the project: `python -m main demo`, `python -m main interactive`, `python -m main --help`."""

import os
import sys

try:
    import resource
except ImportError:  # not on this system
    resource = None  # type: ignore[assignment]

LEAST = 400 << 20  # bytes of address space: what is imported below takes less and fails in its own words
ERASE, QUICK = "\r\x1b[K", {"-h", "--help", "--version"}
AT_TERMINAL = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
if __name__ == "__main__" and AT_TERMINAL and sys.argv[1:] and QUICK.isdisjoint(sys.argv):
    print(f"{ERASE}starting ...", end="", file=sys.stderr, flush=True)  # what is imported below takes a while

if __name__ == "__main__" and resource and 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < LEAST:
    print(f"{ERASE * AT_TERMINAL}error: the shell's limit of memory (ulimit -v) leaves too little to begin; raise it:"
          " ulimit -v unlimited", file=sys.stderr)  # fmt: skip
    sys.exit(2)
try:
    from mistral.cli.main import main
except KeyboardInterrupt:  # the program has not begun, which is no reason for a trace
    print(f"{ERASE * AT_TERMINAL}interrupted", file=sys.stderr)
    sys.exit(130)
except ImportError as error:
    print(f"{ERASE * AT_TERMINAL}error: a Python package is missing or damaged ({error}); run pip install -r"
          " requirements.txt", file=sys.stderr)  # fmt: skip
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
