"""R-Drop: nothing for point masses, Gaussians in closed form, and the plain bound without its weight."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from guides import AmortisedMeanFieldGuide, BernoulliMaskGuide, MCDropoutGuide, NeuralProcessGuide
from inference import fit
from inference.objectives import make
from inference.objectives.r_drop import divergence, rolled
from pp_models import BayesianNetwork, Dataset, MaskedNetwork, NeuralProcess, TaskBatch, tasks


def pair(likelihood="gaussian", outputs=1):
    torch.manual_seed(0)
    model = BayesianNetwork([1, 6, outputs], likelihood=likelihood, noise_scale=0.3).double()
    return model, AmortisedMeanFieldGuide(model, 8).double()


def data(mask=None, classes=0):
    x = torch.randn(3, 5, 1).double()
    return Dataset(x, torch.randint(0, classes, (3, 5)) if classes else torch.randn(3, 5, 1).double(), mask)


def bounds(model, guide, batch, k, weight, **options):
    found = []
    for name, own in (("elbo", {}), ("r-drop", {"penalty_weight": weight})):
        torch.manual_seed(1)
        found.append(make(name, num_particles=k, **own, **options).terms(model, guide, batch).bound)
    return found


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_of_gaussians_it_is_the_squared_distance_of_their_means(k, masked):
    model, guide = pair()
    batch = data(torch.rand(3, 5) < 0.6 if masked else None)
    plain, found = bounds(model, guide, batch, k, 0.7)
    torch.manual_seed(1)
    with pyro.plate("particles", k, dim=-2):
        trace = pyro.poutine.trace(guide).get_trace(batch)
        outputs = pyro.poutine.replay(model, trace=trace)(batch)  # [K, 3, 5, 1]
    apart = ((outputs - outputs.roll(1, 0)).square() / (2 * 0.3**2)).squeeze(-1)
    expected = (apart * batch.full_mask()).sum(-1).mean(0)
    torch.testing.assert_close(plain - found, 0.7 * expected)


@pytest.mark.parametrize(("likelihood", "outputs", "classes"), [("gaussian-head", 2, 0), ("categorical", 3, 3)])
def test_of_two_draws_it_is_both_directions_of_the_kl(likelihood, outputs, classes):
    model, guide = pair(likelihood, outputs)
    batch = data(classes=classes)
    plain, found = bounds(model, guide, batch, 2, 1.0)
    torch.manual_seed(1)
    with pyro.plate("particles", 2, dim=-2):
        trace = pyro.poutine.trace(guide).get_trace(batch)
        fn = model.likelihood(pyro.poutine.replay(model, trace=trace)(batch))
    parts = [type(fn.base_dist)(fn.base_dist.loc[i], fn.base_dist.scale[i]) if not classes
             else dist.Categorical(logits=fn.logits[i]) for i in range(2)]  # fmt: skip
    both = 0.5 * (kl_divergence(*parts) + kl_divergence(*parts[::-1]))
    torch.testing.assert_close(plain - found, both.reshape(3, -1).sum(-1))


def test_without_weight_and_for_point_masses_it_is_the_plain_bound_bit_for_bit():
    model, guide = pair()
    assert torch.equal(*bounds(model, guide, data(), 2, 0.0))
    cnp = NeuralProcess(1, 1, latent_dim=0, representation_dim=4, width=8, depth=3).double()
    assert torch.equal(*bounds(cnp, NeuralProcessGuide(cnp, 8).double(), data(), 2, 5.0))


def test_its_gradient_is_that_of_the_penalty():
    model, guide = pair()
    batch, loss = data(), {}
    for weight in (0.0, 0.3, 0.6):
        torch.manual_seed(1)
        guide.zero_grad()
        make("r-drop", penalty_weight=weight).differentiable_loss(model, guide, batch).backward()
        loss[weight] = torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None])
    torch.testing.assert_close(loss[0.6] - loss[0.3], loss[0.3] - loss[0.0])
    assert float((loss[0.3] - loss[0.0]).abs().max()) > 0


def test_a_distribution_beside_its_neighbour():
    logits, mask = torch.randn(4, 2, 3), torch.rand(2) < 0.5
    for fn in (dist.Categorical(logits=logits), dist.Categorical(logits=logits).mask(mask)):
        other = rolled(fn, -2)
        base = getattr(other, "base_dist", other)
        torch.testing.assert_close(base.probs, torch.softmax(logits, -1).roll(1, 0))
    wide = dist.Normal(torch.randn(4, 1), torch.ones(2)).to_event(1)
    torch.testing.assert_close(rolled(wide, -1).mean, wide.mean.roll(1, 0))
    assert torch.equal(divergence(wide, wide), torch.zeros(4))


def test_training_with_it_makes_dropouts_draws_agree():
    """One network under dropout, with and without the penalty: its draws' spread over its error, three seeds."""
    stream = tasks.gp("rbf", 8)
    for seed in range(3):
        spread = []
        for weight in (0.0, 2.0):
            torch.manual_seed(seed)
            model = BayesianNetwork([1, 16, 1], likelihood="gaussian", noise_scale=0.5)
            guide = MCDropoutGuide(model, rate=0.3)
            objective = make("r-drop", num_particles=2, penalty_weight=weight, beta=0.0, normalize=True)
            batch = stream.batch(seed)
            fit(model, guide, batch, objective, steps=60, learning_rate=1e-2, seed=seed, progress=False)
            with pyro.plate("particles", 50, dim=-2), torch.no_grad():
                trace = pyro.poutine.trace(guide).get_trace(batch.full)
                spread.append(float(pyro.poutine.replay(model, trace=trace)(batch.full).std(0).mean()))
        assert spread[1] < 0.8 * spread[0]


def test_what_it_cannot_compare_is_refused_in_one_line():
    batch = data()
    model, guide = pair("student-t-head", 2)
    with pytest.raises(ValueError, match=r"^model: the KL between two predictions of site 'y' \(StudentT\) has no"):
        make("r-drop").terms(model, guide, batch)
    masked = MaskedNetwork([1, 4, 1]).double()
    with pytest.raises(ValueError, match=r"^penalty: site 'mask_0' .* has no reparameterised draw"):
        make("r-drop").terms(masked, BernoulliMaskGuide(masked, 4).double(), batch)
    with pytest.raises(ValueError, match=r"^vectorize_particles: the particles of this model and guide are run one by"):
        make("r-drop", vectorize_particles=False).terms(*pair(), TaskBatch(batch, batch))
    with pytest.raises(ValueError, match=r"^num_particles: got 1; it must be at least 2"):
        make("r-drop", num_particles=1)
    for name in ("r-drop", "info-vae"):
        for estimator in ("analytic", "sigma-points", "score"):
            with pytest.raises(ValueError, match=rf"^estimator: got '{estimator}'; it must be one of pathwise, stl$"):
                make(name, estimator=estimator)
