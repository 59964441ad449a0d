"""Batches of none, and draws of none: every diagnostic and score gives an empty result, or one line."""

import pytest
import torch

import guidebook as gb
from evaluation import diagnostics, metrics
from evaluation.arviz.arviz_conversion import _add_weight_summaries
from evaluation.arviz.pyro_converter import Variable
from evaluation.scores import calibration_metrics, mixture_uncertainty
from pp_models import DataError, Dataset

OF_DRAWS = {
    "psis": diagnostics.psis,
    "rhat": diagnostics.rhat,
    **{f"ess {m}": lambda x, m=m: diagnostics.ess(x, m, 0.5) for m in ("bulk", "tail", "mean", "sd", "quantile")},
    **{f"mcse {m}": lambda x, m=m: diagnostics.mcse(x, m, 0.5) for m in ("mean", "sd", "quantile")},
}


@pytest.mark.parametrize("name", OF_DRAWS)
def test_a_batch_of_none_has_no_diagnostics(name):
    for batch in ((0,), (3, 0), (0, 2)):
        assert OF_DRAWS[name](torch.zeros(2, 8, *batch)).shape == batch


@pytest.mark.parametrize("name", OF_DRAWS)
def test_no_chain_or_no_draw_is_said(name):
    for shape in ((0, 8, 3), (2, 0, 3)):
        with pytest.raises(
            ValueError, match=rf"^(draws|log_weights): got shape \[{shape[0]}, {shape[1]}, 3\]; it must"
        ):
            OF_DRAWS[name](torch.zeros(shape))


def test_weights_of_no_set_and_points_of_no_task():
    smoothed, khat = diagnostics.psis_weights(torch.zeros(2, 8, 0))
    assert smoothed.shape == (2, 8, 0) and khat.shape == (0,)
    found = diagnostics.loo(torch.zeros(2, 8, 0, 5))
    assert found.elpd.shape == found.khat.shape == found.p_loo.shape == (0, 5)
    assert diagnostics.loo(torch.zeros(2, 8, 3, 0)).elpd.shape == (3, 0)


@pytest.mark.parametrize("name", ["mmd", "energy_distance", "c2st"])
def test_distances_between_draws_of_no_task_or_of_no_number(name):
    distance = getattr(diagnostics, name)
    assert distance(torch.zeros(6, 0, 2), torch.zeros(6, 0, 2)).shape == (0,)
    with pytest.raises(
        ValueError, match=r"^a, b: got shapes \[6, 0\] and \[6, 0\]; a draw must have at least one number$"
    ):
        distance(torch.zeros(6, 0), torch.zeros(6, 0))
    with pytest.raises(ValueError, match=r"^a, b: got 0 and 0 draws; at least 2 of each are needed$"):
        distance(torch.zeros(0, 2), torch.zeros(0, 2))


@pytest.mark.parametrize("value", [-torch.inf, torch.inf])
def test_weights_none_of_which_counts_are_refused(value):
    weights = torch.randn(2, 8, 3, dtype=torch.float64)
    weights[..., 1] = value
    with pytest.raises(ValueError, match=r"^log_weights: 1 of 3 sets hold no finite weight, or an infinite one"):
        diagnostics.psis_weights(weights)
    weights[0, 0, 1] = 0.0
    if value < 0:  # one draw that counts is enough
        smoothed = diagnostics.psis_weights(weights)[0]
        assert smoothed[0, 0, 1] == 0.0 and torch.isfinite(smoothed[..., 0]).all()


def test_scores_of_no_task():
    zero = torch.zeros(0)
    assert metrics.gaussian_crps(zero, zero, zero).shape == (0,)
    assert metrics.mixture_crps(torch.zeros(0, 2), torch.zeros(0, 2), torch.ones(0, 2), zero).shape == (0,)
    assert metrics.sample_crps(torch.zeros(3, 0), zero).shape == (0,)
    assert mixture_uncertainty.mixture_uncertainty(torch.ones(0, 3)).entropy_of_mean.shape == (0,)
    assert gb.dirichlet_sweeps(torch.ones(0, 3), torch.ones(0, 4, 3)).shape == (0, 3)
    assert gb.exact_log_evidence(torch.ones(0, 4, 3), torch.ones(3)).shape == (0,)
    for score in (calibration_metrics.accuracy, calibration_metrics.brier_score):
        with pytest.raises(ValueError, match="^labels: got none to score"):
            score(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    for call in (calibration_metrics.mutual_information, calibration_metrics.average_draws):
        with pytest.raises(
            ValueError, match=r"^draws: got shape \[0, 3, 2\]; it must be \[S, n, C\] with S at least 1$"
        ):
            call(torch.zeros(0, 3, 2))


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_calls_on_data_of_no_task_say_so(batch):
    model = gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    guide = gb.guides.AmortisedMeanFieldGuide(model, 4)
    data = Dataset(torch.zeros(*batch, 3, 1), torch.zeros(*batch, 3, 1))
    calls = {
        "predict": lambda: gb.predict(model, guide, data, data.x, 4),
        "sample_posterior": lambda: gb.sample_posterior(model, guide, data, 4),
        "to_arviz": lambda: gb.to_arviz(model, guide, data, 4),
        "nuts": lambda: gb.nuts(model, data, 2, 2),
        "verdict": lambda: gb.verdict(model, guide, data, num_simulations=20, num_samples=50),
        "grade": lambda: gb.grade(model, guide, data, {}, num_samples=4),
        "compare_objectives": lambda: gb.compare_objectives(model, guide, data, ["elbo"], (1,), 2),
        "fit": lambda: gb.fit(model, guide, data, steps=1, progress=False),
    }
    for name, call in calls.items():
        with pytest.raises((DataError, ValueError)) as error:
            call()
        first = str(error.value)
        assert f"got task dimensions {list(batch)}" in first, (name, first)
        assert "\n" not in first, (name, first)


@pytest.mark.parametrize("correct", ["sir", "psis"])
def test_resampling_is_refused_where_no_draw_has_a_density(monkeypatch, correct):
    model = gb.BayesianNetwork([1, 4, 2], likelihood="gaussian-head")
    guide = gb.guides.AmortisedMeanFieldGuide(model, 4)
    data = Dataset(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1))
    dead = torch.tensor([0.0, -torch.inf]).expand(8, 2)
    monkeypatch.setattr("inference.posterior_draws.posterior_log_weights", lambda *args: dead)
    with pytest.raises(ValueError, match=f"^correct: got '{correct}', but in 1 of 2 sets no draw has a density"):
        gb.sample_posterior(model, guide, data, 8, seed=0, correct=correct)


def test_khat_is_the_worst_there_is_where_no_draw_has_a_density():
    weights = torch.randn(1, 40, 3, dtype=torch.float64)
    weights[..., 1], weights[0, 0, 2] = -torch.inf, torch.nan
    stats = {"log_weight": Variable(weights.numpy(), ("chain", "draw", "task"))}
    _add_weight_summaries(stats)
    (good, dead, broken) = stats["khat"].values[0]
    assert abs(good - float(diagnostics.psis(weights[..., :1]))) < 1e-12
    assert dead == float("inf") and broken != broken
    assert stats["bound"].values[0, 1] == float("-inf")


def test_nuts_on_no_points_gives_the_prior():
    model = gb.BayesianNetwork([1, 2, 2], likelihood="gaussian-head")
    data = Dataset(torch.zeros(0, 1), torch.zeros(0, 1))
    found = gb.nuts(model, data, 300, 600, seed=0)
    scales = [model.prior.layer(i, []).base_dist.scale for i in range(2)]
    for i, scale in enumerate(scales):
        draws = found.draws[f"layer_{i}.weight"]
        ratio = (draws.std(0) / scale).flatten()
        assert float((ratio - 1).abs().max()) < 0.25
        assert float((draws.mean(0) / scale).abs().max()) < 0.25
    y = torch.zeros(0, dtype=torch.long)
    classes = gb.BayesianNetwork([1, 2, 2], likelihood="categorical")
    assert gb.nuts(classes, Dataset(torch.zeros(0, 1), y), 2, 2).draws["layer_0.weight"].shape == (2, 2, 2)
