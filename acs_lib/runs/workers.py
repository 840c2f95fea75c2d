"""Where queries are sampled: on this machine, or on the machines of a Ray cluster."""

import contextlib
from collections.abc import Sequence

import torch

from acs_lib.lvlms.checkpoint import is_embedded
from acs_lib.profiles import LVLMSpec
from acs_lib.runs.local import processes
from acs_lib.runs.ray_cluster import cluster


@contextlib.contextmanager
def backend(name: str, lvlms: Sequence[LVLMSpec]):
    """Within this context: the backend of `store.fill` for some LVLMs: 'local' or 'ray'.

    Locally, tiny LVLMs are sampled by a process a core, and any by a process a GPU where there are several. A large one
    on the CPU or on one GPU is sampled by this process: on the CPU it needs all threads, and memory for one. ValueError
    for another name, RuntimeError as `ray_cluster.cluster`.
    """
    if name == "local":
        if torch.cuda.device_count() > 1 or all(map(is_embedded, lvlms)):
            with processes() as found:
                yield found
        else:
            yield map
    elif name == "ray":
        with cluster() as found:
            yield found
    else:
        raise ValueError(f"unknown engine {name!r}; choose local or ray")
