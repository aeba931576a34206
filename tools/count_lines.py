"""Keep the line counts in the READMEs true.

    python tools/count_lines.py [--check]

A table whose header's last column is "lines" (in Chinese 行数) counts source. A row counts the files and folders that
it names in `...`; of a folder, all Python files. A row that names none has the sum of the rows since the last such row.

Without --check the counts are rewritten. With --check nothing is written: every row that is out of date is printed as
it should be, and the exit code is 1 if there are any.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-CN.md")
HEADERS = ("lines", "行数")
NAMED = re.compile(r"`([\w./]+(?:\.py|/))`")


def lines_of(name: str) -> int:
    """Lines of a file, or of all Python files of a folder."""
    path = ROOT / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def cells_of(line: str) -> list[str]:
    """The cells of a table's row; none for a line that is no row."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def recounted(text: str) -> str:
    """A page with the counts as they are today."""
    done, counting, total = list[str](), False, 0
    for line in text.split("\n"):
        cells = cells_of(line)
        if not cells:
            counting = False
        elif cells[-1] in HEADERS:
            counting, total = True, 0
        elif counting and set(cells[-1]) - set("-:"):
            named = NAMED.findall(line)
            count = sum(map(lines_of, named)) if named else total
            total = total + count if named else 0
            line = "| " + " | ".join([*cells[:-1], str(count)]) + " |"
        done.append(line)
    return "\n".join(done)


def main(arguments: list[str]) -> int:
    """Rewrite the counts, or check them; returns the exit code."""
    code = 0
    for name in READMES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = recounted(before)
        if arguments != ["--check"]:
            path.write_text(after, encoding="utf-8")
            continue
        for number, (old, new) in enumerate(zip(before.split("\n"), after.split("\n"), strict=True), 1):
            if old != new:
                print(f"{name}:{number}: should be\n{new}")
                code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
