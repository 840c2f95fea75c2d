"""The benchmarks' ways give the same rows, and every step of the GPU's runs, on the CPU with tiny models."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer

from acs_lib import paths
from acs_lib.embedded import training
from acs_lib.embedded.models import TINY
from acs_lib.profiles import load_profile
from benchmarks import bars, engine, full_size, gpu, profiles, rows, single_digits


def test_the_naive_and_the_fairer_rows_are_the_engines():
    ways = engine.Ways(engine.build(), 4)
    ways.model.get_output_embeddings().register_forward_hook(ways.write)
    engine.check_rows(ways)
    ways.generate(3)


def test_continuous_batching_writes_as_many_tokens_on_this_device():
    ways = engine.Ways(engine.build(), 4)
    ways.continuous()  # it asserts that


def test_the_committed_table_has_every_fairer_way_where_it_applies():
    table = pd.read_csv(paths.reports("benchmarks") / "engine.csv")
    assert list(table) == engine.NAMES
    there = table.set_index("measure")[engine.FAIRER].notna()
    assert (there.loc[["11 answers"]] == [True, True, False]).all(axis=None)
    assert there.loc["11 answers and rows", "rows_of_answers_only"].all()
    assert there.loc["memory of one answer's rows", "rows_of_answers_only"].all()
    assert not there.loc["capture, to none"].any(axis=None)


def test_rows_are_the_same_by_hooks_and_by_eager_attention():
    table = rows.table({4: 1})  # it asserts that
    assert list(table) == rows.NAMES and list(table["unit"]) == ["s", "s", "MB"]
    assert table[table["measure"] != "answer and rows, to none"]["hooks"].notna().all()
    assert (table["image_tokens"] == 16).all() and (table["ratio"] > 0).all()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(exit code, table) of a tiny run."""
    out = tmp_path_factory.mktemp("gpu")
    with pytest.raises(typer.Exit) as ended:
        gpu.main(minutes=30, tiny=True, out=out)
    return ended.value.exit_code, pd.read_csv(out / "gpu.csv")


def test_every_step_of_the_gpus_runs_on_the_cpu(tiny):
    code, table = tiny
    assert code == 0 and list(table) == gpu.NAMES
    assert set(table["card"]) == {"CPU"} and set(table["dtype"]) == {"float32", "bfloat16"}
    assert not table["note"].str.contains("failed|left out", na=False).any()
    for kind in ("Qwen2_5_VLForConditionalGeneration", "InternVLForConditionalGeneration"):
        measures = table[table["lvlm_class"] == kind]["measure"].value_counts()
        assert measures["rows, off eager"] == measures["greedy tokens, other than generate's"] == 2
        for measure in (
            "11 answers, to one greedy", "11 answers, to num_return_sequences", "capture, to none",
            "queries a minute, batch 1", "queries a minute, batch 2",
        ):  # fmt: skip
            assert measures[measure] == 1
    checks = table[table["tolerance"].notna()]
    assert len(checks) == 6 and (checks["ours"] <= checks["tolerance"]).all()


def test_the_embedded_lvlms_are_compared_with_the_cpu_and_its_tables(tiny):
    _, table = tiny
    other = table[table["measure"] == "embedded: answers other than the CPU's"]
    assert (
        other["lvlm_class"].tolist() == [spec.name for spec in load_profile("embedded").lvlms]
        and (other["ours"] == 0).all()
    ), "the device is the CPU here"
    stored = table[table["measure"] == "embedded: Acc@0.5, greedy, to the table"].set_index("lvlm_class")["naive"]
    results = pd.read_csv(paths.reference("embedded") / "tables" / "main_results.csv")
    greedy = results[(results["dataset"] == "scenes") & (results["method"] == "greedy")]
    assert all(stored[name] in greedy[greedy["lvlm"] == name]["acc50"].round(4).to_numpy() for name in stored.index)


def test_rows_of_other_cells_miss_the_tolerance(monkeypatch):
    lvlm = gpu.build("Qwen/Qwen2.5-VL-7B-Instruct", gpu.CPU, torch.float32, two_layers=True, tiny=True)
    eager = gpu.eager_rows
    monkeypatch.setattr(gpu, "eager_rows", lambda *asked: eager(*asked).roll(1, -1))
    prompt = lvlm.prompt(gpu.picture(224, 224), "cup")
    answer = gpu.FAMILIES["Qwen/Qwen2.5-VL-7B-Instruct"]["answer"]
    assert gpu.rows_off(lvlm, prompt, answer) > gpu.TOLERANCE[torch.float32]


def test_what_does_not_fit_or_fails_says_so_and_the_rest_goes_on(tmp_path):
    bench = gpu.Bench(gpu.CPU, 0.5, tmp_path, tiny=True)

    def broken():
        yield {"measure": "a", "naive": 2.0, "ours": 1.0}
        raise RuntimeError("CUDA out of memory\nof much")

    assert not bench.step("long", 60, broken) and not bench.step("broken", 1, broken)
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert table["measure"].tolist() == ["long", "a", "broken"]
    assert (
        table["note"][0].startswith("left out: it may take 60 s") and table["note"][2] == "failed: CUDA out of memory"
    )
    assert table["ratio"][1] == 0.5


def test_numbers_of_tiny_models_are_kept_apart():
    for asked in (dict(tiny=True), dict(out=paths.DATA)):
        with pytest.raises(typer.BadParameter, match="with --tiny"):
            gpu.main(**{"tiny": False, "out": None} | asked)


def test_every_step_of_the_full_size_runs_with_tiny_models(tmp_path, capsys):
    """Two photographs with a small cat; the second LVLM is left out where it is not asked for."""
    sizes, photos = [(320, 240), (200, 300)], tmp_path / "photos"
    (photos / "annotations").mkdir(parents=True)
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": w, "height": h} for n, (w, h) in enumerate(sizes)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [40, 30, 40, 30]} for n in range(2)],
    }
    (photos / "annotations" / "instances.json").write_text(json.dumps(content))
    for number, size in enumerate(sizes):
        gpu.picture(*size).save(photos / f"{number}.png")
    full_size.main(photos, 2, tiny=True, out=tmp_path / "out", work=tmp_path / "work")
    table = pd.read_csv(tmp_path / "out" / "full_size.csv")
    assert list(table) == full_size.COLUMNS
    assert table["lvlm"].tolist() == ["InternVL-3.5-1B", "Qwen3-VL-2B"]
    assert table["image_tokens"].tolist() == [256, (10 * 8 + 7 * 10) / 2], "one tile; cells of 32 px"
    assert (table["prompt_tokens"] > table["image_tokens"] + 20).all() and (table["answers"] == 11).all()
    assert (table[["answer_tokens", "seconds_per_query", "peak_gb", "cores"]] > 0).all(axis=None)
    for name in table["lvlm"]:
        report = tmp_path / "work" / "reports" / name
        rows = pd.read_csv(report / "tables" / "main_results.csv")
        assert {"ACS-Free", "ACS-Learned", "medoid"} < set(rows["method"]) and rows["published_acc50"].isna().all()
        assert (report / "index.html").stat().st_size > 10_000
        assert rows.set_index("method")["acc50"]["greedy"] == 1, "the first script is the annotated box"
    assert capsys.readouterr().out.count("rows as of one teacher-forced pass") == 2


def test_photographs_that_are_too_few_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no annotations/.*json; give a folder as COCO's"):
        full_size.photographs(tmp_path, 1)


def test_a_profiles_times_are_those_of_all_runs_in_turn(tmp_path, monkeypatch):
    ran, taken = [], iter([40.0, 10.0, 60.0, 30.0])

    def seconds(checkout, profile, busy):
        ran.append((checkout.name, profile, busy))
        return next(taken)

    monkeypatch.setattr(profiles, "seconds", seconds)
    monkeypatch.setattr(profiles, "TABLE", tmp_path / "profiles.csv")
    (tmp_path / "profiles.csv").write_text(
        "profile,load,before_s,after_s,ratio\nsmoke,idle,9,9,1\nsmoke,busy,1,1,1\nembedded,idle,7,7,1\n"
    )
    profiles.main(Path("before"), Path("after"), "smoke", busy=True, times=2)
    assert ran == [("before", "smoke", True), ("after", "smoke", True)] * 2
    assert (tmp_path / "profiles.csv").read_text().splitlines()[1:] == [
        "embedded,idle,7.0,7.0,1.0", "smoke,idle,9.0,9.0,1.0", "smoke,busy,50.0,20.0,0.4"
    ]  # fmt: skip


def test_the_page_says_how_long_profiles_took():
    page, table = (paths.ROOT / "docs" / "engine.md").read_text(), pd.read_csv(profiles.TABLE)
    for row in table.itertuples():
        before, ratio = ("" if pd.isna(row.before_s) else f"{row.before_s:,.0f}"), f"{row.ratio:.2f}".replace("nan", "")
        assert f"| {row.profile} | {row.load} | {before} | {row.after_s:,.0f} | {ratio} | " in page, row
    after = table.pivot(index="profile", columns="load", values="after_s")
    for slower in after["busy"] / after["idle"]:
        assert f" {slower:.2f} times" in page


def test_a_profiles_run_begins_with_nothing_and_a_failed_one_is_told(tmp_path, monkeypatch):
    def run(command, cwd, **settings):
        left = sorted(path.name for path in cwd.rglob("*") if path.is_file())
        assert left == ["kept.txt"] and command[-2:] == ["--profile", "smoke"]
        assert settings["env"]["PYTHONPATH"] == str(cwd)  # its notebooks' kernels import it, not what is installed
        return subprocess.CompletedProcess(command, 3)

    for name in ("data/runs/smoke/a.parquet", "data/scenes/b.png", "reports/smoke/c.html", "data/kept.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(profiles.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="the run ended with 3"):
        profiles.seconds(tmp_path, "smoke", busy=True)


def test_the_bars_of_an_lvlm_that_was_not_trained(untrained, tmp_path):
    """Every measure is there, of as many questions as are asked, and lies in 0-1 where it is a share."""
    folder = Path(untrained.model.name_or_path)
    bars.main([folder], "clear", images=4, out=tmp_path / "bars.csv")
    (found,) = pd.read_csv(tmp_path / "bars.csv").to_dict("records")
    assert (found["lvlm"], found["world"]) == (folder.name, "clear")
    assert found["n_absent"] == 4 and found["n_right"] == 4 and found["n_small"] > 0
    shares = {"answered", "acc50_small", "none_small", "none_absent", "right", "ap50_lists"}
    assert shares <= set(found) and all(0 <= found[name] <= 1 for name in shares)
    bars.main([folder], "clear", images=4, out=tmp_path / "bars.csv")
    bars.main([folder], "train", images=4, out=tmp_path / "bars.csv")
    assert pd.read_csv(tmp_path / "bars.csv")["world"].tolist() == ["clear", "train"]  # a row an LVLM and world


def test_none_is_said_in_the_familys_own_words_alone(family, both):
    none, said = bars.says_none(both), both.decode(bars.TINY[family].answer_ids(np.empty((0, 4))))
    assert said.replace(" ", "").startswith({"internvl": "None<", "qwen2_5_vl": "[]<"}[family])
    assert none(said) and not none("") and not none("Nonsense") and not none("<box>1 2 3 4</box>")


def test_a_list_that_names_every_object_has_an_ap_of_1(untrained, monkeypatch):
    """The answers are scripted: the true boxes of the category that is asked for, in thousandths."""
    world = bars.scenes.World(objects=(5, 6), repeats=0.5)
    drawn = list(bars.drawn(world, 2))

    def answers(lvlm, asked, question, tokens):
        for image, category in asked:
            scene = next(scene for shown, scene in drawn if shown.tobytes() == image.tobytes())
            boxes = scene.boxes[scene.categories == bars.scenes.CATEGORIES.index(category)]
            text = "".join("<box>{} {} {} {}</box>".format(*(box / 0.16).round(2)) for box in boxes)
            yield lvlm.prompt(image, category), text, [-0.1]

    monkeypatch.setattr(bars, "answers", answers)
    found = bars.lists(untrained, world, 2)
    assert found["ap50_lists"] == pytest.approx(1) and found["n_boxes"] == sum(len(scene.boxes) for _, scene in drawn)


def test_numbers_written_digit_by_digit_are_read_and_taught_as_four():
    tiny = single_digits.Digits()
    tokenizer, boxes = tiny.tokenizer(), np.array([[3, 40, 50, 160]])
    ids = tiny.answer_ids(boxes)
    text = "<box>19,250,312,1000</box><eos>"
    assert tokenizer.decode(ids) == text and tokenizer(text)["input_ids"] == ids
    assert tiny.numbered(np.array(ids)).tolist() == [-1, 0, 0, -1, 1, 1, 1, -1, 2, 2, 2, -1, 3, 3, 3, 3, -1, -1]
    asked = tiny.question_ids(3)
    packed = training.pack(tiny, [training.Question(asked, ids, 3, asked.index(tiny.category_0 + 3), True, boxes)])
    digits = packed["coordinate"] >= 0
    assert packed["coordinate"][digits].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert (packed["written"][digits] == boxes[0]).all() and (packed["written"][~digits] == -1).all()
    quoted = tiny.verification_ids(3, boxes[0])
    assert tokenizer.decode(quoted).count("19,250,312,1000") == 1 and not (np.array(quoted) == tiny.number_0 + 3).any()


def test_the_trial_begins_with_the_shipped_weights():
    lvlm, shipped = single_digits.Digits().begun(), TINY["internvl"].model_class.from_pretrained(single_digits.START)
    for name, weights in shipped.state_dict().items():
        assert torch.equal(lvlm.state_dict()[name][: len(weights)], weights.float()), name
    assert len(lvlm.get_input_embeddings().weight) == len(shipped.get_input_embeddings().weight) + 10
