"""Heads by intervention: what becomes of the greedy answers without D_c's heads, and without others; and attention
sinks, cells that draw attention whatever is asked."""

import numpy as np
import pandas as pd
import torch

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates, Heads
from acs_lib.core.files import digest
from acs_lib.core.progress import progress
from acs_lib.core.stored import StoredAnswers
from acs_lib.evaluation.accuracy import accuracy_table, hits, make_choices
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means, paired_difference
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.baselines.attention import random_heads
from acs_lib.method.baselines.likelihood import token_entropy
from acs_lib.method.heads import HeadSet, drawn_answers
from acs_lib.method.knockout import knocked_out
from acs_lib.method.maps import head_statistics, pool_maps
from acs_lib.method.regressor import MAP_SIDE
from acs_lib.method.selection import Selector, over_heads
from acs_lib.study.experiment import Experiment, code_of, labelled
from acs_lib.study.stages import Study, kept

NONE, CHOSEN, REST, RANDOM = "none", "D_c", "the other heads of D_c's layers", "random heads"
RANDOM_SETS = 3
MEASURES = ("acc50", "miou", "parsed", "token_entropy", "attention_entropy")
SINK = 4  # times the even share: a cell whose mean share is higher draws attention whatever is asked


def conditions(head_set: HeadSet, layers: int, heads: int) -> list[tuple[str, Heads]]:
    """(method, heads that are knocked out): none; D_c; all others of its layers; and RANDOM_SETS sets of as many random
    ones, none of D_c's."""
    chosen = set(head_set.heads)
    others = [pair for pair in np.ndindex(layers, heads) if pair not in chosen]
    rest = tuple(pair for pair in others if pair[0] in {layer for layer, _ in chosen})
    found = [(NONE, ()), (CHOSEN, tuple(head_set.heads)), (REST, rest)]
    for seed in range(RANDOM_SETS):
        picked = random_heads(1, len(others), len(chosen), seed)
        found.append((RANDOM, tuple(others[place] for _, place in picked)))
    return found


def described(c: Candidates, truth: np.ndarray) -> dict[str, float]:
    """MEASURES of a greedy answer; entropies in nats, NaN without a box: of the tokens that write the numbers, and of
    the attention, the mean over all heads and coordinates."""
    iou, parsed = float(np.nan_to_num(bx.iou(c.boxes[0], truth))), bool(c.parsed[0])
    attention = float(np.mean(c.statistics[0, ..., 0])) if parsed else np.nan
    tokens = -float(token_entropy(c)[0]) if parsed else np.nan
    return dict(zip(MEASURES, (float(hits(iou)), iou, float(parsed), tokens, attention)))


def answered_without(e: Experiment, queries: pd.DataFrame) -> pd.DataFrame:
    """query_id, method, draw, MEASURES of the greedy answer to each query under each of `conditions`; kept beside the
    run. D_c is the experiment's."""

    def ask() -> pd.DataFrame:
        from acs_lib.lvlms.load import load_spec  # late: they bring transformers
        from acs_lib.runs.answer import answer_batch

        lvlm, how, rows = load_spec(e.lvlm), e.profile.sampling.model_copy(update={"samples": 0}), []
        tried, batch = conditions(e.head_set, lvlm.layers, lvlm.heads), max(1, e.profile.batch_queries)
        with progress(f"without heads, {e}", len(tried) * len(queries)) as told:
            for draw, (method, heads) in enumerate(tried):
                with knocked_out(lvlm, heads):
                    for begin in range(0, len(queries), batch):
                        found = answer_batch(lvlm, how, queries.iloc[begin : begin + batch])
                        rows += [
                            {"query_id": c.query_id, "method": method, "draw": draw}
                            | described(c, e.run.truth[c.query_id])
                            for c, _ in found
                        ]
                        told.update(len(found))
        return pd.DataFrame(rows)

    key = digest([e.run.key, list(queries["query_id"]), e.head_set.heads, code_of(__name__)])
    return kept(e.run.folder / "without-heads", key, ask)


def intervention_rows(answers: pd.DataFrame, image_of: pd.Series, draws: int) -> pd.DataFrame:
    """method, heads draws (`sets`), n and MEASURES with 95 % intervals over images, and the difference of each with
    NONE (delta_<measure>, paired); of several random sets the mean. A mean leaves out answers without a box, where the
    measure needs one."""
    wide = answers.groupby(["query_id", "method"], sort=False)[list(MEASURES)].mean()
    sets, rows = answers.groupby("method")["draw"].nunique(), []
    base = wide.xs(NONE, level="method")
    images = pd.factorize(image_of.loc[base.index])[0]
    for method in answers["method"].unique():
        found = wide.xs(method, level="method").loc[base.index]
        row = {"method": method, "sets": int(sets[method]), "n": len(found)}
        for name in MEASURES:
            for label, values in ((name, found[name]), (f"delta_{name}", found[name] - base[name])):
                known = values.notna().to_numpy()
                if not known.any():
                    row |= {label: np.nan, f"{label}_lo": np.nan, f"{label}_hi": np.nan}
                    continue
                codes = pd.factorize(images[known])[0]
                drawn = bootstrap_means(values.to_numpy(float)[known, None], codes, draws)[:, 0]
                row |= dict(zip((label, f"{label}_lo", f"{label}_hi"), (values.mean(), *np.quantile(drawn, INTERVAL))))
        rows.append(row)
    return pd.DataFrame(rows)


def intervention_table(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """intervention.csv: `intervention_rows` on the first `profile.beyond.knocked` small test objects of each column."""
    tables = []
    for e in experiments:
        queries = e.small.iloc[: study.profile.beyond.knocked]
        images = queries.set_index("query_id")["image_id"]
        tables.append(e.labelled(intervention_rows(answered_without(e, queries), images, study.profile.bootstrap)))
    return pd.concat(tables, ignore_index=True)


# ------------------------------------------------------------------------------------------------ attention sinks


def border(rows: int, columns: int) -> np.ndarray:
    """[rows, columns] bool: the outermost cells."""
    found = np.ones((rows, columns), bool)
    found[1:-1, 1:-1] = False
    return found


def layer_shares(run: StoredAnswers, answers: int) -> tuple[np.ndarray, np.ndarray]:
    """Share [n, layers, h, w] of the attention on the image tokens (each layer of each answer sums to 1), mean over
    coordinates and heads, of `heads.drawn_answers`, on a grid of at most MAP_SIDE cells a side; and their images
    [n]."""
    first = next(run.maps(run.shards[0]))
    grid = tuple(min(side, MAP_SIDE) for side in first.shape[-2:])
    shares, names = [], []
    for maps, frame in drawn_answers(run, grid, answers):
        shares.append((maps / maps.sum((-2, -1), keepdim=True).clamp_min(1e-12)).mean((1, 3)).numpy())
        names.append(frame["query_id"])
    images = run.queries.set_index("query_id")["image_id"].loc[pd.concat(names)]
    return np.concatenate(shares), images.to_numpy()


def sinks(shares: np.ndarray) -> np.ndarray:
    """[h, w] bool: the cells whose share, the mean over answers and layers of shares [n, layers, h, w], is more than
    SINK times the even one."""
    mean = shares.mean((0, 1))
    return mean * mean.size > SINK


def without_cells(maps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Maps [n, 4, layers, heads, h, w] as if the cells [rows, columns] bool were no part of the image; maps of another
    grid are averaged onto the cells' first."""
    pooled = pool_maps(torch.from_numpy(np.asarray(maps, np.float32)), cells.shape).numpy()
    return np.where(cells, 0, pooled)


def masked_free(head_set: HeadSet, cells: np.ndarray, name: str) -> Selector:
    """ACS-Free, its entropy over the image tokens but for some cells [rows, columns] bool. Needs `Candidates.maps`."""

    def score(c: Candidates) -> np.ndarray:
        maps = without_cells(c.maps, cells)
        entropy = head_statistics(maps, np.zeros((len(c), *cells.shape)))[..., 0]
        return -over_heads(entropy, head_set.heads, head_set.coordinates)

    return Selector(name, "acs-free", score, "ablation of arXiv 2606.01612")


def sink_rows(shares: np.ndarray, images: np.ndarray, sink: np.ndarray, draws: int) -> pd.DataFrame:
    """method ('border', 'sinks', 'highest cell'), layer, n (answers), share (0-1) of shares [n, layers, h, w] with its
    95 % interval over images [n], and even_share, what evenly spread attention would have. The highest cell is that of
    the mean."""
    rows, codes = [], pd.factorize(images)[0]
    for layer in range(shares.shape[1]):
        mean = shares[:, layer].mean(0)
        highest = mean == mean.max()
        for name, cells in (("border", border(*mean.shape)), ("sinks", sink), ("highest cell", highest)):
            values = shares[:, layer, cells].sum(-1)
            ends = np.quantile(bootstrap_means(values[:, None], codes, draws), INTERVAL)
            rows.append((name, layer, len(values), values.mean(), *ends, cells.mean()))
    return pd.DataFrame(rows, columns=["method", "layer", "n", "share", "share_lo", "share_hi", "even_share"])


def sink_tables(study: Study, experiments: list[Experiment], answers: int = 1000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """sinks.csv: `sink_rows` of the training images, where sinks are found; and sinks_masked.csv: ACS-Free as it is and
    with border or sinks masked, on the small test objects (accuracy_table's columns, how many cells are masked, and the
    difference of Acc@0.5 with ACS-Free as it is, delta_vs_free, with its interval)."""
    found, masked, draws = [], [], study.profile.costly_draws
    for lvlm in study.profile.lvlms:
        shares, images = layer_shares(study.run(lvlm, study.train_set, "train"), answers)
        sink = sinks(shares)
        found.append(labelled(sink_rows(shares, images, sink, draws), lvlm, study.train_set))
        cells = {"ACS-Free, border masked": border(*sink.shape), "ACS-Free, sinks masked": sink}
        for e in (each for each in experiments if each.lvlm == lvlm):
            selectors = [SELECTORS["greedy"], e.selectors["ACS-Free"]]
            selectors += [masked_free(e.head_set, each, name) for name, each in cells.items()]
            choices = make_choices(e.candidates(maps=True), e.run.truth, selectors, e.profile.pool)
            table = accuracy_table(choices, e.small, draws=e.profile.bootstrap).rename(columns={"n_queries": "n"})
            counts = {name: int(each.sum()) for name, each in cells.items()}
            table["masked"] = table["method"].map(counts).fillna(0).astype(int)
            gains = {name: paired_difference(choices, e.small, name, "ACS-Free", e.profile.bootstrap) for name in cells}
            for place, end in enumerate(("", "_lo", "_hi")):
                known = {name: gain[place] for name, gain in gains.items()}
                table[f"delta_vs_free{end}"] = table["method"].map(known)
            masked.append(e.labelled(table))
    return pd.concat(found, ignore_index=True), pd.concat(masked, ignore_index=True)
