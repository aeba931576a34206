"""The command line of the project: `python -m main demo`, `python -m main interactive`, `python -m main --help`."""

import os
import sys

ERASE, QUICK = "\r\x1b[K", {"-h", "--help", "--version"}
AT_TERMINAL = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
if __name__ == "__main__" and AT_TERMINAL and sys.argv[1:] and QUICK.isdisjoint(sys.argv):
    print(f"{ERASE}starting ...", end="", file=sys.stderr, flush=True)  # what is imported below takes a while

try:
    from mistral.cli.main import main
except KeyboardInterrupt:  # the program has not begun, which is no reason for a trace
    print(f"{ERASE * AT_TERMINAL}interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
