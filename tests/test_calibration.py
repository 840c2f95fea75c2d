"""A head set and a regressor that are handed on: the card, the digests, and where a folder may come from."""

import subprocess

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from acs_lib.cli import app
from acs_lib.core.files import check_sums, write_sums
from acs_lib.grounding.calibration import calibration
from acs_lib.lvlms.load import lvlm_spec
from acs_lib.method.heads import HeadSet
from acs_lib.method.origin import Origin
from acs_lib.profiles import load_profile
from acs_lib.study.card import make_card

LAPTOP = load_profile("laptop")
SPEC = LAPTOP.lvlms[0]
COMMIT = "9" * 40


def head_set() -> HeadSet:
    origin = Origin(
        weights=f"{SPEC.source}@{COMMIT}", question=SPEC.question, sampling=LAPTOP.sampling, map_side=16, small=0.05
    )
    return HeadSet(SPEC.name, "COCO", ((14, 3), (20, 0)), (0, 2), origin)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared").mkdir()
    head_set().save(tmp_path / "shared" / "head_set.json")
    (tmp_path / "shared" / "regressor.safetensors").write_bytes(b"weights")
    write_sums(tmp_path / "shared", ["head_set.json", "regressor.safetensors"])
    return tmp_path / "shared"


def test_the_card_says_what_they_belong_to_and_how_good_they_are():
    heads = pd.DataFrame([(14, 3, 0.8125, True), (20, 0, None, True)], columns=["layer", "head", "auroc", "selected"])
    fit = pd.DataFrame({"pearson": [0.5, 0.625, 0.6], "n": [660, 660, 660]})
    text = make_card(LAPTOP, SPEC, head_set(), {"train": 300}, heads, fit, "MIT")
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == SPEC.source and front["license"] == "mit"
    for row in (
        f"| LVLM | `{SPEC.source}` |", f"| commit | `{COMMIT}` |", "| image | max_tiles 1 |",
        "| data | COCO: objects up to 5.0% of their image |", "| n, train | 300 objects |",
        "| n, validation | not recorded |", "| r | 0.625 (Pearson, of 660 answers to validation images) |",
        "| licence | MIT |", "| 14 | 3 | 0.812 |", "| 20 | 0 | not recorded |",
    ):  # fmt: skip
        assert row in text
    assert "--lvlm InternVL-3.5-1B --calibration" in text, "the profile's name, which the head set has"
    other = SPEC.model_copy(update={"name": SPEC.source})
    assert f"--lvlm {SPEC.source}@{COMMIT} --cal" in make_card(LAPTOP, other, head_set(), {}, None, None)
    assert "temperature 0.7, top-p 1, at most 64 tokens" in text and "read at x1, x2" in text


def test_a_card_states_no_licence_and_no_number_that_it_was_not_given():
    text = make_card(LAPTOP, SPEC, head_set(), {}, None, None)
    assert yaml.safe_load(text.split("---")[1])["license"] == "other" and "| licence | not stated" in text
    assert text.count("not recorded") == 2 + 1 + 2  # n twice, r, two heads


def test_digests_are_those_that_sha256sum_checks(folder):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("OK") == 2
    assert check_sums(folder) == ["head_set.json", "regressor.safetensors"]


def test_a_folder_gives_the_arguments_of_ground(folder):
    assert calibration(folder) == {
        "head_set": folder / "head_set.json", "regressor": folder / "regressor.safetensors",
    }  # fmt: skip


def test_a_changed_file_is_refused(folder):
    (folder / "regressor.safetensors").write_bytes(b"weightz")
    with pytest.raises(ValueError, match="regressor.safetensors is not the file that SHA256SUMS beside it names"):
        calibration(folder)


def test_a_file_that_no_digest_names_is_refused(folder):
    write_sums(folder, ["head_set.json"])
    with pytest.raises(ValueError, match="does not name regressor.safetensors"):
        calibration(folder)


def test_digests_name_no_file_elsewhere(folder):
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../secret\n")
    with pytest.raises(ValueError, match="secret is not the file"):
        calibration(folder)


def test_a_hubs_repository_is_a_folder_of_its_commit(folder, offline_hub):
    there = offline_hub("someone/acs-internvl", COMMIT)
    for file in folder.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    assert calibration("someone/acs-internvl") == calibration(f"someone/acs-internvl@{COMMIT}")
    assert calibration("someone/acs-internvl")["head_set"].parent.name == COMMIT
    with pytest.raises(OSError, match="cannot have the calibration 'someone/other' .*; give a folder, or a hub name"):
        calibration("someone/other")


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "../x/y/z"])
def test_what_is_neither_is_told(source):
    with pytest.raises(ValueError, match="give a folder, or a hub name like owner/name"):
        calibration(source)


def test_a_folder_without_a_head_set_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no head_set.json; give a folder that acs calibrate wrote"):
        calibration(tmp_path)


def test_the_command_takes_one_or_the_other(folder):
    asked = ["ground", "a.png", "dog", "--calibration", str(folder), "--head-set", "h.json"]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 2 and "--calibration holds head set and regressor" in found.output


def test_a_hubs_lvlm_can_be_asked_for_at_a_commit():
    spec = lvlm_spec(f"{SPEC.source}@{COMMIT}")
    assert (spec.name, spec.source, spec.revision) == (SPEC.source, SPEC.source, COMMIT)
    assert lvlm_spec("someone/model").revision is None and lvlm_spec(SPEC.source) == SPEC
