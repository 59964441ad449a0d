"""Identities of NMDP (docs/papers/nmdp.md): exact evidence, Fisher's identity, the closed-form predictive, EM."""

import math

import pytest
import torch
from torch.distributions import Dirichlet

from guides import ConjugateRefinement, DirichletMixtureGuide, StickBreakingGuide
from inference import predict
from inference.objectives import make
from inference.objectives.iw_em import temperature
from inference.objectives.task_objective import effective_sample_size
from pp_models import (
    Dataset,
    LogSpaceDirichlet,
    MixtureDensityNetwork,
    StickBreaking,
    dirichlet_sweeps,
    exact_log_evidence,
    stick_breaking_sweeps,
    tasks,
)
from pp_models.mixtures.simplex_distributions import log_weights
from pp_models.tasks.branch_tasks import BranchTasks, branch_log_likelihood, branch_means, branch_oracle


def log_likelihoods(points=12, experts=2, tasks_=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*tasks_, points, experts, generator=generator, dtype=torch.float64) * 2 - 1


def by_quadrature(log_p, alpha, nodes=400_001):
    """log ∫ Beta(t; α) Π_i (p_i1 t + p_i2 (1 - t)) dt on the logit scale."""
    end = 40 / alpha.min().clamp_max(1).item()
    s = torch.linspace(-end, end, nodes, dtype=torch.float64)
    log_t, log_u = torch.nn.functional.logsigmoid(s), torch.nn.functional.logsigmoid(-s)
    each = torch.logaddexp(log_p[:, :1] + log_t, log_p[:, 1:] + log_u).sum(0)
    beta = torch.lgamma(alpha.sum()) - torch.lgamma(alpha).sum() + alpha[0] * log_t + alpha[1] * log_u
    return torch.logsumexp(each + beta, 0) + math.log(2 * end / (nodes - 1))


@pytest.mark.parametrize("alpha", [(0.3, 0.3), (0.05, 2.0), (5.0, 1.0)])
def test_the_exact_evidence_of_two_experts_is_the_integral(alpha):
    """docs/papers/nmdp.md, eq. 13: the polynomial against quadrature, to 1e-8."""
    log_p, alpha = log_likelihoods(), torch.tensor(alpha, dtype=torch.float64)
    torch.testing.assert_close(exact_log_evidence(log_p, alpha), by_quadrature(log_p, alpha), atol=1e-8, rtol=0)


def test_the_exact_evidence_of_three_experts_is_the_mean_over_the_prior():
    log_p, alpha = log_likelihoods(6, 3), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    torch.manual_seed(0)
    z = Dirichlet(alpha).sample((500_000,))
    each = torch.logsumexp(z.log().unsqueeze(-2) + log_p, -1).sum(-1)
    assert exact_log_evidence(log_p, alpha).item() == pytest.approx(
        (torch.logsumexp(each, 0) - math.log(len(z))).item(), abs=1e-2
    )


def test_the_exact_evidence_of_batches_and_masks():
    log_p, alpha = log_likelihoods(5, 3, (4,)), torch.rand(4, 3, dtype=torch.float64) + 0.2
    mask = torch.tensor([[True] * 5, [True, False, True, True, False], [False] * 5, [True] * 4 + [False]])
    found = exact_log_evidence(log_p, alpha, mask)
    for t in range(4):
        torch.testing.assert_close(found[t], exact_log_evidence(log_p[t][mask[t]], alpha[t]))
    assert found[2] == 0
    one = log_likelihoods(5, 1)
    torch.testing.assert_close(exact_log_evidence(one, torch.ones(1, dtype=torch.float64)), one.sum())
    with pytest.raises(ValueError, match=r"^expert_log_likelihood: 1000 points and 6 experts need a table"):
        exact_log_evidence(torch.zeros(1000, 6), torch.ones(6))


def test_self_normalised_weights_give_the_gradient_of_the_exact_evidence():
    """Fisher's identity: Σ ŵ ∇ log Dir(z; α) against autograd of the polynomial, 1e6 draws."""
    log_p = log_likelihoods()
    alpha = torch.tensor([0.6, 1.7], dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad(exact_log_evidence(log_p, alpha), alpha)[0]
    torch.manual_seed(0)
    z = LogSpaceDirichlet(alpha.detach()).sample((1_000_000,))
    each = torch.logaddexp(log_p[:, 0] + z[:, :1].log(), log_p[:, 1] + z[:, 1:].log()).sum(-1)
    weights = torch.softmax(each, 0)
    score = z.log() - alpha.detach().digamma() + alpha.detach().sum().digamma()
    found = (weights.unsqueeze(-1) * score).sum(0)
    assert exact.abs().max() > 0.1
    torch.testing.assert_close(found, exact, atol=0.01, rtol=0)
    equal = score.mean(0)  # weights left out: zero, far from the gradient
    assert (equal - exact).abs().max() > 0.1


def pair(experts="strict", seed=0, num_experts=4, **options):
    torch.manual_seed(seed)
    model = MixtureDensityNetwork(num_experts, 1, 1, experts, width=16, representation_dim=16)
    return model, DirichletMixtureGuide(model, width=16, **options)


@pytest.mark.parametrize("experts", ["strict", "context"])
def test_mean_weights_predict_what_many_draws_average_to(experts):
    """docs/papers/nmdp.md, eq. 10: Σ (α_l / α_0) p_l is the mean of the predictives of draws."""
    model, guide = pair(experts)
    batch = tasks.gp("rbf", 3).batch(0)
    closed = predict(model, guide, batch.context, batch.target.x, weights="mean")
    drawn = predict(model, guide, batch.context, batch.target.x, 40_000, seed=0)
    y = batch.target.y
    torch.testing.assert_close(closed.log_prob(y).exp(), drawn.log_prob(y).exp(), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(closed.mean, drawn.mean, atol=2e-2, rtol=0)
    alpha = guide.concentration(batch.context)
    torch.testing.assert_close(guide.mean_weights(batch.context), alpha / alpha.sum(-1, keepdim=True))
    quantiles = closed.quantile(torch.tensor([0.05, 0.5, 0.95]))
    sampled = drawn.quantile(torch.tensor([0.05, 0.5, 0.95]))
    torch.testing.assert_close(quantiles, sampled, atol=0.1, rtol=0)


def test_order_does_not_matter():
    """Permutations: of the context, for α; of the experts, for the predictive."""
    model, guide = pair("context")
    batch = tasks.gp("rbf", 3).batch(0)
    context, order = batch.context, torch.randperm(batch.context.num_points)
    shuffled = Dataset(context.x[:, order], context.y[:, order])
    torch.testing.assert_close(guide.concentration(context), guide.concentration(shuffled), atol=1e-5, rtol=1e-5)
    y = batch.target.y
    before = predict(model, guide, context, batch.target.x, weights="mean").log_prob(y)
    torch.testing.assert_close(
        predict(model, guide, shuffled, batch.target.x, weights="mean").log_prob(y), before, atol=1e-4, rtol=1e-4
    )
    swap = [2, 0, 3, 1]
    model.keep(swap)
    guide.keep(swap)
    after = predict(model, guide, context, batch.target.x, weights="mean").log_prob(y)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("experts", ["strict", "context"])
def test_the_gradient_of_the_objective_on_the_real_family(experts):
    """docs/papers/nmdp.md, eq. 7 written out: Σ ŵ (log p + log Dir), weights constant, no path through z."""
    model, guide = pair(experts, 1)
    batch = BranchTasks(8, num_context=(5, 5)).batch(0)
    torch.manual_seed(2)
    terms = make("iw-em", num_particles=16).terms(model, guide, batch)
    parameters = [*model.parameters(), *guide.parameters()]
    found = torch.autograd.grad(terms.bound.sum(), parameters, allow_unused=True)
    torch.manual_seed(2)
    alpha = guide.concentration(batch.context)
    z = LogSpaceDirichlet(alpha.detach()).expand([16, 8]).sample()
    memory = guide.memory(batch.context) if experts == "context" else None
    each = model.expert_log_likelihood(batch.full, memory)
    ell = torch.logsumexp(log_weights(z).float().unsqueeze(-2) + each, -1).sum(-1)
    prior = LogSpaceDirichlet(alpha).log_prob(z)
    by_hand = torch.autograd.grad((torch.softmax(ell.detach(), 0) * (ell + prior)).sum(), parameters, allow_unused=True)
    norm = math.sqrt(sum(float(g.square().sum()) for g in by_hand if g is not None))
    gap = math.sqrt(sum(float((f - g).square().sum()) for f, g in zip(found, by_hand, strict=True) if g is not None))
    assert norm > 1 and gap / norm < 1e-5
    assert all((f is None) == (g is None) for f, g in zip(found, by_hand, strict=True))


def test_exact_em_never_lowers_the_evidence():
    """Exact posterior expectations (by quadrature), three backtracked inner steps, 40 outer: no decrease."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 12, 1, generator=generator, dtype=torch.float64) * 4 - 2
    sign = torch.where(torch.rand(6, 12, 1, generator=generator) < torch.rand(6, 1, 1, generator=generator), 1.0, -1.0)
    y = sign * (2 * x).sin() + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()
    log_alpha = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    parameters = [*net.parameters(), log_alpha]
    s = torch.linspace(-40, 40, 801, dtype=torch.float64)
    log_t = torch.stack([torch.nn.functional.logsigmoid(s), torch.nn.functional.logsigmoid(-s)], -1)  # [G, 2]

    def log_joint():
        """log p(y, t | θ) on the grid of weights ``[T, G]``, and the evidence."""
        each = torch.distributions.Normal(net(x), 0.3).log_prob(y)  # [T, N, 2]
        ell = torch.logsumexp(each.unsqueeze(1) + log_t.unsqueeze(-2), -1).sum(-1)
        alpha = log_alpha.exp()
        prior = torch.lgamma(alpha.sum()) - torch.lgamma(alpha).sum() + (alpha * log_t).sum(-1)
        return ell + prior, exact_log_evidence(each, alpha.expand(6, 2)).sum()

    decreases, values = 0, []
    for _ in range(40):
        with torch.no_grad():
            joint, evidence = log_joint()
            weights = torch.softmax(joint, -1)
        values.append(evidence.item())
        rate = 0.05
        for _ in range(3):
            q = (weights * log_joint()[0]).sum()
            gradient = torch.autograd.grad(q, parameters)
            start = [p.detach().clone() for p in parameters]
            while True:
                with torch.no_grad():
                    for p, old, g in zip(parameters, start, gradient, strict=True):
                        p.copy_(old + rate * g)
                    if (weights * log_joint()[0]).sum() > q or rate < 1e-12:
                        break
                rate /= 2
        with torch.no_grad():
            decreases += int(log_joint()[1] < evidence)
    assert decreases == 0
    assert values[-1] > values[0] + 15


def test_sweeps_of_sticks_are_those_of_a_dirichlet_where_points_are_certain():
    certain = torch.full((6, 3), -1e4)
    certain[[0, 1, 2, 3, 4, 5], [0, 2, 2, 1, 0, 2]] = 0.0
    alpha = torch.tensor([0.3, 1.0, 2.0])
    stick = StickBreaking.from_dirichlet(alpha)
    a, b = stick_breaking_sweeps(stick.a, stick.b, certain)
    expected = StickBreaking.from_dirichlet(dirichlet_sweeps(alpha, certain))
    torch.testing.assert_close(a, expected.a)
    torch.testing.assert_close(b, expected.b)


@pytest.mark.parametrize("kind", [DirichletMixtureGuide, StickBreakingGuide])
def test_the_conjugate_proposal_of_the_family(kind):
    """ESS and bound with the conjugate proposal, and the proposal as test-time refinement of the guide."""
    torch.manual_seed(0)
    model = MixtureDensityNetwork(4, 1, 1, "strict", width=8)
    model.expert_log_likelihood = lambda data, memory=None: branch_log_likelihood(data)
    model.expert_distribution = lambda x, memory=None: torch.distributions.Independent(
        torch.distributions.Normal(branch_means(x).unsqueeze(-1), 0.1), 1
    )
    guide = kind(model, width=8)
    batch = BranchTasks(64, num_context=(10, 10), num_target=40).batch(0)
    prior = make("iw-em", num_particles=16).terms(model, guide, batch)
    conjugate = make("iw-em", num_particles=16, proposal="conjugate").terms(model, guide, batch)
    assert prior.ess.mean() < 4 and conjugate.ess.mean() > 11
    assert (conjugate.bound - prior.bound).mean() > 1
    refined = ConjugateRefinement(model, guide)
    y = batch.target.y
    scores = [
        predict(model, g, batch.context, batch.target.x, 200, seed=0).joint_log_prob(y).mean() / 40
        for g in (guide, refined)
    ]
    oracle = branch_oracle(batch)[1].mean()
    assert scores[1] > scores[0] + 0.05 and scores[1] < oracle + 0.05


def test_refinement_without_context_is_the_guide():
    model, guide = pair()
    empty = Dataset(torch.zeros(2, 0, 1), torch.zeros(2, 0, 1))
    x = torch.linspace(-1, 1, 5).unsqueeze(-1)
    plain = predict(model, guide, empty, x, weights="mean").mean
    assert torch.equal(predict(model, ConjugateRefinement(model, guide), empty, x, weights="mean").mean, plain)
    with pytest.raises(ValueError, match=r"^sweeps: got 0; it must be at least 1$"):
        ConjugateRefinement(model, guide, 0)


def test_tempered_weights_keep_the_least_effective_sample_size():
    torch.manual_seed(0)
    log_w = torch.randn(16, 200) * torch.linspace(0.01, 30, 200)
    tau = temperature(log_w, 4.0)
    ess = effective_sample_size(tau * log_w)
    untouched = effective_sample_size(log_w) >= 4
    assert (tau[untouched] == 1).all() and untouched.any() and (~untouched).any()
    torch.testing.assert_close(ess[~untouched], torch.full_like(ess[~untouched], 4.0), atol=1e-3, rtol=1e-3)
    assert (tau > 0).all()


def test_tempering_changes_the_gradient_and_not_the_bound():
    model, guide = pair("strict", 1)
    batch = BranchTasks(8, num_context=(5, 5)).batch(0)
    found = {}
    for least in (None, 1e-3, 0.5):
        torch.manual_seed(2)
        terms = make("iw-em", num_particles=16, min_ess=least).terms(model, guide, batch)
        gradient = torch.autograd.grad(terms.bound.sum(), list(guide.parameters()), allow_unused=True)
        found[least] = terms.bound.detach(), torch.cat([g.flatten() for g in gradient if g is not None])
    torch.testing.assert_close(found[0.5][0], found[None][0])
    torch.testing.assert_close(found[1e-3][1], found[None][1], rtol=1e-4, atol=1e-5)
    assert (found[0.5][1] - found[None][1]).norm() > 0.1 * found[None][1].norm()


def test_the_oracle_of_the_branches():
    """The page's oracle: joint 0.131, 0.175, 0.168 and marginal -0.103, 0.052, 0.132 at 1, 3 and 10 points."""
    expected = {1: (-0.103, 0.131), 3: (0.052, 0.175), 10: (0.132, 0.168)}
    for count, (marginal, joint) in expected.items():
        batch = BranchTasks(400, 5, num_context=(count, count)).batch(0)
        found = branch_oracle(batch, 2000)
        assert found[0].mean().item() == pytest.approx(marginal, abs=0.1)
        assert found[1].mean().item() == pytest.approx(joint, abs=0.1)
