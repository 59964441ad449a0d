"""Single missing outputs: what is left equals the outputs taken apart, in every likelihood, guide and closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import guides
from guides import (
    BernoulliExpertGuide,
    BNNWeightGuide,
    BootstrapGuide,
    CAVIAGuide,
    ContextPointsGuide,
    DirichletMixtureGuide,
    DistanceInformedGuide,
    LastLayerGuide,
    MAMLGuide,
    ModuleLaplaceGuide,
    NeuralProcessGuide,
)
from guides.networks.conjugate_layer import layer_posterior
from inference import predict
from inference.objectives import make
from pp_models import (
    BayesianAttentionNetwork,
    BayesianModule,
    BayesianNetwork,
    ConvNeuralProcess,
    DataError,
    Dataset,
    DistanceInformedProcess,
    LowRankAdapted,
    MixtureDensityNetwork,
    NeuralProcess,
    TaskBatch,
    TransformerNeuralProcess,
)
from pp_models.context_regression import ContextRegression
from pp_models.kernel_bank import KernelBank
from pp_models.likelihoods import of_observed

DY = 2


def network(cls, likelihood="gaussian-head", model=None, **options):
    def build():
        outputs = DY if likelihood == "gaussian" else 2 * DY
        net = BayesianNetwork([1, 6, outputs], likelihood=likelihood, missing_outputs=True, **(model or {}))
        return net, cls(net, 8, **options)

    return build


def process(cls=NeuralProcessGuide, **options):
    def build():
        model = NeuralProcess(1, DY, width=8, depth=3, missing_outputs=True, num_heads=2, **options)
        return model, cls(model, 8)

    return build


def mixture(experts="context", **options):
    def build():
        model = MixtureDensityNetwork(
            3, 1, DY, experts, width=8, representation_dim=8, num_heads=2, missing_outputs=True, **options
        )
        return model, DirichletMixtureGuide(model, 8)

    return build


def points(cls, *sizes, **options):
    def build():
        model = cls(*sizes, **options)
        return model, ContextPointsGuide(model)

    return build


def distance():
    model = DistanceInformedProcess(1, DY, 4, 4, 8, embedding_depth=2, depth=2, num_heads=2, missing_outputs=True)
    return model, DistanceInformedGuide(model, 8)


def attention():
    model = BayesianAttentionNetwork(1, DY, 8, 1, 2, likelihood="gaussian-head", missing_outputs=True)
    return model, BNNWeightGuide(model, 8, solver="primal")


def adapter():
    backbone = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, DY))
    model = LowRankAdapted(backbone, ["0"], rank=2, likelihood="gaussian", noise_scale=0.3)
    return model, guides.RankwiseGuide(model)


def module():
    model = BayesianModule(nn.Linear(1, DY), "all", likelihood="gaussian", noise_scale=0.3)
    return model, guides.ModuleMeanFieldGuide(model)


#: a pair and the objective of its kind; the third says whether a lattice has two inputs
PAIRS = {
    "nvdp": (network(BernoulliExpertGuide), "conditional-prior", 1),
    "nvdp regression": (network(BernoulliExpertGuide, pooling="regression"), "conditional-prior", 1),
    "mean-field set-transformer": (network(guides.AmortisedMeanFieldGuide, pooling="set-transformer"), "elbo", 1),
    "mean-field bernoulli": (network(guides.AmortisedMeanFieldGuide, "gaussian"), "iwae", 1),
    "student-t": (network(guides.AmortisedMeanFieldGuide, "student-t-head"), "renyi", 1),
    "bnn": (network(BNNWeightGuide, solver="primal"), "pp-avi", 1),
    "bnn dual": (network(BNNWeightGuide, solver="dual"), "pp-avi", 1),
    "bnn real": (network(BNNWeightGuide, "gaussian", solver="primal", final_noise="real"), "pp-avi", 1),
    "bnn transformer": (network(BNNWeightGuide, inference="transformer", solver="primal"), "pp-avi", 1),
    "bnn with a path": (network(BNNWeightGuide, model={"path": "regression"}, solver="primal"), "npml", 1),
    "attention": (attention, "pp-avi", 1),
    "maml": (network(MAMLGuide), "npml", 1),
    "flow": (network(guides.FlowGuide, transforms=1, hidden=[8]), "rws", 1),
    "cnp": (process(latent_dim=0, representation_dim=8), "npml", 1),
    "np": (process(latent_dim=4), "npvi", 1),
    "anp": (process(latent_dim=4, representation_dim=8, attention=True), "npvi", 1),
    "cnp regression": (process(latent_dim=0, representation_dim=8, path="regression"), "npml", 1),
    "cnp learned": (process(latent_dim=0, representation_dim=8, path="learned-regression"), "npml", 1),
    "cnp kernels": (process(latent_dim=0, representation_dim=8, path="kernels"), "npml", 1),
    "bootstrap": (process(BootstrapGuide, latent_dim=0, representation_dim=8), "npml", 1),
    "cavia": (process(CAVIAGuide, latent_dim=0, representation_dim=8), "npml", 1),
    "line": (points(ConvNeuralProcess, 1, DY, 4, levels=2, points_per_unit=8.0), "npml", 1),
    "image": (points(ConvNeuralProcess, 2, DY, 4, image_size=(20, 20), num_blocks=1), "npml", 2),
    "tnp": (points(TransformerNeuralProcess, 1, DY, 8, 2, 2, 8, missing_outputs=True), "npml", 1),
    "distance": (distance, "npml", 1),
    "mixture": (mixture(), "iw-em", 1),
    "mixture strict": (mixture("strict"), "iw-em", 1),
    "mixture conjugate": (mixture("conjugate"), "iw-em", 1),
    "mixture kernels": (mixture("conjugate", features="kernels"), "npvi", 1),
    "adapter": (adapter, "elbo", 1),
    "module": (module, "elbo", 1),
}


def pair_of(name):
    torch.manual_seed(3)
    build, objective, dim_x = PAIRS[name]
    model, guide = build()
    return model.double(), guide.double(), objective, dim_x


def tasks(dim_x, observed, mask=None, seed=0):
    """Three tasks of five points, context and target alike in what is known."""
    gen = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(2):
        x = torch.rand(3, 5, dim_x, generator=gen, dtype=torch.float64) * 2 - 1
        parts.append(Dataset(x, torch.randn(3, 5, DY, generator=gen, dtype=torch.float64), mask, observed))
    return TaskBatch(*parts)


def loss_of(name, batch):
    model, guide, objective, _ = pair_of(name)
    options = {"local_reparameterization": False} if objective == "conditional-prior" else {}
    torch.manual_seed(11)
    loss = make(objective, num_particles=2, **options).differentiable_loss(model, guide, batch)
    loss.backward()
    grads = [p.grad for m in (model, guide) for p in m.parameters() if p.grad is not None]
    return loss.detach(), grads


@pytest.mark.parametrize("name", PAIRS)
def test_all_outputs_known_is_no_mask_and_none_known_is_no_point(name):
    dim_x = PAIRS[name][2]
    everything, here = torch.ones(3, 5, DY, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)
    plain = loss_of(name, tasks(dim_x, None, here))[0]
    if name != "bootstrap":  # which draws its residuals output by output
        torch.testing.assert_close(loss_of(name, tasks(dim_x, everything))[0], plain)
    gone = everything.clone()
    gone[:, 2] = False
    here[:, 2] = False
    if name not in ("bootstrap", "distance"):
        torch.testing.assert_close(loss_of(name, tasks(dim_x, gone))[0], loss_of(name, tasks(dim_x, None, here))[0])


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_finite_and_what_is_missing_is_seen_by_nobody(name):
    dim_x = PAIRS[name][2]
    observed = torch.rand(3, 5, DY, generator=torch.Generator().manual_seed(1)) < 0.6
    observed[0] = False  # a task without any
    observed[0, 0, 1] = observed[1, 0, 0] = True
    batch = tasks(dim_x, observed)
    loss, grads = loss_of(name, batch)
    assert bool(torch.isfinite(loss)) and all(bool(torch.isfinite(g).all()) for g in grads)

    def filled(data):
        y = torch.where(data.observed, data.y, torch.full_like(data.y, math.nan))
        return Dataset(data.x, y, data.mask, data.observed)

    again = loss_of(name, TaskBatch(filled(batch.context), filled(batch.target)))
    torch.testing.assert_close(again[0], loss)
    model, guide, _, _ = pair_of(name)
    found = predict(model, guide, batch.context, batch.target, 3)
    assert found.samples.shape == (3, 3, 5, DY) and bool(torch.isfinite(found.log_prob(batch.target.y)).all())


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian-head", "student-t-head", "bernoulli"])
def test_the_likelihood_of_what_is_known_is_the_marginal(likelihood):
    model = BayesianNetwork([1, 4, 2 * DY if "head" in likelihood else DY], likelihood=likelihood).double()
    observed = torch.tensor([[True, False], [True, True], [False, True]])
    y = torch.tensor([[1.0, math.nan], [0.0, 1.0], [math.nan, 0.0]], dtype=torch.float64)
    data = Dataset(torch.randn(3, 1, dtype=torch.float64), y, observed=observed)
    trace = poutine.trace(model).get_trace(data)
    trace.compute_log_prob()
    base = model.likelihood(trace.nodes["_RETURN"]["value"]).base_dist
    by_hand = base.log_prob(torch.where(observed, y, 0.0))[observed].sum()
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], by_hand)


def test_the_mixture_marginalises_within_each_expert():
    model = MixtureDensityNetwork(3, 1, DY, "strict", width=8).double()
    observed = torch.tensor([[True, False], [True, True], [False, True]])
    data = Dataset(torch.randn(3, 1).double(), torch.randn(3, DY).double(), observed=observed)
    trace = poutine.trace(model).get_trace(data)
    trace.compute_log_prob()
    weights = trace.nodes["mixture_weights"]["value"]
    experts = model.expert_distribution(data.x).base_dist
    each = torch.where(observed.unsqueeze(-2), experts.log_prob(data.y.unsqueeze(-2)), 0.0).sum(-1)
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], torch.logsumexp(weights.log() + each, -1).sum())
    torch.testing.assert_close(model.expert_log_likelihood(data), each)


def test_a_density_that_ties_outputs_is_refused_in_one_line():
    tied = dist.MultivariateNormal(torch.zeros(3, DY), torch.eye(DY))
    with pytest.raises(DataError, match="observed: got single missing outputs, which MultivariateNormal ties"):
        of_observed(tied, torch.ones(3, DY, dtype=torch.bool))


@pytest.mark.parametrize("make_regression", [
    lambda dy: ContextRegression(1, dy, heads=2, features=6, noise=0.3, mean=False),
    lambda dy: KernelBank(1, dy, 3, noise=0.3),
], ids=["features", "kernels"])  # fmt: skip
def test_closed_form_regressions_are_those_of_the_outputs_apart(make_regression):
    torch.manual_seed(0)
    both = make_regression(DY).double()
    x, y = torch.randn(4, 7, 1).double(), torch.randn(4, 7, DY).double()
    observed = torch.rand(4, 7, DY) < 0.6
    observed[2, :, 1] = False
    mask = observed.any(-1)
    state = both.fit(x, y, mask, observed=observed)
    at = torch.randn(4, 3, 1).double()
    mean, variance = both.predict(at, state)
    evidence = 0.0
    for d in range(DY):
        alone = make_regression(1).double()
        alone.load_state_dict(both.state_dict())
        own = alone.fit(x, y[..., d : d + 1], observed[..., d])
        its_mean, its_variance = alone.predict(at, own)
        torch.testing.assert_close(mean[..., d : d + 1], its_mean)
        torch.testing.assert_close(variance[..., d], its_variance)
        evidence = evidence + own.log_evidence
    torch.testing.assert_close(state.log_evidence, evidence)
    # in portions, and where nothing is missing
    first = both.fit(x[:, :3], y[:, :3], mask[:, :3], observed=observed[:, :3])
    second = both.fit(x[:, 3:], y[:, 3:], mask[:, 3:], first, observed[:, 3:])
    torch.testing.assert_close(second.log_evidence, state.log_evidence)
    whole = both.fit(x, y, observed=torch.ones_like(observed))
    torch.testing.assert_close(whole.log_evidence, both.fit(x, y).log_evidence)
    torch.testing.assert_close(both.predict(at, whole)[0], both.predict(at, both.fit(x, y))[0])
    with pytest.raises(ValueError, match="state: its points and these must both have a mask of outputs"):
        both.fit(x, y, state=first)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_bnnp_with_real_targets_is_the_posterior_of_each_output_from_its_own_points(solver):
    model = BayesianNetwork([1, DY], likelihood="gaussian", noise_scale=0.4).double()
    guide = BNNWeightGuide(model, 8, final_noise="real", solver=solver).double()
    observed = torch.tensor([[True, False], [True, True], [False, True], [True, False]])
    data = Dataset(torch.randn(4, 1).double(), torch.randn(4, DY).double(), observed=observed)
    found = guide.conditional(0, data, data.x, [])
    for d in range(DY):
        seen = data.points(observed[:, d])
        precision = torch.full((len(seen.x), 1), 0.4**-2, dtype=torch.float64)
        one = BayesianNetwork([1, 1], likelihood="gaussian", noise_scale=0.4).double()
        own = layer_posterior(seen.x, seen.y[:, d : d + 1], precision, one.prior.gaussian(0, []), (1, 2), "own", solver)
        torch.testing.assert_close(found.mean[d : d + 1], own.mean)
        torch.testing.assert_close(found.covariance()[d : d + 1], own.covariance())


def test_laplace_and_last_layer_are_exact_on_a_linear_module():
    torch.manual_seed(0)
    observed = torch.rand(9, DY) < 0.6
    data = Dataset(torch.randn(9, 2).double(), torch.randn(9, DY).double(), observed=observed)
    x = torch.cat([data.x, torch.ones(9, 1).double()], -1)
    for cls, options in ((ModuleLaplaceGuide, {"structure": "full"}), (LastLayerGuide, {})):
        model = BayesianModule(nn.Linear(2, DY), "last", likelihood="gaussian", noise_scale=0.3, freeze=True).double()
        guide = cls(model, **options).double()
        guide.fit(data) if cls is LastLayerGuide else guide.fit_curvature(data)
        prior = guide.prior_moments()[1]  # of weights [Dy, 2], then biases [Dy]
        for d in range(DY):
            seen = x[observed[:, d]]
            index = [2 * d, 2 * d + 1, 2 * DY + d]
            exact = torch.linalg.inv(seen.mT @ seen / 0.3**2 + prior[index].diag())
            if cls is LastLayerGuide:
                torch.testing.assert_close(guide.tril[d] @ guide.tril[d].mT, exact)
            else:
                covariance = guide.distribution().covariance_matrix
                torch.testing.assert_close(covariance[index][:, index], exact)


@pytest.mark.parametrize("kind", ["network", "mixture"])
def test_the_numpyro_twin_has_the_same_joint_density(kind):
    from numpyro.infer.util import log_density

    from inference.reference.numpyro_mixture import mixture_twin
    from inference.reference.numpyro_twin import numpyro_twin, precision_of

    observed = torch.tensor([[True, False], [True, True], [False, True]])
    data = Dataset(torch.randn(3, 1), torch.randn(3, DY), observed=observed)
    if kind == "network":
        model = BayesianNetwork([1, 3, DY], likelihood="gaussian")
        twin = numpyro_twin(model)
    else:
        model = MixtureDensityNetwork(3, 1, DY, "strict", width=8)
        twin = mixture_twin(model)
    trace = poutine.trace(model).get_trace(data)
    values = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and n != "y"}
    with precision_of(model):
        own, _ = log_density(twin, (data,), {}, {n: v.detach().numpy() for n, v in values.items()})
    assert float(own) == pytest.approx(trace.log_prob_sum().item(), abs=1e-4)


def test_the_door():
    x, y = torch.zeros(4, 1), torch.zeros(4, DY)
    observed = torch.ones(4, DY, dtype=torch.bool)
    for wrong, message in (
        ({"observed": observed.int()}, "observed: got dtype"),
        ({"observed": observed[:, :1]}, "observed: got shape"),
    ):
        with pytest.raises(DataError, match=message):
            Dataset(x, y, **wrong)
    with pytest.raises(DataError, match="observed: got a mask of outputs with class indices"):
        Dataset(x, torch.zeros(4, dtype=torch.long), observed=observed)
    with pytest.raises(DataError, match="observed: got a mask of outputs with no y"):
        Dataset(x, observed=observed)
    observed[1] = False
    observed[2, 0] = False
    data = Dataset(x, torch.where(observed, y, math.nan), observed=observed)
    assert data.mask.tolist() == [True, False, True, True] and data.counts == 3
    joined = data | Dataset(x, y)
    assert joined.observed[4:].all() and torch.equal(joined.observed[:4], observed)
    assert torch.equal(data.points(torch.tensor([2])).observed, observed[2:3])
    ragged = Dataset.pad([data, Dataset(x[:2], y[:2])])
    assert ragged.observed.shape == (2, 4, DY) and not ragged.observed[1, 2:].any()
    assert ragged[0].observed.shape == (4, DY) and data.without_y().observed is None
    assert data.to(dtype=torch.float64).observed.dtype == torch.bool


def test_the_elbo_of_a_complete_pair_is_the_sum_of_its_outputs_apart():
    """Each point split into two, each with one output: the same bound, particle by particle."""
    model = BayesianNetwork([1, 4, 2 * DY], likelihood="gaussian-head").double()
    guide = guides.MCDropoutGuide(model, 8).double()
    x, y = torch.randn(5, 1).double(), torch.randn(5, DY).double()
    first = torch.tensor([True, False]).expand(5, DY)
    apart = Dataset(torch.cat([x, x]), torch.cat([y, y]), observed=torch.cat([first, ~first]))
    losses = []
    for data in (Dataset(x, y), apart):
        pyro.set_rng_seed(0)
        losses.append(make("elbo").differentiable_loss(model, guide, data).detach())
    torch.testing.assert_close(*losses)
