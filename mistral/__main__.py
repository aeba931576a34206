"""The command line as `python -m mistral`."""

import sys

from mistral.cli.main import main

if __name__ == "__main__":
    sys.exit(main(program="python -m mistral"))
