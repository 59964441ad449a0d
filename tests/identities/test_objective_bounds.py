"""Values of the bounds: their order, the evidence, conjugate closed forms, and what plates, scales and masks do."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedDirichlet
from pyro.infer import ReweightedWakeSleep as PyroRWS
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch.utils._python_dispatch import TorchDispatchMode

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, NeuralProcessGuide
from inference.objectives import REGISTRY, make
from pp_models import BayesianNetwork, Dataset, NeuralProcess, tasks
from tests.identities.conjugate_gaussian import NOISE, POINTS, Conjugate


def off_guide(problem, shift=0.2, width=1.5):
    """The exact posterior moved by ``shift`` standard deviations and ``width`` times too wide."""
    loc, scale = (t.detach() for t in problem.posterior())

    def guide(y, subset=None):
        kept = slice(None) if subset is None else subset
        with problem.plates(y, subset)[0]:
            pyro.sample("z", dist.Normal(loc[kept] + shift * scale, width * scale))

    return guide


# -- order and closeness -----------------------------------------------------------------------------------------------


def test_bounds_are_ordered():
    problem = Conjugate(64)
    guide = off_guide(problem)
    evidence = problem.log_evidence().sum().item()

    def mean_and_error(name, k, **options):
        objective = make(name, num_particles=k, **options)
        with torch.no_grad():
            values = [objective.terms(problem.model, guide, problem.y).bound.sum() for _ in range(60)]
        values = torch.stack(values)
        return values.mean().item(), values.std().item() / math.sqrt(len(values))

    rows = [mean_and_error("elbo", 4), *(mean_and_error("iwae", k) for k in (4, 8, 16, 32))]
    rows += [(evidence, 0.0), mean_and_error("chi2", 4096, bound="cubo")]
    for (lower, lower_error), (upper, upper_error) in itertools.pairwise(rows):
        assert upper - lower > -3 * math.hypot(lower_error, upper_error)
    assert rows[-1][0] - evidence > 1.0  # an upper bound that is not the evidence
    assert evidence - rows[0][0] > 5.0
    gaps = [evidence - value for value, _ in rows[1:5]]
    assert all(later < 0.75 * earlier for earlier, later in itertools.pairwise(gaps))  # it tightens like 1/K


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.75, 1.0])
def test_renyi_goes_from_iwae_to_the_elbo(alpha):
    problem = Conjugate(32)
    torch.manual_seed(1)
    value = make("renyi", num_particles=16, alpha=alpha).terms(problem.model, off_guide(problem), problem.y).bound
    bounds = []
    for name in ("iwae", "elbo"):
        torch.manual_seed(1)
        terms = make(name, num_particles=16).terms(problem.model, off_guide(problem), problem.y, diagnostics=True)
        bounds.append(terms.bound if name == "iwae" else terms.log_weights.mean(0))  # the same draws
    assert (value <= bounds[0] + 1e-12).all() and (value >= bounds[1] - 1e-12).all()
    if alpha in (0.0, 1.0):
        torch.testing.assert_close(value, bounds[int(alpha)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["iwae", "dreg", "renyi", "rws"])
def test_weights_per_task_come_within_two_nats_where_one_weight_for_all_does_not(name):
    problem = Conjugate(256)
    guide = off_guide(problem)
    evidence = problem.log_evidence().sum().item()
    options = {"alpha": 0.0} if name == "renyi" else {}
    terms = make(name, num_particles=50, **options).terms(problem.model, guide, problem.y)
    assert abs(evidence - terms.bound.sum().item()) < 2.0
    assert terms.ess.mean() > 25 and terms.ess.shape == (256,) and terms.share_below_2 == 0.0

    def announced(y):
        pyro.param("m", problem.parameters["m"])
        problem.model(y)

    theirs = -PyroRWS(num_particles=50, vectorize_particles=True).loss(announced, guide, problem.y)[0]
    assert evidence - theirs > 20.0


@pytest.mark.parametrize("name", ["dreg", "elbo"])
def test_at_the_exact_posterior_every_draws_gradient_is_zero(name):
    problem = Conjugate(16)
    loc, scale = (t.detach() for t in problem.posterior())
    loc, log_scale = loc.clone().requires_grad_(), scale.log().clone().requires_grad_()

    def guide(y):
        with problem.plates(y, None)[0]:
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    def largest(objective):
        bound = objective.terms(problem.model, guide, problem.y).bound.sum()
        return max(g.abs().max().item() for g in torch.autograd.grad(bound, (loc, log_scale)))

    landed = make(name, num_particles=3, **({"estimator": "stl"} if name == "elbo" else {}))
    assert largest(landed) < 1e-12
    assert largest(make("elbo", num_particles=3)) > 1e-2


# -- Dirichlet and multinomial -----------------------------------------------------------------------------------------

CATEGORIES = 4


class DirichletMultinomial:
    """z_t ~ Dir(exp u), counts_t ~ Multinomial(z_t); guide Dir(exp(v) + s counts)."""

    def __init__(self, tasks, family=dist.Dirichlet):
        generator = torch.Generator().manual_seed(2)
        self.counts = torch.randint(0, 7, (tasks, CATEGORIES), generator=generator).double()
        self.family = family
        self.parameters = {
            "u": torch.tensor([0.5, 0.8, 0.2, 0.4]).double().requires_grad_(),
            "v": torch.tensor([0.9, 0.3, 0.6, 0.4]).double().requires_grad_(),
            "s": torch.tensor(0.7).double().requires_grad_(),
        }

    def model(self, counts):
        with pyro.plate("tasks", len(self.counts), dim=-1):
            z = pyro.sample("z", self.family(self.parameters["u"].exp()))
            total = int(counts.sum(-1).max())
            multinomial = dist.Multinomial(total_count=total, probs=z, validate_args=False)
            pyro.sample("y", multinomial, obs=counts)

    def guide(self, counts):
        with pyro.plate("tasks", len(self.counts), dim=-1):
            pyro.sample("z", self.family(self.parameters["v"].exp() + self.parameters["s"] * counts))

    def coefficient(self):
        return torch.lgamma(self.counts.sum(-1) + 1) - torch.lgamma(self.counts + 1).sum(-1)

    def log_evidence(self):
        a = self.parameters["u"].exp()
        b = a + self.counts
        log_ratio = torch.lgamma(b).sum(-1) - torch.lgamma(b.sum(-1))
        return self.coefficient() + log_ratio - torch.lgamma(a).sum() + torch.lgamma(a.sum())

    def elbo(self):
        b = self.parameters["v"].exp() + self.parameters["s"] * self.counts
        expected_log = torch.digamma(b) - torch.digamma(b.sum(-1, keepdim=True))
        q, p = torch.distributions.Dirichlet(b), torch.distributions.Dirichlet(self.parameters["u"].exp())
        fit = self.coefficient() + (self.counts * expected_log).sum(-1)
        return fit - torch.distributions.kl_divergence(q, p)

    def gradient(self, value):
        found = torch.autograd.grad(value, list(self.parameters.values()), allow_unused=True, retain_graph=True)
        pairs = zip(found, self.parameters.values(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


FAMILIES = {"reparameterised": dist.Dirichlet, "not reparameterised": NonreparameterizedDirichlet}


@pytest.mark.parametrize("estimator", ["pathwise", "score", "stl"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tasks_", [1, 16, 256])
def test_dirichlet_gradients_of_the_elbo(tasks_, family, estimator):
    problem = DirichletMultinomial(tasks_, FAMILIES[family])
    wanted = problem.gradient(problem.elbo().sum())
    objective = make("elbo", num_particles=400, estimator=estimator)
    found = torch.stack(
        [problem.gradient(objective.terms(problem.model, problem.guide, problem.counts).bound.sum()) for _ in range(12)]
    )
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - wanted).abs() < 5 * error + 1e-9).all()
    assert (wanted.abs() > 20 * error).any()  # zero, or half of it, would be noticed


@pytest.mark.parametrize("name", ["iwae", "dreg", "rws", "chi2", "renyi"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tasks_", [1, 16, 256])
def test_at_the_conjugate_posterior_bounds_are_the_evidence(name, family, tasks_):
    """Every weight is then p(y): the bound is exact, and its gradient in the prior is in expectation the evidence's."""
    if name == "dreg" and family != "reparameterised":
        return
    problem = DirichletMultinomial(tasks_, FAMILIES[family])
    with torch.no_grad():
        problem.parameters["v"].copy_(problem.parameters["u"])
        problem.parameters["s"].fill_(1.0)
    objective = make(name, num_particles=2000)
    terms = objective.terms(problem.model, problem.guide, problem.counts)
    torch.testing.assert_close(terms.bound.detach(), problem.log_evidence().detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(terms.ess, torch.full_like(terms.ess, 2000.0))
    wanted = problem.gradient(problem.log_evidence().sum())[:CATEGORIES]
    found = problem.gradient(terms.bound.sum())[:CATEGORIES]
    assert (found - wanted).abs().max() < 0.1 * math.sqrt(tasks_)
    assert wanted.abs().max() > 0.3 * math.sqrt(tasks_)


# -- plates ------------------------------------------------------------------------------------------------------------


def test_weights_are_per_element_of_nested_independent_plates():
    def model(y):
        with pyro.plate("schools", 2, dim=-2), pyro.plate("classes", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pupils", 4, dim=-3):
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        with pyro.plate("schools", 2, dim=-2), pyro.plate("classes", 3, dim=-1):
            pyro.sample("z", dist.Normal(y.mean(0), 0.7))

    y = torch.randn(4, 2, 3).double()
    terms = make("iwae", num_particles=500).terms(model, guide, y)
    cov = torch.ones(4, 4).double() + torch.eye(4).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(4).double(), cov).log_prob(y.permute(1, 2, 0))
    assert terms.bound.shape == (2, 3)
    torch.testing.assert_close(terms.bound, exact, rtol=0, atol=0.1)
    assert terms.points.tolist() == [[4.0] * 3] * 2


def test_a_latent_outside_a_plate_ties_its_elements():
    """One weight for everything: the only right way, for the tasks share the latent."""

    def model(y):
        shared = pyro.sample("shared", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("tasks", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(shared, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        shared = pyro.sample("shared", dist.Normal(y.mean() * 0.75, 0.7))
        with pyro.plate("tasks", 3, dim=-1):
            pyro.sample("z", dist.Normal((shared + y) / 2, 0.75))

    y = torch.tensor([0.5, 1.0, -0.2]).double()
    cov = torch.ones(3, 3).double() + 2 * torch.eye(3).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), cov).log_prob(y)
    terms = make("iwae", num_particles=20_000).terms(model, guide, y)
    assert terms.bound.shape == () and terms.ess.shape == ()
    torch.testing.assert_close(terms.bound, exact, rtol=0, atol=0.05)
    # the ELBO is one bound too; reported by task, its parts add up to Pyro's
    elbo = make("elbo", num_particles=20_000).terms(model, guide, y)
    theirs = -Trace_ELBO(num_particles=20_000, vectorize_particles=True).loss(model, guide, y)
    assert elbo.bound.shape == (3,)
    torch.testing.assert_close(elbo.bound.sum().item(), theirs, rtol=0, atol=0.05)


@pytest.mark.parametrize("estimator", ["pathwise", "score"])
def test_the_gradient_through_a_shared_latent_sees_every_task(estimator):
    loc = torch.tensor(0.3).double().requires_grad_()
    y = torch.tensor([0.5, 1.0, -0.2]).double()

    def model(y):
        shared = pyro.sample("shared", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("tasks", 3, dim=-1):
            pyro.sample("y", dist.Normal(shared, 1.0), obs=y)

    def guide(y):
        pyro.sample("shared", dist.Normal(loc, torch.tensor(0.5).double()))

    objective = make("elbo", num_particles=40_000, estimator=estimator, max_plate_nesting=1)
    (found,) = torch.autograd.grad(objective.terms(model, guide, y).bound.sum(), loc)
    wanted = (y - loc).sum() - loc
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)


def subsampled_points(y):
    with pyro.plate("tasks", 4, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("points", POINTS, dim=-2, subsample=torch.tensor([0])):
            pyro.sample("y", dist.Normal(z, NOISE), obs=y.T[:1])


def guide_of_four(y):
    with pyro.plate("tasks", 4, dim=-1):
        pyro.sample("z", dist.Normal(0.5 * y.mean(-1), 0.8))


WEIGHTED = ["iwae", "dreg", "renyi", "rws", "chi2"]


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_scale_inside_the_logarithm_is_refused(name):
    problem = Conjugate(4)
    message = (
        r"^site 'y': scaled by 2 and site 'z' by 1 \(plate 'points' is subsampled but does not hold every latent\)"
    )
    with pytest.raises(ValueError, match=message):
        make(name, num_particles=2).terms(subsampled_points, guide_of_four, problem.y)
    half = pyro.poutine.scale(problem.guide, 0.5)
    with pytest.raises(ValueError, match=r"^site 'z': scaled by 0.5 and site 'z' by 1 \(poutine.scale\)"):
        make(name, num_particles=2).terms(problem.model, half, problem.y)


def test_a_subsampled_inner_plate_is_fine_in_a_sum():
    y = Conjugate(4).y
    objective = make("elbo", num_particles=4000)
    found = objective.terms(subsampled_points, guide_of_four, y).bound
    loc, scale = 0.5 * y.mean(-1), torch.tensor(0.8).double()
    fit = -0.5 * ((y[:, 0] - loc).square() + scale**2) / NOISE**2 - 0.5 * math.log(2 * math.pi * NOISE**2)
    prior, q = torch.distributions.Normal(0 * loc, 1.0), torch.distributions.Normal(loc, scale)
    torch.testing.assert_close(found, 2 * fit - torch.distributions.kl_divergence(q, prior), rtol=0, atol=0.1)


def test_masked_tasks_and_points_add_nothing():
    model = BayesianNetwork([1, 8, 1]).double()
    guide = AmortisedMeanFieldGuide(model, 8).double()
    batch = tasks.gp("rbf", 3).batch(0).to(dtype=torch.float64)
    full = batch.full
    for name in WEIGHTED:
        objective = make(name, num_particles=3)
        torch.manual_seed(0)
        plain = objective.terms(model, guide, full)
        torch.manual_seed(0)
        nowhere = torch.zeros(3, 5, 1).double()
        absent = Dataset(nowhere, nowhere, torch.zeros(3, 5, dtype=torch.bool))
        padded = objective.terms(model, guide, full | absent)
        torch.testing.assert_close(plain.bound, padded.bound, rtol=1e-8, atol=1e-8)
        assert plain.points.tolist() == padded.points.tolist()


@pytest.mark.parametrize("name", ["elbo", "iwae", "rws"])
def test_points_under_a_mask_are_not_counted(name):
    y = torch.randn(4, 3).double()
    mask = torch.tensor([[True], [False], [True]])

    def model(y, kept=True):
        with pyro.plate("tasks", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            with pyro.plate("points", y.shape[1], dim=-2), pyro.poutine.mask(mask=kept):
                pyro.sample("y", dist.Normal(z, 1.0), obs=y.T)

    def guide(y, kept=True):
        with pyro.plate("tasks", 4, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))

    torch.manual_seed(0)
    masked = make(name, num_particles=3, normalize=True).terms(model, guide, y, kept=mask)
    torch.manual_seed(0)
    fewer = make(name, num_particles=3, normalize=True).terms(model, guide, y[:, [0, 2]])
    assert masked.points.tolist() == fewer.points.tolist() == [2.0] * 4
    torch.testing.assert_close(masked.bound, fewer.bound)


# -- Pyro's own guides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal, AutoDelta])
@pytest.mark.parametrize("name", ["elbo", "elbo-stl", "iwae", "dreg", "rws", "chi2"])
def test_autoguides_have_their_entropy_counted(auto, name):
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0).double(), 1.0))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("points", len(y)):
            pyro.sample("y", dist.Normal(loc, rate), obs=y)

    y = torch.tensor([0.3, -0.4, 1.1]).double()
    guide = auto(model) if auto is AutoDelta else auto(model, init_scale=0.6)
    guide(y)
    short, _, estimator = name.partition("-")
    objective = make(short, num_particles=3000, **({"estimator": estimator} if estimator else {}))
    found = objective.terms(model, guide, y)
    if short == "elbo" or auto is AutoDelta:
        theirs = -Trace_ELBO(num_particles=3000, vectorize_particles=True).loss(model, guide, y)
        assert abs(found.bound.sum().item() - theirs) < 0.2
    else:  # importance sampling with a Gaussian proposal: the evidence, by quadrature
        grid = torch.linspace(-6, 6, 601).double()
        rates = torch.linspace(0.01, 15, 1500).double()[:, None]
        log_joint = torch.distributions.Gamma(2.0, 1.0).log_prob(rates) + torch.distributions.Normal(0.0, 1.0).log_prob(
            grid
        )
        log_joint = log_joint + torch.distributions.Normal(grid, rates).log_prob(y[:, None, None]).sum(0)
        evidence = log_joint.flatten().logsumexp(0) + math.log(0.02 * 14.99 / 1499)
        assert abs(found.bound.item() - evidence.item()) < 0.1
    found.bound.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in guide.parameters())


# -- no host read ------------------------------------------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Counts reads of a tensor's value by the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default or function is torch.ops.aten.is_nonzero.default:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("kind", ["mean-field", "dropout", "np"])
def test_no_objective_reads_a_tensor_on_the_host(name, kind):
    if kind == "np":
        path = 0 if name == "npe" else 4  # a deterministic path cannot be simulated
        model = NeuralProcess(1, 1, latent_dim=4, representation_dim=path, width=8)
        guide = NeuralProcessGuide(model, 8)
    else:
        model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
        guide = (AmortisedMeanFieldGuide if kind == "mean-field" else BernoulliExpertGuide)(model, 8)
    batch = tasks.gp("rbf", 2).batch(0)
    objective = make(name, num_particles=3)
    reads = HostReads()
    with pyro.validation_enabled(False):
        objective.terms(model, guide, batch)  # Pyro reads plates' indices once
        with reads:
            terms = objective.terms(model, guide, batch, diagnostics=True)
            loss = objective.reduce(terms)
            loss.backward()
    assert reads.found == []
    assert torch.isfinite(loss)
