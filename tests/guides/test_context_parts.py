"""Closed-form context in every guide and model that takes it: values, ragged gradients, local reparameterisation."""

import pytest
import torch
from pyro import poutine

from guides import (
    AmortisedMeanFieldGuide,
    BernoulliExpertGuide,
    BNNWeightGuide,
    DirichletMixtureGuide,
    MCDropoutGuide,
    NeuralProcessGuide,
    prune_experts,
)
from guides.set_encoder import SetEncoder
from inference import fit, predict, sample_posterior
from inference.objectives import make
from pp_models import BayesianNetwork, Dataset, MixtureDensityNetwork, NeuralProcess, TaskBatch
from pp_models.context_path import FEATURES, PATHS

POOLINGS = ("regression", "learned-regression")


def ragged(tasks=4, dim_x=1, dim_y=1, seed=0):
    """A task with all points, two with some, one whose context is empty; what does not exist is 1e6."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(tasks, 9, width, generator=generator) for width in (dim_x, dim_y))
    exists = torch.arange(9) < torch.tensor([9, 5, 2, 0]).unsqueeze(-1)
    context = Dataset(x, torch.where(exists.unsqueeze(-1), y, torch.full((), 1e6)), exists)
    target = Dataset(
        torch.randn(tasks, 6, dim_x, generator=generator), torch.randn(tasks, 6, dim_y, generator=generator)
    )
    return TaskBatch(context, target)


def networks(path, dim_x=1, **options):
    sizes = [dim_x, 6, 2]
    return BayesianNetwork(sizes, likelihood="gaussian-head", path=path, path_dim=8, input_features=3, **options)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dim_x", [1, 2])
def test_an_encoder_does_not_read_padding_nor_the_order_of_points(pooling, dim_x):
    torch.manual_seed(0)
    encoder = SetEncoder(dim_x, 1, 16, 12, pooling=pooling)
    context = ragged(dim_x=dim_x).context
    whole = encoder(context)
    assert whole.shape == (4, 12)
    for task, count in enumerate((9, 5, 2, 0)):
        order = torch.randperm(count)
        alone = encoder(Dataset(context.x[task, :count][order], context.y[task, :count][order]))
        torch.testing.assert_close(whole[task], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole[3], encoder.empty)
    classes = SetEncoder(dim_x, 3, 16, 12, pooling=pooling)(Dataset(context.x, torch.randint(3, (4, 9)), context.mask))
    assert bool(torch.isfinite(classes).all())


PAIRS = {
    **{
        f"nvdp, {pooling}": lambda p=pooling: (m := networks(None), BernoulliExpertGuide(m, 8, pooling=p))
        for pooling in POOLINGS
    },
    **{f"nvdp+{path}": lambda p=path: (m := networks(p), BernoulliExpertGuide(m, 8)) for path in PATHS},
    **{f"mean field+{path}": lambda p=path: (m := networks(p), AmortisedMeanFieldGuide(m, 8)) for path in PATHS},
    **{f"mc dropout+{path}": lambda p=path: (m := networks(p), MCDropoutGuide(m)) for path in PATHS},
    **{
        f"bnnp+{path}": lambda p=path: (
            m := BayesianNetwork([1, 6, 1], path=p, path_dim=8, input_features=3),
            BNNWeightGuide(m, width=8),
        )
        for path in PATHS
    },
    **{
        f"cnp+{path}": lambda p=path: (
            m := NeuralProcess(1, 1, 4, 8, width=8, num_heads=4, path=p),
            NeuralProcessGuide(m, 8),
        )
        for path in PATHS
    },
    **{
        f"nmdp+{path}": lambda p=path: (
            m := MixtureDensityNetwork(3, width=8, representation_dim=8, path=p),
            DirichletMixtureGuide(m, 8),
        )
        for path in PATHS
    },
    **{
        f"nmdp, conjugate {features}": lambda f=features: (
            m := MixtureDensityNetwork(3, experts="conjugate", width=8, features=f),
            DirichletMixtureGuide(m, 8, pooling="regression"),
        )
        for features in FEATURES
    },
    "nmdp, evidence": lambda: (
        m := MixtureDensityNetwork(3, experts="conjugate", width=8, features="kernels"),
        DirichletMixtureGuide(m, 8, concentration_map="evidence"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_ragged_batch_trains_every_pair_and_an_empty_context_predicts(name):
    torch.manual_seed(0)
    model, guide = PAIRS[name]()
    batch = ragged()
    objective = make("iw-em" if "nmdp" in name else "elbo" if "bnnp" in name else "conditional-prior")
    loss = objective.loss_and_grads(model, guide, batch) if hasattr(objective, "loss_and_grads") else None
    parameters = [p for module in (model, guide) for p in module.parameters()]
    assert loss is not None and torch.isfinite(torch.as_tensor(loss))
    assert all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None)
    assert sum(p.grad is not None and bool((p.grad != 0).any()) for p in parameters) > len(parameters) // 2
    result = fit(model, guide, batch, objective, steps=3, progress=False)
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in result.history)
    found = predict(model, guide, batch.context, batch.target, 5, seed=0)
    assert found.mean.shape == (4, 6, 1) and bool(torch.isfinite(found.log_prob(batch.target.y)).all())


@pytest.mark.parametrize("name", [name for name in PAIRS if "regression" in name or "conjugate" in name])
def test_what_is_handed_over_of_a_context_has_no_padding_in_it(name):
    torch.manual_seed(0)
    _, guide = (module.double() for module in PAIRS[name]())
    context = ragged().context
    context = Dataset(context.x.double(), context.y.double(), context.mask)
    whole = poutine.trace(guide).get_trace(context).nodes
    for task, count in ((0, 9), (1, 5)):
        alone = poutine.trace(guide).get_trace(Dataset(context.x[task, :count], context.y[task, :count])).nodes
        for site in {"memory", "representation"} & set(alone):
            expected = alone[site]["value"]
            torch.testing.assert_close(whole[site]["value"][task][: len(expected)], expected)
            assert not bool(whole[site]["value"][task][len(expected) :].any())


def test_input_features_are_read_in_chunks_and_online_as_in_one_pass():
    torch.manual_seed(0)
    model = BayesianNetwork([1, 6, 1], input_features=3).double()
    data = Dataset(torch.randn(2, 9, 1).double(), torch.randn(2, 9, 1).double())
    guide = BNNWeightGuide(model, width=8).double()
    chunked = BNNWeightGuide(model, width=8, chunk_size=4).double()
    chunked.load_state_dict(guide.state_dict())
    draws = [sample_posterior(model, g, data, 50, seed=0) for g in (guide, chunked)]
    for site, values in draws[0].items():
        torch.testing.assert_close(draws[1][site].mean(0), values.mean(0), atol=1.0, rtol=0)
    whole = guide.conditional(0, data, guide.layer_input(data.x, []), [])
    summed = chunked._in_chunks(0, data, [], {})
    torch.testing.assert_close(whole.mean, summed.mean)


def test_conjugate_experts_start_as_their_regressions_and_can_be_dropped():
    torch.manual_seed(0)
    for features in FEATURES:
        model = MixtureDensityNetwork(4, experts="conjugate", width=8, features=features).double()
        guide = DirichletMixtureGuide(model, 8).double()
        batch = ragged()
        context = Dataset(batch.context.x.double(), batch.context.y.double(), batch.context.mask)
        memory = guide.memory(context)
        with torch.no_grad():
            model.attend.correction[-1].weight.zero_()
            model.attend.correction[-1].bias.zero_()
        experts = model.expert_distribution(batch.target.x.double(), memory)
        regression = model.attend.regression
        state = regression.fit(context.x, torch.nan_to_num(context.y), context.mask)
        mean, variance = regression.predict(batch.target.x.double(), state)
        torch.testing.assert_close(experts.mean[..., 0], mean[..., 0].movedim(-2, -1))
        expected = (variance + regression.noise_variance.unsqueeze(-1)).sqrt() + 0.01
        torch.testing.assert_close(experts.base_dist.scale[..., 0], expected.movedim(-2, -1))

        smaller, _, kept = prune_experts(model, guide, context, threshold=1e-9)
        assert kept == [0, 1, 2, 3]
        smaller.keep([0, 2])
        left = smaller.expert_distribution(batch.target.x.double(), memory)
        torch.testing.assert_close(left.mean, experts.mean[..., [0, 2], :])
        torch.testing.assert_close(left.base_dist.scale, experts.base_dist.scale[..., [0, 2], :])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: networks("road"), r"^path: got 'road'"),
        (lambda: networks("attention", representation_dim=4), r"^path: got 'attention' beside representation_dim 4"),
        (lambda: NeuralProcess(1, 1, 4, 0, path="regression"), r"^representation_dim: got 0; path='regression' needs"),
        (lambda: NeuralProcess(1, 1, 4, 8, True, path="regression"), r"^path: got 'regression' beside attention=True"),
        (
            lambda: MixtureDensityNetwork(3, experts="conjugate", likelihood="categorical", dim_y=3),
            r"^likelihood: got ",
        ),
        (lambda: BernoulliExpertGuide(networks(None), 8, temperature=0.1), r"^temperature: got 0.1"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
