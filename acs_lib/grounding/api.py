"""A box for an object in an image of your own: candidates, attention and a selector, as in the paper's steps 1 to 6.

Candidates come from `method.sampling.sample_candidates`, as for the notebooks. D_c and the regressor are files
that belong to one LVLM: `head_set.json` and `regressor.safetensors`. They are looked for beside the LVLM's weights,
then in `data/calibrated/<LVLM's name>`; `acs calibrate` finds them for another LVLM. Both say what they belong to
(`method.origin`): how their answers were drawn and read is the default here, another temperature or top-p is a warning,
other weights, another question or rows that differ between both are refused. Files of earlier versions do not say; they
are taken with a warning, and `profiles.sampling_of` has the defaults.
"""

import base64
import difflib
import html
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.core.candidates import COORDINATES, ENTROPY, Candidates, Heads
from acs_lib.core.errors import UserError
from acs_lib.core.files import file_digest, query_key
from acs_lib.core.images import Picture, picture_id, read_image
from acs_lib.datasets import coco
from acs_lib.grounding.answers import Answer, as_answer, compared
from acs_lib.grounding.picture import draw_picture, encode, write
from acs_lib.lvlms.adapter import LVLM
from acs_lib.lvlms.checkpoint import calibration_folder, is_embedded
from acs_lib.lvlms.load import DEFAULT_LVLM, load_lvlm, loaded_digest
from acs_lib.method import regressor
from acs_lib.method import sampling as sampling_
from acs_lib.method.baselines import METHODS, SELECTORS, slug
from acs_lib.method.baselines import p_true as p_true_
from acs_lib.method.baselines.attention import spatial_entropy
from acs_lib.method.baselines.consensus import FUSIONS
from acs_lib.method.baselines.likelihood import p_true, sequence_logprob
from acs_lib.method.effort import best, sample_until
from acs_lib.method.forced import force_candidates
from acs_lib.method.heads import HeadSet
from acs_lib.method.maps import mean_share
from acs_lib.method.origin import SMALL, Origin, check_origin, usual_sampling, warn_of_other_sampling
from acs_lib.method.regressor import AttentionIoURegressor, predicted_iou
from acs_lib.method.selection import Fusion, Selector, acs_free, acs_learned, choose
from acs_lib.method.thresholds import EFFORT, RISK, check_sampling, load_thresholds
from acs_lib.method.zoom import Window, cut_out, joined, mapped_back, placed, window_around
from acs_lib.profiles import Sampling, sampling_of

SAMPLES = paths.EMBEDDED / "samples"  # scenes that are shipped
ALL, AUTO = "all", "auto"  # of effort
ACS_FREE, ACS_LEARNED, SPATIAL, P_TRUE = "acs-free", "acs-learned", "spatial-entropy", "p-true"
SETTINGS = "samples", "temperature", "top_p", "seed", "max_new_tokens"  # of sampling, told with an answer


def _calibrated(lvlm: LVLM, file_name: str) -> Path | None:
    """The LVLM's file of that name, if there is one."""
    places = (Path(lvlm.model.name_or_path), calibration_folder(lvlm))
    return next((folder / file_name for folder in places if (folder / file_name).is_file()), None)


def calibrated_with(lvlm: LVLM, head_set: Path | None, regressor: Path | None) -> dict[str, str | None]:
    """SHA-256 of the files of D_c and of the regressor, as given or as found beside the LVLM; None without one."""
    files = head_set or _calibrated(lvlm, "head_set.json"), regressor or _calibrated(lvlm, "regressor.safetensors")
    return {name: file_digest(file) if file else None for name, file in zip(("head_set", "regressor"), files)}


def _check_belongs(what: str, found: HeadSet | AttentionIoURegressor, given: object, lvlm: LVLM) -> None:
    """ValueError if what was found for other weights or another question; a warning if a file does not say."""
    named = what if given is found else f"{what} {given}"
    if found.origin is not None:
        check_origin(named, found.origin, lvlm.name, loaded_digest(lvlm), lvlm.question)
    elif given is not found:
        warnings.warn(
            f"{given} does not say with which weights, question and sampling it was found, since an earlier version "
            "wrote it; acs calibrate writes it anew",
            stacklevel=4,
        )


def head_set_of(lvlm: LVLM, given: HeadSet | str | Path | None) -> HeadSet | None:
    """D_c as given, or as found beside the LVLM; ValueError if it belongs to another one or is none."""
    path = given or _calibrated(lvlm, "head_set.json")
    if path is None:
        return None
    try:
        found = path if isinstance(path, HeadSet) else HeadSet.load(Path(path), lvlm.name)
        inside = [0 <= layer < lvlm.layers and 0 <= head < lvlm.heads for layer, head in found.heads]
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ValueError(f"{path} holds no head set; make it anew with acs calibrate") from error
    if found.lvlm != lvlm.name:
        raise ValueError(f"the head set belongs to the LVLM {found.lvlm!r}, not {lvlm.name!r}; acs calibrate finds one")
    if not inside or not all(inside):
        raise ValueError(
            f"the (layer, head) pairs {found.heads} do not fit the {lvlm.layers} layers x {lvlm.heads} heads of "
            f"{lvlm.name}; acs calibrate finds a head set that does"
        )
    _check_belongs("the head set", found, path, lvlm)
    return found


def regressor_of(lvlm: LVLM, given: AttentionIoURegressor | str | Path | None) -> AttentionIoURegressor | None:
    """The regressor as given, or as found beside the LVLM; ValueError if it belongs to another one or is none."""
    path = given or _calibrated(lvlm, "regressor.safetensors")
    if path is None:
        return None
    try:
        found = path if isinstance(path, AttentionIoURegressor) else regressor.load(Path(path), lvlm.name)
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValidationError) as error:
        raise ValueError(f"{path} holds no regressor; make it anew with acs calibrate --regressor") from error
    if (size := (found.settings["layers"], found.settings["heads"])) != (lvlm.layers, lvlm.heads):
        raise ValueError(
            f"the regressor is for {size[0]} layers x {size[1]} heads, and {lvlm.name} has {lvlm.layers} x "
            f"{lvlm.heads}; acs calibrate --regressor trains one that fits"
        )
    _check_belongs("the regressor", found, path, lvlm)
    return found


def origins_of(selector: str, head_set: HeadSet | None, model: AttentionIoURegressor | None) -> list[Origin]:
    """What the files say that they belong to, the one that the selector chooses by first."""
    found = (model, head_set) if slug(selector) == ACS_LEARNED else (head_set, model)
    return [each.origin for each in found if each is not None and each.origin is not None]


def usual_settings(lvlm: LVLM) -> Sampling:
    """How `ground` draws an LVLM's answers unless it is told otherwise."""
    usual = usual_sampling(origins_of(ACS_FREE, head_set_of(lvlm, None), regressor_of(lvlm, None)))
    return sampling_of(lvlm.name, usual=usual)


def samples() -> pd.DataFrame:
    """The objects in the shipped sample scenes: image (path), category, the box x1, y1, x2, y2 and its size."""
    queries, _ = coco.load_queries("samples", SAMPLES / "annotations.json", SAMPLES / "images")
    return queries[["image", "category", *coco.TRUTH, "size"]]


@dataclass(frozen=True, eq=False, repr=False)
class Grounding:
    """Where an LVLM finds one object in one image.

    image: RGB; lvlm, selector: their names; settings: how the candidates were drawn, None where another engine did
    box: [4] xyxy in pixels of the image, None where no answer held one
    chosen: the box's row in `table`, None where it is none of the candidates (fusions)
    score: of the chosen row, higher is better; its scale is the selector's; NaN for greedy's and fusions' boxes
    quality: IoU (0-1) that the regressor predicts for the chosen row; NaN without a regressor and for fusions. A
        regressor is trained on small objects: of others it says nothing, and `summary` warns
    small: up to which share of the image the regressor's objects went
    table: one row a candidate (0 is the greedy answer): candidate, x1, y1, x2, y2 (NaN without a box), text, score,
        logprob (sum over the coordinate tokens), predicted_iou, failure ('' or why there is no box), and look (1 or 2)
        where there was a closer one
    candidates: the same as selectors see them, attention maps included
    heads: D_c as (layer, head), counted from 0; empty if there is no head set
    coordinates: those at which D_c is read, as indices 0-3 of x1, y1, x2, y2; all without a head set
    window: what the second, closer look was at, in pixels of the image; None where there was none
    promise: (risk, threshold): of all questions like those of its calibration at most the share `risk` is answered
        wrongly if answers are given from the score `threshold` on, which is infinite where no such promise can be kept;
        None where none was asked for. Where the chosen row's score is below it, `box` is None
    """

    image: Image.Image
    category: str
    lvlm: str
    selector: str
    settings: Sampling | None
    box: np.ndarray | None
    chosen: int | None
    score: float
    quality: float
    table: pd.DataFrame
    candidates: Candidates
    heads: tuple[tuple[int, int], ...]
    coordinates: tuple[int, ...]
    window: Window | None = None
    small: float = SMALL
    promise: tuple[float, float] | None = None

    @property
    def _rows(self) -> np.ndarray:
        """The chosen row if it holds a box; all rows of the first look with a box where the box was made of them."""
        rows = np.arange(len(self.candidates)) if self.chosen is None else np.array([self.chosen])
        if self.chosen is None and self.window is not None:
            rows = rows[self.table["look"] == 1]
        return rows[self.candidates.parsed[rows]]

    @property
    def attention(self) -> np.ndarray:
        """[h, w] share (sums to 1) of the attention on the image tokens: the chosen box's, mean over D_c's coordinates
        and heads (over all where there is no head set); zeros where no answer held a box."""
        return self.attention_of()

    def attention_of(
        self, candidate: int | None = None, heads: Heads | None = None, coordinates: Sequence[int] | None = None
    ) -> np.ndarray:
        """`attention` of another row of `table`, at other heads (all if empty) or at other coordinates (0-3); zeros for
        an answer without a box."""
        assert self.candidates.maps is not None
        row = self.chosen if candidate is None else candidate
        rows = self._rows if candidate is None else np.array([candidate])[self.candidates.parsed[[candidate]]]
        heads = self.heads if heads is None else heads
        share = mean_share(self.candidates.maps[rows], heads, self.coordinates if coordinates is None else coordinates)
        if self.window is None or row is None or self.table["look"][row] == 1:
            return share
        return placed(share, self.window, *self.image.size)

    @property
    def read(self) -> str:
        """In words, what `attention` is the mean of."""
        at = ", ".join(COORDINATES[index] for index in self.coordinates)
        return f"attention at {at}, mean over {'the heads of D_c' if self.heads else 'all heads'}"

    @property
    def entropies(self) -> pd.DataFrame:
        """Attention entropy in nats of the chosen box, mean over D_c's coordinates: one row a layer, one column a head.
        Low is sharp; even attention has ln(h w). ACS-Free's score is minus the mean over D_c."""
        values = self.candidates.statistics[self._rows][:, list(self.coordinates)][..., ENTROPY].mean((0, 1))
        return pd.DataFrame(values).rename_axis("layer").rename_axis("head", axis=1)

    @property
    def summary(self) -> str:
        """One sentence: what was found, by which method, and how good it is expected to be."""
        if self.box is None and self.promise is not None and self._rows.size:
            return (
                f"'{self.category}' not found: the score of the best box is {self.score:.3g}, and from "
                f"{self.promise[1]:.3g} on at most {self.promise[0]:.0%} of the questions are answered wrongly"
            )
        if self.box is None:
            return f"{self.lvlm} gave no box for '{self.category}'"
        where = ", ".join(f"{value:.0f}" for value in self.box)
        expected = f", predicted IoU {self.quality:.2f}" if np.isfinite(self.quality) else ""
        if expected and bx.area(self.box) > self.small * self.image.width * self.image.height:
            expected += " (by a regressor that knows small objects alone)"
        return f"'{self.category}' at ({where}) px, chosen by {self.selector}{expected}"

    def __repr__(self) -> str:
        return f"<Grounding: {self.summary}>"

    def show(self) -> Image.Image:
        """The candidates with the chosen box, and its attention, side by side. A notebook shows what is returned."""
        boxes, scores = self.candidates.boxes, self.table["score"].to_numpy()
        title = f"{self.category}, {self.selector}"
        return draw_picture(self.image, boxes, scores, self.chosen, self.box, self.attention, title, self.read)

    def save(self, path: str | Path) -> None:
        """Write the picture of `show` (see `picture.write`)."""
        write(self.show(), path)

    def to_dict(self) -> dict:
        """The answer without pixels and attention, ready for JSON; what is not finite is None."""
        rows = self.table.drop(columns=[*COORDINATES]).replace([np.inf, -np.inf], np.nan).astype(object)
        rows = rows.where(rows.notna(), None).to_dict("records")
        boxes = [_finite(box) for box in self.candidates.boxes.round(3)]
        return {
            "category": self.category, "box": None if self.box is None else _finite(self.box.round(3)),
            "score": _finite(self.score), "predicted_iou": _finite(self.quality), "chosen": self.chosen,
            "width": self.image.width, "height": self.image.height, "lvlm": self.lvlm, "selector": self.selector,
            "settings": self.settings and {name: getattr(self.settings, name) for name in SETTINGS},
            **({} if self.window is None else {"window": list(self.window)}),
            **({} if self.promise is None else {"risk": dict(zip(("share", "threshold"), map(_finite, self.promise)))}),
            "candidates": [{**row, "box": box} for row, box in zip(rows, boxes)],
        }  # fmt: skip

    def _repr_png_(self) -> bytes:
        picture = self.show()
        picture.thumbnail((600, 600))  # notebooks keep it beside the HTML
        return encode(picture, ".png")

    def to_coco(self, image_id: int, category_id: int) -> list[dict]:
        """The box in COCO's results format (see `boxes.as_coco`), none where there is none; a score that is none (of
        greedy and fusions) is 0."""
        return [] if self.box is None else bx.as_coco([self.box], [np.nan_to_num(self.score)], image_id, category_id)

    def _repr_html_(self) -> str:
        picture = base64.b64encode(encode(self.show(), ".webp")).decode()
        summary = html.escape(self.summary)
        table = self.table.round(3).to_html(index=False, na_rep="")
        picture = f'<img style="max-width: 60em; width: 100%" alt="{summary}" src="data:image/webp;base64,{picture}">'
        return (
            f"<figure>{picture}<figcaption>{summary}</figcaption></figure><details><summary>{len(self.table)} "
            f"candidates (0 is the greedy answer)</summary>{table}</details>"
        )


def _finite(value: ArrayLike) -> list[float] | float | None:
    return np.asarray(value, float).tolist() if np.isfinite(value).all() else None


def _predicted(model: AttentionIoURegressor | None, candidates: Candidates) -> np.ndarray:
    """[n] `regressor.predicted_iou`; NaN without a regressor."""
    return np.full(len(candidates), np.nan) if model is None else predicted_iou(model, candidates)


def method_of(
    name: str, lvlm: LVLM, head_set: HeadSet | None, model: AttentionIoURegressor | None,
    ask: Callable[[Candidates], np.ndarray],
) -> Selector | Fusion:  # fmt: skip
    """The selector or fusion of that name, in any case and spacing; ValueError with the names, or what it lacks.
    `ask`: P(True) of the candidates."""
    wanted = slug(name)
    if wanted not in METHODS:
        raise ValueError(f"there is no selector {name!r}; choose one of {', '.join(METHODS)}")
    if wanted in (ACS_FREE, SPATIAL):
        if head_set is None:
            raise ValueError(
                f"{wanted} needs the discriminative heads of {lvlm.name}, and there is no head set for it; acs "
                "calibrate --lvlm finds one, or take a selector that needs none, such as sequence-log-prob"
            )
        return acs_free(head_set.heads, head_set.coordinates) if wanted == ACS_FREE else spatial_entropy(head_set.heads)
    if wanted == ACS_LEARNED:
        if model is None:
            raise ValueError(
                f"{wanted} needs a regressor trained for {lvlm.name}, and there is none; acs calibrate --lvlm "
                "--regressor trains one, or take a selector that needs none, such as sequence-log-prob"
            )
        return acs_learned(lambda candidates: _predicted(model, candidates))
    if wanted == P_TRUE:
        try:
            p_true_.yes_no_tokens(lvlm.tokenizer)
        except p_true_.CannotBeAsked as error:
            raise ValueError(
                f"{lvlm.name} cannot be asked whether a box is right, since {error}; take another selector, such as "
                "sequence-log-prob"
            ) from error
        return p_true(ask)
    known: tuple[Selector | Fusion, ...] = (*SELECTORS.values(), *FUSIONS.values())
    return next(method for method in known if slug(method.name) == wanted)


def unasked(candidates: Candidates) -> np.ndarray:
    """`ask` of `method_of` where no method is used that asks."""
    raise RuntimeError("P(True) cannot be asked here")


def object_name(lvlm: LVLM, category: str) -> str:
    """The object's name as the LVLM is asked for it: the embedded ones know few words, in lower case.

    ValueError if its vocabulary has no token for a part of the name.
    """
    category = " ".join(category.lower().split()) if is_embedded(lvlm) else category.strip()
    unknown = lvlm.tokenizer.unk_token_id
    if unknown is not None and unknown in lvlm.tokenizer(category, add_special_tokens=False)["input_ids"]:
        names = []
        if is_embedded(lvlm):
            names = [known["name"] for known in coco.read_annotations(SAMPLES / "annotations.json").cats.values()]
        close = difflib.get_close_matches(category, names, 1, cutoff=0.8)
        meant = f"did you mean {close[0]!r}? " if close else ""
        known = f": {', '.join(names)}" if names else ""
        raise ValueError(f"{lvlm.name} has no word for {category!r}; {meant}ask for something it knows{known}")
    return category


@overload
def ground(
    lvlm: LVLM | str | Path | None, image: Picture, category: str, selector: str = ...,
    samples: int = ..., temperature: float | None = ..., top_p: float | None = ..., seed: int = ...,
    head_set: HeadSet | str | Path | None = ..., regressor: AttentionIoURegressor | str | Path | None = ...,
    max_new_tokens: int | None = ..., zoom: float | None = ..., risk: float | None = ..., effort: str = ...,
) -> Grounding: ...  # fmt: skip


@overload
def ground(
    lvlm: LVLM | str | Path | None, image: Picture, category: list[str] | tuple[str, ...], selector: str = ...,
    samples: int = ..., temperature: float | None = ..., top_p: float | None = ..., seed: int = ...,
    head_set: HeadSet | str | Path | None = ..., regressor: AttentionIoURegressor | str | Path | None = ...,
    max_new_tokens: int | None = ..., zoom: float | None = ..., risk: float | None = ..., effort: str = ...,
) -> list[Grounding]: ...  # fmt: skip


def ground(
    lvlm: LVLM | str | Path | None, image: Picture, category: str | Sequence[str], selector: str = ACS_FREE,
    samples: int = 10, temperature: float | None = None, top_p: float | None = None, seed: int = 0,
    head_set: HeadSet | str | Path | None = None, regressor: AttentionIoURegressor | str | Path | None = None,
    max_new_tokens: int | None = None, zoom: float | None = None, risk: float | None = None, effort: str = ALL,
) -> Grounding | list[Grounding]:  # fmt: skip
    """Ask for one object in one image `samples` times and let `selector` choose the box.

    lvlm: from `load_lvlm`, or what that takes; None is the embedded one
    image: a path, a PIL image, or an array (see `read_image`); boxes are in its pixels, turned as its EXIF orientation
        says
    category: the object's name; or a list of names, which gives a list of answers in its order, each the one that the
        object alone would get. All are asked at once, so that the image is encoded once; that takes memory for each of
        them. A name that is there twice is asked for once
    selector: 'acs-free' (needs a head set), 'acs-learned' (needs a regressor), 'p-true' (needs an LVLM that knows Yes
        and No) or another one of METHODS
    temperature, top_p: of sampling; by default those with which the LVLM's D_c and regressor were found; a warning if
        they are others
    head_set, regressor: loaded or as files, instead of those that belong to the LVLM
    max_new_tokens: where an answer is cut; reasoning LVLMs need some thousands. Another limit draws other noise
    zoom: look again, so many times closer, at a window around the box that `selector` chose (where no answer held one:
        nowhere); as many answers are given again, and chosen among those of both looks, the closer look's greedy one
        included. Off by default
    risk: say "not found" (`box` is None) where the chosen box's score is too low to promise that of all questions at
        most this share (0-1) is answered wrongly. The promise is about questions like those that it was calibrated on;
        it holds for all samples, one look, and the sampling that it was found with
    effort: 'all' draws all samples; 'auto' stops when an answer's score is enough, the greedy answer included: more
        answers are drawn only where they are needed
    The noise depends on the seed, the image's pixels and the object alone. ValueError and OSError say what is wrong
    with an argument, UserError comes from a full GPU.
    """
    asked = [category] if isinstance(category, str) else list(category)
    if not asked or not all(one.strip() for one in asked):
        raise ValueError("name the object to look for, such as 'sports ball'")
    if zoom is not None and not zoom > 1:
        raise ValueError(f"to look closer zoom has to be above 1, not {zoom}")
    if zoom is not None and slug(selector) == P_TRUE:
        raise ValueError(f"{P_TRUE} asks about boxes of one look at the image; take another selector, or no zoom")
    if effort not in (ALL, AUTO):
        raise ValueError(f"effort is {ALL!r} or {AUTO!r}, not {effort!r}")
    if sum([zoom is not None, risk is not None, effort == AUTO]) > 1:
        raise ValueError("thresholds of risk and effort hold for one look, risk's for all samples; take one of them")
    picture = read_image(image)
    if not isinstance(lvlm, LVLM):
        lvlm = load_lvlm(lvlm or DEFAULT_LVLM)
    found_heads, model = head_set_of(lvlm, head_set), regressor_of(lvlm, regressor)
    origins = origins_of(selector, found_heads, model)
    settings = sampling_of(lvlm.name, samples, temperature, top_p, seed, usual_sampling(origins))
    warn_of_other_sampling(origins, settings)
    asked = [object_name(lvlm, one) for one in asked]
    if max_new_tokens is not None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens has to be at least 1, not {max_new_tokens}")
        settings = settings.model_copy(update={"max_new_tokens": max_new_tokens})
    names = list(dict.fromkeys(asked))
    texts: dict[str, list[str]] = {}

    def ask(candidates: Candidates) -> np.ndarray:
        return p_true_.ask_p_true(lvlm, picture, candidates.category, texts[candidates.category])

    method = method_of(selector, lvlm, found_heads, model, ask)
    draw, given = sampling_.sample_candidates, (head_set, regressor)
    if effort == AUTO:
        if isinstance(method, Fusion):
            raise ValueError(f"{selector} scores no answer, so that none is enough; take acs-free or another selector")
        method = replace(method, pool="all")
        draw = _until_enough(method, thresholds_of(lvlm, EFFORT, slug(selector), settings, given)["enough"])
    promise = None
    if risk is not None:
        promise = risk, threshold_for(risk, thresholds_of(lvlm, RISK, slug(selector), settings, given))
    ids = [f"{picture_id(picture)}/{name}" for name in names]
    found = {}
    try:
        answers = draw(lvlm, lvlm.prompts(picture, names), ids, [query_key(one) for one in ids], names, settings)
        for name, (candidates, records) in zip(names, answers):
            texts[name] = ["" if record["failure"] else record["text"] for record in records]
            found[name] = _chosen(lvlm, picture, settings, method, found_heads, model, candidates, records)
            if promise is not None:
                kept = found[name].box if found[name].score >= promise[1] else None
                found[name] = replace(found[name], promise=promise, box=kept)
            if zoom is not None and (box := found[name].box) is not None:
                window = window_around(box, zoom, *picture.size)
                closer = cut_out(picture, window)
                key = f"{candidates.query_id}/{window}"
                ((second, more),) = sampling_.sample_candidates(
                    lvlm, lvlm.prompts(closer, [name]), [candidates.query_id], [query_key(key)], [name], settings
                )
                both = joined(candidates, mapped_back(second, window, *picture.size))
                texts[name] += ["" if record["failure"] else record["text"] for record in more]
                found[name] = replace(
                    _chosen(lvlm, picture, settings, method, found_heads, model, both, records + more), window=window
                )
                found[name].table["look"] = [1] * len(candidates) + [2] * len(second)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{str(error).partition('.')[0]} with {len(names)} x {settings.samples + 1} answers at once; name fewer "
            "objects at once, ask for fewer samples, or take a smaller LVLM"
        ) from error
    return found[asked[0]] if isinstance(category, str) else [found[name] for name in asked]


def thresholds_of(
    lvlm: LVLM, file_name: str, selector: str, how: Sampling, given: Sequence[object]
) -> dict[str, float | None]:
    """The thresholds of a selector in the file of that name beside the LVLM's head set, or beside what is given instead
    of it. ValueError where there is none, or where it belongs to other weights, another question or sampling."""
    files = [Path(each).parent for each in given if isinstance(each, str | Path)]
    if len(files) < sum(each is not None for each in given) or len(set(files)) > 1:
        raise ValueError(f"{file_name} belongs to one head set and regressor: give these as files of one folder")
    path = files[0] / file_name if files else _calibrated(lvlm, file_name)
    if path is None or not path.is_file():
        raise ValueError(f"there is no {file_name} for {lvlm.name}; acs calibrate --annotations writes one")
    found = load_thresholds(path, lvlm.name, loaded_digest(lvlm), lvlm.question)
    check_sampling(str(path), found.origin.sampling, how)
    return found.of(selector, path)


def threshold_for(risk: float, known: dict[str, float | None]) -> float:
    """The threshold of the largest risk that is known and not above `risk`; infinite where it has none. ValueError if
    all are above."""
    below = [share for share in known if float(share) <= risk * (1 + 1e-9)]
    if not 0 < risk < 1 or not below:
        raise ValueError(f"risk has to be from {min(map(float, known)):g} to below 1, not {risk:g}")
    threshold = known[max(below, key=float)]
    return float("inf") if threshold is None else threshold


def _until_enough(method: Selector, threshold: float | None) -> Callable:
    """`effort.sample_until` the method's best score is at least the threshold, if there is one."""

    def enough(candidates: Candidates) -> bool:
        return threshold is not None and best(method.score(candidates), candidates.parsed)[1] >= threshold

    return partial(sample_until, enough=enough)


def _chosen(
    lvlm: LVLM, picture: Image.Image, settings: Sampling | None, method: Selector | Fusion, head_set: HeadSet | None,
    model: AttentionIoURegressor | None, candidates: Candidates, records: list[dict],
) -> Grounding:  # fmt: skip
    """The answer about one object, chosen among its candidates."""
    predicted = _predicted(model, candidates)
    if isinstance(method, Fusion):
        box, chosen, scores = method.fuse(candidates), None, np.full(len(candidates), np.nan)
    else:
        scores = np.asarray(method.score(candidates), float)
        chosen = choose(scores, candidates.parsed, method.pool or "sampled")
        box = candidates.boxes[chosen]
    table = pd.DataFrame({
        "candidate": range(len(candidates)), **dict(zip(COORDINATES, candidates.boxes.T)),
        "text": [record["text"] for record in records], "score": scores,
        "logprob": np.where(candidates.parsed, sequence_logprob(candidates), np.nan), "predicted_iou": predicted,
        "failure": [record["failure"] for record in records],
    })  # fmt: skip
    score, quality = (np.nan, np.nan) if chosen is None else (float(scores[chosen]), float(predicted[chosen]))
    read = head_set or HeadSet(lvlm.name, "", heads=())
    return Grounding(
        image=picture, category=candidates.category, lvlm=lvlm.name, selector=method.name, settings=settings,
        box=box if np.isfinite(box).all() else None, chosen=chosen, score=score, quality=quality, table=table,
        candidates=candidates, heads=read.heads, coordinates=read.coordinates,
        small=SMALL if model is None or model.origin is None else model.origin.small,
    )  # fmt: skip


def check_method(
    lvlm: LVLM,
    selector: str,
    head_set: HeadSet | str | Path | None,
    regressor: AttentionIoURegressor | str | Path | None,
) -> None:
    """ValueError if this LVLM's answers cannot be chosen so, before any question is asked; arguments as of `ground`."""
    method_of(selector, lvlm, head_set_of(lvlm, head_set), regressor_of(lvlm, regressor), unasked)


def score(
    lvlm: LVLM | str | Path | None, image: Picture, category: str, answers: Sequence[Answer | str | list[int] | dict],
    greedy: Answer | str | list[int] | dict | None = None, selector: str = ACS_FREE,
    head_set: HeadSet | str | Path | None = None, regressor: AttentionIoURegressor | str | Path | None = None,
) -> Grounding:  # fmt: skip
    """What `ground` gives, of answers that another engine sampled: `selector` chooses among them by what this LVLM's
    attention and probabilities say of them, all read in one pass (`method.forced`).

    answers: the sampled ones, each a text, a list of token ids, or a dictionary with one of these and logprobs (see
        `grounding.answers`); rows 1 and on of the table
    greedy: the greedy answer, row 0; without one that row holds no box
    The table has engine_logprobs besides, where some were given: a list, None for the other answers. A warning says if
    they are not this LVLM's. Other arguments and errors are those of `ground`; `settings` are not known here.
    """
    if not category.strip():
        raise ValueError("name the object to look for, such as 'sports ball'")
    picture, given = read_image(image), [as_answer(answer) for answer in answers]
    given.insert(0, Answer(token_ids=[]) if greedy is None else as_answer(greedy))
    if not isinstance(lvlm, LVLM):
        lvlm = load_lvlm(lvlm or DEFAULT_LVLM)
    found_heads, model = head_set_of(lvlm, head_set), regressor_of(lvlm, regressor)
    settings = sampling_of(lvlm.name, usual=usual_sampling(origins_of(selector, found_heads, model)))
    category = object_name(lvlm, category)

    def ask(candidates: Candidates) -> np.ndarray:
        return p_true_.ask_p_true(lvlm, picture, category, ["" if r["failure"] else r["text"] for r in records])

    method = method_of(selector, lvlm, found_heads, model, ask)
    candidates, records = force_candidates(
        lvlm, lvlm.prompt(picture, category), "answers", category, [each.ids(lvlm) for each in given], settings.row
    )
    if greedy is None:
        records[0]["failure"] = "no greedy answer was given"
    if told := compared(lvlm.name, f"the answers about {category!r}", given, candidates.logprobs):
        warnings.warn(told, stacklevel=2)
    found = _chosen(lvlm, picture, None, method, found_heads, model, candidates, records)
    if any(each.logprobs is not None for each in given):
        found.table["engine_logprobs"] = [each.logprobs for each in given]
    return found
