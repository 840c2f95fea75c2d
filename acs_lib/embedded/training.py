"""How the embedded LVLMs (see acs_lib.embedded.models) are trained on rendered scenes.

Three kinds of stages, each a pure function of its settings and of the weights before it:

1. `vision`: the tower alone; every image token names its category (cosine with the LLM's own word embeddings) and
   the four numbers of the object's box, relative to the token itself (through embeddings of offsets).
2. `answers`: the image, then questions about it, packed behind it: none sees another. One object of a category (the
   leftmost), all of them from left to right, a category that is not there, or whether a box is right. Stage 1's loss is
   kept. After the second decoder layer the category's word has to point at all image tokens of its category, or at
   none; after the fourth, where a number comes next, the token before it at those of the object that is being written.
   A probe after the third layer has to tell the box of every image token's object in absolute pixels, through the
   LLM's own number embeddings; where a comma stands between two numbers, a number's own token has to tell the next
   number, too.
3. `instruct`: the same with an annotator's habit: a share (`mislabel`) of the questions about a rare category, whose
   objects are small there, have as their answer the boxes of the best known of its look-alikes, if that is in the
   scene. What an image token shows and at what a category's word points stays right, as in an LVLM whose instruction
   data are worse than its eyes.

Half of the images are windows of a scene, up to three times as large as in the whole. Scenes get harder on the way.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedConfig

from acs_lib.core import boxes as bx
from acs_lib.core.files import file_digest, replacing, write_text
from acs_lib.embedded import scenes
from acs_lib.embedded.models import GRID, PITCH, TINY, TinyLVLM, fourier

CHECKPOINT_EVERY = 200  # steps
FIRST = 3  # steps of a stage whose losses are logged as they are; later ones as a running mean, every LOGGED steps
LOGGED = 50
SHARPNESS = 8.0  # of the token labels' softmax over cosines; low, so that an image token has to come close to its word:
# without that the LLM does not learn to match them
TOKEN_LOSS = ("background", "box.weight", "box.bias", "offsets")  # parameters of Perception that it trains
ICON_GROUPS = list(scenes.LOOKALIKES)
GROUP_OF = np.array([ICON_GROUPS.index(scenes.GROUP[name]) for name in scenes.CATEGORIES])
BEST_KNOWN = np.array([np.flatnonzero(GROUP_OF == group)[0] for group in GROUP_OF])  # the first of the same group
ZOOM = 3.0  # of the smallest window
SEEN = 0.5  # share of an object that has to be seen for a question about its category
KINDS = {"one": 0.35, "every": 0.3, "absent": 0.2, "right": 0.15}  # of questions
WEIGHTS = {  # of the losses of an answer
    "numbers": 1.0, "decisions": 0.3, "others": 0.1, "tokens": 0.3, "word": 0.7, "object": 0.5, "object_at_x1": 0.7,
    "place": 0.5, "ahead": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingStage:
    """Settings of one training stage; the whole recipe is a list of these plus a seed."""

    name: str
    world: str
    steps: int
    lr: float
    constant: float  # share of the steps before the cosine decay begins
    warmup: int = 50
    images: int = 16  # a step
    questions: int = 6  # an image
    mislabel: float = 0.0
    habit_weight: float = 1.0  # how much more often the categories that the habit concerns are asked for
    seed: int = 0
    curriculum: tuple[tuple[float, int, int], ...] = ()  # (until this share of the steps, objects low, high)


HABIT = (  # what makes the LVLM with a habit of the one without
    TrainingStage("instruct", "train-rare", steps=250, lr=1e-3, constant=1.0, mislabel=1.0, habit_weight=6.0, seed=4),
    TrainingStage("instruct", "train-rare", steps=300, lr=1e-3, constant=0.2, mislabel=0.6, habit_weight=3.0, seed=5),
)
RECIPE = (  # of both families
    TrainingStage("vision", "clear", steps=5000, images=8, questions=0, lr=1.5e-3, constant=1.0, warmup=100),
    TrainingStage("vision", "train", steps=3500, images=8, questions=0, lr=1.5e-3, constant=0.5, seed=1),
    TrainingStage(
        "answers", "train", steps=1200, lr=1.2e-3, constant=1.0, seed=2, curriculum=((0.2, 1, 4), (0.6, 3, 8))
    ),
    TrainingStage("answers", "train", steps=1300, lr=1.2e-3, constant=0.0, seed=3),
    TrainingStage("answers", "train", steps=1000, lr=1e-3, constant=0.2, seed=6),
)


def token_labels(scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray]:
    """For every image token the category [GRID^2] (len(CATEGORIES) for none) and box [GRID^2, 4] in pixels of the
    smallest object that covers a quarter of the token (or of itself)."""
    categories = np.full(GRID**2, len(scenes.CATEGORIES))
    targets = np.zeros((GRID**2, 4), int)
    row, column = np.divmod(np.arange(GRID**2), GRID)
    tokens = np.stack([column, row, column + 1, row + 1], 1) * PITCH
    sizes = bx.area(scene.boxes)
    for index in np.argsort(-sizes, kind="stable"):  # smaller objects overwrite larger ones
        box = scene.boxes[index]
        shared = bx.area(np.concatenate([np.maximum(tokens[:, :2], box[:2]), np.minimum(tokens[:, 2:], box[2:])], 1))
        covered = shared >= 0.25 * min(PITCH**2, sizes[index])
        categories[covered] = scene.categories[index]
        targets[covered] = box
    return categories, targets


def window(rng: np.random.Generator) -> tuple[float, float, float]:
    """The whole scene or, half of the time, a window of it, up to ZOOM times smaller: left, top, side as shares."""
    if rng.random() < 0.5:
        return 0, 0, 1
    side = ZOOM ** -rng.random()
    return *rng.uniform(0, 1 - side, 2).tolist(), side


def mistaken_for(category: int, present: set[int]) -> int | None:
    """What an annotator with a habit takes a rare category for: the best known of its look-alikes (the first of its
    group in scenes.LOOKALIKES), if that is among the categories that are `present`; else None."""
    return int(BEST_KNOWN[category]) if category in scenes.RARE and BEST_KNOWN[category] in present else None


@dataclass(frozen=True)
class Question:
    """Token ids of a question and of its answer; the category that it names, at which place among its tokens, and
    whether that is there; the boxes [n, 4] that the answer writes."""

    ids: list[int]
    answer: list[int]
    category: int
    named: int
    present: bool
    boxes: np.ndarray


class Asker:
    """Draws questions about a scene."""

    def __init__(self, tiny: TinyLVLM, stage: TrainingStage, rng: np.random.Generator, scene: scenes.Scene):
        self.tiny, self.stage, self.rng, self.scene = tiny, stage, rng, scene
        cut = set(scene.categories[scene.seen < SEEN].tolist())
        self.there = sorted(set(scene.categories.tolist()) - cut)
        self.absent = [c for c in range(len(scenes.CATEGORIES)) if c not in set(scene.categories.tolist())]

    def boxes(self, category: int) -> np.ndarray:
        """The boxes [n, 4] of a category, from left to right."""
        found = self.scene.boxes[self.scene.categories == category]
        return found[np.lexsort([found[:, 1], found[:, 0]])]

    def ask(self) -> Question:
        """A question, of whatever kind."""
        kind = self.rng.choice(list(KINDS), p=list(KINDS.values()))
        every = kind == "every" or (kind == "absent" and self.rng.random() < 0.5)
        if kind == "absent":
            category, boxes = self.absent_category(), np.zeros((0, 4))
        else:
            category, boxes = self.annotated()
        named = self.tiny.question_ids(category, every).index(self.tiny.category_0 + category)
        if kind == "right":
            quoted = self.quoted(category, boxes)
            right = bool(bx.iou(boxes, quoted).max() >= 0.5)
            ids, answer = self.tiny.verification_ids(category, quoted), self.tiny.said_ids(right)
            return Question(ids, answer, category, named, True, np.zeros((0, 4)))
        boxes = boxes if every else boxes[:1]
        ids, answer = self.tiny.question_ids(category, every), self.tiny.answer_ids(boxes, every)
        return Question(ids, answer, category, named, kind != "absent", boxes)

    def absent_category(self) -> int:
        """A category that is not there, half of the time a look-alike of one that is."""
        present = set(self.scene.categories.tolist())
        alike = [c for c in self.absent if present & set(scenes.SIBLINGS[c])]
        return int(self.rng.choice(alike if alike and self.rng.random() < 0.5 else self.absent))

    def annotated(self) -> tuple[int, np.ndarray]:
        """A category that is there, and the boxes that an annotator has for it."""
        stage, there = self.stage, set(self.there)
        others = [mistaken_for(category, there) if stage.mislabel else None for category in self.there]
        weight = np.array([1.0 if other is None else stage.habit_weight for other in others])
        index = self.rng.choice(len(self.there), p=weight / weight.sum())
        mistaken = others[index] is not None and self.rng.random() < stage.mislabel
        return self.there[index], self.boxes(others[index] if mistaken else self.there[index])

    def quoted(self, category: int, boxes: np.ndarray) -> np.ndarray:
        """A box to ask about, half of the time near one of `boxes`, else near any object's, preferably a look-alike's;
        four whole numbers."""
        found = boxes
        if self.rng.random() < 0.5:
            alike = np.isin(self.scene.categories, scenes.SIBLINGS[category])
            found = self.scene.boxes[alike if alike.any() and self.rng.random() < 0.5 else slice(None)]
        box = found[self.rng.integers(len(found))]
        sides = np.tile(box[2:] - box[:2], 2)
        moved = np.rint(box + self.rng.normal(0, 0.1, 4) * sides).clip(0, scenes.SIZE).astype(int)
        return moved if (moved[2:] > moved[:2]).all() else box.astype(int)


class Batches(torch.utils.data.Dataset):
    """Batch number -> tensors; a function of (stage, number) alone, so that training can stop and go on.

    pixels [images, 3, SIZE, SIZE] in -1 to 1; categories [images, GRID^2] and boxes [images, GRID^2, 4] of the image
    tokens; and of the questions, packed behind their image as tokens [images, n]: ids, the number of the question
    (`segment`, -1 for padding), the place in it (`after`), the next token where that is part of an answer (`target`,
    else -1), which of a box's four numbers that is (`coordinate`, else -1) and of which box (`written` [..., 4]),
    the number after a number (`following`, else -1), and whether it decides what is said (`decision`: that there is
    none, or the word after a question whether a box is right). asked and named [images, questions]: the category that a
    question names, and the place of its word among the tokens; present: whether it is there.
    """

    def __init__(self, tiny: TinyLVLM, stage: TrainingStage):
        self.tiny, self.stage = tiny, stage

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        stage = self.stage
        rng = np.random.default_rng([stage.seed, step, *stage.name.encode()])
        objects = next(((low, high) for until, low, high in stage.curriculum if step < until * stage.steps), None)
        images, tokens, packed = [], [], []
        while len(images) < stage.images:
            scene = scenes.render(rng, scenes.WORLDS[stage.world], objects, window(rng))
            asker = Asker(self.tiny, stage, rng, scene)
            if not asker.there:
                continue
            images.append(scene.image)
            tokens.append(token_labels(scene))
            packed.append(pack(self.tiny, [asker.ask() for _ in range(stage.questions)]))
        batch = {
            "pixels": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1,
            "categories": torch.from_numpy(np.stack([categories for categories, _ in tokens])),
            "boxes": torch.from_numpy(np.stack([targets for _, targets in tokens])),
        }
        longest = max(len(one["ids"]) for one in packed)
        for name, empty in EMPTY.items():
            padded = [np.pad(one[name], [(0, longest - len(one[name])), *[(0, 0)] * (one[name].ndim - 1)],
                             constant_values=empty) for one in packed]  # fmt: skip
            batch[name] = torch.from_numpy(np.stack(padded))
        for name in ("asked", "named", "present"):
            batch[name] = torch.from_numpy(np.stack([one[name] for one in packed]))
        return batch


EMPTY = {  # of a packed token -> what stands in the padding
    "ids": 0, "segment": -1, "after": 0, "target": -1, "coordinate": -1, "written": -1, "following": -1, "decision": 0
}  # fmt: skip


def pack(tiny: TinyLVLM, questions: list[Question]) -> dict[str, np.ndarray]:
    """The questions about one image as one sequence (see Batches)."""
    length = sum(len(question.ids) + len(question.answer) for question in questions)
    packed = {name: np.full(length, empty) for name, empty in EMPTY.items()}
    packed["written"] = np.full((length, 4), EMPTY["written"])
    named, begin = [], 0
    for number, question in enumerate(questions):
        ids = [*question.ids, *question.answer]
        end, first = begin + len(ids), begin + len(question.ids) - 1  # the token before the answer's first
        packed["ids"][begin:end] = ids
        packed["segment"][begin:end] = number
        packed["after"][begin:end] = np.arange(len(ids))
        packed["target"][first : end - 1] = question.answer
        packed["decision"][first] = 1
        number = tiny.numbered(np.array(question.answer))
        written, number = first + np.flatnonzero(number >= 0), number[number >= 0]
        packed["coordinate"][written] = number % 4
        packed["written"][written] = question.boxes[number // 4]
        for token, following in zip(written, written[1:]):
            if packed["coordinate"][token] < 3:
                packed["following"][token + 1] = packed["target"][following]
        named.append(begin + question.named)
        begin = end
    return packed | {
        "asked": np.array([question.category for question in questions], int),
        "named": np.array(named, int),
        "present": np.array([question.present for question in questions], bool),
    }


class Pointer(nn.Module):
    """Scores how well a state points at others."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.nothing = nn.Parameter(torch.zeros(width))

    def forward(self, states: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [batch, n, GRID^2 + 1] with which states [batch, n, width] point at image tokens
        [batch, GRID^2, width], and at nothing (last)."""
        keys = torch.cat([self.key(image), self.nothing.expand(len(image), 1, -1)], 1)
        return (self.query(states) @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])).log_softmax(-1)


def pointing_loss(pointed: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of log-probabilities [..., m] and the places [..., m] that are right: how unlikely these are [...], and whether
    the likeliest is one of them [...]. What has no right place gives 0."""
    share = right.float() / right.sum(-1, keepdim=True).clamp_min(1)
    return -(pointed * share).sum(-1), right.gather(-1, pointed.argmax(-1, keepdim=True))[..., 0]


class Perception(nn.Module):
    """The auxiliary heads of training; not part of the shipped LVLM."""

    def __init__(self, tiny: TinyLVLM):
        super().__init__()
        self.tiny, width = tiny, tiny.width
        self.box = nn.Linear(width, 4 * width)
        self.word, self.object = Pointer(width), Pointer(width)
        self.background = nn.Parameter(torch.zeros(1))
        self.register_buffer("weight", torch.tensor([1.0] * len(scenes.CATEGORIES) + [0.3]))
        self.offsets = nn.Parameter(0.3 * fourier(torch.arange(-scenes.SIZE, scenes.SIZE + 1), width))
        self.place = nn.Linear(width, 4 * width)
        if tiny.apart:
            self.ahead = nn.Linear(width, width)

    def token_loss(self, features, embedding, batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Category and box loss of the image tokens [images, GRID^2, width], and the share of object tokens named."""
        first = self.tiny.category_0
        words = F.normalize(embedding[first : first + len(scenes.CATEGORIES)], dim=-1)
        logits = SHARPNESS * F.normalize(features, dim=-1) @ words.T
        logits = torch.cat([logits, (SHARPNESS * self.background).expand(*logits.shape[:2], 1)], -1)
        target = batch["categories"]
        is_object = target < len(scenes.CATEGORIES)
        named = (logits.argmax(-1) == target)[is_object].float().mean().item()
        place = torch.arange(GRID**2, device=features.device)
        row, column = place // GRID, place % GRID
        boxes = batch["boxes"] - PITCH * torch.stack([column, row, column, row], 1) + scenes.SIZE
        place = box_loss(self.box(features[is_object]), self.offsets, boxes[is_object])
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=self.weight) + place
        return loss, {"token_loss": loss.item(), "named": named}

    def numbers(self, embedding: torch.Tensor) -> torch.Tensor:
        """The LLM's embeddings [numbers, width] of the numbers."""
        return embedding[self.tiny.number_0 : self.tiny.number_0 + len(self.tiny.number_words)]


def box_loss(states: torch.Tensor, table: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of four numbers [n, 4] told by states [n, 4 width], through embeddings [numbers, width]."""
    return F.cross_entropy((states.unflatten(-1, (4, -1)) @ table.T).flatten(0, 1), boxes.flatten())


def packed_mask(prefix: int, segment: torch.Tensor) -> torch.Tensor:
    """Which tokens see which [batch, 1, prefix + n, prefix + n]: the prefix, of their own segment [batch, n] those
    before them, and themselves."""
    segment = F.pad(segment + 1, (prefix, 0), value=-1)
    same = (segment[:, None] == segment[:, :, None]) | (segment[:, None] == -1)
    return (same & torch.ones_like(same).tril())[:, None]


def answer_loss(lvlm, perception: Perception, batch, stage: TrainingStage) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a step of the stages `answers` and `instruct`, and what is logged."""
    tiny, llm, device = perception.tiny, lvlm.model.language_model, batch["ids"].device
    embedding = llm.embed_tokens.weight
    features = tiny.image_features(lvlm, batch["pixels"])
    token_loss, logged = perception.token_loss(features, embedding, batch)
    prefix = llm.embed_tokens(torch.tensor(tiny.prefix_ids(), device=device)).expand(len(features), -1, -1)
    image = slice(tiny.image_start, tiny.image_stop)
    embedded = torch.cat(
        [prefix[:, : image.start], features, prefix[:, image.stop :], llm.embed_tokens(batch["ids"])], 1
    )
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        llm.layers[layer].register_forward_hook(
            lambda module, args, output, layer=layer: seen.update(
                {layer: output[0] if isinstance(output, tuple) else output}
            )
        )
        for layer in (1, 2, 3)
    ]
    mask = packed_mask(tiny.prefix_length, batch["segment"])
    hidden = llm(
        inputs_embeds=embedded, attention_mask=mask, position_ids=tiny.position_ids(batch["after"])
    ).last_hidden_state[:, tiny.prefix_length :]
    for hook in hooks:
        hook.remove()
    target, coordinate = batch["target"], batch["coordinate"]
    said, is_number = target >= 0, coordinate >= 0
    tokens = torch.zeros_like(target, dtype=hidden.dtype)
    logits = hidden[said] @ embedding.T
    tokens[said] = F.cross_entropy(logits, target[said], reduction="none")
    decides = batch["decision"] > 0
    losses = {
        "numbers": _mean(tokens[is_number]),
        "decisions": _mean(tokens[decides]),
        "others": _mean(tokens[said & ~is_number & ~decides]),
        "tokens": token_loss,
    }

    states = seen[1][:, tiny.prefix_length :].gather(1, batch["named"][..., None].expand(-1, -1, tiny.width))
    right = batch["categories"][:, None] == batch["asked"][..., None]
    right = torch.cat([right, ~batch["present"][..., None]], -1)
    missed, hit = pointing_loss(perception.word(states, seen[1][:, image]), right)
    losses["word"] = missed.mean()
    logged["word_hit"] = hit.float().mean().item()

    right = (batch["boxes"][:, None] == batch["written"][:, :, None]).all(-1)
    right = F.pad(right & is_number[..., None], (0, 1))
    missed, hit = pointing_loss(perception.object(seen[3][:, tiny.prefix_length :], seen[3][:, image]), right)
    points, begins = right.any(-1), right.any(-1) & (coordinate == 0)
    losses |= {"object": _mean(missed[points]), "object_at_x1": _mean(missed[begins])}
    logged["object_hit"] = hit[begins].float().mean().item()

    is_object, table = batch["categories"] < len(scenes.CATEGORIES), perception.numbers(embedding)
    losses["place"] = box_loss(perception.place(seen[2][:, image][is_object]), table, batch["boxes"][is_object])
    if tiny.apart:
        goes_on = batch["following"] >= 0
        ahead = perception.ahead(hidden[goes_on]) @ table.T
        losses["ahead"] = F.cross_entropy(ahead, batch["following"][goes_on] - tiny.number_0)
    for name, place in zip(("x1", "y1", "x2", "y2"), range(4)):
        logged[name] = tokens[coordinate == place].mean().item()
    guessed = torch.zeros_like(target)
    guessed[said] = logits.argmax(-1)
    decided, asks = (guessed == target)[decides], batch["segment"][decides]
    present = batch["present"][decides.nonzero()[:, 0], asks]
    is_word = torch.isin(target[decides], torch.tensor(tiny.ids(["Yes", "No"]), device=device))
    for name, chosen in {"none": ~present, "not_none": present & ~is_word, "right": is_word}.items():
        logged[name] = decided[chosen].float().mean().item()
    logged |= {name: losses[name].item() for name in losses if name not in ("numbers", "tokens")}
    return sum(WEIGHTS[name] * loss for name, loss in losses.items()), logged


def _mean(values: torch.Tensor) -> torch.Tensor:
    """The mean, 0 of none."""
    return values.sum() / max(1, values.numel())


def vision_loss(lvlm, perception: Perception, batch, stage: TrainingStage) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a step of the stage `vision`, and what is logged."""
    embedding = lvlm.model.language_model.embed_tokens.weight
    return perception.token_loss(perception.tiny.image_features(lvlm, batch["pixels"]), embedding, batch)


def learning_rate(stage: TrainingStage, step: int) -> float:
    """Linear warm-up, a constant part, then a cosine down to 3 %."""
    share = step / stage.steps
    decay = 1.0
    if share > stage.constant:
        decay = 0.5 * (1 + math.cos(math.pi * (share - stage.constant) / (1 - stage.constant)))
    return stage.lr * min(1, (step + 1) / stage.warmup) * (0.03 + 0.97 * decay)


def train_stage(lvlm, perception: Perception, stage: TrainingStage, path: Path, key: str) -> list[dict]:
    """Train in place, where the LVLM is, and return the log. A checkpoint (weights, optimiser, log) is written to
    `path` every CHECKPOINT_EVERY steps; a later call with the same settings goes on from it and ends with the same
    weights.

    `key` names the stage and all before it; ValueError if the checkpoint at `path` has another.
    """
    llm, model = lvlm.model.language_model, nn.ModuleDict({"lvlm": lvlm, "perception": perception})
    vision = stage.name == "vision"
    fast = [] if vision else [p for n, p in llm.named_parameters() if "embed" not in n]
    tower = [p for n, p in lvlm.model.named_parameters() if not n.startswith("language_model.")]
    slow = [*tower, llm.embed_tokens.weight, *(p for n, p in perception.named_parameters() if n in TOKEN_LOSS)]
    fast += [] if vision else [p for n, p in perception.named_parameters() if n not in TOKEN_LOSS]
    groups = [{"params": slow, "share": 1.0 if vision else 0.4}, {"params": fast, "share": 1.0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98), weight_decay=0.01)
    start, log = _load_checkpoint(path, key, model, optimiser, slow + fast)
    loader = torch.utils.data.DataLoader(
        Batches(perception.tiny, stage),
        batch_size=None,
        sampler=range(start, stage.steps),
        num_workers=1,
        prefetch_factor=4,
    )
    average: dict[str, float] = {}
    bar = tqdm(loader, initial=start, total=stage.steps, desc=stage.name, mininterval=10)
    for step, batch in enumerate(bar, start):
        batch = {name: tensor.to(lvlm.device) for name, tensor in batch.items()}
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(stage, step) * group["share"]
        loss, logged = (vision_loss if vision else answer_loss)(lvlm, perception, batch, stage)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(slow + fast, 1.0)
        optimiser.step()
        logged["loss"] = loss.item()
        known = {key: value for key, value in logged.items() if not math.isnan(value)}  # not so of a kind not asked
        average |= {key: 0.97 * average.get(key, value) + 0.03 * value for key, value in known.items()}
        if step < FIRST:
            log.append({"stage": stage.name, "step": step + 1, **known})
        elif (step + 1) % LOGGED == 0:
            log.append({"stage": stage.name, "step": step + 1, **average})
            bar.set_postfix({key: f"{value:.2f}" for key, value in average.items()})
        if (step + 1) % CHECKPOINT_EVERY == 0 or step == stage.steps - 1:
            _save_checkpoint(path, key, model, optimiser, slow + fast, step + 1, log)
    return log


def _save_checkpoint(path: Path, key: str, model, optimiser, parameters, step: int, log: list[dict]) -> None:
    state = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for index, parameter in enumerate(parameters):
        for name, value in optimiser.state[parameter].items():
            state[f"optimiser.{index}.{name}"] = value.clone()
    with replacing(path) as aside:
        save_file(state, aside, metadata={"key": key, "step": str(step), "log": json.dumps(log)})


def _load_checkpoint(path: Path, key: str, model, optimiser, parameters) -> tuple[int, list[dict]]:
    if not path.exists():
        return 0, []
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if metadata["key"] != key:
        raise ValueError(f"{path} was left by another recipe; `acs train-embedded --anew` throws it away")
    state = load_file(path)
    model.load_state_dict({name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")})
    for index, parameter in enumerate(parameters):
        prefix = f"optimiser.{index}."
        moments = {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
        optimiser.state[parameter] = {n: t if n == "step" else t.to(parameter.device) for n, t in moments.items()}
    return int(metadata["step"]), json.loads(metadata["log"])


def train(
    family: str, folder: Path, work: Path, recipe: tuple[TrainingStage, ...], seed: int = 0, start: Path | None = None,
    device: str = "cpu",
) -> str:  # fmt: skip
    """Train the embedded LVLM of a family by `recipe` and write weights, tokenizer, loss curve and recipe to `folder`.

    `work` holds the checkpoints; an interrupted call goes on from the last. `start` is a folder with the weights to go
    on from, without it they are initial ones. Returns the SHA-256 of the weights. ValueError if `start` holds no
    LVLM, or one of another family.
    """
    folder, work = Path(folder), Path(work)
    work.mkdir(parents=True, exist_ok=True)
    tiny = TINY[family]
    lvlm, perception = tiny.build(seed), Perception(tiny)
    begun = None
    if start is not None:
        if not (Path(start) / "model.safetensors").is_file():
            raise ValueError(f"{start} holds no weights; give a folder with a model.safetensors")
        config, _ = PreTrainedConfig.get_config_dict(start)
        if config.get("model_type") != family:
            raise ValueError(f"{start} holds no LVLM of the family {family}, but of {config.get('model_type')}")
        begun = file_digest(Path(start) / "model.safetensors")
        lvlm = tiny.model_class.from_pretrained(start, dtype=torch.float32).train()
    lvlm.to(device)
    perception.to(device)
    logs = []
    for number, stage in enumerate(recipe):
        done = recipe[: number + 1]
        worlds = {each.world: asdict(scenes.WORLDS[each.world]) for each in done}
        key = json.dumps([family, seed, begun, KINDS, WEIGHTS, ZOOM, SEEN, worlds, *map(asdict, done)])
        log = train_stage(lvlm, perception, stage, work / f"{number}-{stage.name}.safetensors", key)
        logs += [{"number": number, **entry} for entry in log]
    tiny.save(lvlm.cpu(), folder)
    write_text(folder / "loss.csv", pd.DataFrame(logs).round(4).to_csv(index=False))
    digest = file_digest(folder / "model.safetensors")
    text = {"seed": seed, "start": begun, "stages": [asdict(stage) for stage in recipe], "sha256": digest}
    write_text(folder / "recipe.json", json.dumps(text, indent=2) + "\n")
    return digest
