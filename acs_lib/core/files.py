"""Files that appear whole or not at all, and digests of what is in them."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
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


def read_text(path: Path) -> str:
    """A text file that people bring: UTF-8, with or without a byte-order mark. ValueError names another encoding."""
    content = Path(path).read_bytes()
    encoding = json.detect_encoding(content[:4]).upper()
    try:
        if encoding.startswith("UTF-8"):
            return content.decode("utf-8-sig")
        found = encoding[:6]
    except UnicodeDecodeError as error:
        found = f"Latin-1 or another encoding (byte {content[error.start]:#x} at {error.start})"
        if b"\0" in content[:1000]:
            found = "no text at all"
    raise ValueError(f"{path} is not UTF-8 but {found}; save it as UTF-8")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


SUMS = "SHA256SUMS"  # of a folder, as sha256sum writes and checks it


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str]) -> Path:
    """Write SUMS of files of a folder; its path."""
    lines = [f"{file_digest(Path(folder) / name)}  {name}\n" for name in sorted(names)]
    write_text(Path(folder) / SUMS, "".join(lines))
    return Path(folder) / SUMS


def check_sums(folder: Path) -> list[str]:
    """The names of the files in SUMS of a folder, each of which has its digest. ValueError names the first that has
    not, or is not there, or would lie elsewhere; FileNotFoundError where there is no SUMS."""
    names = []
    for line in read_text(Path(folder) / SUMS).splitlines():
        expected, _, name = line.partition("  ")
        path = Path(folder) / name
        if Path(name).name != name or not path.is_file() or file_digest(path) != expected:
            raise ValueError(f"{path} is not the file that {SUMS} beside it names; fetch the folder again")
        names.append(name)
    return names


def digest(content: object) -> str:
    """SHA-256 of a JSON-like value, the same for equal values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def query_key(query_id: str) -> int:
    """A number that depends on the query alone, to key its noise with."""
    return zlib.crc32(query_id.encode())
