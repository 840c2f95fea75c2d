"""A run directory: the answers and attention of one LVLM on one list of queries.

    run.json                 the key (a digest of everything that determines the content) and what it was made of, and
                             `listed`, a digest of what the list of queries was made of (see `fill`)
    queries.parquet          one row a query, with the ground truth
    00000.parquet            one row an answer: text, tokens, log-probabilities, box, or why there is none
    00000.safetensors        the same rows' `statistics` [n, 4, L, H, 4] and, by query, `maps/0` [n, 4, L, H, h, w]
                             float16, `maps/1`, ...: every image has a grid of its own (bytes, see `pack`)

    part-00001-00016-00032.safetensors   a finished batch of an unfinished shard, its queries 16 to 31: the
                             same tensors, and the records as bytes

A shard holds the answers to SHARD queries. Every batch is kept as a part as soon as it is answered; a shard is joined
from its parts, which are then deleted. Each file is written aside and renamed, a shard's Parquet file last, so shards
and parts are whole or absent: a killed run asks for the batches that are missing, whatever their size was before, and
ends with the same bytes. All files carry checksums. Queries whose image could not be read are asked for again when
their image has changed since.
"""

import fcntl
import functools
import io
import itertools
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import PER_TOKEN, STATISTICS, Candidates
from acs_lib.core.errors import UserError
from acs_lib.core.files import digest, replacing, write_text
from acs_lib.core.images import NO_FILE
from acs_lib.core.progress import progress as progress_of
from acs_lib.datasets.coco import TRUTH

SHARD = 64  # queries
FORMAT = 3  # of a shard
CHECKED = -1  # instead of a checksum: need not be computed again
UNREADABLE = "unreadable image"  # how the failure of a query's only row begins, where the LVLM was never asked
ZSTANDARD = pa.Codec("zstd", compression_level=1)
BOX = ["box_x1", "box_y1", "box_x2", "box_y2"]
STORED_AS = {"mean_log_vp": "self_certainty", "top20_logprob": "confidence"}  # names in the files, as they ever were
CandidatesWithRecords = tuple[Candidates, list[dict]]


def pack(maps: np.ndarray) -> np.ndarray:
    """Maps [n, 4, L, H, h, w] as bytes [m]: the six lengths (uint32), then the low bytes of all float16 and their high
    bytes, which resemble each other, compressed by Zstandard. Nothing is lost, and it takes about a third of the disk.
    """
    halves = np.ascontiguousarray(maps, np.float16)
    pairs = halves.view(np.uint16).ravel()
    apart = np.concatenate([pairs.astype(np.uint8), (pairs >> 8).astype(np.uint8)])
    lengths = np.array(halves.shape, np.uint32).view(np.uint8)
    return np.concatenate([lengths, np.frombuffer(ZSTANDARD.compress(apart, asbytes=True), np.uint8)])


def unpack(packed: np.ndarray) -> np.ndarray:
    """The float16 maps that `pack` was given."""
    shape = packed[:24].view(np.uint32).tolist()
    size = math.prod(shape)
    low, high = np.frombuffer(ZSTANDARD.decompress(packed[24:], 2 * size, asbytes=True), np.uint8).reshape(2, size)
    pairs = high.astype(np.uint16)
    pairs <<= 8
    pairs |= low
    return pairs.view(np.float16).reshape(shape)


@contextmanager
def locked(folder: Path):
    """Only one process at a time writes to a run directory; a second one is refused with UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing to {folder}; wait for it, or stop it") from error
        yield


def fill(
    folder: Path, queries: pd.DataFrame, answer: Callable[[pd.DataFrame], list[CandidatesWithRecords]],
    key_parts: dict, bytes_per_query: int | Callable[[], int], batch: int = 16, progress: str = "sampling",
    backend: Callable[..., Iterable[list[CandidatesWithRecords]]] = map, listed: str | None = None,
) -> "Run":  # fmt: skip
    """Fill a run directory with `answer(batch of queries)` for every query, and return it.

    `key_parts` is everything besides the queries that determines the answers; a directory with another key is emptied
    first. Where the images lie is no part of the key. `answer` gives, for each query, its Candidates and records (see
    `unread` for a query without answers, which is asked for again once its image has changed); of no query nothing.
    `backend(answer, batches)` yields what `answer` gives for each batch, in order: `map` here, a cluster in
    `ray_cluster`. `listed`: a digest of what the list of queries was made of, by which `stored_queries` knows it again.
    Raises OSError if the disk has no room for what is still to come (`bytes_per_query`, or what this gives where
    something is missing; one shard twice, while it is joined), or runs out of it.
    """
    folder, key = Path(folder), _make_key(key_parts, queries)
    with locked(folder):
        info = folder / "run.json"
        for path in folder.glob(".*.*"):  # left by a killed process
            path.unlink()
        if _key(info) != key:
            info.unlink(missing_ok=True)  # first: what is without it counts for nothing
            for path in folder.glob("[!.]*"):
                path.unlink()
        with _mended(folder, "the list of queries"):
            _write_queries(folder / "queries.parquet", queries)
            known = {"key": key} | ({"listed": listed} if listed else {}) | key_parts
            text = json.dumps(known, indent=1, default=str)
            if not info.exists() or info.read_text(encoding="utf-8") != text:
                write_text(info, text)
        shards = [queries.iloc[start : start + SHARD] for start in range(0, len(queries), SHARD)]
        images = dict(zip(queries["query_id"], queries["image"]))
        missing = _unfinished(folder, queries)
        for number, again in missing.items():
            if again:
                with _mended(folder, f"a part of shard {number}"):
                    take_apart(folder, number, again)
        held = _held(folder, missing, images)
        asked = {number: _ranges(set(range(len(shards[number]))) - held[number], batch) for number in missing}
        left = sum(len(part) for parts in asked.values() for part in parts)
        need = 0
        if missing:
            each = bytes_per_query() if callable(bytes_per_query) else bytes_per_query
            need = each * (left + max(len(shards[number]) for number in missing))
        free = shutil.disk_usage(folder).free
        if need > free:
            raise OSError(
                f"{folder} needs {need / 1e9:.1f} GB more and the disk has {free / 1e9:.1f} GB; free some, or lower "
                "the number of queries in the profile"
            )
        with progress_of(f"{progress} ({need / 1e9:.1f} GB)", len(queries), len(queries) - left) as told:
            batches = [shards[number].iloc[part.start : part.stop] for number in missing for part in asked[number]]
            found = iter(backend(answer, batches))
            for number in missing:
                for part in asked[number]:
                    answers = next(found)
                    if len(answers) != len(part):
                        raise ValueError(f"{len(answers)} answers to {len(part)} queries; nothing may be lost")
                    with _mended(folder, f"a part of shard {number}"):
                        write_part(folder, number, part, answers)
                    told.update(len(part))
                with _mended(folder, f"shard {number}"):
                    join_parts(folder, number)
    return Run(folder)


@contextmanager
def _mended(folder: Path, what: str):
    """An error of writing says what could not be written where, and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{folder}: {what} could not be written ({error}); free some disk and run the same command again, what is "
            "finished is kept"
        ) from error


def _make_key(key_parts: dict, queries: pd.DataFrame) -> str:
    """The key of a run directory of these queries."""
    known = digest(queries.drop(columns="image").to_dict("list"))
    return digest({**key_parts, "queries": known, "shard": SHARD, "format": FORMAT})


def stored_queries(folder: Path, key_parts: dict, listed: str) -> pd.DataFrame | None:
    """The queries of a run directory that was filled with these `key_parts` and `listed` (see `fill`); None where there
    is none, or an image is not where the list says: it may lie elsewhere now."""
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if info.get("listed") != listed:
            return None
        queries = pd.read_parquet(folder / "queries.parquet")
    except (OSError, ValueError):
        return None
    there = info["key"] == _make_key(key_parts, queries) and all(Path(path).is_file() for path in set(queries["image"]))
    return queries if there else None


def finished(folder: Path, queries: pd.DataFrame) -> bool:
    """Whether a run directory of these queries (see `stored_queries`) lacks nothing, so that `fill` would only read."""
    return not _unfinished(folder, queries)


def _unfinished(folder: Path, queries: pd.DataFrame) -> dict[int, set[str]]:
    """Shards that are not there, each with an empty set, and those with queries that are to be asked again, with these
    (see `_changed`)."""
    images, found = dict(zip(queries["query_id"], queries["image"])), {}
    for number in range(-(-len(queries) // SHARD)):
        failures = _failures(folder, number)
        again = set() if failures is None else _changed(failures, images, folder / f"{number:05d}.parquet")
        if failures is None or again:
            found[number] = again
    return found


def _key(info: Path) -> str | None:
    """The key of a run directory; None if there is none."""
    try:
        return json.loads(info.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError):
        return None


def _write_queries(path: Path, queries: pd.DataFrame) -> None:
    """Write the list of queries, unless it is there already: images may lie elsewhere than they did."""
    content = queries.to_parquet(index=False)
    if not path.exists() or path.read_bytes() != content:
        with replacing(path) as aside:
            aside.write_bytes(content)


def _changed(failures: pd.DataFrame, images: dict[str, str], written: Path) -> set[str]:
    """The queries (query_id, failure) whose image could not be read and has changed since the file `written` says so:
    there was none and now there is one, or it is newer than the file."""
    found, since = set(), written.stat().st_ctime
    for query_id, failure in failures[failures["failure"].str.startswith(UNREADABLE)].to_numpy():
        image = Path(images[query_id])
        if image.is_file() and (failure.endswith(NO_FILE) or image.stat().st_ctime > since):
            found.add(query_id)
    return found


def unread(
    query_id: str, category: str, width: int, height: int, layers: int, heads: int, reason: str
) -> CandidatesWithRecords:
    """What stands for the answers to a query whose image the LVLM never saw: one row, without text, box or tokens."""
    none = [np.array([])]
    candidates = Candidates(
        query_id=query_id, category=category, width=width, height=height, boxes=np.full((1, 4), np.nan),
        **{name: none for name in PER_TOKEN}, coordinate_tokens=[np.array([], int)],
        statistics=np.full((1, 4, layers, heads, len(STATISTICS)), np.nan),
        maps=np.full((1, 4, layers, heads, 1, 1), np.nan),
    )  # fmt: skip
    return candidates, [{"text": "", "token_ids": [], "failure": f"{UNREADABLE}: {reason}"}]


def write_part(folder: Path, number: int, part: range, answers: list[CandidatesWithRecords]) -> None:
    """Keep the answers to some of a shard's queries, `part` of range(SHARD), until the shard is whole."""
    rows = []
    for candidates, records in answers:
        for index, record in enumerate(records):
            tokens = {STORED_AS.get(name, name): getattr(candidates, name)[index] for name in PER_TOKEN}
            rows.append({
                "query_id": candidates.query_id, "candidate": index, **record,
                **dict(zip(BOX, candidates.boxes[index].tolist())), **tokens,
                "coordinate_tokens": candidates.coordinate_tokens[index],
            })  # fmt: skip
    statistics = np.concatenate([candidates.statistics for candidates, _ in answers])
    _save_part(folder, number, part, pd.DataFrame(rows), statistics, [candidates.maps for candidates, _ in answers])


def take_apart(folder: Path, number: int, again: set[str]) -> None:
    """Make parts of a shard, of the answers to all its queries but those of `again`, and delete it.

    Of a damaged shard nothing is kept.
    """
    run = Run(folder)
    for path in folder.glob(f"part-{number:05d}-*"):  # left by a killed process; they would overlap
        path.unlink()
    with suppress(ValueError):
        records, statistics, maps = run.records(number).drop(columns="iou"), run.statistics(number), [*run.maps(number)]
        names = records["query_id"].unique()
        for part in _ranges({place for place, name in enumerate(names) if name not in again}, SHARD):
            rows = records["query_id"].isin(names[part.start : part.stop]).to_numpy()
            _save_part(folder, number, part, records[rows], statistics[rows], maps[part.start : part.stop])
    for suffix in ("parquet", "safetensors"):
        (folder / f"{number:05d}.{suffix}").unlink()


def _save_part(
    folder: Path, number: int, part: range, records: pd.DataFrame, statistics: np.ndarray, maps: list[np.ndarray]
) -> None:
    tensors = {"statistics": np.ascontiguousarray(statistics, np.float32)}
    for place, of_query in enumerate(maps):
        tensors[f"maps/{place}"] = pack(of_query)
    tensors["records"] = np.frombuffer(records.to_parquet(index=False), np.uint8)
    checksums = {name: zlib.crc32(tensor) for name, tensor in tensors.items()}
    _save(folder / f"part-{number:05d}-{part.start:05d}-{part.stop:05d}.safetensors", tensors, checksums)


def join_parts(folder: Path, number: int) -> None:
    """Write a shard from all its parts, maps first and records last, then delete them.

    Raises ValueError if a part is damaged.
    """
    paths = sorted(folder.glob(f"part-{number:05d}-*"))
    parts = [_read_part(path) for path in paths]
    frames = [pd.read_parquet(io.BytesIO(tensors.pop("records"))) for tensors, _ in parts]
    records = pd.concat(frames).to_parquet(index=False)
    tensors = {"statistics": np.concatenate([tensors.pop("statistics") for tensors, _ in parts])}
    checksums = {"records": zlib.crc32(records), "statistics": zlib.crc32(tensors["statistics"])}
    maps = ((part[f"maps/{place}"], known[f"maps/{place}"]) for part, known in parts for place in range(len(part)))
    for place, (tensor, known) in enumerate(maps):
        tensors[f"maps/{place}"], checksums[f"maps/{place}"] = tensor, known
    _save(folder / f"{number:05d}.safetensors", tensors, checksums)
    with replacing(folder / f"{number:05d}.parquet") as aside:
        aside.write_bytes(records)
    for path in paths:
        path.unlink()


def _save(path: Path, tensors: dict[str, np.ndarray], checksums: dict[str, int]) -> None:
    with replacing(path) as aside:
        save_file(tensors, aside, {"checksums": json.dumps(checksums)})  # one entry: several would lie in random order


def _read_part(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Tensors of a part and their checksums, which they were found to have; ValueError if it is damaged."""
    try:
        with safe_open(path, "np") as file:
            checksums = json.loads(file.metadata()["checksums"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if {name: zlib.crc32(tensor) for name, tensor in tensors.items()} != checksums:
            raise ValueError("it is not what was written")
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error
    return tensors, checksums


def _held(folder: Path, missing: Iterable[int], images: dict[str, str]) -> dict[int, set[int]]:
    """The queries of each missing shard that its parts hold; parts that are damaged or of no use, or that say of an
    image which has changed since that it cannot be read, are deleted."""
    held = {number: set() for number in missing}
    for path in folder.glob("part-*"):
        try:
            number, start, stop = (int(digits) for digits in path.stem.split("-")[1:])
            found = held[number]
            tensors, _ = _read_part(path)
            if _changed(pd.read_parquet(io.BytesIO(tensors["records"])), images, path):
                raise ValueError("an image has changed")
            found.update(range(start, stop))
        except (KeyError, ValueError):
            path.unlink()
    return held


def _ranges(places: set[int], most: int) -> list[range]:
    """Neighbouring places as ranges of at most so many."""
    ranges = []
    for place in sorted(places):
        if ranges and ranges[-1].stop == place and len(ranges[-1]) < most:
            ranges[-1] = range(ranges[-1].start, place + 1)
        else:
            ranges.append(range(place, place + 1))
    return ranges


def _failures(folder: Path, number: int) -> pd.DataFrame | None:
    """query_id and failure of every answer of a shard; None if one of its files is not there or cannot be read."""
    try:
        with safe_open(folder / f"{number:05d}.safetensors", "np"):
            pass
        return pd.read_parquet(folder / f"{number:05d}.parquet", columns=["query_id", "failure"])
    except (OSError, SafetensorError, ValueError):
        return None


@dataclass(frozen=True)
class Run:
    """A finished run directory, read shard by shard."""

    folder: Path
    _known: dict[int, dict[str, int]] = field(default_factory=dict, repr=False, compare=False)  # checksums by shard
    _read: dict[int, pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)  # records by shard

    @functools.cached_property
    def key(self) -> str:
        """Digest of everything that determines the content, the unanswered queries included."""
        info = (self.folder / "run.json").read_text(encoding="utf-8")
        key, unanswered = json.loads(info)["key"], sorted(self.unanswered())
        return digest([key, unanswered]) if unanswered else key

    @functools.cached_property
    def queries(self) -> pd.DataFrame:
        """One row a query (see datasets.coco), with the ground truth."""
        return pd.read_parquet(self.folder / "queries.parquet")

    @functools.cached_property
    def truth(self) -> dict[str, np.ndarray]:
        """query_id -> box [4]."""
        return dict(zip(self.queries["query_id"], self.queries[TRUTH].to_numpy()))

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.parquet"))

    def records(self, shard: int | None = None) -> pd.DataFrame:
        """One row an answer, with `iou` (0 where there is no box); of one shard, or of all; read once, so not to be
        changed in place.

        Raises ValueError if a file is damaged.
        """
        if shard is None:
            return pd.concat([self.records(number) for number in self.shards], ignore_index=True)
        if shard not in self._read:
            path = self.folder / f"{shard:05d}.parquet"
            content = path.read_bytes()
            if zlib.crc32(content) != self._checksums(shard)["records"]:
                raise _damaged(path, "it is not what was written")
            frame = pd.read_parquet(io.BytesIO(content))
            target = np.stack([self.truth[query_id] for query_id in frame["query_id"]])
            self._read[shard] = frame.assign(iou=np.nan_to_num(bx.iou(frame[BOX].to_numpy(), target)))
        return self._read[shard]

    def unanswered(self) -> set[str]:
        """The queries whose image could not be read."""
        return self._unanswered

    @functools.cached_property
    def _unanswered(self) -> set[str]:
        records = self.records()
        return set(records.loc[records["failure"].str.startswith(UNREADABLE), "query_id"])

    def _tensors(self, shard: int, names: Iterable[str] | None = None) -> Iterator[np.ndarray]:
        """Tensors of a shard, by default the packed maps of every query in turn; each is checked when it is first read.

        Raises ValueError if the file is damaged.
        """
        path = self.folder / f"{shard:05d}.safetensors"
        checksums = self._checksums(shard)
        try:
            with safe_open(path, "np") as file:
                for name in names or [f"maps/{place}" for place in range(len(file.keys()) - 1)]:
                    tensor = file.get_tensor(name)
                    if checksums.get(name) not in (CHECKED, zlib.crc32(tensor)):
                        raise ValueError(f"{name} is not what was written")
                    checksums[name] = CHECKED
                    yield tensor
        except (OSError, SafetensorError, ValueError) as error:
            raise _damaged(path, error) from error

    def _checksums(self, shard: int) -> dict[str, int]:
        """What the tensors and records of a shard were written with; CHECKED where they were found undamaged."""
        if shard not in self._known:
            path = self.folder / f"{shard:05d}.safetensors"
            try:
                with safe_open(path, "np") as file:
                    self._known[shard] = json.loads(file.metadata()["checksums"])
            except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
                raise _damaged(path, error) from error
        return self._known[shard]

    def maps(self, shard: int) -> Iterator[np.ndarray]:
        """The maps [n, 4, L, H, h, w] float16 of each query of a shard in turn; rows as in `records(shard)`."""
        return map(unpack, self._tensors(shard))

    def statistics(self, shard: int | None = None) -> np.ndarray:
        """Per-head statistics [n, 4, L, H, 4] of one shard or of all answers, rows as in `records()`."""
        if shard is None:
            return np.concatenate([self.statistics(number) for number in self.shards])
        return next(self._tensors(shard, ["statistics"]))

    def candidates(self, maps: bool = False) -> Iterator[Candidates]:
        """The candidates of each query in turn, as a selector sees them, but for those whose image was unreadable."""
        queries = self.queries.set_index("query_id")
        for shard in self.shards:
            frame = self.records(shard)
            statistics = self.statistics(shard)
            groups = frame.groupby("query_id", sort=False)
            images = self.maps(shard) if maps else itertools.repeat(None)
            for (query_id, rows), image in zip(groups, images):
                if rows["failure"].iloc[0].startswith(UNREADABLE):
                    continue
                query = queries.loc[query_id]
                yield Candidates(
                    query_id=query_id, category=query["category"], width=query["width"], height=query["height"],
                    boxes=rows[BOX].to_numpy(),
                    **{name: rows[STORED_AS.get(name, name)].tolist() for name in PER_TOKEN},
                    coordinate_tokens=rows["coordinate_tokens"].tolist(), statistics=statistics[rows.index],
                    maps=image,
                )  # fmt: skip


def _damaged(path: Path, error: object) -> ValueError:
    return ValueError(f"{path} is damaged ({error}); delete it and run again, the rest is kept")
