"""One table of guides, one list of invariants that every one of them keeps."""

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide, BNNWeightGuide, MCDropoutGuide, NeuralProcessGuide
from inference import predict
from inference.objectives import TaskELBO
from pp_models import BayesianAttentionNetwork, BayesianNetwork, Dataset, NeuralProcess


def network(representation=0, likelihood="gaussian-head"):
    return BayesianNetwork([1, 6, 5, 2], likelihood=likelihood, representation_dim=representation)


def expert(representation=0, **options):
    def make():
        model = network(representation)
        return model, BernoulliExpertGuide(model, width=8, **options)

    return make


def process(**options):
    def make():
        model = NeuralProcess(1, 1, width=8, depth=3, **options)
        return model, NeuralProcessGuide(model, width=8)

    return make


def of_network(cls, representation=0, **options):
    def make():
        model = network(representation)
        return model, cls(model, width=8, **options)

    return make


def of_attention(cls, **options):
    def make():
        model = BayesianAttentionNetwork(1, 1, width=8, num_blocks=1, num_heads=2, likelihood="gaussian-head")
        return model, cls(model, width=8, **options)

    return make


#: name -> how a small (model, guide) is made
GUIDES = {
    "nvdp": expert(),
    "nvdp probability": expert(clip="probability"),
    "nvdp layer": expert(rates="layer"),
    "nvdp full": expert(rates="full"),
    "nvdp full probability": expert(rates="full", clip="probability"),
    "nvdp attention": expert(pooling="attention"),
    "nvdp set-transformer": expert(pooling="set-transformer"),
    "nvdp representation": expert(representation=4),
    "nvdp shared encoder": expert(representation=8, share_encoder=True),
    # the dual form draws a noise for each point, so that its draws (not their law) depend on order and padding
    "bnn": of_network(BNNWeightGuide, solver="primal"),
    "bnn activation": of_network(BNNWeightGuide, solver="primal", use_activation=True),
    "bnn representation": of_network(BNNWeightGuide, representation=4, solver="primal"),
    "bnn transformer": of_network(BNNWeightGuide, solver="primal", inference="transformer"),
    "bnn transformer activation": of_network(
        BNNWeightGuide, solver="primal", inference="transformer", use_activation=True
    ),
    "bnam": of_attention(BNNWeightGuide, solver="primal"),
    "bnam transformer": of_attention(BNNWeightGuide, solver="primal", inference="transformer"),
    "bnam mean-field": of_attention(AmortisedMeanFieldGuide),
    "bnam nvdp": of_attention(BernoulliExpertGuide),
    "bnam mc-dropout": of_attention(MCDropoutGuide),
    "mean-field": of_network(AmortisedMeanFieldGuide),
    "mean-field attention": of_network(AmortisedMeanFieldGuide, pooling="attention"),
    "mean-field set-transformer": of_network(AmortisedMeanFieldGuide, pooling="set-transformer"),
    "mean-field representation": of_network(AmortisedMeanFieldGuide, representation=4),
    "mc-dropout": of_network(MCDropoutGuide),
    "mc-dropout representation": of_network(MCDropoutGuide, representation=4),
    "cnp": process(latent_dim=0, representation_dim=8),
    "np": process(latent_dim=4),
    "np+cnp": process(latent_dim=4, representation_dim=8),
    "anp": process(latent_dim=4, representation_dim=8, attention=True),
}
CONSTANT = {"mc-dropout", "bnam mc-dropout"}  # the guide that cannot read its data
every_guide = pytest.mark.parametrize("name", GUIDES)


def make(name, double=True):
    model, guide = GUIDES[name]()
    return (model.double(), guide.double()) if double else (model, guide)


def data(*batch, n=6, dtype=torch.float64):
    return Dataset(torch.randn(*batch, n, 1, dtype=dtype), torch.randn(*batch, n, 1, dtype=dtype))


def moments(guide, d):
    """Mean and standard deviation (0 for a point mass) of every latent site."""
    torch.manual_seed(5)  # where layers depend on draws of those below
    with torch.no_grad():
        nodes = pyro.poutine.trace(guide).get_trace(d).nodes
    sites = {n: s["fn"] for n, s in nodes.items() if s["type"] == "sample" and not n.startswith("tasks")}
    return {n: (fn.mean, fn.variance.sqrt()) for n, fn in sites.items()}


def prediction(model, guide, d, x):
    with torch.no_grad():
        return predict(model, guide, d, x, weights="mean").mean


def assert_same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@every_guide
def test_the_guide_has_the_sites_of_its_model(name, batch):
    model, guide = make(name)
    d = data(*batch)
    nodes = pyro.poutine.trace(guide).get_trace(d).nodes
    replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace=pyro.poutine.trace(guide).get_trace(d))).get_trace(d)
    latent = {n for n, s in nodes.items() if s["type"] == "sample" and not n.startswith("tasks")}
    expected = {
        n for n, s in replayed.nodes.items() if s["type"] == "sample" and n != "y" and not n.startswith("tasks")
    }
    assert latent == expected
    for site in latent:
        fn = nodes[site]["fn"]
        assert fn.batch_shape == batch, site
        assert nodes[site]["value"].shape == batch + tuple(fn.event_shape)
        assert nodes[site]["value"].dtype == torch.float64
        if site.startswith("layer"):
            assert tuple(fn.event_shape) == model.weight_shapes[int(site[6])]
    assert set(guide(d)) == latent


@every_guide
def test_no_points_and_masked_points_are_the_same_empty_context(name):
    model, guide = make(name)
    empty = data(2, n=0)
    masked = Dataset(torch.full((2, 3, 1), torch.nan).double(), torch.randn(2, 3, 1).double(), torch.zeros(2, 3).bool())
    x = torch.randn(2, 4, 1).double()
    assert_same(prediction(model, guide, empty, x), prediction(model, guide, masked, x), 1e-10)
    if name != "anp":  # its memory keeps the padded points, marked as absent
        for site, (mean, std) in moments(guide, empty).items():
            other = moments(guide, masked)[site]
            assert_same(mean, other[0], 1e-10)
            assert_same(std, other[1], 1e-10)
    first, second = prediction(model, guide, empty, x[:1].expand(2, -1, -1))
    assert_same(first, second, 1e-10)  # nothing tells the tasks apart
    assert bool(torch.isfinite(first).all())


@every_guide
def test_an_empty_context_beside_a_full_one(name):
    model, guide = make(name)
    d = data(2)
    mask = torch.tensor([[True] * 6, [False] * 6])
    both = Dataset(d.x, d.y, mask)
    x = torch.randn(2, 4, 1).double()
    found = prediction(model, guide, both, x)
    assert_same(found[0], prediction(model, guide, d, x)[0], 1e-10)
    assert_same(found[1], prediction(model, guide, data(2, n=0), x)[1], 1e-10)


@every_guide
def test_the_order_of_points_does_not_matter(name):
    model, guide = make(name)
    d, x = data(3), torch.randn(3, 4, 1).double()
    shuffled = d.points(torch.randperm(6))
    assert_same(prediction(model, guide, d, x), prediction(model, guide, shuffled, x), 1e-9)
    if name != "anp":  # its memory is a list of points
        for site, (mean, std) in moments(guide, d).items():
            assert_same(mean, moments(guide, shuffled)[site][0], 1e-9)
            assert_same(std, moments(guide, shuffled)[site][1], 1e-9)


@every_guide
def test_what_the_context_says_matters(name):
    model, guide = make(name)
    d, x = data(3), torch.randn(3, 4, 1).double()
    other = Dataset(d.x, d.y + 3.0)
    moved = float((prediction(model, guide, d, x) - prediction(model, guide, other, x)).abs().max())
    assert (moved == 0.0) if name in CONSTANT else (moved > 1e-4)


@every_guide
def test_a_task_does_not_see_the_others(name):
    model, guide = make(name)
    d, x = data(3), torch.randn(3, 4, 1).double()
    together = prediction(model, guide, d, x)
    for i in range(3):
        assert_same(prediction(model, guide, d[i], x[i]), together[i], 1e-9)


@every_guide
def test_padding_changes_nothing(name):
    model, guide = make(name, double=False)
    d = data(3, dtype=torch.float32)
    junk = torch.full((3, 4, 1), torch.nan)
    exists = torch.cat([torch.ones(3, 6), torch.zeros(3, 4)], 1).bool()
    order = torch.randperm(10)
    padded = Dataset(torch.cat([d.x, junk], 1), torch.cat([d.y, junk], 1), exists).points(order)
    x = torch.randn(3, 4, 1)
    tolerance = 1e-2 if name.startswith(("bnn", "bnam")) else 1e-5  # a small pseudo-noise magnifies float32's rounding
    assert_same(prediction(model, guide, d, x), prediction(model, guide, padded, x), tolerance)
    if name != "anp":
        for site, (mean, std) in moments(guide, d).items():
            assert_same(mean, moments(guide, padded)[site][0], tolerance)
            assert_same(std, moments(guide, padded)[site][1], tolerance)


@every_guide
def test_plain_svi_trains_it(name):
    model, guide = make(name, double=False)
    d = data(3, dtype=torch.float32)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    losses = [svi.step(d) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    stored = {n.split(".", 1)[0] for n in pyro.get_param_store().keys()}  # noqa: SIM118 - not a dict
    assert stored <= {guide.parameter_prefix, model.parameter_prefix}
    assert guide.parameter_prefix in stored


#: parameters that a loss on a data set with points cannot reach: the code of an empty one
def unreachable(parameter):
    return parameter.endswith("empty")


@every_guide
def test_gradients_reach_every_parameter_that_is_used(name):
    model, guide = make(name)
    TaskELBO(2).differentiable_loss(model, guide, data(3)).backward()
    dead = {
        n
        for module in (model, guide)
        for n, p in module.named_parameters()
        if (p.grad is None or float(p.grad.abs().max()) == 0.0) and not unreachable(n)
    }
    # a query that meets zero keys, or a ReLU that no point passes, may have none: whole tensors do not at these seeds
    assert dead == set()
    assert all(bool(torch.isfinite(p.grad).all()) for p in guide.parameters() if p.grad is not None)


@every_guide
def test_the_code_of_an_empty_context_is_trained_by_empty_contexts(name):
    if name == "mc-dropout":
        _, guide = make(name)
        assert [n for n, _ in guide.named_parameters() if n.endswith("empty")] == []
        return
    model, guide = make(name)
    batch = data(3).split(0)
    trace = pyro.poutine.trace(guide).get_trace(batch.context)
    outputs = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(batch.target)
    outputs.nodes["y"]["fn"].log_prob(batch.target.y).sum().backward()
    empties = {n: p for n, p in guide.named_parameters() if n.endswith("empty")}
    reached = [n for n, p in empties.items() if p.grad is not None and float(p.grad.abs().max()) > 0]
    assert len(reached) == len(empties)


@every_guide
def test_saving_and_loading_give_the_same_predictions(name, tmp_path):
    model, guide = make(name)
    d, x = data(3), torch.randn(3, 4, 1).double()
    torch.save({"model": model.state_dict(), "guide": guide.state_dict()}, tmp_path / "weights.pt")
    expected = predict(model, guide, d, x, num_samples=5, seed=1).samples
    torch.manual_seed(99)
    other_model, other_guide = make(name)
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
    other_model.load_state_dict(loaded["model"])
    other_guide.load_state_dict(loaded["guide"])
    assert torch.equal(predict(other_model, other_guide, d, x, num_samples=5, seed=1).samples, expected)


@every_guide
def test_a_deep_copy_draws_what_its_original_draws(name):
    _, guide = make(name)
    twin = copy.deepcopy(guide)
    d = data(3)
    for draw in (guide, twin):
        torch.manual_seed(4)
        draw.found = draw(d)
    assert all(torch.equal(guide.found[site], twin.found[site]) for site in guide.found)
    assert guide.parameter_prefix != twin.parameter_prefix


@every_guide
def test_particles_are_different_draws_of_the_same_distribution(name):
    _, guide = make(name)
    d = data(3)
    with pyro.plate("particles", 4, dim=-2):
        values = guide(d)
    for site, value in values.items():
        if site in ("representation", "memory"):
            continue
        assert value.shape[:2] == (4, 3)
        assert float((value[0] - value[1]).detach().abs().max()) > 1e-6


# -- options and refusals ----------------------------------------------------------------------------------------------


def dummy_process():
    return NeuralProcess(1, 1, width=8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: BernoulliExpertGuide(dummy_process()),
            r"^model: got NeuralProcess; BernoulliExpertGuide is a guide for a B",
        ),
        (lambda: AmortisedMeanFieldGuide(dummy_process()), r"^model: got NeuralProcess; AmortisedMeanFieldGuide is a "),
        (
            lambda: MCDropoutGuide(torch.nn.Linear(1, 1)),
            r"^model: got Linear; MCDropoutGuide is a guide for a BayesianN",
        ),
        (
            lambda: NeuralProcessGuide(network()),
            r"^model: got BayesianNetwork; NeuralProcessGuide is a guide for a Neur",
        ),
    ],
)
def test_a_model_of_another_kind_is_a_type_error(build, message):
    with pytest.raises(TypeError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BernoulliExpertGuide(network(), clip="no"), r"^clip: got 'no'; it must be one of logit, probability$"),
        (
            lambda: BernoulliExpertGuide(network(), rates="no"),
            r"^rates: got 'no'; it must be one of product, layer, full$",
        ),
        (lambda: BernoulliExpertGuide(network(), pooling="max"), r"^pooling: got 'max'; it must be one of mean, atten"),
        (lambda: BernoulliExpertGuide(network(), width=6, pooling="attention"), r"^dim_out: got 6; .* num_heads, 4$"),
        (
            lambda: BernoulliExpertGuide(network(4), width=8, share_encoder=True),
            r"^share_encoder: .* is 4 .* width 8; ",
        ),
        (lambda: MCDropoutGuide(network(), rate=0.0), r"^rate: got 0.0; it must lie in \(0, 1\)$"),
    ],
)
def test_bad_options_in_one_line(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_guide_needs_observed_points():
    _, guide = make("nvdp", double=False)
    with pytest.raises(ValueError, match=r"^data: y is None; a guide reads observed points$"):
        guide(Dataset(torch.randn(4, 1)))


def test_classes_are_encoded_as_one_of_many():
    model = BayesianNetwork([1, 5, 3], likelihood="categorical")
    guide = BernoulliExpertGuide(model, width=8)
    d = Dataset(torch.randn(2, 6, 1), torch.randint(0, 3, (2, 6)))
    probabilities = predict(model, guide, d, torch.randn(2, 4, 1), weights="mean").mean
    assert probabilities.shape == (2, 4, 3)
    assert_same(probabilities.sum(-1), torch.ones(2, 4))
    other = predict(model, guide, Dataset(d.x, (d.y + 1) % 3), torch.randn(2, 4, 1), weights="mean").mean
    assert float((other - probabilities).abs().max()) > 1e-6


def test_mc_dropout_has_the_moments_of_its_rate():
    model = network().double()
    guide = MCDropoutGuide(model, rate=0.3).double()
    for i, (mean, std) in enumerate(moments(guide, data(2)).values()):
        weight = guide.weights[i].detach()
        assert_same(mean, (0.7 * weight).expand_as(mean), 1e-12)
        assert_same(std, (math.sqrt(0.21) * weight.abs()).expand_as(std), 1e-4)


def test_pyros_automatic_guide_works_on_one_data_set():
    model = BayesianNetwork([1, 4, 1], noise_scale=0.3)
    d = data(dtype=torch.float32)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=4, vectorize_particles=False))
    losses = torch.tensor([svi.step(d) for _ in range(120)])
    assert float(losses[-20:].mean()) < 0.8 * float(losses[:5].mean())
    prediction = predict(model, guide, d, d.x, num_samples=7, seed=0)
    assert prediction.samples.shape == (7, 6, 1)
