"""The prompt: as many image tokens as the family's image processor says, where the image's pixels say, in its units."""

import json

import numpy as np
import pytest
import torch
from harness import picture, scripted, written
from PIL import Image

from acs_lib.lvlms.adapter import ImageRefused
from acs_lib.lvlms.lfm2_vl import Lfm2VL
from acs_lib.lvlms.load import load_checkpoint
from acs_lib.lvlms.qwen_vl import Qwen2VL, Qwen3VL, Qwen25VL
from acs_lib.method.sampling import generate
from acs_lib.profiles import Sampling

SHAPES = {
    "landscape": (640, 480),
    "portrait": (427, 640),
    "square": (300, 300),
    "wide": (900, 310),
    "small": (100, 100),
}


def sizes(count: int) -> list[tuple[int, int]]:
    """Image sizes in px, sides log-uniform in 16-700."""
    rng = np.random.default_rng(0)
    return [tuple(side) for side in np.exp(rng.uniform(np.log(16), np.log(700), (count, 2))).astype(int).tolist()]


@pytest.fixture(scope="module")
def published(family):
    """The adapter with the image processor of the published models (and 256 tokens a tile)."""
    lvlm = family.build()
    lvlm.image_processor = family.published_processor()
    if hasattr(lvlm.model.config, "image_seq_length"):
        lvlm.model.config.image_seq_length = 256
    return lvlm


def check_grid(family, lvlm, width, height):
    prompt = lvlm.prompt(Image.new("RGB", (width, height)), "cat")
    shape, tokens = family.tokens(lvlm.image_processor, lvlm.model, width, height)
    cells, thumbnail = prompt.grid.cells, prompt.grid.thumbnail
    image = (prompt.inputs["input_ids"][0] == lvlm.image_token_id).nonzero()[:, 0]
    assert tuple(cells.shape) == shape, (width, height)
    assert len(image) == tokens == cells.numel() + len(thumbnail), (width, height)
    assert torch.equal(torch.cat([cells.flatten(), thumbnail]).sort().values, image)
    assert (prompt.width, prompt.height) == (width, height)
    return prompt


def test_grid_and_token_count_equal_the_image_processors(family, lvlm):
    for width, height in sizes(300):
        check_grid(family, lvlm, width, height)


def test_grid_and_token_count_at_the_published_settings(family, published):
    for width, height in [(640, 480), (480, 640), (640, 427), (1100, 90), (500, 500), (33, 700)]:
        check_grid(family, published, width, height)


def test_a_coco_photograph_has_the_tokens_that_the_papers_say(family, published):
    expected = {"qwen2-vl": (17, 23), "qwen2.5-vl": (17, 23), "qwen3-vl": (15, 20), "internvl": (48, 64)}
    expected["lfm2-vl"] = (13, 18)
    if family.name not in expected:
        pytest.skip("no published number")
    grid = published.prompt(Image.new("RGB", (640, 480)), "cat").grid
    assert tuple(grid.cells.shape) == expected[family.name]
    assert len(grid.thumbnail) == (256 if family.name == "internvl" else 0)


def test_a_profile_limits_what_an_image_becomes(family):
    """The real image processors cut into no more tiles, or resize to no more pixels, than the profile says."""
    if family.name not in ("internvl", "lfm2-vl", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"):
        pytest.skip("its settings are not known here")
    photograph, thumbnail = Image.new("RGB", (640, 480)), 256
    if family.name == "internvl":
        name, other, values = "max_tiles", "max_pixels", (1, 6, 12)
        expected = [(16, 16), (32, 48), (48, 64)]
    elif family.name == "lfm2-vl":
        name, other, values = "max_tiles", "max_pixels", (1, 6, 12)
        photograph, thumbnail = Image.new("RGB", (1024, 768)), 13 * 18
        expected = [(13, 18), (32, 48), (48, 64)]
    else:
        name, other, values = "max_pixels", "max_tiles", (100_000, 200_000, 12_845_056)
        expected = [(8, 11), (12, 16), (15, 20)] if family.name == "qwen3-vl" else [(9, 13), (13, 18), (17, 23)]
    for value, shape in zip(values, expected, strict=True):
        lvlm = family.build()
        lvlm.image_processor = family.published_processor()
        if family.name == "internvl":
            lvlm.model.config.image_seq_length = 256
        lvlm.limit(**{name: value})
        prompt = check_grid(family, lvlm, *photograph.size)
        assert tuple(prompt.grid.cells.shape) == shape, value
        assert len(prompt.grid.thumbnail) == (
            thumbnail if name == "max_tiles" and prompt.grid.cells.numel() > 256 else 0
        )
        if name == "max_pixels":
            assert prompt.inputs["pixel_values"].shape[0] * lvlm.image_processor.patch_size**2 <= value
    with pytest.raises(ValueError, match=f"the profile sets {other}, which LVLMs of the type .* they have {name}"):
        lvlm.limit(**{other: 6})


def test_fewer_pixels_than_the_smallest_image_has_are_refused(family):
    if family.adapter not in (Qwen2VL, Qwen25VL, Qwen3VL):
        pytest.skip("no limit of pixels")
    lvlm = family.build()
    with pytest.raises(ValueError, match="max_pixels is 3000, fewer than the 3136 px .*; raise it in the profile"):
        lvlm.limit(max_pixels=3000)


def test_an_image_too_narrow_is_refused(family, lvlm):
    image = Image.new("RGB", (2110, 10))
    if family.adapter in (Qwen2VL, Qwen25VL, Qwen3VL):
        with pytest.raises(ValueError, match="aspect ratio must be smaller than 200, got 211"):
            lvlm.prompt(image, "cat")
    elif family.adapter is Lfm2VL:
        with pytest.raises(ImageRefused, match=r"aspect ratio must be at most 64, got \(2110, 10\)"):
            lvlm.prompt(image, "cat")
    else:
        check_grid(family, lvlm, *image.size)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_the_image_mode_changes_nothing(lvlm, mode):
    image = picture(200, 150).convert(mode)
    pixels = lvlm.prompt(image, "cat").inputs["pixel_values"]
    assert torch.equal(pixels, lvlm.prompt(image.convert("RGB"), "cat").inputs["pixel_values"])


def test_tiles_may_do_without_their_thumbnail(family, lvlm, monkeypatch):
    if family.adapter is not Lfm2VL:
        pytest.skip("there is always one")
    monkeypatch.setattr(lvlm.image_processor, "use_thumbnail", False)
    grid = lvlm.prompt(picture(300, 200), "cat").grid
    assert grid.shape == (8, 12) and not len(grid.thumbnail)


def test_the_prompt_asks_for_the_object_after_one_image(family, lvlm):
    ids = lvlm.prompt(picture(300, 200), "hair drier").inputs["input_ids"][0]
    text = lvlm.decode(ids.tolist())
    assert text.count("Detect the hair drier in the image.") == 1
    image = (ids == lvlm.image_token_id).nonzero()[:, 0]
    if family.adapter is Lfm2VL:  # every tile has a name
        names = [f"<|img_row_{row}_col_{column}|>" for row in (1, 2) for column in (1, 2, 3)] + ["<|img_thumbnail|>"]
        written = "".join(name + "<image>" * count for name, count in zip(names, [16] * 6 + [6 * 9]))
        assert f"user\n<|image_start|>{written}<|image_end|>Detect" in text
    else:
        assert torch.equal(image, torch.arange(image[0], image[-1] + 1)), "one run of image tokens"


@pytest.mark.parametrize("shape", SHAPES)
def test_positions_are_those_of_the_familys_rotary_embedding(family, lvlm, shape):
    """Written anew from arXiv 2409.12191, section 2.1: the image's tokens share one time and count rows and columns;
    the text goes on after the largest of them. Other families count 0, 1, 2, ..."""
    prompt = lvlm.prompt(Image.new("RGB", SHAPES[shape]), "cat")
    found, following = lvlm.positions(prompt.inputs)
    expected = torch.arange(prompt.length + 1).expand(1, -1)
    if family.adapter in (Qwen2VL, Qwen25VL, Qwen3VL):
        cells = prompt.grid.cells
        rows, columns = cells.shape
        start, stop = int(cells.min()), int(cells.max()) + 1
        expected = expected.expand(3, 1, -1).clone()
        expected[..., stop:] += start + max(rows, columns) - stop
        expected[0, 0, cells] = start
        expected[1, 0, cells] = start + torch.arange(rows)[:, None]
        expected[2, 0, cells] = start + torch.arange(columns)
    assert torch.equal(found, expected[..., :-1])
    assert torch.equal(following, expected[..., -1:])


def test_a_chat_template_without_an_image_is_refused(family):
    blind = family.build()
    blind.tokenizer = type(blind.tokenizer)(tokenizer_object=blind.tokenizer.backend_tokenizer)
    blind.tokenizer.chat_template = "{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(ValueError, match="writes 0 .* for one image"):
        blind.prompt(picture(300, 200), "cat")


@torch.inference_mode()
def image_tokens_that_change(lvlm, images):
    """[length] how much the LLM's input at each position of the prompt differs between two images of one size, with
    the vision tower's attention silenced, so that a token sees nothing but its own pixels."""
    seen = []
    names = "VisionAttention", "Siglip2Attention"
    vision = [module for module in lvlm.model.modules() if type(module).__name__.endswith(names)]
    assert vision, "no vision attention found: name its class in this test"

    def silence(module, args, output):
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    handles = [module.register_forward_hook(silence) for module in vision]
    handles.append(
        lvlm.model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"][0].clone()), with_kwargs=True
        )
    )
    try:
        for image in images:
            inputs = lvlm.prompt(image, "cat").inputs
            lvlm.model(**inputs, position_ids=lvlm.positions(inputs)[0], logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return (seen[0] - seen[1]).norm(dim=-1)


def spot(size, grid_shape, row, column):
    """Two grey images, one with a bright spot in the middle half of a cell of the grid."""
    (width, height), (rows, columns) = size, grid_shape
    plain, bright = Image.new("RGB", size, "gray"), Image.new("RGB", size, "gray")
    x, y = width / columns, height / rows
    corners = [(column + 0.25) * x, (row + 0.25) * y, (column + 0.75) * x, (row + 0.75) * y]
    bright.paste("white", tuple(round(corner) for corner in corners))
    return plain, bright


def thumbnail_shape(lvlm, size) -> tuple[int, int]:
    """(rows, columns) of the thumbnail: InternVL's is a square, LFM2-VL's has the shape of the image in one piece."""
    prompt = lvlm.prompt(Image.new("RGB", size), "cat")
    if "spatial_shapes" in prompt.inputs:
        return tuple((prompt.inputs["spatial_shapes"][-1] // 2).tolist())
    return (round(len(prompt.grid.thumbnail) ** 0.5),) * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_every_cell_sees_its_own_pixels(lvlm, shape):
    """A bright spot in one cell of the image changes the input of that cell's token and of no other cell's."""
    grid = lvlm.prompt(Image.new("RGB", SHAPES[shape]), "cat").grid
    rows, columns = grid.cells.shape
    places = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)]
    rng = np.random.default_rng(1)
    places += [(int(rng.integers(rows)), int(rng.integers(columns))) for _ in range(3)]
    for row, column in places:
        change = image_tokens_that_change(lvlm, spot(SHAPES[shape], grid.cells.shape, row, column))
        in_cells = change[grid.cells]
        assert in_cells.argmax() == row * columns + column, (row, column)
        assert in_cells.flatten().topk(2).values[1] < 0.25 * in_cells.max(), (row, column)
        if len(grid.thumbnail):  # sees the spot at the same place of its own smaller grid
            down, across = thumbnail_shape(lvlm, SHAPES[shape])
            most = int(change[grid.thumbnail].argmax())
            if rows % down == 0 and columns % across == 0:
                assert most == (row * down // rows) * across + column * across // columns
            for found, place, cells, side in (  # elsewhere a cell lies across the thumbnail's
                (most // across, row, rows, down),
                (most % across, column, columns, across),
            ):
                assert int((place + 0.25) * side / cells) <= found <= int((place + 0.75) * side / cells)
        outside = torch.ones_like(change, dtype=torch.bool)
        outside[grid.cells.flatten()] = outside[grid.thumbnail] = False
        assert not change[outside].any(), "the rest of the prompt does not depend on the image"


def test_several_tiles_and_a_single_one_were_both_tested(lvlm, family):
    if family.name not in ("internvl", "lfm2-vl"):
        pytest.skip("no tiles")
    tiles = {
        shape: lvlm.prompt(Image.new("RGB", size), "cat").inputs["pixel_values"].shape[0]
        for shape, size in SHAPES.items()
    }
    assert tiles == {"landscape": 7, "portrait": 7, "square": 5, "wide": 4, "small": 1}


def test_a_box_survives_the_way_through_the_prompts_units(family, lvlm):
    """px -> integers as the model writes them -> answer text -> px, within half a unit a coordinate."""
    rng = np.random.default_rng(2)
    for width, height in sizes(40):
        prompt = lvlm.prompt(Image.new("RGB", (width, height)), "cat")
        for _ in range(10):
            x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
            box = np.array([x[0], y[0], x[1], y[1]])
            text, half = written(family, box, lvlm.image_processor, width, height)
            answer = lvlm.parse(text, prompt)
            if answer.box is None:
                assert (box[2:] - box[:2] <= 2 * half[:2]).any(), "only a box thinner than a unit may vanish"
                continue
            assert (np.abs(answer.box - box) <= half + 1e-9).all(), (width, height, box)
            digits = [text[start:stop] for start, stop in answer.spans]
            assert all(number.isdigit() for number in digits) or family.adapter is Lfm2VL
            assert f"[{', '.join(digits)}]" in text or family.adapter is not Lfm2VL


def test_the_chat_template_may_be_in_the_processors_file(family, lvlm, tmp_path):
    lvlm.model.save_pretrained(tmp_path)
    lvlm.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(family.hub_processor))
    template = tmp_path / "chat_template.jinja"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    loaded = load_checkpoint(tmp_path, dtype="float32", device="cpu")
    ids = [each.prompt(picture(333, 222), "cat").inputs["input_ids"] for each in (lvlm, loaded)]
    assert torch.equal(*ids)


def test_a_folder_as_published_loads_and_answers_alike(family, lvlm, tmp_path):
    lvlm.model.save_pretrained(tmp_path)
    lvlm.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(family.hub_processor))
    loaded = load_checkpoint(tmp_path, dtype="float32", device="cpu")
    assert type(loaded) is family.adapter
    image, how = picture(333, 222), Sampling(samples=2, max_new_tokens=8)
    prompts = [each.prompt(image, "cat") for each in (lvlm, loaded)]
    for name, value in prompts[0].inputs.items():
        if name != "pixel_values":  # mean and standard deviation are in the published files
            assert torch.equal(value, prompts[1].inputs[name]), name
    answers = [[answer["token_ids"] for answer in generate(each, [prompts[0]], [0], how)[0]] for each in (lvlm, loaded)]
    assert answers[0] == answers[1]
    with scripted(loaded, family.answer.format(x1=100, y1=100, x2=200, y2=200)) as script:
        assert generate(loaded, [prompts[1]], [0], Sampling(samples=0, max_new_tokens=99))[0][0]["token_ids"] == script
