"""COCO and Objects365 for a profile: annotations, and only the images that the chosen queries need.

    annotations -> splits.load_split (the profile's thresholds and limits) -> images

A file is fetched to `<name>.part`, goes on where it stopped, and gets its name when it is whole; COCO's images come one
by one, Objects365's out of the archives (patches) that hold them. An image that cannot be had is written down and the
rest goes on; a disk that cannot be written, a full one above all, stops everything, and what came is kept.
"""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from acs_lib import __version__
from acs_lib.core.files import file_digest, replacing
from acs_lib.core.progress import tracked
from acs_lib.datasets.coco import read_annotations
from acs_lib.datasets.splits import load_split, split_files
from acs_lib.profiles import DatasetSpec, Profile

AGENT = f"acs-kit/{__version__} (reproduction of arXiv 2606.01612; fetches single images, a few at a time)"
THREADS = 8
CHUNK = 1 << 20  # bytes
TIMEOUT = (10, 60)  # seconds to connect, and between two bytes
STOPS = 5  # connections that may break off, one after the other, before a file is given up


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from.

    base: address that all others are relative to
    annotations: address, and the file's SHA-256
    image: (annotation file's stem, `file_name` in it) -> address of the image, or of the archive it is in
    licence: what who uses the data agrees to
    """

    base: str
    annotations: tuple[str, str]
    image: Callable[[str, str], str]
    licence: str


# SHA-256: COCO publishes none; many projects state this one of its archive (Metalhead.jl among them). Objects365's is
# that of vernier's annotation cache (269,422,006 bytes).
SOURCES = {
    "coco": Source(
        base="https://s3.amazonaws.com/images.cocodataset.org/",
        annotations=("annotations/annotations_trainval2017.zip",
                     "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
        image=lambda annotations, name: f"{annotations.removeprefix('instances_')}/{name}",
        licence="annotations CC BY 4.0, images by their owners' Flickr terms: https://cocodataset.org/#termsofuse",
    ),
    "objects365": Source(
        base="https://dorc.ks3-cn-beijing.ksyun.com/data-set/2020Objects365%E6%95%B0%E6%8D%AE%E9%9B%86/",
        annotations=("val/zhiyuan_objv2_val.json",
                     "b5b6a043f3b36c1865240a3e23fc4cbbf627052d72b6a4428a993bf2549d4424"),
        image=lambda annotations, name: f"val/{Path(name).parent.as_posix()}.tar.gz",
        licence="annotations CC BY 4.0, images by their owners' Flickr terms: https://www.objects365.org",
    ),
}  # fmt: skip


class FetchError(OSError):
    """A file that cannot be had, and why."""


def session() -> requests.Session:
    """Connections that wait and try again when a server is busy (429, 5xx), and say who is asking."""
    retry = Retry(total=6, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False)
    asked = requests.Session()
    asked.headers.update({"User-Agent": AGENT, "Accept-Encoding": "identity"})
    for scheme in ("http://", "https://"):
        asked.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=THREADS))
    return asked


def fetch(asked: requests.Session, url: str, path: Path, sha256: str | None = None, progress: bool = False) -> Path:
    """Fetch one file, going on with `<name>.part`; a file that is there is kept.

    Raises FetchError where the server has none, breaks off too often, or sends other bytes than `sha256` says.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, stopped = path.with_name(path.name + ".part"), 0
    while True:
        before = _size(part)
        cause: str | Exception = "the connection broke off"
        try:
            if _stream(asked, url, part, progress):
                break
        except (requests.RequestException, HTTPError) as error:
            cause = error
        except OSError as error:
            if error.errno:  # of the disk, which does not say where
                error.filename = error.filename or str(part)
            raise
        stopped = 0 if _size(part) > before else stopped + 1
        if stopped == STOPS:
            raise FetchError(f"{url}: {cause}; the same command goes on from here")
    if sha256 is not None and (found := file_digest(part)) != sha256:
        part.unlink()
        raise FetchError(f"{url} has the SHA-256 {found}, not {sha256}: it was changed or damaged; nothing is kept")
    return part.rename(path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _stream(asked: requests.Session, url: str, part: Path, progress: bool) -> bool:
    """Append what is missing of a file; True if it is whole now."""
    have = _size(part)
    with asked.get(url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing after `have`: whole, unless the file is another one by now
            whole = answer.headers.get("Content-Range") == f"bytes */{have}"
            if not whole:
                part.unlink()
            return whole
        if answer.status_code not in (200, 206):
            raise FetchError(f"{url}: {answer.status_code} {answer.reason}")
        if answer.status_code == 200:
            have = 0  # the server does not send parts
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        bar = dict(total=total, initial=have, desc=part.stem, disable=None if progress else True)
        with part.open("ab" if have else "wb") as file, tqdm.wrapattr(file, "write", **bar) as shown:
            while chunk := answer.raw.read1(CHUNK):  # what came before a break is kept, as iter_content would not
                shown.write(chunk)
    return total is None or _size(part) == total


def readable(path: Path) -> bool:
    """The file is a whole image."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


@dataclass
class Outcome:
    """What came of a dataset: the paths of the images that are there and whole, and for the others the reason."""

    there: set[Path] = field(default_factory=set)
    missing: dict[Path, str] = field(default_factory=dict)


def images_of(queries: pd.DataFrame, annotations: Path) -> dict[Path, str]:
    """Path of every needed image -> its `file_name` in the annotation file, wherever the image lies on disk."""
    names = {image_id: row["file_name"] for image_id, row in read_annotations(annotations).imgs.items()}
    needed = queries.drop_duplicates("image")
    return {Path(path): names[image_id] for path, image_id in zip(needed["image"], needed["image_id"])}


def leave_alone(images: dict[Path, str], outcome: Outcome) -> dict[Path, str]:
    """The images that may be written, in a folder of the user's own: those that are damaged are noted instead."""
    damaged = {path for path in images if path.exists() and not readable(path)}
    reason = "damaged, in a folder that is linked; mend it there, or delete it to have it fetched"
    outcome.missing |= dict.fromkeys(damaged, reason)
    return {path: name for path, name in images.items() if path not in damaged}


def fetch_images(asked: requests.Session, addresses: dict[Path, str], outcome: Outcome, label: str) -> None:
    """Fetch single images, several at a time; a damaged one that is there is fetched anew."""

    def one(path: Path) -> str | None:
        if readable(path):
            return None
        path.unlink(missing_ok=True)
        try:
            if readable(fetch(asked, addresses[path], path)):
                return None
        except FetchError as error:
            return str(error)
        path.unlink()
        return f"{addresses[path]}: what came is no whole image"

    _each(one, addresses, outcome, label)


def _each(check: Callable[[Path], str | None], images: Collection[Path], outcome: Outcome, label: str) -> None:
    """Note for every image the reason why it is not there, or None."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(check, images)
        for path, reason in zip(tracked(images, label, unit="images"), found):
            if reason is None:
                outcome.there.add(path)
            else:
                outcome.missing[path] = reason


def fetch_patches(asked: requests.Session, archives: dict[str, list[Path]], outcome: Outcome, folder: Path) -> None:
    """Fetch archives one after the other; of each only the wanted images are unpacked, then it is deleted."""
    for url, images in archives.items():
        reason = f"{url} does not hold it"
        if wanted := {path.name: path for path in images if not readable(path)}:
            archive = folder / "archives" / "-".join(url.split("/")[-2:])
            try:
                unpack_images(fetch(asked, url, archive, progress=True), wanted)
            except (FetchError, gzip.BadGzipFile, EOFError, tarfile.TarError, zlib.error) as error:
                reason = str(error)
            archive.unlink(missing_ok=True)

        def lacking(path: Path, reason: str = reason) -> str | None:
            return None if readable(path) else reason

        _each(lacking, images, outcome, url.rpartition("/")[2])


def unpack_images(archive: Path, wanted: dict[str, Path]) -> None:
    """Take images out of a .tar.gz by their names, whatever folder they are in there."""
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            path = wanted.get(Path(member.name).name) if member.isfile() else None
            if path and (file := members.extractfile(member)):
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as aside:
                    aside.write_bytes(file.read())


def unpack_annotations(archive: Path, wanted: Iterable[Path]) -> None:
    """Take the wanted files out of COCO's archive of annotations, by their names."""
    with zipfile.ZipFile(archive) as content:
        for path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside:
                aside.write_bytes(content.read(f"annotations/{path.name}"))


def source(name: str) -> Source:
    """Where a dataset comes from; ValueError lists the known ones."""
    if name.lower() not in SOURCES:
        raise ValueError(f"unknown dataset {name!r}; choose one of {', '.join(SOURCES)}")
    return SOURCES[name.lower()]


def find_dataset(profile: Profile, name: str) -> DatasetSpec:
    """The dataset of a profile by its name in any case; ValueError lists those that it has."""
    found = {dataset.name.lower(): dataset for dataset in profile.datasets if dataset.kind == "coco"}
    if name.lower() not in found:
        has = ", ".join(found) or "none that is fetched"
        raise ValueError(f"no dataset {name!r} in the profile {profile.name!r}; it has {has}")
    return found[name.lower()]


def get(profile: Profile, name: str, base: str | None = None) -> tuple[dict[str, pd.DataFrame], Outcome]:
    """Fetch what a profile needs of a dataset; (funnel of every split, outcome). Into a folder that is linked (see
    `link`) what is not there is fetched, too, but nothing in it is replaced.

    base: another address with the same files, a mirror for instance. Raises FetchError where the annotations cannot be
    had, and OSError where the disk is full or cannot be written.
    """
    dataset, origin, asked = find_dataset(profile, name), source(name), session()
    base = (base or origin.base).rstrip("/") + "/"
    files = list(dict.fromkeys(split_files(dataset, split)[0] for split in dataset.splits))
    address, sha256 = origin.annotations
    if absent := [path for path in files if not path.exists()]:
        if address.endswith(".zip"):
            archive = fetch(asked, base + address, absent[0].parent / Path(address).name, sha256, progress=True)
            unpack_annotations(archive, absent)
            archive.unlink()
        else:
            fetch(asked, base + address, absent[0], sha256, progress=True)
    funnels: dict[str, pd.DataFrame] = {}
    outcome = Outcome()
    for split in dataset.splits:
        annotations, folder = split_files(dataset, split)
        queries, funnels[split] = load_split(profile, dataset, split)
        images = images_of(queries, annotations)
        if folder.is_symlink():
            images = leave_alone(images, outcome)
        addresses = {path: base + origin.image(annotations.stem, name) for path, name in images.items()}
        if name.lower() == "objects365":
            archives: dict[str, list[Path]] = {}
            for path, url in addresses.items():
                archives.setdefault(url, []).append(path)
            fetch_patches(asked, archives, outcome, folder)
        else:
            fetch_images(asked, addresses, outcome, f"{dataset.name}, {split}")
    return funnels, outcome


def link(profile: Profile, name: str, annotations: Path, images: Path) -> tuple[dict[str, pd.DataFrame], Outcome]:
    """Use data that are on disk already: link them to where the profile looks, for every split whose annotation file
    has that name, and check that the images of its queries are there; (funnel of every such split, outcome).

    Raises ValueError where no split reads a file of that name, or other data are in that place.
    """
    dataset = find_dataset(profile, name)
    annotations, images = Path(annotations).resolve(), Path(images).resolve()
    for path in (annotations, images):
        if not path.exists():
            raise ValueError(f"there is no {path}")
    places = {split: split_files(dataset, split) for split in dataset.splits}
    splits = [split for split, (file, _) in places.items() if file.name == annotations.name]
    if not splits:
        known = ", ".join(sorted({file.name for file, _ in places.values()}))
        raise ValueError(f"{dataset.name} in the profile {profile.name!r} reads {known}, not {annotations.name}")
    for target, place in zip((annotations, images), places[splits[0]]):
        if place.resolve() == target:
            continue
        if place.exists() and not place.is_symlink():
            raise ValueError(f"{place} is there already; move it away, or leave --annotations and --images out")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(target)
    funnels: dict[str, pd.DataFrame] = {}
    outcome = Outcome()
    for split in splits:
        queries, funnels[split] = load_split(profile, dataset, split)
        _each(
            lambda path: None if readable(path) else "damaged" if path.exists() else "not there",
            [Path(path) for path in queries["image"].unique()], outcome, f"{dataset.name}, {split}",
        )  # fmt: skip
    return funnels, outcome


def say(funnels: dict[str, pd.DataFrame], outcome: Outcome) -> str:
    """The funnels of all splits side by side, and what became of the images."""
    table = pd.DataFrame({split: funnel.set_index("step")["count"] for split, funnel in funnels.items()})
    needed = len(outcome.there) + len(outcome.missing)
    lines = [table.to_string(), f"images that the queries need: {needed}, there and whole: {len(outcome.there)}"]
    if outcome.missing:
        lines.append(f"not to be had: {len(outcome.missing)}, for instance")
        lines += [f"  {path.name}: {reason}" for path, reason in list(outcome.missing.items())[:3]]
    return "\n".join(lines)
