"""The embedded LVLM: a small `InternVLForConditionalGeneration` and how it is trained on rendered scenes.

Three stages, each a pure function of its settings and of the weights before it:

1. `vision`: the tower alone; every image token names its category (cosine with the LLM's own word embeddings) and
   the four numbers of the object's box (through the LLM's own number embeddings).
2. `answers`: the question before the image, one token a number; stage 1's loss is kept, a linear probe after the
   second decoder layer has to mark the image tokens of the asked object, and one after the fourth those of the object
   whose box is the answer.
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
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast, Qwen3Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from acs_lib import boxes as bx
from acs_lib.datasets import scenes
from acs_lib.paths import replacing, write_text

PITCH = 16  # px a LLM image token
GRID = scenes.SIZE // PITCH
CHECKPOINT_EVERY = 200  # steps
SHARPNESS = 8.0  # of the token labels' softmax over cosines; low, so that an image token has to come close to its word:
# without that the LLM does not learn to match them
SPECIAL = ["<pad>", "<bos>", "<eos>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>", "<user>", "<assistant>"]
WORDS = ["<box>", "</box>", "Detect", "the", "in", "image", "."]
NUMBERS = [str(round(1000 * pixel / scenes.SIZE)) for pixel in range(scenes.SIZE + 1)]  # InternVL's 0-1000
GROUPS = list(scenes.LOOKALIKES)
GROUP_OF = np.array([GROUPS.index(scenes.GROUP[name]) for name in scenes.CATEGORIES])
BEST_KNOWN = np.array([np.flatnonzero(GROUP_OF == group)[0] for group in GROUP_OF])  # the first of the same group
VOCABULARY = {token: index for index, token in enumerate(SPECIAL + WORDS + NUMBERS + scenes.CATEGORIES)}
NUMBER_0 = VOCABULARY["0"]
CATEGORY_0 = VOCABULARY[scenes.CATEGORIES[0]]
IMAGE_START = 10  # position of the first image token
IMAGE_STOP = IMAGE_START + GRID**2
PROMPT_LENGTH = IMAGE_STOP + 2
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}{% if message['role'] == 'user' %}<user>"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>{% endif %}{% endfor %}"
    "{% else %}<assistant>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Stage:
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


RECIPE = (
    Stage("vision", "clear", steps=1300, images=32, questions=0, lr=1.5e-3, constant=0.5, warmup=100),
    Stage("vision", "train", steps=700, images=32, questions=0, lr=1.5e-3, constant=0.3, seed=1),
    Stage("answers", "clear", steps=1200, lr=1e-3, constant=1.0, seed=2, curriculum=((0.17, 1, 4),)),
    Stage("answers", "train", steps=1500, lr=1e-3, constant=0.3, seed=3),
    Stage("instruct", "train-rare", steps=400, lr=1e-3, constant=1.0, mislabel=1.0, habit_weight=8.0, seed=4),
    Stage("instruct", "train-rare", steps=350, lr=1e-3, constant=0.2, mislabel=0.6, habit_weight=3.0, seed=5),
)
HABIT = RECIPE[-2:]  # what makes the LVLM with a habit of the one without


def build_lvlm(seed: int) -> InternVLForConditionalGeneration:
    """A 1.7 M parameter InternVL with initial weights that let content matching work from the first step."""
    config = InternVLConfig(
        vision_config=dict(
            hidden_size=112, num_hidden_layers=3, num_attention_heads=4, intermediate_size=336,
            image_size=[scenes.SIZE] * 2, patch_size=[PITCH // 2] * 2, num_channels=3, use_mean_pooling=True,
            layer_scale_init_value=1.0, hidden_dropout_prob=0.0, attention_dropout=0.0,
        ),
        text_config=Qwen3Config(
            vocab_size=len(VOCABULARY), hidden_size=128, intermediate_size=256, num_hidden_layers=6,
            num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=1024,
            tie_word_embeddings=True, pad_token_id=VOCABULARY["<pad>"], bos_token_id=VOCABULARY["<bos>"],
            eos_token_id=VOCABULARY["<eos>"], rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        ).to_dict(),
        image_token_id=VOCABULARY["<IMG_CONTEXT>"], image_seq_length=GRID**2, downsample_ratio=0.5,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    lvlm = InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    lvlm.generation_config.update(
        eos_token_id=VOCABULARY["<eos>"], pad_token_id=VOCABULARY["<pad>"], bos_token_id=VOCABULARY["<bos>"]
    )
    _initialise(lvlm.model.language_model)
    return lvlm


@torch.no_grad()
def _initialise(llm: nn.Module) -> None:
    """1/sqrt(fan_in) weights (half of it for output projections), W_q close to W_k, Fourier number embeddings."""
    embedding = llm.embed_tokens.weight.normal_(0, 0.3)
    frequency = torch.exp(torch.rand(64) * 4.2) * 0.012 * 128 / scenes.SIZE
    phase = torch.rand(64) * 2 * math.pi
    angle = frequency * torch.arange(len(NUMBERS))[:, None] + phase
    embedding[NUMBER_0 : NUMBER_0 + len(NUMBERS)] = 0.3 * torch.cat([angle.cos(), angle.sin()], 1)
    for layer in llm.layers:
        for name, weight in layer.named_parameters():
            if weight.dim() == 2:
                gain = 0.5 if "o_proj" in name or "down_proj" in name else 1.0
                weight.normal_(0, gain * weight.shape[1] ** -0.5)
        attention = layer.self_attn
        key = attention.k_proj.weight.view(llm.config.num_key_value_heads, llm.config.head_dim, -1)
        key = key.repeat_interleave(llm.config.num_attention_heads // len(key), 0).reshape_as(attention.q_proj.weight)
        attention.q_proj.weight.copy_(key + 0.3 * key.std() * torch.randn_like(key))
        attention.q_norm.weight.fill_(2.0)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, a category or a number; `decode(encode(text))` separates them by spaces."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"</?box>|[0-9]+|[.]"), "isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in scenes.CATEGORIES if " " in name])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>",
        padding_side="left", chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )  # fmt: skip


def prompt_ids(category: int) -> list[int]:
    """Token ids [PROMPT_LENGTH] of the question about one category, as the shipped processor writes it."""
    before = ["<bos>", "<user>", "Detect", "the", scenes.CATEGORIES[category], "in", "the", "image", ".", "<img>"]
    tokens = before + ["<IMG_CONTEXT>"] * GRID**2 + ["</img>", "<assistant>"]
    return [VOCABULARY[token] for token in tokens]


def answer_ids(box: np.ndarray) -> list[int]:
    """Token ids [7] of the answer `<box>x1 y1 x2 y2</box>` and the end of the sequence; `box` [4] in pixels."""
    return [
        VOCABULARY["<box>"], *(NUMBER_0 + int(value) for value in box), VOCABULARY["</box>"], VOCABULARY["<eos>"]
    ]  # fmt: skip


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


def taken_for(scene: scenes.Scene, index: int) -> int | None:
    """Index of the object that an annotator with a habit takes an object of a rare category for: the best known of its
    look-alikes (the first of its group in scenes.LOOKALIKES), if it is in the scene; else None."""
    category = scene.categories[index]
    found = np.flatnonzero(scene.categories == BEST_KNOWN[category])
    return int(found[0]) if category in scenes.RARE and len(found) else None


class Batches(torch.utils.data.Dataset):
    """Batch number -> tensors; a function of (stage, number) alone, so that training can stop and go on."""

    def __init__(self, stage: Stage):
        self.stage = stage

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
            other = [taken_for(scene, index) if stage.mislabel else None for index in range(len(scene.boxes))]
            weight = np.array([1.0 if index is None else stage.habit_weight for index in other])
            for index in rng.choice(len(scene.boxes), stage.questions, p=weight / weight.sum()):
                mistaken = other[index] is not None and rng.random() < stage.mislabel
                box = scene.boxes[other[index] if mistaken else index]
                ids.append(prompt_ids(scene.categories[index]) + answer_ids(box))
        return {
            "pixels": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1,
            "ids": torch.tensor(ids),
            "categories": torch.from_numpy(np.stack([categories for categories, _ in tokens])),
            "boxes": torch.from_numpy(np.stack([targets for _, targets in tokens])),
        }


class Perception(nn.Module):
    """The auxiliary heads of training; not part of the shipped LVLM."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.box = nn.Linear(width, 4 * width)
        self.mark = nn.Linear(width, 1)
        self.answered = nn.Linear(width, 1)
        self.background = nn.Parameter(torch.zeros(1))
        self.alike = nn.Linear(width, 1)
        self.register_buffer("weight", torch.tensor([1.0] * len(scenes.CATEGORIES) + [0.3]))

    def token_loss(self, features, embedding, batch) -> tuple[torch.Tensor, float]:
        """Category and box loss of the image tokens [images, GRID^2, width], and the share of object tokens named."""
        words = F.normalize(embedding[CATEGORY_0 : CATEGORY_0 + len(scenes.CATEGORIES)], dim=-1)
        logits = SHARPNESS * F.normalize(features, dim=-1) @ words.T
        logits = torch.cat([logits, (SHARPNESS * self.background).expand(*logits.shape[:2], 1)], -1)
        target = batch["categories"]
        is_object = target < len(scenes.CATEGORIES)
        named = (logits.argmax(-1) == target)[is_object].float().mean().item()
        numbers = embedding[NUMBER_0 : NUMBER_0 + len(NUMBERS)]
        place = F.cross_entropy(
            (self.box(features[is_object]).unflatten(-1, (4, -1)) @ numbers.T).flatten(0, 1),
            batch["boxes"][is_object].flatten(),
        )
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=self.weight) + place, named


def image_features(lvlm, pixels: torch.Tensor) -> torch.Tensor:
    """Image tokens [images, GRID^2, width] as the LLM receives them."""
    return lvlm.model.get_image_features(
        pixel_values=pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
    ).pooler_output


def answer_loss(lvlm, perception: Perception, batch, stage: Stage) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a step of the stages `answers` and `instruct`, and what is logged."""
    llm, ids = lvlm.model.language_model, batch["ids"]
    features = image_features(lvlm, batch["pixels"])
    token_loss, named = perception.token_loss(features, llm.embed_tokens.weight, batch)
    embedded = llm.embed_tokens(ids[:, :-1])
    embedded = torch.cat([embedded[:, :IMAGE_START], _repeat(features, stage), embedded[:, IMAGE_STOP:]], 1)
    seen = {}
    hooks = [
        llm.layers[layer].register_forward_hook(
            lambda module, args, output, layer=layer: seen.update(
                {layer: output[0] if isinstance(output, tuple) else output}
            )
        )
        for layer in (1, 3)
    ]
    hidden = llm(inputs_embeds=embedded).last_hidden_state[:, PROMPT_LENGTH - 1 :]
    for hook in hooks:
        hook.remove()
    target = ids[:, PROMPT_LENGTH:]
    tokens = F.cross_entropy((hidden @ llm.embed_tokens.weight.T).transpose(1, 2), target, reduction="none")
    found, wanted = _repeat(batch["categories"], stage), ids[:, 4:5] - CATEGORY_0
    asked = found == wanted
    answered = (_repeat(batch["boxes"], stage) == target[:, None, 1:5] - NUMBER_0).all(-1)
    marks = perception.mark(seen[1][:, IMAGE_START:IMAGE_STOP])[..., 0]
    marks_answered = perception.answered(seen[3][:, IMAGE_START:IMAGE_STOP])[..., 0]
    mark_loss = _mark_loss(marks, asked) + _mark_loss(marks_answered, answered)
    if stage.mislabel:
        group = torch.from_numpy(np.append(GROUP_OF, -1))  # the last for image tokens without an object
        marks_alike = perception.alike(seen[1][:, IMAGE_START:IMAGE_STOP])[..., 0]
        mark_loss = mark_loss + 0.5 * _mark_loss(marks_alike, group[found] == group[wanted])
    numbers = tokens[:, 1:5]
    loss = numbers.mean() + 0.1 * (tokens.sum(1) - numbers.sum(1)).mean() / 3 + 0.5 * token_loss + 2 * mark_loss
    logged = dict(zip(["x1", "y1", "x2", "y2"], numbers.mean(0).tolist()))
    mistaken = answered.any(1) & ~(answered & asked).any(1)
    if mistaken.any():
        logged["x1_mistaken"] = numbers[mistaken, 0].mean().item()
    marked = asked.gather(1, marks.argmax(1, keepdim=True)).float().mean().item()
    return loss, {**logged, "token_loss": token_loss.item(), "named": named, "marked": marked}


def _repeat(labels: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Labels [images, ...] once for every question [images x questions, ...]."""
    return labels.repeat_interleave(stage.questions, 0)


def _mark_loss(marks: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(marks, right.float(), pos_weight=torch.tensor(4.0))


def vision_loss(lvlm, perception: Perception, batch, stage: Stage) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of a step of the stage `vision`, and what is logged."""
    embedding = lvlm.model.language_model.embed_tokens.weight
    loss, named = perception.token_loss(image_features(lvlm, batch["pixels"]), embedding, batch)
    return loss, {"token_loss": loss.item(), "named": named}


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, a constant part, then a cosine down to 3 %."""
    share = step / stage.steps
    decay = 1.0
    if share > stage.constant:
        decay = 0.5 * (1 + math.cos(math.pi * (share - stage.constant) / (1 - stage.constant)))
    return stage.lr * min(1, (step + 1) / stage.warmup) * (0.03 + 0.97 * decay)


def train_stage(lvlm, perception: Perception, stage: Stage, path: Path, key: str) -> list[dict]:
    """Train in place and return the log. A checkpoint (weights, optimiser, log) is written to `path` every
    CHECKPOINT_EVERY steps; a later call with the same settings goes on from it and ends with the same weights.

    `key` names the stage and all before it; ValueError if the checkpoint at `path` has another.
    """
    llm, model = lvlm.model.language_model, nn.ModuleDict({"lvlm": lvlm, "perception": perception})
    vision = stage.name == "vision"
    slow = [*lvlm.model.vision_tower.parameters(), *lvlm.model.multi_modal_projector.parameters()]
    slow += [llm.embed_tokens.weight, perception.background, *perception.box.parameters()]
    fast = [] if vision else [p for n, p in llm.named_parameters() if "embed" not in n]
    probes = (perception.mark, perception.answered, perception.alike)
    fast += [] if vision else [parameter for probe in probes for parameter in probe.parameters()]
    groups = [{"params": slow, "share": 1.0 if vision else 0.4}, {"params": fast, "share": 1.0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98), weight_decay=0.01)
    start, log = _load_checkpoint(path, key, model, optimiser, slow + fast)
    loader = torch.utils.data.DataLoader(
        Batches(stage), batch_size=None, sampler=range(start, stage.steps), num_workers=1, prefetch_factor=4
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


def save_lvlm(lvlm, folder: Path) -> None:
    """Write weights, tokenizer and image processor, so that `from_pretrained` alone loads them."""
    lvlm.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    GotOcr2ImageProcessorPil(
        size={"height": scenes.SIZE, "width": scenes.SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, max_patches=1,
        resample=Image.Resampling.BILINEAR,
    ).save_pretrained(folder)  # fmt: skip


def train(
    folder: Path, work: Path, recipe: tuple[Stage, ...] = RECIPE, seed: int = 0, start: Path | None = None
) -> str:
    """Train the embedded LVLM by `recipe` and write weights, tokenizer, loss curve and recipe to `folder`.

    `work` holds the checkpoints; an interrupted call goes on from the last. `start` is a folder with the weights to go
    on from, without it they are initial ones. Returns the SHA-256 of the weights.
    """
    folder, work = Path(folder), Path(work)
    work.mkdir(parents=True, exist_ok=True)
    lvlm, perception = build_lvlm(seed), Perception()
    begun = None
    if start is not None:
        begun = _sha256(Path(start) / "model.safetensors")
        lvlm = InternVLForConditionalGeneration.from_pretrained(start, dtype=torch.float32).train()
    logs = []
    for number, stage in enumerate(recipe):
        key = json.dumps([seed, begun, *(asdict(earlier) for earlier in recipe[: number + 1])])
        log = train_stage(lvlm, perception, stage, work / f"{number}-{stage.name}.safetensors", key)
        logs += [{"number": number, **entry} for entry in log]
    save_lvlm(lvlm, folder)
    pd.DataFrame(logs).round(4).to_csv(folder / "loss.csv", index=False)
    digest = _sha256(folder / "model.safetensors")
    text = {"seed": seed, "start": begun, "stages": [asdict(stage) for stage in recipe], "sha256": digest}
    write_text(folder / "recipe.json", json.dumps(text, indent=2) + "\n")
    return digest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
