"""A form in a notebook to ask `ground` with."""

from typing import Any

from acs_lib import paths
from acs_lib.core.extras import load_extra
from acs_lib.grounding.api import Grounding, ground, samples, usual_settings
from acs_lib.lvlms.adapter import LVLM
from acs_lib.method.baselines import METHODS


def explore(lvlm: LVLM) -> Any:
    """A form to ask `ground` with: image, object, selector, samples, temperature, top-p, seed, and a button. It works
    where a notebook is live; a static page shows a sentence instead. ImportError without ipywidgets."""
    display, widgets = load_extra("IPython.display", "notebooks").display, load_extra("ipywidgets", "notebooks")

    class Form(widgets.interactive):  # type: ignore[name-defined]  # an extra, loaded by its name
        def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
            told = "A form to choose image, object and selector with: open this notebook in JupyterLab and run it."
            return {**super()._repr_mimebundle_(**kwargs), "text/plain": told}

    def answer(
        image: str, category: str, selector: str, samples: int, temperature: float, top_p: float, seed: int
    ) -> Grounding | None:
        try:
            result = ground(lvlm, paths.ROOT / image, category, selector, samples, temperature, top_p, seed)
        except (ValueError, OSError) as error:
            display({"text/plain": f"error: {error}"}, raw=True)
            return None
        display(result)
        return result

    known, usual = samples(), usual_settings(lvlm)
    scenes = [path.removeprefix(f"{paths.ROOT}/") for path in known["image"].unique()]
    return Form(
        answer,
        {"manual": True, "manual_name": "Find it"},
        image=widgets.Combobox(value=scenes[0], options=scenes, ensure_option=False, layout={"width": "32em"}),
        category=widgets.Text(value=known["category"][0], description="object"),
        selector=widgets.Dropdown(options=METHODS),
        samples=widgets.IntSlider(usual.samples, 1, 30),
        temperature=widgets.FloatSlider(usual.temperature, min=0.1, max=1.5, style={"description_width": "initial"}),
        top_p=widgets.FloatSlider(usual.top_p, min=0.1, max=1.0, description="top-p"),
        seed=widgets.IntText(0),
    )
