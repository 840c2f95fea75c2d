"""acs-kit: choose the best of several LVLM boxes by the LVLM's own attention (arXiv 2606.01612).

from acs_lib import ground, load_lvlm

result = ground(load_lvlm(), "photo.png", "soccer ball")
result.box, result.quality, result.table
dog, car = ground(load_lvlm(), "photo.png", ["dog", "car"])
"""

__version__ = "0.1.0"
__all__ = ["Grounding", "ground", "load_lvlm", "score"]


def __getattr__(name: str):
    """The public names are loaded when they are asked for: they bring torch."""
    if name in __all__:
        from acs_lib.grounding import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
