"""The command line of the project: `python -m main demo`, `python -m main interactive`, `python -m main --help`."""

import sys

try:
    from mistral.cli.main import main
except KeyboardInterrupt:  # the program has not begun, which is no reason for a trace
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
