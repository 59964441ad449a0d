"""The implicit guide: linear it is the low-rank Gaussian, bent it is what its draws are, and holds two modes."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import guidebook as gb
from guides import AmortisedImplicitGuide, AmortisedLowRankNormalGuide
from guides.any_model.implicit_guide import Generator, ImplicitNormal
from inference.objectives import make


def gaussian(y):
    z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=y)


def pair(encoder):
    """A linear implicit guide and the low-rank Gaussian with its numbers."""
    y = torch.tensor(0.7).double()
    own = AmortisedImplicitGuide(gaussian, 8, hidden=(), rank=2, encoder=encoder, example=(y,))
    plain = AmortisedLowRankNormalGuide(gaussian, 8, rank=2, encoder=encoder, example=(y,))
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.3 * torch.randn_like(p))
    plain.load_state_dict(own.state_dict())
    return own, plain, y


@pytest.mark.parametrize("encoder", ["auto", None])
def test_a_linear_generator_is_the_low_rank_gaussian(encoder):
    torch.manual_seed(0)
    own, plain, y = pair(encoder)
    with torch.no_grad():
        q, p = own.vector_distribution(y), plain.vector_distribution(y)
        value = q.rsample((2_000,))
        assert value.shape == (2_000, 5)
        torch.testing.assert_close(q.log_prob(value), p.log_prob(value[..., :3]))
        entropy = -q.log_prob(value)
        assert abs(entropy.mean() - p.entropy()) < 5 * entropy.std() / 2_000**0.5
        torch.testing.assert_close(q.mean, p.mean, rtol=0, atol=0.1)
        torch.testing.assert_close(q.variance, p.variance, rtol=0.1, atol=0)
        covariance, error = p.covariance_matrix, 0.1 * float(p.covariance_matrix.abs().max())
        torch.testing.assert_close(torch.cov(value[:, :3].T), covariance, rtol=0, atol=error)


def bent_pair(y, hidden=(4,)):
    """A guide with a network that is zero, so that it is linear, and the low-rank Gaussian with its numbers."""
    own = AmortisedImplicitGuide(gaussian, 8, hidden=hidden, rank=2, encoder=None, example=(y,))
    plain = AmortisedLowRankNormalGuide(gaussian, 8, rank=2, encoder=None, example=(y,))
    with torch.no_grad():
        own.numbers.add_(0.3 * torch.randn_like(own.numbers))
        plain.numbers.copy_(own.numbers)
        if own.inverse is not None:
            torch.nn.init.zeros_(own.generator.layers[-1].weight)
            for p in own.inverse.parameters():
                torch.nn.init.normal_(p)
    return own, plain


@pytest.mark.parametrize("hidden", [(), (4,)])
@pytest.mark.parametrize("program", ["elbo", "iwae"])
def test_and_so_are_its_bound_and_gradient(program, hidden):
    """By the same noise, whatever the inverse network guesses: log r is then the exact posterior's."""
    torch.manual_seed(0)
    y = torch.tensor(0.7).double()
    own, plain = bent_pair(y, hidden)
    noise, rest = torch.randn(6, 2).double(), torch.randn(6, 3).double()
    found = []
    for guide in (own, plain):
        density = guide.vector_distribution(y)
        loc, factor, diagonal = guide.parts(guide.numbers, guide.centre, guide.spread)
        latents = loc + (factor @ noise.unsqueeze(-1)).squeeze(-1) + diagonal.sqrt() * rest
        value = torch.cat([latents, noise], -1) if guide is own else latents
        log_w = dist.Normal(0.0, 1.0).log_prob(latents).sum(-1) - density.log_prob(value)
        bound = log_w.mean() if program == "elbo" else torch.logsumexp(log_w, 0)
        found.append((bound.detach(), torch.autograd.grad(bound, guide.numbers)[0]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_jacobian_is_that_of_the_network():
    torch.manual_seed(0)
    net = Generator(2, 3, (5, 4), 6).double()
    for p in net.parameters():
        torch.nn.init.normal_(p)
    noise, features = torch.randn(7, 2).double(), torch.randn(7, 3).double()
    value, jacobian = net(noise, features)
    right = torch.func.vmap(torch.func.jacrev(lambda e, f: net(e, f)[0]))(noise, features)
    torch.testing.assert_close(jacobian, right)
    assert value.shape == (7, 6)


def bent(scale, inverse, bend=0.5):
    """A curve that does not cross itself, with noise of that scale; the inverse network is far off."""
    torch.manual_seed(1)
    net = Generator(1, 0, (4,), 2).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=bend)
    guess = None
    if inverse:
        guess = Generator(2, 0, (4,), 1).double()
        for p in guess.parameters():
            torch.nn.init.normal_(p, std=1.5)
    loc, factor = torch.zeros(2).double(), torch.tensor([[1.5], [0.5]]).double()
    ones = torch.ones(2).double()
    return ImplicitNormal(loc, factor, scale**2 * ones, 0 * ones, ones, net, guess, None)


def marginal(q, latents, scale):
    """log ∫ N(ε) N(θ; g(ε), σ²) dε on a grid."""
    grid = torch.linspace(-7, 7, 20_001).double()
    mean = q.generated(grid.unsqueeze(-1))[0]
    each = dist.Normal(mean, scale).log_prob(latents[:, None]).sum(-1) + dist.Normal(0.0, 1.0).log_prob(grid)
    return torch.logsumexp(each, -1) + (grid[1] - grid[0]).log()


def test_linearised_at_the_draw_the_error_falls_with_the_noise():
    errors = []
    for scale in (0.3, 0.05):
        q = bent(scale, inverse=False)
        with torch.no_grad():
            value = q.rsample((200,))
            errors.append(float((q.log_prob(value) - marginal(q, value[:, :2], scale)).abs().mean()))
    assert errors[1] < 0.02 and errors[1] < 0.4 * errors[0]


def test_with_the_inverse_network_it_is_a_bound_and_importance_weights_are_proper():
    scale = 0.3
    q = bent(scale, inverse=True, bend=1.5)
    with torch.no_grad():
        value = q.rsample((1_000,))
        gap = q.log_prob(value) - marginal(q, value[:, :2], scale)
        assert 4 * gap.std() / 1_000**0.5 < gap.mean() < 2  # E log q_bound is above E log q: the bound below the ELBO
        weights = (-gap).exp()  # E[q(θ) r(ε | θ) / q(θ, ε)] = 1, as r is a density
        assert abs(weights.mean() - 1) < 5 * weights.std() / 1_000**0.5 < 0.5


def banana(y):
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z[..., 1] - z[..., 0].square(), 0.2), obs=y)


def test_it_holds_a_curved_posterior_that_no_gaussian_does():
    y = torch.tensor(0.0)
    first, second = torch.meshgrid(torch.linspace(-4, 4, 801), torch.linspace(-4, 8, 1201), indexing="ij")
    joint = dist.Normal(0.0, 1.0).log_prob(first) + dist.Normal(0.0, 1.0).log_prob(second)
    joint = joint + dist.Normal(second - first.square(), 0.2).log_prob(y)
    evidence = float(torch.logsumexp(joint.flatten(), 0) + torch.log(torch.tensor(0.01 * 0.01)))
    bounds = {}
    for kind, options in ((AmortisedImplicitGuide, {"hidden": (16,)}), (AmortisedLowRankNormalGuide, {})):
        pyro.set_rng_seed(0)
        guide = kind(banana, 16, rank=1, encoder=None, example=(y,), **options)
        optimizer = torch.optim.Adam(guide.parameters(), lr=0.02)
        objective = make("elbo", num_particles=16, max_plate_nesting=0)
        for _ in range(600):
            optimizer.zero_grad()
            objective.differentiable_loss(banana, guide, y).backward()
            optimizer.step()
        with torch.no_grad():
            own = make("elbo", num_particles=4000, max_plate_nesting=0)
            bounds[kind] = float(own.terms(banana, guide, y).bound)
    assert bounds[AmortisedImplicitGuide] < evidence + 0.02
    gap, other = (evidence - bounds[kind] for kind in (AmortisedImplicitGuide, AmortisedLowRankNormalGuide))
    assert gap < 0.5 * other, (gap, other)


def test_amortised_it_trains_on_tasks_and_is_saved(tmp_path):
    torch.manual_seed(0)
    model = gb.BayesianNetwork([1, 3, 2], likelihood="gaussian-head")
    guide = AmortisedImplicitGuide(model, 8, hidden=(8,), rank=2)
    result = gb.fit(model, guide, gb.tasks.gp("rbf", 4), "iwae", steps=30, progress=False)
    assert result.skipped == []
    gb.save(tmp_path / "pair", model, guide)
    again = gb.load(tmp_path / "pair")[1]
    data = gb.tasks.gp("rbf", 2).batch(0).context
    with torch.no_grad():
        value = guide.vector_distribution(data).rsample((3,))
        found, wanted = (g.vector_distribution(data).log_prob(value) for g in (again, guide))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["rws", "chi2", "dreg", "log-variance", "npe", "conditional-prior", "npvi"])
def test_objectives_that_need_a_density_are_refused(name):
    model = gb.BayesianNetwork([1, 3, 2], likelihood="gaussian-head")
    guide = AmortisedImplicitGuide(model, 8, hidden=(8,), rank=2)
    batch = gb.tasks.gp("rbf", 2).batch(0)
    options = {"num_particles": 4} | ({"local_reparameterization": False} if name == "conditional-prior" else {})
    with pytest.raises(ValueError, match=r"^guide: AmortisedImplicitGuide has (a bound|no density)"):
        make(name, **options).differentiable_loss(model, guide, batch).backward()
    if name not in ("npe",):
        local = AmortisedImplicitGuide(model, 8, hidden=(8,), rank=2, entropy="local")
        assert torch.isfinite(make(name, **options).differentiable_loss(model, local, batch))


@pytest.mark.parametrize("estimator", ["score", "stl"])
def test_and_so_are_estimators_that_do(estimator):
    y = torch.tensor(0.0)
    guide = AmortisedImplicitGuide(banana, 8, hidden=(8,), encoder=None, example=(y,))
    with pytest.raises(ValueError, match=r"^guide: AmortisedImplicitGuide has a bound"):
        make("elbo", num_particles=4, estimator=estimator, max_plate_nesting=0).loss_and_grads(banana, guide, y)
    q = guide.vector_distribution(y)
    with pytest.raises(ValueError, match=r"^guide: AmortisedImplicitGuide has a bound"):
        q.log_prob(q.sample()).backward()  # whoever asks
