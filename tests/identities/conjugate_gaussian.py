"""A conjugate Gaussian model of many tasks as plain Pyro functions, and exact expectations over its particles."""

import math
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.poutine.messenger import Messenger

NOISE = 1.0
POINTS = 2


class Conjugate:
    """z_t ~ N(m, s²), y_tn ~ N(z_t, NOISE²); guide N(a ȳ_t + b, exp(c)²) shared by all tasks.

    Model and guide are called with outputs ``[T, N]``, or ``[P, T, N]`` with patterns as one more task plate. With
    ``subset``, the task plate of size T holds those tasks only, scaled.
    """

    def __init__(self, tasks, normal=dist.Normal, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.randn(tasks, POINTS, generator=generator, dtype=torch.float64) * 0.5
        self.y = self.y + torch.randn(tasks, 1, generator=generator, dtype=torch.float64)
        self.normal = normal
        self.parameters = {
            "m": torch.tensor(0.3).double().requires_grad_(),
            "s": torch.tensor(0.1).double().requires_grad_(),  # log prior scale
            "a": torch.tensor(0.6).double().requires_grad_(),
            "b": torch.tensor(0.2).double().requires_grad_(),
            "c": torch.tensor(-0.5).double().requires_grad_(),
        }

    def plates(self, y, subset):
        plates = [pyro.plate("tasks", len(self.y), dim=-1, subsample=subset)]
        return [*plates, pyro.plate("patterns", y.shape[0], dim=-2)] if y.dim() == 3 else plates

    def model(self, y, subset=None):
        return self._within(self.plates(y, subset), lambda: self._model(y, self.parameters))

    def _model(self, y, p):
        z = pyro.sample("z", self.normal(p["m"], p["s"].exp()))
        pyro.sample("y", dist.Normal(z.unsqueeze(-1), NOISE).expand(z.shape + (POINTS,)).to_event(1), obs=y)

    def guide(self, y, subset=None):
        p = self.parameters
        return self._within(
            self.plates(y, subset),
            lambda: pyro.sample("z", self.normal(p["a"] * y.mean(-1) + p["b"], p["c"].exp())),
        )

    @staticmethod
    def _within(plates, body):
        if len(plates) == 1:
            with plates[0]:
                return body()
        with plates[0], plates[1]:
            return body()

    # -- by hand ---------------------------------------------------------------------------------------------------

    def q(self, y):
        p = self.parameters
        return torch.distributions.Normal(p["a"] * y.mean(-1) + p["b"], p["c"].exp())

    def log_joint(self, z, y):
        p = self.parameters
        prior = torch.distributions.Normal(p["m"], p["s"].exp()).log_prob(z)
        return prior + torch.distributions.Normal(z.unsqueeze(-1), NOISE).log_prob(y).sum(-1)

    def log_evidence(self):
        """log N(y_t; m 1, s² 1 1' + NOISE² I) of each task ``[T]``."""
        p = self.parameters
        cov = (2 * p["s"]).exp() * torch.ones(POINTS, POINTS).double() + NOISE**2 * torch.eye(POINTS).double()
        return torch.distributions.MultivariateNormal(p["m"].expand(POINTS), cov).log_prob(self.y)

    def posterior(self):
        """Mean ``[T]`` and scale of the exact posterior."""
        p = self.parameters
        precision = (-2 * p["s"]).exp() + POINTS / NOISE**2
        return (p["m"] * (-2 * p["s"]).exp() + self.y.sum(-1) / NOISE**2) / precision, precision.rsqrt()

    def elbo(self):
        """The ELBO of each task in closed form ``[T]``."""
        p = self.parameters
        loc, scale = p["a"] * self.y.mean(-1) + p["b"], p["c"].exp()
        fit = -0.5 * ((self.y - loc[:, None]).square().sum(-1) + POINTS * scale.square()) / NOISE**2
        fit = fit - 0.5 * POINTS * math.log(2 * math.pi * NOISE**2)
        ratio = scale.square() / (2 * p["s"]).exp()
        kl = 0.5 * (ratio + (loc - p["m"]).square() / (2 * p["s"]).exp() - 1 - ratio.log())
        return fit - kl

    def gradient(self, value):
        """Gradient of a scalar with respect to m, s, a, b, c, as one vector."""
        found = torch.autograd.grad(value, list(self.parameters.values()), allow_unused=True, retain_graph=True)
        return torch.stack([torch.zeros(()).double() if g is None else g for g in found])


class Noise(Messenger):
    """Sets the guide's draws to loc + scale * noise; without gradient where the site cannot be reparameterised."""

    def __init__(self, **noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        if msg["done"] or msg["is_observed"] or msg["name"] not in self.noise:
            return
        fn = msg["fn"]
        value = fn.loc + fn.scale * self.noise[msg["name"]]
        msg["value"] = value if fn.has_rsample else value.detach()
        msg["done"] = True


def gauss_hermite(particles, nodes):
    """Standard-normal nodes ``[K, P, 1]`` of all particle patterns and their probabilities ``[P, 1]``."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    patterns = torch.tensor(list(product(points, repeat=particles)), dtype=torch.float64)
    probabilities = torch.tensor([math.prod(w) for w in product(weights, repeat=particles)], dtype=torch.float64)
    return patterns.T.unsqueeze(-1), probabilities.unsqueeze(-1)


TWINS = {"reparameterised": dist.Normal, "not reparameterised": NonreparameterizedNormal}
