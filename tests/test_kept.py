"""`acs ground FOLDER --out FILE`: whatever stops it, the same command goes on and leaves what one call would have."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from test_cli import FEW, SCENES, acs

from acs_lib import paths
from acs_lib.grounding import api, detect
from acs_lib.grounding.kept import keep, lacks_box, read_kept

ASKED = {"samples": 1, "object": ["dog"]}
LACKING = re.compile(r"warning: \S+: internvl-embedded gave no box for '[a-z]+' ")


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------ a file


def test_what_is_kept_is_read_again(tmp_path):
    file = tmp_path / "boxes.jsonl"
    assert read_kept(file, ASKED) == {} and not file.exists()
    found, lacking = {"category": "dog", "box": [1, 2, 3, 4], "candidates": ["long"]}, {"category": "cät", "box": None}
    keep(file, "a.png", [found, lacking], ASKED)
    keep(file, "b.png", [found], ASKED)
    kept = read_kept(file, ASKED)
    assert list(kept) == [("a.png", "dog"), ("a.png", "cät"), ("b.png", "dog")]
    assert [lacks_box(answer) for answer in kept.values()] == [False, True, False]
    assert kept["b.png", "dog"]["box"] == [1, 2, 3, 4] and "candidates" not in kept["b.png", "dog"]
    assert not lacks_box({"category": "dog", "instances": []})


def test_a_last_line_that_was_cut_off_anywhere_is_taken_out(tmp_path):
    file = tmp_path / "boxes.jsonl"
    keep(file, "a.png", [{"category": "dog", "box": None}], ASKED)
    whole = file.read_bytes()
    for cut in (1, 5, 15, len(whole) - 1):
        file.write_bytes(whole + whole.replace(b"a.png", b"b.png")[:cut])
        assert list(read_kept(file, ASKED)) == [("a.png", "dog")] and file.read_bytes() == whole
    file.write_bytes(whole[:30])
    assert read_kept(file, ASKED) == {} and file.read_bytes() == b""


@pytest.mark.parametrize(
    "content", [b"my notes", b"[1]\n", b"7\n", b'{"image": "a.png"}\n', b"\n", b"\x89PNG\n\xff", b"{}"]
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "mine"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"line 1 of {file} is no answer kept there; name another file"):
        read_kept(file, ASKED)
    assert file.read_bytes() == content


def test_answers_of_other_settings_are_refused(tmp_path):
    file = tmp_path / "boxes.jsonl"
    keep(file, "a.png", [{"category": "dog", "box": None}], ASKED | {"same": 0.5})
    with pytest.raises(
        ValueError, match=r"holds answers asked with samples 1, same 0.5, not samples 3, same None; name"
    ):
        read_kept(file, ASKED | {"samples": 3})


# --------------------------------------------------------------------------------------------------------- a folder


@pytest.fixture
def folder(tmp_path):
    """Three scenes, and between them a picture that cannot be read."""
    (tmp_path / "photos").mkdir()
    for scene, name in zip(SCENES, "acd"):
        shutil.copy(scene, tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "b.png").write_text("no image")
    return tmp_path / "photos"


def stopped_after(monkeypatch, module, name, calls):
    """`module.name` is Ctrl-C from its call number `calls` + 1 on; the list of its calls."""
    real, made = getattr(module, name), []

    def stopped(*arguments, **settings):
        made.append(arguments)
        if len(made) > calls:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(module, name, stopped)
    return made


def test_the_same_command_goes_on(folder, tmp_path, monkeypatch):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "boxes.jsonl"
    asked = ["ground", folder, "-o", "Clock", "-o", "car", *FEW, "--out"]
    code, out, err = acs(*asked, whole)
    assert out == "" and "b.png is not an image" in err and "1 of 4 pictures could not be read or answered" in err
    assert [(each["image"][-5:], each["category"]) for each in lines(whole)] == [
        (name, wanted) for name in ("a.png", "c.png", "d.png") for wanted in ("clock", "car")
    ]
    with monkeypatch.context() as patched:
        stopped_after(patched, api, "ground", 2)
        stopped, _, err = acs(*asked, file)
        told, warned = LACKING.subn("", err)
        assert (
            stopped == 130
            and warned == sum(map(lacks_box, lines(file)))
            and told
            == (
                f"error: {folder / 'b.png'} is not an image that can be read; give a PNG, JPEG or WebP file "
                "stopped; the same command goes on from there"
            )
        )
    assert len(lines(file)) == 4
    file.write_bytes(file.read_bytes()[:-20])  # as if killed while it wrote: c.png's car is to be asked for again
    with monkeypatch.context() as patched:
        made = stopped_after(patched, api, "ground", 2)
        again, _, err = acs(*asked, file)
        assert again == code == 1 and len(made) == 2
    assert f"1 of 4 pictures were answered before, in {file}" in err and "b.png is not an image" in err
    assert file.read_bytes() == whole.read_bytes()
    shutil.copy(SCENES[3], folder / "b.png")
    acs(*asked, file)
    assert [each["image"][-5:] for each in lines(file)[-2:]] == ["b.png", "b.png"]
    _, _, err = acs(*asked, file)
    assert err.startswith(f"4 of 4 pictures were answered before, in {file}") and "could not" not in err


def test_lists_of_objects_go_on_likewise(folder, tmp_path, monkeypatch):
    file = tmp_path / "dogs.jsonl"
    asked = ["detect", folder, "clock", *FEW, "--max-new-tokens", 8, "--out", file]
    made = stopped_after(monkeypatch, detect, "detect", 1)
    assert acs(*asked)[0] == 130 and len(lines(file)) == 1
    made.clear()
    assert acs(*asked)[0] == 130 and len(lines(file)) == 2, "nothing to be found is an answer"
    assert "instances" in lines(file)[0] and made[1][1].size == (160, 160)


def test_pictures_of_a_stopped_call_are_drawn_when_their_answers_are_kept(folder, tmp_path, monkeypatch):
    file, drawn = tmp_path / "boxes.jsonl", tmp_path / "drawn"
    asked = ["ground", folder, "clock", *FEW, "--out", file, "--save", drawn]
    with monkeypatch.context() as patched:
        stopped_after(patched, api.Grounding, "save", 1)
        assert acs(*asked)[0] == 130 and len(lines(file)) == 1
    err = acs(*asked)[2]
    assert f"1 of 4 pictures were answered before, in {file}, and are not drawn again" in err
    assert sorted(path.name for path in drawn.iterdir()) == ["a-clock.png", "c-clock.png", "d-clock.png"]


def test_an_answer_without_a_box_counts_when_it_is_kept(folder, tmp_path):
    file = tmp_path / "boxes.jsonl"
    (folder / "b.png").unlink()
    asked = ["ground", folder, "clock", "--max-new-tokens", 3, *FEW, "--out", file]
    assert acs(*asked)[0] == 1 and [each["box"] for each in lines(file)] == [None] * 3
    assert acs(*asked) == (1, "", f"3 of 3 pictures were answered before, in {file}")


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    """A file with one answer."""
    file = tmp_path_factory.mktemp("kept") / "boxes.jsonl"
    acs("ground", SCENES[0], "-o", "clock", *FEW, "--out", file)
    return file


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (["--seed", 1], "seed 0, not seed 1"),
        (["-o", "car"], "object ['clock'], not object ['clock', 'car']"),
        (["--selector", "medoid"], "selector acs-free, not selector medoid"),
        (["--samples", 2], "samples 1, not samples 2"),
        (["--lvlm", "qwen2.5-vl-embedded"], "lvlm internvl-embedded, weights "),
        (["--question", "Where is the {object}?"], "question Detect the {object} in the image., not question Where"),
    ],
)
def test_other_settings_are_refused_in_one_sentence(clock, other, told):
    file, before = clock, clock.read_bytes()
    code, out, err = acs("ground", SCENES[0], "-o", "clock", *FEW, "--out", file, *other)
    assert (code, out) == (1, "") and f"error: {file} holds answers asked with {told}" in err
    assert err.endswith("; name another file") and file.read_bytes() == before


def test_a_place_that_cannot_be_written_to_is_wrong_usage(tmp_path):
    assert acs("ground", SCENES[0], "clock", "--out", tmp_path)[0] == 2
    code, _, err = acs("ground", SCENES[0], "clock", "--out", tmp_path / "no" / "boxes.jsonl")
    assert code == 2 and f"there is no folder {tmp_path / 'no'}" in err


def test_ctrl_c_leaves_whole_lines(tmp_path):
    """A real one, in the middle of many pictures."""
    for number in range(300):
        (tmp_path / f"{number:03}.png").symlink_to(SCENES[number % len(SCENES)])
    file = tmp_path / "boxes.jsonl"
    command = [
        sys.executable,
        "-m",
        "acs_lib",
        "ground",
        tmp_path,
        "clock",
        "--selector",
        "medoid",
        *FEW,
        "--out",
        file,
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=paths.LIBRARY.parent,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )  # fmt: skip
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") > 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("\nstopped; the same command goes on from there\n"), err
    assert 2 < len(lines(file)) < 300 and file.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(("imported", "code", "told"), [("typer", -signal.SIGINT, ""), ("torch", 130, "\nstopped\n")])
def test_ctrl_c_at_the_beginning_leaves_no_traceback(imported, code, told):
    """While the command line is loaded, and while a command loads what it needs."""
    program = f"""
import signal, sys
from acs_lib.__main__ import main

class Stopped:
    def find_spec(name, path, target=None):
        if name == {imported!r}:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.meta_path.insert(0, Stopped)
sys.argv = ["acs", "ground", {str(SCENES[0])!r}, "clock"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=paths.LIBRARY.parent)
    assert (done.returncode, done.stderr) == (code, told)
