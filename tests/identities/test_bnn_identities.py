"""Identities of BNNP's guide: conjugacy, closed-form KLs, masks, order, the empty context, primal and dual."""

import copy

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from guides import BNNWeightGuide
from guides.networks.bnn_online import OnlinePosterior
from guides.networks.whitened_gaussian import Dual, Primal, WhitenedGaussian
from inference.objectives import make
from pp_models import (
    BayesianNetwork,
    DataError,
    Dataset,
    FixedGaussianPrior,
    GaussianLikelihood,
    LearnedGaussianPrior,
    LogUniformPrior,
    TaskBatch,
)

NOISE = 0.5
GRANULARITIES = ("fixed", "weight", "unit", "layer", "network")


def prior_of(granularity):
    return FixedGaussianPrior() if granularity == "fixed" else LearnedGaussianPrior(granularity)


def disturbed(module, scale=0.3):
    """Moves every parameter away from its start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def linear_pair(granularity, solver="auto"):
    """One layer with real targets and noise: Bayesian linear regression, two outputs."""
    model = BayesianNetwork([2, 2], prior=prior_of(granularity), noise_scale=NOISE).double()
    disturbed(model.prior)
    return model, BNNWeightGuide(model, final_targets="real", final_noise="real", solver=solver).double()


def deep_pair(granularity="unit", solver="auto", likelihood="gaussian", **options):
    sizes = [1, 6, 5, 2 if likelihood == "gaussian-head" else 1]
    model = BayesianNetwork(sizes, prior=prior_of(granularity), noise_scale=0.3, activation="tanh",
                            likelihood=likelihood).double()  # fmt: skip
    disturbed(model.prior, 0.1)
    return model, BNNWeightGuide(model, solver=solver, **options).double()


def data(tasks=3, points=7, dim_x=2, dim_y=2, mask=None):
    x = torch.randn(tasks, points, dim_x, dtype=torch.float64)
    return Dataset(x, torch.randn(tasks, points, dim_y, dtype=torch.float64), mask)


RAGGED = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [False] * 7])


def dense_prior(model):
    """Mean ``[M]`` and covariance of all weights of a one-layer network, units one after the other."""
    blocks = model.prior.gaussian(0, [])
    factor = torch.diag_embed(blocks.factor) if blocks.diagonal else blocks.factor
    return blocks.loc.detach().flatten(), torch.block_diag(*(factor @ factor.mT).detach())


def dense_posterior(model, x, y):
    """Textbook Bayesian linear regression of one task: mean, covariance and log evidence."""
    mean, covariance = dense_prior(model)
    phi = torch.cat([x, torch.ones(len(x), 1).double()], -1)
    design = torch.block_diag(phi, phi)
    gram = design @ covariance @ design.T + NOISE**2 * torch.eye(len(design)).double()
    gain = covariance @ design.T @ torch.linalg.inv(gram)
    values = y.T.flatten()
    evidence = torch.distributions.MultivariateNormal(design @ mean, gram).log_prob(values) if len(x) else 0.0
    return mean + gain @ (values - design @ mean), covariance - gain @ design @ covariance, evidence


def block_covariance(distribution, tasks):
    blocks = distribution.covariance().detach()
    blocks = blocks.expand(tasks, *blocks.shape[-3:])
    return torch.stack([torch.block_diag(*each) for each in blocks])


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_one_layer_is_bayesian_linear_regression(granularity, solver):
    """Moments to 1e-10, and the evidence: every weight is then p(y), whatever is drawn."""
    model, guide = linear_pair(granularity, solver)
    observed = data(mask=RAGGED)
    q = guide.conditional(0, observed, observed.x, [])
    covariances = block_covariance(q, 3)
    terms = make("iwae", num_particles=5).terms(model, guide, observed)
    for t in range(3):
        exists = RAGGED[t]
        mean, covariance, evidence = dense_posterior(model, observed.x[t][exists], observed.y[t][exists])
        torch.testing.assert_close(q.mean[t].detach().flatten(), mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(covariances[t], covariance, rtol=0, atol=1e-10)
        assert abs(terms.bound[t].item() - float(evidence)) < 1e-8
    assert terms.log_weights.std(0).max() < 1e-10
    analytic = make("elbo", num_particles=4000).terms(model, guide, observed)
    torch.testing.assert_close(analytic.bound, terms.bound, rtol=0, atol=0.15)
    log_ratio = -analytic.kl_by_site["layer_0.weight"]
    assert (log_ratio <= 1e-12).all() and log_ratio[2].abs() < 1e-12


def test_real_noise_is_the_models_own_to_double_precision():
    """A noise that float32 cannot hold: every weight is p(y) to rounding all the same."""
    model = BayesianNetwork([2, 2], noise_scale=0.3).double()
    guide = BNNWeightGuide(model, final_targets="real", final_noise="real").double()
    terms = make("iwae", num_particles=5).terms(model, guide, data())
    assert terms.log_weights.std(0).max() < 1e-10


def matrix_of(distribution):
    """A Gaussian over a matrix as one dense Gaussian over its rows."""
    if isinstance(distribution, WhitenedGaussian):
        covariance = torch.block_diag(*distribution.covariance().detach())
        return torch.distributions.MultivariateNormal(distribution.mean.detach().flatten(), covariance)
    base = distribution
    if isinstance(base, torch.distributions.TransformedDistribution):
        base = base.base_dist
    if isinstance(base, torch.distributions.MultivariateNormal):
        return torch.distributions.MultivariateNormal(base.loc.detach(), scale_tril=base.scale_tril.detach())
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, torch.distributions.MultivariateNormal):
        mean, variance = base.loc, torch.block_diag(*base.covariance_matrix)
    else:
        mean, variance = base.loc, torch.diag(base.scale.square().flatten())
    return torch.distributions.MultivariateNormal(mean.detach().flatten(), variance.detach())


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_kl_is_that_of_dense_gaussians(granularity, solver):
    """docs/papers/bnnp.md, eq. 10 and 13 (for two data sets under one prior), to a relative 1e-10."""
    model, guide = linear_pair(granularity, solver)
    one, other = data(tasks=1)[0], data(tasks=1, points=3)[0]
    q, r = (guide.conditional(0, d, d.x, []) for d in (one, other))
    prior = model.prior.layer(0, [])
    kl = torch.distributions.kl_divergence
    dense = kl(matrix_of(q), matrix_of(prior))
    torch.testing.assert_close(kl(q, prior).detach(), dense, rtol=1e-10, atol=1e-10)
    both = kl(matrix_of(q), matrix_of(r))
    torch.testing.assert_close(kl(q, r).detach(), both, rtol=1e-9, atol=1e-9)
    assert kl(q, q).abs() < 1e-10
    # its density agrees with its moments
    value = q.rsample()
    torch.testing.assert_close(q.log_prob(value).detach(), matrix_of(q).log_prob(value.detach().flatten()))


@pytest.mark.parametrize("granularity", ["unit", "network"])
def test_primal_and_dual_are_the_same_posterior(granularity):
    """docs/papers/bnnp.md, eq. 11 and 12."""
    model, guide = linear_pair(granularity)
    observed = data(mask=RAGGED)
    found = []
    for solver in ("primal", "dual"):
        guide.solver = solver
        q = guide.conditional(0, observed, observed.x, [])
        assert isinstance(q.whitened, Primal if solver == "primal" else Dual)
        kl = torch.distributions.kl_divergence(q, model.prior.layer(0, []))
        found.append((q.mean.detach(), block_covariance(q, 3), kl.detach(), q.variance.detach()))
    for primal, dual in zip(*found, strict=True):
        torch.testing.assert_close(primal, dual, rtol=0, atol=1e-9)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_primal_and_dual_have_the_same_gradient_where_points_are_masked(granularity):
    """A precision of 0 lies on the boundary of a square root: it counts for nothing, and so does its slope."""
    mask = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])
    model, primal = deep_pair(granularity, "primal")
    dual = primal.moved_to(model)
    dual.solver = "dual"
    x, y = torch.randn(3, 5, 1, dtype=torch.float64), torch.randn(3, 5, 1, dtype=torch.float64)
    d = Dataset(x, y, mask)
    drawn = {n: s["value"].detach() for n, s in poutine.trace(primal).get_trace(d).nodes.items() if n in primal.sites}
    found = []
    for guide in (primal, dual):
        model.zero_grad()
        trace = poutine.trace(poutine.condition(guide, data=drawn)).get_trace(d)
        sum(trace.nodes[site]["fn"].log_prob(drawn[site]).sum() for site in guide.sites).backward()
        found.append([p.grad for p in [*model.prior.parameters(), *guide.networks.parameters()] if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_draws_have_the_moments_of_the_posterior(solver):
    _, guide = linear_pair("unit", solver)
    observed = data(tasks=1, points=3)[0]
    q = guide.conditional(0, observed, observed.x, [])
    with torch.no_grad():
        draws = q.expand(torch.Size([200_000])).rsample().flatten(-2)
    torch.testing.assert_close(draws.mean(0), q.mean.flatten().detach(), rtol=0, atol=0.02)
    covariance = torch.block_diag(*q.covariance().detach())
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0, atol=0.02)


def run(guide, observed, seed=0, particles=4):
    torch.manual_seed(seed)
    with torch.no_grad(), pyro.plate("particles", particles, dim=-1 - len(observed.batch_shape)):
        return poutine.trace(guide).get_trace(observed)


@pytest.mark.parametrize("use_activation", [False, True])
@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_the_order_of_the_context_does_not_matter(solver, use_activation):
    """The dual form draws one noise a point, as gradients of the primal one do: the law is the same, not the draws."""
    _model, guide = deep_pair(solver=solver, use_activation=use_activation)
    observed = data(tasks=2, dim_x=1, dim_y=1)
    shuffled = Dataset(observed.x.flip(-2), observed.y.flip(-2))
    if solver == "primal":
        first, second = run(guide, observed), run(guide, shuffled)
        for site in guide.sites:
            torch.testing.assert_close(first.nodes[site]["value"], second.nodes[site]["value"], rtol=0, atol=1e-10)
    else:
        for d, e in ((observed, shuffled),):
            a, b = guide.conditional(0, d, d.x, []), guide.conditional(0, e, e.x, [])
            torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", ["primal", "dual", "auto"])
@pytest.mark.parametrize("kind", ["no points", "masked"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_empty_context_gives_the_prior(granularity, kind, solver):
    """No divergence, and the draws of the prior from the same noise."""
    model, guide = deep_pair(granularity, solver)
    points = 0 if kind == "no points" else 4
    empty = data(2, points, 1, 1, mask=torch.zeros(2, points, dtype=torch.bool))
    with torch.no_grad():
        drawn = []
        for i, site in enumerate(guide.sites):
            torch.manual_seed(i)
            q = guide.conditional(i, empty, torch.zeros(2, points, guide.shapes[i][1] - 1).double(), drawn)
            value = q.rsample()
            torch.manual_seed(i)
            blocks = model.prior.gaussian(i, drawn)
            noise = torch.randn((2, *q.block_shape), dtype=torch.float64)
            factor = torch.diag_embed(blocks.factor) if blocks.diagonal else blocks.factor
            prior = blocks.loc + (factor @ noise.unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(value, prior.reshape(value.shape), rtol=1e-12, atol=1e-12)
            kl = torch.distributions.kl_divergence(q, model.prior.layer(i, drawn))
            assert kl.abs().max() < 1e-11, site
            drawn.append(value)


@pytest.mark.parametrize("granularity", ["unit", "layer"])
def test_a_padded_batch_is_its_tasks_one_by_one(granularity):
    """In the primal form, whose noise does not depend on the number of points."""
    model, guide = deep_pair(granularity, "primal")
    tasks = [data(1, n, 1, 1)[0] for n in (20, 7, 1)]
    together = Dataset.pad(tasks)
    noise = {
        site: torch.randn(3, *shape, dtype=torch.float64) for site, shape in zip(guide.sites, guide.shapes, strict=True)
    }

    def walk(observed, pick):
        features, drawn, kls = observed.x, [], []
        for i, site in enumerate(guide.sites):
            q = guide.conditional(i, observed, features, drawn)
            eps = noise[site][pick].reshape(*q.batch_shape, *q.block_shape)
            solved = torch.linalg.solve_triangular(q.whitened.lower.mT, eps.unsqueeze(-1), upper=True).squeeze(-1)
            value = (q.loc + q.coloured(q.whitened.mean + solved)).reshape(*q.batch_shape, *q.event_shape)
            kls.append(torch.distributions.kl_divergence(q, model.prior.layer(i, drawn)))
            drawn.append(value)
            ones = torch.cat([features, torch.ones_like(features[..., :1])], -1)
            features = torch.tanh(ones @ value.mT)
        return drawn, sum(kls)

    with torch.no_grad():
        batched, kl = walk(together, slice(None))
        for t, single in enumerate(tasks):
            alone, own = walk(single, t)
            for a, b in zip(alone, batched, strict=True):
                torch.testing.assert_close(a, b[t], rtol=0, atol=1e-10)
            torch.testing.assert_close(own, kl[t], rtol=0, atol=1e-10)


def test_predictions_do_not_depend_on_what_else_is_asked():
    """Marginal consistency; draws are functions."""
    model, guide = deep_pair()
    observed = data(2, 5, 1, 1)
    trace = run(guide, observed)
    x = torch.randn(2, 2, 1, dtype=torch.float64)
    outputs = []
    for inputs in (x[:, :1], x):
        with pyro.plate("particles", 4, dim=-2), torch.no_grad():
            outputs.append(poutine.replay(model, trace=trace)(Dataset(inputs)))
    torch.testing.assert_close(outputs[0], outputs[1][..., :1, :], rtol=0, atol=1e-12)


@pytest.mark.parametrize("finer", ["unit", "layer"])
def test_block_diagonal_priors_of_a_coarser_kind_give_the_same_posterior(finer):
    """Layer-wise with the units' blocks is unit-wise; network-wise with the layers' blocks is layer-wise."""
    coarser = {"unit": "layer", "layer": "network"}[finer]
    sizes = [2, 3, 2]
    fine = BayesianNetwork(sizes, prior=LearnedGaussianPrior(finer), activation="tanh", noise_scale=0.3).double()
    disturbed(fine.prior)
    wide = BayesianNetwork(sizes, prior=LearnedGaussianPrior(coarser), activation="tanh", noise_scale=0.3).double()

    with torch.no_grad():
        if finer == "unit":
            for i in range(2):
                tril = torch.block_diag(*fine.prior.moments(i)[1])
                wide.prior.loc[i].copy_(fine.prior.loc[i].flatten())
                wide.prior.log_diagonal[i].copy_(tril.diagonal().log())
                wide.prior.lower[i].copy_(tril)
        else:
            tril = torch.block_diag(*(fine.prior.moments(i)[1] for i in range(2)))
            wide.prior.loc[0].copy_(torch.cat([loc.flatten() for loc in fine.prior.loc]))
            wide.prior.log_diagonal[0].copy_(tril.diagonal().log())
            wide.prior.lower[0].copy_(tril)
    guide = BNNWeightGuide(fine, solver="primal").double()
    other = copy.copy(BNNWeightGuide(wide, solver="primal").double())
    other.networks = guide.networks
    observed = data(2, 6, 2, 2)
    hidden = torch.randn(2, 6, 3, dtype=torch.float64)
    first = [torch.randn(2, 3, 3, dtype=torch.float64)]
    for i, features, drawn in ((0, observed.x, []), (1, hidden, first)):
        a, b = guide.conditional(i, observed, features, drawn), other.conditional(i, observed, features, drawn)
        torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-8)
        blocks = torch.stack([torch.block_diag(*each) for each in a.covariance()])
        torch.testing.assert_close(blocks, b.covariance().squeeze(-3), rtol=0, atol=1e-8)
        kls = [torch.distributions.kl_divergence(q, m.prior.layer(i, drawn)) for q, m in ((a, fine), (b, wide))]
        torch.testing.assert_close(kls[0], kls[1], rtol=0, atol=1e-8)


def test_gradients_reach_the_prior_the_noise_and_the_networks():
    model = BayesianNetwork([1, 6, 1], prior=LearnedGaussianPrior("unit"), likelihood=GaussianLikelihood(0.3, True))
    guide = BNNWeightGuide(model, final_targets="real", final_noise="real")
    make("pp-avi", num_particles=3).differentiable_loss(model, guide, data_f32().split(4)).backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert isinstance(guide.networks[-1], nn.Identity)  # all of the last layer is real


def data_f32():
    return Dataset(torch.randn(2, 8, 1), torch.randn(2, 8, 1))


def test_float32_is_stable_with_small_noise_and_many_points():
    model = BayesianNetwork([1, 32, 32, 1], prior=LearnedGaussianPrior("unit"))
    guide = BNNWeightGuide(model)
    observed = Dataset(torch.randn(2, 500, 1), torch.randn(2, 500, 1))
    terms = make("elbo", num_particles=2).terms(model, guide, observed)
    wide = make("elbo").terms(model.double(), guide.double(), observed.to(dtype=torch.float64))
    site = guide.sites[0]  # which depends on no draw
    torch.testing.assert_close(terms.kl_by_site[site].double(), wide.kl_by_site[site], rtol=1e-3, atol=0)
    torch.testing.assert_close(terms.bound.double(), wide.bound, rtol=0.2, atol=0)  # of other draws


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_targets": "true"}, r"^final_targets: got 'true'; it must be one of auto, real, pseudo$"),
        ({"solver": "cg"}, r"^solver: got 'cg'; it must be one of auto, primal, dual$"),
        (
            {"final_targets": "real", "likelihood": "gaussian-head"},
            r"^final_targets: got 'real', but the likelihood is",
        ),
        ({"final_noise": "real", "likelihood": "gaussian-head"}, r"^final_noise: got 'real', but the likelihood is"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        deep_pair(**options)


def test_a_prior_that_is_not_gaussian_is_refused():
    with pytest.raises(ValueError, match=r"^prior: got LogUniformPrior, which is not Gaussian; a conjugate update"):
        BNNWeightGuide(BayesianNetwork([1, 4, 1], prior=LogUniformPrior()))


# -- chunks of the context ---------------------------------------------------------------------------------------------


def chunked(granularity="unit", dtype=torch.float64, **options):
    torch.manual_seed(11)
    model = BayesianNetwork([1, 32, 32, 1], prior=prior_of(granularity), noise_scale=0.3, activation="tanh")
    guide = BNNWeightGuide(model, solver="primal", **options)
    return disturbed(model, 0.05).to(dtype), guide.to(dtype)


def losses(model, guide, observed, seed=0):
    torch.manual_seed(seed)
    terms = make("elbo", num_particles=2).terms(model, guide, observed)
    parameters = [*model.parameters(), *guide.parameters()]
    grads = torch.autograd.grad(terms.bound.sum(), parameters, allow_unused=True)
    flat = torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )
    return terms.bound.detach(), terms.kl.detach(), flat


@pytest.fixture
def drawn_by_factors(monkeypatch):
    """Draws by a factor of the precision, as chunks draw: statistics alone give no noise of the points."""
    monkeypatch.setattr("guides.networks.conjugate_layer.perturbation", lambda *arguments: None)


@pytest.mark.usefixtures("drawn_by_factors")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [1, 7, 50, 200])
def test_chunks_give_the_full_batch_and_its_gradient(size, dtype, tolerance):
    """docs/papers/bnnp.md, eq. 19: sums of natural statistics, whatever the portions (200 points)."""
    observed = data(1, 200, 1, 1)
    observed = Dataset(observed.x.to(dtype), observed.y.to(dtype))
    model, guide = chunked(dtype=dtype)
    value, kl, gradient = losses(model, guide, observed)
    _, portioned = chunked(dtype=dtype, chunk_size=size)
    portioned._shared = guide._shared
    found, found_kl, found_gradient = losses(model, portioned, observed)
    torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found_kl, kl, rtol=tolerance, atol=tolerance)
    assert gradient.norm() > 1
    assert (found_gradient - gradient).norm() / gradient.norm() < (1e-10 if dtype == torch.float64 else 1e-2)


@pytest.mark.usefixtures("drawn_by_factors")
@pytest.mark.parametrize("granularity", ["layer", "network"])
def test_chunks_with_a_prior_over_the_whole_layer(granularity):
    torch.manual_seed(1)
    model = disturbed(BayesianNetwork([1, 4, 2], prior=prior_of(granularity), noise_scale=0.3), 0.1).double()
    guide = BNNWeightGuide(model, solver="primal").double()
    observed = data(2, 30, 1, 2)
    whole = losses(model, guide, observed)
    guide.chunk_size = 7
    for a, b in zip(whole, losses(model, guide, observed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_gradient_of_a_single_chunk_is_unbiased():
    """All pairs of chunks of a two-layer network, so that the expectation is a sum; values stay exact."""
    torch.manual_seed(2)
    model = disturbed(
        BayesianNetwork([1, 4, 1], prior=prior_of("unit"), noise_scale=0.3, activation="tanh"), 0.1
    ).double()
    guide = BNNWeightGuide(model, solver="primal", chunk_size=4).double()
    observed = data(1, 12, 1, 1)
    wanted = losses(model, guide, observed)
    guide.chunk_gradient = "single"
    found, values = [], []
    for first in range(3):
        for second in range(3):
            picks = iter((first, second))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "randint", lambda n, shape, p=picks: torch.tensor(next(p)))
                value, _, gradient = losses(model, guide, observed)
            found.append(gradient)
            values.append(value)
    # values never depend on the chunk, and the chain rule multiplies factors whose chunks are drawn independently
    torch.testing.assert_close(torch.stack(values), wanted[0].expand(9, 1), rtol=1e-10, atol=1e-10)
    mean = torch.stack(found).mean(0)
    torch.testing.assert_close(mean, wanted[2], rtol=1e-8, atol=1e-8)
    assert (found[0] - wanted[2]).norm() > 0.1 * wanted[2].norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, r"^chunk_size: got 0; it must be at least 1, or None$"),
        ({"chunk_size": 5, "solver": "dual"}, r"^chunk_size: the dual form has no statistics to accumulate"),
        ({"chunk_gradient": "none"}, r"^chunk_gradient: got 'none'; it must be one of exact, single$"),
    ],
)
def test_bad_chunks(options, message):
    with pytest.raises(ValueError, match=message):
        deep_pair(**options)


# -- point by point ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["unit", "layer", "network"])
def test_points_one_by_one_are_the_joint_update_given_the_hidden_draws(granularity):
    """docs/papers/bnnp.md#large-contexts-and-points-one-by-one: exact given the hidden draws."""
    _, guide = deep_pair(granularity)
    first, later = data(2, 5, 1, 1), data(2, 6, 1, 1)
    start = OnlinePosterior.start(guide, first, num_samples=8)
    state = start
    for n in reversed(range(6)):
        state = state.update(later.points(slice(n, n + 1)))
    both = first | later
    features = guide.layer_input(both.x, start.hidden)
    joint = guide.conditional(2, both, features, start.hidden)
    online = state.last_layer()
    torch.testing.assert_close(online.mean, joint.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(online.covariance(), joint.covariance(), rtol=0, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(state.hidden, start.hidden, strict=True))


def test_drawn_states_predict_with_the_model():
    model, guide = deep_pair()
    state = OnlinePosterior.start(guide, data(2, 0, 1, 1, mask=torch.zeros(2, 0, dtype=torch.bool)), num_samples=16)
    x = torch.linspace(-1, 1, 5).double().reshape(1, 5, 1).expand(2, 5, 1)
    target = Dataset(x, 0 * x + 2.0)
    spread = []
    for observed in (None, target):
        state = state if observed is None else state.update(observed)
        weights = state.draw()
        assert weights["layer_1.weight"].shape == (16, 2, 5, 7)
        with pyro.plate("particles", 16, dim=-2):
            outputs = poutine.condition(model, data=weights)(Dataset(x))
        spread.append((outputs.mean(0) - 2).abs().mean().item())
    assert spread[1] < 0.3 * spread[0]


# -- another model -----------------------------------------------------------------------------------------------------


def test_a_moved_guide_has_the_other_models_prior_and_its_own_networks():
    torch.manual_seed(0)
    (model, guide), d = deep_pair(), data(dim_x=1, dim_y=1)
    other = BayesianNetwork(model.layer_sizes, activation=model.activation, noise_scale=0.2).double()
    moved = guide.moved_to(other)
    assert moved.model is other and guide.model is model
    assert not {id(p) for p in moved.parameters()} & {id(p) for p in guide.parameters()}
    first, second = (
        pyro.poutine.trace(g).get_trace(d).nodes["layer_0.weight"]["fn"].whitened.mean for g in (guide, moved)
    )
    assert (first - second).abs().max() > 1e-3
    empty, fresh = d.points(slice(0, 0)), BNNWeightGuide(other).double()
    drawn = []
    for one in (moved, fresh):  # from nothing both draw from the other model's prior
        torch.manual_seed(1)
        drawn.append(one(empty)["layer_1.weight"])
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match=r"^model: its weights have shapes .*; this guide was built for "):
        guide.moved_to(BayesianNetwork([1, 3, 1]))


def test_an_update_with_points_of_another_width_is_refused():
    torch.manual_seed(0)
    guide, d = deep_pair()[1], data(dim_x=1, dim_y=1)
    state = OnlinePosterior.start(guide, d, 3)
    wrong = Dataset(torch.cat([d.x, d.x], -1), d.y)
    for call in (lambda: state.update(wrong), lambda: guide(wrong)):
        with pytest.raises(DataError, match=r"^x: got input width 2; this model was built for 1$"):
            call()
    with pytest.raises(DataError, match=r"^data: y is None; "):
        state.update(Dataset(d.x))


# -- two posteriors under one prior ------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_npvis_kl_is_that_of_dense_gaussians_zero_without_targets_and_never_negative(granularity):
    """docs/papers/bnnp.md, eq. 13: KL(q(W | context and target) || q(W | context)) of one layer, in float64."""
    torch.manual_seed(0)
    model, guide = linear_pair(granularity)
    d = data(points=6)
    batch = d.split(2)
    found = make("npvi").terms(model, guide, batch).kl.detach()
    for i in range(3):
        few, many = (dense_posterior(model, part.x[i], part.y[i])[:2] for part in (batch.context, d))
        normal = torch.distributions.MultivariateNormal
        expected = torch.distributions.kl_divergence(normal(*many), normal(*few))
        torch.testing.assert_close(found[i], expected, rtol=1e-8, atol=1e-9)
    assert bool((found > 0).all())
    some = Dataset(batch.target.x, batch.target.y, torch.tensor([[True] * 4, [False] * 4, [True] * 4]))
    partly = make("npvi").terms(model, guide, TaskBatch(batch.context, some)).kl.detach()
    torch.testing.assert_close(partly, found * torch.tensor([1.0, 0.0, 1.0]), rtol=1e-10, atol=1e-10)


def test_npvis_kl_of_deep_layers_is_taken_at_the_same_draws_of_those_below():
    """Only so it is zero without targets; with another draw for the context's branch it is not."""
    torch.manual_seed(0)
    model, guide = deep_pair()
    d = data(points=5, dim_x=1, dim_y=1)
    same = make("npvi", num_particles=4).terms(model, guide, d).kl.detach()  # the data is context and whole at once
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-10)
    first, second = (poutine.trace(guide).get_trace(d) for _ in range(2))
    q, p = (t.nodes["layer_1.weight"]["fn"] for t in (first, second))
    assert bool((torch.distributions.kl_divergence(q, p) > 0.1).all())
    many = make("npvi", num_particles=4).terms(model, guide, d.split(2)).kl
    assert bool((many > 0).all())
