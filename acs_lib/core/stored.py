"""What the method needs of the stored answers of one LVLM to one split; `runs.store.Run` is one."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pandas as pd


class StoredAnswers(Protocol):
    """Answers and their attention maps in numbered shards, each small enough for the memory.

    queries: one row a query, with query_id and image_id
    """

    @property
    def shards(self) -> Sequence[int]: ...

    @property
    def queries(self) -> pd.DataFrame: ...

    def records(self, shard: int, /) -> pd.DataFrame:
        """One row an answer of the shard: query_id, candidate, failure ('' where there is a box) and iou (0-1)."""
        ...

    def maps(self, shard: int, /) -> Iterator[np.ndarray]:
        """The maps [n, 4, L, H, h, w] of each query of the shard in turn; rows as in `records`."""
        ...
