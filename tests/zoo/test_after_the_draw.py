"""Guides whose parameters act after their draws: wake-sleep and χ² take log q at fixed latents, exactly."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, autoguide
from pyro.poutine.messenger import Messenger

from inference.objectives import importance_weights, make

X = torch.tensor([1.5, -0.7, 2.0, 0.3]).double()
K = 3


@pytest.fixture(autouse=True)
def in_double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def model():
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()).double(), 1.0))
    with pyro.plate("data", 4):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(theta, 1.0), obs=X)


GUIDES = {
    "AutoStructured": lambda: autoguide.AutoStructured(
        model,
        conditionals={"mu": "normal", "theta": "normal"},
        dependencies={"theta": {"mu": "linear"}},
        init_scale=0.5,
    ),
    "AutoGaussian": lambda: autoguide.AutoGaussian(model, init_scale=0.5),
}


class Noise(Messenger):
    """Sets the auxiliary draws of one particle after another; what is replayed stays as it was."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise  # by site [K, ...]
        self.used = dict.fromkeys(noise, 0)

    def _pyro_sample(self, msg):
        name = msg["name"]
        if name in self.noise and not msg["done"]:
            msg["value"], msg["done"] = self.noise[name][self.used[name]], True
            self.used[name] += 1


def latents(guide, noise):
    """mu and theta at given draws ``[5]``."""
    with Noise({name: value.unsqueeze(0) for name, value in noise.items()}):
        nodes = poutine.trace(guide).get_trace().nodes
    return torch.cat([nodes["mu"]["value"].reshape(1), nodes["theta"]["value"]])


def gaussian(guide, like):
    """The guide's law as a multivariate normal, read off its affine map of the draws."""
    origin = latents(guide, {name: torch.zeros_like(value) for name, value in like.items()})
    columns = []
    for name, value in like.items():
        for i in range(value.numel()):
            unit = {key: torch.zeros_like(other) for key, other in like.items()}
            unit[name] = unit[name].reshape(-1).index_fill(0, torch.tensor([i]), 1.0).reshape(value.shape)
            columns.append(latents(guide, unit) - origin)
    mix = torch.stack(columns, -1)
    nodes = poutine.trace(guide).get_trace().nodes
    laws = [nodes[name]["fn"] for name in like]
    blocks = [
        law.covariance_matrix if hasattr(law, "covariance_matrix") else torch.diag_embed(law.variance.reshape(-1))
        for law in laws
    ]
    return dist.MultivariateNormal(origin, mix @ torch.block_diag(*blocks) @ mix.T)


def wanted_gradient(guide, noise, power):
    """∇ Σ ŵ log q(z) over particles at fixed z, by hand."""
    particles = [{name: value[k] for name, value in noise.items()} for k in range(K)]
    law = gaussian(guide, particles[0])
    z = torch.stack([latents(guide, one).detach() for one in particles])
    log_q = law.log_prob(z)
    log_p = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + dist.Normal(z[:, :1], 1.0).log_prob(z[:, 1:]).sum(-1)
    log_p = log_p + dist.Normal(z[:, 1:], 1.0).log_prob(X).sum(-1)
    weights = torch.softmax(power * (log_p - log_q).detach(), 0)
    parameters = [p for p in guide.parameters() if p.requires_grad]
    return torch.autograd.grad(-(weights * log_q).sum(), parameters, allow_unused=True), parameters


def prepared(name):
    pyro.clear_param_store()
    torch.manual_seed(3)
    guide = GUIDES[name]()
    guide()
    trace = poutine.trace(guide).get_trace()
    drawn = [s["name"] for s in trace.nodes.values() if s["type"] == "sample" and not s["is_observed"]
             and type(s["fn"]).__name__ != "_Subsample" and s["infer"].get("is_auxiliary")]  # fmt: skip
    return guide, {n: torch.randn(K, *trace.nodes[n]["value"].shape).double() for n in drawn}


def largest_error(name, objective):
    guide, noise = prepared(name)
    wanted, parameters = wanted_gradient(guide, noise, 2.0 if objective == "chi2" else 1.0)
    for parameter in parameters:
        parameter.grad = None
    with Noise(noise):
        make(objective, num_particles=K, vectorize_particles=False).loss_and_grads(model, guide)
    pairs = [(p, g) for p, g in zip(parameters, wanted, strict=True) if g is not None]
    assert max(float(g.abs().max()) for _, g in pairs) > 0.1
    return max(float((p.grad - g).abs().max()) for p, g in pairs)


@pytest.mark.parametrize("objective", ["rws", "chi2"])
@pytest.mark.parametrize("name", ["AutoStructured", "AutoGaussian"])
def test_the_score_at_fixed_latents_is_the_gaussians(name, objective):
    assert largest_error(name, objective) < 1e-8


def test_a_score_at_fixed_noise_is_another(monkeypatch):
    monkeypatch.setattr(importance_weights, "moved_after_the_draw", lambda *_: False)
    assert largest_error("AutoStructured", "rws") > 0.05


def test_wake_sleep_finds_the_posteriors_spread():
    """One latent, N(0, 1) prior and one datum: the posterior has an sd of 0.707."""

    def one():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = autoguide.AutoStructured(one, conditionals="normal", init_scale=0.3)
    svi = SVI(one, guide, pyro.optim.Adam({"lr": 0.03}), loss=make("rws", num_particles=32))
    for _ in range(150):
        svi.step()
    with torch.no_grad():
        draws = torch.stack([guide()["z"] for _ in range(2000)])
    assert abs(float(draws.std()) - 0.707) < 0.1
    assert abs(float(draws.mean()) - 0.5) < 0.15
