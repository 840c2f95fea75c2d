"""Files that appear whole or not at all, and digests of what is in them."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to instead of `path`, renamed to it at the end: readers see the old file or the new one, never
    half of one. An error leaves the old file as it was."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def digest(content) -> str:
    """SHA-256 of a JSON-like value, the same for equal values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def query_key(query_id: str) -> int:
    """A number that depends on the query alone, to key its noise with."""
    return zlib.crc32(query_id.encode())
