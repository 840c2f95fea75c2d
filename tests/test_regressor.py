import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from test_store import make_queries

from acs_lib import paths
from acs_lib.core import candidates
from acs_lib.core.candidates import ENTROPY, Candidates
from acs_lib.core.files import query_key
from acs_lib.evaluation.confidence import within_query_r
from acs_lib.method import heads, regressor
from acs_lib.method.maps import pool_maps
from acs_lib.profiles import RegressorSpec, load_profile
from acs_lib.runs import store
from acs_lib.study import results
from acs_lib.study.stages import Study
from benchmarks import training_queries

LAYERS, HEADS, SIDE, CANDIDATES = 2, 2, 6, 5


def planted(part):
    """Maps in which head 1 of layer 1 is the sharper the better the box; all else is noise."""
    answers = []
    for query_id in part["query_id"]:
        rng = np.random.default_rng(query_key(query_id))
        widths = rng.uniform(2, 20, CANDIDATES)  # box [10, 10, 10 + width, 30]: IoU = width / 20
        boxes = np.array([[10, 10, 10 + width, 30] for width in widths])
        maps = rng.random((CANDIDATES, 4, LAYERS, HEADS, SIDE, SIDE)).astype(np.float32)
        for index, width in enumerate(widths):
            maps[index, :, 1, 1, 2, 2] += 2 * width
        maps /= maps.sum((-1, -2), keepdims=True)
        statistics = np.zeros((CANDIDATES, 4, LAYERS, HEADS, 4), np.float32)
        statistics[..., 0] = -(maps * np.log(maps)).sum((-1, -2))
        numbers = {name: [np.zeros(4)] * CANDIDATES for name in candidates.PER_TOKEN}
        found = Candidates(
            query_id=query_id, category="ball", width=100, height=100, boxes=boxes, **numbers,
            coordinate_tokens=[np.arange(4)] * CANDIDATES, statistics=statistics, maps=maps,
        )  # fmt: skip
        answers.append((found, [{"text": "", "token_ids": [0], "failure": ""}] * CANDIDATES))
    return answers


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    queries = make_queries(300)
    parts = {"train": queries[:200], "validation": queries[200:240], "test": queries[240:]}
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: store.fill(folder / name, part.reset_index(drop=True), planted, {}, 100) for name, part in parts.items()
    }


@pytest.fixture(scope="module")
def model(runs):
    return regressor.train(runs["train"], runs["validation"], width=16, epochs=6, batch=64, lr=3e-3, seed=0)[0]


def test_the_regressor_learns_a_planted_signal_and_the_control_does_not(runs, model):
    predictions = regressor.predict(model, runs["test"])
    assert regressor.iou_correlation(predictions)["pearson"] > 0.8
    assert within_query_r(predictions) > 0.8
    control, _ = regressor.train(
        runs["train"], runs["validation"], width=16, epochs=2, batch=64, lr=3e-3, seed=0, shuffle_labels=True
    )
    shuffled = regressor.predict(control, runs["test"])
    assert (predictions["iou"] - predictions["predicted_iou"]).abs().mean() < 0.5 * (
        shuffled["iou"] - shuffled["predicted_iou"]
    ).abs().mean()


def test_fewer_training_queries_are_the_first_shards(runs):
    """benchmarks.training_queries: 200 queries lie in four shards, and the planted signal is found better by more."""
    study = SimpleNamespace(profile=SimpleNamespace(regressor=RegressorSpec(width=16, epochs=3, batch=64, lr=3e-3)))
    few, all_of_them = (
        training_queries.measure(study, runs["train"], runs["validation"], share) for share in (1 / 4, 1)
    )
    assert (few["train_queries"], all_of_them["train_queries"]) == (64, 200)
    assert few["n"] == all_of_them["n"] == 40 * CANDIDATES and few["pearson"] < all_of_them["pearson"]
    assert all_of_them["pearson_lo"] < all_of_them["pearson"] < all_of_them["pearson_hi"]


def test_the_control_does_not_learn_that_some_shards_are_better_than_others(runs, monkeypatch):
    """What its rows are labelled with has the run's mean, in whatever shards they lie."""
    run, read = runs["train"], regressor.maps_with_iou

    def uneven(run, shard, grid):
        maps, iou, frame = read(run, shard, grid)
        return maps, torch.full_like(iou, float(shard == run.shards[0])), frame

    monkeypatch.setattr(regressor, "maps_with_iou", uneven)
    everything = torch.cat([uneven(run, shard, (SIDE, SIDE))[1] for shard in run.shards])
    rng = np.random.default_rng(0)
    means = [
        torch.stack([labels.mean() for _, labels in regressor.batches(run, (SIDE, SIDE), 10_000, rng, given)])
        for given in (None, everything)
    ]
    assert means[0].std() > 0.2, "the true labels differ between pairs of shards"
    assert (means[1] - everything.mean()).abs().max() < 0.1


def test_attribution_and_separation_find_the_planted_head(runs, model):
    scores, each, images = heads.attribution(model, runs["train"])
    assert each.mean(0) == pytest.approx(scores.sum(1), rel=1e-4) and len(each) == len(images)
    assert scores.shape == (LAYERS, HEADS) and np.unravel_index(scores.argmax(), scores.shape) == (1, 1)
    records = runs["train"].records()
    entropy = runs["train"].statistics()[..., ENTROPY].mean(1)
    iou = np.where(records["iou"] < 0.4, 0, records["iou"])
    auroc = heads.entropy_auroc(entropy, iou)
    within = heads.within_query_auroc(entropy, iou, records["query_id"].to_numpy())
    assert auroc[1, 1] > 0.95 and within[1, 1] > 0.95 and abs(auroc[0, 0] - 0.5) < 0.1
    assert heads.select_heads(scores.sum(1), auroc, layers=1, count=1) == ((1, 1),)


class ManyAnswers:
    """Forty answers about each of five images, and two about a sixth, in three shards; every tenth holds no box."""

    queries = pd.DataFrame({"query_id": [f"q{i}" for i in range(21)], "image_id": [*np.repeat(range(5), 4), 5]})
    shards = (0, 1, 2)

    def records(self, shard):
        names = np.repeat([name for name in self.queries["query_id"]], [10] * 20 + [2])
        rows = pd.DataFrame({"query_id": names, "candidate": np.arange(len(names)), "iou": 0.5})
        rows["failure"] = np.where(rows["candidate"] % 10 == 9, "no box", "")
        return rows[rows["candidate"] % 202 // 70 == shard].reset_index(drop=True)

    def maps(self, shard):
        for _, rows in self.records(shard).groupby("query_id", sort=False):
            value = rows["candidate"].to_numpy(np.float16)
            yield np.broadcast_to(value[:, None, None, None, None, None], (len(rows), 4, 1, 1, 2, 2))


def test_attributions_look_at_answers_of_all_images():
    run = ManyAnswers()
    maps, frames = zip(*heads.drawn_answers(run, (2, 2), 32))
    found = pd.concat(frames)
    images = found["query_id"].map(run.queries.set_index("query_id")["image_id"])
    assert images.value_counts().to_dict() == {**dict.fromkeys(range(5), 6), 5: 2}, "as many of each as there are"
    assert (torch.cat(maps)[:, 0, 0, 0, 0, 0] == torch.tensor(found["candidate"].to_numpy())).all()
    assert (found["failure"] == "").all() and found["query_id"].nunique() > 12, "not the first ones of an image"
    everything = pd.concat(frame for _, frame in heads.drawn_answers(run, (2, 2), 10_000))
    assert len(everything) == 182, "all that hold a box"


def test_separation_by_hand():
    entropy = np.array([1.0, 2.0, 3.0, 4.0])
    iou = np.array([0.9, 0.0, 0.7, 0.0])
    assert heads.entropy_auroc(entropy, iou) == pytest.approx(3 / 4)  # of 4 pairs only (3, 2) is the wrong way round
    assert heads.within_query_auroc(entropy, iou, np.array(["a", "a", "b", "b"])) == 1
    for rounding in (-1e-6, 0, 1e-6):  # answers that begin alike have one entropy, up to the processor's rounding
        assert heads.within_query_auroc(entropy[[0, 0]] + [0, rounding], iou[:2], np.array(["a", "a"])) == 0.5


def test_select_heads_stays_inside_the_critical_layers():
    head_scores = np.array([[0.9, 0.1], [0.6, 0.7], [0.5, 0.8]])
    assert heads.select_heads(np.array([0.0, 2.0, 1.0]), head_scores, layers=2, count=3) == ((2, 1), (1, 1), (1, 0))


def test_entropy_groups(runs):
    entropy = np.arange(4.0)[:, None, None, None].repeat(4, 1)
    table = results.entropy_by_layer(entropy, np.array([0.0, 0.2, 0.45, 0.8]), np.arange(4), np.ones((2, 4), int))
    means = table[table["coordinate"] == "x1"].set_index("group")
    assert means["mean"].to_dict() == {"high": 3.0, "low": 1.0, "zero": 0.0}
    assert means["mean_lo"].equals(means["mean"]) and means["mean_hi"].equals(means["mean"]), "no draw differs"


def test_entropy_intervals_are_over_images():
    entropy = np.array([1.0, 1, 1, 4])[:, None, None, None].repeat(4, 1)
    images, counts = np.array([0, 0, 0, 1]), np.array([[2, 0], [1, 1], [0, 2]] * 20)
    table = results.entropy_by_layer(entropy, np.full(4, 0.8), images, counts)
    assert (table["mean"].iloc[0], table["mean_lo"].iloc[0], table["mean_hi"].iloc[0]) == (1.75, 1, 4)


def test_entropy_of_the_discriminative_heads_alone():
    entropy = np.zeros((2, 4, 2, 2))
    entropy[0, :2, 0, 1], entropy[0, :2, 1, 0], entropy[0, 2:] = 1, 3, 9  # of the good answer, at x1 and y1; elsewhere
    head_set = heads.HeadSet("mine", "scenes", ((0, 1), (1, 0)), (0, 1))
    table = results.entropy_by_head(entropy, np.array([0.8, 0.0]), np.arange(2), np.ones((2, 2), int), head_set)
    means = table.set_index(["heads", "group"])["mean"]
    assert means["0, 1"].to_dict() == {"high": 1, "zero": 0} and means["1, 0"].to_dict() == {"high": 3, "zero": 0}
    assert means["R"].to_dict() == {"high": 2, "zero": 0}


def test_head_sets_and_regressors_belong_to_one_lvlm(tmp_path, model):
    head_set = heads.HeadSet("mine", "scenes", ((1, 1), (0, 1)))
    head_set.save(tmp_path / "heads.json")
    assert heads.HeadSet.load(tmp_path / "heads.json", "mine") == head_set
    regressor.save(model, tmp_path / "r.safetensors", "mine")
    maps = torch.rand(3, 4, LAYERS, HEADS, SIDE, SIDE)
    assert torch.equal(regressor.load(tmp_path / "r.safetensors", "mine")(maps), model(maps))
    for load, file in ((heads.HeadSet.load, "heads.json"), (regressor.load, "r.safetensors")):
        with pytest.raises(ValueError, match="'mine', not 'yours'"):
            load(tmp_path / file, "yours")


def test_a_regressor_is_saved_with_the_same_bytes(tmp_path, model):
    files = [tmp_path / f"{number}.safetensors" for number in range(12)]
    for file in files:
        regressor.save(model, file, "mine")
    assert len({file.read_bytes() for file in files}) == 1


def test_a_regressor_of_another_format_is_refused(tmp_path, model, monkeypatch):
    monkeypatch.setattr(regressor, "FORMAT", 2)
    regressor.save(model, tmp_path / "r.safetensors", "mine")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="r.safetensors is a regressor of format 2, .*; acs calibrate trains one"):
        regressor.load(tmp_path / "r.safetensors", "mine")


def test_rounding_does_not_move_the_gradient_from_one_peak_to_another(model):
    """Two peaks of equal height: with a true maximum all of the gradient jumps to the one that rounding favours."""
    gradients = []
    for rounding in (-1e-6, 1e-6):
        maps = torch.full((1, 4, LAYERS, HEADS, SIDE, SIDE), 1e-3)
        maps[..., 1, 1], maps[..., -2, -2] = 0.5, 0.5 + rounding
        maps.requires_grad_(True)
        gradients.append(torch.autograd.grad(model(maps).sum(), maps)[0])
    first, second = gradients
    assert (first - second).abs().max() < 0.01 * first.abs().max()


def test_no_random_number_of_training_depends_on_the_processor(model):
    """torch.rand gives the same numbers everywhere; bernoulli_, which nn.Dropout draws from, and randn do not."""
    assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules())
    maps = torch.rand(3, 4, LAYERS, HEADS, SIDE, SIDE)
    model.train()
    dropped = [(torch.manual_seed(seed), model(maps))[1] for seed in (0, 0, 1)]
    model.eval()
    assert torch.equal(dropped[0], dropped[1]) and not torch.equal(dropped[0], dropped[2])
    assert torch.equal(model(maps), model(maps))


def test_training_is_reproducible(runs, model):
    again, _ = regressor.train(runs["train"], runs["validation"], width=16, epochs=6, batch=64, lr=3e-3, seed=0)
    for name, value in again.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-6)


def test_it_computes_where_its_weights_are(tmp_path, model, monkeypatch):
    """The device 'meta' stands for a GPU; what is computed there has shapes only."""
    regressor.save(model, tmp_path / "r.safetensors", "mine")
    monkeypatch.setattr(regressor, "small_device", lambda: "meta")
    loaded = regressor.load(tmp_path / "r.safetensors", "mine")
    assert loaded(torch.rand(3, 4, LAYERS, HEADS, SIDE, SIDE)).device.type == "meta"


def test_correlations_and_auroc_are_those_of_scipy():
    """Predictions are float32 and IoUs float64, as they come; both with ties."""
    rng = np.random.default_rng(0)
    iou = rng.random(300).round(2)
    predicted = (iou + rng.normal(size=300)).round(1).astype(np.float32)
    found = regressor.iou_correlation(pd.DataFrame({"predicted_iou": predicted, "iou": iou}))
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, iou)[0], abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, iou)[0], abs=1e-12)
    constant = regressor.iou_correlation(pd.DataFrame({"predicted_iou": np.full(300, 0.3), "iou": iou}))
    assert np.isnan([constant["pearson"], constant["spearman"]]).all()

    scores, positive = rng.normal(size=(300, 3, 2)).round(1), iou > 0.6
    scores[7, 0, 0] = np.nan
    expected = [[stats.mannwhitneyu(*(column[rows] for rows in (positive, ~positive))).statistic for column in layer]
                for layer in scores.transpose(1, 2, 0)]  # fmt: skip
    assert np.isnan(expected[0][0])
    pairs = positive.sum() * (~positive).sum()
    np.testing.assert_allclose(heads.auroc(scores, positive), np.array(expected) / pairs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_quality_of_hardly_any_answers_is_nan(n):
    predictions = pd.DataFrame({"query_id": "a", "candidate": [1, 2], "iou": [0.2, 0.8], "predicted_iou": [0.3, 0.4]})[
        :n
    ]
    found = {**regressor.iou_correlation(predictions), "within": within_query_r(predictions)}
    assert found.pop("n") == n
    if n == 2:
        assert found == pytest.approx({"pearson": 1, "spearman": 1, "mae": 0.25, "within": 1})
    else:
        assert np.isnan([found["pearson"], found["spearman"], found["within"]]).all()


def test_weights_whose_key_was_not_written_are_not_taken_for_those_of_the_old_key(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    profile, trained = load_profile("smoke"), []

    def train(*arguments, epochs, **settings):
        trained.append(epochs)
        model = regressor.AttentionIoURegressor(LAYERS, HEADS, 4, (SIDE, SIDE)).eval()
        torch.nn.init.constant_(model.score[-1].bias, epochs)
        return model, pd.DataFrame({"pearson": [0.0]})

    def fit(epochs):
        changed = profile.model_copy(update={"regressor": RegressorSpec(epochs=epochs)})
        study = Study(changed)
        lvlm = study.profile.lvlms[0]
        study._runs.update({(lvlm.name, study.train_set.name, split): run for split, run in runs.items()})
        (tmp_path / "smoke" / lvlm.name).mkdir(parents=True, exist_ok=True)
        return study.fit(lvlm).score[-1].bias.item()

    monkeypatch.setattr(regressor, "train", train)
    assert [fit(1), fit(1)] == [1, 1] and trained == [1], "read from disk"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("acs_lib.study.stages.write_text", stopped)
        fit(2)
    assert fit(1) == 1 and trained == [1, 2, 1]
    monkeypatch.setattr(regressor, "FORMAT", regressor.FORMAT + 1)
    assert fit(1) == 1 and trained == [1, 2, 1, 1], "weights of another format are not read"


def stopped(path, text):
    raise KeyboardInterrupt


def test_maps_of_any_shape_are_averaged_onto_the_regressors_grid(model):
    assert model.grid == (SIDE, SIDE)
    maps = torch.rand(2, 4, LAYERS, HEADS, SIDE, SIDE)
    finer = maps.repeat_interleave(3, -1).repeat_interleave(2, -2)
    assert torch.allclose(pool_maps(finer, model.grid), maps)
    assert torch.allclose(model(finer), model(maps), atol=1e-6)
    assert model(torch.rand(2, 4, LAYERS, HEADS, 2, 40)).shape == (2,)


def test_a_run_of_images_of_all_shapes_trains_one_regressor(tmp_path):
    def of_all_shapes(part):
        return [
            (replace(found, maps=np.resize(found.maps, (*found.maps.shape[:4], 3 + i % 4, 40 - i % 5))), records)
            for i, (found, records) in enumerate(planted(part))
        ]

    run = store.fill(tmp_path, make_queries(80), of_all_shapes, {}, 100)
    model, _ = regressor.train(run, run, width=4, epochs=1, batch=64, lr=1e-3, seed=0)
    assert model.grid == (6, regressor.MAP_SIDE)
    assert len(regressor.predict(model, run)) == 80 * CANDIDATES


def unreadable(part):
    """No image of these queries can be read."""
    return [store.unread(name, "ball", 100, 100, LAYERS, HEADS, "no such file") for name in part["query_id"]]


def test_the_grid_is_that_of_answers_though_the_first_shard_holds_none(tmp_path):
    def first_images_gone(part):
        gone = part["query_id"].isin([f"q{n}" for n in range(store.SHARD + 3)])
        return unreadable(part[gone]) + planted(part[~gone])

    run = store.fill(tmp_path, make_queries(store.SHARD + 20), first_images_gone, {}, 100)
    model, _ = regressor.train(run, run, width=4, epochs=1, batch=64, lr=1e-3, seed=0)
    assert model.grid == (SIDE, SIDE)
    assert len(regressor.predict(model, run)) == 17 * CANDIDATES


def test_without_any_box_nothing_is_trained(runs, tmp_path):
    none = store.fill(tmp_path, make_queries(70), unreadable, {}, 100)
    said = r"no box among the answers to the 70 {} queries \(most often: unreadable image: no such file\)"
    settings = {"width": 4, "epochs": 1, "batch": 64, "lr": 1e-3, "seed": 0}
    with pytest.raises(ValueError, match=said.format("training")):
        regressor.train(none, runs["validation"], **settings)
    with pytest.raises(ValueError, match=said.format("validation")):
        regressor.train(runs["train"], none, **settings)


@pytest.fixture
def alive(monkeypatch):
    """The most maps' bytes that were alive at once while the regressor read them from shards."""
    made, most = [], [0]
    rows = regressor.maps_with_iou

    def counted(*arguments):
        found = rows(*arguments)
        made.append(weakref.ref(found[0]))
        most[0] = max(most[0], sum(maps().nbytes for maps in made if maps() is not None))
        return found

    monkeypatch.setattr(regressor, "maps_with_iou", counted)
    return most


def test_memory_does_not_grow_with_the_number_of_candidates(runs, alive):
    """4 shards are read, no more than 2 of them are in memory at a time: those whose rows are shuffled together."""
    train = runs["train"]
    assert len(train.shards) == 4
    largest = max(sum(maps.nbytes for maps in train.maps(shard)) for shard in train.shards)
    for _ in regressor.batches(train, (SIDE, SIDE), 64, np.random.default_rng(0)):
        pass
    assert 0 < alive[0] <= 2 * largest
    alive[0] = 0
    regressor.predict(regressor.AttentionIoURegressor(LAYERS, HEADS, 4, (SIDE, SIDE)), train)
    assert 0 < alive[0] <= 2 * largest
