"""The verdict: exact guides pass, broken ones do not; ranks, corrected draws, grades."""

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import evaluation
from benchmarks.verdict_confusion import BREAKS, FAMILIES, Location, Regression, one_verdict
from evaluation import plots
from evaluation.findings import LEVELS, REJECT, REWEIGH, TRUST
from evaluation.sharpness import references
from evaluation.simulation_calibration import (
    LIKELIHOOD,
    ecdf_distance,
    ecdf_envelope,
    pit_by_context_size,
    simulation_ranks,
)
from evaluation.trust import (
    HELD_OUT_BATCH,
    HELD_OUT_BATCH_SIZE,
    HELD_OUT_TASKS,
    _inputs,
    held_out_tasks,
    verdict,
)
from guides import AmortisedMeanFieldGuide, BNNWeightGuide, DirichletMixtureGuide, NeuralProcessGuide
from inference import fit, sample_posterior
from inference.progress import Stages
from pp_models import BayesianNetwork, DataError, Dataset, MixtureDensityNetwork, NeuralProcess, TaskBatch, tasks
from pp_models.contract import Guide
from pp_models.likelihoods import CategoricalLikelihood, GaussianHeadLikelihood
from pp_models.observation_model import ObservationModel, observe
from pp_models.task_plates import task_plates

#: what is said of predictions
PREDICTIVE = ("context", "predictions", "coverage", "sharpness", "fit of the context")


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_guides_are_trusted_and_broken_ones_are_not(family, broken):
    expected = {"exact": {TRUST}, "fitted": {TRUST}, "biased by 0.5 sd": {REWEIGH}, "twice the sd": {REWEIGH}}.get(
        broken, {REJECT}
    )
    assert {one_verdict(family(), broken, seed) for seed in ((101,) if broken == "fitted" else (101, 102))} <= expected


def location_tasks(seed=0, count=64):
    torch.manual_seed(seed)
    return Location().tasks(count)


def verdict_of(broken, **options):
    family = Location()
    return evaluation.verdict(family.model, lambda data: family.guide(data, broken), location_tasks(), **options)


def test_a_verdict_says_what_it_rests_on():
    found = verdict_of("biased by 0.5 sd", num_samples=500)
    assert found.level == REWEIGH and found.level in LEVELS
    assert "Draws of z are off by 0.4" in found.reason and found.reason.endswith(
        "The importance weights are reliable and mend it."
    )
    table = found.table()
    assert list(table.columns) == ["what", "measured", "rule", "holds", "meaning"]
    assert set(table["what"]) == {"calibration", "importance weights", "efficiency", "active latents", *PREDICTIVE}
    assert found.advice[0] == 'draw with sample_posterior(..., correct="psis")'
    assert found.numbers["largest_bias"] == pytest.approx(-0.5, abs=0.15)
    assert str(found).startswith("USE WITH IMPORTANCE WEIGHTS: ")
    narrow = verdict_of("half the sd", num_samples=500)
    assert "too sure" in narrow.reason and 1.4 < narrow.numbers["largest_spread"] < 2.2
    blind = verdict_of("context ignored", num_samples=500)
    assert blind.numbers["context_gain"] == pytest.approx(0, abs=0.05)
    assert any("do not depend on the context" in f.sentence for f in blind.findings)


def test_a_verdict_is_repeatable_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    tasks_ = location_tasks()
    torch.set_rng_state(state)
    family = Location()
    pair = (family.model, lambda data: family.guide(data, "exact"), tasks_)
    first = evaluation.verdict(*pair, num_samples=200)
    assert torch.equal(state, torch.get_rng_state())
    assert first == evaluation.verdict(*pair, num_samples=200)


def test_progress_names_its_stages_and_changes_nothing(monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(Stages, "begin", lambda self, name, total, done=0: begun.append((name, total)))
    quiet = verdict_of("exact", num_samples=100, num_simulations=120)
    assert verdict_of("exact", num_samples=100, num_simulations=120, progress=True) == quiet
    stages = [
        ("simulated tasks", 120),
        ("importance weights of held-out tasks", 1),
        ("predictions of held-out tasks", 1),
    ]
    assert begun == 2 * stages and capsys.readouterr() == ("", "")


def test_a_model_without_latents_is_judged_by_its_predictions():
    """The model predicts what it should: no latent, nothing to calibrate, no weights that could mend it."""

    def model(data):
        with pyro.plate("tasks", len(data), dim=-1):
            pyro.sample("y", dist.Normal(data.x, 0.5).to_event(2), obs=data.y)

    torch.manual_seed(0)
    x = torch.randn(64, 20, 1)
    batch = Dataset(x, x + 0.5 * torch.randn(64, 20, 1)).split(10)
    found = evaluation.verdict(model, lambda data: None, batch, num_samples=60)
    first = found.findings[0]
    assert first.name == "calibration" and first.passed is None and first.measured == "the guide draws no latent"
    assert {f.name for f in found.findings} == {"calibration", *PREDICTIVE}
    assert found.ranks is None


def test_a_prior_as_posterior_passes_for_latents_and_not_for_the_likelihood():
    family = Location()
    ranks = simulation_ranks(
        family.model, lambda data: family.guide(data, "context ignored"), location_tasks().context, 99
    )
    summary = ranks.summary()
    assert abs(summary["z"][0]) < 0.4 and 0.7 < summary["z"][1] < 1.3
    assert summary[LIKELIHOOD][0] > 0.5
    exact = simulation_ranks(family.model, lambda data: family.guide(data, "exact"), location_tasks().context, 99)
    assert abs(exact.summary()[LIKELIHOOD][0]) < 0.4


def test_a_lost_correlation_shows_in_the_likelihood_and_a_narrow_guide_in_the_distance():
    """The exact posterior's marginals, made independent: each weight ranks uniformly, their distance does not."""
    family = Regression()
    torch.manual_seed(0)
    x = 3 + torch.rand(400, 10, 1)  # far from zero: intercept and slope hang together

    def independent(data):
        with pyro.poutine.block():
            trace = pyro.poutine.trace(lambda: family.guide(data, "exact")).get_trace()
        exact = trace.nodes["weight"]["fn"]
        while not hasattr(exact, "scale_tril"):
            exact = exact.base_dist
        with pyro.plate("tasks", len(data), dim=-1):
            pyro.sample("weight", dist.Normal(exact.loc, exact.variance.sqrt()).to_event(1))

    found = simulation_ranks(family.model, independent, Dataset(x)).summary()
    for entry in (0, 1):
        assert abs(found[f"weight[{entry}]"][0]) < 0.25 and 0.85 < found[f"weight[{entry}]"][1] < 1.2
    exact = simulation_ranks(family.model, lambda data: family.guide(data, "exact"), Dataset(x)).summary()
    assert 0.85 < exact["weight (distance)"][1] < 1.15
    assert found[LIKELIHOOD][0] > 0.5
    narrow = simulation_ranks(family.model, lambda data: family.guide(data, "half the sd"), Dataset(x)).summary()
    assert narrow["weight (distance)"][1] > 1.3


def test_the_envelope_holds_uniform_ranks_as_often_as_it_says():
    width = ecdf_envelope(100, 50, 0.9)
    generator = torch.Generator().manual_seed(1)
    ranks = torch.randint(0, 51, (100, 1000), generator=generator)
    inside = (ecdf_distance(ranks, 50) <= width).double().mean().item()
    assert inside == pytest.approx(0.9, abs=0.04)
    assert ecdf_distance(torch.full((100,), 50), 50) > 3 * width


def test_rank_histograms_and_pits_show_a_guide_that_is_too_narrow():
    family = Regression()
    torch.manual_seed(0)
    inputs = Dataset(torch.rand(400, 20, 1) * 4 - 2)
    for broken, shape in (("exact", "flat"), ("half the sd", "u"), ("twice the sd", "n")):
        ranks = simulation_ranks(family.model, lambda d: family.guide(d, broken), inputs, 99)  # noqa: B023
        figure = plots.rank_histogram_plot(ranks, bins=10, most=4)
        drawn = {a.get_title(): [bar.get_height() for bar in a.patches if bar.get_width() < 0.5] for a in figure.axes}
        heights = drawn["weight[0]"]
        assert len(heights) == 10 and sum(heights) == pytest.approx(10)
        edge = (heights[0] + heights[-1]) / 2
        assert {"flat": 0.6 < edge < 1.5, "u": edge > 2, "n": edge < 0.4}[shape]
    torch.manual_seed(1)
    batches = [family.tasks(64).full.split(n) for n in (2, 10, 2)]
    for broken, low, high in (("exact", 0.06, 0.14), ("collapsed", 0.2, 0.5)):
        pits = pit_by_context_size(family.model, lambda d: family.guide(d, broken), batches)  # noqa: B023
        assert {size: len(value) for size, value in pits.items()} == {2: 2 * 64 * 18, 10: 64 * 10}
        outside = ((pits[2] < 0.05) | (pits[2] > 0.95)).double().mean().item()
        assert low < outside < high
    figure = plots.pit_plot(pits)
    assert [a.get_title() for a in figure.axes] == ["2 context points", "10 context points"]
    with pytest.raises(ValueError, match=r"^values: got none; at least one size of context is needed$"):
        plots.pit_plot({})
    with pytest.raises(ValueError, match=r"^bins: got 1; at least 2 are needed$"):
        plots.pit_plot(pits, bins=1)
    with pytest.raises(ValueError, match=r"^batches: got none; held-out tasks are needed$"):
        pit_by_context_size(family.model, family.guide, [])
    empty = TaskBatch(batches[0].context, batches[0].target.without_y())
    with pytest.raises(DataError, match=r"^target: its y must be known and real for a probability integral transform$"):
        pit_by_context_size(family.model, family.guide, [empty])


def test_corrected_draws_are_the_posteriors():
    """A guide biased by half a standard deviation: its draws are off, the corrected ones are not."""
    family = Regression()
    torch.manual_seed(0)
    data = family.tasks(8).context
    exact = sample_posterior(family.model, lambda d: family.guide(d, "exact"), data, 20_000, seed=0)["weight"]
    broken = {c: sample_posterior(family.model, lambda d: family.guide(d, "biased by 0.5 sd"), data, 20_000, seed=1,
                                  correct=c)["weight"] for c in (None, "psis", "sir")}  # fmt: skip
    sd = exact.std(0)
    for name, draws in broken.items():
        error = ((draws.mean(0) - exact.mean(0)) / sd).abs()
        if name is None:
            assert error.min() > 0.4
        else:
            assert error.max() < 0.12
            torch.testing.assert_close(draws.std(0) / sd, torch.ones_like(sd), atol=0.1, rtol=0)
            assert draws.shape == (20_000, 8, 2)


def shared_model(data):
    """One location for all tasks."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("tasks", data.batch_shape[0], dim=-1):
        mean = mu.reshape(*mu.shape, 1, 1).expand(*mu.shape[:-1], data.batch_shape[0], data.num_points, 1) \
            if mu.dim() else mu.expand(data.batch_shape[0], data.num_points, 1)  # fmt: skip
        pyro.sample("y", dist.Normal(mean, 0.5).to_event(2), obs=data.y)


def shared_guide(data):
    pyro.sample("mu", dist.Normal(0.0, 0.3))


def test_latents_that_tasks_share_are_corrected_together():
    torch.manual_seed(0)
    data = Dataset(torch.zeros(4, 5, 1), 0.2 + 0.5 * torch.randn(4, 5, 1))
    draws = sample_posterior(shared_model, shared_guide, data, 4_000, seed=0, correct="psis")["mu"]
    precision = 1 + 20 / 0.25
    assert draws.mean().item() == pytest.approx((data.y.sum() / 0.25 / precision).item(), abs=0.02)
    assert draws.shape == (4_000,)
    assert draws.std().item() == pytest.approx(precision**-0.5, abs=0.02)


def test_trained_pairs_of_each_family_get_a_verdict():
    batch = tasks.gp("rbf", 16).batch(0)
    torch.manual_seed(0)
    network = BayesianNetwork([1, 8, 1])
    mixture = MixtureDensityNetwork(4, 1, 1, width=8, representation_dim=8)
    process = NeuralProcess(1, 1, latent_dim=4, width=8)
    pairs = {
        "elbo": (network, AmortisedMeanFieldGuide(network, 8)),
        "iw-em": (mixture, DirichletMixtureGuide(mixture, 8)),
        "npvi": (process, NeuralProcessGuide(process, 8)),
    }
    for objective, (model, guide) in pairs.items():
        fit(model, guide, batch, objective, steps=5, progress=False)
        found = evaluation.verdict(model, guide, batch, objective=objective, num_samples=60, num_simulations=40)
        names = {f.name for f in found.findings}
        assert found.level == REJECT  # five steps
        assert ("importance weights" in names) == (objective == "elbo")
        assert {"context", "predictions"} <= names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": None}, r"^tasks: got None; held-out tasks are needed"),
        ({"tasks": []}, r"^tasks: got none; held-out tasks are needed"),
        ({"kind": "wish"}, r"^kind: got 'wish'; it must be 'posterior' or 'prediction', or None$"),
        ({"num_simulations": 5}, r"^num_simulations: got 5; it must be at least 20$"),
        ({"num_samples": 5}, r"^num_samples: got 5; it must be at least 50$"),
    ],
)
def test_bad_arguments(options, message):
    family = Location()
    given = {"tasks": location_tasks(), **options}
    with pytest.raises(ValueError, match=message):
        evaluation.verdict(family.model, lambda d: family.guide(d, "exact"), **given)


def test_bad_corrections():
    family = Location()
    data = location_tasks().context
    with pytest.raises(ValueError, match=r"^correct: got 'loo'; it must be 'psis' or 'sir', or None$"):
        sample_posterior(family.model, lambda d: family.guide(d, "exact"), data, 5, correct="loo")
    with pytest.raises(DataError, match=r"^data: y is None; importance weights need observed points$"):
        sample_posterior(shared_model, shared_guide, Dataset(torch.zeros(2, 3, 1)), 5, correct="psis")


def test_grades_by_an_exact_reference():
    family = Regression()
    torch.manual_seed(0)
    data = family.tasks(4).context
    exact = {
        "weight": sample_posterior(family.model, lambda d: family.guide(d, "exact"), data, 4_000, seed=9)["weight"]
    }
    good = evaluation.grade(family.model, lambda d: family.guide(d, "exact"), data, exact)
    bad = evaluation.grade(family.model, lambda d: family.guide(d, "biased by 0.5 sd"), data, exact)
    wide = evaluation.grade(family.model, lambda d: family.guide(d, "twice the sd"), data, exact)
    row, worse, wider = (found.table.iloc[0] for found in (good, bad, wide))
    assert row.entries == 8 and row.worst_mean_error < 0.12 and row.sd_ratio == pytest.approx(1, abs=0.05)
    assert row.coverage == pytest.approx(0.9, abs=0.03)
    assert worse.mean_error == pytest.approx(0.5, abs=0.1) and worse.wasserstein > 4 * row.wasserstein
    assert wider.sd_ratio == pytest.approx(2, abs=0.1) and wider.coverage > 0.97
    assert good.khat.shape == (4,)
    figure = bad.forest(5)
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert len(labels) == 5 and all(label.startswith("weight[") for label in labels)
    with pytest.raises(ValueError, match=r"^reference: it has a site 'z' that the guide does not draw$"):
        evaluation.grade(family.model, lambda d: family.guide(d, "exact"), data, {"z": exact["weight"]})
    with pytest.raises(ValueError, match=r"^reference: site 'weight' has draws of shape \[2, 2\]; the guide's have"):
        evaluation.grade(family.model, lambda d: family.guide(d, "exact"), data, {"weight": exact["weight"][:, :2]})


def test_a_grade_of_a_batch_is_that_of_its_context_and_odd_references_are_refused():
    family = Regression()
    batch = family.tasks(4)
    guide = lambda d: family.guide(d, "exact")  # noqa: E731
    exact = sample_posterior(family.model, guide, batch.context, 50, seed=9)
    whole, context = (evaluation.grade(family.model, guide, d, exact, num_samples=50) for d in (batch, batch.context))
    pd.testing.assert_frame_equal(whole.table, context.table)
    nan = exact["weight"].clone()
    nan[0] = torch.nan
    lines = {
        r"^reference: got no site; it must have draws of at least one$": {},
        r"^reference: site 'weight' has 1 draws; it must have at least 2$": {"weight": exact["weight"][:1]},
        r"^reference: got a Tensor of shape .*; it must hold no NaN or infinity$": {"weight": nan},
        r"^reference: got 3; it must be a floating-point tensor": {"weight": 3},
    }
    for line, reference in lines.items():
        with pytest.raises(ValueError, match=line):
            evaluation.grade(family.model, guide, batch, reference)


# -- what a person would look at ---------------------------------------------------------------------------------------


class Level(ObservationModel):
    """A task is a level drawn from N(0, 1), seen with noise 0.1; predictions are what ``say`` makes of the context."""

    def __init__(self, say):
        super().__init__()
        self.dim_x, self.outputs, self.say = 1, 2, say
        self.likelihood = GaussianHeadLikelihood(1e-3)

    def forward(self, data):
        with task_plates(data.batch_shape):
            told = pyro.sample("told", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(False))
            loc, scale = told[..., :1].unsqueeze(-2), told[..., 1:].exp().unsqueeze(-2)
            shape = (*data.x.shape[:-1], 1)
            pyro.sample("y", dist.Normal(loc, scale).expand(torch.broadcast_shapes(loc.shape, shape)).to_event(2),
                        obs=data.y)  # fmt: skip


class Teller(Guide):
    def __init__(self, say):
        super().__init__()
        self.say = say

    def forward(self, data):
        with task_plates(data.batch_shape):
            mean = (data.y * data.full_mask().unsqueeze(-1)).sum((-1, -2)) / data.counts.clamp_min(1)
            loc, scale = self.say(mean, data)
            told = torch.stack([loc, torch.as_tensor(scale).expand_as(loc).log()], -1)
            pyro.sample("told", dist.Delta(told, event_dim=1))


def levels(tasks=60, seed=0, shape="level"):
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(tasks, 24, 1, generator=generator) - 2
    level = torch.randn(tasks, 1, 1, generator=generator)
    wave = level if shape == "level" else level + torch.sin(2 * x)
    return TaskBatch.split(
        Dataset(x, wave + 0.1 * torch.randn(tasks, 24, 1, generator=generator)), 8 if shape == "level" else 16
    )


def judged(say, batch):
    found = verdict(Level(say), Teller(say), batch, kind="prediction", num_samples=200)
    return found, {f.name: f.passed for f in found.findings}


def test_a_calibrated_and_sharp_predictor_is_trusted():
    found, passed = judged(lambda mean, d: (mean, 0.11), levels())
    assert found.level == "trust" and all(passed[name] for name in PREDICTIVE)
    assert found.numbers["coverage_95"] == pytest.approx(0.95, abs=0.03)
    assert found.numbers["own_ll"] == pytest.approx(0.8, abs=0.15) and found.numbers["marginal_ll"] < -1.2
    assert 0 < found.numbers["own_ll_beside_gp"] - found.numbers["gp_ll"] < 1


@pytest.mark.parametrize(
    ("say", "floored"),
    [
        (lambda mean, d: (mean, 0.3), True),  # the data's noise is 0.1: what is at the floor is too wide
        (lambda mean, d: (mean, 0.5), False),  # far above the floor: the predictor's own caution
        (lambda mean, d: (mean, torch.where(mean > 0, 0.3, 0.6)), False),  # half of it is its own
        (lambda mean, d: (mean, torch.where(mean > mean.max() - 1e-6, 0.6, 0.3)), True),  # too few to say otherwise
    ],
)
def test_caution_is_put_down_to_the_floor_where_the_floor_is_its_cause(say, floored):
    model = Level(say)
    model.likelihood = GaussianHeadLikelihood(0.3)
    found = verdict(model, Teller(say), levels(), kind="prediction", num_samples=200)
    assert found.level == REJECT and found.reason.startswith("Predictions are too cautious")
    by_name = {f.name: f.sentence for f in found.findings}
    for name in ("predictions", "coverage"):
        assert (", by the floor of 0.3 under their standard deviation: the " in by_name[name]) == floored
    assert ("a likelihood with a smaller min_scale" in found.advice) == floored
    assert found.numbers["floor"] == 0.3
    if floored:
        assert found.numbers["rmse_at_floor"] == pytest.approx(0.1, abs=0.03)
    bare = verdict(Level(say), Teller(say), levels(), kind="prediction", num_samples=200)  # its floor is 0.001
    assert bare.reason == "Predictions are too cautious." and bare.numbers["share_at_floor"] == 0


def test_a_floor_is_not_blamed_for_too_much_trust():
    model = Level(None)
    model.likelihood = GaussianHeadLikelihood(0.05)
    found = verdict(model, Teller(lambda mean, d: (mean, 0.05)), levels(), kind="prediction", num_samples=200)
    assert "Predictions are too sure of themselves." in {f.sentence for f in found.findings}
    assert found.numbers["share_at_floor"] > 0.99 and not any("floor of" in f.sentence for f in found.findings)


def test_held_out_tasks_have_several_numbers_of_points():
    found = held_out_tasks(tasks.gp("rbf", HELD_OUT_BATCH_SIZE, 0))
    assert sum(map(len, found)) == HELD_OUT_TASKS
    assert len({batch.context.num_points for batch in found}) >= 4
    assert torch.equal(found[1].full.y, tasks.gp("rbf", HELD_OUT_BATCH_SIZE, 0).batch(HELD_OUT_BATCH + 1).full.y)


def test_calibration_simulates_at_the_inputs_of_every_batch():
    parts = [location_tasks(seed).full.split(n) for seed, n in ((0, 3), (1, 5))]
    few, many = _inputs(parts, 129)
    assert (len(few), len(many)) == (65, 64) and few.num_points == 3 and many.num_points == 5
    assert torch.equal(many.x[0], parts[1].context.x[0]) and torch.equal(few.x[64], few.x[0])
    assert [len(part) for part in _inputs(30 * parts, 20)] == [5, 5, 5, 5]
    family = Location()
    found = evaluation.verdict(family.model, lambda data: family.guide(data, "exact"), parts, num_samples=200)
    assert found.level == TRUST and "of 400 simulations" in found.findings[0].measured
    assert len(found.ranks.ranks["z"]) == 400
    with pytest.raises(ValueError, match=r"^inputs: got none; at least one set of tasks is needed$"):
        simulation_ranks(family.model, family.guide, [])


def test_calibration_simulates_tasks_as_incomplete_as_those_it_is_given(monkeypatch):
    torch.manual_seed(0)
    x, observed = torch.randn(40, 6, 1), torch.rand(40, 6, 2) < 0.4
    observed[..., 0] |= ~observed.any(-1)
    data = Dataset(x, torch.randn(40, 6, 2), None, observed)
    assert torch.equal(_inputs([data], 90)[0].observed, torch.cat([observed, observed, observed[:10]]))
    model = BayesianNetwork([1, 2], likelihood="gaussian", noise_scale=0.5, missing_outputs=True)
    guide = BNNWeightGuide(model, 8, final_targets="real", final_noise="real")  # exact, whatever is missing
    seen = []
    real = guide.forward
    monkeypatch.setattr(guide, "forward", lambda given, *rest: seen.append(given) or real(given, *rest))
    assert evaluation.verdict(model, guide, data, num_samples=200).level == TRUST
    assert all(given.observed is not None and not given.observed.all() for given in seen)
    assert _inputs([data[0]], 20)[0].observed.shape == (20, 6, 2)


def test_calibrated_and_useless_is_not_trusted():
    """The marginal of all tasks: every interval holds what it says, and nothing is known."""
    found, passed = judged(lambda mean, d: (0 * mean, 1.0), levels())
    assert passed["coverage"] and not passed["sharpness"] and found.level == "do not trust"


def test_intervals_that_hold_88_of_95_percent_are_not_trusted():
    found, passed = judged(lambda mean, d: (mean, 0.085), levels(200))
    assert found.numbers["coverage_95"] == pytest.approx(0.88, abs=0.03)
    assert not passed["coverage"] and found.level == "do not trust"


def test_a_mean_that_misses_the_points_it_was_given_is_not_trusted():
    """The right level with the right spread around it, where every task is a sine as well."""
    found, passed = judged(lambda mean, d: (mean, 0.75), levels(shape="sine"))
    assert not passed["fit of the context"] and found.level == "do not trust"
    assert found.numbers["gp_explained"] > 0.8 > 0.5 > found.numbers["context_explained"]


def test_references_are_what_they_say():
    batch = levels(8, seed=3, shape="sine")
    beside = references(Level(None), Teller(lambda mean, d: (mean, 0.1)), [batch], 4, 0)
    pooled = batch.context.y.double().reshape(-1)
    normal = torch.distributions.Normal(pooled.mean(), pooled.std())
    torch.testing.assert_close(beside.marginal, normal.log_prob(batch.target.y.double()).mean((-1, -2)))
    y = batch.context.y[..., 0].double()
    explained = 1 - (y - y.mean(-1, keepdim=True)).square().sum(-1) / (y - y.mean(-1, keepdim=True)).square().sum(-1)
    torch.testing.assert_close(beside.own_explained, explained, atol=1e-5, rtol=0)
    assert bool(torch.isfinite(beside.gp).all()) and float(beside.gp.median()) > 0


# -- notes: what a fit is ----------------------------------------------------------------------------------------------


def note(found, name):
    (finding,) = [f for f in found.findings if f.name == name]
    assert not finding.weighs
    return finding


class Rated(Teller):
    """A teller with dropout rates of its own, a layer of each kind."""

    def __init__(self, *layers):
        super().__init__(lambda mean, d: (mean, 0.11))
        self.layers = layers

    def rates(self, data):
        mean = (data.y * data.full_mask().unsqueeze(-1)).sum((-1, -2)) / data.counts.clamp_min(1)
        kinds = {
            "alive": torch.sigmoid(mean),
            "zero": torch.full_like(mean, 1e-4),
            "one": torch.full_like(mean, 0.999),
            "alike": torch.full_like(mean, 0.3),
        }
        return {f"layer_{k}": kinds[kind][..., None, None].expand(*mean.shape, 2, 3)
                for k, kind in enumerate(self.layers)}  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "passed", "word"),
    [
        (["alive"], True, "differ from task to task"),
        (["zero", "alive"], True, "differ from task to task"),
        (["zero", "one"], False, "collapsed"),
        (["alike", "alike"], False, "same for every task"),
    ],
)
def test_rates_that_carry_nothing_are_noted_and_trust_stays(layers, passed, word):
    guide = Rated(*layers)
    found = verdict(Level(guide.say), guide, levels(), kind="prediction", num_samples=100)
    finding = note(found, "rates")
    assert finding.passed is passed and word in finding.sentence and found.level == TRUST
    assert (finding.sentence in found.reason) is not passed
    assert found.table().set_index("what").loc["rates", "holds"] == ("yes" if passed else "no (a note)")


def test_latents_that_stay_at_their_prior_are_noted():
    def model(data):
        with task_plates(data.batch_shape):
            z = pyro.sample("z", dist.Normal(data.x.new_zeros(()), 1.0))
            pyro.sample("idle", dist.Normal(data.x.new_zeros(2), 3.0).to_event(1))
            mean = z[..., None, None].expand(*z.shape, data.num_points, 1)
            pyro.sample("y", dist.Normal(mean, 0.5).to_event(2), obs=data.y)

    def guide(data):
        precision = 1 + data.counts / 0.25
        with task_plates(data.batch_shape):
            pyro.sample("z", dist.Normal(data.y.sum((-1, -2)) / 0.25 / precision, precision**-0.5))
            pyro.sample("idle", dist.Normal(data.x.new_zeros(2), 3.0).to_event(1))

    y = torch.randn(64, 1, 1, generator=torch.Generator().manual_seed(0)) + 0.5 * torch.randn(64, 5, 1)
    found = verdict(model, guide, Dataset(torch.zeros(64, 5, 1), y), num_simulations=100, num_samples=400)
    finding = note(found, "active latents")
    assert (
        finding.passed is False and finding.measured == "1 of 3 coordinates move or narrow with the data; none of idle"
    )
    assert found.level == TRUST and found.numbers["active_latents"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "passed", "worst"),
    [
        (lambda d: d, True, ""),
        (lambda d: Dataset(d.x, d.y + 9), False, "level of y"),
        (lambda d: Dataset(d.x + 9, d.y), False, "level of x"),
        (lambda d: Dataset(d.x, d.y + torch.randn(d.y.shape)), False, "spread of y"),
        (lambda d: Dataset(d.x, d.y, (torch.arange(24) < 24).expand(60, 24)), True, ""),
        (lambda d: Dataset(d.x, d.y, (torch.arange(24) < 12).expand(60, 24)), False, "number of points"),
    ],
)
def test_tasks_unlike_the_training_tasks_are_noted(change, passed, worst):
    tested = TaskBatch.split(change(levels(seed=1).full), 8)
    guide = Teller(lambda mean, d: (mean, 0.11))
    options = {"kind": "prediction", "num_samples": 50}
    found = verdict(Level(guide.say), guide, tested, trained_on=[levels(seed=k).full for k in range(2, 6)], **options)
    finding = note(found, "likeness to the training tasks")
    assert finding.passed is passed and worst in finding.measured


def test_roughness_tells_a_sine_from_a_faster_one():
    batch = levels(60, shape="sine").full
    fast = Dataset(batch.x, torch.sin(20 * batch.x))
    guide = Teller(lambda mean, d: (mean, 0.75))
    found = verdict(Level(guide.say), guide, TaskBatch.split(fast, 16), kind="prediction", num_samples=50,
                    trained_on=levels(400, 9, "sine").full)  # fmt: skip
    assert note(found, "likeness to the training tasks").passed is False


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("sharpness", "word"), [(1.0, ""), (3.0, "too sure of themselves"), (0.3, "too cautious")])
def test_confidence_of_classes_is_held_to_what_is_right(sharpness, word, ragged):
    def classes(data):
        with task_plates(data.batch_shape):
            observe(CategoricalLikelihood()(sharpness * data.x), data)

    generator = torch.Generator().manual_seed(0)
    x = 1.5 * torch.randn(200, 12, 3, generator=generator)
    y = torch.multinomial(x.softmax(-1).flatten(0, 1), 1, generator=generator).view(200, 12)
    mask = torch.arange(12) < torch.randint(0, 13, (200, 1), generator=generator) if ragged else None
    target = Dataset(x, y, mask)
    found = verdict(classes, lambda data: None, TaskBatch(Dataset(x[:, :2], y[:, :2]), target), kind="prediction")
    confidence = next(f for f in found.findings if f.name == "confidence")
    assert confidence.passed is (not word) and word in confidence.sentence
    assert found.level == "do not trust"  # whatever its confidence, it does not use the context
