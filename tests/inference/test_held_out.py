"""Held-out tasks during a fit: their loss by the same draws, the end for lack of patience, resumed or not."""

import json

import pyro
import pytest
import torch

import guidebook as gb
from inference.held_out import HELD_OUT, OF_A_STREAM, HeldOutLoss, held_out_batches, out_of_patience
from inference.objectives import make
from inference.training_step import TrainingStep
from pp_models import DataError, Dataset


def pair():
    torch.manual_seed(0)
    model = gb.BayesianNetwork([1, 4, 1], noise_scale=0.5)
    return model, gb.guides.AmortisedMeanFieldGuide(model, 8)


def few():
    return gb.tasks.gp("rbf", 2, seed=0).batch(0)


def fitted(steps=60, **options):
    options = {"validation": gb.tasks.gp("rbf", 4, seed=7).batch(0), "log_every": 5} | options
    return gb.fit(*pair(), few(), "elbo", steps, progress=False, learning_rate=3e-2, **options)


def test_the_loss_is_the_objectives_and_training_does_not_feel_it():
    watched = fitted()
    assert [row["step"] for row in watched.history if HELD_OUT in row] == list(range(5, 61, 5))
    plain = gb.fit(*pair(), few(), "elbo", 60, progress=False, learning_rate=3e-2, log_every=5)
    for one, two in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert [row["loss"] for row in watched.history] == [row["loss"] for row in plain.history]
    batch = gb.tasks.gp("rbf", 4, seed=7).batch(0)
    torch.manual_seed(0)  # the fit's seed
    expected = make("elbo").differentiable_loss(watched.model, watched.guide, batch)
    assert watched.history[-1][HELD_OUT] == pytest.approx(float(expected.detach()), rel=1e-6)


def test_it_ends_for_lack_of_patience_and_a_resumed_run_has_ended(tmp_path):
    first = fitted(2000, patience=3, checkpoint_dir=tmp_path)
    losses = [row[HELD_OUT] for row in first.history]
    assert first.steps < 2000 and min(losses[-3:]) > min(losses[:-3])
    assert not any(out_of_patience(first.history[:k], 3) for k in range(len(losses)))
    again = fitted(2000, patience=3, checkpoint_dir=tmp_path, resume=True)
    assert again.steps == first.steps and again.history == first.history
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row[HELD_OUT] for row in rows] == losses


def test_what_is_watched():
    stream = gb.tasks.gp("rbf", 2, seed=3)
    assert len(held_out_batches(stream)) == OF_A_STREAM
    model, guide = pair()
    module = TrainingStep(model, guide, make("elbo"))
    module.train()
    state = torch.get_rng_state()
    both = HeldOutLoss(module, held_out_batches([few(), few()]), torch.device("cpu"), torch.float32, 0)()
    assert torch.equal(state, torch.get_rng_state()) and module.training and list(both) == [HELD_OUT]
    broken = Dataset(few().target.x, torch.full_like(few().target.y, 1e38))
    with pyro.validation_enabled(False):  # as within a fit
        assert HeldOutLoss(module, [broken], torch.device("cpu"), torch.float32, 0)() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": None, "patience": 3}, "patience: got 3 without validation; it needs held-out tasks to watch"),
        ({"validation": []}, "validation: got none; it must hold TaskBatch or Dataset, at least one"),
        ({"validation": [3]}, "validation: got a int; it must hold TaskBatch or Dataset, at least one"),
        ({"validation": 3}, "validation: got int; it must be a TaskBatch, a Dataset, or several"),
        ({"patience": 0}, "patience: got 0; it must be at least 1, or None"),
    ],
)
def test_what_cannot_be_is_one_line(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        fitted(**options)
    with pytest.raises(DataError, match="^validation: y is None"):
        held_out_batches(few().target.without_y())
