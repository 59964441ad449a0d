"""Every guide of the network family and of the neural processes under every objective: ten steps, and what they do."""

import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, BNNWeightGuide, MCDropoutGuide, NeuralProcessGuide
from inference import fit
from inference.objectives import REGISTRY, make
from pp_models import BayesianNetwork, LearnedGaussianPrior, NeuralProcess, tasks

WIDTH = 8
K = 8


def network(**options):
    return BayesianNetwork([1, WIDTH, WIDTH, 2], likelihood="gaussian-head", **options)


def neural_process(**options):
    return NeuralProcess(1, 1, width=WIDTH, **options)


PAIRS = {
    "bernoulli-expert": lambda: (m := network(), BernoulliExpertGuide(m, WIDTH)),
    "bernoulli-expert+path": lambda: (m := network(representation_dim=WIDTH), BernoulliExpertGuide(m, WIDTH)),
    "bernoulli-expert, learned prior": lambda: (m := network(prior=LearnedGaussianPrior("unit")),
                                                BernoulliExpertGuide(m, WIDTH)),
    "mean-field": lambda: (m := network(), AmortisedMeanFieldGuide(m, WIDTH)),
    "mean-field, network prior": lambda: (m := network(prior=LearnedGaussianPrior("network")),
                                          AmortisedMeanFieldGuide(m, WIDTH)),
    "bnn": lambda: (m := network(), BNNWeightGuide(m)),
    "bnn, learned prior": lambda: (m := network(prior=LearnedGaussianPrior("unit")), BNNWeightGuide(m)),
    "mc-dropout": lambda: (m := network(), MCDropoutGuide(m)),
    "np": lambda: (m := neural_process(latent_dim=4), NeuralProcessGuide(m, WIDTH)),
    "np+cnp": lambda: (m := neural_process(latent_dim=4, representation_dim=8), NeuralProcessGuide(m, WIDTH)),
    "cnp": lambda: (m := neural_process(latent_dim=0, representation_dim=8), NeuralProcessGuide(m, WIDTH)),
    "anp": lambda: (m := neural_process(latent_dim=4, representation_dim=8, attention=True),
                    NeuralProcessGuide(m, WIDTH)),
}  # fmt: skip


def loss(model, guide, objective, batch, draws=40):
    """The mean loss over some draws."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.stack([objective.reduce(objective.terms(model, guide, batch)) for _ in range(draws)]).mean()


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("pair", PAIRS)
def test_ten_steps_stay_finite_and_lower_the_loss(pair, name):
    torch.manual_seed(3)
    model, guide = PAIRS[pair]()
    batch = tasks.gp("rbf", 4).batch(0)
    objective = make(name, num_particles=K, normalize=True)
    if name == "npe" and pair in ("bernoulli-expert+path", "np+cnp", "cnp", "anp"):
        with pytest.raises(
            ValueError, match=r"^site '(representation|memory)': its prior is flat|^guide: it draws nothing"
        ):
            objective.terms(model, guide, batch)
        return
    # a self-normalised score in weight space is a weak signal; a larger step spoils it where few particles count
    learning_rate = 1e-2 if name == "iw-em" else 3e-3
    before = loss(model, guide, objective, batch)
    result = fit(
        model, guide, batch, objective, steps=10, learning_rate=learning_rate, max_grad_norm=10.0, log_every=5,
        progress=False,
    )  # fmt: skip
    after = loss(model, guide, objective, batch)
    assert result.skipped == []
    assert torch.isfinite(after)
    assert after < before
    has_weights = name not in ("elbo", "info-vae", "r-drop", "tempered-elbo", "npvi", "conditional-prior", "npe")
    assert ("ess" in result.history[-1]) == has_weights
    if has_weights:
        assert 1.0 <= result.history[-1]["ess"] <= K + 1e-4
        assert 0.0 <= result.history[-1]["ess_below_2"] <= 1.0


@pytest.mark.parametrize("name", REGISTRY)
def test_every_objective_through_svi_and_as_a_module(name):
    model, guide = PAIRS["bernoulli-expert"]()
    batch = tasks.gp("rbf", 3).batch(0)
    objective = make(name, num_particles=2)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), loss=objective)
    before = [p.detach().clone() for p in guide.parameters()]
    for _ in range(2):
        assert torch.isfinite(torch.as_tensor(svi.step(batch)))
    assert any(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    guide.zero_grad()
    objective(model, guide)(batch).backward()
    assert sum(p.grad.abs().sum() for p in guide.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "npe"])  # which forms no weights
@pytest.mark.parametrize("pair", ["bernoulli-expert", "mean-field", "bnn", "np"])
def test_diagnostics_come_from_the_same_pass(pair, name):
    model, guide = PAIRS[pair]()
    batch = tasks.gp("rbf", 5).batch(0)
    options = {"local_reparameterization": False} if name == "conditional-prior" else {}
    objective = make(name, num_particles=6, **options)
    calls = {"model": 0, "guide": 0}
    for module, key in ((model, "model"), (guide, "guide")):
        module.register_forward_hook(lambda *_, key=key: calls.__setitem__(key, calls[key] + 1))
    torch.manual_seed(0)
    plain = objective.terms(model, guide, batch)
    once = dict(calls)
    torch.manual_seed(0)
    terms = objective.terms(model, guide, batch, diagnostics=True)
    assert {key: calls[key] - once[key] for key in calls} == once
    torch.testing.assert_close(terms.bound, plain.bound, rtol=0, atol=0)
    assert terms.bound.shape == (5,) and terms.log_weights.shape == (6, 5)
    assert not terms.log_weights.requires_grad
    assert terms.ess.shape == (5,) and (terms.ess >= 1 - 1e-4).all() and (terms.ess <= 6 + 1e-4).all()
    assert terms.share_below_2.item() == pytest.approx((terms.ess < 2).float().mean().item())
    if name not in ("npml", "iw-em"):  # npml has no divergence, and iw-em's proposal is its prior
        sites = {"z"} if pair == "np" else set(guide.sites)
        assert set(terms.kl_by_site) == sites and all(v.shape == (5,) for v in terms.kl_by_site.values())


def test_effective_sample_size_by_hand():
    model, guide = PAIRS["np"]()
    terms = make("iwae", num_particles=5).terms(model, guide, tasks.gp("rbf", 3).batch(0))
    weights = torch.softmax(terms.log_weights, 0)
    torch.testing.assert_close(terms.ess, 1 / weights.square().sum(0))
    torch.testing.assert_close(terms.bound.detach(), terms.log_weights.exp().mean(0).log(), rtol=1e-3, atol=1e-3)
