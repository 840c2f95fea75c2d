"""A run directory: the answers and attention of one LVLM on one list of queries.

    run.json                 the key (a digest of everything that determines the content) and what it was made of
    queries.parquet          one row a query, with the ground truth
    00000.parquet            one row an answer: text, tokens, log-probabilities, box, or why there is none
    00000.safetensors        the same rows' `maps` [n, 4, L, H, h, w] float16 and `statistics` [n, 4, L, H, 4]

A shard holds the answers to SHARD queries. It is written aside and renamed, its Parquet file last, so a shard is
whole or absent: a killed run goes on where it stopped and ends with the same bytes.
"""

import fcntl
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from acs_lib import boxes as bx
from acs_lib.candidates import Candidates
from acs_lib.datasets.coco import TRUTH
from acs_lib.paths import replacing, write_text

SHARD = 64  # queries
PER_TOKEN = ("logprobs", "entropies", "self_certainty", "confidence")
BOX = ["box_x1", "box_y1", "box_x2", "box_y2"]
Answers = tuple[Candidates, list[dict]]


def digest(content) -> str:
    """SHA-256 of a JSON-like value, the same for equal values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def query_key(query_id: str) -> int:
    """A number that depends on the query alone, to key its noise with."""
    return zlib.crc32(query_id.encode())


@contextmanager
def locked(folder: Path):
    """Only one process at a time writes to a run directory; a second one is refused with RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"another process is writing to {folder}; wait for it, or stop it") from error
        yield


def collect(
    folder: Path,
    queries: pd.DataFrame,
    answer: Callable[[pd.DataFrame], list[Answers]],
    key_parts: dict,
    bytes_per_query: int,
    batch: int = 16,
    progress: str = "sampling",
    engine: Callable[..., Iterable[list[Answers]]] = map,
) -> "Run":
    """Fill a run directory with `answer(batch of queries)` for every query, and return it.

    `key_parts` is everything besides the queries that determines the answers; a directory with another key is emptied
    first. `answer` gives, for each query, its Candidates and records; a query that it leaves out has no answer rows.
    `engine(answer, batches)` yields what `answer` gives for each batch, in order: `map` here, a cluster in
    `ray_engine`. Raises OSError if the disk has no room for what is still to come (`bytes_per_query`).
    """
    folder = Path(folder)
    key = digest({**key_parts, "queries": digest(queries.to_dict("list")), "shard": SHARD})
    with locked(folder):
        info = folder / "run.json"
        if not info.exists() or json.loads(info.read_text()).get("key") != key:
            for path in folder.iterdir():
                if path.name != ".lock":
                    path.unlink()
            with replacing(folder / "queries.parquet") as aside:
                queries.to_parquet(aside, index=False)
            write_text(info, json.dumps({"key": key, **key_parts}, indent=1, default=str))
        shards = [queries.iloc[start : start + SHARD] for start in range(0, len(queries), SHARD)]
        missing = [number for number in range(len(shards)) if not _is_whole(folder, number)]
        need = bytes_per_query * sum(len(shards[number]) for number in missing)
        free = shutil.disk_usage(folder).free
        if need > free:
            raise OSError(
                f"{folder} needs {need / 1e9:.1f} GB more and the disk has {free / 1e9:.1f} GB; free some, or lower "
                "the number of queries in the profile"
            )
        with tqdm(total=len(queries), desc=progress, unit="query", mininterval=2) as bar:
            bar.update(len(queries) - sum(len(shards[number]) for number in missing))
            parts = {
                number: [shards[number].iloc[start : start + batch] for start in range(0, len(shards[number]), batch)]
                for number in missing
            }
            found = iter(engine(answer, [part for number in missing for part in parts[number]]))
            for number in missing:
                answers = []
                for part in parts[number]:
                    answers += next(found)
                    bar.update(len(part))
                write_shard(folder, number, answers)
    return Run(folder)


def write_shard(folder: Path, number: int, answers: list[Answers]) -> None:
    """Write one shard, maps first and records last."""
    rows = []
    for candidates, records in answers:
        for index, record in enumerate(records):
            rows.append(
                {
                    "query_id": candidates.query_id,
                    "candidate": index,
                    **record,
                    **dict(zip(BOX, candidates.boxes[index].tolist())),
                    **{name: getattr(candidates, name)[index] for name in PER_TOKEN},
                    "coordinate_tokens": candidates.coordinate_tokens[index],
                }
            )
    tensors = {}
    if answers:
        tensors = {
            "maps": np.concatenate([candidates.maps for candidates, _ in answers]).astype(np.float16),
            "statistics": np.concatenate([candidates.statistics for candidates, _ in answers]).astype(np.float32),
        }
    with replacing(folder / f"{number:05d}.safetensors") as aside:
        save_file(tensors, aside)
    with replacing(folder / f"{number:05d}.parquet") as aside:
        pd.DataFrame(rows).to_parquet(aside, index=False)


def _is_whole(folder: Path, number: int) -> bool:
    """Both files are there and their headers can be read."""
    tensors, records = folder / f"{number:05d}.safetensors", folder / f"{number:05d}.parquet"
    try:
        with safe_open(tensors, "np"):
            pass
        pd.read_parquet(records, columns=[])
    except (OSError, SafetensorError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Run:
    """A finished run directory, read shard by shard."""

    folder: Path

    @property
    def key(self) -> str:
        """Digest of everything that determines the content."""
        return json.loads((self.folder / "run.json").read_text())["key"]

    @property
    def queries(self) -> pd.DataFrame:
        """One row a query (see datasets.coco), with the ground truth."""
        return pd.read_parquet(self.folder / "queries.parquet")

    @property
    def truth(self) -> dict[str, np.ndarray]:
        """query_id -> box [4]."""
        queries = self.queries
        return dict(zip(queries["query_id"], queries[TRUTH].to_numpy()))

    @property
    def shards(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.parquet"))

    def records(self, shard: int | None = None) -> pd.DataFrame:
        """One row an answer, with `iou` (0 where there is no box); of one shard, or of all."""
        if shard is None:
            return pd.concat([self.records(number) for number in self.shards], ignore_index=True)
        frame = pd.read_parquet(self.folder / f"{shard:05d}.parquet")
        if frame.empty:
            return frame.assign(iou=pd.Series(dtype=float))
        truth = self.truth
        target = np.stack([truth[query_id] for query_id in frame["query_id"]])
        return frame.assign(iou=np.nan_to_num(bx.iou(frame[BOX].to_numpy(), target)))

    def tensor(self, name: str, shard: int) -> np.ndarray:
        """'maps' [n, 4, L, H, h, w] or 'statistics' [n, 4, L, H, 4] of one shard, rows as in `records(shard)`."""
        path = self.folder / f"{shard:05d}.safetensors"
        try:
            with safe_open(path, "np") as file:
                return file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run again, the rest is kept") from error

    def statistics(self) -> np.ndarray:
        """Per-head statistics [n, 4, L, H, 4] of all answers, rows as in `records()`."""
        return np.concatenate([self.tensor("statistics", shard) for shard in self.shards])

    def candidates(self, maps: bool = False) -> Iterator[Candidates]:
        """The candidates of each query in turn, as a selector sees them."""
        queries = self.queries.set_index("query_id")
        for shard in self.shards:
            frame = pd.read_parquet(self.folder / f"{shard:05d}.parquet")
            statistics = self.tensor("statistics", shard)
            images = self.tensor("maps", shard) if maps else None
            for query_id, rows in frame.groupby("query_id", sort=False):
                place = rows.index.to_numpy()
                query = queries.loc[query_id]
                yield Candidates(
                    query_id=query_id, category=query["category"], width=query["width"], height=query["height"],
                    boxes=rows[BOX].to_numpy(), **{name: rows[name].tolist() for name in PER_TOKEN},
                    coordinate_tokens=rows["coordinate_tokens"].tolist(), statistics=statistics[place],
                    maps=None if images is None else images[place].astype(np.float32),
                )  # fmt: skip


def to_tensor(maps: np.ndarray) -> torch.Tensor:
    """Maps [n, 4, L, H, h, w] as a tensor; NaN (an answer without a box) becomes 0."""
    return torch.nan_to_num(torch.from_numpy(np.ascontiguousarray(maps)))
