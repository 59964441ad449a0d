"""Objectives against Pyro's own, against exact evidence of a linear-Gaussian model, and against hand-made values."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, NeuralProcessGuide
from inference.objectives import REGISTRY, ConditionalPrior, TaskELBO, make
from pp_models import BayesianNetwork, DataError, Dataset, LearnedGaussianPrior, NeuralProcess, TaskBatch
from pp_models.parameter_module import ParameterModule
from pp_models.task_plates import task_plates

DX = 2
NOISE = math.exp(torch.tensor(math.log(0.3)).item())  # the model keeps its logarithm in float32


def number(tensor):
    return tensor.detach().item()


# -- Bayesian linear regression: everything is known exactly -----------------------------------------------------------


def linear_model():
    return BayesianNetwork([DX, 1], noise_scale=NOISE).double()


def linear_data(t=4, n=7, mask=None):
    return Dataset(torch.randn(t, n, DX).double(), torch.randn(t, n, 1).double(), mask)


def design(data):
    """Features ``[T, N, DX + 1]`` and outputs ``[T, N]``, with zeros where a point does not exist."""
    exists = data.full_mask().double()
    ones = torch.ones(*data.x.shape[:-1], 1, dtype=torch.float64)
    return torch.cat([data.x, ones], -1) * exists[..., None], data.y.squeeze(-1) * exists


def exact_posterior(data):
    """Mean ``[T, DX + 1]`` and covariance of the weights, by dense float64 algebra."""
    phi, y = design(data)
    precision = phi.mT @ phi / NOISE**2 + (DX + 1) * torch.eye(DX + 1, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    return (covariance @ phi.mT @ y[..., None]).squeeze(-1) / NOISE**2, covariance


def exact_evidence(data):
    """log p(y | x) of each task: y ~ N(0, Phi Phi' / (DX + 1) + noise² I) over its existing points."""
    phi, y = design(data)
    values = []
    for features, outputs, exists in zip(phi, y, data.full_mask(), strict=True):
        features, outputs = features[exists], outputs[exists]
        if not len(outputs):
            values.append(torch.zeros((), dtype=torch.float64))
            continue
        gram = features @ features.T / (DX + 1) + NOISE**2 * torch.eye(len(outputs), dtype=torch.float64)
        zero = torch.zeros(len(outputs), dtype=torch.float64)
        values.append(torch.distributions.MultivariateNormal(zero, gram).log_prob(outputs))
    return torch.stack(values)


class LinearGuide(ParameterModule):
    """A Gaussian over the one weight matrix of each task with a free mean and Cholesky factor."""

    def __init__(self, loc, tril, diagonal=False):
        super().__init__()
        self.loc = nn.Parameter(loc.clone())
        self.tril = nn.Parameter(tril.clone())
        self.diagonal = diagonal

    def forward(self, data):
        loc = self.loc.unsqueeze(-2)
        with task_plates(data.batch_shape):
            if self.diagonal:
                scale = self.tril.diagonal(dim1=-2, dim2=-1).abs().unsqueeze(-2)
                fn = dist.Normal(loc, scale).to_event(2)
            else:
                tril = self.tril.tril(-1) + torch.diag_embed(self.tril.diagonal(dim1=-2, dim2=-1).abs())
                fn = dist.MultivariateNormal(loc, scale_tril=tril.unsqueeze(-3)).to_event(1)
            return pyro.sample("layer_0.weight", fn)


def posterior_guide(data, diagonal=False):
    loc, covariance = exact_posterior(data)
    return LinearGuide(loc, torch.linalg.cholesky(covariance), diagonal)


def prior_guide(t, diagonal=False):
    eye = torch.eye(DX + 1, dtype=torch.float64) / math.sqrt(DX + 1)
    return LinearGuide(torch.zeros(t, DX + 1, dtype=torch.float64), eye.expand(t, -1, -1), diagonal)


def closed_form_bound(guide, data):
    """Expected log-likelihood and KL of each task under the guide's Gaussian, by dense algebra."""
    phi, y = design(data)
    count = data.counts
    tril = guide.tril.detach()
    if guide.diagonal:
        tril = torch.diag_embed(tril.diagonal(dim1=-2, dim2=-1))
    loc, covariance = guide.loc.detach(), tril @ tril.mT
    residual = y - (phi @ loc[..., None]).squeeze(-1)
    spread = torch.einsum("tnd,tde,tne->t", phi, covariance, phi)
    log_likelihood = -0.5 * count * math.log(2 * math.pi * NOISE**2)
    log_likelihood = log_likelihood - 0.5 * (residual.square().sum(-1) + spread) / NOISE**2
    d = DX + 1
    kl = 0.5 * (
        d * covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        + d * loc.square().sum(-1)
        - d
        - d * math.log(d)
        - torch.logdet(covariance)
    )
    return log_likelihood, kl


RAGGED = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [False, True] * 3 + [True], [False] * 7])


@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_exact_posterior_gives_the_evidence(mask, particles):
    data = linear_data(mask=mask)
    terms = TaskELBO(num_particles=particles).terms(linear_model(), posterior_guide(data), data)
    torch.testing.assert_close(terms.bound, exact_evidence(data), rtol=0, atol=1e-8)
    assert terms.points.tolist() == data.counts.tolist()


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_any_other_guide_gives_its_closed_form_and_less(diagonal, local):
    if local and not diagonal:
        diagonal = True  # local reparameterisation is for independent weights; here with another mean
        shift = 0.2
    else:
        shift = 0.1
    data = linear_data(mask=RAGGED)
    guide = posterior_guide(data, diagonal)
    with torch.no_grad():
        guide.loc += shift
    log_likelihood, kl = closed_form_bound(guide, data)
    gap = exact_evidence(data) - (log_likelihood - kl)
    assert number(gap.min()) > 1e-3
    objective = TaskELBO(20_000, local_reparameterization=local)
    with torch.no_grad():
        draws = torch.stack([objective.terms(linear_model(), guide, data).bound for _ in range(8)])
    error = draws.std(0) / math.sqrt(len(draws))
    assert number(error.max()) < 0.2
    # two estimates of a standard error from 8 repeats: 6 of them, not 4
    assert bool(((draws.mean(0) - (log_likelihood - kl)).abs() < 6 * error + 1e-9).all())


def test_the_analytic_kl_is_the_dense_one():
    data = linear_data()
    guide = posterior_guide(data, diagonal=True)
    terms = TaskELBO().terms(linear_model(), guide, data)
    torch.testing.assert_close(terms.kl, closed_form_bound(guide, data)[1], rtol=1e-10, atol=1e-10)
    assert list(terms.kl_by_site) == ["layer_0.weight"]


def test_padding_leaves_every_term_as_it_was():
    data = linear_data()
    guide = posterior_guide(data, diagonal=True)
    hole = torch.zeros(4, 5, DX).double() + torch.nan
    padded = Dataset(
        torch.cat([data.x, hole], -2),
        torch.cat([data.y, hole[..., :1]], -2),
        torch.cat([data.full_mask(), torch.zeros(4, 5, dtype=torch.bool)], -1),
    )
    for local in (False, True):
        found = []
        for d in (data, padded):
            torch.manual_seed(0)
            # local noise is drawn point by point, so there its expectation is what agrees
            particles = 40_000 if local else 3
            objective = TaskELBO(particles, local_reparameterization=local)
            found.append(objective.terms(linear_model(), guide, d))
        tolerance = {"rtol": 0.02, "atol": 0.02} if local else {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(found[0].bound, found[1].bound, **tolerance)
        torch.testing.assert_close(found[0].kl, found[1].kl, rtol=1e-12, atol=1e-12)
        assert torch.equal(found[0].points, found[1].points)


# -- against Pyro's estimators, draw for draw --------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize(("particles", "vectorize"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("analytic", [True, False])
def test_the_sum_over_tasks_is_pyros_estimate_on_the_same_draws(mask, particles, vectorize, analytic):
    data = linear_data(mask=mask)
    model, guide = linear_model(), posterior_guide(data, diagonal=analytic)
    options = {"num_particles": particles, "vectorize_particles": vectorize, "max_plate_nesting": 1}
    pyros = (TraceMeanField_ELBO if analytic else Trace_ELBO)(**options)
    losses, grads = [], []
    for objective in (pyros, TaskELBO(**options)):
        torch.manual_seed(3)
        guide.zero_grad()
        loss = objective.differentiable_loss(model, guide, data)
        loss.backward()
        losses.append(loss.item())
        grads.append(guide.loc.grad.clone())
        torch.manual_seed(3)
        assert objective.loss(model, guide, data) == pytest.approx(losses[-1], rel=1e-10)
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("particles", [1, 2])
def test_bounds_have_the_task_dimensions_and_sum_to_pyros(batch, particles):
    model = BayesianNetwork([1, 6, 2], likelihood="gaussian-head").double()
    guide = AmortisedMeanFieldGuide(model, width=8).double()
    data = Dataset(torch.randn(*batch, 5, 1).double(), torch.randn(*batch, 5, 1).double())
    torch.manual_seed(0)
    terms = TaskELBO(particles).terms(model, guide, data)
    assert terms.bound.shape == terms.kl.shape == terms.log_likelihood.shape == terms.points.shape == batch
    torch.manual_seed(0)
    pyros = TraceMeanField_ELBO(particles, vectorize_particles=True, max_plate_nesting=len(batch))
    assert number(-terms.bound.sum()) == pytest.approx(pyros.loss(model, guide, data), rel=1e-10)


@pytest.mark.parametrize("particles", [1, 3])
def test_latents_shared_by_all_tasks_count_once(particles):
    y = torch.randn(4, 5)

    def model(y):
        centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
        with pyro.plate("tasks", 4, dim=-1):
            mean = pyro.sample("mean", dist.Normal(centre, 1.0))
            pyro.sample("y", dist.Normal(mean.unsqueeze(-1), 1.0).expand([4, 5]).to_event(1), obs=y)

    class Guide(ParameterModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.randn(5))

        def forward(self, y):
            pyro.sample("centre", dist.Normal(self.loc[0], 0.5))
            with pyro.plate("tasks", 4, dim=-1):
                pyro.sample("mean", dist.Normal(self.loc[1:], 0.3))

    guide = Guide()
    losses = []
    for cls in (TraceMeanField_ELBO, TaskELBO):
        torch.manual_seed(1)
        losses.append(
            number(
                cls(particles, vectorize_particles=particles == 1, max_plate_nesting=1).differentiable_loss(
                    model, guide, y
                )
            )
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_plates_other_than_tasks_are_summed():
    y = torch.randn(6, 4)

    def model(y):
        with pyro.plate("units", 4, dim=-1):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 6, dim=-2):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide_loc = torch.randn(4)

    def guide(y):
        with pyro.plate("units", 4, dim=-1):
            pyro.sample("mean", dist.Normal(guide_loc, 0.3))

    values = []
    for objective in (TraceMeanField_ELBO(), TaskELBO()):
        torch.manual_seed(1)
        values.append(objective.loss(model, guide, y))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_kl_without_closed_form_is_estimated_without_bias():
    model = BayesianNetwork([1, 3, 1], prior=LearnedGaussianPrior("network")).double()
    guide = AmortisedMeanFieldGuide(model, width=8).double()
    data = Dataset(torch.randn(5, 1).double(), torch.randn(5, 1).double())
    with torch.no_grad():
        kls = torch.stack([TaskELBO().terms(model, guide, data).kl for _ in range(400)])
        # the learned prior starts as the fixed one, for which the KL is analytic
        exact = TaskELBO().terms(BayesianNetwork([1, 3, 1]).double(), guide, data).kl
    error = number(kls.std()) / math.sqrt(len(kls))
    assert 0 < error < 0.5
    assert abs(number(kls.mean() - exact)) < 4 * error


def test_local_reparameterization_without_a_closed_kl_is_refused():
    model = BayesianNetwork([1, 3, 1], prior=LearnedGaussianPrior("layer"))
    guide = AmortisedMeanFieldGuide(model, width=8)
    data = Dataset(torch.randn(5, 1), torch.randn(5, 1))
    with pytest.raises(ValueError, match=r"^local_reparameterization: got True, but the KL of site 'layer_0.weight'"):
        TaskELBO(local_reparameterization=True).terms(model, guide, data)


# -- reductions of NVDP's code -----------------------------------------------------------------------------------------


def small_nvdp(**options):
    model = BayesianNetwork([1, 6, 6, 2], likelihood="gaussian-head").double()
    return model, BernoulliExpertGuide(model, width=8, **options).double()


def small_batch(t=3, n=8, context=3):
    return Dataset(torch.randn(t, n, 1).double(), torch.randn(t, n, 1).double()).split(context)


def kl_formula(p, q):
    return 0.5 * ((p * (1 - p) + (q - p) ** 2) / (q * (1 - q)) + (q * (1 - q)).log() - (p * (1 - p)).log() - 1)


@pytest.mark.parametrize("beta", [0.0, 1.0, 1.4])
def test_mean_reduction_is_the_released_loss(beta):
    model, guide = small_nvdp()
    batch = small_batch()
    layers = [
        kl_formula(p.rate, q.rate).mean()  # over tasks and entries
        for p, q in zip(
            guide.layer_distributions(batch.context),
            guide.layer_distributions(batch.full, (-4.0, 4.0)),
            strict=True,
        )
    ]
    kl = torch.stack(layers).mean()
    objective = ConditionalPrior(beta=beta)
    terms = objective.terms(model, guide, batch)
    torch.testing.assert_close(terms.kl.mean(), kl, rtol=1e-10, atol=1e-12)
    n, values = 8, terms.points
    assert values.tolist() == [8.0] * 3
    expected = -(terms.log_likelihood / n).mean() + beta * kl / n
    assert number(objective.reduce(terms)) == pytest.approx(number(expected), rel=1e-10)
    nats = ConditionalPrior(beta=beta, normalize=False).terms(model, guide, batch)
    torch.testing.assert_close(nats.bound, nats.log_likelihood - beta * nats.kl)


def test_sum_reduction_is_the_sum_over_entries_and_far_larger():
    model, guide = small_nvdp()
    batch = small_batch()
    total = sum(
        kl_formula(p.rate, q.rate).sum((-1, -2))
        for p, q in zip(
            guide.layer_distributions(batch.context), guide.layer_distributions(batch.full, (-4.0, 4.0)), strict=True
        )
    )
    summed = ConditionalPrior(kl_reduction="sum").terms(model, guide, batch)
    torch.testing.assert_close(summed.kl, total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sum(summed.kl_by_site.values()), total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(summed.bound, summed.log_likelihood - total)
    mean = ConditionalPrior().terms(model, guide, batch).kl
    assert number((summed.kl / mean).min()) > 20  # 68 weights in three layers of 12, 42 and 14


def test_normalize_counts_outputs_and_existing_points():
    model = BayesianNetwork([1, 4, 6], likelihood="gaussian-head").double()
    guide = AmortisedMeanFieldGuide(model, width=8).double()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    data = Dataset(torch.randn(2, 5, 1).double(), torch.randn(2, 5, 3).double(), mask)
    # an evidence bound divided by the values it scores; NVDP's mean KL is divided by the points alone, as released
    for reduction, width in (("sum", 1), ("mean", 3)):
        torch.manual_seed(0)
        plain = TaskELBO(beta=0.7, kl_reduction=reduction, normalize=False).terms(model, guide, data)
        torch.manual_seed(0)
        normalized = TaskELBO(beta=0.7, kl_reduction=reduction, normalize=True).terms(model, guide, data)
        assert plain.points.tolist() == [15.0, 6.0]
        expected = (plain.log_likelihood - 0.7 * width * plain.kl) / plain.points
        torch.testing.assert_close(normalized.bound, expected)
        assert number(TaskELBO(normalize=True).reduce(normalized)) == pytest.approx(number(-expected.mean()))


def test_class_indices_count_one_value_a_point():
    model = BayesianNetwork([1, 4, 3], likelihood="categorical")
    guide = AmortisedMeanFieldGuide(model, width=8)
    data = Dataset(
        torch.randn(2, 5, 1), torch.randint(0, 3, (2, 5)), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    )
    terms = TaskELBO(3, local_reparameterization=True).terms(model, guide, data)
    assert terms.points.tolist() == [5.0, 2.0]
    assert bool((terms.log_likelihood <= 0).all())


# -- conditional-prior and npvi by hand --------------------------------------------------------------------------------


def run(guide, data, seed=0):
    torch.manual_seed(seed)
    return pyro.poutine.trace(guide).get_trace(data).nodes


def test_conditional_prior_by_hand():
    model = NeuralProcess(1, 1, latent_dim=4, width=8).double()
    guide = NeuralProcessGuide(model, width=8).double()
    batch = small_batch()
    context, full = run(guide, batch.context)["z"], run(guide, batch.full)["z"]
    kl = kl_divergence(context["fn"], full["fn"])
    trace = pyro.poutine.trace(pyro.condition(model, {"z": context["value"]})).get_trace(batch.full)
    log_likelihood = trace.nodes["y"]["fn"].log_prob(batch.full.y)
    torch.manual_seed(0)
    terms = ConditionalPrior(kl_reduction="sum", beta=0.3).terms(model, guide, batch)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.log_likelihood, log_likelihood)
    torch.testing.assert_close(terms.bound, log_likelihood - 0.3 * kl)


@pytest.mark.parametrize("path", [0, 5])
def test_npvi_by_hand(path):
    model = NeuralProcess(1, 1, latent_dim=4, representation_dim=path, width=8).double()
    guide = NeuralProcessGuide(model, width=8).double()
    batch = small_batch()
    nodes = run(guide, batch.context)
    context_z = nodes["z"]["fn"]
    full = run(guide, batch.full)["z"]  # the second draw of the objective
    torch.manual_seed(0)
    torch.randn(3, 4, dtype=torch.float64)
    replayed = pyro.poutine.trace(guide).get_trace(batch.full).nodes["z"]
    values = {"z": replayed["value"]}
    if path:
        values["representation"] = nodes["representation"]["value"]  # from the context, as at test time
    trace = pyro.poutine.trace(pyro.condition(model, values)).get_trace(batch.full)
    torch.manual_seed(0)
    terms = make("npvi").terms(model, guide, batch)
    torch.testing.assert_close(terms.kl, kl_divergence(full["fn"], context_z))
    torch.testing.assert_close(terms.log_likelihood, trace.nodes["y"]["fn"].log_prob(batch.full.y))
    assert number((terms.kl - ConditionalPrior(kl_reduction="sum").terms(model, guide, batch).kl).abs().max()) > 1e-6
    assert list(terms.kl_by_site) == ["z"]  # a point mass has no divergence


@pytest.mark.parametrize("name", ["conditional-prior", "npvi"])
def test_a_data_set_is_its_own_context(name):
    model = NeuralProcess(1, 1, latent_dim=4, width=8)
    guide = NeuralProcessGuide(model, width=8)
    data = Dataset(torch.randn(3, 6, 1), torch.randn(3, 6, 1))
    assert make(name).terms(model, guide, data).kl.tolist() == [0.0] * 3
    with pytest.raises(TypeError, match=r"^data: got str; this objective needs a TaskBatch or a Dataset$"):
        make(name).terms(model, guide, "data")


# -- local reparameterisation ------------------------------------------------------------------------------------------


def test_local_reparameterization_keeps_the_bound_and_lowers_the_variance_of_its_gradient():
    model = linear_model()
    data = linear_data(t=2, n=40)
    guide = prior_guide(2, diagonal=True)
    bounds, grads = {}, {}
    for local in (False, True):
        objective = TaskELBO(local_reparameterization=local)
        found = []
        values = []
        for _ in range(300):
            guide.zero_grad()
            terms = objective.terms(model, guide, data)
            (-terms.bound.sum()).backward()
            found.append(guide.loc.grad.flatten().clone())
            values.append(terms.bound.detach())
        bounds[local], grads[local] = torch.stack(values), torch.stack(found)
    difference = bounds[True].mean(0) - bounds[False].mean(0)
    error = (bounds[True].var(0) / 300 + bounds[False].var(0) / 300).sqrt()
    assert bool((difference.abs() < 4 * error).all())
    means = grads[True].mean(0) - grads[False].mean(0)
    error = (grads[True].var(0) / 300 + grads[False].var(0) / 300).sqrt()
    assert bool((means.abs() < 4 * error).all())
    ratio = grads[True].var(0) / grads[False].var(0)
    assert number(ratio.max()) < 0.5


# -- ways to call ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dataset", "batch"])
@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize("name", REGISTRY)
def test_every_objective_through_svi_and_as_a_module(name, particles, kind):
    model = BayesianNetwork([1, 6, 2], likelihood="gaussian-head")
    guide = BernoulliExpertGuide(model, width=8)
    batch = Dataset(torch.randn(3, 8, 1), torch.randn(3, 8, 1)).split(3)
    data = batch if kind == "batch" else batch.full
    if name in ("log-variance", "r-drop") and particles == 1:
        with pytest.raises(ValueError, match=r"^num_particles: got 1; (a variance needs|it must be) at least 2"):
            make(name, num_particles=particles)
        return
    objective = make(name, num_particles=particles)
    before = [p.detach().clone() for p in guide.parameters()]
    loss = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), objective).step(data)
    assert isinstance(loss, float) and math.isfinite(loss)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
    assert moved >= len(before) - 1  # all but the code of an empty context
    module_loss = objective(model, guide)(data)
    assert module_loss.shape == () and module_loss.requires_grad
    trace = make(name, num_particles=particles).loss(model, guide, data)
    assert math.isfinite(trace)


def test_elbo_on_the_context_alone():
    model, guide = small_nvdp()
    batch = small_batch()
    torch.manual_seed(0)
    on_context = TaskELBO(on="context").terms(model, guide, batch)
    torch.manual_seed(0)
    direct = TaskELBO().terms(model, guide, batch.context)
    torch.testing.assert_close(on_context.bound, direct.bound)
    assert on_context.points.tolist() == [3.0] * 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("elbow", {}, r"^objective: got 'elbow'; did you mean 'elbo'"),
        ("elbo", {"betta": 1.0}, r"^betta: objective 'elbo' has no such option; it has "),
        ("npvi", {"on": "full"}, r"^on: objective 'npvi' has no such option"),
        ("elbo", {"on": "targets"}, r"^on: got 'targets'; it must be 'full' or 'context'$"),
        ("elbo", {"num_particles": 0}, r"^num_particles: got 0; it must be at least 1$"),
        ("elbo", {"beta": -1.0}, r"^beta: got -1.0; it must be finite and not negative$"),
        ("conditional-prior", {"kl_reduction": "max"}, r"^kl_reduction: got 'max'; it must be 'sum' or 'mean'$"),
    ],
)
def test_bad_names_and_options_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", REGISTRY)
def test_options_reach_every_objective(name):
    objective = make(name, num_particles=2, normalize=True, vectorize_particles=False, max_plate_nesting=3)
    assert (objective.num_particles, objective.normalize, objective.vectorize_particles) == (2, True, False)
    assert objective.max_plate_nesting == 3


@pytest.mark.parametrize("name", ["elbo", "npvi", "conditional-prior", "pp-avi"])
def test_options_of_the_kl_reach_the_objectives_that_have_one(name):
    objective = make(name, beta=0.5, kl_reduction="mean")
    assert (objective.beta, objective.kl_reduction, objective.normalize) == (0.5, "mean", True)


@pytest.mark.parametrize("name", REGISTRY)
def test_data_that_do_not_fit_the_model_are_refused_in_one_line(name):
    model, guide = small_nvdp()
    wide = Dataset(torch.randn(3, 8, 2).double(), torch.randn(3, 8, 1).double())
    with pytest.raises(DataError, match=r"^x: got input width 2; this model was built for 1$"):
        make(name).terms(model, guide, wide.split(3))
    two = Dataset(torch.randn(3, 8, 1).double(), torch.randn(3, 8, 2).double())
    with pytest.raises(DataError, match=r"^y: got width 2; a network of 2 outputs with GaussianHeadLikelihood has 1$"):
        make(name).terms(model, guide, two)


def test_nothing_observed_is_an_error():
    model, guide = small_nvdp()
    with pytest.raises(ValueError, match="observed"):
        make("conditional-prior").terms(model, guide, small_batch().full.without_y())


# -- training ----------------------------------------------------------------------------------------------------------


class DetachedLikelihood(TaskELBO):
    """A broken estimator: the data give no gradient."""

    def draw(self, *args):
        draws = super().draw(*args)
        draws.log_likelihood = draws.log_likelihood.detach()
        return draws


def gap_after_training(objective, seed, steps):
    torch.manual_seed(seed)
    data = linear_data(t=2)
    guide, model = prior_guide(2), linear_model()
    evidence = exact_evidence(data)

    def gap():
        log_likelihood, kl = closed_form_bound(guide, data)
        return number((evidence - log_likelihood + kl).sum())

    start = gap()
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.differentiable_loss(model, guide, data).backward()
        optimizer.step()
    return start, gap()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_closes_the_gap_to_the_evidence_and_a_broken_estimator_does_not(seed):
    start, end = gap_after_training(TaskELBO(8), seed, 200)
    assert start > 5.0
    assert -1e-9 < end < 0.1 * start
    broken_start, broken_end = gap_after_training(DetachedLikelihood(8), seed, 60)
    assert broken_start == pytest.approx(start)
    assert broken_end > 0.7 * start


def test_a_batch_of_tasks_is_the_sum_of_its_tasks():
    model, guide = small_nvdp()
    batch: TaskBatch = small_batch()
    together = ConditionalPrior().terms(model, guide, batch).kl
    alone = torch.stack([ConditionalPrior().terms(model, guide, batch[i]).kl for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_local_reparameterization_with_layers_that_depend_on_each_other():
    model = BayesianNetwork([1, 4, 2], prior=LearnedGaussianPrior("network"), likelihood="gaussian-head").double()
    guide = AmortisedMeanFieldGuide(model, 8).double()
    batch = small_batch()
    with pytest.raises(ValueError, match=r"^local_reparameterization: got True, but the prior of a layer depends on"):
        make("elbo", local_reparameterization=True).terms(model, guide, batch)
    # the conditional prior is the guide's, whose layers are independent
    assert torch.isfinite(make("conditional-prior").terms(model, guide, batch).bound).all()
