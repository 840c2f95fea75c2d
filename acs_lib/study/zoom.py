"""A closer look: small test objects asked about once more in a window around a first box, against as many answers to
the whole image (`method.zoom`).

Equal in answers, not in tokens that are read, are ten samples of the whole image and five samples each of the whole and
of a window, whose place the first five choose; the greedy answer of the whole comes on top of both. One greedy answer
each (1 + 1) stands apart.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.core.files import digest, query_key
from acs_lib.core.progress import progress
from acs_lib.evaluation.accuracy import hits
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means
from acs_lib.method import regressor
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.heads import HeadSet
from acs_lib.method.selection import Selector, acs_free, acs_learned, choose
from acs_lib.method.zoom import Window, cut_out, joined, mapped_back, peak_box, window_around
from acs_lib.study.experiment import Experiment, code_of
from acs_lib.study.looks import look_seconds
from acs_lib.study.stages import Study, kept

TEN, FIVES, ONES = "10", "5 + 5", "1 + 1"
SAMPLES = {TEN: 10, FIVES: 5, ONES: 0}  # of one look; the greedy answer besides
PEAK = "attention peak"
AROUND = ("greedy", "medoid", "ACS-Free", PEAK)  # what the window lies around; 1 + 1 knows the first and last alone
METHODS = ("sequence log-prob", "self-certainty", "medoid", "mass inside the box (MTLA)", "ACS-Free", "ACS-Learned")
GREEDY, SECOND, ORACLE = "greedy", "second look", "oracle"
COSTS = ["answers", "tokens", "prompt_tokens", "seconds"]
ROW = ["query_id", "budget", "window", "times", "method", "iou", *COSTS]
Key = tuple[str, str, float]  # budget, what the window lies around, how many times closer


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


def windows(first: Candidates, head_set: HeadSet, times: Iterable[float]) -> dict[Key, Window]:
    """The windows of one question with at least five samples."""
    found, size = {}, (first.width, first.height)
    for budget, rows, around in ((FIVES, 6, AROUND), (ONES, 1, (GREEDY, PEAK))):
        for name, box in centres(first.first(rows), head_set, around).items():
            found |= {(budget, name, factor): window_around(box, factor, *size) for factor in times}
    return found


def _row(pool: Candidates, truth: np.ndarray, row: int, method: str, spent: tuple[int, float]) -> tuple:
    iou = float(np.nan_to_num(bx.iou(pool.boxes[row], truth)))
    return method, iou, len(pool), sum(map(len, pool.logprobs)), *spent


def _best(pool: Candidates, truth: np.ndarray) -> int:
    return int(np.nan_to_num(bx.iou(pool.boxes, truth), nan=-1).argmax())


def outcomes(
    first: Candidates, second: Mapping[Key, Candidates], truth: np.ndarray, selectors: Mapping[str, Selector],
    prompts: Mapping[Key | None, int], seconds: Mapping[str, float],
) -> Iterator[tuple]:  # fmt: skip
    """ROW without the query, of every budget and method on one question: `first` are the greedy and ten sampled answers
    to the whole image, `second` those to each window, mapped back and greedy first; `prompts` the tokens of the prompt
    about each window, and about the whole image (None); `seconds` those of one look by budget. Without a window a
    budget has no row."""
    whole = prompts[None]
    yield TEN, "", np.nan, *_row(first.first(1), truth, 0, GREEDY, (whole, seconds[ONES]))
    for method, selector in selectors.items():
        row = choose(selector.score(first), first.parsed)
        yield TEN, "", np.nan, *_row(first, truth, row, method, (whole, seconds[TEN]))
    yield TEN, "", np.nan, *_row(first, truth, _best(first, truth), ORACLE, (whole, seconds[TEN]))
    for key, closer in second.items():
        budget, spent = key[0], (whole + prompts[key], 2 * seconds[key[0]])
        rows, more, kind = (6, slice(1, 6), "sampled") if budget == FIVES else (1, slice(1), "all")
        pool = joined(first.first(rows), closer.part(more))
        for method, selector in selectors.items():
            yield *key, *_row(pool, truth, choose(selector.score(pool), pool.parsed, kind), method, spent)
        if budget == ONES:
            yield *key, *_row(pool, truth, len(pool) - 1 if pool.parsed[-1] else 0, SECOND, spent)
        yield *key, *_row(pool, truth, _best(pool, truth), ORACLE, spent)


def looked_again(e: Experiment, model: regressor.AttentionIoURegressor, queries: pd.DataFrame) -> pd.DataFrame:
    """ROW of `outcomes` on some queries of an experiment with ten samples; kept beside its run. ACS-Learned is by one
    regressor. Seconds are this machine's (`looks.look_seconds`); a second look, at an image as large, takes as long as
    a first one with as many answers."""
    selectors = {name: SELECTORS[name] for name in METHODS if name in SELECTORS}
    selectors["ACS-Free"] = acs_free(e.head_set.heads, e.head_set.coordinates)
    selectors["ACS-Learned"] = acs_learned(lambda c: regressor.predicted_iou(model, c))

    def look() -> pd.DataFrame:
        from acs_lib.core.images import read_annotated_image  # late: they bring transformers
        from acs_lib.lvlms.load import load_spec
        from acs_lib.method.sampling import sample_candidates

        lvlm, how = load_spec(e.lvlm), e.profile.sampling.model_copy(update={"samples": 5})
        took = {budget: look_seconds(e)[0, samples] for budget, samples in SAMPLES.items()}
        asked, rows = queries.set_index("query_id", drop=False), []
        with progress(f"looking closer, {e}", len(queries)) as told:
            for first in e.candidates(queries, maps=True):
                first, query = first.first(11), asked.loc[first.query_id]
                picture = read_annotated_image(query.image, query.width, query.height)
                found = windows(first, e.head_set, e.profile.beyond.zooms)
                prompts = {
                    window: lvlm.prompt(cut_out(picture, window), query.category)
                    for window in dict.fromkeys(found.values())
                }
                names = [f"{query.query_id}/{window}" for window in prompts]
                answers = sample_candidates(
                    lvlm, list(prompts.values()), names, list(map(query_key, names)), [query.category] * len(names),
                    how, e.profile.map_side,
                ) if names else []  # fmt: skip
                closer = {window: mapped_back(c, window, *picture.size) for window, (c, _) in zip(prompts, answers)}
                second = {key: closer[window] for key, window in found.items()}
                lengths = {key: prompts[window].length for key, window in found.items()}
                lengths[None] = lvlm.prompt(picture, query.category).length
                truth = e.run.truth[first.query_id]
                rows += [(first.query_id, *row) for row in outcomes(first, second, truth, selectors, lengths, took)]
                told.update()
        return pd.DataFrame(rows, columns=ROW)

    weights = digest([value.tolist() for value in model.state_dict().values()])
    spec = [e.head_set.heads, e.head_set.coordinates, e.profile.beyond.zooms, weights, code_of(__name__)]
    return kept(e.run.folder / "looked-again", digest([e.run.key, list(queries["query_id"]), spec]), look)


def zoom_rows(looked: pd.DataFrame, queries: pd.DataFrame, draws: int) -> pd.DataFrame:
    """budget, window, times, method, n, acc50 and miou (0-1), delta_vs_greedy and delta_vs_ten (Acc@0.5 against the
    same method on ten samples; of SECOND against greedy), with 95 % intervals over images, paired, and the means of
    answers, tokens (that are written), prompt_tokens (that are read, image tokens among them, of all looks) and seconds
    a question. Questions without a window have the outcome of greedy there."""
    images, rows = queries.set_index("query_id")["image_id"], []
    ten = {name: part.set_index("query_id") for name, part in looked[looked["budget"] == TEN].groupby("method")}
    greedy = ten[GREEDY]
    codes = pd.factorize(images.loc[greedy.index])[0]
    for key, part in looked.groupby(["budget", "window", "times", "method"], sort=False, dropna=False):
        found = part.set_index("query_id").reindex(greedy.index)
        own = ten.get(key[-1], greedy)
        for name in ("iou", *COSTS):
            found[name] = found[name].fillna(greedy[name])
        hit, base, same = (hits(each["iou"]) for each in (found, greedy, own.loc[greedy.index]))
        values = np.column_stack([hit, found["iou"], hit - base, hit - same]).astype(float)
        ends = np.quantile(bootstrap_means(values, codes, draws), INTERVAL, axis=0)
        row = dict(zip(("budget", "window", "times", "method"), key)) | {"n": len(found)}
        for name, mean, (lo, hi) in zip(("acc50", "miou", "delta_vs_greedy", "delta_vs_ten"), values.mean(0), ends.T):
            row |= {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}
        rows.append(row | found[COSTS].mean().to_dict())
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
