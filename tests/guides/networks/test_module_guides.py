"""Guides over the weights of any module: exact where the posterior is known, alike under every objective."""

import copy
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.func import functional_call

import guidebook as gb
from inference.objectives import REGISTRY, make
from inference.posterior_draws import posterior_log_weights
from pp_models import BayesianModule, DataError, Dataset

GUIDES = {
    "point": gb.guides.ModulePointGuide,
    "mean field": gb.guides.ModuleMeanFieldGuide,
    "low rank": gb.guides.ModuleLowRankGuide,
    "dropout": gb.guides.ModuleDropoutGuide,
    "laplace": gb.guides.ModuleLaplaceGuide,
}
OBJECTIVES = [name for name in REGISTRY if name not in ("npvi", "conditional-prior", "iw-em", "npe")]


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))


def data(ragged=False):
    x = torch.randn(12, 2)
    y = torch.stack([x.sum(-1), x.prod(-1)], -1)
    mask = torch.arange(12) < 9 if ragged else None
    if ragged:
        x, y = x.clone(), y.clone()
        x[9:], y[9:] = float("nan"), float("nan")
        x, y = x.nan_to_num(0.0), y.nan_to_num(0.0)
    return Dataset(x, y, mask)


def linear_model(outputs=2, targets="last", body=None, bias=True):
    body = nn.Identity() if body is None else body
    module = nn.Sequential(body, nn.Linear(2, outputs, bias=bias)).double()
    return BayesianModule(module, targets, likelihood="gaussian", noise_scale=0.3, prior="normal", prior_scale=0.7)


def exact(model, seen):
    """Means ``[K, k]`` and covariance ``[k, k]`` of Bayesian linear regression in float64."""
    x, y = seen.x, seen.y
    if seen.mask is not None:
        x, y = x[seen.mask], y[seen.mask]
    phi = torch.cat([model.module[0](x), torch.ones(len(x), 1)], -1).double()
    precision = torch.eye(3).double() / 0.7**2 + phi.mT @ phi / 0.3**2
    covariance = torch.linalg.inv(precision)
    return (covariance @ phi.mT @ y.double() / 0.3**2).mT, covariance


@pytest.mark.parametrize("ragged", [False, True])
def test_a_last_layer_has_the_posterior_of_linear_regression(ragged):
    model, seen = linear_model(), data(ragged)
    seen = Dataset(seen.x.double(), seen.y.double(), seen.mask)
    guide = gb.guides.LastLayerGuide(model).fit(seen)
    mean, covariance = exact(model, seen)
    rows = torch.cat([guide.loc[0], guide.loc[1].unsqueeze(-1)], -1)
    assert torch.allclose(rows, mean, atol=1e-10)
    assert torch.allclose(guide.tril @ guide.tril.mT, covariance.expand(2, 3, 3), atol=1e-10)
    weights = posterior_log_weights(model, guide, seen, num_samples=50)  # the same for every draw: the evidence
    assert float(weights.std()) < 1e-9


@pytest.mark.parametrize("ragged", [False, True])
def test_laplace_of_a_linear_map_is_its_posterior(ragged):
    model, seen = linear_model(), data(ragged)
    seen = Dataset(seen.x.double(), seen.y.double(), seen.mask)
    mean, covariance = exact(model, seen)
    guide = gb.guides.ModuleLaplaceGuide(model, structure="full")
    with torch.no_grad():
        guide.loc[0].copy_(mean[:, :2])
        guide.loc[1].copy_(mean[:, 2])
    guide.fit_curvature(seen)
    weights = posterior_log_weights(model, guide, seen, num_samples=50)
    assert float(weights.std()) < 1e-9
    diagonal = gb.guides.ModuleLaplaceGuide(model)
    diagonal.fit_curvature(seen)
    precision = torch.linalg.inv(covariance).diagonal()
    assert torch.allclose(diagonal.distribution().base_dist.scale[:2] ** -2, precision[:2], rtol=1e-9)
    again = gb.guides.ModuleLaplaceGuide(model, structure="full")
    again.load_state_dict(guide.state_dict())
    assert again.is_fitted and torch.allclose(
        again.distribution().covariance_matrix, guide.distribution().covariance_matrix
    )


def test_the_expansion_of_a_deep_module_is_its_jacobian():
    model = BayesianModule(network().double(), likelihood="gaussian")
    guide = gb.guides.ModuleLaplaceGuide(model)
    expanded, x = guide.linearised(), torch.randn(4, 2).double()
    here = {site: loc.detach() for site, loc in zip(guide.sites, guide.loc, strict=True)}
    step = {site: 0.3 * torch.randn_like(value) for site, value in here.items()}
    there = {site: here[site] + step[site] for site in here}
    small = {site: here[site] + 1e-6 * step[site] for site in here}
    slope = (model.outputs(x, small) - model.outputs(x, here)) / 1e-6
    assert torch.allclose(expanded.outputs(x, there), model.outputs(x, here) + slope, atol=1e-4)
    many = {site: torch.stack([value, here[site]]) for site, value in there.items()}
    assert torch.allclose(expanded.outputs(x, many)[1], model.outputs(x, here))


@pytest.mark.parametrize("seed", range(3))
def test_a_low_rank_gaussian_reaches_the_evidence(seed):
    torch.manual_seed(seed)
    model = linear_model(outputs=1)
    seen = data()
    seen = Dataset(seen.x.double(), seen.y[:, :1].double())
    covariance = exact(model, seen)[1]
    evidence = float(posterior_log_weights(model, gb.guides.LastLayerGuide(model).fit(seen), seen, num_samples=2)[0])
    precision = torch.linalg.inv(covariance)
    best_without_correlations = 0.5 * float(precision.diagonal().log().sum() - precision.logdet())
    guide = gb.guides.ModuleLowRankGuide(model, rank=3)
    objective = make("elbo", num_particles=8, vectorize_particles=True)
    assert evidence + make("elbo", num_particles=500).loss(model, guide, seen) > 10.0
    gb.fit(
        model, guide, itertools.repeat(seen), objective, steps=500, optimizer=adam, schedule="cosine", seed=seed,
        progress=False,
    )  # fmt: skip
    weights = posterior_log_weights(model, guide, seen, num_samples=2000)
    assert evidence - float(weights.mean()) < 0.7 * best_without_correlations


def test_simulations_cannot_train_a_posterior_of_one_data_set():
    model = linear_model()
    with pytest.raises(ValueError, match=r"^objective: 'npe' shows the guide data of the model's own, and ModuleMean"):
        make("npe").terms(model, gb.guides.ModuleMeanFieldGuide(model), data())


def adam(parameters):
    return torch.optim.Adam(parameters, 2e-2)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_under_every_objective(name, objective, ragged):
    model = BayesianModule(network(), likelihood="gaussian", targets=["2"])
    guide = GUIDES[name](model)
    if name in ("point", "laplace") and make(objective).weighs_particles:
        return  # a point has no density to weigh by
    seen = data(ragged)
    # a module's weights are one draw of all tasks, and a penalty on their distribution needs several
    options = {"num_particles": 4} if objective == "info-vae" else {}
    loss = make(objective, **options).differentiable_loss(model, guide, seen)
    loss.backward()
    found = [p.grad for p in [*model.parameters(), *guide.parameters()] if p.requires_grad]
    assert torch.isfinite(loss) and all(g is not None and torch.isfinite(g).all() for g in found)
    assert any(float(g.abs().max()) > 0 for g in found)


def test_draws_at_once_are_draws_one_by_one():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    seen = Dataset(torch.randn(2, 5, 16), torch.randint(0, 2, (2, 5)))
    made = [
        BayesianModule(copy.deepcopy(conv), input_shape=(1, 4, 4), vectorize=vectorize) for vectorize in (True, False)
    ]
    found = []
    for model in made:
        guide = gb.guides.ModuleMeanFieldGuide(model, init_scale=0.3)
        pyro.set_rng_seed(3)
        found.append(gb.predict(model, guide, seen, seen.x, num_samples=6).mean)
    assert torch.allclose(found[0], found[1], atol=1e-6)
    guide = gb.guides.ModulePointGuide(made[0])
    plain = gb.predict(made[0], guide, seen, seen.x, num_samples=1).mean
    assert torch.allclose(plain, conv(seen.x.reshape(-1, 1, 4, 4)).softmax(-1).reshape(2, 5, 2), atol=1e-6)


def test_the_joint_density_is_the_priors_and_the_likelihoods():
    module, seen = network().double(), data()
    seen = Dataset(seen.x.double(), seen.y.double())
    model = BayesianModule(module, ["0"], likelihood="gaussian", noise_scale=0.2)
    trace = poutine.trace(model).get_trace(seen)
    drawn = {site: trace.nodes[site]["value"] for site in model.sites}
    outputs = functional_call(module, drawn, (seen.x,))
    expected = dist.Normal(outputs, 0.2).log_prob(seen.y).sum()
    expected = expected + dist.Normal(0.0, 2**-0.5).log_prob(drawn["0.weight"]).sum()
    expected = expected + dist.Normal(0.0, 1.0).log_prob(drawn["0.bias"]).sum()
    assert torch.allclose(trace.log_prob_sum(), expected)
    assert model.sites == ["0.weight", "0.bias"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["module.2.weight", "module.2.bias"]
    frozen = BayesianModule(network(), ["0"], freeze=True)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_running_statistics_and_shared_weights():
    torch.manual_seed(0)
    tied = nn.Linear(4, 4)
    module = nn.Sequential(tied, nn.BatchNorm1d(4), nn.Tanh(), tied, nn.Linear(4, 2))
    model = BayesianModule(module)
    assert [site for site in model.sites if site.startswith("3.")] == []
    guide = gb.guides.ModuleMeanFieldGuide(model)
    seen = Dataset(torch.randn(10, 4), torch.randint(0, 2, (10,)))
    before = module[1].running_mean.clone()
    make("elbo", num_particles=3, vectorize_particles=True).differentiable_loss(model, guide, seen).backward()
    assert not torch.equal(before, module[1].running_mean)
    model.eval()
    held = module[1].running_mean.clone()
    assert torch.isfinite(gb.predict(model, guide, seen, seen.x, num_samples=4).mean).all()
    assert torch.equal(held, module[1].running_mean)


def test_swag_of_a_module_starts_from_it_and_stays_near():
    module = network()
    model = BayesianModule(module, likelihood="gaussian", noise_scale=0.3)
    found = gb.swag(model, data(), steps=60, warmup=200, every=3, rank=5, batch_size=4)
    assert found.distribution().event_shape == (sum(v.numel() for v in model.values().values()),)
    samples = gb.sample_posterior(model, found, data(), 20)
    assert {site: tuple(value.shape[1:]) for site, value in samples.items()} == {
        site: tuple(value.shape) for site, value in model.values().items()
    }


def test_a_verdict_of_one_data_set_and_its_posterior_in_arviz():
    model, seen = linear_model(), data()
    seen = Dataset(seen.x.double(), seen.y.double())
    guide = gb.guides.LastLayerGuide(model).fit(seen)
    found = gb.verdict(model, guide, seen, nuts_seconds=0.0)
    assert found.level == "trust"
    with torch.no_grad():
        guide.tril.mul_(0.2)
    assert gb.verdict(model, guide, seen, nuts_seconds=0.0).level == "do not trust"
    posterior = gb.to_arviz(model, guide, seen, num_samples=20)["posterior"]
    assert posterior["1.weight"].shape[:2] == (1, 20)


def wrong(module=None, **options):
    return lambda: BayesianModule(network() if module is None else module, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (wrong(targets=["9"]), "targets: no layer of Sequential that owns parameters is named '9'; it has '0', '2'"),
        (wrong(targets="none"), "targets: no layer of Sequential that owns parameters is named 'none'"),
        (wrong(nn.Tanh()), "targets: no layer of Tanh that owns parameters is named 'all'; it has none"),
        (wrong(prior="laplace"), "prior: got 'laplace'; it must be 'fan-in', 'normal', 'initial' or a"),
        (
            wrong(prior=lambda s, p: dist.Normal(0.0, 1.0)),
            "prior: it gave Normal of event shape [] for '0.weight'; it must be a distribution with event shape [5, 2]",
        ),
        (lambda: gb.guides.ModulePointGuide(network()), "model: got Sequential; ModulePointGuide is a guide for a"),
        (
            lambda: gb.guides.LastLayerGuide(BayesianModule(network(), likelihood="gaussian")),
            "model: got sites 0.weight, 0.bias, 2.weight, 2.bias; they must be those of one Linear layer",
        ),
        (
            lambda: gb.guides.LastLayerGuide(BayesianModule(network(), "last")),
            "model: its likelihood is CategoricalLikelihood; a closed form needs GaussianLikelihood",
        ),
        (
            lambda: gb.guides.ModuleLaplaceGuide(BayesianModule(nn.Linear(100, 100)), "full"),
            "structure: got 'full' for 10,100 weights; it takes at most 8,192",
        ),
        (
            lambda: gb.guides.ModuleLaplaceGuide(
                BayesianModule(nn.Linear(1, 1), prior=lambda s, p: dist.Laplace(0.0, 1.0).expand(p.shape).to_event())
            ),
            "model: the prior of 'weight' is Laplace; ModuleLaplaceGuide needs a normal one",
        ),
        (
            lambda: gb.fit(*pair(), itertools.repeat(data()), "conditional-prior", steps=1, progress=False),
            "objective: 'conditional-prior' ties the guide",
        ),
    ],
)
def test_what_cannot_be_is_one_line(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value), caught.value


def pair():
    model = BayesianModule(network(), likelihood="gaussian")
    return model, gb.guides.ModuleMeanFieldGuide(model)


def test_inputs_and_outputs_of_other_shapes_are_one_line():
    model = BayesianModule(nn.Sequential(nn.Conv1d(1, 2, 1)), input_shape=(1, 4))
    with pytest.raises(DataError, match=r"^x: got width 3; input_shape \(1, 4\) has 4 numbers$"):
        model.outputs(torch.randn(5, 3))
    with pytest.raises(DataError, match=r"^module: it gave \[5, 2, 4\] for 5 rows; it must give \[rows, K\]"):
        model.outputs(torch.randn(5, 4))
    last = BayesianModule(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "last", likelihood="gaussian")
    with pytest.raises(ValueError, match=r"^model: '0' does not give the module's outputs; it must be the last layer$"):
        gb.guides.LastLayerGuide(last).fit(data())
