"""Where queries are sampled: in this process, or on the machines of a Ray cluster."""

import contextlib

from acs_lib.runs.ray_cluster import cluster


@contextlib.contextmanager
def backend(name: str):
    """Within this context: the backend of `store.fill`: 'local' (this process) or 'ray'."""
    if name == "local":
        yield map
    elif name == "ray":
        with cluster() as found:
            yield found
    else:
        raise ValueError(f"unknown engine {name!r}; choose local or ray")
