"""A closer look: small test objects asked about once more in a window around a first box, against as many answers to
the whole image (`method.zoom`).

Equal in answers are ten samples of the whole image and five samples each of the whole and of a window, whose place the
first five choose; the greedy answer of the whole comes on top of both. One greedy answer each (1 + 1) stands apart.
"""

import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.core.files import digest, query_key
from acs_lib.evaluation.accuracy import hits
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means
from acs_lib.method import regressor
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.heads import HeadSet
from acs_lib.method.selection import Selector, acs_free, acs_learned, choose
from acs_lib.method.zoom import Window, cut_out, joined, mapped_back, peak_box, window_around
from acs_lib.study.experiment import Experiment
from acs_lib.study.stages import Study, kept

TEN, FIVES, ONES = "10", "5 + 5", "1 + 1"
PEAK = "attention peak"
AROUND = ("greedy", "medoid", "ACS-Free", PEAK)  # what the window lies around; 1 + 1 knows the first and last alone
METHODS = ("sequence log-prob", "self-certainty", "medoid", "mass inside the box (MTLA)", "ACS-Free", "ACS-Learned")
GREEDY, SECOND, ORACLE = "greedy", "second look", "oracle"
TIMED = 16  # questions that the seconds of a look are the mean of
ROW = ["query_id", "budget", "window", "times", "method", "iou", "answers", "tokens", "seconds"]


def centres(first: Candidates, head_set: HeadSet, around: Iterable[str] = AROUND) -> dict[str, np.ndarray]:
    """What a window lies around -> the box [4] that the answers of a first look choose; of what holds no box nothing.
    Needs `Candidates.maps`."""
    selectors = {"medoid": SELECTORS["medoid"], "ACS-Free": acs_free(head_set.heads, head_set.coordinates)}
    found = {}
    for name in around:
        if name == PEAK:
            found[name] = peak_box(first, head_set.heads, head_set.coordinates)
        else:
            scores = np.zeros(len(first)) if name == GREEDY else selectors[name].score(first)
            found[name] = first.boxes[0 if name == GREEDY else choose(scores, first.parsed)]
    return {name: box for name, box in found.items() if np.isfinite(box).all()}


def windows(first: Candidates, head_set: HeadSet, times: Iterable[float]) -> dict[tuple[str, str, float], Window]:
    """(budget, what it lies around, how many times closer) -> window, of one question with at least five samples."""
    found, size = {}, (first.width, first.height)
    for budget, rows, around in ((FIVES, 6, AROUND), (ONES, 1, (GREEDY, PEAK))):
        for name, box in centres(first.first(rows), head_set, around).items():
            found |= {(budget, name, factor): window_around(box, factor, *size) for factor in times}
    return found


def _row(pool: Candidates, truth: np.ndarray, row: int, method: str, seconds: float) -> tuple:
    iou = float(np.nan_to_num(bx.iou(pool.boxes[row], truth)))
    return method, iou, len(pool), sum(map(len, pool.logprobs)), seconds


def _best(pool: Candidates, truth: np.ndarray) -> int:
    return int(np.nan_to_num(bx.iou(pool.boxes, truth), nan=-1).argmax())


def outcomes(
    first: Candidates, second: Mapping[tuple[str, str, float], Candidates], truth: np.ndarray,
    selectors: Mapping[str, Selector], seconds: Mapping[str, float],
) -> Iterator[tuple]:  # fmt: skip
    """ROW without the query, of every budget and method on one question: `first` are the greedy and ten sampled answers
    to the whole image, `second` those to each window, mapped back and greedy first; `seconds` those of one look by
    budget. Without a window a budget has no row."""
    yield TEN, "", np.nan, *_row(first.first(1), truth, 0, GREEDY, seconds[ONES])
    for method, selector in selectors.items():
        yield TEN, "", np.nan, *_row(first, truth, choose(selector.score(first), first.parsed), method, seconds[TEN])
    yield TEN, "", np.nan, *_row(first, truth, _best(first, truth), ORACLE, seconds[TEN])
    for (budget, around, times), closer in second.items():
        rows, more, kind = (6, slice(1, 6), "sampled") if budget == FIVES else (1, slice(1), "all")
        pool = joined(first.first(rows), closer.part(more))
        where, spent = (budget, around, times), 2 * seconds[budget]
        for method, selector in selectors.items():
            yield *where, *_row(pool, truth, choose(selector.score(pool), pool.parsed, kind), method, spent)
        if budget == ONES:
            yield *where, *_row(pool, truth, len(pool) - 1 if pool.parsed[-1] else 0, SECOND, spent)
        yield *where, *_row(pool, truth, _best(pool, truth), ORACLE, spent)


def looked_again(e: Experiment, model: regressor.AttentionIoURegressor, queries: pd.DataFrame) -> pd.DataFrame:
    """ROW of `outcomes` on some queries of an experiment with ten samples; kept beside its run. ACS-Learned is by one
    regressor. Seconds are this machine's, a look's the mean of TIMED questions that are asked alone; a second look, at
    an image as large, takes as long as a first one with as many answers."""
    selectors = {name: SELECTORS[name] for name in METHODS if name in SELECTORS}
    selectors["ACS-Free"] = acs_free(e.head_set.heads, e.head_set.coordinates)
    selectors["ACS-Learned"] = acs_learned(lambda c: regressor.predicted_iou(model, c))

    def look() -> pd.DataFrame:
        from acs_lib.core.images import read_annotated_image  # late: they bring transformers
        from acs_lib.lvlms.load import load_spec
        from acs_lib.method.sampling import sample_candidates

        lvlm, how = load_spec(e.lvlm), e.profile.sampling

        def ask(pictures: list, query, keys: list[int], samples: int):
            names, settings = [query.category] * len(pictures), how.model_copy(update={"samples": samples})
            prompts = [lvlm.prompt(picture, query.category) for picture in pictures]
            return sample_candidates(
                lvlm, prompts, [query.query_id] * len(keys), keys, names, settings, e.profile.map_side
            )

        def picture_of(query):
            return read_annotated_image(query.image, query.width, query.height)

        took = {}
        for budget, samples in ((TEN, 10), (FIVES, 5), (ONES, 0)):
            some, began = queries.iloc[:TIMED], time.perf_counter()
            for query in some.itertuples():
                ask([picture_of(query)], query, [query_key(query.query_id)], samples)
            took[budget] = (time.perf_counter() - began) / max(1, len(some))
        asked, rows = queries.set_index("query_id", drop=False), []
        for first in e.candidates(queries, maps=True):
            first, query = first.first(11), asked.loc[first.query_id]
            found = windows(first, e.head_set, e.profile.beyond.zooms)
            different, closer = list(dict.fromkeys(found.values())), {}
            if different:
                picture = picture_of(query)
                keys = [query_key(f"{query.query_id}/{window}") for window in different]
                answers = ask([cut_out(picture, window) for window in different], query, keys, 5)
                closer = {window: mapped_back(c, window, *picture.size) for window, (c, _) in zip(different, answers)}
            second = {key: closer[window] for key, window in found.items()}
            truth = e.run.truth[first.query_id]
            rows += [(first.query_id, *row) for row in outcomes(first, second, truth, selectors, took)]
        return pd.DataFrame(rows, columns=ROW)

    code = [(paths.LIBRARY / name).read_text(encoding="utf-8") for name in ("method/zoom.py", "study/zoom.py")]
    weights = digest([value.tolist() for value in model.state_dict().values()])
    spec = [e.head_set.heads, e.head_set.coordinates, e.profile.beyond.zooms, weights]
    return kept(e.run.folder / "looked-again", digest([e.run.key, list(queries["query_id"]), spec, code]), look)


def zoom_rows(looked: pd.DataFrame, queries: pd.DataFrame, draws: int) -> pd.DataFrame:
    """budget, window, times, method, n, acc50 and miou (0-1), delta_vs_greedy and delta_vs_ten (Acc@0.5 against the
    same method on ten samples; of SECOND against greedy), with 95 % intervals over images, paired, and the means of
    answers, tokens (written) and seconds a question. Questions without a window have the outcome of greedy there."""
    images, rows = queries.set_index("query_id")["image_id"], []
    ten = {name: part.set_index("query_id") for name, part in looked[looked["budget"] == TEN].groupby("method")}
    greedy = ten[GREEDY]
    codes = pd.factorize(images.loc[greedy.index])[0]
    for key, part in looked.groupby(["budget", "window", "times", "method"], sort=False, dropna=False):
        found = part.set_index("query_id").reindex(greedy.index)
        own = ten.get(key[-1], greedy)
        for name in ("iou", "answers", "tokens", "seconds"):
            found[name] = found[name].fillna(greedy[name])
        hit, base, same = (hits(each["iou"]) for each in (found, greedy, own.loc[greedy.index]))
        values = np.column_stack([hit, found["iou"], hit - base, hit - same]).astype(float)
        ends = np.quantile(bootstrap_means(values, codes, draws), INTERVAL, axis=0)
        row = dict(zip(("budget", "window", "times", "method"), key)) | {"n": len(found)}
        for name, mean, (lo, hi) in zip(("acc50", "miou", "delta_vs_greedy", "delta_vs_ten"), values.mean(0), ends.T):
            row |= {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}
        rows.append(row | found[["answers", "tokens", "seconds"]].mean().to_dict())
    return pd.DataFrame(rows)


def zoom_table(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """zoom.csv: `zoom_rows` on the first `profile.beyond.zoomed` small test objects of every column, at the profile's
    zooms. ValueError for a profile with fewer than ten samples."""
    if study.profile.sampling.samples < 10:
        raise ValueError(f"the profile {study.profile.name} has fewer than 10 samples to compare 5 + 5 with")
    tables = []
    for e in experiments:
        queries = e.small.iloc[: study.profile.beyond.zoomed]
        looked = looked_again(e, study.fit(e.lvlm), queries)
        tables.append(e.labelled(zoom_rows(looked, queries, study.profile.bootstrap)))
    return pd.concat(tables, ignore_index=True)
