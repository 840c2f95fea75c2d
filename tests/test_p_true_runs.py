"""P(True) of a run: every answer in its place, finished shards kept, and who is asked at all."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from acs_lib.method.baselines import p_true
from acs_lib.profiles import LVLMSpec, load_profile
from acs_lib.runs.answer import collect_p_true
from acs_lib.study.stages import Study

SPEC = LVLMSpec(name="made up", source="none")


@pytest.fixture
def run(tmp_path):
    """Three queries in two shards: two answers with a box and one without, an unreadable image, one answer."""
    Image.new("RGB", (40, 30)).save(tmp_path / "there.png")
    rows = [
        ("a", 0, "box 1", ""), ("a", 1, "box of a failed answer", "non-finite attention"), ("a", 2, "box 2", ""),
        ("gone", 0, "", "unreadable image: no such file"), ("b", 0, "box 3", ""),
    ]  # fmt: skip
    records = pd.DataFrame(rows, columns=["query_id", "candidate", "text", "failure"])
    shards = {0: records[:4], 1: records[4:].reset_index(drop=True)}
    queries = pd.DataFrame(
        {
            "query_id": ["a", "gone", "b"],
            "image": [str(tmp_path / f"{name}.png") for name in ("there", "gone", "there")],
            "width": 40,
            "height": 30,
            "category": ["cat", "dog", "cup"],
        }
    )
    return SimpleNamespace(key="one", queries=queries, shards=list(shards), records=shards.__getitem__)


@pytest.fixture
def asked(monkeypatch):
    """What is asked: (category, answers); the score is the number at an answer's end, over ten."""
    calls = []

    def score(lvlm, image, category, answers):
        assert image.size == (40, 30)
        calls.append((category, answers))
        return np.array([float(answer[-1]) / 10 if answer else np.nan for answer in answers])

    monkeypatch.setattr("acs_lib.runs.answer.ask_p_true", score)
    monkeypatch.setattr("acs_lib.runs.answer.load_spec", lambda spec: spec)
    return calls


def test_every_answer_keeps_its_place(run, asked, tmp_path):
    found = collect_p_true(SPEC, run, tmp_path / "p-true").set_index(["query_id", "candidate"])["p_true"]
    assert asked == [("cat", ["box 1", "", "box 2"]), ("cup", ["box 3"])], "no image was opened in vain"
    expected = {("a", 0): 0.1, ("a", 1): np.nan, ("a", 2): 0.2, ("gone", 0): np.nan, ("b", 0): 0.3}
    pd.testing.assert_series_equal(found, pd.Series(expected), check_names=False)


def test_finished_shards_are_kept_and_another_run_is_asked_anew(run, asked, tmp_path):
    first = collect_p_true(SPEC, run, tmp_path / "p-true")
    next(tmp_path.glob("p-true/*/00001.parquet")).unlink()
    asked.clear()
    pd.testing.assert_frame_equal(collect_p_true(SPEC, run, tmp_path / "p-true"), first)
    assert asked == [("cup", ["box 3"])]
    asked.clear()
    run.key = "another"
    collect_p_true(SPEC, run, tmp_path / "p-true")
    assert len(asked) == 2


def test_an_lvlm_without_the_words_cannot_be_asked(both, monkeypatch):
    yes, no = p_true.yes_no_tokens(both.tokenizer)
    assert both.decode([yes]).strip() == "Yes" and both.decode([no]).strip() == "No"
    monkeypatch.setattr(p_true, "YES", "Ja")
    with pytest.raises(p_true.CannotBeAsked, match="its vocabulary has no Ja and No"):
        p_true.yes_no_tokens(both.tokenizer)


def test_who_is_asked(monkeypatch):
    """LVLMs are asked if the profile wants it and they have the words."""
    profile = load_profile("smoke")
    asking = profile.model_copy(update={"p_true": True})
    names = [lvlm.name for lvlm in profile.lvlms]
    assert Study(profile).p_true_unavailable == dict.fromkeys(names, "the profile smoke does not ask")
    assert Study(asking).p_true_unavailable == {}
    monkeypatch.setattr(p_true, "YES", "Ja")
    assert Study(asking).p_true_unavailable == dict.fromkeys(names, "its vocabulary has no Ja and No")
    assert load_profile("paper").p_true and not load_profile("embedded").p_true
