"""All objects of a category in an image: several lists of boxes, sampled as `ground` samples answers, as instances."""

import html
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import COORDINATES
from acs_lib.core.files import query_key
from acs_lib.core.images import Picture, picture_id, read_image
from acs_lib.datasets.coco import asked_for, read_annotations
from acs_lib.grounding.api import head_set_of, method_of, object_name, origins_of, regressor_of, unasked
from acs_lib.grounding.picture import draw_boxes, encode, write
from acs_lib.lvlms.adapter import LVLM
from acs_lib.lvlms.load import DEFAULT_LVLM, load_lvlm
from acs_lib.method import sampling as sampling_
from acs_lib.method.baselines import FUSIONS, METHODS, slug
from acs_lib.method.heads import HeadSet
from acs_lib.method.instances import LIST_TOKENS, QUESTION, SAME, instances, listed
from acs_lib.method.origin import usual_sampling
from acs_lib.method.regressor import AttentionIoURegressor
from acs_lib.method.selection import Selector
from acs_lib.profiles import Sampling, sampling_of

VOTES = "votes"
BY_ANSWER = ("greedy", "random", "medoid", "p-true")  # selectors that compare whole answers, so they score no instance
BOX_SELECTORS = (VOTES, *(name for name in METHODS if name not in (*BY_ANSWER, *map(slug, FUSIONS))))


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects of one category that an LVLM finds in one image, the surest first.

    image: RGB; lvlm, selector: their names; settings: how the lists were drawn
    table: one row an instance: x1, y1, x2, y2 in pixels of the image; score, higher is better (`selector` says of
        what); votes, the share of the answers (0-1) that name it; boxes, how many of theirs it stands for
    texts: the answers, the greedy one first
    """

    image: Image.Image
    category: str
    lvlm: str
    selector: str
    settings: Sampling
    table: pd.DataFrame
    texts: list[str]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def boxes(self) -> np.ndarray:
        """[n, 4] xyxy in pixels of the image, the surest first."""
        return self.table[list(COORDINATES)].to_numpy(float)

    @property
    def summary(self) -> str:
        """One sentence: how many were found, by which method."""
        if not len(self):
            return f"{self.lvlm} found no '{self.category}'"
        return f"{len(self)} of '{self.category}', the surest with {self.selector} {self.table['score'].max():.3g}"

    def __repr__(self) -> str:
        return f"<Detections: {self.summary}>"

    def show(self) -> Image.Image:
        """The image with the instances, coloured by score."""
        return draw_boxes(self.image, self.boxes, self.table["score"].to_numpy(float), self.category)

    def save(self, path: str | Path) -> None:
        """Write the picture of `show` (see `picture.write`)."""
        write(self.show(), path)

    def to_dict(self) -> dict:
        """The answer without pixels, ready for JSON."""
        rows = json.loads(self.table.to_json(orient="records", double_precision=6))
        return {
            "category": self.category, "lvlm": self.lvlm, "selector": self.selector, "width": self.image.width,
            "height": self.image.height, "instances": rows,
        }  # fmt: skip

    def to_coco(self, image_id: int, category_id: int) -> list[dict]:
        """The instances in COCO's results format (see `boxes.as_coco`)."""
        return bx.as_coco(self.boxes, self.table["score"], image_id, category_id)

    def _repr_png_(self) -> bytes:
        picture = self.show()
        picture.thumbnail((600, 600))
        return encode(picture, ".png")

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.summary)}</p>{self.table.round(3).to_html(index=False, na_rep='')}"


def coco_ids(
    annotations: Path, images: Sequence[Path], objects: Sequence[str]
) -> tuple[dict[Path, int], dict[str, int]]:
    """The ids that a COCO-format file has for images, by the names of their files, and for objects, by what its
    categories' names ask for. ValueError for one that it does not have, or has twice."""
    found = read_annotations(annotations)
    named: defaultdict[str, list[int]] = defaultdict(list)
    known: defaultdict[str, list[int]] = defaultdict(list)
    for image in found.imgs.values():
        named[Path(image["file_name"]).name].append(image["id"])
    for category in found.cats.values():
        known[asked_for(category["name"])].append(category["id"])

    def only(ids: list[int], name: str) -> int:
        if len(ids) != 1:
            raise ValueError(f"{annotations} has {len(ids)} entries named {name!r}, so that its id is not known")
        return ids[0]

    image_ids = {path: only(named[path.name], path.name) for path in images}
    return image_ids, {asked_for(name): only(known[asked_for(name)], name) for name in objects}


def detect(
    lvlm: LVLM | str | Path | None, image: Picture, category: str, selector: str = VOTES, samples: int = 10,
    temperature: float | None = None, top_p: float | None = None, seed: int = 0,
    head_set: HeadSet | str | Path | None = None, regressor: AttentionIoURegressor | str | Path | None = None,
    max_new_tokens: int = LIST_TOKENS, same: float = SAME, question: str = QUESTION,
) -> Detections:  # fmt: skip
    """Ask for all objects of a category `samples` times and once greedily, and find the instances in the lists.

    selector: 'votes', the share of the answers that name an instance (of equal ones the likelier box first), or a
        selector of `ground` that scores boxes one by one, such as 'acs-free', 'acs-learned', 'sequence-log-prob' or
        'mass-inside-the-box-mtla': an instance has the score of its best box
    same: IoU from which two boxes are one instance
    question: what is asked, with {object} in it
    Other arguments and errors are those of `ground`. D_c and a regressor were found on answers about single objects.
    """
    if not category.strip():
        raise ValueError("name the objects to look for, such as 'sports ball'")
    if slug(selector) not in BOX_SELECTORS:
        raise ValueError(f"{selector!r} scores no single boxes; choose one of {', '.join(BOX_SELECTORS)}")
    picture = read_image(image)
    if not isinstance(lvlm, LVLM):
        lvlm = load_lvlm(lvlm or DEFAULT_LVLM)
    heads, model = head_set_of(lvlm, head_set), regressor_of(lvlm, regressor)
    by_votes = slug(selector) == VOTES
    method = method_of("mean-token-log-prob" if by_votes else selector, lvlm, heads, model, unasked)
    assert isinstance(method, Selector)
    usual = usual_sampling(origins_of(selector, heads, model))
    settings = sampling_of(lvlm.name, samples, temperature, top_p, seed, usual)
    settings = settings.model_copy(update={"max_new_tokens": max_new_tokens})
    category = object_name(lvlm, category)
    name = f"{picture_id(picture)}/all {category}"
    single, lvlm.question = lvlm.question, question
    try:
        prompt = lvlm.prompt(picture, category)
    finally:
        lvlm.question = single
    (answers,) = sampling_.generate(lvlm, [prompt], [query_key(name)], settings)
    found, origin = listed(lvlm, prompt, name, category, answers, settings.row)
    scores = np.asarray(method.score(found), float) if len(found) else np.zeros(0)
    table = instances(found.boxes, scores, origin, len(answers), same).drop(columns="row")
    if by_votes:
        table["score"] = table["votes"]
        table = table.sort_values("votes", ascending=False, kind="stable", ignore_index=True)
    texts = [lvlm.decode(answer["token_ids"]) for answer in answers]
    return Detections(picture, category, lvlm.name, VOTES if by_votes else method.name, settings, table, texts)
