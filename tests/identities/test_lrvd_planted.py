"""Low-rank variational dropout finds a planted rank, and does not where it must not."""

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

from guides import RankwiseGuide
from inference import prune_ranks
from inference.lrvd_training import log_alpha_learning_rate
from pp_models import Dataset, LowRankAdapted
from tests.planted_ranks import NOISE, D, N, planted_family_runs, planted_rank_runs, problem

WEIGHTS = 5.0 * 2 * D  # temperature 5, every weight counted


@pytest.fixture(scope="module")
def runs():
    """By control: 10 runs of the method itself, 3 of each negative control, all in one loop."""
    variants = {
        "method": (10, True, WEIGHTS, 4e-2),
        "not sampled": (3, False, WEIGHTS, 4e-2),
        "slow": (3, True, WEIGHTS, 1e-3),
        "slower": (3, True, WEIGHTS, 1e-4),
        "ranks counted": (3, True, 5.0, 4e-2),
    }
    with torch.random.fork_rng():
        return dict(zip(variants, planted_rank_runs(list(variants.values())), strict=True))


def test_the_planted_rank_is_found(runs):
    found = runs["method"]
    for threshold in (-1.0, 1.0, 3.0):
        assert sum(k == 4 for k in found.kept(threshold)) >= 9
    assert float(found.gaps(4).min()) > 4
    assert float(found.errors(1.0).max()) < 0.07
    own, random, best = found.areas()
    assert best - own < 0.03
    assert own - random > 0.25


def test_without_sampling_the_likelihood_says_nothing_about_the_ranks(runs):
    found = runs["not sampled"]
    assert found.kept(3.0) == [0, 0, 0]
    assert float(found.gaps(4).max()) < 1e-3  # all are at the bound


@pytest.mark.parametrize("control", ["slow", "slower"])
def test_a_small_learning_rate_of_log_alpha_prunes_nothing(runs, control):
    assert runs[control].kept(3.0) == [16, 16, 16]
    assert runs[control].kept(-1.0) == [16, 16, 16]


def test_a_kl_counted_once_a_rank_is_too_weak_for_a_regression(runs):
    assert min(runs["ranks counted"].kept(-1.0)) >= 14


def test_shared_variances_find_it_less_surely():
    found = planted_family_runs("shared_sigma", steps=2000)
    assert all(4 <= k <= 6 for k in found.kept(1.0))
    assert float(found.errors(1.0).median()) < 0.13


def test_shared_variances_without_sampling_lose_everything():
    found = planted_family_runs("shared_sigma", sampled=False, steps=1500)
    assert found.kept(3.0) == [0, 0, 0]
    assert float(found.errors(3.0).min()) == 1.0


def test_plain_pyro_finds_it_too():
    steps, rate = 2000, 2e-2
    torch.manual_seed(0)
    truth, x, y = (t[0] for t in problem(1))
    base = torch.nn.Sequential(torch.nn.Linear(D, D, bias=False))
    torch.nn.init.zeros_(base[0].weight)
    model = LowRankAdapted(
        base,
        ["0"],
        rank=16,
        lora_alpha=16,
        likelihood="gaussian",
        noise_scale=NOISE,
        kl_count="weights",
        temperature=5.0,
        num_data=N,
        warmup_steps=steps // 5,
    )
    guide = RankwiseGuide(model)
    noise_rate = log_alpha_learning_rate(steps, 60.0)

    def options(name):
        return {"lr": noise_rate if "levels" in name else rate, "lrd": 0.02 ** (1 / steps), "clip_norm": 1e9}

    svi = SVI(model, guide, pyro.optim.ClippedAdam(options), TraceMeanField_ELBO())
    with pyro.validation_enabled(False):
        for _ in range(steps):
            index = torch.randint(N, (100,))
            svi.step(Dataset._trusted(x[index], y[index], None))
    ordered = guide.rank_log_alpha()["0"].sort().values
    assert float(ordered[4] - ordered[3]) > 4
    assert prune_ranks(model, guide=guide, threshold="gap").kept == {"0": 4}
    with torch.no_grad():
        update = model.outputs(torch.eye(D)).T
    assert float((update - truth).norm() / truth.norm()) < 0.09
