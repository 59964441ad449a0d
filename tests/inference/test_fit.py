"""The training loop: it trains, depends on arguments and seed alone, and survives steps that are not finite."""

import copy
import json
import logging
import math
import random
import sys

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from guides import AmortisedMeanFieldGuide, BernoulliExpertGuide
from inference import TrainingDiverged, fit
from inference.fit import _in_training
from inference.objectives import ConditionalPrior, TaskELBO
from pp_models import BayesianNetwork, Dataset, LearnedGaussianPrior, TaskBatch, tasks

SILENT = {"progress": False, "device": "cpu"}


def pair(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BayesianNetwork([1, 8, 2], likelihood="gaussian-head")
        return model, AmortisedMeanFieldGuide(model, width=8)


def stream(seed=0):
    return tasks.gp(batch_size=4, seed=seed)


def weights(result):
    return {f"{k}.{n}": t for k, m in (("m", result.model), ("g", result.guide)) for n, t in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_training_lowers_the_loss():
    data = Dataset(torch.linspace(-1, 1, 40).reshape(1, 40, 1), torch.linspace(-1, 1, 40).reshape(1, 40, 1).sin())
    objective = TaskELBO(normalize=True, local_reparameterization=True)
    result = fit(*pair(), data, objective, 150, learning_rate=1e-2, log_every=10, **SILENT)
    losses = [row["loss"] for row in result.history]
    assert len(losses) == 15 and [row["step"] for row in result.history] == list(range(10, 151, 10))
    assert losses[0] > 1.0
    assert sum(losses[-3:]) / 3 < 0.6 * losses[0]
    assert result.history[-1]["log_likelihood"] > result.history[0]["log_likelihood"]
    assert result.steps == 150 and result.skipped == [] and result.seconds > 0
    assert not result.model.training


def test_the_same_seed_gives_the_same_bytes_whatever_the_process_state():
    results = []
    for state in (1, 2):
        pyro.set_rng_seed(state)
        results.append(fit(*pair(), stream(), "conditional-prior", 12, seed=5, log_every=3, **SILENT))
    assert same(weights(results[0]), weights(results[1]))
    assert results[0].history == results[1].history
    other = fit(*pair(), stream(), "conditional-prior", 12, seed=6, log_every=3, **SILENT)
    assert not same(weights(results[0]), weights(other))


def test_the_process_random_state_is_left_alone():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    fit(*pair(), stream(), "elbo", 4, seed=5, **SILENT)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert len(pyro.get_param_store()) == 0


def test_a_stream_is_read_by_index_and_not_moved():
    one, two = stream(), stream()
    two.batch(3)
    assert same(
        weights(fit(*pair(), one, steps=5, **SILENT)),
        weights(fit(*pair(), two, steps=5, **SILENT)),
    )
    assert one.position == 0


def test_an_iterable_is_as_good_as_a_stream():
    source = stream()
    listed = [source.batch(i) for i in range(6)]
    assert same(weights(fit(*pair(), listed, steps=6, **SILENT)), weights(fit(*pair(), stream(), steps=6, **SILENT)))
    with pytest.raises(ValueError, match=r"^tasks: the iterable ended at step 6; it must go on for all steps$"):
        fit(*pair(), listed, steps=7, **SILENT)


def test_every_kind_of_objective_is_fitted():
    for objective in ("elbo", TaskELBO(3), ConditionalPrior(beta=0.0), Trace_ELBO(num_particles=2)):
        result = fit(*pair(), stream(), objective, 3, log_every=1, max_grad_norm=0.5, **SILENT)
        assert [row["step"] for row in result.history] == [1, 2, 3]
        assert all(math.isfinite(row["loss"]) for row in result.history)
        assert ("kl" in result.history[0]) == (not isinstance(objective, Trace_ELBO))


def test_clipping_bounds_the_step_of_plain_gradient_descent():
    model, guide = pair()
    before = [p.detach().clone() for p in guide.parameters()]
    result = fit(
        model,
        guide,
        stream(),
        "elbo",
        1,
        optimizer=lambda ps: torch.optim.SGD(ps, lr=1.0),
        max_grad_norm=1e-3,
        **SILENT,
    )
    moved = torch.stack([(a - b.detach()).norm() for a, b in zip(before, guide.parameters(), strict=True)]).norm()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)
    assert result.history[0]["grad_norm"] > 1.0  # reported as it was


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda guide: torch.optim.Adam(guide.parameters(), lr=1e-2),
        lambda guide: lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        lambda guide: pyro.optim.Adam({"lr": 1e-2}),
        lambda guide: None,
    ],
    ids=["torch", "function", "pyro", "default"],
)
def test_every_kind_of_optimizer_moves_the_guide(optimizer):
    model, guide = pair()
    before = [p.detach().clone() for p in guide.parameters()]
    fit(model, guide, stream(), "elbo", 2, optimizer=optimizer(guide), **SILENT)
    moved = [not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True)]
    assert sum(moved) >= len(moved) - 1  # the code of an empty context stays


def test_double_precision_and_the_default_dtype():
    model, guide = pair()
    result = fit(model, guide, stream(), "conditional-prior", 3, precision="64-true", **SILENT)
    assert {p.dtype for p in result.guide.parameters()} == {torch.float64}
    assert torch.get_default_dtype() == torch.float32
    assert math.isfinite(result.history[-1]["loss"])


def test_callbacks_see_logged_rows_and_can_stop():
    seen = []

    def stop_at_six(row):
        seen.append(row["step"])
        return row["step"] == 6

    result = fit(*pair(), stream(), "elbo", 20, log_every=2, callbacks=[stop_at_six, lambda row: "no"], **SILENT)
    assert seen == [2, 4, 6] and result.steps == 6
    full = fit(*pair(), stream(), "elbo", 6, log_every=2, **SILENT)
    assert same(weights(result), weights(full))


# -- steps that are not finite -----------------------------------------------------------------------------------------


def poisoned(bad_steps):
    """A stream in which some steps' outputs are so large that the loss overflows."""
    source = stream()
    while True:
        for step in range(10_000):
            batch = source.batch(step)
            if step in bad_steps:
                full = batch.full
                full = Dataset(full.x, full.y + 1e30)
                batch = TaskBatch(full.points(slice(0, 4)), full.points(slice(4, None)))
            yield batch


OPTIMIZERS = {
    "fused": lambda ps: torch.optim.Adam(ps, lr=1e-2, fused=True),
    "plain": lambda ps: torch.optim.Adam(ps, lr=1e-2, fused=False),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=1e-4, momentum=0.9),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_bad_steps_are_skipped_counted_and_named(kind, caplog):
    with caplog.at_level(logging.WARNING, "guidebook"):
        result = fit(*pair(), poisoned({2, 3, 7}), "elbo", 10, optimizer=OPTIMIZERS[kind], log_every=5, **SILENT)
    assert [step for step, _ in result.skipped] == [2, 3, 7]
    names = {f"{m}.{n}" for m in ("guide", "model") for n, _ in getattr(result, m).named_parameters()}
    assert {name for _, name in result.skipped} <= names
    assert [row["skipped"] for row in result.history] == [2, 3]
    assert sum("step skipped" in record.getMessage() for record in caplog.records) == 3
    assert all(bool(torch.isfinite(p).all()) for p in result.guide.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_skipped_step_leaves_parameters_and_optimizer_as_they_were(kind):
    model, guide = pair()
    optimizer = OPTIMIZERS[kind](list(guide.parameters()))
    fit(model, guide, stream(), "elbo", 3, optimizer=optimizer, **SILENT)
    before = copy.deepcopy((guide.state_dict(), optimizer.state_dict()["state"]))
    fit(model, guide, poisoned({0, 1}), "elbo", 2, optimizer=optimizer, **SILENT)
    assert same(guide.state_dict(), before[0])
    after = optimizer.state_dict()["state"]
    for index, state in before[1].items():
        assert same(
            {k: v for k, v in after[index].items() if v is not None}, {k: v for k, v in state.items() if v is not None}
        )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_three_bad_steps_in_a_row_end_the_fit_with_the_last_good_parameters(kind, tmp_path):
    model, guide = pair()
    with pytest.raises(TrainingDiverged, match=r"^steps 4, 5, 6: loss or gradient not finite, first in ") as caught:
        fit(
            model, guide, poisoned({4, 5, 6}), "elbo", 20, optimizer=OPTIMIZERS[kind], checkpoint_dir=tmp_path, **SILENT
        )
    assert "\n" not in str(caught.value) and "smaller learning_rate" in str(caught.value)
    good = fit(*pair(), stream(), "elbo", 4, optimizer=OPTIMIZERS[kind], **SILENT)
    assert same(guide.state_dict(), good.guide.state_dict())


def test_an_optimizer_still_works_after_a_fit_diverged():
    model, guide = pair()
    optimizer = OPTIMIZERS["fused"](list(guide.parameters()))
    with pytest.raises(TrainingDiverged):
        fit(model, guide, poisoned({0, 1, 2}), "elbo", 5, optimizer=optimizer, **SILENT)
    before = copy.deepcopy(guide.state_dict())
    guide.zero_grad()
    TaskELBO().differentiable_loss(model, guide, stream().batch(0).full).backward()
    optimizer.step()
    assert not same(guide.state_dict(), before)
    assert not guide.training


def test_modules_and_optimizer_come_back_to_their_device(monkeypatch):
    """From wherever the fit was; meta stands for a device that is not the fit's."""
    followed = []
    monkeypatch.setattr(sys.modules["inference.fit"], "follow", followed.append)
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    for home, moves in (("cpu", 0), ("meta", 1)):
        with _in_training(module, optimizer, torch.device(home)):
            assert module.weight.device.type == "cpu"
        assert not module.training and {p.device.type for p in module.parameters()} == {home}
        assert followed == [optimizer] * moves


# -- bad arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, r"^steps: got 0; it must be at least 1$"),
        ({"log_every": 0}, ValueError, r"^log_every: got 0; "),
        ({"checkpoint_every": -1}, ValueError, r"^checkpoint_every: got -1; "),
        ({"seed": -1}, ValueError, r"^seed: got -1; it must be at least 0$"),
        ({"resume": "newest"}, ValueError, r"^resume: got 'newest'; it must be one of True, False, previous$"),
        ({"compile": "yes"}, ValueError, r"^compile: got 'yes'; it must be one of True, False, auto$"),
        ({"device": "tpu"}, ValueError, r"^device: got 'tpu'; it must be 'auto', 'cpu', "),
        ({"device": "cpu:x"}, ValueError, r"^device: got 'cpu:x'; "),
        ({"precision": "12-true"}, ValueError, r"^precision: got '12-true'; "),
        ({"objective": "elbo2"}, ValueError, r"^objective: got 'elbo2'; did you mean 'elbo'"),
        (
            {"optimizer": 3},
            ValueError,
            r"^optimizer: got int; it must be 'ivon', a torch.optim.Optimizer, a Pyro optimizer",
        ),
        ({"optimizer": pyro.optim.Adam(lambda name: {"lr": 1})}, ValueError, r"^optimizer: a Pyro optimizer with per-"),
        ({"tasks": 3}, TypeError, r"^tasks: got int; it must be a TaskBatch, a Dataset or an iterable of them$"),
    ],
)
def test_bad_arguments_in_one_line(options, error, message):
    model, guide = pair()
    arguments = {"tasks": stream(), "steps": 2, **SILENT, **options}
    with pytest.raises(error, match=message) as caught:
        fit(model, guide, **arguments)
    assert "\n" not in str(caught.value)


def test_nothing_to_train_is_an_error():
    model, guide = pair()
    guide.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^model, guide: neither has a trainable parameter$"):
        fit(model, guide, stream(), steps=1, **SILENT)


def test_metrics_are_written_line_by_line(tmp_path):
    result = fit(*pair(), stream(), "elbo", 6, log_every=2, checkpoint_dir=tmp_path, **SILENT)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert set(lines[0]) == {"step", "loss", "log_likelihood", "kl", "grad_norm", "skipped"}


def test_two_fits_in_one_process_do_not_touch_each_other():
    alone = fit(*pair(), stream(), "elbo", 4, **SILENT)
    first, second = pair(), pair(1)
    fit(*second, stream(), "elbo", 2, **SILENT)
    result = fit(*first, stream(), "elbo", 4, **SILENT)
    fit(*second, stream(), "elbo", 2, **SILENT)
    assert same(weights(result), weights(alone))


def test_a_guide_of_bernoulli_experts_trains_on_tasks():
    torch.manual_seed(1)
    model = BayesianNetwork([1, 16, 2], likelihood="gaussian-head")
    guide = BernoulliExpertGuide(model, width=16)
    result = fit(model, guide, stream(), ConditionalPrior(beta=1.4), 120, learning_rate=3e-3, log_every=20, **SILENT)
    assert result.history[-1]["log_likelihood"] > result.history[0]["log_likelihood"]


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_learning_rates_fall_linearly_to_the_last_step():
    model, guide = pair()
    optimizer = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=1.0)
    seen = []
    fit(
        model,
        guide,
        stream(),
        "elbo",
        5,
        optimizer=optimizer,
        final_learning_rate=0.2,
        log_every=1,
        callbacks=[lambda row: seen.append(optimizer.param_groups[0]["lr"]) and None],
        max_grad_norm=1e-6,
        **SILENT,
    )
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def learned_pair():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BayesianNetwork([1, 8, 2], prior=LearnedGaussianPrior("unit"), likelihood="gaussian-head")
        return model, AmortisedMeanFieldGuide(model, width=8)


@pytest.mark.parametrize("fused", [True, False])
def test_held_parameters_move_from_their_step_on_and_not_before(fused):
    """Bit-identical before, momentum or weight decay or not; then as if training of them had begun there."""

    def run(steps, release):
        model, guide = learned_pair()

        def optimizer(parameters):
            return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, fused=fused)

        fit(model, guide, stream(), "elbo", steps, optimizer=optimizer, release=release, **SILENT)
        return model, guide

    start = learned_pair()[0].prior.state_dict()
    held, guide = run(4, {"model.prior": 4})
    assert all(torch.equal(v, start[n]) for n, v in held.prior.state_dict().items())
    initial = learned_pair()[1].state_dict()
    assert not torch.equal(guide.state_dict()["encoder.points.0.weight"], initial["encoder.points.0.weight"])
    moved, _ = run(5, {"model.prior": 4})
    assert not torch.equal(moved.prior.loc[0], start["loc.0"])
    assert float(moved.prior.loc[0].detach().abs().max()) == pytest.approx(1e-2, rel=1e-3)  # Adam's first step


def test_a_held_fit_resumes_to_the_same_bytes(tmp_path):
    def run(steps, folder=None, **options):
        model, guide = learned_pair()
        return fit(
            model,
            guide,
            stream(),
            "elbo",
            steps,
            checkpoint_dir=folder,
            release={"model.prior": 3},
            checkpoint_every=2,
            **options,
            **SILENT,
        )

    whole = run(6, final_learning_rate=1e-4)
    stopped = run(6, tmp_path, final_learning_rate=1e-4, log_every=2, callbacks=[lambda row: row["step"] == 2])
    assert stopped.steps == 2
    resumed = run(6, tmp_path, final_learning_rate=1e-4, resume=True)
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"release": {"model.priors": 3}}, r"^release: no trainable parameter is named 'model.priors'; there are "),
        ({"release": {"model.prior": -1}}, r"^release\['model.prior'\]: got -1; it must be at least 0$"),
        (
            {"final_learning_rate": -1.0},
            r"^final_learning_rate: got -1.0; it must be finite and not negative, or None$",
        ),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        fit(*learned_pair(), stream(), "elbo", 2, **options, **SILENT)
