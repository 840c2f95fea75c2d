"""Which files of the library a piece of code imports, without importing them."""

import ast
import functools
from pathlib import Path


@functools.cache
def _names(code: str, functions: bool) -> frozenset[str]:
    """Dotted names that code imports at its top, or inside `functions` too: a.b of `import a.b`, and of `from a import
    b` whether b is a module or something in one."""
    tree = ast.parse(code)
    names: set[str] = set()
    for node in ast.walk(tree) if functions else tree.body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _file(library: Path, parts: list[str]) -> Path | None:
    """The file of a module or package of the library."""
    place = library.joinpath(*parts[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def imported_files(code: str, library: Path) -> set[Path]:
    """The files of a package in the folder `library` that Python code imports, and what these import in turn, inside
    functions too. (A package that is only on the way to a module counts with what it imports when it is loaded, not
    with what its functions import.) Relative imports are not followed. SyntaxError where the code is no Python."""
    followed: set[tuple[Path, bool]] = set()
    names = set(_names(code, True))
    while names:
        parts = names.pop().split(".")
        if parts[0] != library.name:
            continue
        found = [file for end in range(1, len(parts) + 1) if (file := _file(library, parts[:end]))]
        for step in {(file, file == found[-1]) for file in found} - followed:
            followed.add(step)
            names.update(_names(step[0].read_text(encoding="utf-8"), step[1]))
    return {file for file, _ in followed}
