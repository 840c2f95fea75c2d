"""Where the images of an annotation file lie under one root, whoever wrote their names.

Labelling tools write absolute paths, backslashes, drive letters, percent escapes and URLs; archives unpack to other
folders than the annotations name. A name is looked for

1. as it is given;
2. normalised: of a URL the path (of Label Studio's local files what follows `?d=`), percent escapes as they stand and
   undone, backslashes as slashes, without drive and `..`; whole, then without leading folders, one after the other;
3. by its last part, anywhere under the root, if only one file there has that name.

Nothing outside the root is ever returned: links that lead out of it are not followed. Where the second or the third
step leads two different names to one file, neither has it, for it is not known whose it is.
"""

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

GIVEN, NORMALISED, BASE_NAME = "as given", "normalised", "by a base name that is unique"
MISSING, AMBIGUOUS, NOWHERE = "to no file", "to the file of another name", "out of the folder or nowhere"
LOCAL = "/local-files/?d="  # of Label Studio


def find_images(root: Path, names: Iterable[str]) -> dict[str, tuple[Path | None, str]]:
    """Name -> (path under the root, how it was found: one of the constants above).

    The path of a name that is MISSING or AMBIGUOUS is the one where the file belongs. It is None where there can be
    none (NOWHERE): the name is empty, too long or holds a NUL, or it is a link that leads out of the root.
    """
    folder, listed = os.path.realpath(root), None
    found: dict[str, tuple[str | None, str]] = {}
    owners: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name in dict.fromkeys(names):
        variants = _normalised(name)
        path, how = _file(folder, name), GIVEN
        if path is None:
            shorter = (os.path.join(*parts[start:]) for parts in variants for start in range(len(parts)))
            path, how = next(filter(None, (_file(folder, short) for short in shorter)), None), NORMALISED
        if path is None and variants:
            listed = _listed(folder) if listed is None else listed
            same = {file for parts in variants for file in listed.get(_letters(parts[-1]), ())}
            path, how = (_file(folder, same.pop()) if len(same) == 1 else None), BASE_NAME
        if path is None:
            path, how = _place(folder, variants), MISSING
        else:
            owners[path].add(tuple(variants[-1]))
        found[name] = (path, how)
    for name, (path, how) in found.items():
        if path and how in (NORMALISED, BASE_NAME) and len(owners[path]) > 1:
            found[name] = (_place(folder, _normalised(name)), AMBIGUOUS)
    return {name: (Path(path), how) if path else (None, NOWHERE) for name, (path, how) in found.items()}


def _normalised(name: str) -> list[list[str]]:
    """Folders and file name that are meant, percent escapes as they stand and undone; empty if there is none."""
    text = name.partition(LOCAL)[2] or name
    if "://" in text:
        try:
            text = urlsplit(text).path
        except ValueError:  # no URL, whatever it looks like
            pass
    variants = []
    for read in dict.fromkeys((text, unquote(text))):
        parts = posixpath.normpath("/" + read.replace("\\", "/")).strip("/").split("/")
        if re.fullmatch("[A-Za-z]:", parts[0]):
            del parts[0]
        if any(parts):
            variants.append(parts)
    return variants


def _file(root: str, name: str) -> str | None:
    """The file of that name (relative to the root), links followed; None if there is none or it lies elsewhere."""
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        return None
    path = os.path.realpath(path)
    return path if path.startswith(os.path.join(root, "")) else None


def _place(root: str, variants: list[list[str]]) -> str | None:
    """Where a file that is not there belongs; None if it cannot be under the root."""
    if not variants:
        return None
    path = os.path.join(root, *variants[0])
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError):  # too long, a NUL, no text
        return None
    return path if os.path.realpath(path).startswith(os.path.join(root, "")) else None


def _listed(root: str) -> dict[str, list[str]]:
    """Base name -> the files under the root that have it."""
    files = defaultdict(list)
    for folder, _, names in os.walk(root):
        for name in names:
            files[_letters(name)].append(os.path.join(folder, name))
    return files


def _letters(name: str) -> str:
    """Archives packed on a Mac hold decomposed letters, exports composed ones."""
    return unicodedata.normalize("NFC", name)
