"""acs-kit: choose the best of several LVLM boxes by the LVLM's own attention (arXiv 2606.01612).

from acs_lib import detect, ground, load_lvlm

result = ground(load_lvlm(), "photo.png", "soccer ball")
result.box, result.quality, result.table
dog, car = ground(load_lvlm(), "photo.png", ["dog", "car"])
dogs = detect(load_lvlm(), "photo.png", "dog")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acs_lib.grounding.api import Grounding, ground, load_lvlm, score
    from acs_lib.grounding.detect import Detections, detect
else:

    def __getattr__(name: str):
        """The public names are loaded when they are asked for: they bring torch."""
        if name in __all__:
            from acs_lib.grounding import api, detect

            return getattr(detect if name in ("Detections", "detect") else api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.2.0"
__all__ = ["Detections", "Grounding", "detect", "ground", "load_lvlm", "score"]
