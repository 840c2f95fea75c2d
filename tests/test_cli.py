"""The command line as a shell user meets it: output for pipes, exit codes, one sentence for each mistake."""

import csv
import errno
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from acs_lib import cli, paths, runner
from acs_lib.core.errors import UserError
from acs_lib.datasets import download
from acs_lib.grounding import api
from acs_lib.lvlms.adapter import ImageRefused
from acs_lib.lvlms.load import load_lvlm
from acs_lib.method.heads import HeadSet
from acs_lib.profiles import load_profile
from acs_lib.report import page

FEW = ["--samples", "1"]
SCENES = sorted((paths.EMBEDDED / "samples" / "images").glob("*.png"))
SCENE = str(SCENES[0])


def acs(*arguments):
    """(exit code, standard output, standard error); an exception that reaches the shell fails the test."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def table(text):
    return list(csv.DictReader(io.StringIO(text), dialect="excel-tab"))


@pytest.fixture
def answered(monkeypatch):
    """The arguments of every call of `ground`, which is still made."""
    calls, real = [], api.ground

    def recorded(lvlm, image, category, **settings):
        calls.append({"category": category, **settings})
        return real(lvlm, image, category, **settings)

    monkeypatch.setattr(api, "ground", recorded)
    return calls


# ------------------------------------------------------------------------------------------------------------ ground


def test_one_image_and_one_object(answered):
    code, out, err = acs("ground", SCENE, "fire truck", "--seed", 3, "--selector", "Medoid", *FEW)
    (row,) = table(out)
    assert list(row) == cli.COLUMNS
    assert (row["image"], row["object"]) == (SCENE, "fire truck")
    if code == 0:
        x1, y1, x2, y2 = (float(row[name]) for name in ("x1", "y1", "x2", "y2"))
        assert 0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 160 and err == ""
    assert answered == [
        {"category": ["fire truck"], "selector": "Medoid", "samples": 1, "temperature": None, "top_p": None, "seed": 3,
         "max_new_tokens": None, "head_set": None, "regressor": None, "zoom": None,
         "risk": None, "effort": "all"}
    ]  # fmt: skip


def test_a_closer_look(answered):
    acs("ground", SCENE, "fire truck", "--zoom", 2, *FEW)
    assert answered[0]["zoom"] == 2
    code, _, err = acs("ground", SCENE, "fire truck", "--zoom", 1)
    assert code == 2 and "--zoom has to be above 1" in err


def test_all_objects_of_a_kind(tmp_path):
    code, out, err = acs("detect", SCENE, "-o", "clock", "-o", "fire truck", "--save", tmp_path / "drawn", *FEW)
    rows = table(out)
    assert (code, err) == (0, "") and list(rows[0]) == ["image", "object", "x1", "y1", "x2", "y2", "score", "votes"]
    assert {row["object"] for row in rows} == {"clock", "fire truck"}
    assert all(0 <= float(row["votes"]) <= 1 for row in rows if row["votes"])
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
    _, out, _ = acs("detect", SCENE, "clock", "--json", *FEW)
    (told,) = map(json.loads, out.splitlines())
    assert told["category"] == "clock" and all(row["x1"] < row["x2"] for row in told["instances"])
    code, out, err = acs("detect", SCENE, tmp_path / "nowhere.png", "-o", "clock", "-o", "giraffe", *FEW)
    assert code == 1 and "no word for 'giraffe'" in err and "there is no image" in err
    assert {row["object"] for row in table(out)} == {"clock"}


def test_cocos_results_have_the_ids_of_an_annotation_file(tmp_path, monkeypatch):
    annotations = paths.EMBEDDED / "samples" / "annotations.json"
    known = json.loads(annotations.read_text())
    (category,) = [each["id"] for each in known["categories"] if each["name"] == "clock"]
    numbers = {each["file_name"]: each["id"] for each in known["images"]}
    asked = [*SCENES[:2], "-o", "Clock", "--out", tmp_path / "kept", "--annotations", annotations, *FEW]
    code, out, _ = acs("detect", *asked, "--coco", tmp_path / "found.json")
    kept = [json.loads(line) for line in (tmp_path / "kept").read_text().splitlines()]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (code, out) == (0, "") and len(kept) == 2
    assert found == [
        {"image_id": numbers[os.path.basename(answer["image"])], "category_id": category, "score": row["score"],
         "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]]}
        for answer in kept for row in answer["instances"]
    ]  # fmt: skip
    acs("detect", *asked, "--coco", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == found, "of answers that were kept"
    monkeypatch.setattr(cli, "_loaded", lambda *arguments: pytest.fail("no LVLM was to be loaded"))
    coco = ["--coco", tmp_path / "x", "--annotations", annotations]
    assert "has 0 entries named 'giraffe'" in acs("detect", SCENE, "giraffe", *coco)[2]
    assert "has 0 entries named 'a.png'" in acs("detect", tmp_path / "a.png", "clock", *coco)[2]
    for arguments, message in (
        (coco[:2], "--coco and --annotations belong together"),
        (["--selector", "medoid"], "there is no selector 'medoid'; choose one of votes, acs-free"),
    ):
        code, _, err = acs("detect", SCENE, "clock", *arguments)
        assert code == 2 and message in " ".join(err.split())


def test_the_limit_of_an_answers_tokens(answered):
    code, out, err = acs("ground", SCENE, "fire truck", "--max-new-tokens", 3, "--json", *FEW)
    assert code == 1 and answered[0]["max_new_tokens"] == 3 and "gave no box" in err
    assert all("--max-new-tokens" in candidate["failure"] for candidate in json.loads(out)["candidates"])
    code, _, err = acs("ground", SCENE, "fire truck", "--max-new-tokens", 0)
    assert code == 2 and "--max-new-tokens" in err


def test_a_folder_and_several_objects_as_json(tmp_path):
    for scene, name in zip(SCENES[:2], ("b c.png", "a.PNG")):
        shutil.copy(scene, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    _, out, _ = acs("ground", tmp_path, SCENES[2], "-o", "clock", "--object", "cup", "--json", *FEW)
    answers = [json.loads(line) for line in out.splitlines()]
    images = [str(tmp_path / "a.PNG"), str(tmp_path / "b c.png"), str(SCENES[2])]
    assert [(a["image"], a["category"]) for a in answers] == [(i, o) for i in images for o in ("clock", "cup")]
    assert all(len(answer["candidates"]) == 2 for answer in answers)


def test_pictures_of_a_kind_that_cannot_be_read_are_named_and_counted(tmp_path):
    """A phone's HEIC in a folder is no reason to stop, and none to be silent."""
    shutil.copy(SCENES[0], tmp_path / "a.png")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "b.CR2", "c.svg", "d.jxl", "notes.txt", "clip.mp4", "paper.pdf"):
        (tmp_path / name).write_bytes(b"....ftypheic")
    code, out, err = acs("ground", tmp_path, "clock", *FEW)
    assert code == 1 and [row["image"] for row in table(out)] == [str(tmp_path / "a.png")]
    assert "5 of 6 pictures could not be read or answered" in err
    assert "of a kind that cannot be read: 5 (IMG_1.HEIC, IMG_2.heic, b.CR2 and 2 more)" in err
    assert "save them as PNG, JPEG or WebP" in err
    (tmp_path / "a.png").unlink()
    code, out, err = acs("ground", tmp_path, "clock", *FEW)
    assert code == 2 and "there is no image" in err and "cannot be read: 5 (" in err and out == ""
    assert "is not an image that can be read; give a PNG" in acs("ground", tmp_path / "b.CR2", "clock", *FEW)[2]


def test_what_else_is_in_a_folder_is_named_and_counted(tmp_path):
    shutil.copy(SCENE, tmp_path / "a.png")
    (tmp_path / "more.png").mkdir()
    for name in (".DS_Store", "b.json", "c", "d.txt"):
        (tmp_path / name).write_text("{}")
    _, out, err = acs("ground", tmp_path, "clock", *FEW)
    assert [row["image"] for row in table(out)] == [str(tmp_path / "a.png")]
    assert f"left out in {tmp_path}, being no pictures by their names: 4 (b.json, c, d.txt and 1 more)" in err
    (tmp_path / "d.txt").unlink()
    assert "names: 3 (b.json, c, more.png/)" in acs("ground", tmp_path, "clock", *FEW)[2]


@pytest.mark.parametrize("name", ["there.heic", "there.png"])
def test_a_picture_is_no_object(name):
    code, _, err = acs("ground", SCENE, name, *FEW)
    assert code == 2 and "name the object to look for" in err


def test_an_image_that_cannot_be_read_does_not_stop_the_others(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    code, out, err = acs("ground", tmp_path / "nowhere.png", broken, SCENE, "-o", "clock", "-o", "car", *FEW)
    assert code == 1
    assert [row["image"] for row in table(out)] == [SCENE, SCENE]
    assert err.count("there is no image") == err.count("broken.png is not an image") == 1
    assert err.endswith("2 of 3 pictures could not be read or answered; see above why")


def test_an_image_that_the_lvlm_refuses_does_not_stop_the_others(monkeypatch, tmp_path):
    Image.new("RGB", (400, 1)).save(tmp_path / "long.png")
    embedded = type(load_lvlm())
    real = embedded.prompts

    def refuses(lvlm, image, categories):
        if image.width > 200 * image.height:
            raise ImageRefused("aspect ratio must be smaller than 200")
        return real(lvlm, image, categories)

    monkeypatch.setattr(embedded, "prompts", refuses)
    code, out, err = acs("ground", tmp_path / "long.png", SCENE, "-o", "clock", "-o", "car", *FEW)
    assert code == 1 and [(row["image"], row["object"]) for row in table(out)] == [(SCENE, "clock"), (SCENE, "car")]
    assert err.count(f"error: {tmp_path / 'long.png'}: aspect ratio") == 1


def test_an_object_without_a_word_does_not_stop_the_others(answered, tmp_path):
    code, out, err = acs(
        "ground", *SCENES[:2], "-o", "sports ball", "-o", "Car", "-o", "clock", "--save", tmp_path, *FEW
    )
    assert code == 1 and err.count("error: internvl-embedded has no word for 'sports ball'") == 1
    assert [row["object"] for row in table(out)] == ["car", "clock"] * 2
    assert [call["category"] for call in answered] == [["car", "clock"]] * 2, "each image is asked about once"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{scene.stem}-{wanted}.png" for scene in SCENES[:2] for wanted in ("car", "clock")
    ]


def test_an_object_that_is_named_twice_is_answered_twice():
    _, out, _ = acs("ground", SCENE, "-o", "car", "-o", "clock", "-o", "car", *FEW)
    first, _, third = table(out)
    assert first == third and first["object"] == "car"


def test_answers_are_not_lost_to_a_picture_that_cannot_be_written(monkeypatch, tmp_path):
    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(api.Grounding, "save", full)
    code, out, err = acs("ground", SCENE, "-o", "car", "-o", "clock", "--save", tmp_path, *FEW)
    assert code == 1 and "the disk is full" in err
    assert [row["object"] for row in table(out)] == ["car", "clock"]


def test_an_object_that_is_not_found_is_an_empty_box_and_exit_code_1(monkeypatch):
    monkeypatch.setattr(type(load_lvlm()), "box_pattern", re.compile(r"(x)(x)(x)(x)"))
    code, out, err = acs("ground", SCENE, "car", *FEW)
    assert code == 1 and "gave no box for 'car'" in err
    assert [table(out)[0][name] for name in ("x1", "y2", "predicted_iou")] == ["", "", ""]


def test_pictures_are_saved(tmp_path):
    acs("ground", SCENE, "car", "--save", tmp_path / "found.png", *FEW)
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    shutil.copy(SCENE, tmp_path / SCENES[0].name)
    both = (SCENE, tmp_path / SCENES[0].name)
    acs("ground", *both, "-o", "fire truck", "--save", tmp_path / "new" / "folder", *FEW)
    names = [path.name for path in sorted((tmp_path / "new" / "folder").iterdir())]
    assert names == ["000000-fire-truck-2.png", "000000-fire-truck.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'IMAGE"),
        ([SCENE], "name the object to look for"),
        ([SCENE, SCENE], "name the object to look for"),
        ([SCENE, " "], "the object is empty"),
        ([SCENE, "-o", ""], "the object is empty"),
        ([SCENE, "car", "--selector", "best"], "no selector 'best'; choose one of acs-free, acs-learned"),
        ([SCENE, "car", "--samples", "0"], "Invalid value for '--samples'"),
        ([SCENE, "car", "--temperature", "0"], "temperature has to be a number above 0"),
        ([SCENE, "car", "--temperature", "inf"], "temperature has to be a number above 0"),
        ([SCENE, "not_there.png"], "name the object to look for"),
        ([SCENE, "car", "--top-p", "1.5"], "top-p has to be above 0 and up to 1"),
        ([SCENE, "car", "--save", "a.txt"], "name it .png"),
        ([SCENE, "car", "--save", SCENE], "would overwrite the image"),
        ([SCENE, "car", "--save", "no/such/folder/a.png"], "there is no folder no/such/folder"),
        ([SCENE, SCENE, "-o", "car", "--save", "a.png"], "one file for 2 pictures; give a folder"),
        ([paths.LIBRARY, "car"], "there is no image in the folder"),
        ([SCENE, "car", "--nonsense"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, message):
    code, out, err = acs("ground", *arguments)
    assert (code, out) == (2, "") and message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SCENE, "sports ball"], "no word for 'sports ball'; ask for something it knows: dog"),
        (
            [SCENE, "car", "--lvlm", "gpt"],
            "there is no LVLM 'gpt': give internvl-embedded, qwen2.5-vl-embedded, qwen2.5-vl-embedded-plain, ",
        ),
        ([SCENE, "car", "--lvlm", paths.DATA], "data': it has no config.json that names a model type; give a folder"),
        ([SCENE, "car", "--head-set", "nowhere.json"], "No such file or directory: nowhere.json"),
        ([SCENE, "car", "--regressor", SCENE], "holds no regressor"),
        (["nowhere.png", "car"], "there is no image nowhere.png"),
        ([SCENE, "car", "--lvlm", "./nowhere"], "there is no LVLM './nowhere'"),
    ],
)
def test_what_can_be_mended_is_one_sentence_and_exit_code_1(arguments, message):
    code, out, err = acs("ground", *arguments)
    assert code == 1 and message in err and not table(out)


def test_an_lvlm_that_cannot_say_yes_is_told(monkeypatch):
    monkeypatch.setattr("acs_lib.method.baselines.p_true.YES", "Ja")
    code, out, err = acs("ground", SCENE, "car", "--selector", "p-true")
    assert code == 1 and "internvl-embedded cannot be asked whether a box is right" in err and not table(out)


@pytest.mark.usefixtures("offline_hub")
def test_no_network_is_told():
    code, _, err = acs("ground", SCENE, "car", "--lvlm", "someone/model")
    assert code == 1
    assert "note: someone/model is fetched from the model hub" in err
    assert "cannot load the LVLM 'someone/model'" in err and "or a hub name with the network at hand" in err


def test_a_machine_without_a_gpu_is_told_of_the_wait(untrained, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, out, err = acs("ground", SCENE, "car", "--lvlm", untrained.model.name_or_path, "--selector", "medoid", *FEW)
    assert "there is no GPU here" in err and table(out)
    for name in ("internvl-embedded", "qwen2.5-vl-embedded"):
        assert "no GPU" not in acs("ground", SCENE, "car", "--lvlm", name, *FEW)[2], "the embedded LVLMs need none"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "the disk is full at a.png; free some space"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), 1, "Permission denied: a.png"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to"),
            1,
            "out of memory (CUDA out of memory); ask for fewer --samples, fewer objects at once",
        ),
        (RuntimeError("CUDA out of memory with 2 x 11 answers at once; name"), 1, "(CUDA out of memory with 2 x 11 a"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory (DefaultCPUAlloc"),
        (MemoryError(), 1, "out of memory"),
        (UserError("a worker died; start again", 3), 3, "error: a worker died; start again"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_befalls_the_machine(monkeypatch, error, code, message):
    def befallen(*arguments, **settings):
        raise error

    monkeypatch.setattr(api, "ground", befallen)
    found, _, err = acs("ground", SCENE, "car")
    assert found == code and message in err


def test_a_warning_is_one_line_of_standard_error():
    code, out, err = acs("ground", *SCENES[:2], "--object", "car", "--temperature", 0.5, "--selector", "medoid", *FEW)
    assert len(table(out)) == 2 and err.count("were found at temperature 0.8") == 1
    assert err.startswith("warning: D_c and regressor") and ".py" not in err


def test_fetching_can_be_stopped(monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "get", stopped)
    code, _, err = acs("data", "coco")
    assert (code, err) == (130, "stopped")


@pytest.mark.parametrize(
    "command", ["ground", "detect", "probe", "score", "calibrate", "run", "report", "train-embedded", "data"]
)
def test_help_is_of_one_style(command):
    for parameter in typer.main.get_command(cli.app).commands[command].params:
        if parameter.name != "help":
            assert parameter.help[0].isupper() and parameter.help.endswith("."), parameter.name


def test_a_defect_of_the_kit_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(api, "ground", lambda *arguments, **settings: [].missing)
    with pytest.raises(AttributeError):
        acs("ground", SCENE, "car")


# --------------------------------------------------------------------------------------------------- other commands


def test_help_is_quick_and_lists_the_commands():
    code = "import sys; from acs_lib.cli import app; assert 'torch' not in sys.modules; app(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.LIBRARY.parent)
    assert done.returncode == 0 and done.stderr == ""
    for command in (
        "ground",
        "detect",
        "probe",
        "score",
        "calibrate",
        "demo",
        "run",
        "clean",
        "report",
        "train-embedded",
        "--install-completion",
    ):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("acs ground a.png dog --selector acs-", "acs-free acs-learned"),
        ("acs ground a.png dog --lvlm Qwen2", "Qwen2.5-VL-7B"),
        ("acs run --profile sm", "smoke"),
        ("acs detect a.png dog --selector v", "votes"),
        ("acs probe --question m", "makers"),
        ("acs calibrate --units xyxy", "xyxy px xyxy 0-1 xyxy 0-1000"),
        ("acs compare sm", "smoke"),
        ("acs data o", "objects365"),
        ("acs train-embedded q", "qwen2_5_vl"),
    ],
)
def test_the_shell_completes_names(words, completed):
    asked = {"_ACS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "from acs_lib.cli import app; app(prog_name='acs')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, cwd=paths.LIBRARY.parent
    )
    assert done.stdout.split() == completed.split()


def test_the_shell_completes_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    (tmp_path / "mine").mkdir()
    assert "mine" in list(cli._runs())


def test_run_is_the_runner(monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "run", lambda *arguments: asked.append(arguments))
    assert acs("run", "--profile", "smoke", "--from", "3", "--dry-run")[0] == 0
    assert asked[0][:3] == ("smoke", 3, True)


def test_run_and_report_refuse_an_unknown_profile():
    code, _, err = acs("run", "--profile", "smok")
    assert code == 2 and "unknown profile 'smok'; choose one of ablations, beyond" in err
    code, _, err = acs("report", "--profile", "smok")
    assert code == 1 and "unknown profile 'smok'; choose one of ablations, beyond" in err


def test_report_builds_the_page_of_a_finished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    code, _, err = acs("report", "--profile", "smoke")
    assert code == 1 and "no finished run; run acs run --profile smoke" in err
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "manifest.json").write_text("{}")
    code, out, _ = acs("report", "--profile", "smoke")
    assert (code, out.strip()) == (0, str(tmp_path / "smoke" / "index.html"))
    assert (tmp_path / "smoke" / "index.html").read_text() == page.render("smoke", tmp_path / "smoke")


def test_calibrate_takes_over_from_a_finished_run(tmp_path, monkeypatch):
    """Each embedded LVLM's files go beside its weights."""
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    monkeypatch.setattr(paths, "EMBEDDED", tmp_path / "embedded")
    code, _, err = acs("calibrate", "--profile", "smoke")
    assert code == 1 and "run acs run --profile smoke first" in err
    lvlms = load_profile("smoke").lvlms
    for number, spec in enumerate(lvlms):
        found = tmp_path / "smoke" / spec.name
        found.mkdir(parents=True)
        HeadSet(spec.name, "scenes", ((number, 2),)).save(found / "head_set.json")
        (found / "regressor-0.safetensors").write_bytes(b"weights")

    def thresholds(profile):
        for lvlm in profile.lvlms:
            (tmp_path / "smoke" / lvlm.name / "risk.json").write_text(lvlm.name)

    monkeypatch.setattr("acs_lib.study.calibrate.fit_thresholds", thresholds)
    code, out, _ = acs("calibrate", "--profile", "smoke")
    assert code == 0
    names = [os.path.basename(line) for line in out.splitlines()]
    assert names == ["head_set.json", "regressor.safetensors", "risk.json"] * len(lvlms)
    for number, spec in enumerate(lvlms):
        folder = tmp_path / "embedded" / os.path.basename(spec.source)
        assert HeadSet.load(folder / "head_set.json", spec.name).heads == ((number, 2),)
        assert (folder / "regressor.safetensors").read_bytes() == b"weights"
        assert (folder / "risk.json").read_text() == spec.name


def test_heads_without_annotations_are_found_by_the_question_that_is_given(tmp_path, monkeypatch):
    found = []

    def find(spec, files, objects, how, out):
        found.append((spec.question, [file.name for file in files], objects, how.samples, out))
        return (
            tmp_path / "head_set.json",
            HeadSet(spec.name, "x", ((1, 2),)),
            dict.fromkeys(("answers", "questions", "high", "zero"), 3),
        )

    monkeypatch.setattr("acs_lib.study.calibrate.find_label_free", find)
    code, out, err = acs(
        "calibrate", "--images", SCENES[0].parent, "-o", "dog", "--question", "Where is {object}?", *FEW
    )
    assert (code, out.strip()) == (0, str(tmp_path / "head_set.json")) and "((1, 2),)" in err
    ((question, files, objects, samples, folder),) = found
    assert (question, objects, samples, folder) == ("Where is {object}?", ["dog"], int(FEW[1]), None)
    assert files == sorted(path.name for path in SCENES[0].parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give --images with --annotations or with --object, or --profile"),
        (["--annotations", "a.json"], 2, "give --images with --annotations or"),
        (["--profile", "smoke", "--annotations", "a.json"], 2, "or --profile"),
        (["--profile", "paper", "--out", "x"], 2, "profile paper has 2 LVLMs; leave --out away"),
        (["--profile", "smok"], 1, "unknown profile 'smok'"),
        (["--annotations", "nowhere.json", "--images", paths.DATA], 1, "no annotation file at"),
        (["--annotations", __file__, "--images", paths.DATA], 1, "is not JSON"),
        (["--annotations", SCENE, "--images", "nowhere"], 1, "there is no folder of images at"),
        (["--annotations", paths.EMBEDDED / "samples" / "annotations.json", "--images", SCENES[0].parent], 1, "least"),
    ],
)
def test_calibrate_says_what_it_lacks(arguments, code, message):
    found, out, err = acs("calibrate", *arguments)
    assert (found, out) == (code, "") and message in err


def test_training_from_a_folder_without_weights_says_so(tmp_path):
    code, _, err = acs("train-embedded", "--folder", tmp_path / "out", "--from", tmp_path, "--work", tmp_path / "work")
    assert code == 1 and "holds no weights; give a folder with a model.safetensors" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["ground"], ["ground", SCENE, "dog", "--selector", "best"], ["--help"]], ids=str)
def test_no_color_means_no_colour_at_a_terminal(arguments):
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    environment |= {"NO_COLOR": "1", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "acs_lib.cli", *arguments]
    subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, cwd=paths.LIBRARY.parent, timeout=60)
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "sage: " in text and "\x1b" not in text
