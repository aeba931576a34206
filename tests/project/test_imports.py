"""The shape of the source: imports point one way, MindSpore's public interface only, nothing too long to see whole."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mistral"
FILES = sorted(PACKAGE.rglob("*.py"))
# What lies directly in `mistral`, lowest first: a file imports from its own package and from lower levels.
LEVELS = (
    ("errors", "version", "limits"),
    ("text", "memory", "places", "atomic_files", "ops"),
    ("mapped_file",),
    ("gguf",),
    ("model", "tokenizer"),
    ("checkpoint", "grammar"),
    ("engine",),
    ("pipeline",),
    ("load",),
    ("generate",),
    ("llm",),
    ("server",),
    ("", "cli"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# Only these do arithmetic on tensors; all others must be of use where MindSpore is not.
WITH_MINDSPORE = {"ops/portable.py", "ops/native.py", "ops/device.py"}


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    dotted = path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    return dotted.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(module: str) -> set[str]:
    """Modules of the project that a module names in an import, wherever it stands: in a function, or for types only."""
    found = set()
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return (found & MODULES.keys()) - {module}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports; none where there is none."""
    left = dict(graph)
    while True:
        free = {module for module, others in left.items() if not others & left.keys()}
        if not free:
            break
        left = {module: others for module, others in left.items() if module not in free}
    return sorted(left)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not is_type_checking(node):
            yield node
            yield from running(node)


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that importing or running the code imports."""
    names = set()
    for node in running(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_imports_have_no_circle() -> None:
    assert circle({module: imports_of(module) for module in MODULES}) == []


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_imports_between_packages_point_down() -> None:
    for module in MODULES:
        package = f"{module}.".split(".")[1]
        for other in imports_of(module):
            lower = f"{other}.".split(".")[1]
            assert lower == package or LEVEL[lower] < LEVEL[package], f"{module} imports {other}"


def test_few_files_lie_directly_in_the_package() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_mindspore_is_imported_where_arithmetic_is_done_and_by_public_names() -> None:
    for path in FILES:
        everything = {
            f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        for name in everything:
            private = any(part.startswith("_") for part in name.split(".")[1:])
            assert not private or not name.startswith("mindspore"), (path, name)
        if str(path.relative_to(PACKAGE)) not in WITH_MINDSPORE:
            assert not any(name.split(".")[0] == "mindspore" for name in imported(parsed(path))), path


def test_mpi_is_imported_by_one_function_of_one_file() -> None:
    """So that a plain run never loads it."""
    for path in FILES:
        tree = parsed(path)
        running_at_import = [n for n in tree.body if not isinstance(n, ast.FunctionDef) and not is_type_checking(n)]
        top = {name for node in running_at_import for name in imported(node)}
        found = {name for name in imported(tree) if name.split(".")[0] == "mpi4py"}
        assert not found or path.name == "world.py"
        assert not any(name.split(".")[0] == "mpi4py" for name in top)


def test_no_private_part_of_mindspore_is_reached_for() -> None:
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("ms", "ops"):
                assert not node.attr.startswith("_"), (path, node.attr)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file, wherever it stands."""
    return (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_no_file_and_no_function_is_too_long_to_see_whole() -> None:
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path
        for node in functions(path):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, (path, node.name)


def test_every_parameter_and_result_has_a_type() -> None:
    for path in FILES:
        for node in functions(path):
            assert node.returns is not None, (path, node.name)
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not bare, (path, node.name, bare)
