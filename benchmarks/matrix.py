"""`bench` over the shapes and types of weights that versions of this project are compared by, as JSON lines.

    python benchmarks/matrix.py [options of bench, such as --threads 2 --folder FOLDER] > FILE

The random checkpoints take 17 GB of disk; they stay in their folder, and a second run does not make them again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MATRIX = (
    ("mistral-7b", 4, None),  # bfloat16
    ("mistral-7b", 4, "Q8_0"),
    ("mistral-7b", 4, "Q4_K_M"),
    ("mistral-7b", 4, "Q4_0"),
    ("mixtral-8x7b", 1, None),
    ("mixtral-8x7b", 1, "Q4_K_M"),
    ("mixtral-8x7b", 2, None),
    ("tiny", 4, None),
)


def main() -> int:
    """Run all, each in a process of its own; returns the worst exit code."""
    worst = 0
    for shape, layers, kind in MATRIX:
        which = ["--shape", shape, "--layers", str(layers), *(("--type", kind) if kind else ())]
        which += ["--backend", "native", "--json"]
        done = subprocess.run([sys.executable, "-m", "main", "bench", *which, *sys.argv[1:]], cwd=ROOT, check=False)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
