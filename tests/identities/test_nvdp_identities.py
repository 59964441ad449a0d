"""NVDP's mathematics against independent arithmetic: KL, moments, factored products, rates, invariances, ceilings."""

import math

import pyro
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from guides import BernoulliExpertGuide, local_reparameterization
from guides.networks.dropout_normal import DropoutNormal, DropRates, dropout_kl
from guides.set_encoder import POOLINGS, SetEncoder
from inference import fit, predict
from inference.objectives import ConditionalPrior
from pp_models import BayesianNetwork, Dataset, TaskBatch, oracle_log_likelihood, tasks
from pp_models.networks.linear import linear

#: P, P̂, KL of the Gaussian forms, KL of the Bernoulli masks (which is another number)
KL_TABLE = [
    (0.1, 0.5, 0.510826, 0.36806),
    (0.5, 0.1, 1.266952, 0.51083),
    (0.2, 0.3, 0.040729, 0.02573),
    (0.3, 0.2, 0.051533, 0.02817),
    (0.25, 0.75, 0.666667, 0.54931),
    (0.01, 0.5, 1.614463, 0.63715),
    (0.5, 0.01, 22.638062, 1.61446),
    (0.05, 0.95, 8.526316, 2.65000),
    (0.01, 0.99, 48.505051, 4.50322),
    (0.7, 0.8, 0.051533, 0.02817),
]
CEILING = -math.log(0.1) - 0.5 * math.log(2 * math.pi)


def number(tensor):
    return tensor.detach().item()


def plain_kl(p, q):
    """The closed form written once more, as it stands in the paper, for autograd."""
    return 0.5 * ((p * (1 - p) + (q - p) ** 2) / (q * (1 - q)) + torch.log(q * (1 - q)) - torch.log(p * (1 - p)) - 1)


def dropout_normal(weight, rate):
    return DropoutNormal(weight, DropRates(dense=torch.full_like(weight, rate)))


def product_rates(batch, k_in, k_out, **kwargs):
    low, high = 0.2, 0.85
    draw = [torch.rand(*batch, n, **kwargs) * (high - low) + low for n in (k_in, k_out, 1, k_out)]
    return DropRates(draw[0], draw[1], draw[2].squeeze(-1), draw[3])


# -- the KL (docs/papers/nvdp.md, eq. 7) ------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q", "expected", "of_masks"), KL_TABLE)
def test_kl_table_from_the_distribution(p, q, expected, of_masks):
    theta = torch.full((1, 1), 0.37, dtype=torch.float64)
    value = number(kl_divergence(dropout_normal(theta, p), dropout_normal(theta, q)))
    assert value == pytest.approx(expected, abs=1e-6)
    bernoulli = number(kl_divergence(Bernoulli(torch.tensor(1 - p).double()), Bernoulli(torch.tensor(1 - q).double())))
    assert bernoulli == pytest.approx(of_masks, abs=1e-5)
    assert value > 1.15 * bernoulli  # a Bernoulli KL in its place would be seen


@pytest.mark.parametrize("theta", [0.37, -2.5])
@pytest.mark.parametrize(("p", "q", "expected", "of_masks"), KL_TABLE)
def test_kl_table_from_two_normals_whatever_theta(p, q, expected, of_masks, theta):
    a, b = (
        Normal(*torch.tensor([(1 - r) * theta, abs(theta) * math.sqrt(r * (1 - r))], dtype=torch.float64))
        for r in (p, q)
    )
    assert number(kl_divergence(a, b)) == pytest.approx(expected, abs=1e-6)
    weight = torch.full((1, 1), theta, dtype=torch.float64)
    p_fn, q_fn = dropout_normal(weight, p), dropout_normal(weight, q)
    generic = number(kl_divergence(p_fn.to_normal(), q_fn.to_normal()))
    # the variance floor of 1e-10 is all that stands between the two
    assert number(kl_divergence(p_fn, q_fn)) == pytest.approx(generic, rel=1e-6, abs=1e-7)


def test_kl_of_inverted_dropout_is_another_number():
    # N(θ, P/(1-P) θ²): the usual rescaled layer does not move its mean with the rate
    p, q, theta = 0.1, 0.5, 0.37
    a = Normal(torch.tensor(theta), theta * math.sqrt(p / (1 - p)))
    b = Normal(torch.tensor(theta), theta * math.sqrt(q / (1 - q)))
    assert abs(number(kl_divergence(a, b)) - 0.510826) > 0.1
    fn = dropout_normal(torch.full((1, 1), theta), p)
    assert number(fn.mean) == pytest.approx((1 - p) * theta, rel=1e-6)
    assert number(fn.variance) == pytest.approx(p * (1 - p) * theta**2, rel=1e-5)


def test_kl_of_a_layer_sums_weights_and_biases_per_task():
    rates = [product_rates((3,), 5, 4, dtype=torch.float64) for _ in range(2)]
    weight = torch.randn(4, 6, dtype=torch.float64)
    value = kl_divergence(DropoutNormal(weight, rates[0]), DropoutNormal(weight, rates[1]))
    p, q = (
        torch.cat(
            [torch.einsum("tk,td,t->tkd", r.column, r.row, r.layer), r.bias.unsqueeze(-1)],
            -1,
        )
        for r in rates
    )
    assert value.shape == (3,)
    torch.testing.assert_close(value, plain_kl(p, q).sum((-1, -2)), rtol=1e-12, atol=0)


def test_kl_to_a_dropout_of_other_weights_is_the_kl_of_the_normals():
    weights = torch.randn(2, 4, 6, dtype=torch.float64)
    rates = product_rates((3,), 5, 4, dtype=torch.float64)
    p, q = DropoutNormal(weights[0], rates), DropoutNormal(weights[1], rates)
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p.to_normal(), q.to_normal()))
    assert bool((kl_divergence(p, q) > 1).all())  # equal rates: the shortcut for shared weights would say 0


@pytest.mark.parametrize("theta", [0.37, -2.5])
@pytest.mark.parametrize(("p", "q"), [(0.1, 0.5), (0.5, 0.1), (0.05, 0.95)])
def test_kl_monte_carlo(p, q, theta):
    weight = torch.full((1, 1), theta, dtype=torch.float64)
    a, b = dropout_normal(weight, p), dropout_normal(weight, q)
    draws = a.rsample((2_000_000,))
    ratio = a.log_prob(draws) - b.log_prob(draws)
    error = number(ratio.std()) / math.sqrt(len(draws))
    assert error < 2e-2
    assert abs(number(ratio.mean()) - number(kl_divergence(a, b))) < 4 * error


def test_kl_gradient_is_that_of_the_formula():
    grid = torch.linspace(0.01, 0.99, 41, dtype=torch.float64)
    p, q = (t.clone().requires_grad_() for t in torch.meshgrid(grid, grid, indexing="ij"))
    weights = torch.rand(p.shape, dtype=torch.float64) + 0.5  # a gradient that differs from entry to entry
    ours = torch.autograd.grad((dropout_kl(p, q) * weights).sum(), (p, q))
    plain = torch.autograd.grad((plain_kl(p, q) * weights).sum(), (p, q))
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_kl_gradient_is_that_of_finite_differences():
    grid = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    p, q = (t.clone().requires_grad_() for t in torch.meshgrid(grid, grid, indexing="ij"))
    by_p, by_q = torch.autograd.grad(dropout_kl(p, q).sum(), (p, q))
    h = 1e-5
    with torch.no_grad():
        numeric_p = (dropout_kl(p + h, q) - dropout_kl(p - h, q)) / (2 * h)
        numeric_q = (dropout_kl(p, q + h) - dropout_kl(p, q - h)) / (2 * h)
    torch.testing.assert_close(by_p, numeric_p, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(by_q, numeric_q, rtol=1e-6, atol=1e-5)
    formula = 0.5 * ((1 - 2 * q) / (q * (1 - q)) - (1 - 2 * p) / (p * (1 - p)))
    torch.testing.assert_close(by_p, formula, rtol=1e-9, atol=1e-12)


def test_kl_gradient_reaches_a_broadcast_prior_rate():
    p = torch.rand(3, 4, 5, dtype=torch.float64) * 0.8 + 0.1
    q = (torch.rand(4, 1, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    (found,) = torch.autograd.grad(dropout_kl(p, q).sum(), q)
    (expected,) = torch.autograd.grad(plain_kl(p, q).sum(), q)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_kl_is_convex_in_the_rate_with_its_minimum_zero_at_the_prior():
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    values = dropout_kl(p[:, None].expand(99, 99), p[None, :].expand(99, 99))
    second = values[2:] - 2 * values[1:-1] + values[:-2]
    assert number(second.min()) >= 0
    assert torch.equal(values.argmin(0), torch.arange(99))
    assert number(values.diagonal().abs().max()) == 0.0
    assert number((values + torch.eye(99)).min()) > 0


def test_kl_is_symmetric_under_keeping_for_dropping():
    p, q = torch.rand(2, 1000, dtype=torch.float64) * 0.98 + 0.01
    torch.testing.assert_close(dropout_kl(p, q), dropout_kl(1 - p, 1 - q), rtol=1e-9, atol=1e-12)
    assert number((dropout_kl(p, q) - dropout_kl(q, p)).abs().max()) > 1  # but not in its arguments


# -- pre-activations (docs/papers/nvdp.md, eq. 8 to 11) ---------------------------------------------------------------


def test_moments_of_preactivations_by_three_kinds_of_draws():
    draws, k_out, k_in = 400_000, 4, 6
    rates = product_rates((), k_in, k_out)
    weight = torch.randn(k_out, k_in + 1)
    fn = DropoutNormal(weight, rates)
    h = torch.randn(1, k_in)
    mean, variance = (m.squeeze(-2) for m in fn.factored_preactivation_moments(h))
    with local_reparameterization(lazy=True), pyro.plate("particles", draws, dim=-1):
        by_lrt = linear(h, pyro.sample("w", fn)).squeeze(-2)
    by_weights = linear(h, fn.rsample((draws,))).squeeze(-2)
    masks = (torch.rand(draws, k_out, k_in + 1) > rates.matrix()).to(weight.dtype)
    by_masks = linear(h, masks * weight).squeeze(-2)
    for found in (by_lrt, by_weights, by_masks):
        assert found.shape == (draws, k_out)
        scale = variance.sqrt()
        assert number(((found.mean(0) - mean) / scale).abs().max()) < 0.01
        assert number((found.var(0) / variance - 1).abs().max()) < 0.01
    # the usual rescaled layer would have another mean
    rescaled = linear(h, weight).squeeze(-2)
    assert number(((rescaled - mean) / variance.sqrt()).abs().max()) > 0.2


@pytest.mark.parametrize("points", [1, 3, 50])
def test_factored_products_are_the_dense_ones(points):
    rates = product_rates((3,), 7, 5, dtype=torch.float64)
    fn = DropoutNormal(torch.randn(5, 8, dtype=torch.float64), rates)
    h = torch.randn(3, points, 7, dtype=torch.float64)
    p = rates.matrix()
    mean = (1 - p) * fn.weight
    variance = p * (1 - p) * fn.weight**2
    expected = (
        torch.einsum("tnd,tkd->tnk", h, mean[..., :-1]) + mean[:, None, :, -1],
        torch.einsum("tnd,tkd->tnk", h**2, variance[..., :-1]) + variance[:, None, :, -1],
    )
    for found, exact in zip(fn.factored_preactivation_moments(h), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    dense = fn.dense_preactivation_moments(h)
    torch.testing.assert_close(dense[0], expected[0], rtol=1e-12, atol=1e-12)
    # the dense form carries the variance floor of 1e-10 an entry
    torch.testing.assert_close(dense[1], expected[1], rtol=1e-9, atol=1e-8)
    chosen = fn.preactivation_moments(h)
    torch.testing.assert_close(chosen[0], expected[0], rtol=1e-12, atol=1e-12)


def test_noise_of_local_reparameterization_is_independent_from_point_to_point():
    fn = DropoutNormal(torch.randn(2, 4), product_rates((), 3, 2))
    h = torch.randn(1, 3).expand(2, 3)  # the same input twice
    with local_reparameterization(lazy=True), pyro.plate("particles", 50_000, dim=-1):
        lrt = linear(h, pyro.sample("w", fn))
    coherent = linear(h, fn.rsample((1000,)))
    assert abs(number(torch.corrcoef(lrt[..., 0].T)[0, 1])) < 0.03
    torch.testing.assert_close(coherent[:, 0], coherent[:, 1])


# -- rates (docs/papers/nvdp.md, eq. 3 to 5) --------------------------------------------------------------------------


def nvdp(clip="logit", width=16, sizes=(1, 12, 12, 2), **options):
    model = BayesianNetwork(list(sizes), likelihood="gaussian-head")
    return model, BernoulliExpertGuide(model, width=width, clip=clip, **options)


def data(t=4, n=9, dtype=torch.float32):
    return Dataset(torch.randn(t, n, 1, dtype=dtype), torch.randn(t, n, 1, dtype=dtype))


def test_rate_vectors_are_row_column_layer_and_bias():
    _model, guide = nvdp(sizes=(1, 128, 128, 2))
    assert [guide.rate_vector_length(i) for i in range(3)] == [258, 385, 133]
    shapes = [r.shape for r in guide.rates(data()).values()]
    assert shapes == [(4, 128, 2), (4, 128, 129), (4, 2, 129)]


def push_logits(guide, factor):
    """Makes the rate logits large of either sign, so that the clip bites."""
    with torch.no_grad():
        for head in guide.rate_networks.heads:
            head.weight.mul_(factor)


@pytest.mark.parametrize(("sign", "bound"), [(-1.0, 0.00908), (1.0, 0.5951)])
def test_rates_reach_and_keep_the_logit_clip(sign, bound):
    _model, guide = nvdp()
    with torch.no_grad():
        for head in guide.rate_networks.heads:
            head.bias.fill_(sign * 1e4)
    for rate in guide.rates(data()).values():
        torch.testing.assert_close(rate[..., :-1], torch.full_like(rate[..., :-1], bound), rtol=1e-3, atol=1e-5)
        single = 1 / (1 + math.exp(2 / 1.5)) if sign < 0 else 1 / (1 + math.exp(-2.5 / 1.5))
        torch.testing.assert_close(rate[..., -1], torch.full_like(rate[..., -1], single))


def test_rates_of_the_whole_task_have_the_wider_clip():
    _model, guide = nvdp()
    with torch.no_grad():
        for head in guide.rate_networks.heads:
            head.bias.fill_(-1e4)
    with pyro.poutine.trace() as trace:
        guide.conditional_prior(data())
    rate = trace.trace.nodes["layer_1.weight"]["fn"].rate.detach()
    expected = (1 / (1 + math.exp(4 / 1.5))) ** 3
    assert number(rate[..., :-1].max()) == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(2.7e-4, rel=0.02)


@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_product_rates_have_rank_one_and_stay_in_range(factor):
    _model, guide = nvdp()
    push_logits(guide, factor)
    low, high = (1 / (1 + math.exp(2 / 1.5))) ** 3, (1 / (1 + math.exp(-2.5 / 1.5))) ** 3
    for rate in guide.rates(data()).values():
        weights = rate[..., :-1]
        assert number(weights.min()) >= low * (1 - 1e-5)
        assert number(weights.max()) <= high * (1 + 1e-5)
        if min(weights.shape[-2:]) > 1:
            singular = torch.linalg.svdvals(weights.double())
            assert number((singular[..., 1] / singular[..., 0]).max()) < 1e-6


def test_probability_clip_holds_at_any_temperature():
    _model, guide = nvdp(clip="probability")
    push_logits(guide, 1e3)
    with torch.no_grad():
        guide.temperatures.fill_(-3.0)  # below its floor of 0.5
    rates = torch.cat([r.flatten() for r in guide.rates(data()).values()])
    assert number(rates.min()) == pytest.approx(0.01)
    assert number(rates.max()) == pytest.approx(0.99)


def test_logit_clip_moves_with_the_temperature():
    _model, guide = nvdp()
    with torch.no_grad():
        guide.temperatures.fill_(0.1)  # is floored at 0.5
        for head in guide.rate_networks.heads:
            head.bias.fill_(-1e4)
    rate = guide.rates(data())["layer_1.weight"][..., :-1]
    assert number(rate.max()) == pytest.approx((1 / (1 + math.exp(4))) ** 3, rel=1e-3)


def test_layer_and_full_rates_have_their_own_structure():
    _model, layer = nvdp(rates="layer")
    for rate in layer.rates(data()).values():
        assert number(rate[..., :-1].std((-1, -2), correction=0).max()) < 1e-6
    _model, full = nvdp(rates="full")
    singular = torch.linalg.svdvals(full.rates(data())["layer_1.weight"][..., :-1].double())
    assert number((singular[..., 1] / singular[..., 0]).min()) > 1e-2


def test_rates_at_the_start_are_those_of_the_paper():
    torch.manual_seed(3)
    _model, guide = nvdp(width=128, sizes=(1, 128, 128, 2))
    rates = guide.rates(data(32))["layer_1.weight"]
    assert 0.05 < number(rates[..., :-1].mean()) < 0.25  # about 1/8 on weights
    assert 0.35 < number(rates[..., -1].mean()) < 0.65  # about 1/2 on biases


# -- invariances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_encoder_does_not_see_the_order_of_points(pooling):
    encoder = SetEncoder(1, 1, 16, 16, pooling=pooling).double()
    points = data(3, 8, torch.float64)
    order = torch.randperm(8)
    torch.testing.assert_close(encoder(points), encoder(points.points(order)), rtol=0, atol=1e-6)
    other = Dataset(points.x, points.y.roll(1, -2))  # another pairing of x and y is another data set
    assert number((encoder(points) - encoder(other)).abs().max()) > 1e-3


@pytest.mark.parametrize("clip", ["logit", "probability"])
def test_mean_weight_prediction_at_a_point_does_not_depend_on_the_others(clip):
    model, guide = (m.double() for m in nvdp(clip))
    context = data(3, 8, torch.float64)
    x = torch.randn(3, 20, 1, dtype=torch.float64)
    together = predict(model, guide, context, x, weights="mean").mean
    for i in (0, 7, 19):
        alone = predict(model, guide, context, x[:, i : i + 1], weights="mean").mean
        torch.testing.assert_close(alone[:, 0], together[:, i], rtol=0, atol=1e-6)
    shuffled = torch.randperm(20)
    torch.testing.assert_close(
        predict(model, guide, context, x[:, shuffled], weights="mean").mean, together[:, shuffled], rtol=0, atol=1e-6
    )


# -- the variational prior (docs/papers/nvdp.md, eq. 6) ---------------------------------------------------------------


def test_kl_vanishes_where_the_context_is_the_whole_task():
    model, guide = nvdp("probability")
    terms = ConditionalPrior().terms(model, guide, data())
    assert terms.kl.tolist() == [0.0] * 4
    parts = ConditionalPrior().terms(model, guide, data().split(3))
    assert bool((parts.kl > 0).all())
    assert all(bool((kl > 0).all()) for kl in parts.kl_by_site.values())


def test_kl_of_the_logit_clip_does_not_vanish_where_the_clips_bite():
    model, guide = nvdp("logit")
    with torch.no_grad():
        for head in guide.rate_networks.heads:
            head.weight.zero_()
            head.bias.uniform_(-1.9, 2.4)  # inside both clips
    assert ConditionalPrior().terms(model, guide, data()).kl.tolist() == [0.0] * 4
    with torch.no_grad():
        for head in guide.rate_networks.heads:
            head.bias.fill_(-3.0)  # inside the prior's clip alone
    assert bool((ConditionalPrior().terms(model, guide, data()).kl > 0.1).all())


def branch_rates(objective, model, guide, batch):
    runs = objective.run_branches(model, guide, (batch,), {})
    return [t.nodes["layer_1.weight"]["fn"].rate for t in (runs.posterior, runs.reference)]


def test_gradient_flows_through_both_branches():
    model, guide = nvdp()
    posterior, prior = branch_rates(ConditionalPrior(), model, guide, data().split(3))
    by_posterior, by_prior = torch.autograd.grad(dropout_kl(posterior, prior).sum(), (posterior, prior))
    assert number(by_posterior.abs().max()) > 0
    assert number(by_prior.abs().max()) > 0
    head = guide.rate_networks.heads[1].bias
    for rate in branch_rates(ConditionalPrior(), model, guide, data().split(3)):
        assert number(torch.autograd.grad(rate.sum(), head)[0].abs().sum()) > 0


def test_stopping_the_prior_gradient_stops_it_and_nothing_else():
    model, guide = nvdp()
    batch = data().split(3)
    posterior, prior = branch_rates(ConditionalPrior(stop_prior_gradient=True), model, guide, batch)
    assert (posterior.requires_grad, prior.requires_grad) == (True, False)
    grads, values = [], []
    for stop in (False, True):
        torch.manual_seed(1)
        terms = ConditionalPrior(stop_prior_gradient=stop).terms(model, guide, batch)
        values.append(terms.bound.detach())
        grads.append(torch.autograd.grad(terms.kl.sum(), guide.rate_networks.heads[1].bias)[0])
    torch.testing.assert_close(values[0], values[1])  # the same number
    assert number((grads[0] - grads[1]).abs().max()) > 1e-3 * number(grads[0].abs().max())


# -- ceiling (docs/papers/nvdp.md, eq. 13) ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 30])
def test_no_log_density_exceeds_the_ceiling_of_the_head(steps):
    assert pytest.approx(1.3836, abs=1e-4) == CEILING
    model, guide = nvdp(width=32, sizes=(1, 32, 32, 2))
    stream = tasks.gp(batch_size=8, seed=5)
    if steps:
        fit(model, guide, stream, ConditionalPrior(beta=1.4), steps=steps, progress=False)
    batch: TaskBatch = stream.batch(1000)
    full = batch.full
    scores = torch.stack(
        [
            predict(model, guide, batch.context, full, weights="mean").log_prob(full.y),
            predict(model, guide, batch.context, full, num_samples=5, seed=0).log_prob(full.y),
        ]
    )
    assert number(scores.max()) <= CEILING + 1e-6
    oracle = oracle_log_likelihood(batch, "full", min_scale=0.1).mean(-1)
    assert number(scores[0].double().mean()) < number(oracle.mean()) + 0.05
    # a head with its scale at the floor, and exact, is at the ceiling and not beyond
    at_floor = model.likelihood(torch.tensor([[0.3, -100.0]])).log_prob(torch.tensor([[0.3]]))
    assert number(at_floor) == pytest.approx(CEILING, abs=1e-5)
