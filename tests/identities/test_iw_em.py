"""NMDP's objective (docs/papers/nmdp.md, eq. 5 to 9): what it equals, its proposals, and the Dirichlet sweeps."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from inference import fit
from inference.objectives import make
from pp_models import Dataset, TaskBatch, dirichlet_sweeps
from pp_models.contract import Model
from pp_models.parameter_module import ParameterModule, mlp
from pp_models.task_plates import task_plates

EXPERTS = 4


class Mixture(Model):
    """y_n ~ Σ_l z_l N(f_l(x_n), 0.1²), z ~ Dir(0.3): the branches of the NMDP page's toy family."""

    def __init__(self, trainable=False):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(EXPERTS), requires_grad=trainable)

    def expert_log_likelihood(self, data):
        x = data.x[..., 0]
        means = torch.stack([(2 * x).sin() + 0.8, -(2 * x).sin() - 0.8, x / 2, 1.2 * (3 * x).cos()], -1) + self.shift
        return torch.distributions.Normal(means, 0.1).log_prob(data.y)

    def forward(self, data):
        with task_plates(data.batch_shape):
            prior = dist.Dirichlet(torch.full((EXPERTS,), 0.3, dtype=data.x.dtype))
            z = pyro.sample("mixture_weights", prior)
            each = torch.logsumexp(z.clamp_min(1e-30).log().unsqueeze(-2) + self.expert_log_likelihood(data), -1)
            # a factor: its value is the log-likelihood
            pyro.factor("y", (each * data.full_mask()).sum(-1))

    def conjugate_proposal(self, guide_trace, data, sweeps=8):
        concentration = guide_trace.nodes["mixture_weights"]["fn"].concentration
        posterior = dirichlet_sweeps(concentration, self.expert_log_likelihood(data), data.mask)
        return {"mixture_weights": dist.Dirichlet(posterior)}


class DirichletGuide(ParameterModule):
    """Dir(0.05 + softplus(network of the mean features))."""

    def __init__(self):
        super().__init__()
        self.features, self.head = mlp([2, 16, 16]), nn.Linear(16, EXPERTS)

    def concentration(self, data):
        pairs = torch.cat([data.x, data.y], -1)
        exists = data.full_mask().unsqueeze(-1)
        pooled = (self.features(pairs) * exists).sum(-2) / exists.sum(-2).clamp_min(1)
        return 0.05 + softplus(self.head(pooled))

    def forward(self, data):
        with task_plates(data.batch_shape):
            pyro.sample("mixture_weights", dist.Dirichlet(self.concentration(data)))


def branches(tasks, context, target, seed=0):
    """Tasks of the toy family: weights from Dir(0.3), a branch for every point."""
    generator = torch.Generator().manual_seed(seed)
    count = context + target
    x = torch.rand(tasks, count, 1, generator=generator) * 4 - 2
    gamma = torch._standard_gamma(torch.full((tasks, EXPERTS), 0.3), generator=generator).clamp_min(1e-30)
    which = torch.multinomial(gamma, count, replacement=True, generator=generator)
    s = x[..., 0]
    means = torch.stack([(2 * s).sin() + 0.8, -(2 * s).sin() - 0.8, s / 2, 1.2 * (3 * s).cos()], -1)
    y = means.gather(-1, which.unsqueeze(-1)) + 0.1 * torch.randn(tasks, count, 1, generator=generator)
    return Dataset(x, y).split(context)


def parameter_gradient(modules, value):
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def test_the_gradient_is_that_of_iwae_with_a_detached_proposal():
    """Σ ŵ (log p + log Dir) and log mean of w with the proposal's density held fixed, relative error 1e-5."""
    model, guide, batch = Mixture(trainable=True), DirichletGuide(), branches(16, 5, 15)
    torch.manual_seed(1)
    terms = make("iw-em", num_particles=16).terms(model, guide, batch)
    found = parameter_gradient([model, guide], terms.bound.sum())
    torch.manual_seed(1)
    alpha = guide.concentration(batch.context)
    with torch.no_grad():
        z = dist.Dirichlet(alpha).expand([16, 16]).sample()
    ell = torch.logsumexp(z.clamp_min(1e-30).log().unsqueeze(-2) + model.expert_log_likelihood(batch.full), -1).sum(-1)
    log_prior = dist.Dirichlet(alpha).log_prob(z)
    weights = torch.softmax(ell.detach(), 0)
    em = parameter_gradient([model, guide], (weights * (ell + log_prior)).sum())
    assert em.norm() > 1.0
    assert (found - em).norm() / em.norm() < 1e-5
    # no path through z, so the guide's part is the digamma formula
    score = weights.unsqueeze(-1) * (z.clamp_min(1e-37).log() - alpha.digamma() + alpha.sum(-1, keepdim=True).digamma())
    alpha = guide.concentration(batch.context)
    by_hand = parameter_gradient([guide], (score.sum(0).detach() * alpha).sum())
    assert (found[EXPERTS:] - by_hand).norm() / by_hand.norm() < 1e-4


def test_the_bound_lies_below_the_log_marginal_and_its_weights_are_the_likelihood():
    model, guide, batch = Mixture(), DirichletGuide(), branches(8, 3, 10)
    small = torch.stack([make("iw-em", num_particles=4).terms(model, guide, batch).bound for _ in range(50)]).mean(0)
    large = make("iw-em", num_particles=20_000).terms(model, guide, batch).bound
    assert (small < large + 1e-3).all() and (large - small).mean() > 0.5


def test_the_conjugate_proposal_keeps_its_weights_where_the_prior_loses_them():
    """True experts, 50 targets, 16 particles: more than 12 of 16 against fewer than 3."""
    model, batch = Mixture(), branches(64, 3, 50)

    class Prior(ParameterModule):
        def forward(self, data):
            with task_plates(data.batch_shape):
                pyro.sample("mixture_weights", dist.Dirichlet(torch.full((EXPERTS,), 0.3)))

    scored = {"score": "target"}
    prior = make("iw-em", num_particles=16, **scored).terms(model, Prior(), batch)
    conjugate = make("iw-em", num_particles=16, proposal="conjugate", **scored).terms(model, Prior(), batch)
    assert prior.ess.mean() < 3 and conjugate.ess.mean() > 12
    assert prior.share_below_2 > 0.5 and conjugate.share_below_2 < 0.05
    assert (conjugate.bound - prior.bound).mean() > 1.0


def test_sweeps_are_exact_where_every_point_knows_its_expert():
    alpha = torch.tensor([0.3, 1.0, 2.0])
    certain = torch.full((2, 4, 3), -1e4)
    certain[0, :, 1] = 0.0
    certain[1, :2, 0] = certain[1, 2:, 2] = 0.0
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    found = dirichlet_sweeps(alpha.expand(2, 3), certain, mask)
    torch.testing.assert_close(found, torch.tensor([[0.3, 5.0, 2.0], [2.3, 1.0, 3.0]]))
    nothing = dirichlet_sweeps(alpha, torch.zeros(0, 3))
    assert torch.equal(nothing, alpha)


def test_a_guide_as_proposal_is_trained_saved_and_resumed(tmp_path):
    model, batch = Mixture(), branches(16, 3, 20)

    def run(folder, steps, resume=False):
        torch.manual_seed(5)
        guide, proposal = DirichletGuide(), DirichletGuide()
        objective = make("iw-em", num_particles=16, proposal=proposal)
        result = fit(model, guide, batch, objective, steps=steps, progress=False, checkpoint_dir=folder, resume=resume,
                     learning_rate=1e-2, checkpoint_every=10, log_every=10)  # fmt: skip
        return proposal, result

    whole, result = run(tmp_path / "whole", 40)
    assert result.history[-1]["ess"] > 1.3 * result.history[0]["ess"]
    run(tmp_path / "halves", 20)
    halves, _ = run(tmp_path / "halves", 40, resume=True)
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(5)
    DirichletGuide()
    start = DirichletGuide()
    assert not any(torch.equal(a, b) for a, b in zip(whole.parameters(), start.parameters(), strict=True))


def test_training_raises_the_marginal_likelihood_and_a_broken_estimator_does_not():
    """With weights that are all equal there is no E-step, and the conditional prior learns nothing."""

    class EqualWeights(type(make("iw-em"))):
        def combine(self, draws):
            draws.log_p = draws.log_p - (draws.log_p - draws.log_q).detach()
            return super().combine(draws)

    batch, test = branches(64, 5, 20), branches(256, 5, 20, seed=1)
    for seed in range(3):
        gains = []
        for objective in (make("iw-em", num_particles=32, normalize=True), EqualWeights(32, normalize=True)):
            torch.manual_seed(seed)
            guide = DirichletGuide()
            model = Mixture()

            def score(guide=guide, model=model):
                with torch.no_grad(), torch.random.fork_rng():
                    torch.manual_seed(0)
                    return make("iw-em", num_particles=500).terms(model, guide, test).bound.mean().item()

            before = score()
            fit(model, guide, batch, objective, steps=100, seed=seed, learning_rate=1e-2, progress=False)
            gains.append(score() - before)
        assert gains[0] > 0.5
        assert gains[1] < 0.3 * gains[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposal": "posterior"}, r"^proposal: got 'posterior'; it must be one of prior, conjugate, or a guide$"),
        ({"score": "context"}, r"^score: got 'context'; it must be 'full' or 'target'$"),
        ({"on": "full"}, r"^on: iw-em always gives its guide the context"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make("iw-em", **options)


def test_a_model_without_a_conjugate_proposal_is_refused():
    model, batch = Mixture(), branches(2, 2, 3)
    plain = type("Plain", (ParameterModule,), {"forward": Mixture.forward,
                 "expert_log_likelihood": Mixture.expert_log_likelihood, "shift": model.shift})()  # fmt: skip
    with pytest.raises(ValueError, match=r"^proposal: got 'conjugate', but Plain has no conjugate_proposal"):
        make("iw-em", proposal="conjugate").terms(plain, DirichletGuide(), batch)


def test_a_proposal_that_lacks_a_site_is_refused():
    def empty(data):
        return {}

    with pytest.raises(ValueError, match=r"^proposal: it does not draw site 'mixture_weights', which the guide does$"):
        make("iw-em", proposal=empty).terms(Mixture(), DirichletGuide(), branches(2, 2, 3))


def test_a_batch_without_context():
    model, guide = Mixture(), DirichletGuide()
    batch, some = branches(3, 0, 6), branches(3, 2, 6).context
    masked = TaskBatch(Dataset(some.x, some.y, torch.zeros(3, 2).bool()), batch.target)
    found = []
    for each in (batch, masked):
        torch.manual_seed(0)
        found.append(make("iw-em").terms(model, guide, each).bound)
    assert found[0].shape == (3,)
    torch.testing.assert_close(found[0], found[1])
