"""The named methods: that each one trains and predicts, how large it is, and how it is scored."""

import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from evaluation.methods import METHODS, PARTS, TaskShape, build
from evaluation.scores.scoring import SCORES, parameter_count, score_as_used, score_oracle, score_tasks
from guides import MCDropoutGuide
from inference import fit, predict
from pp_models import BayesianNetwork, Dataset, GaussianHeadLikelihood, TaskBatch, oracle_log_likelihood, tasks
from pp_models.tasks.image_tasks import ImageTasks

#: others predict classes alone
OF_NUMBERS = [name for name in METHODS if name not in ("nvdp-class", "metamodulation")]
COLUMNS = ["m", *SCORES, "rmse", "crps", "within_1sd", "within_2sd", "sd"]
CEILING = -math.log(0.1) - 0.5 * math.log(2 * math.pi)  # a point at the mean of a Gaussian head with floor 0.1


@pytest.fixture(scope="module")
def batches():
    stream = tasks.gp_test("rbf", 3, grid=40, num_context=(3, 12))
    return [stream.batch(i) for i in range(2)]


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_a_method_trains_predicts_and_is_scored(batches, name):
    method = build(name, TaskShape(1, 1, 16))
    assert method.name == name
    before = [p.detach().clone() for p in (*method.model.parameters(), *method.guide.parameters())]
    stream = tasks.gp("rbf", 3, 0, num_context=(3, 12), max_points=16)
    result = fit(method.model, method.guide, stream, method.objective, steps=3, log_every=1, progress=False)
    assert [row["step"] for row in result.history] == [1, 2, 3] and not result.skipped
    assert all(math.isfinite(row[key]) for row in result.history for key in ("loss", "log_likelihood", "kl"))
    after = [*method.model.parameters(), *method.guide.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    found = score_tasks(method.model, method.guide, batches)
    assert list(found.columns) == COLUMNS and len(found) == 6
    assert np.isfinite(found.to_numpy()).all()
    if name not in ("bnnp", "bnam"):  # their noise is learned and has no floor
        assert (found[["ll", "rll", "pll"]] <= CEILING).all(axis=None) and (found.sd >= 0.1).all()
    assert found.within_1sd.between(0, 1).all() and (found.within_2sd >= found.within_1sd).all()


@pytest.mark.parametrize("name", ["nvdp-class", "metamodulation"])
def test_methods_of_classes_are_of_classes_alone(name):
    x, labels = torch.randn(60, 4), torch.arange(60) // 6
    stream = tasks.from_few_shot(x, labels, ways=3, shots=1, queries=2, batch_size=4)
    method = build(name, TaskShape(4, 3, 8, num_classes=3))
    before = [p.detach().clone() for p in method.guide.parameters()]
    fit(method.model, method.guide, stream, method.objective, steps=3, progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(before, method.guide.parameters(), strict=True))
    batch = stream.batch(9)
    found = predict(method.model, method.guide, batch.context, batch.target.x, 4)
    assert found.mean.shape == (4, 6, 3) and found.log_prob(batch.target.y).isfinite().all()
    with pytest.raises(ValueError, match=rf"^model: got {name}, which predicts classes; of numbers take n"):
        build(name, TaskShape(1, 1, 8))


def has_a_head(name):
    likelihood = build(name, TaskShape(1, 1, 8)).model.likelihood
    return isinstance(likelihood, GaussianHeadLikelihood)


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_one_floor_for_every_head(name):
    assert has_a_head(name) or name in ("bnnp", "bnam")
    if has_a_head(name):
        assert build(name, TaskShape(1, 1, 8)).model.likelihood.min_scale == 0.1
        assert build(name, TaskShape(1, 1, 8, min_scale=0.02)).model.likelihood.min_scale == 0.02


def test_a_task_is_read_off_its_stream():
    assert TaskShape.of(tasks.gp("rbf", 2, x_range=(-1.0, 3.0)), 8, beta=0.5) == TaskShape(
        1, 1, 8, beta=0.5, extent=4.0
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    found = TaskShape.of(ImageTasks(images, 2), 8)
    assert (found.dim_x, found.dim_y, found.image_size) == (2, 3, (6, 5))
    assert TaskShape.of(tasks.trigonometric(2), 8).extent > 2 * math.pi
    model = build("convcnp", found).model
    assert (model.grid.height, model.grid.width) == (6, 5)


@pytest.mark.parametrize("name", ["nvdp", "cnp", "np+cnp+vp", "mean-field", "convcnp", "tnp-d", "bnp", "maml", "dnp"])
def test_images_have_two_inputs_and_three_outputs(name):
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    batch = ImageTasks(images, 2, full_image=True).batch(0)
    method = build(name, TaskShape(2, 3, 16, beta=0.5, image_size=(6, 6)))
    method.guide.eval()
    found = score_tasks(method.model, method.guide, [batch])
    target = batch.target.y
    prediction = predict(method.model, method.guide, batch.context, batch.target, weights="mean", seed=0)
    error = (prediction.mean - target).square().mean((-1, -2)).sqrt()
    assert found["rmse"].to_numpy() == pytest.approx(error.double().numpy(), rel=1e-4)
    assert found["m"].tolist() == batch.context.counts.tolist()
    assert found["pll"].to_numpy() == pytest.approx(
        (prediction.log_prob(target).mean(-1) / 3).double().numpy(), rel=1e-3
    )


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("nvdp", "beta", 1.4),
        ("nvdp", "kl_reduction", "mean"),
        ("nvdp-no-prior", "beta", 0.0),
        ("nvdp-sum", "beta", 1.0),
        ("nvdp-sum", "kl_reduction", "sum"),
        ("np", "kl_reduction", "sum"),
        ("cnp", "normalize", True),
        ("mean-field", "local_reparameterization", True),
        ("tnp-d", "score", "target"),
        ("bnp", "num_particles", 4),
        ("si-np", "proposal", "prior"),
        ("si-np", "score", "full"),
    ],
)
def test_what_a_method_is_trained_with(name, attribute, value):
    assert getattr(build(name, TaskShape(1, 1, 8)).objective, attribute) == value


NAMED = {"pooling": "attention", "path": "regression", "input_features": 3, "experts": "context"}


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, parts in PARTS.items() for part in parts])
def test_a_part_that_is_named_is_in_the_method(name, part):
    beside = {"experts": "context"} if part == "path" and "experts" in PARTS[name] else {}
    shapes = []
    for parts in (beside, beside | {part: NAMED[part]}):
        method = build(name, TaskShape(1, 1, 16, **parts))
        stream = tasks.gp("rbf", 2, 0, num_context=(3, 6), max_points=10)
        result = fit(method.model, method.guide, stream, method.objective, steps=2, log_every=1, progress=False)
        assert not result.skipped and all(math.isfinite(row["loss"]) for row in result.history)
        state = {**method.model.state_dict(prefix="model."), **method.guide.state_dict(prefix="guide.")}
        shapes.append({key: tuple(value.shape) for key, value in state.items()})
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_a_part_that_a_method_does_not_have_is_refused(name):
    for part in set(NAMED) - set(PARTS.get(name, ())):
        with pytest.raises(
            ValueError, match=rf"^{part}: got {NAMED[part]!r}; of {re.escape(name)} one can name [^\n]+$"
        ):
            build(name, TaskShape(1, 1, 16, **{part: NAMED[part]}))


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("nvdp", {"pooling": "median"}, "pooling: got 'median'; "),
        ("nvdp", {"path": "walk"}, "path: got 'walk'; it must be one of attention, regression, learned-regression"),
        ("nmdp", {"experts": "wise"}, "experts: got 'wise'; "),
        ("nmdp", {"path": "regression"}, "path: got 'regression', but conjugate experts read no path; take experts="),
    ],
)
def test_a_part_of_no_kind_is_refused(name, parts, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build(name, TaskShape(1, 1, 16, **parts))


def test_an_unknown_method():
    with pytest.raises(ValueError, match="model: got 'gan'; it is none of 36 names such as nvdp"):
        build("gan", TaskShape(1, 1))


@pytest.mark.parametrize(
    ("name", "released", "encoders"),
    [("nvdp", 662_673, 1), ("cnp", 149_378, 1), ("np", 149_378, 1), ("np+cnp", 248_706, 2)],
)
def test_parameter_counts_at_the_papers_width(name, released, encoders):
    """At 128 units: those of the released code and, in every encoder, a learned vector for an empty context."""
    method = build(name, TaskShape(1, 1, 128, recipe="paper"))
    assert parameter_count(method.model, method.guide) == released + encoders * 128


def test_most_of_nvdps_parameters_are_not_weights_of_its_network():
    method = build("nvdp", TaskShape(1, 1, 128, recipe="paper"))
    assert sum(weight.numel() for weight in method.guide.weights) == 50_050
    assert parameter_count(method.model) == 0  # the guide holds the weights that all tasks share
    assert parameter_count(method.guide.rate_networks) == 529_674


def test_only_trainable_parameters_count_once():
    layer = nn.Linear(3, 4)
    assert parameter_count(layer) == 16 and parameter_count(layer, nn.Linear(1, 1, bias=False)) == 17
    layer.bias.requires_grad_(False)
    assert parameter_count(layer) == 12 and parameter_count() == 0


# -- scores -------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A model that knows the mean function and one standard deviation."""

    def __init__(self, mean, sd):
        super().__init__()
        self.mean, self.sd = mean, sd

    def forward(self, data):

        with pyro.plate("tasks", data.x.shape[0], dim=-1):
            normal = dist.Normal(self.mean(data.x), self.sd).to_event(2)
            if data.y is None:
                return pyro.sample("y", normal)
            return pyro.sample("y", normal, obs=data.y)


def test_score_tasks_against_hand_made_numbers():
    x = torch.linspace(-1, 1, 6).reshape(1, 6, 1).repeat(2, 1, 1)
    y = torch.tensor([[0.0, 1, 0, 0, 3, 0], [0, 0, 0, 0, 0, 0]]).unsqueeze(-1)
    batch = TaskBatch(Dataset(x[:, :2], y[:, :2]), Dataset(x[:, 2:], y[:, 2:]))
    found = score_tasks(Fixed(torch.zeros_like, 1.0), lambda data: None, [batch, batch])
    peak = -0.5 * math.log(2 * math.pi)
    assert found.m.tolist() == [2, 2, 2, 2]
    np.testing.assert_allclose(found.ll[:2], [peak - 10 / 12, peak], rtol=1e-6)
    np.testing.assert_allclose(found.rll[:2], [peak - 1 / 4, peak], rtol=1e-6)
    np.testing.assert_allclose(found.pll[:2], [peak - 9 / 8, peak], rtol=1e-6)
    np.testing.assert_allclose(found.joint_ll, found.ll, rtol=1e-6)  # independent points: the same number
    np.testing.assert_allclose(found.rmse[:2], [1.5, 0])  # of the target only
    np.testing.assert_allclose(found.within_1sd[:2], [0.75, 1])
    np.testing.assert_allclose(found.within_2sd[:2], [0.75, 1])
    np.testing.assert_allclose(found.sd, 1)
    # CRPS of N(0, 1) at 0 is (sqrt 2 - 1) / sqrt pi, at 3 it is 2.43671
    at_zero = (math.sqrt(2) - 1) / math.sqrt(math.pi)
    at_three = 3 * math.erf(3 / math.sqrt(2)) + 2 * math.exp(-4.5) / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    np.testing.assert_allclose(found.crps[:2], [(3 * at_zero + at_three) / 4, at_zero], rtol=1e-5)


def test_draws_are_those_of_the_seed(batches):
    method = build("nvdp", TaskShape(1, 1, 8))
    method.guide.eval()
    first, again, other = (
        score_tasks(method.model, method.guide, batches, weights="samples", num_samples=3, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first.equals(again) and not np.allclose(first.ll, other.ll)
    assert not first.ll.equals(score_tasks(method.model, method.guide, batches).ll)


@pytest.mark.parametrize(("name", "by_mean"), [("nvdp", True), ("nmdp", True), ("np", False), ("bnnp", False)])
def test_a_method_is_scored_by_the_predictive_it_is_used_with(batches, name, by_mean):
    method = build(name, TaskShape(1, 1, 8))
    method.guide.eval()
    found = score_as_used(method.model, method.guide, batches, 5)
    drawn = score_tasks(method.model, method.guide, batches, weights="samples", num_samples=5)
    assert found[["joint_ll", "joint_pll"]].equals(drawn[["joint_ll", "joint_pll"]])
    expected = score_tasks(method.model, method.guide, batches) if by_mean else drawn
    assert found.drop(columns=["joint_ll", "joint_pll"]).equals(expected.drop(columns=["joint_ll", "joint_pll"]))


def test_oracle_scores_are_the_oracles_and_a_floor_never_helps(batches):
    free, floored = score_oracle(batches), score_oracle(batches, 0.1)
    assert list(free.columns) == ["m", "ll", "joint_ll", "rll", "joint_rll", "pll", "joint_pll"] and len(free) == 6
    assert free.m.tolist() == [int(n) for batch in batches for n in batch.context.counts]
    np.testing.assert_allclose(free.ll[:3], oracle_log_likelihood(batches[0], "full").mean(-1).numpy())
    assert (floored.ll.mean() < free.ll.mean()) and (floored[["ll", "rll", "pll"]] <= CEILING).all(axis=None)
    # noise of sd 0.02: a point is worth at most its own density's peak
    assert (free.ll <= -math.log(0.02) - 0.5 * math.log(2 * math.pi)).all()


def test_no_trained_method_beats_the_exact_answer_on_the_tasks_it_is_scored_on(batches):
    model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
    found = score_tasks(model, MCDropoutGuide(model), batches)
    assert found.joint_pll.mean() < score_oracle(batches).joint_pll.mean()
