"""D_c found without annotations, from an LVLM's own consensus: against heads that annotations found in the same way,
and against random ones. For an LVLM of one's own: `study.calibrate.find_label_free`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from acs_lib.core.candidates import ENTROPY, Heads
from acs_lib.evaluation.accuracy import accuracy_table, make_choices
from acs_lib.evaluation.bootstrap import paired_difference
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.baselines.attention import random_heads
from acs_lib.method.heads import separating_heads
from acs_lib.method.label_free import COUNT, agreeing
from acs_lib.method.selection import ALL_COORDINATES, acs_free
from acs_lib.profiles import HeadsSpec
from acs_lib.runs.store import Run
from acs_lib.study.experiment import Experiment
from acs_lib.study.robustness import jaccard
from acs_lib.study.stages import Study

FREE, LABELLED, RANDOM, CHOSEN = "label-free", "labelled, same rule", "random heads", "D_c"
REFERENCES = {"greedy": "greedy", "random": RANDOM, "d_c": CHOSEN}  # what heads are set against
RANDOM_SETS = 5  # of random heads, whose mean is shown
DRAWS = 5  # of images that heads are found on, where not all of them are taken
COORDINATES = HeadsSpec.model_fields["coordinates"].default


def labelled(run: Run, names: set[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropy, IoU and query as `label_free.agreeing` gives them, of the sampled answers to some queries, the IoU being
    that with the ground truth."""
    records, statistics = run.records(), run.statistics()
    kept = (records["failure"] == "") & (records["candidate"] > 0) & records["query_id"].isin(names)
    rows = records[kept]
    return statistics[kept.to_numpy()][..., ENTROPY], rows["iou"].to_numpy(), rows["query_id"].to_numpy()


def found_sets(
    run: Run, names: set[str], count: int = COUNT, coordinates: Sequence[tuple[int, ...]] = COORDINATES
) -> dict[str, tuple[Heads, tuple[int, ...]]]:
    """FREE and LABELLED -> heads and coordinates, found on some queries of a run by one rule; of what cannot be told
    nothing."""
    found = {}
    for name, read in (
        (FREE, lambda: agreeing(c for c in run.candidates() if c.query_id in names)),
        (LABELLED, lambda: labelled(run, names)),
    ):
        try:
            found[name] = separating_heads(*read(), coordinates, count)
        except ValueError:
            continue
    return found


def drawn_names(queries: pd.DataFrame, images: int, seed: int) -> set[str]:
    """The ids of the queries about so many of the images (all, if there are fewer), drawn by a seed."""
    ids = queries["image_id"].unique()
    chosen = np.random.default_rng(seed).permutation(ids)[:images]
    return set(queries.loc[queries["image_id"].isin(chosen), "query_id"])


def sets_by_images(
    run: Run, images: Sequence[int], layers: int, heads: int
) -> list[tuple[str, int, int, Heads, tuple[int, ...]]]:
    """(method, images, draw, heads, coordinates) of every number of images, DRAWS times where it is not all of them,
    and of RANDOM_SETS random sets (images 0)."""
    there, found = run.queries["image_id"].nunique(), []
    for number in images:
        for draw in range(DRAWS if number < there else 1):
            sets = found_sets(run, drawn_names(run.queries, number, draw))
            found += [(name, min(number, there), draw, *each) for name, each in sets.items()]
    for seed in range(RANDOM_SETS):
        found.append((RANDOM, 0, seed, random_heads(layers, heads, COUNT, seed), ALL_COORDINATES))
    return found


def label_free_rows(
    e: Experiment, sets: Sequence[tuple[str, int, int, Heads, tuple[int, ...]]], reference: Heads
) -> pd.DataFrame:
    """method, images, draws, n, acc50 (0-1) and its paired differences with REFERENCES (delta_vs_<name>), with 95 %
    intervals, of ACS-Free with some heads on the small test objects, the mean over the draws of equally many images;
    jaccard (0-1) of the heads with `reference` (NaN without any), and heads and coordinates of the first draw. `sets`
    has one of CHOSEN and some of RANDOM."""
    names = [str(place) for place in range(len(sets))]
    free = (replace(acs_free(*each[3:]), name=name) for name, each in zip(names, sets))
    choices = make_choices(e.candidates(), e.run.truth, [SELECTORS["greedy"], *free], e.profile.pool)
    frame, table = pd.DataFrame(sets, columns=["method", "images", "draw", "heads", "coordinates"]), []
    groups, means = dict(iter(frame.groupby(["method", "images"], sort=False))), {}
    for key, rows in groups.items():
        own = choices[choices["method"].isin([names[place] for place in rows.index])]
        mean = own.groupby("query_id", as_index=False)[["iou", "hit", "hit75"]].mean()
        means[key] = mean.assign(family="acs-free", candidate=-1)
    known = {method: mean for (method, _), mean in means.items()} | {"greedy": choices[choices["method"] == "greedy"]}
    for (method, images), rows in groups.items():
        row = {"method": method, "images": images, "draws": len(rows), "n": len(e.small)}
        own = means[method, images].assign(method="own")
        for name, other in REFERENCES.items():
            both = pd.concat([own, known[other].assign(method="other")])
            if name == "greedy":
                rates = accuracy_table(both, e.small, "other", e.profile.bootstrap).set_index("method").loc["own"]
                row |= rates[["acc50", "acc50_lo", "acc50_hi"]].to_dict()
            delta = paired_difference(both, e.small, "own", "other", e.profile.bootstrap)[:3]
            row |= dict(zip((f"delta_vs_{name}", f"delta_vs_{name}_lo", f"delta_vs_{name}_hi"), delta))
        first = rows.iloc[0]
        row["jaccard"] = np.mean([jaccard(heads, reference) for heads in rows["heads"]]) if reference else np.nan
        table.append(row | {"heads": str(first["heads"]), "coordinates": str(first["coordinates"])})
    return pd.DataFrame(table)


def label_free_table(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """label_free_heads.csv: `label_free_rows` of FREE, LABELLED and RANDOM heads, found on as many training images as
    `profile.beyond.label_free` says, and of D_c (images: all of train), on every dataset; without rows of what cannot
    be told, since no question has both a good box and a miss. jaccard is with the labelled heads of all images."""
    tables = []
    for lvlm in study.profile.lvlms:
        run = study.run(lvlm, study.train_set, "train")
        everything = set(run.queries["query_id"])
        reference, _ = found_sets(run, everything).get(LABELLED, ((), ()))
        own = [e for e in experiments if e.lvlm == lvlm]
        shape = next(run.candidates()).statistics.shape[2:4]
        sets = sets_by_images(run, study.profile.beyond.label_free, *shape)
        for e in own:
            chosen = (CHOSEN, run.queries["image_id"].nunique(), 0, e.head_set.heads, e.head_set.coordinates)
            tables.append(e.labelled(label_free_rows(e, [*sets, chosen], reference)))
    return pd.concat(tables, ignore_index=True)
