"""Counts: torch's multinomial for every total, draws of a given total, and what is refused."""

import pytest
import torch

import guidebook as gb
from pp_models import DataError, Dataset, MultinomialLikelihood


def test_log_probabilities_are_torchs_for_each_total():
    logits = torch.randn(5, 4).double()
    fn = MultinomialLikelihood()(logits)
    for total in (0, 1, 7):
        y = MultinomialLikelihood(max(total, 1))(logits).sample() * (total > 0)
        expected = torch.distributions.Multinomial(total, logits=logits).log_prob(y)
        torch.testing.assert_close(fn.log_prob(y), expected)
    every = torch.tensor([[a, b, 3.0 - a - b] for a in range(4) for b in range(4 - a)]).double()
    torch.testing.assert_close(
        torch.logsumexp(MultinomialLikelihood()(torch.randn(3).double()).log_prob(every), 0),
        torch.zeros(()).double(),
        rtol=0,
        atol=1e-10,
    )


def test_draws_hold_their_total_and_have_the_moments():
    fn = MultinomialLikelihood(6)(torch.randn(2, 3).double())
    draws = fn.sample(torch.Size([20_000]))
    assert bool((draws.sum(-1) == 6).all()) and bool((draws >= 0).all())
    assert float((draws.mean(0) - fn.mean).abs().max()) < 0.05
    assert float((draws.var(0) - fn.variance).abs().max()) < 0.1


def test_a_model_of_users_trains_and_predicts_shares():
    """Two kinds of users, told by a first count: the second is predicted better than by the mean of all."""
    torch.manual_seed(0)
    kinds = torch.tensor([[0.7, 0.2, 0.05, 0.05], [0.05, 0.05, 0.2, 0.7]])
    y = torch.distributions.Multinomial(20, kinds[torch.arange(40) % 2]).sample(torch.Size([2])).movedim(0, 1)
    data = Dataset(torch.zeros(40, 2, 1), y)
    model = gb.NeuralProcess(1, 4, latent_dim=2, width=16, depth=2, likelihood=MultinomialLikelihood(20))
    guide = gb.guides.NeuralProcessGuide(model, 16)
    schedule = gb.objectives.KLSchedule("warm-up", 100)
    objective = gb.objectives.make("npvi", kl_schedule=schedule)
    gb.fit(model, guide, data.split(1), objective, steps=200, learning_rate=1e-2, progress=False)
    found = gb.predict(model, guide, data.split(1).context, torch.zeros(40, 1, 1), num_samples=20, seed=0)
    mean = MultinomialLikelihood()(y.mean((0, 1)).log()).log_prob(y[:, 1])
    assert float(found.log_prob(y[:, 1:]).mean()) > float(mean.mean()) + 3
    assert float((found.mean[:, 0] / 20 - kinds[torch.arange(40) % 2]).abs().max()) < 0.2


def test_what_is_no_count_is_refused():
    model = gb.BayesianNetwork([1, 4, 3], likelihood=MultinomialLikelihood())
    for value in (-1.0, 0.5):
        with pytest.raises(DataError, match=r"^y: got values from .*; counts must be 0, 1, 2"):
            model.check(Dataset(torch.zeros(1, 1), torch.tensor([[0.0, value, 2.0]])))
    with pytest.raises(ValueError, match=r"^total_count: got 0; it must be"):
        MultinomialLikelihood(0)
