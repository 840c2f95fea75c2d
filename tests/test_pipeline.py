"""One LVLM at a time, and the warning of one whose answers hold no box."""

import logging
import weakref

import pandas as pd
import pytest

from acs_lib import pipeline
from acs_lib.profiles import LVLMSpec
from acs_lib.store import UNREADABLE

BATCHES = [pd.DataFrame({"query_id": range(start, start + 4)}) for start in range(0, 20, 4)]


def records(*boxes: bool) -> list[dict]:
    """One answer each: with a box, or a refusal."""
    return [
        {"text": "[[1, 2, 3, 4]]", "failure": ""} if box else {"text": f"Sorry, {n}.\n", "failure": "no box"}
        for n, box in enumerate(boxes)
    ]


def test_fewer_than_half_is_told_with_three_answers_and_the_mend():
    assert pipeline.unparsed(records(True, False), "x") is None, "half"
    told = pipeline.unparsed(records(True, *[False] * 4), "x")
    assert "of the first 5 answers of x only 20% hold a box" in told and "`question:` in the profile" in told
    assert told.splitlines()[1:] == [r"  'Sorry, 1.\n'", r"  'Sorry, 2.\n'", r"  'Sorry, 3.\n'"]
    unread = [{"text": "", "failure": f"{UNREADABLE}: gone"}] * 9
    assert pipeline.unparsed(unread, "x") is None and pipeline.unparsed(records(True) + unread, "x") is None
    assert "of the first 1 answers" in pipeline.unparsed(records(False) + unread, "x")


@pytest.mark.parametrize(("first", "after"), [(8, 2), (9, 3), (64, 5)], ids=["two batches", "three", "few queries"])
def test_it_comes_once_and_as_early_as_the_first_queries_are_answered(caplog, first, after):
    told = []
    engine = pipeline.watched(map, "x", first)
    with caplog.at_level(logging.WARNING):
        found = iter(engine(lambda batch: [(None, records(False))] * len(batch), BATCHES))
        for batch in BATCHES:
            assert len(next(found)) == len(batch)
            told.append(len(caplog.records))
    assert told == [0] * (after - 1) + [1] * (6 - after)


def test_what_comes_after_the_first_queries_is_not_looked_at(caplog):
    engine = pipeline.watched(map, "x", 8)
    answers = engine(lambda batch: [(None, records(batch["query_id"].min() < 8))] * len(batch), BATCHES)
    assert len(list(answers)) == 5 and not caplog.records


def test_an_lvlm_is_gone_before_the_next_one_is_loaded(monkeypatch):
    class Loaded:
        def limit(self, **limits):
            self.limits = limits

    kept, left = [], []

    def load_lvlm(*arguments, **settings):
        left.append(sum(loaded() is not None for loaded in kept))
        loaded = Loaded()
        kept.append(weakref.ref(loaded))
        return loaded

    pipeline.load.cache_clear()
    monkeypatch.setattr(pipeline, "load_lvlm", load_lvlm)
    for name in ("a", "a", "b", "b", "a"):
        pipeline.load(LVLMSpec(name=name, source=name))
    assert pipeline.load(LVLMSpec(name="c", source="c", max_tiles=6)).limits == {"max_tiles": 6}
    pipeline.load.cache_clear()
    assert left == [0, 0, 0, 0], "loaded four times, each with none beside it"
