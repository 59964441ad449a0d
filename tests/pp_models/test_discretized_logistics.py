"""Discretised logistics: they sum to 1, agree with their definition, and are trained, drawn and predicted with."""

import pytest
import torch

import guidebook as gb
from pp_models import DataError, Dataset, DiscretizedLogisticLikelihood
from pp_models.discretized_logistics import DiscretizedLogisticMixture


def mixture(levels=256, *batch, spread=1.0):
    torch.manual_seed(0)
    likelihood = DiscretizedLogisticLikelihood(3, levels)
    fn = likelihood(spread * torch.randn(*batch, 18).double()).base_dist  # of two outputs
    return fn, torch.linspace(-0.5, 0.5, levels, dtype=torch.float64)


@pytest.mark.parametrize("levels", [2, 16, 256])
@pytest.mark.parametrize("spread", [0.3, 3.0, 10.0])
def test_probabilities_of_all_levels_sum_to_one(levels, spread):
    fn, grid = mixture(levels, 5, spread=spread)
    total = torch.logsumexp(fn.log_prob(grid[:, None, None]), 0)
    torch.testing.assert_close(total, torch.zeros(5, 2).double(), rtol=0, atol=1e-10)


def test_a_probability_is_a_difference_of_distribution_functions():
    fn, grid = mixture(16, 4)
    width = grid[1] - grid[0]

    def logistic(v):
        each = torch.sigmoid((v.unsqueeze(-1) - fn.loc) / fn.log_scale.exp())
        return (torch.softmax(fn.logits, -1) * each).sum(-1)

    inside = grid[3].expand(4, 2)
    expected = logistic(inside + width / 2) - logistic(inside - width / 2)
    torch.testing.assert_close(fn.log_prob(inside).exp(), expected)
    torch.testing.assert_close(fn.log_prob(grid[0].expand(4, 2)).exp(), logistic(grid[0].expand(4, 2) + width / 2))
    torch.testing.assert_close(
        fn.log_prob(grid[-1].expand(4, 2)).exp(), 1 - logistic(grid[-1].expand(4, 2) - width / 2)
    )


def test_moments_draws_and_the_distribution_function_are_those_of_the_probabilities():
    fn, grid = mixture(16, 3)
    probs = fn.log_prob(grid[:, None, None]).exp()
    values = grid[:, None, None]
    torch.testing.assert_close(fn.mean, (probs * values).sum(0))
    torch.testing.assert_close(fn.variance, (probs * values.square()).sum(0) - fn.mean.square())
    torch.testing.assert_close(fn.cdf(values.expand(16, 3, 2)), probs.cumsum(0))
    draws = fn.sample(torch.Size([20_000]))
    shares = (draws.unsqueeze(0) - grid[:, None, None, None]).abs().lt(1e-9).double().mean(1)
    assert float((shares - probs).abs().max()) < 0.02
    assert torch.equal(fn.expand(torch.Size([5, 3, 2])).mean[2], fn.mean)


def test_gradients_are_finite_and_right_far_out_and_narrow():
    grid = torch.tensor([-0.5, 1 / 255, 256.0]).double()
    values = [torch.tensor([[0.0, 0.5]]).double(), torch.tensor([[0.2, 40.0]]).double(), torch.tensor([[-7.5, 2.0]])]
    parameters = [v.double().requires_grad_() for v in values]
    at = (torch.tensor([10.0, 0.0, 255.0]).double() / 255 - 0.5).reshape(3, 1)

    def score(*given):
        return DiscretizedLogisticMixture(*given, grid).log_prob(at)

    assert torch.autograd.gradcheck(score, parameters)


def test_a_network_with_it_trains_and_predicts(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(4, 30, 1) * 2 - 1
    y = ((torch.sin(3 * x) * 0.4 * 255).round() + 128) / 255 - 0.5
    data = Dataset(x, y, torch.rand(4, 30) < 0.9)
    model = gb.NeuralProcess(1, 1, latent_dim=4, width=16, depth=3, likelihood=DiscretizedLogisticLikelihood(2))
    assert model.outputs == 6
    guide = gb.guides.NeuralProcessGuide(model, 16)
    result = gb.fit(model, guide, data.split(10), "npvi", steps=150, learning_rate=5e-3, progress=False)
    assert result.history[-1]["log_likelihood"] > result.history[0]["log_likelihood"]
    found = gb.predict(model, guide, data, x, num_samples=6, seed=0)
    on_grid = (found.samples + 0.5) * 255
    torch.testing.assert_close(on_grid, on_grid.round(), rtol=0, atol=1e-3)
    assert found.mean.shape == found.std.shape == found.cdf(y).shape == (4, 30, 1)
    gb.save(tmp_path / "pair", model, guide)
    again = gb.predict(*gb.load(tmp_path / "pair")[:2], data, x, num_samples=6, seed=0)
    assert torch.equal(again.mean, found.mean)


def test_values_off_the_grid_are_refused():
    model = gb.BayesianNetwork([1, 4, 6], likelihood=DiscretizedLogisticLikelihood(2, 4, 0.0, 3.0))
    with pytest.raises(DataError, match=r"^y: got 1.5; values must be among the 4 levels from 0 to 3$"):
        model.check(Dataset(torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [1.5]])))
    with pytest.raises(DataError, match=r"^y: got 4; values must be among"):
        model.check(Dataset(torch.zeros(1, 1), torch.tensor([[4.0]])))
    with pytest.raises(ValueError, match=r"^layer_sizes: the last width is 4; 2 logistics need 6 Dy outputs$"):
        gb.BayesianNetwork([1, 4, 4], likelihood=DiscretizedLogisticLikelihood(2))
    with pytest.raises(ValueError, match=r"^high: got -1.0; it must be above low = 0.0$"):
        DiscretizedLogisticLikelihood(2, 4, 0.0, -1.0)
