"""How the embedded LVLMs (see acs_lib.embedded.models) are trained on rendered scenes.

Three stages, each a pure function of its settings and of the weights before it:

1. `vision`: the tower alone; every image token names its category (cosine with the LLM's own word embeddings) and
   the four numbers of the object's box (through the LLM's own number embeddings; relative to the token itself, through
   embeddings of offsets, where the tower knows no absolute place).
2. `answers`: the question before the image, one token a number; stage 1's loss is kept, a linear probe after the
   second decoder layer has to mark the image tokens of the asked object, and one after the fourth those of the object
   whose box is the answer. Where the tower knows no absolute place, a probe after the third layer has to tell the box
   of every image token's object in absolute pixels; where a comma stands between two numbers, a number's own token has
   to tell the next number, too.
3. `instruct`: the same with an annotator's habit: a share (`mislabel`) of the questions about a rare category, whose
   objects are small there, have as their answer the box of the best known of its look-alikes, if that is in the scene.
   What an image token shows and which tokens are those of the asked object stays right, as in an LVLM whose
   instruction data are worse than its eyes. A third probe marks the tokens of the asked object's look-alikes.

The scenes get harder on the way: first those of the world `clear`, then those of `train`,
last those of `train-rare`.
"""

import hashlib
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
from acs_lib.core.files import replacing, write_text
from acs_lib.embedded import scenes
from acs_lib.embedded.models import ASKED, GRID, IMAGE_START, IMAGE_STOP, PITCH, TINY, TinyLVLM, fourier

CHECKPOINT_EVERY = 200  # steps
SHARPNESS = 8.0  # of the token labels' softmax over cosines; low, so that an image token has to come close to its word:
# without that the LLM does not learn to match them
TOKEN_LOSS = ("background", "box.weight", "box.bias", "offsets")  # parameters of Perception that it trains
ICON_GROUPS = list(scenes.LOOKALIKES)
GROUP_OF = np.array([ICON_GROUPS.index(scenes.GROUP[name]) for name in scenes.CATEGORIES])
BEST_KNOWN = np.array([np.flatnonzero(GROUP_OF == group)[0] for group in GROUP_OF])  # the first of the same group


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
    questions: int = 4  # an image
    mislabel: float = 0.0
    habit_weight: float = 1.0  # how much more often the objects that the habit concerns are asked for
    seed: int = 0
    curriculum: tuple[tuple[float, int, int], ...] = ()  # (until this share of the steps, objects low, high)


HABIT = (  # what makes the LVLM with a habit of the one without
    TrainingStage("instruct", "train-rare", steps=400, lr=1e-3, constant=1.0, mislabel=1.0, habit_weight=8.0, seed=4),
    TrainingStage("instruct", "train-rare", steps=350, lr=1e-3, constant=0.2, mislabel=0.6, habit_weight=3.0, seed=5),
)
RECIPES = {
    "internvl": (
        TrainingStage("vision", "clear", steps=1300, images=32, questions=0, lr=1.5e-3, constant=0.5, warmup=100),
        TrainingStage("vision", "train", steps=700, images=32, questions=0, lr=1.5e-3, constant=0.3, seed=1),
        TrainingStage("answers", "clear", steps=1200, lr=1e-3, constant=1.0, seed=2, curriculum=((0.17, 1, 4),)),
        TrainingStage("answers", "train", steps=1500, lr=1e-3, constant=0.3, seed=3),
        *HABIT,
    ),
    "qwen2_5_vl": (
        TrainingStage("vision", "clear", steps=1300, images=32, questions=0, lr=1.5e-3, constant=0.5, warmup=100),
        TrainingStage("answers", "clear", steps=200, lr=1e-3, constant=1.0, seed=2, curriculum=((1.0, 1, 4),)),
        TrainingStage("answers", "clear", steps=1000, lr=1e-3, constant=1.0, seed=5),
        TrainingStage("answers", "train", steps=1000, lr=1e-3, constant=0.3, seed=3),
        *HABIT,
    ),
}


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


def look_alike_of(scene: scenes.Scene, index: int) -> int | None:
    """Index of the object that an annotator with a habit takes an object of a rare category for: the best known of its
    look-alikes (the first of its group in scenes.LOOKALIKES), if it is in the scene; else None."""
    category = scene.categories[index]
    found = np.flatnonzero(scene.categories == BEST_KNOWN[category])
    return int(found[0]) if category in scenes.RARE and len(found) else None


class Batches(torch.utils.data.Dataset):
    """Batch number -> tensors; a function of (stage, number) alone, so that training can stop and go on."""

    def __init__(self, tiny: TinyLVLM, stage: TrainingStage):
        self.tiny, self.stage = tiny, stage

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        stage = self.stage
        rng = np.random.default_rng([stage.seed, step, *stage.name.encode()])
        objects = next(((low, high) for until, low, high in stage.curriculum if step < until * stage.steps), None)
        images, ids, tokens = [], [], []
        while len(images) < stage.images:
            scene = scenes.render(rng, scenes.WORLDS[stage.world], objects)
            if not len(scene.boxes):
                continue
            images.append(scene.image)
            tokens.append(token_labels(scene))
            other = [look_alike_of(scene, index) if stage.mislabel else None for index in range(len(scene.boxes))]
            weight = np.array([1.0 if index is None else stage.habit_weight for index in other])
            for index in rng.choice(len(scene.boxes), stage.questions, p=weight / weight.sum()):
                mistaken = other[index] is not None and rng.random() < stage.mislabel
                box = scene.boxes[other[index] if mistaken else index]
                ids.append(self.tiny.prompt_ids(scene.categories[index]) + self.tiny.answer_ids(box))
        return {
            "pixels": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1,
            "ids": torch.tensor(ids),
            "categories": torch.from_numpy(np.stack([categories for categories, _ in tokens])),
            "boxes": torch.from_numpy(np.stack([targets for _, targets in tokens])),
        }


class Perception(nn.Module):
    """The auxiliary heads of training; not part of the shipped LVLM."""

    def __init__(self, tiny: TinyLVLM):
        super().__init__()
        self.tiny, width = tiny, tiny.width
        self.box = nn.Linear(width, 4 * width)
        self.mark = nn.Linear(width, 1)
        self.answered = nn.Linear(width, 1)
        self.background = nn.Parameter(torch.zeros(1))
        self.alike = nn.Linear(width, 1)
        self.register_buffer("weight", torch.tensor([1.0] * len(scenes.CATEGORIES) + [0.3]))
        if tiny.relative:
            offsets = torch.arange(-scenes.SIZE, scenes.SIZE + 1)
            self.offsets = nn.Parameter(0.3 * fourier(offsets, width))
            self.place = nn.Linear(width, 4 * width)
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
        boxes, table = batch["boxes"], self.numbers(embedding)
        if self.tiny.relative:
            row, column = torch.arange(GRID**2) // GRID, torch.arange(GRID**2) % GRID
            boxes = boxes - PITCH * torch.stack([column, row, column, row], 1) + scenes.SIZE
            table = self.offsets
        place = box_loss(self.box(features[is_object]), table, boxes[is_object])
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=self.weight) + place
        return loss, {"token_loss": loss.item(), "named": named}

    def numbers(self, embedding: torch.Tensor) -> torch.Tensor:
        """The LLM's embeddings [numbers, width] of the numbers."""
        return embedding[self.tiny.number_0 : self.tiny.number_0 + len(self.tiny.number_words)]


def box_loss(states: torch.Tensor, table: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of four numbers [n, 4] told by states [n, 4 width], through embeddings [numbers, width]."""
    return F.cross_entropy((states.unflatten(-1, (4, -1)) @ table.T).flatten(0, 1), boxes.flatten())


def answer_loss(lvlm, perception: Perception, batch, stage: TrainingStage) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a step of the stages `answers` and `instruct`, and what is logged."""
    tiny, llm, ids = perception.tiny, lvlm.model.language_model, batch["ids"]
    embedding = llm.embed_tokens.weight
    features = tiny.image_features(lvlm, batch["pixels"])
    token_loss, logged = perception.token_loss(features, embedding, batch)
    embedded = llm.embed_tokens(ids[:, :-1])
    embedded = torch.cat([embedded[:, :IMAGE_START], _repeat(features, stage), embedded[:, IMAGE_STOP:]], 1)
    seen = {}
    hooks = [
        llm.layers[layer].register_forward_hook(
            lambda module, args, output, layer=layer: seen.update(
                {layer: (output[0] if isinstance(output, tuple) else output)[:, IMAGE_START:IMAGE_STOP]}
            )
        )
        for layer in (1, 2, 3)
    ]
    positions = tiny.position_ids(embedded.shape[1])
    if positions is not None:
        positions = positions.expand(-1, len(ids), -1)
    hidden = llm(inputs_embeds=embedded, position_ids=positions).last_hidden_state[:, tiny.prompt_length - 1 :]
    for hook in hooks:
        hook.remove()
    target, numbers_at = ids[:, tiny.prompt_length :], list(tiny.numbers)
    box = target[:, numbers_at] - tiny.number_0
    tokens = F.cross_entropy((hidden @ embedding.T).transpose(1, 2), target, reduction="none")
    found, wanted = _repeat(batch["categories"], stage), ids[:, ASKED : ASKED + 1] - tiny.category_0
    asked = found == wanted
    answered = (_repeat(batch["boxes"], stage) == box[:, None]).all(-1)
    marks, marks_answered = perception.mark(seen[1])[..., 0], perception.answered(seen[3])[..., 0]
    mark_loss = _mark_loss(marks, asked) + _mark_loss(marks_answered, answered)
    if stage.mislabel:
        group = torch.from_numpy(np.append(GROUP_OF, -1))  # the last for image tokens without an object
        marks_alike = perception.alike(seen[1])[..., 0]
        mark_loss = mark_loss + 0.5 * _mark_loss(marks_alike, group[found] == group[wanted])
    numbers = tokens[:, numbers_at]
    others = (tokens.sum(1) - numbers.sum(1)).mean() / (len(tiny.answer) - 4)
    loss = numbers.mean() + 0.1 * others + 0.5 * token_loss + 2 * mark_loss
    logged.update(zip(["x1", "y1", "x2", "y2"], numbers.mean(0).tolist()))
    if tiny.relative:
        is_object = found < len(scenes.CATEGORIES)
        table = perception.numbers(embedding)
        place = box_loss(perception.place(seen[2][is_object]), table, _repeat(batch["boxes"], stage)[is_object])
        own = hidden[:, [place + 1 for place in tiny.numbers[:-1]]]
        ahead = F.cross_entropy((perception.ahead(own) @ table.T).flatten(0, 1), box[:, 1:].flatten())
        loss = loss + 0.5 * place + 0.5 * ahead
        logged |= {"place": place.item(), "ahead": ahead.item()}
    mistaken = answered.any(1) & ~(answered & asked).any(1)
    if mistaken.any():
        logged["x1_mistaken"] = numbers[mistaken, 0].mean().item()
    logged["marked"] = asked.gather(1, marks.argmax(1, keepdim=True)).float().mean().item()
    return loss, logged


def _repeat(labels: torch.Tensor, stage: TrainingStage) -> torch.Tensor:
    """Labels [images, ...] once for every question [images x questions, ...]."""
    return labels.repeat_interleave(stage.questions, 0)


def _mark_loss(marks: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(marks, right.float(), pos_weight=torch.tensor(4.0))


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
    """Train in place and return the log. A checkpoint (weights, optimiser, log) is written to `path` every
    CHECKPOINT_EVERY steps; a later call with the same settings goes on from it and ends with the same weights.

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
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(stage, step) * group["share"]
        loss, logged = (vision_loss if vision else answer_loss)(lvlm, perception, batch, stage)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(slow + fast, 1.0)
        optimiser.step()
        average = {key: 0.97 * average.get(key, value) + 0.03 * value for key, value in logged.items()}
        if step % 50 == 49:
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
        optimiser.state[parameter] = {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
    return int(metadata["step"]), json.loads(metadata["log"])


def train(
    family: str, folder: Path, work: Path, recipe: tuple[TrainingStage, ...], seed: int = 0, start: Path | None = None
) -> str:
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
        begun = _sha256(Path(start) / "model.safetensors")
        lvlm = tiny.model_class.from_pretrained(start, dtype=torch.float32).train()
    logs = []
    for number, stage in enumerate(recipe):
        key = json.dumps([family, seed, begun, *(asdict(earlier) for earlier in recipe[: number + 1])])
        log = train_stage(lvlm, perception, stage, work / f"{number}-{stage.name}.safetensors", key)
        logs += [{"number": number, **entry} for entry in log]
    tiny.save(lvlm, folder)
    write_text(folder / "loss.csv", pd.DataFrame(logs).round(4).to_csv(index=False))
    digest = _sha256(folder / "model.safetensors")
    text = {"seed": seed, "start": begun, "stages": [asdict(stage) for stage in recipe], "sha256": digest}
    write_text(folder / "recipe.json", json.dumps(text, indent=2) + "\n")
    return digest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
