"""A web page on this machine for `ground`: picture, objects and LVLM in; candidates, chosen box and attention out.

`acs demo` serves it, and `demo/app.py` where it is hosted. It asks `acs_lib.grounding` and computes nothing itself.
Uploads lie in a folder that is removed at the end; nothing is told to anybody, and nothing is fetched for the page.
"""

import contextlib
import json
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import typer
from PIL import Image

from acs_lib import profiles
from acs_lib.core import boxes as bx
from acs_lib.core.candidates import COORDINATES
from acs_lib.core.errors import UserError, lacks_memory
from acs_lib.core.extras import load_extra
from acs_lib.core.images import read_image
from acs_lib.grounding.api import ACS_FREE, Grounding, ground, samples
from acs_lib.grounding.picture import SIDE, attention_panel, candidates_panel, draw_heads, head_at
from acs_lib.lvlms.checkpoint import is_embedded
from acs_lib.lvlms.load import DEFAULT_LVLM, load_lvlm, lvlm_spec, patience
from acs_lib.method.baselines import METHODS

LARGEST = 30  # MB of an upload
KEPT = 3600  # seconds that an upload, and the answers to a visitor who has gone, are kept
LOCAL = "127.0.0.1", "localhost", "::1"
USUAL, ALL = "usual", "all"  # heads, coordinates
EXAMPLES = 6
WORDS = """# A better box by attention
An LVLM writes several boxes for one object; its own attention chooses among them ([arXiv
2606.01612](https://arxiv.org/abs/2606.01612)). The embedded LVLMs know the 50 icons of scenes like those below and
nothing of photographs."""


def objects_of(text: str) -> list[str]:
    """The objects that a visitor names, separated by commas or lines; each once."""
    names = [" ".join(name.split()) for name in (text or "").replace("\n", ",").split(",")]
    return list(dict.fromkeys(filter(None, names)))


def ask(
    image: str | None, objects: str, lvlm: str, allowed: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda sentence: None, **settings,
) -> tuple[list[Grounding], list[str]]:  # fmt: skip
    """The answers, one an object, and what there is to say of them, a sentence each; no answers where something is
    wrong that a visitor can mend.

    image: a file; objects: see `objects_of`; lvlm: see `lvlm_spec`, one of `allowed` if that is given
    tell: gets a sentence about what is being done; settings: of `ground`
    """
    try:
        if image is None:
            raise ValueError("choose a picture, or one of the samples")
        if not (names := objects_of(objects)):
            raise ValueError("name the object to look for, such as 'sports ball'; several with commas between them")
        if allowed is not None and lvlm not in allowed:
            raise ValueError(f"this page asks {', '.join(allowed)} only; acs demo on your own machine asks any LVLM")
        picture, spec = _read(Path(image)), lvlm_spec(lvlm)
        tell("; ".join([f"loading {spec.name}", *patience(spec)]))
        loaded = load_lvlm(lvlm)
        tell(f"asking {spec.name} {settings.get('samples', 10) + 1} times for {', '.join(names)}")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            found = ground(loaded, picture, names, **settings)
    except (ValueError, OSError, ImportError, UserError) as error:
        return [], [str(error)]
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        return [], [f"out of memory ({error}); ask for fewer samples or objects, or take a smaller LVLM"]
    sentences = [str(each.message) for each in told if issubclass(each.category, UserWarning)]
    return found, [*(each.summary for each in found), *dict.fromkeys(sentences)]


def _read(path: Path) -> Image.Image:
    """The upload; ValueError names it as the visitor does."""
    try:
        return read_image(path)
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error


def candidates_table(found: Grounding) -> pd.DataFrame:
    """The candidates as a visitor reads them, the chosen one marked: one row each, what is not there empty."""
    table = found.table
    boxes = [", ".join(f"{side:.0f}" for side in box) if np.isfinite(box).all() else "" for box in
             table[list(COORDINATES)].to_numpy(float)]  # fmt: skip
    numbers = {
        name: [f"{value:.3g}" if np.isfinite(value) else "" for value in table[column].astype(float)]
        for name, column in (("score", "score"), ("predicted IoU", "predicted_iou"), ("log-prob", "logprob"))
    }
    names = ["greedy" if row == 0 else "chosen" if row == found.chosen else "" for row in range(len(table))]
    if found.chosen == 0:
        names[0] = "greedy, chosen"
    looks = {"look": table["look"]} if "look" in table else {}
    return pd.DataFrame(
        {"candidate": range(len(table)), "": names, "box": boxes, **numbers, **looks, "answer": table["text"]}
    )


def head_names(found: Grounding) -> list[str]:
    """How the heads are called whose attention can be looked at: those of D_c, all, and each."""
    layers, heads = found.candidates.statistics.shape[2:4]
    return [USUAL, ALL, *(f"layer {layer}, head {head}" for layer, head in np.ndindex(layers, heads))]


def _read_at(found: Grounding, coordinate: str) -> Sequence[int]:
    """The coordinates of that name: one of COORDINATES, ALL or USUAL."""
    if coordinate in COORDINATES:
        return [COORDINATES.index(coordinate)]
    return range(4) if coordinate == ALL else found.coordinates


def map_of(found: Grounding, candidate: int, head: str = USUAL, coordinate: str = USUAL) -> Image.Image:
    """Where a candidate's coordinate tokens look, with its box; `head` is one of `head_names`, `coordinate` USUAL, ALL
    or one of COORDINATES."""
    if head in (USUAL, ALL):
        heads = found.heads if head == USUAL else ()
    else:
        layer, number = (int(word) for word in head.replace(",", "").split()[1::2])
        heads = ((layer, number),)
    share = found.attention_of(candidate, heads, _read_at(found, coordinate))
    return attention_panel(found.image, share, found.candidates.boxes[candidate])


def heads_of(found: Grounding, candidate: int, coordinate: str = USUAL) -> Image.Image:
    """The maps of all layers and heads of a candidate, D_c framed."""
    maps = np.nan_to_num(found.candidates.maps[candidate][list(_read_at(found, coordinate))].mean(0))
    return draw_heads(maps, found.heads)


def head_clicked(found: Grounding, x: float, y: float) -> str:
    """The head whose map is at a pixel of `heads_of`, as one of `head_names`; USUAL beside them."""
    at = head_at(x, y, *found.candidates.statistics.shape[2:4])
    return USUAL if at is None else f"layer {at[0]}, head {at[1]}"


def candidate_clicked(found: Grounding, x: float, y: float) -> int | None:
    """The candidate whose box is at a pixel of `candidates_panel`, the smallest of several; None beside them."""
    at, boxes = np.array([x, y]) * max(found.image.size) / SIDE, found.candidates.boxes
    rows = np.flatnonzero(((boxes[:, :2] <= at) & (at <= boxes[:, 2:])).all(1))
    return int(rows[bx.area(boxes[rows]).argmin()]) if len(rows) else None


HOVER = """() => {
    let row = null, soon = null
    document.addEventListener("mousemove", (event) => {
        const cell = event.target.closest("#table [data-row]")
        if (cell?.dataset.row === row || !(event.movementX || event.movementY)) return
        row = cell?.dataset.row
        clearTimeout(soon)
        if (cell) soon = setTimeout(() => {
            for (const kind of ["mousedown", "mouseup"]) cell.dispatchEvent(new MouseEvent(kind, {bubbles: true}))
        }, 250)
    })
    document.addEventListener("mousedown", () => clearTimeout(soon), true)
}"""  # in the visitor's browser: a row of scores on which a mouse comes to rest counts as clicked


def build(lvlms: Sequence[str], folder: str | Path, any_lvlm: bool = True):
    """The page, a `gradio.Blocks`; ImportError without Gradio.

    lvlms: what visitors choose from, the first one chosen; any_lvlm: whether they may name others
    folder: where pictures to save are written
    """
    gr = load_extra("gradio", "demo")

    def find(
        image, objects, lvlm, selector, count, temperature, top_p, zoom, seed, progress=gr.Progress()  # noqa: B008
    ):  # fmt: skip
        settings = dict(selector=selector, samples=int(count), temperature=temperature, top_p=top_p, seed=int(seed))
        found, sentences = ask(
            image, objects, lvlm, None if any_lvlm else lvlms, lambda sentence: progress(None, sentence),
            zoom=zoom if zoom > 1 else None, **settings,
        )  # fmt: skip
        names = [each.category for each in found]
        choice = gr.Radio(names, value=names[0] if names else None, visible=len(names) > 1)
        return found, "\n\n".join(sentences), choice, gr.Column(visible=bool(found))

    def chosen_answer(found, name):
        return next((each for each in found if each.category == name), None)

    def show(found, name):
        one = chosen_answer(found, name)
        if one is None:
            return [gr.skip()] * 6
        boxes, scores = one.candidates.boxes, one.table["score"].to_numpy(float)
        panel, *_ = candidates_panel(one.image, boxes, scores, one.chosen, one.box)
        picture = Path(tempfile.mkdtemp(dir=folder)) / "found.png"
        one.save(picture)
        rows = [(f"{row}, greedy" if row == 0 else str(row), row) for row in range(len(one.table))]
        return [
            panel, candidates_table(one), json.dumps(one.to_dict()), str(picture),
            gr.Dropdown(rows, value=one.chosen or 0), gr.Dropdown(head_names(one), value=USUAL),
        ]  # fmt: skip

    def look(found, name, candidate, head, coordinate):
        one = chosen_answer(found, name)
        if one is None:
            return [gr.skip()] * 2
        return [map_of(one, candidate, head, coordinate), heads_of(one, candidate, coordinate)]

    def row_clicked(event: gr.SelectData):
        return int(event.row_value[0])

    def box_clicked(found, name, event: gr.SelectData):
        row = candidate_clicked(chosen_answer(found, name), *event.index)
        return gr.skip() if row is None else row

    def map_clicked(found, name, event: gr.SelectData):
        return head_clicked(chosen_answer(found, name), *event.index)

    with gr.Blocks(title="acs-kit", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        answers = gr.State([], time_to_live=KEPT)
        gr.Markdown(WORDS)
        with gr.Row():
            with gr.Column(min_width=300):
                image = gr.Image(
                    label="Picture", type="filepath", sources=["upload", "clipboard"], height=320, elem_id="picture",
                    buttons=["fullscreen"],
                )  # fmt: skip
                image.preprocess = lambda payload: payload and payload.path  # the file as it came: `ask` reads it
                objects = gr.Textbox(label="Objects", placeholder="cherry, car", elem_id="objects")
                lvlm = gr.Dropdown(
                    list(lvlms), value=lvlms[0], label="LVLM", allow_custom_value=any_lvlm,
                    info="or a folder, or a name on the model hub" if any_lvlm else None,
                )  # fmt: skip
                with gr.Accordion("How to choose", open=False):
                    selector = gr.Dropdown(list(METHODS), value=ACS_FREE, label="Selector")
                    count = gr.Slider(1, 30, value=10, step=1, label="Sampled answers (N)")
                    own = dict(placeholder="that of the LVLM's D_c", step=0.1)
                    temperature = gr.Number(label="Temperature", minimum=0.05, maximum=5, **own)
                    top_p = gr.Number(label="Top-p", minimum=0.05, maximum=1, **own)
                    zoom = gr.Slider(1, 4, value=1, step=0.5, label="Look again, so many times closer (1: not)")
                    seed = gr.Number(value=0, minimum=0, precision=0, label="Seed")
                button = gr.Button("Find it", variant="primary", elem_id="find")
                known = samples().drop_duplicates("image").head(EXAMPLES)
                gr.Examples(
                    known[["image", "category"]].to_numpy().tolist(), [image, objects], label="Samples",
                    cache_examples=False, api_visibility="private",
                )  # fmt: skip
            with gr.Column(min_width=300, scale=2):
                told = gr.Markdown(elem_id="told")
                name = gr.Radio([], label="Object", visible=False)
                with gr.Column(visible=False) as results:
                    drawn = dict(interactive=False, show_label=False, buttons=["fullscreen"])
                    with gr.Row():
                        with gr.Column(min_width=280):
                            gr.Markdown(
                                "**Candidates**: the lighter, the higher the score; red is the chosen one; click on any"
                            )
                            candidates = gr.Image(alt_text="candidates", elem_id="candidates", **drawn)
                        with gr.Column(min_width=280):
                            gr.Markdown("**Attention** of the coordinate tokens of the candidate below, and its box")
                            attention = gr.Image(alt_text="attention", elem_id="attention", **drawn)
                    with gr.Row():
                        candidate = gr.Dropdown([], label="Candidate", min_width=100, elem_id="candidate")
                        head = gr.Dropdown(
                            [USUAL], value=USUAL, label="Heads (usual: D_c)", min_width=140, elem_id="head"
                        )
                        coordinate = gr.Dropdown(
                            [USUAL, ALL, *COORDINATES], value=USUAL, label="Coordinates", min_width=100
                        )
                    gr.Markdown("**Scores**: rest on a row, or click on it, to see its attention")
                    table = gr.Dataframe(
                        interactive=False, max_chars=60, elem_id="table", buttons=["copy"], show_label=False
                    )
                    gr.Markdown("**Attention by layer (down) and head (across)**: click on a map; red are those of D_c")
                    maps = gr.Image(alt_text="attention by layer and head", elem_id="maps", **drawn)
                    save = gr.DownloadButton("Save the picture", elem_id="save")
                    as_json = gr.JSON(label="JSON", buttons=["copy"], max_height=240, elem_id="json")
        asked = [image, objects, lvlm, selector, count, temperature, top_p, zoom, seed]
        shown = [candidates, table, as_json, save, candidate, head]
        looked = dict(fn=look, inputs=[answers, name, candidate, head, coordinate], outputs=[attention, maps])
        quiet = dict(api_visibility="private", show_progress="hidden")
        finding = dict(
            fn=find, inputs=asked, outputs=[answers, told, name, results], concurrency_id="lvlm", concurrency_limit=1,
            api_visibility="private", show_progress="full", show_progress_on=told,
        )  # fmt: skip
        for begun in (button.click(**finding), objects.submit(**finding), name.input(lambda: None, **quiet)):
            begun.then(show, [answers, name], shown, **quiet).then(**looked, **quiet)
        for chosen in (candidate, head, coordinate):
            chosen.input(**looked, **quiet)
        candidates.select(box_clicked, [answers, name], candidate, **quiet).then(**looked, **quiet)
        table.select(row_clicked, None, candidate, **quiet).then(**looked, **quiet)
        maps.select(map_clicked, [answers, name], head, **quiet).then(**looked, **quiet)
    return page


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Within this context a variable of the environment has that value."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def serving(host: str = LOCAL[0], port: int | None = None, lvlm: str = DEFAULT_LVLM) -> Iterator[str]:
    """Within this context the page is served; gives its address. Afterwards the uploads are gone.

    host: whom it answers: this machine alone by default. Others may choose the embedded LVLMs and `lvlm` only: names of
        a visitor's would be fetched, or be folders of this machine
    port: the first free one from 7860 on by default; lvlm: what is chosen at first
    ImportError without Gradio, OSError if the port is taken.
    """
    gr = load_extra("gradio", "demo")
    known = [spec.name for spec in profiles.known_lvlms().values() if host in LOCAL or is_embedded(spec)]
    font = gr.themes.Font
    theme = gr.themes.Default(font=[font("sans-serif")], font_mono=[font("monospace")])
    lvlm_spec(lvlm)  # or an error now
    with tempfile.TemporaryDirectory(prefix="acs-demo-") as folder, _environment("GRADIO_TEMP_DIR", folder):
        page = build(list(dict.fromkeys([lvlm, *known])), folder, any_lvlm=host in LOCAL)
        try:
            page.launch(
                server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, show_error=False, share=False,
                inbrowser=False, max_file_size=f"{LARGEST}mb", run_history=False, enable_monitoring=False,
                ssr_mode=False, pwa=False, mcp_server=False, footer_links=[], state_session_capacity=50, theme=theme,
                js=HOVER,
            )  # fmt: skip
            yield page.local_url
        finally:
            page.close(verbose=False)


def serve(host: str = LOCAL[0], port: int | None = None, lvlm: str = DEFAULT_LVLM) -> None:
    """`serving` until it is interrupted (KeyboardInterrupt) or ended (SIGTERM); prints the address."""
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with serving(host, port, lvlm) as address:
            typer.echo(f"{address} (Ctrl-C ends it)")
            ended.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
