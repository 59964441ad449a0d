"""The expected gradient of every objective against the exact one, on many conjugate tasks at once.

Draws are set to all patterns of K Gauss-Hermite nodes, each with its probability, so that an expectation is a finite
sum and both sides agree to rounding. Every test asks for a gradient far larger than its tolerance, and each is shown to
fail for estimators that are broken on purpose.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal

from inference.objectives import importance_weights, kl_objective, make, renyi
from inference.objectives.chi2 import Chi2
from pp_models.contract import GuideOffers
from tests.identities.conjugate_gaussian import TWINS, Conjugate, Noise, gauss_hermite

K = 2
TOLERANCE = 1e-9


def log_mean_exp(values):
    return torch.logsumexp(values, 0) - math.log(values.shape[0])


def expected(problem, objective, nodes=20):
    """The expectation of the objective's gradient over all particles, and that of its bound ``[T]``."""
    noise, probability = gauss_hermite(objective.num_particles, nodes)
    y = problem.y.expand(len(probability), *problem.y.shape)
    with Noise(z=noise):
        terms = objective.terms(problem.model, problem.guide, y)
    return problem.gradient((probability * terms.bound).sum()), (probability * terms.bound).sum(0).detach()


def expectations(problem, nodes=20):
    """Probabilities, log-weights ``[K, P, T]`` and log q at values without gradient, by hand."""
    noise, probability = gauss_hermite(K, nodes)
    q = problem.q(problem.y)
    z = q.loc + q.scale * noise
    fixed = z.detach()
    return probability, problem.log_joint(z, problem.y) - q.log_prob(z), fixed, q


def renyi_value(problem, alpha):
    probability, log_w, _, _ = expectations(problem)
    return (probability * log_mean_exp((1 - alpha) * log_w) / (1 - alpha)).sum()


def wake(problem, power, guide_weight):
    """Minus the loss whose gradient wake-θ and a self-normalised score for the guide make."""
    probability, _, z, q = expectations(problem)
    log_p, log_q = problem.log_joint(z, problem.y), q.log_prob(z)
    log_w = (log_p - log_q).detach()
    normalised, powered = torch.softmax(log_w, 0), torch.softmax(power * log_w, 0)
    return (probability * (normalised * log_p + guide_weight * powered * log_q)).sum()


def cubo_gradient(problem, order):
    """Descends CUBO in the guide's parameters and ascends the importance-weighted evidence in the model's."""
    upper = problem.gradient(renyi_value(problem, 1 - order))
    lower = problem.gradient(wake(problem, 1.0, 0.0))
    return torch.cat([-lower[:2], upper[2:]])


EXACT = {
    "elbo": ({}, lambda p: p.gradient(p.elbo().sum())),
    "elbo-score": ({"estimator": "score"}, lambda p: p.gradient(p.elbo().sum())),
    "elbo-stl": ({"estimator": "stl"}, lambda p: p.gradient(p.elbo().sum())),
    "iwae": ({}, lambda p: p.gradient(renyi_value(p, 0.0))),
    "dreg": ({}, lambda p: p.gradient(renyi_value(p, 0.0))),
    "renyi": ({"alpha": 0.3}, lambda p: p.gradient(renyi_value(p, 0.3))),
    "renyi-doubly": ({"alpha": 0.3, "doubly_reparameterized": True}, lambda p: p.gradient(renyi_value(p, 0.3))),
    "renyi-elbo": ({"alpha": 1.0}, lambda p: p.gradient(p.elbo().sum())),
    "rws": ({}, lambda p: p.gradient(wake(p, 1.0, 1.0))),
    "rws-theta": ({"wake_phi": 0.0}, lambda p: p.gradient(wake(p, 1.0, 0.0))),
    "chi2": ({}, lambda p: p.gradient(wake(p, 2.0, 1.0))),
    "chi2-cubo": ({"bound": "cubo"}, lambda p: cubo_gradient(p, 2.0)),
    "chi2-cubo3": ({"bound": "cubo", "order": 3.0}, lambda p: cubo_gradient(p, 3.0)),
}
#: those that need a reparameterised draw
REPARAMETERISED_ONLY = {"dreg", "renyi-doubly"}


#: powers of the weights are steep: the score form is exact only as far as the nodes reach
STEEP = {"chi2-cubo": 1e-7, "chi2-cubo3": 1e-5}


def tolerance(name, twin):
    return STEEP.get(name, TOLERANCE) if twin != "reparameterised" else TOLERANCE


def cell(name, **more):
    options, exact = EXACT[name]
    return make(name.split("-")[0], **{"num_particles": K, **options, **more}), exact


@pytest.mark.parametrize("tasks", [1, 16, 256])
@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("name", EXACT)
def test_the_expected_gradient_is_the_exact_one(name, twin, tasks):
    problem = Conjugate(tasks, TWINS[twin])
    objective, exact = cell(name)
    if twin != "reparameterised" and name in REPARAMETERISED_ONLY:
        with pytest.raises(ValueError, match=r"^site 'z': NonreparameterizedNormal cannot be reparameterised"):
            expected(problem, objective)
        return
    wanted = exact(problem)
    assert wanted.abs().max() > 0.1  # a gradient of zero is far outside the tolerance
    found, _ = expected(problem, objective)
    torch.testing.assert_close(found, wanted, rtol=tolerance(name, twin), atol=tolerance(name, twin))


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("name", EXACT)
def test_quarters_of_a_subsampled_plate_average_to_the_whole(name, twin):
    if twin != "reparameterised" and name in REPARAMETERISED_ONLY:
        return
    problem = Conjugate(16, TWINS[twin])
    objective, exact = cell(name)
    noise, probability = gauss_hermite(K, 20)
    found = torch.zeros(5).double()
    values = []
    for quarter in torch.arange(16).split(4):
        y = problem.y[quarter].expand(len(probability), 4, -1)
        with Noise(z=noise):
            terms = objective.terms(problem.model, problem.guide, y, subset=quarter)
        assert terms.scale == 4.0 and terms.bound.shape == (len(probability), 4)
        found += problem.gradient(terms.scale * (probability * terms.bound).sum()) / 4
        values.append((probability * terms.bound).sum(0).detach())
    torch.testing.assert_close(found, exact(problem), rtol=tolerance(name, twin), atol=tolerance(name, twin))
    _, whole = expected(problem, objective)  # the bound of a task does not depend on who else is in the subsample
    torch.testing.assert_close(torch.cat(values), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["iwae", "dreg", "renyi", "rws", "chi2", "chi2-cubo", "elbo-score", "elbo-stl"])
@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_a_scale_on_every_site_multiplies_the_bound(name, scale):
    problem = Conjugate(4)
    noise, probability = gauss_hermite(K, 20)
    y = problem.y.expand(len(probability), 4, -1)
    model, guide = pyro.poutine.scale(problem.model, scale), pyro.poutine.scale(problem.guide, scale)
    objective, exact = cell(name)
    with Noise(z=noise):
        terms = objective.terms(model, guide, y)
    found = problem.gradient((probability * terms.bound).sum())
    torch.testing.assert_close(found, scale * exact(problem), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["iwae", "elbo", "elbo-score", "elbo-stl", "dreg", "rws", "chi2", "chi2-cubo"])
def test_particles_one_after_the_other_are_those_of_a_plate(name):
    problem = Conjugate(5)
    noise = torch.randn(3, 5).double()
    gradients = []
    for vectorize in (True, False):
        objective, _ = cell(name, num_particles=3, vectorize_particles=vectorize)
        if vectorize:
            with Noise(z=noise):
                terms = objective.terms(problem.model, problem.guide, problem.y)
        else:
            rows = iter(noise)

            def guide(y, rows=rows):
                with Noise(z=next(rows)):
                    return problem.guide(y)

            terms = objective.terms(problem.model, guide, problem.y)
        gradients.append(torch.cat([problem.gradient(terms.bound.sum()), terms.bound.detach()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


# -- estimators broken on purpose are noticed --------------------------------------------------------------------------


def no_score(signal, log_q, shape):
    return torch.zeros(shape, dtype=log_q.dtype)


def own_particle_in_the_baseline(value):
    return value.mean(0, keepdim=True).expand(value.shape)


def one_weight_for_all(value):
    return value.sum(-1, keepdim=True).expand(value.shape)


BROKEN = {
    "VIMCO without its score term": ("iwae", "not reparameterised", importance_weights, "score_term", no_score),
    "Rényi without its score term": ("renyi", "not reparameterised", importance_weights, "score_term", no_score),
    "ELBO without its score term": ("elbo-score", "reparameterised", kl_objective, "score_term", no_score),
    "a baseline that sees its own particle": (
        "elbo-score", "reparameterised", kl_objective, "leave_one_out", own_particle_in_the_baseline,
    ),
    "DReG without the square": ("dreg", "reparameterised", renyi, "set_factors",
                                lambda draws, factor: fixed_values_factor(draws, torch.ones_like(factor))),
    "DReG with the score of q": ("dreg", "reparameterised", renyi, "fixed_sum", lambda draws: 0 * draws.log_q),
    "wake-φ without the guide's gradient": ("rws", "reparameterised", None, "score_term", no_score),
    "χ² without the guide's gradient": ("chi2", "reparameterised", None, "score_term", no_score),
}  # fmt: skip


def fixed_values_factor(draws, factor):
    for weight in draws.gradient_weights:
        weight.factor = factor


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_estimator_misses_the_exact_gradient(broken, monkeypatch):
    name, twin, module, attribute, replacement = BROKEN[broken]
    problem = Conjugate(16, TWINS[twin])
    objective, exact = cell(name)
    if module is None:
        import inference.objectives as rooms

        module = {"rws": rooms.rws, "chi2": rooms.chi2}[name]
    monkeypatch.setattr(module, attribute, replacement)
    found, _ = expected(problem, objective)
    assert (found - exact(problem)).abs().max() > 1e3 * TOLERANCE * exact(problem).abs().max()


def test_one_weight_for_the_whole_batch_misses_the_exact_gradient():
    """What Pyro's ReweightedWakeSleep does: particles weighed for all tasks together."""
    problem = Conjugate(16)
    pyro_bound = pyro.infer.ReweightedWakeSleep(num_particles=K, vectorize_particles=True)
    noise, probability = gauss_hermite(K, 8)
    wanted = EXACT["rws"][1](problem)
    found = torch.zeros(5).double()

    def announced(program, names):
        def announcing(y):
            for name in names:  # Pyro computes gradients only where it sees a parameter
                pyro.param(name, problem.parameters[name])
            program(y)

        return announcing

    model, guide = announced(problem.model, "ms"), announced(problem.guide, "abc")

    for pattern, p in zip(noise.unbind(1), probability, strict=True):
        for parameter in problem.parameters.values():
            parameter.grad = None
        with Noise(z=pattern):
            pyro_bound.loss_and_grads(model, guide, problem.y)
        found -= p * torch.stack([v.grad for v in problem.parameters.values()])
    ours, _ = expected(problem, make("rws", num_particles=K), nodes=8)
    assert (ours - wanted).abs().max() < 1e-4
    assert (found - wanted).abs().max() > 0.1


# -- guides of dependent sites -----------------------------------------------------------------------------------------


class Chain:
    """z1 ~ N(m, 1), z2 ~ N(sin z1, 1), y_n ~ N(z1 z2 / 2, 1) in each of T tasks; the guide's z2 depends on its z1."""

    def __init__(self, first=dist.Normal, second=dist.Normal):
        self.y = torch.tensor([[0.4], [-0.7]]).double()
        self.families = first, second
        names = {"m": 0.2, "a": 0.3, "b": 0.4, "c": 0.25, "d": -0.3}
        self.parameters = {name: torch.tensor(value).double().requires_grad_() for name, value in names.items()}

    gradient = Conjugate.gradient

    def plates(self, y):
        tasks = pyro.plate("tasks", 2, dim=-1)
        return [tasks, pyro.plate("patterns", y.shape[0], dim=-2)] if y.dim() == 3 else [tasks]

    def model(self, y):
        def body():
            z1 = pyro.sample("z1", dist.Normal(self.parameters["m"], 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1.sin(), 1.0))
            pyro.sample("y", dist.Normal((0.5 * z1 * z2).unsqueeze(-1), 1.0).to_event(1), obs=y)

        Conjugate._within(self.plates(y), body)

    def guide_distributions(self, y, z1=None):
        p = self.parameters
        first = self.families[0](p["a"] * y[..., 0] + 0.1, (p["d"]).exp())
        second = None if z1 is None else self.families[1](p["b"] * z1 + p["c"] * y[..., 0], (p["d"] * z1.cos()).exp())
        return first, second

    def guide(self, y):
        def body():
            z1 = pyro.sample("z1", self.guide_distributions(y)[0])
            pyro.sample("z2", self.guide_distributions(y, z1)[1])

        Conjugate._within(self.plates(y), body)

    def value(self, noise1, noise2, alpha):
        """The Rényi bound of each pattern and task by hand."""
        first, _ = self.guide_distributions(self.y)
        z1 = first.loc + first.scale * noise1
        _, second = self.guide_distributions(self.y, z1)
        z2 = second.loc + second.scale * noise2
        normal = torch.distributions.Normal
        log_p = normal(self.parameters["m"], 1.0).log_prob(z1) + normal(z1.sin(), 1.0).log_prob(z2)
        log_p = log_p + normal(0.5 * z1 * z2, 1.0).log_prob(self.y[..., 0])
        log_w = log_p - first.log_prob(z1) - second.log_prob(z2)
        return log_w.mean(0) if alpha == 1 else log_mean_exp((1 - alpha) * log_w) / (1 - alpha)


@pytest.mark.parametrize(
    ("name", "options", "alpha"),
    [
        ("elbo", {}, 1.0),
        ("elbo", {"estimator": "stl"}, 1.0),
        ("elbo", {"estimator": "score"}, 1.0),
        ("iwae", {}, 0.0),
        ("dreg", {}, 0.0),
        ("renyi", {"alpha": 0.5, "doubly_reparameterized": True}, 0.5),
    ],
)
@pytest.mark.parametrize("k", [1, 2])
def test_gradients_through_a_guide_of_dependent_sites(name, options, alpha, k):
    chain = Chain()
    noise, probability = gauss_hermite(2 * k, 16 if k == 2 else 30)
    first, second = noise[:k], noise[k:]
    wanted = chain.gradient((probability * chain.value(first, second, alpha)).sum())
    with Noise(z1=first, z2=second):
        terms = make(name, num_particles=k, **options).terms(
            chain.model, chain.guide, chain.y.expand(len(probability), 2, 1)
        )
    found = chain.gradient((probability * terms.bound).sum())
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_doubly_reparameterised_gradients_need_the_guides_own_conditionals():
    """Taking each site's parameters as constants, as for independent sites, is wrong for a chain."""
    chain = Chain()
    noise, probability = gauss_hermite(4, 16)
    wanted = chain.gradient((probability * chain.value(noise[:2], noise[2:], 0.0)).sum())

    class Mistaken(GuideOffers):
        independent_sites = True

        def __call__(self, *args):
            return chain.guide(*args)

    with Noise(z1=noise[:2], z2=noise[2:]):
        terms = make("dreg", num_particles=2).terms(chain.model, Mistaken(), chain.y.expand(len(probability), 2, 1))
    found = chain.gradient((probability * terms.bound).sum())
    assert (found - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["elbo", "iwae", "renyi"])
@pytest.mark.parametrize("which", ["first", "second", "both"])
def test_sites_with_and_without_reparameterisation_in_one_guide(name, which):
    fake = NonreparameterizedNormal
    chain = Chain(fake if which != "second" else dist.Normal, fake if which != "first" else dist.Normal)
    noise, probability = gauss_hermite(4, 16)
    alpha = {"elbo": 1.0, "iwae": 0.0, "renyi": 0.5}[name]
    wanted = chain.gradient((probability * chain.value(noise[:2], noise[2:], alpha)).sum())
    with Noise(z1=noise[:2], z2=noise[2:]):
        terms = make(name, num_particles=2).terms(chain.model, chain.guide, chain.y.expand(len(probability), 2, 1))
    found = chain.gradient((probability * terms.bound).sum())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_cubo_orders_are_checked():
    with pytest.raises(ValueError, match=r"^order: got 1; it must be finite and above 1$"):
        Chi2(order=1)
