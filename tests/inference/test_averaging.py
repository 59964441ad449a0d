"""The mean of a fit's last parameters: computed by hand, nearer the optimum, and the same after a resume."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import fit
from inference.averaging import LastParameters
from inference.checkpoint import CheckpointError, load
from inference.objectives import make
from pp_models import Dataset
from pp_models.contract import Guide, Model

OPTIMUM = 1.0
DATA = Dataset(torch.zeros(1, 1), torch.zeros(1, 1))


class Level(Model):
    """A latent in two dimensions whose posterior's mean is known; nothing of it is trained."""

    def forward(self, data):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 2**0.5).to_event(1))
        pyro.sample("y", dist.Normal(z, 2**0.5).to_event(1), obs=torch.full((2,), 2 * OPTIMUM))


class Noisy(Guide):
    """Of a given scale: under iwae with one particle the gradient of its mean is that of a quadratic, with noise."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(2))
        self.scale = scale

    def forward(self, data):
        pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))


def run(steps=40, average=None, seed=0, guide=None, **options):
    guide = Noisy() if guide is None else guide
    options = {"progress": False, "log_every": 1, "optimizer": sgd} | options
    objective = make("iwae", num_particles=1)
    return fit(Level(), guide, DATA, objective, steps=steps, seed=seed, average=average, **options)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.5)


def iterates(steps, **options):
    """The parameters after every step."""
    guide, found = Noisy(), []
    run(steps, guide=guide, callbacks=[lambda row: found.append(guide.loc.detach().clone())], **options)
    return torch.stack(found)


@pytest.mark.parametrize(("average", "last"), [(0.25, 10), (1.0, 40), (0.001, 1)])
def test_it_is_the_mean_of_the_iterates(average, last):
    result = run(average=average)
    expected = iterates(40)[-last:].mean(0)
    torch.testing.assert_close(result.guide.loc.detach(), expected, rtol=1e-6, atol=1e-6)
    assert result.averaged == last == result.history[-1]["averaged"]
    assert [row["averaged"] for row in result.history[: 40 - last]] == [0] * (40 - last)


def test_it_is_nearer_the_optimum_than_the_last_step():
    errors = {
        average: torch.stack([run(200, average, seed).guide.loc.detach() - OPTIMUM for seed in range(5)])
        .square()
        .mean()
        for average in (None, 0.5)
    }
    assert errors[0.5] < 0.3 * errors[None]


@pytest.mark.parametrize("killed_at", [20, 35])
def test_a_killed_run_ends_with_the_bytes_it_would_have_had(tmp_path, killed_at):
    def stop(row):
        if row["step"] == killed_at:
            raise RuntimeError("killed")

    options = {"average": 0.25, "checkpoint_every": 5}
    whole = run(checkpoint_dir=tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="killed"):
        run(checkpoint_dir=tmp_path / "killed", callbacks=[stop], **options)
    again = run(checkpoint_dir=tmp_path / "killed", resume=True, **options)
    assert torch.equal(whole.guide.loc, again.guide.loc) and whole.history == again.history
    for name in ("weights-00000040.safetensors", "state-00000040.pt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_checkpoint_holds_the_mean_and_a_longer_run_what_it_goes_on_from(tmp_path):
    first = run(40, 0.25, checkpoint_dir=tmp_path)
    assert torch.equal(load(tmp_path)[1]["guide.loc"], first.guide.loc.detach())
    longer = run(60, 0.25, checkpoint_dir=tmp_path, resume=True)
    assert torch.equal(longer.guide.loc, run(60, 0.25).guide.loc)
    assert longer.averaged == 15


def test_held_out_losses_are_at_the_mean():
    guide = Noisy(1e-6)
    last = run(4, 1.0, guide=guide, validation=DATA).history[-1]
    torch.manual_seed(0)  # which each held-out loss begins with
    at_the_mean = make("iwae", num_particles=1).loss(Level(), guide, DATA)
    assert last["held_out_loss"] == pytest.approx(at_the_mean, abs=1e-4)
    moved = run(4, guide=Noisy(1e-6), validation=DATA).history[-1]
    assert moved["held_out_loss"] != pytest.approx(at_the_mean, abs=1e-3)


def test_what_a_resumed_run_cannot_average_is_refused(tmp_path):
    run(40, 0.25, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"^average: got 0.25 of so many steps that averaging begins at step 34, but"):
        run(45, 0.25, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"^average: got None, but the run in .* is at the mean of its last 10 steps;"):
        run(45, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"^average: got 1.5; it must lie in \(0, 1\], or None$"):
        run(40, 1.5)


def test_half_precision_is_averaged_in_single():
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    last = LastParameters([parameter], 1.0, 300)
    with torch.no_grad():
        for step in range(300):
            parameter.fill_(1.0 if step % 2 else 1.0078125)
            last.after(step)
    torch.testing.assert_close(last.values[0], torch.full((2,), 1.00390625), rtol=0, atol=1e-4)


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    last = LastParameters([torch.nn.Parameter(torch.zeros(2))], 0.5, 4)
    nan = {"count": 2, "averages": [torch.full((2,), torch.nan)], "iterates": [torch.zeros(2)]}
    for state in ({"count": 2}, {**nan, "averages": [torch.zeros(3)]}, nan, [1]):
        with pytest.raises(CheckpointError, match=r"the mean of the last parameters in its state does not fit"):
            last.load(state, 4, tmp_path)
