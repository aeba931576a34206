"""The command line of the project: `python -m main demo`, `python -m main interactive`, `python -m main --help`."""

import sys

from mistral.cli import main

if __name__ == "__main__":
    sys.exit(main())
