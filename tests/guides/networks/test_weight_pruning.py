"""Pruning of weights by log α: a planted support is found, infinity changes nothing, the result is saved."""

import itertools

import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence

import guidebook as gb
from guides import GaussianVIGuide, SparseVIGuide, prune_weights
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, LogUniformPrior
from pp_models.log_uniform import log_uniform_kl

SUPPORT = [1, 4, 9]


def planted(seed, tasks=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*tasks, 80, 12, generator=generator)
    noise = 0.1 * torch.randn(*tasks, 80, 1, generator=generator)
    return Dataset(x, x[..., SUPPORT].sum(-1, keepdim=True) + noise)


def fitted(seed, tasks=(), steps=600):
    torch.manual_seed(seed)
    model = BayesianNetwork([12, 1], prior=LogUniformPrior(), likelihood="gaussian", noise_scale=0.1)
    guide = GaussianVIGuide(model, batch_shape=tasks)
    data = planted(seed, tasks)
    gb.fit(
        model, guide, itertools.repeat(data), "elbo", steps=steps, learning_rate=0.02, schedule="cosine", progress=False
    )
    return model, guide, data


@pytest.fixture(scope="module")
def pair():
    return fitted(0, steps=200)


def test_a_planted_support_is_found():
    """In three data sets at once, each with a posterior of its own."""
    model, guide, data = fitted(1, (3,))
    wanted = torch.zeros(13, dtype=torch.bool)
    wanted[SUPPORT] = True
    pruning = prune_weights(model, guide, "gap")
    kept = pruning.kept["layer_0.weight"]
    assert torch.equal(kept, wanted.expand(3, 1, 13)) and pruning.removed == 30
    by_number = prune_weights(model, guide)
    assert by_number.threshold == 3.0 and 0 < by_number.removed < 30
    assert bool(by_number.kept["layer_0.weight"][..., wanted].all())
    before, after = (gb.predict(model, g, data, data.x, 200).mean for g in (guide, pruning.guide))
    assert (before - after).square().mean().sqrt() < 0.05  # half of the noise


def test_infinity_changes_nothing(pair):
    model, guide, data = pair
    pruning = prune_weights(model, guide, float("inf"))
    assert pruning.removed == 0 and all(mask.all() for mask in pruning.kept.values())
    found = []
    for each in (guide, pruning.guide):
        each.zero_grad()
        torch.manual_seed(1)
        loss = make("elbo", num_particles=2).differentiable_loss(model, each, data)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in each.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_copy_is_apart_saved_and_loaded_and_trained_on(pair, tmp_path):
    model, guide, data = pair
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    random = torch.get_rng_state()
    pruned = prune_weights(model, guide, "gap").guide
    assert torch.equal(torch.get_rng_state(), random)
    gb.save(tmp_path / "pair", model, pruned)
    again = gb.load(tmp_path / "pair")[1]
    draws = []
    for each in (pruned, again):
        torch.manual_seed(0)
        draws.append(gb.sample_posterior(model, each, data, 50)["layer_0.weight"])
    assert torch.equal(*draws)
    off = ~pruned.active[0]
    assert bool((draws[0][:, off] == 0).all()) and bool((draws[0][:, ~off] != 0).all())
    for name in ("elbo", "iwae", "rws"):
        loss = make(name, num_particles=4).differentiable_loss(model, pruned, data)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in pruned.parameters())
    gb.fit(model, pruned, itertools.repeat(data), "elbo", steps=5, progress=False)
    assert torch.equal(pruned.active[0], ~off)
    assert all(torch.equal(value, guide.state_dict()[name]) for name, value in state.items())


def test_tasks_keep_weights_of_their_own():
    model, guide, data = fitted(5, (2,), steps=100)
    with torch.no_grad():
        guide.posterior.loc[0][1, 0, 4] = 1e-6  # the second task has no use for it
    pruning = prune_weights(model, guide, "gap")
    kept = pruning.kept["layer_0.weight"]
    assert kept.shape == (2, 1, 13) and bool(kept[0, 0, 4]) and not bool(kept[1, 0, 4])
    terms = make("elbo").terms(model, pruning.guide, data)
    assert terms.bound.shape == (2,) and torch.isfinite(terms.bound).all()
    with pytest.raises(ValueError, match=r"^guide: its weights were pruned"):
        pruning.guide.update_subspace()


def test_the_divergence_is_that_of_variational_dropout_over_the_weights_that_are_left():
    torch.manual_seed(0)
    model = BayesianNetwork([3, 4, 1], prior=LogUniformPrior(), likelihood="gaussian")
    guide = GaussianVIGuide(model)
    data = Dataset(torch.randn(5, 3), torch.randn(5, 1))
    log_alpha = prune_weights(model, guide, float("inf")).log_alpha
    for pruned in (guide, prune_weights(model, guide, float(log_alpha["layer_0.weight"].median())).guide):
        masks = (
            pruned.active if isinstance(pruned, SparseVIGuide) else [torch.ones_like(v) > 0 for v in log_alpha.values()]
        )
        terms = make("elbo").terms(model, pruned, data)
        for (site, values), mask in zip(log_alpha.items(), masks, strict=True):
            wanted = log_uniform_kl(values, approximate=True)[mask].sum()
            torch.testing.assert_close(terms.kl_by_site[site].detach(), wanted)
        assert set(terms.analytic) == set(log_alpha)
    # but for the prior's constant, which goes with the number of weights, it is the mean of log q - log p
    p, gaps = model.prior.layer(0, []), []
    for one in (guide, GaussianVIGuide(model, initial_scale=0.5)):
        with torch.no_grad():
            q = poutine.trace(one).get_trace(data).nodes["layer_0.weight"]["fn"]
            draws = q.rsample((20_000,))
            gaps.append(float((q.log_prob(draws) - p.log_prob(draws)).mean() - kl_divergence(q, p)))
    assert abs(gaps[0] - gaps[1]) < 0.25  # of 16 weights, each within 0.0095 nats by the fit


def test_what_is_refused(pair):
    model, guide, _ = pair
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"^threshold: got -100.0; it would prune all 13 weights, and must be at least"
    ):
        prune_weights(model, guide, -100.0)
    with pytest.raises(ValueError, match=r"^threshold: got nan; it must"):
        prune_weights(model, guide, float("nan"))
    with pytest.raises(ValueError, match=r"^guide: got correlation 'unit', .* it must be 'weight'$"):
        prune_weights(model, GaussianVIGuide(model, "unit"))
    other = BayesianNetwork([2, 1], likelihood="gaussian")
    with pytest.raises(ValueError, match=r"^guide: got one of weights .* it must be of the model's"):
        prune_weights(other, guide)
    with pytest.raises(ValueError, match=r"^guide: got a SparseVIGuide, which is sparse already"):
        prune_weights(other, SparseVIGuide(other, density=0.5))
    assert all(torch.equal(value, guide.state_dict()[name]) for name, value in state.items())
