"""The benchmark of questions about one image: it measures what it says, and its committed table is that of the docs."""

import numpy as np
import pandas as pd
import pytest

from acs_lib import paths
from benchmarks import questions
from benchmarks.engine import SIDES, build


@pytest.fixture(scope="module")
def lvlm():
    return build()


def test_it_runs(lvlm, monkeypatch):
    asked, generate = [], questions.sampling.generate
    monkeypatch.setattr(
        questions.sampling,
        "generate",
        lambda lvlm, prompts, *how: asked.append(len(prompts)) or generate(lvlm, prompts, *how),
    )
    table = pd.DataFrame(questions.measure(lvlm, 4, 1, (1, 3)), columns=questions.NAMES)
    assert sorted(asked) == [1, 1, 1, 1, 2, 3], "two questions for the check, one of each kind for the times"
    assert list(table["questions"]) == [1, 3] and set(table["image_tokens"]) == {16}
    for column in ("one_by_one_s", "unshared_s"):
        assert table[column][1] == pytest.approx(3 * table[column][0]) and table[column][0] > 0
    np.testing.assert_allclose(table["ratio"], table["shared_s"] / table["one_by_one_s"])
    np.testing.assert_allclose(table["unshared_ratio"], table["unshared_s"] / table["one_by_one_s"])


def test_rows_that_sharing_changes_are_found(lvlm, monkeypatch):
    asked = questions.Asked(lvlm, 4)
    hook = asked.model.get_output_embeddings().register_forward_hook(asked.write)
    together = asked.together

    def spoilt(prompts):
        found = together(prompts)
        if len(prompts) > 1:
            rows = found[1][3]["rows"]
            rows[max(rows)] = rows[max(rows)] + 1e-4
        return found

    monkeypatch.setattr(asked, "together", spoilt)
    with pytest.raises(AssertionError):
        questions.check_rows(asked)
    hook.remove()


def test_the_committed_table_meets_the_bar_and_is_told():
    table = pd.read_csv(paths.ROOT / "reports" / "benchmarks" / "questions.csv")
    assert list(table.columns) == questions.NAMES
    told = (paths.ROOT / "docs" / "engine.md").read_text()
    assert len(table) == len(SIDES) * len(questions.QUESTIONS)
    for line in table.itertuples():
        seconds = " | ".join(f"{value:.3g}" for value in (line.one_by_one_s, line.unshared_s, line.shared_s))
        assert (
            f"| {line.image_tokens:,} | {line.questions} | {seconds} | {line.unshared_ratio:.3g} | {line.ratio:.3g} |"
            in told
        )
    assert table.set_index(["image_tokens", "questions"]).loc[(1600, 8), "ratio"] <= 0.5
