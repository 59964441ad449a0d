"""The parameters whose held-out loss was lowest: those of that step, by hand, and the same after a resume."""

import pytest
import torch

import guidebook as gb
from evaluation.methods import TaskShape, build
from inference import fit
from inference.best_parameters import BestParameters
from inference.checkpoint import CheckpointError, load
from inference.held_out import HELD_OUT
from pp_models.tasks.task_stream import batches_of
from tests.inference.test_averaging import DATA, Level, Noisy, make, sgd

#: a step every row, so that the best of them all is looked for
STEPS = 30


def run(steps=STEPS, keep_best=True, guide=None, **options):
    options = {"progress": False, "log_every": 1, "optimizer": sgd, "validation": DATA} | options
    objective = make("iwae", num_particles=1)
    guide = Noisy() if guide is None else guide
    return fit(Level(), guide, DATA, objective, steps=steps, seed=0, keep_best=keep_best, **options)


def parts_of(method):
    return method.model, method.guide, method.objective


def lowest(history):
    return min(history, key=lambda row: row[HELD_OUT])["step"]


def test_a_fit_ends_at_the_parameters_of_the_lowest_held_out_loss():
    guide, after = Noisy(), []
    last = run(keep_best=False, guide=guide, callbacks=[lambda row: after.append(guide.loc.detach().clone())])
    best = run()
    assert last.best_step is None and best.best_step == lowest(best.history) < STEPS
    assert torch.equal(best.guide.loc, after[best.best_step - 1])
    assert best.history == last.history  # training goes on from the last parameters


@pytest.mark.parametrize("killed_at", [3, 12, 25])
def test_a_killed_run_ends_with_the_bytes_it_would_have_had(tmp_path, killed_at):
    def stop(row):
        if row["step"] == killed_at:
            raise RuntimeError("killed")

    options = {"checkpoint_every": 2}
    whole = run(checkpoint_dir=tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="killed"):
        run(checkpoint_dir=tmp_path / "killed", callbacks=[stop], **options)
    again = run(checkpoint_dir=tmp_path / "killed", resume=True, **options)
    assert torch.equal(whole.guide.loc, again.guide.loc) and whole.best_step == again.best_step
    for name in (f"weights-{STEPS:08d}.safetensors", f"state-{STEPS:08d}.pt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_checkpoints_hold_the_best_and_what_a_longer_run_goes_on_from(tmp_path):
    first = run(10, checkpoint_dir=tmp_path)
    assert torch.equal(load(tmp_path)[1]["guide.loc"], first.guide.loc.detach())
    longer = run(STEPS, checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(longer.guide.loc, run().guide.loc) and longer.best_step == run().best_step


def test_patience_ends_a_fit_at_its_best_also_when_it_is_opened_again(tmp_path):
    ended = run(200, patience=4, checkpoint_dir=tmp_path)
    assert ended.best_step == lowest(ended.history) == ended.steps - 4
    again = run(200, patience=4, checkpoint_dir=tmp_path, resume=True)
    assert again.steps == ended.steps and torch.equal(again.guide.loc, ended.guide.loc)


def test_a_network_that_learns_four_tasks_by_heart_ends_before_it_does():
    """On tasks that neither training nor the choice saw, the best is ahead of the last, every seed."""
    stream = gb.tasks.gp("rbf", 4)
    few, watched, others = stream.batch(0), batches_of(stream, 1, 16), batches_of(stream, 9, 32)
    for seed in range(3):
        losses = {}
        for keep_best in (False, True):
            torch.manual_seed(seed)
            model, guide, objective = parts_of(build("cnp", TaskShape.of(stream, 32)))
            fit(
                model, guide, few, objective, steps=60, seed=seed, validation=watched, keep_best=keep_best,
                learning_rate=5e-3, log_every=10, progress=False,
            )  # fmt: skip
            with torch.no_grad():
                losses[keep_best] = sum(float(objective.loss(model, guide, batch)) for batch in others) / len(others)
        assert losses[True] < losses[False] - 1


def test_what_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^keep_best: got True without validation; it needs held-out tasks to watch$"):
        run(validation=None)
    with pytest.raises(ValueError, match=r"^keep_best: got True with average = 0.5; take one of them$"):
        run(average=0.5)
    run(10, checkpoint_dir=tmp_path / "best")
    with pytest.raises(
        ValueError, match=r"^keep_best: got False, but the run in .* is at its best parameters, of step"
    ):
        run(12, False, checkpoint_dir=tmp_path / "best", resume=True)
    run(10, False, checkpoint_dir=tmp_path / "last")
    with pytest.raises(ValueError, match=r"^keep_best: got True, but the run in .* has not kept its best parameters"):
        run(12, checkpoint_dir=tmp_path / "last", resume=True)


def test_a_loss_that_is_not_finite_is_never_the_best():
    best = BestParameters([torch.nn.Parameter(torch.zeros(2))], True)
    best.note({"step": 1})
    assert best.step == 0 and not best.values and best.state_dict([]) is None
    best.note({"step": 2, HELD_OUT: 1.0})
    best.note({"step": 3, HELD_OUT: 2.0})
    assert best.step == 2


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    best = BestParameters([torch.nn.Parameter(torch.zeros(2))], True)
    whole = {"step": 2, "loss": 1.0, "values": [torch.zeros(2)], "iterates": [torch.zeros(2)]}
    wrong = (
        {"step": "2"},
        {"loss": float("nan")},
        {"values": [torch.zeros(3)]},
        {"iterates": [torch.tensor([torch.nan] * 2)]},
    )
    for state in (*({**whole, **part} for part in wrong), [1], {"step": 2}):
        with pytest.raises(CheckpointError, match=r"the best parameters in its state do not fit"):
            best.load(state, [], tmp_path)
    best.load(whole, [], tmp_path)
    assert best.step == 2
