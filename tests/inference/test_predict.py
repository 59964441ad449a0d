"""Predictions and posterior draws: shapes, mixtures, seeds, chunks and coherence."""

import math
import sys

import pytest
import torch

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, DirichletMixtureGuide, NeuralProcessGuide
from inference import Prediction, predict, sample_posterior
from pp_models import BayesianNetwork, DataError, Dataset, MixtureDensityNetwork, NeuralProcess


def pair(dim_y=1, likelihood="gaussian-head", double=False):
    outputs = 2 * dim_y if likelihood == "gaussian-head" else dim_y
    model = BayesianNetwork([1, 8, outputs], likelihood=likelihood)
    guide = AmortisedMeanFieldGuide(model, width=8, initial_scale=0.5)
    return (model.double(), guide.double()) if double else (model, guide)


def data(*batch, n=6, dim_y=1, dtype=torch.float32):
    return Dataset(torch.randn(*batch, n, 1, dtype=dtype), torch.randn(*batch, n, dim_y, dtype=dtype))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("weights", ["samples", "mean"])
def test_shapes_for_any_task_dimensions(batch, weights):
    model, guide = pair(dim_y=2)
    found = predict(model, guide, data(*batch, dim_y=2), torch.randn(*batch, 5, 1), 4, weights=weights, seed=0)
    s = 4 if weights == "samples" else 1
    y = torch.randn(*batch, 5, 2)
    assert found.num_samples == s
    assert found.samples.shape == found.function_samples.shape == (s, *batch, 5, 2)
    assert found.mean.shape == found.std.shape == (*batch, 5, 2)
    assert found.log_prob(y).shape == (*batch, 5)
    assert found.joint_log_prob(y).shape == batch
    assert found.quantile(0.3).shape == (*batch, 5, 2)
    assert found.quantile([0.1, 0.5, 0.9]).shape == (3, *batch, 5, 2)
    assert not found.samples.requires_grad


def test_one_grid_serves_every_task():
    model, guide = pair()
    context, grid = data(3), torch.linspace(-1, 1, 5).unsqueeze(-1)
    a = predict(model, guide, context, grid, 4, seed=0)
    b = predict(model, guide, context, grid.expand(3, 5, 1), 4, seed=0)
    assert torch.equal(a.samples, b.samples) and a.samples.shape == (4, 3, 5, 1)


def test_log_prob_is_the_log_mean_exp_over_draws():
    model, guide = pair(dim_y=2, double=True)
    found = predict(model, guide, data(3, dim_y=2, dtype=torch.float64), torch.randn(3, 5, 1).double(), 7, seed=0)
    y = torch.randn(3, 5, 2).double()
    base = found.likelihood.base_dist
    each = (-0.5 * ((y - base.loc) / base.scale).square() - base.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    assert each.shape == (7, 3, 5)
    torch.testing.assert_close(found.log_prob(y), each.exp().mean(0).log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.joint_log_prob(y), each.sum(-1).exp().mean(0).log(), rtol=1e-9, atol=1e-9)
    mask = torch.rand(3, 5) > 0.4
    torch.testing.assert_close(
        found.joint_log_prob(y, mask), (each * mask).sum(-1).exp().mean(0).log(), rtol=1e-9, atol=1e-9
    )
    # by Jensen a mixture scores more than the average of its parts
    assert bool((found.log_prob(y) >= each.mean(0)).all())


def test_mean_and_std_are_those_of_the_mixture():
    model, guide = pair(double=True)
    found = predict(model, guide, data(dtype=torch.float64), torch.randn(5, 1).double(), 6, seed=0)
    base = found.likelihood.base_dist
    second = (base.scale.square() + base.loc.square()).mean(0)
    torch.testing.assert_close(found.mean, base.loc.mean(0))
    torch.testing.assert_close(found.std, (second - base.loc.mean(0).square()).sqrt())


def test_quantiles_are_exact_for_one_gaussian_and_of_the_samples_for_many():
    model, guide = pair(double=True)
    context, x = data(dtype=torch.float64), torch.randn(5, 1).double()
    one = predict(model, guide, context, x, weights="mean", seed=0)
    torch.testing.assert_close(one.quantile(0.975), one.mean + 1.959963984540054 * one.std, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(one.quantile(0.5), one.mean)
    many = predict(model, guide, context, x, 4000, seed=0)
    below = (many.samples < many.quantile(0.2)).double().mean(0)
    torch.testing.assert_close(below, torch.full_like(below, 0.2), rtol=0, atol=2e-3)
    q = many.quantile([0.1, 0.5, 0.9])
    assert bool((q[0] < q[1]).all()) and bool((q[1] < q[2]).all())


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_the_distribution_function_is_the_share_of_draws_below(kind):
    torch.manual_seed(0)
    if kind == "gaussian":
        model, guide = pair(dim_y=2)
    else:
        model = MixtureDensityNetwork(3, 1, 2, width=8)
        guide = DirichletMixtureGuide(model, 8)
    context, x = data(3, dim_y=2), torch.randn(3, 5, 1)
    y = torch.randn(3, 5, 2)
    many = predict(model, guide, context, x, 4000, seed=0)
    below = (many.samples < y).float().mean(0)
    torch.testing.assert_close(many.cdf(y), below, rtol=0, atol=0.035)
    one = predict(model, guide, context, x, weights="mean", seed=0)
    assert one.cdf(y).shape == y.shape
    torch.testing.assert_close(one.cdf(one.quantile(0.3)), torch.full_like(y, 0.3), rtol=0, atol=1e-4)
    with pytest.raises(DataError, match=r"^y: got shape \[3, 4, 2\]; the prediction has shape \[3, 5, 2\]$"):
        many.cdf(y[:, :4])


def test_a_likelihood_without_a_distribution_function_says_so():
    model, guide = pair(likelihood="bernoulli")
    found = predict(model, guide, Dataset(torch.randn(6, 1), torch.ones(6, 1)), torch.randn(5, 1), 2)
    with pytest.raises(
        ValueError, match=r"^y: the likelihood is \w+, which has no distribution function in closed form$"
    ):
        found.cdf(torch.ones(5, 1))


def test_a_seed_reproduces_and_leaves_the_process_alone():
    model, guide = pair()
    context, x = data(3), torch.randn(3, 5, 1)
    state = torch.get_rng_state()
    first, second = (predict(model, guide, context, x, 4, seed=7) for _ in range(2))
    assert torch.equal(first.samples, second.samples)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(predict(model, guide, context, x, 4, seed=8).samples, first.samples)
    predict(model, guide, context, x, 4)
    assert not torch.equal(torch.get_rng_state(), state)  # no seed: the process's own state


@pytest.mark.parametrize("likelihood", ["gaussian-head", "gaussian", "bernoulli", "categorical"])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_chunks_have_the_shapes_of_one_run(monkeypatch, likelihood, batch):
    model, guide = pair(3, likelihood)
    y = torch.randint(0, 3, (*batch, 6)) if likelihood == "categorical" else torch.rand(*batch, 6, 3).round()
    context, x = Dataset(torch.randn(*batch, 6, 1), y), torch.randn(*batch, 5, 1)
    whole = predict(model, guide, context, x, 7, seed=0)
    module = sys.modules["inference.predict"]
    monkeypatch.setattr(module, "run_chunks", lambda draws, size: [3, 3, 1])
    chunked = predict(model, guide, context, x, 7, seed=0)
    assert (
        chunked.samples.shape == whole.samples.shape == (7, *batch, 5, *(() if likelihood == "categorical" else (3,)))
    )
    assert chunked.function_samples.shape == whole.function_samples.shape == (7, *batch, 5, 3)
    target = chunked.samples[0]
    assert chunked.log_prob(target).shape == whole.log_prob(target).shape == (*batch, 5)
    assert len({tuple(f.flatten().tolist()) for f in chunked.function_samples}) == 7  # no chunk repeats another
    one_by_one = torch.stack([chunked.likelihood.log_prob(target)[i] for i in range(7)])
    torch.testing.assert_close(chunked.log_prob(target), one_by_one.exp().mean(0).log(), rtol=1e-4, atol=1e-4)


def test_chunks_add_up_and_stay_below_their_limit():
    run_chunks = sys.modules["inference.predict"].run_chunks
    for draws, size, limit in [(100, 10, 250), (7, 1000, 10), (5, 0, 10), (1, 1, 1), (10, 3, 30)]:
        chunks = run_chunks(draws, size, limit)
        assert sum(chunks) == draws and min(chunks) > 0
        assert max(chunks) * size <= max(limit, size)


@pytest.mark.parametrize("guide_class", [AmortisedMeanFieldGuide, BernoulliExpertGuide])
def test_each_draw_is_one_function(guide_class):
    model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head").double()
    guide = guide_class(model, width=8).double()
    x = torch.randn(3, 1, 1).double().repeat(1, 2, 1)  # the same location twice
    found = predict(model, guide, data(3, dtype=torch.float64), x, 20, seed=0)
    functions = found.function_samples
    torch.testing.assert_close(functions[:, :, 0], functions[:, :, 1], rtol=1e-12, atol=1e-12)
    assert float(functions[:, :, 0].std(0).min()) > 1e-4
    assert float((found.samples[:, :, 0] - found.samples[:, :, 1]).abs().min()) > 0  # noise is each point's own


def test_mean_weights_are_one_function_without_randomness_of_latents():
    model, guide = pair()
    context, x = data(3), torch.randn(3, 5, 1)
    a = predict(model, guide, context, x, 50, weights="mean", seed=1)
    b = predict(model, guide, context, x, 50, weights="mean", seed=2)
    assert a.num_samples == 1
    assert torch.equal(a.mean, b.mean)
    assert not torch.equal(a.samples, b.samples)
    means = [fn.mean for fn in guide.layer_distributions(context)]
    hidden = torch.relu(x @ means[0][..., :-1].mT + means[0][..., None, :, -1])
    outputs = hidden @ means[1][..., :-1].mT + means[1][..., None, :, -1]
    torch.testing.assert_close(a.mean, outputs[..., :1].detach())


def test_an_empty_context_gives_one_prediction_for_all_tasks():
    model, guide = pair()
    grid = torch.linspace(-1, 1, 5).unsqueeze(-1)
    found = predict(model, guide, data(3, n=0), grid, weights="mean")
    torch.testing.assert_close(found.mean[0], found.mean[2])
    assert found.mean.shape == (3, 5, 1)
    latent = NeuralProcess(1, 1, latent_dim=4, width=8)
    assert predict(latent, NeuralProcessGuide(latent, width=8), data(n=0), grid, 3).samples.shape == (3, 5, 1)


def test_a_task_batch_is_predicted_from_its_context_alone():
    model, guide = pair()
    batch = data(3).split(2)
    x = torch.randn(3, 5, 1)
    a = predict(model, guide, batch, x, weights="mean").mean
    assert torch.equal(a, predict(model, guide, batch.context, x, weights="mean").mean)
    assert not torch.equal(a, predict(model, guide, batch.full, x, weights="mean").mean)


def test_the_outputs_of_a_target_are_never_read():
    model, guide = pair()
    batch = data(3).split(2)
    other = Dataset(batch.target.x, batch.target.y + 100)
    a = predict(model, guide, batch.context, batch.target, 3, seed=0)
    assert torch.equal(a.samples, predict(model, guide, batch.context, other, 3, seed=0).samples)


def test_classifiers_predict_probabilities():
    model, guide = pair(3, "categorical")
    context = Dataset(torch.randn(2, 6, 1), torch.randint(0, 3, (2, 6)))
    found = predict(model, guide, context, torch.randn(2, 5, 1), 8, seed=0)
    assert found.samples.shape == (8, 2, 5) and found.samples.dtype == torch.long
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(2, 5))
    y = torch.randint(0, 3, (2, 5))
    torch.testing.assert_close(found.log_prob(y).exp(), found.mean.gather(-1, y.unsqueeze(-1)).squeeze(-1))
    with pytest.raises(ValueError, match=r"^q: the outputs are class indices"):
        found.quantile(0.5)


def test_bad_arguments_in_one_line():
    model, guide = pair()
    context, x = data(3), torch.randn(3, 5, 1)
    for options, message in [
        ({"num_samples": 0}, r"^num_samples: got 0; it must be at least 1$"),
        ({"weights": "median"}, r"^weights: got 'median'; it must be 'samples' or 'mean'$"),
    ]:
        with pytest.raises(ValueError, match=message):
            predict(model, guide, context, x, **options)
    with pytest.raises(DataError, match=r"^x: task dimensions \[2\] differ from the context's \[3\]$"):
        predict(model, guide, context, torch.randn(2, 5, 1))
    with pytest.raises(DataError, match=r"^x: got input width 2; this model was built for 1$"):
        predict(model, guide, context, torch.randn(3, 5, 2))
    for q in (-0.1, [0.5, 1.1]):
        with pytest.raises(ValueError, match=r"quantiles lie in \[0, 1\]$"):
            predict(model, guide, context, x, 2).quantile(q)
    with pytest.raises(ValueError, match=r"^num_samples: got 0; it must be at least 1$"):
        sample_posterior(model, guide, context, 0)


@pytest.mark.parametrize("shape", [(3, 4, 2), (3, 5, 1), (3, 5, 3), (2, 5, 2), (5,)])
def test_outputs_that_do_not_fit_the_prediction_are_refused(shape):
    model, guide = pair(dim_y=2)
    found: Prediction = predict(model, guide, data(3, dim_y=2), torch.randn(3, 5, 1), 4)
    with pytest.raises(DataError, match=r"^y: got shape .*; the prediction has shape \[3, 5, 2\]$"):
        found.log_prob(torch.zeros(shape))
    with pytest.raises(DataError, match=r"^y: got shape "):
        found.joint_log_prob(torch.zeros(shape))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_posterior_draws_by_site(batch):
    model, guide = pair()
    d = data(*batch)
    state = torch.get_rng_state()
    draws = sample_posterior(model, guide, d, 7, seed=3)
    assert {n: tuple(v.shape) for n, v in draws.items()} == {
        "layer_0.weight": (7, *batch, 8, 2),
        "layer_1.weight": (7, *batch, 2, 9),
    }
    assert torch.equal(torch.get_rng_state(), state)
    again = sample_posterior(model, guide, d, 7, seed=3)
    assert all(torch.equal(again[n], v) for n, v in draws.items())


def test_posterior_draws_have_the_moments_of_the_guide():
    model, guide = pair(double=True)
    d = data(2, dtype=torch.float64)
    draws = sample_posterior(model, guide, d, 20_000, seed=0)["layer_0.weight"]
    fn = guide.layer_distributions(d)[0].base_dist
    scale = fn.scale.detach()
    assert float(((draws.mean(0) - fn.loc.detach()) / scale).abs().max()) < 5 / math.sqrt(20_000)
    assert float((draws.std(0) / scale - 1).abs().max()) < 0.03


def test_a_deterministic_path_is_the_same_in_every_draw():
    model = NeuralProcess(1, 1, latent_dim=0, representation_dim=8, width=8)
    draws = sample_posterior(model, NeuralProcessGuide(model, width=8), data(3), 5, seed=0)
    assert draws["representation"].shape == (5, 3, 8)
    assert float(draws["representation"].std(0).max()) < 1e-6
