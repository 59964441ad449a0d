"""Which point to ask for next, on a mixture whose information is known in closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from evaluation.scores.mixture_uncertainty import entropy_of_mean, mutual_information
from inference.active_context import acquire, acquisition_scores, entropy_drop, information
from pp_models import Dataset
from pp_models.contract import Guide
from pp_models.task_plates import task_plates


class TwoBranches(nn.Module):
    """Experts N(±1, 0.01) where x > 0 and both N(0, 1) elsewhere: only points at x > 0 tell of the weights."""

    def forward(self, data):
        with task_plates(data.batch_shape, data.x.device):
            z = pyro.sample("mixture_weights", dist.Dirichlet(torch.ones(2)))
            told = (data.x > 0).float()
            loc = told * torch.tensor([-1.0, 1.0])
            scale = torch.where(told > 0, 0.01, 1.0).expand_as(loc)
            experts = dist.Independent(dist.Normal(loc.unsqueeze(-1), scale.unsqueeze(-1)), 1)
            weights = dist.Categorical(
                z.unsqueeze(-2).expand(*torch.broadcast_shapes(z.shape[:-1] + (1, 1), loc.shape))
            )
            mixture = dist.MixtureSameFamily(weights, experts.expand(weights.batch_shape + (2,)))
            pyro.sample("y", mixture.to_event(1), obs=data.y)


class Counts(Guide):
    """The exact posterior of ``TwoBranches``: Dir(1 + how many points of either sign at x > 0)."""

    def concentration(self, data):
        told = (data.x[..., 0] > 0) & data.full_mask()
        up = data.y[..., 0] > 0
        return 1.0 + torch.stack([(told & ~up).sum(-1), (told & up).sum(-1)], -1)

    def forward(self, data):
        with task_plates(data.batch_shape, data.x.device):
            pyro.sample("mixture_weights", dist.Dirichlet(self.concentration(data)))


@pytest.fixture
def pool():
    x = torch.linspace(-0.95, 0.95, 20).reshape(1, 20, 1).repeat(3, 1, 1)
    return Dataset(x, torch.where(x > 0, torch.tensor([1.0, -1.0, 1.0]).reshape(3, 1, 1), 0.0))


def context(points, pool):
    return pool.points(slice(20 - points, 20)) if points else pool.points(slice(0, 0))


@pytest.mark.parametrize("points", [0, 2])
def test_information_is_that_of_the_dirichlet_where_a_point_tells_its_expert(pool, points):
    known = context(points, pool)
    found = information(TwoBranches(), Counts(), known, pool, 300, seed=1)
    told = pool.x[..., 0] > 0
    for task, expected in enumerate(mutual_information(Counts().concentration(known)).tolist()):
        assert float(found[task][told[task]].mean()) == pytest.approx(expected, abs=0.02)
    assert float(found[~told].abs().max()) < 1e-5
    again = information(TwoBranches(), Counts(), known, pool, 300, seed=1)
    assert torch.equal(found, again)


def test_the_expected_drop_of_entropy_is_that_of_one_count(pool):
    known = context(0, pool)
    found = entropy_drop(TwoBranches(), Counts(), known, pool, seed=0)
    third = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    told = pool.x[..., 0] > 0
    torch.testing.assert_close(found[told], torch.full((30,), math.log(2) - third), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[~told], torch.zeros(30), rtol=0, atol=1e-6)
    sure = entropy_drop(TwoBranches(), Counts(), context(5, pool), pool, 2000, seed=0)
    # one more point of a task known to lean one way: 6/7 of the draws make it surer, the others less sure
    alphas = torch.tensor([[6.0, 1.0], [7.0, 1.0], [6.0, 2.0]])
    before, up, down = entropy_of_mean(alphas).tolist()
    expected = before - (6 * up + down) / 7
    assert float(sure[:, 10:].mean()) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("acquisition", ["information", "entropy drop"])
def test_points_that_tell_come_first(pool, acquisition):
    batches = acquire(TwoBranches(), Counts(), pool, 2, 5, acquisition, seed=0)
    first = set(batches[0].context.x.flatten().tolist())
    assert [b.context.num_points for b in batches] == [2, 3, 4, 5]
    for task in range(3):
        seen, asked = (set(b.context.x[task, :, 0].tolist()) for b in (batches[0], batches[-1]))
        assert len(asked - seen) == 3 and all(x > 0 for x in asked - seen)
    spread = acquire(TwoBranches(), Counts(), pool, 2, 5, "max sd", seed=0)
    assert set(spread[0].context.x.flatten().tolist()) == first
    # the predictive sd is largest where nothing can be learned: noise of sd 1 against branches at ±1 that are told
    sd = acquisition_scores(TwoBranches(), Counts(), pool.points(slice(18, 20)), pool, "max sd")
    assert float(sd[:, :10].min()) > float(sd[:, 10:].max())


def test_random_scores_are_seeded(pool):
    draws = [acquisition_scores(None, None, pool, pool, "random", seed=s) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_what_cannot_be_asked_is_refused(pool):
    with pytest.raises(ValueError, match="acquisition: got 'ucb'; it must be one of information, entropy drop, max sd"):
        acquire(None, None, pool, 2, 5, "ucb", 0)
    with pytest.raises(ValueError, match="acquisition: got 'ucb'"):
        acquisition_scores(None, None, pool, pool, "ucb")
    with pytest.raises(ValueError, match="start, budget: got 2 and 20; it must be 0 <= start <= budget < 20 points"):
        acquire(None, None, pool, 2, 20, "random", 0)
    with pytest.raises(TypeError, match="guide: got Linear; 'entropy drop' needs a guide with concentration"):
        entropy_drop(None, nn.Linear(1, 1), pool, pool)
