"""Where queries are sampled: on this machine, or on the machines of a Ray cluster."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from acs_lib.profiles import LVLMSpec
from acs_lib.runs import local
from acs_lib.runs.ray_cluster import cluster


def backend(name: str, lvlms: Sequence[LVLMSpec]) -> AbstractContextManager[Callable]:
    """Within this context: the backend of `store.fill` for some LVLMs: 'local' or 'ray'.

    ValueError for another name, UserError as `local.processes` and `ray_cluster.cluster`.
    """
    if name == "local":
        return local.backend(lvlms)
    if name == "ray":
        return cluster()
    raise ValueError(f"unknown engine {name!r}; choose local or ray")
