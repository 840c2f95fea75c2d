"""Notebook 10, beyond the paper: its figures and its verdicts from small made-up frames, and a run of its smallest
profile, whose report it fills."""

import itertools
import json
import os
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from test_notebooks import complaints, machine_paths

from acs_lib import paths
from acs_lib.profiles import Profile, load_profile
from acs_lib.report import figures_notebook_10 as figures
from acs_lib.report import sentences_notebook_10 as sentences
from acs_lib.report.page import render
from acs_lib.report.tables import at_a_glance
from acs_lib.study import advice, effort, instances, intervention, label_free, risk, zoom

TABLES = (
    "renderings zoom instances instances_curve risk risk_curve effort label_free_heads intervention sinks sinks_masked "
    "advice"
).split()
FIGURES = "zoom zoom-forest instances_curve risk_curve effort effort-seconds label_free_heads intervention".split()
WHERE = {"lvlm": "tiny", "dataset": "scenes", "condition": "habit", "n": 50}
UP, DOWN, LEVEL = (0.1, 0.05, 0.15), (-0.1, -0.15, -0.05), (0.01, -0.02, 0.04)  # differences with their intervals


def valued(**values):
    """{name, name_lo, name_hi} of every value, each with its interval or as wide as 0.1."""
    found = {}
    for name, value in values.items():
        ends = value if isinstance(value, tuple) else (value, value - 0.05, value + 0.05)
        found |= dict(zip((name, f"{name}_lo", f"{name}_hi"), ends))
    return found


def made(*rows):
    return pd.DataFrame([WHERE | row for row in rows])


def zoom_frame(second=UP, even=DOWN):
    one, two = ({"answers": 11, "tokens": 44, "prompt_tokens": 100 * n, "seconds": 1 / n} for n in (1, 2))
    rows = [{"budget": "10", "window": np.nan, "times": np.nan, "method": name, **one,
             **valued(acc50=0.5, delta_vs_greedy=(0.0,) * 3, delta_vs_ten=(0.0,) * 3)}
            for name in ("greedy", "ACS-Learned")]  # fmt: skip
    for budget, name, gain in (("1 + 1", zoom.SECOND, second), ("5 + 5", "ACS-Learned", even)):
        for window, times in itertools.product(("greedy", "medoid"), (2.0, 3.0)):
            shown = gain if window == "greedy" else LEVEL
            rows.append({"budget": budget, "window": window, "times": times, "method": name, **two,
                         **valued(acc50=0.6, delta_vs_greedy=shown, delta_vs_ten=shown)})  # fmt: skip
    return made(*rows)


def instances_frame(gain=UP):
    first = {"objects": 9, "boxes": 9}
    return made(*(
        {"method": name, **first, **valued(ap=0.3, delta_ap=(0.0,) * 3 if name == instances.GREEDY else gain)}
        for name in instances.METHODS
    ))  # fmt: skip


def curve_frame():
    recall = np.arange(21) / 20
    return pd.concat([
        pd.DataFrame({**WHERE, "method": name, "recall": recall, "precision": 1 - recall}) for name in instances.METHODS
    ])  # fmt: skip


def risk_frame():
    """A promise about all questions that is kept, one about the answered that is broken, and one that cannot be
    given."""
    rows, known = [], {"alpha": 0.2, "n_absent": 10, "calibrated_on": "scenes"}
    for name, promise, threshold, wrong in (
        ("ACS-Learned", risk.CONFORMAL, 0.7, 0.15),
        ("ACS-Learned", risk.TESTED, 0.8, 0.15),
        ("ACS-Free", risk.TESTED, np.nan, np.nan),
    ):
        shares = valued(answered=0.5, wrong=wrong, selective_risk=2 * wrong)
        over = {"delta": 0.1, "wrong_over_splits": wrong, "above_alpha": 0.6}
        rows.append({"method": name, "promise": promise, "threshold": threshold, **known, **shares, **over})
    return made(*rows)


def effort_frame(gain=LEVEL):
    answers = {effort.GREEDY: 1.0, "greedy of 50%": 4.0, effort.ALWAYS: 11.0, effort.AUTO: 3.0, effort.ORACLE: 2.0}
    return made(*(
        {"method": method, "rule": rule, "looks": 1.5, "seconds": count / 4,
         **valued(acc50=0.5, answers=count, delta_vs_always=gain)}
        for method in ("sequence log-prob", "ACS-Learned") for rule, count in answers.items()
    ))  # fmt: skip


def heads_frame():
    differences = valued(delta_vs_greedy=LEVEL, delta_vs_random=UP, delta_vs_d_c=DOWN)
    kinds = [(label_free.FREE, 10), (label_free.FREE, 300), (label_free.LABELLED, 10), (label_free.LABELLED, 300),
             (label_free.RANDOM, 0), (label_free.CHOSEN, 300)]  # fmt: skip
    return made(
        *({"method": name, "images": n, "jaccard": 0.5, **valued(acc50=0.5), **differences} for name, n in kinds)
    )


def knocked_frame(random=LEVEL):
    changes = {intervention.NONE: (0.0,) * 3, intervention.CHOSEN: DOWN, intervention.REST: LEVEL}
    changes |= {intervention.RANDOM: random}
    return made(*({"method": name, **valued(delta_acc50=v, delta_miou=v)} for name, v in changes.items()))


def sinks_frames():
    shares = made(*({"method": "border", "layer": layer, **valued(share=0.5 + layer / 10), "even_share": 0.5}
                    for layer in range(3)))  # fmt: skip
    names = ("ACS-Free", "ACS-Free, border masked")
    masked = made(*({"method": name, "masked": 36, **valued(delta_vs_free=gain)}
                    for name, gain in zip(names, ((np.nan,) * 3, UP))))  # fmt: skip
    return shares, masked


def advice_frame():
    needs = {
        "greedy": (advice.NOTHING, False, False), "second look": (advice.NOTHING, False, False),
        "ACS-Learned": (advice.BOXES, True, True),
    }  # fmt: skip
    rates = {"greedy": (0.5, (0.0,) * 3), "second look": (0.55, UP), "ACS-Learned": (0.6, UP)}
    rows = [
        WHERE | {"dataset": dataset, "method": name, **valued(acc50=rates[name][0], delta_vs_greedy=gain),
                 "answers": 2.0, "looks": 1, "seconds": 0.5,
                 **dict(zip(("labels", "training", "attention"), needs[name]))}
        for dataset in ("scenes", "shift")
        for name in needs
        for gain in [LEVEL if (dataset, name) == ("shift", "second look") else rates[name][1]]
    ]  # fmt: skip
    return pd.DataFrame(rows)[advice.COLUMNS]


# ------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(("gain", "told"), [(UP, "helps"), (DOWN, "harms"), (LEVEL, "not told apart")])
def sentence_count(markdown):
    """Sentences of a takeaway: a full stop, then a blank or the end."""
    return markdown.data.removeprefix("**Takeaway.** ").count(". ") + 1


@pytest.mark.parametrize(("gain", "told"), [(UP, "helps"), (DOWN, "harms"), (LEVEL, "not told apart")])
def test_a_verdict_follows_from_the_interval(gain, told):
    (row,) = made(valued(delta=gain)).itertuples()
    assert sentences.verdict(row, "delta") == told
    (edge,) = made(valued(delta=(0.0, 0.0, 0.0))).itertuples()
    assert sentences.verdict(edge, "delta") == "not told apart", "an interval that ends at 0 tells nothing"


def test_verdicts_are_counted_and_answer_a_question():
    rows = made(*(valued(delta=gain) for gain in (UP, UP, DOWN, LEVEL)))
    assert sentences.tally(rows, "delta") == "helps in 2, harms in 1, not told apart in 1 of 4 (-10.0 to +10.0 points)"
    assert sentences.tally(rows[:0], "delta") == "measured nowhere"
    added_up = rows.assign(delta=[0.06449999999999997, 0.0645, 0.0645, -0.03349999999999997])
    assert "(-3.4 to +6.5 points)" in sentences.tally(added_up, "delta"), "as the six digits of the table have it"
    for chosen, told in (
        ([0, 1], "yes"), ([0, 3], "in part"), ([0, 2, 3], "it depends"), ([2, 3], "no"), ([3], "not shown"),
        ([], "not shown"),
    ):  # fmt: skip
        assert sentences.answer(rows.iloc[chosen], "delta") == told, told


def rendering_frame(greedy=UP, oracle=LEVEL):
    both = ("scenes-480", (0.0,) * 3, (0.0,) * 3, 0.8), ("scenes", greedy, oracle, 0.7)
    return made(*(
        {"lvlm": lvlm, "dataset": name, **valued(delta_greedy=first, delta_oracle=second, pearson=r - less)}
        for lvlm, less in (("tiny", 0), ("other", 0.1)) for name, first, second, r in both
    ))  # fmt: skip


def test_renderings_are_told_apart_by_greedy_oracle_and_r():
    told = sentences.say_renderings(rendering_frame())
    assert "helps by itself: yes. scenes-480 instead of scenes" in told.data and sentence_count(told) == 3
    assert "helps in 2, harms in 0, not told apart in 0 of 2 (+10.0 to +10.0 points) for greedy decoding" in told.data
    assert "not told apart in 2 of 2 (+1.0 to +1.0 points) for the best of the samples" in told.data
    assert "is 0.70 to 0.80 instead of 0.60 to 0.70" in told.data
    assert "by itself: no." in sentences.say_renderings(rendering_frame(DOWN)).data
    assert "no other rendering" in sentences.say_renderings(rendering_frame()[:0]).data


def test_a_second_look_is_judged_by_the_window_round_the_greedy_box_alone():
    told = sentences.say_zoom(zoom_frame()).data
    assert "than more answers do: no. Around the greedy box" in told and "in part" not in told
    assert "the greedy one helps in 2, harms in 0, not told apart in 0 of 2" in told
    assert "ACS-Learned helps in 0, harms in 2, not told apart in 0 of 2 (-10.0 to -10.0 points); as" in told
    assert "but 2.0 times the tokens that are read" in told
    assert "than more answers do: yes." in sentences.say_zoom(zoom_frame(even=UP)).data
    nothing = zoom_frame().query("budget == '10'")
    assert "no answer held a box to look at" in sentences.say_zoom(nothing).data.lower()


def test_measured_and_published_precision_stand_apart():
    told = sentences.say_instances(instances_frame()).data
    assert "Published, another LVLM and other data (arXiv 2607.05978): 20.4 by the greedy list, 36.9 by mass" in told
    assert (
        "the greedy one: yes. AP on 50 images, over LVLMs: votes helps" in told
        and "the greedy list's is 30.0 to 30.0" in told
    )
    down = sentences.say_instances(instances_frame(DOWN)).data
    assert "the greedy one: no." in down and "ACS-Learned helps in 0, harms in 1" in down


def test_a_promise_is_kept_broken_or_not_given():
    table = risk_frame()
    assert list(table.apply(sentences.kept, axis=1)) == ["kept", "broken", "none"]
    assert sentences.kept(table.assign(above_alpha=0.1).iloc[1]) == "kept", "in nine of ten splits"
    assert sentences.kept(table.assign(wrong_over_splits=0.21).iloc[0]) == "above, not told apart"
    nearly = table.assign(selective_risk_lo=0.1)
    assert sentences.kept(nearly.iloc[1]) == "above, not told apart"
    told = sentences.say_risk(table).data
    assert f"'{risk.CONFORMAL}' on the dataset that calibrated them: kept 1 of 1" in told and "\n" not in told
    assert "broken 1, none 1 of 2" in told and "on another one" not in told
    assert "(n = 50, 10 of them about absent objects)" in told and "ACS-Free nothing is answered" in told
    assert "ACS-Learned 50 to 50 % of the questions and 30 to 30 % of these wrongly" in told
    assert "on another one: kept 1 of 1" in sentences.say_risk(table.assign(calibrated_on="x")).data


def test_saved_answers_stand_beside_what_they_cost():
    told = sentences.say_effort(effort_frame()).data
    assert "of 11 answers so many are enough where no loss is told apart in any column: 3.0, by" in told.lower()
    assert "ACS-Learned 3.0 answers in 1.5 looks, helps in 0, harms in 0, not told apart in 1 of 1" in told
    assert "all of them, for every score loses" in sentences.say_effort(effort_frame(DOWN)).data
    one = effort_frame()
    one.loc[one["method"] == "sequence log-prob", ["delta_vs_always_lo", "delta_vs_always_hi"]] = DOWN[1:]
    assert "in any column: 3.0, by ACS-Learned." in sentences.say_effort(one).data


def test_heads_without_labels_are_those_of_the_most_images():
    told = sentences.say_label_free(heads_frame())
    assert "random ones: yes. Found in 1 of 1 columns" in told.data and sentence_count(told) == 3
    assert "harms in 0, not told apart in 0 of 1 (+10.0 to +10.0 points) against random heads" in told.data
    assert "helps in 0, harms in 1, not told apart in 0 of 1 (-10.0 to -10.0 points) against D_c" in told.data
    without = heads_frame().query("method != 'label-free'")
    assert "No heads without annotations: no question has" in sentences.say_label_free(without).data


def test_heads_are_needed_more_than_random_ones_where_the_intervals_do_not_touch():
    told = sentences.say_intervention(knocked_frame()).data
    assert "more than random ones: yes, for in 1 of 1 columns surely more" in told and "losing none" not in told.lower()
    assert "Losing them helps in 0, harms in 1" in told
    told = sentences.say_intervention(knocked_frame(random=DOWN)).data
    assert "more than random ones: not shown, for in 0 of 1" in told and "random heads helps in 0, harms in 1" in told


def test_sinks_are_told_by_layer_and_by_what_masking_brings():
    told = sentences.say_sinks(*sinks_frames()).data
    assert "more than its even share in 2 of 3 layers, at most 0.70 [0.65, 0.75] (tiny, layer 2; even: 50%)" in told
    assert "draw attention anyway: yes. Against" in told and told.count("+10.0 to +10.0") == 1


def test_advice_is_given_with_the_habit_and_without():
    """Of the plain LVLM nothing is told apart; with the habit the second look is so on one dataset alone."""
    plain = advice_frame().assign(lvlm="tiny-plain", condition="plain")
    plain[["delta_vs_greedy_lo", "delta_vs_greedy_hi"]] = LEVEL[1:]
    told = sentences.say_advice(pd.concat([advice_frame(), plain], ignore_index=True))
    first, second, third = told.data.split(". ")
    assert first.endswith(
        "in all columns is with the habit ACS-Learned (+10.0 points, 2.0 answers), without the habit none"
    )
    assert second.endswith("answers alone it is with the habit none, without the habit none")
    assert third.startswith("The best of many") and sentence_count(told) == 3
    bare = advice_frame().query("dataset == 'scenes' and method != 'ACS-Learned'").assign(condition="")
    told = sentences.say_advice(bare).data
    assert "columns is second look (+10.0 points" in told and "alone it is second look (+10.0" in told


def test_the_headline_is_the_first_sentences(tmp_path):
    (tmp_path / "tables").mkdir()
    shown = sentences.headline([sentences.say_zoom(zoom_frame()), sentences.say_effort(effort_frame())], tmp_path)
    written = json.loads((tmp_path / "tables" / "headline.json").read_text())
    assert len(written["sentences"]) == 2 and not any("tiny" in text for text in written["sentences"])
    assert all(text in shown.data and ". " not in text for text in written["sentences"])


def test_all_ways_at_a_glance():
    table = at_a_glance(advice_frame())
    assert table["method"].tolist() == ["ACS-Learned", "second look", "greedy"]
    assert table["tiny, shift"].tolist()[0] == "60.0 [55.0, 65.0]" and table["training"].tolist() == ["yes", "no", "no"]


# --------------------------------------------------------------------------------------------------------- figures


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def drawn(figure):
    """{(x, y)} of all markers and lines of the first panel."""
    lines = figure.axes[0].get_lines()
    return {(round(float(x), 3), round(float(y), 3)) for line in lines for x, y in line.get_xydata()}


def test_zoom_draws_the_window_round_the_greedy_box():
    frame = zoom_frame()
    figure = figures.zoom(frame)
    assert len(figure.axes[0].containers) == 2 + 2 * 2, "of the medoid's windows none"
    assert figure.axes[0].get_xscale() == "log" and texts(figure)[:3] == ["greedy", "second look", "ACS-Learned"]
    fills = {container.lines[0].get_fillstyle() for container in figure.axes[0].containers}
    assert fills == {"full", "left", "none"}


def test_a_forest_of_second_looks_against_one_look():
    figure = figures.zoom_forest(zoom_frame())
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["1 + 1, 2x greedy", "1 + 1, 2x medoid", "5 + 5, 2x greedy", "5 + 5, 2x medoid"], "of 3x none"
    assert {x for x, _ in drawn(figure)} >= {10, -10, 1}, "in points"


def test_precision_and_recall_have_a_line_for_every_score():
    figure = figures.precision_recall(curve_frame())
    assert texts(figure) == list(instances.METHODS) and (0.25, 0.75) in drawn(figure)


def test_promises_lie_where_their_thresholds_do_and_not_given_ones_nowhere():
    coverage = np.arange(1, 21) / 20
    curves = pd.concat([
        pd.DataFrame({**WHERE, "method": name, "coverage": coverage, "risk": 0.3, "risk_lo": 0.2, "risk_hi": 0.4})
        for name in ("ACS-Free", "ACS-Learned", "self-certainty")
    ])  # fmt: skip
    figure = figures.promises(curves, risk_frame().replace({"answered": {0.5: 0.47}}))
    (axes,) = figure.axes
    assert len(axes.containers) == 2, "self-certainty is left out"
    alone = [line for line in axes.get_lines() if len(line.get_xydata()) == 1]
    assert [(line.get_fillstyle(), *line.get_xydata()[0]) for line in alone if line.get_xydata()[0, 1] > 0] == [
        ("none", 0.47, 0.3), ("full", 0.47, 0.3),
    ]  # fmt: skip
    assert (0.5, 0.4) in drawn(figure), "0.2 of all is 0.4 of half"


def test_effort_marks_always_auto_and_the_oracle():
    figure = figures.effort(effort_frame())
    assert {(3, 0.5), (11, 0.5), (2, 0.5), (4, 0.5)} <= drawn(figure)
    assert {(0.75, 0.5), (2.75, 0.5), (0.5, 0.5), (1, 0.5)} <= drawn(figures.effort(effort_frame(), "seconds"))
    assert texts(figure)[-3:] == ["oracle", "always all answers", "large: threshold from validation"]


def test_found_heads_and_knocked_heads():
    figure = figures.found_heads(heads_frame())
    assert {"label-free", "labelled, same rule", "random heads", "$D_c$"} == set(texts(figure))
    figure = figures.knock_out(knocked_frame())
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["$D_c$", "the other heads of $D_c$'s layers", "random heads"]
    assert (-10, -0.15) in drawn(figure) and texts(figure) == ["Acc@0.5", "mean IoU"]


# -------------------------------------------------------------------------------------------------------- profiles


def test_the_papers_commented_lines_make_a_profile_of_notebook_10():
    lines = (paths.PROFILES / "paper.yaml").read_text(encoding="utf-8").splitlines()
    begin = lines.index("# beyond:")
    marked = itertools.takewhile(lambda line: line.startswith("# "), lines[begin:])
    text = "\n".join([*lines[:begin], *(line[2:] for line in marked)])
    content = yaml.safe_load(text) | {"heads": {"layers": [10]}, "notebooks": ["10"]}
    beyond = Profile.model_validate(content).beyond
    assert beyond.lists.splits["test"].annotations == load_profile("paper").datasets[0].splits["test"].annotations
    assert beyond.zooms and beyond.zoomed and beyond.absent and beyond.label_free and beyond.knocked
    assert beyond.rendered is None, "photographs have one"


# --------------------------------------------------------------------------------------------- the smallest profile


@pytest.fixture(scope="module")
def smoke():
    """reports/beyond-smoke after a run of notebook 10 (reused where nothing has changed)."""
    environment = {name: value for name, value in os.environ.items() if name != "ACS_ROOT"}
    command = [sys.executable, "-m", "acs_lib.cli", "run", "--profile", "beyond-smoke"]
    result = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    return paths.LIBRARY.parent / "reports" / "beyond-smoke"


def test_the_notebook_runs_and_leaves_its_tables_and_a_page(smoke):
    executed = nbformat.read(smoke / "notebooks" / "10_beyond_the_paper.ipynb", 4)
    executed.cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert complaints(executed) - {"executed in order"} == set() and machine_paths(smoke) == {}
    profile, page = load_profile("beyond-smoke"), render("beyond-smoke", smoke)
    assert (smoke / "index.html").is_file() and sentences.TITLE in page
    for stem in TABLES:
        table = pd.read_csv(smoke / "tables" / f"{stem}.csv", keep_default_na=False)
        assert list(table)[:3] == ["lvlm", "dataset", "condition"] and len(table), stem
        found = set(zip(table["lvlm"], table["condition"]))
        assert found == {(lvlm.name, lvlm.condition) for lvlm in profile.lvlms}, stem
        assert f'id="table-{stem}"' in page
    for stem in FIGURES:
        assert f'id="figure-{stem}"' in page
    assert page.index('id="table-advice"') < page.index('id="table-zoom"')


def test_the_tables_agree_with_one_another(smoke):
    zoomed, efforts, ways = (pd.read_csv(smoke / "tables" / f"{n}.csv") for n in ("zoom", "effort", "advice"))
    for table in (zoomed, efforts, ways):
        steps = table[["acc50_lo", "acc50", "acc50_hi"]].diff(axis=1).iloc[:, 1:]
        assert steps.min(axis=None) >= -1e-9, "ends of intervals are rounded"
    key = ["lvlm", "dataset"]
    always = efforts[(efforts["rule"] == effort.ALWAYS) & (efforts["method"] == "ACS-Free")].set_index(key)["answers"]
    assert (always == 1 + load_profile("beyond-smoke").sampling.samples).all()
    greedy = ways[ways["method"] == "greedy"].set_index(key)["acc50"]
    alone = efforts[(efforts["rule"] == effort.GREEDY) & (efforts["method"] == "ACS-Free")].set_index(key)["acc50"]
    assert greedy.sort_index().tolist() == pytest.approx(alone.sort_index().tolist())
    spent = zoomed.groupby("budget")[["tokens", "prompt_tokens"]].mean()
    assert spent.loc["1 + 1", "tokens"] < spent.loc["10", "tokens"]
    assert spent.loc["1 + 1", "prompt_tokens"] > spent.loc["10", "prompt_tokens"]
    assert (efforts["seconds"] > 0).all() and ways["seconds"].isna().sum() == (ways["method"] == "P(True)").sum()
    assert {"P(True)", "coordinate median", "weighted box fusion"} <= set(ways["method"])
