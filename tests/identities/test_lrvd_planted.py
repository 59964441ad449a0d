"""A planted rank is found by plain SVI (ten problems and controls: ``tests/evaluation/test_planted_rank.py``)."""

import pyro
import torch
from pyro.infer import SVI

from evaluation.adapters.planted_rank import PlantedTask, planted_data
from guides import RankwiseGuide
from inference import prune_ranks
from inference.adapters.lrvd_training import log_alpha_learning_rate
from inference.objectives import TemperedELBO
from pp_models import Dataset, LowRankAdapted


def test_plain_pyro_finds_the_planted_rank():
    steps, rate = 3000, 2e-2
    torch.manual_seed(0)
    task = PlantedTask()
    x, y, truth = (t[0] for t in planted_data(task, 1))
    base = torch.nn.Sequential(torch.nn.Linear(task.dim, task.dim, bias=False))
    torch.nn.init.zeros_(base[0].weight)
    model = LowRankAdapted(
        base,
        ["0"],
        rank=16,
        lora_alpha=16,
        likelihood="gaussian",
        noise_scale=task.noise,
    )
    objective = TemperedELBO(
        kl_count="weights", temperature=5.0, num_data=task.num_data, warmup_steps=steps // 5, max_plate_nesting=0
    )
    guide = RankwiseGuide(model)
    noise_rate = log_alpha_learning_rate(steps, 60.0)

    def options(name):
        return {"lr": noise_rate if "levels" in name else rate, "lrd": 0.02 ** (1 / steps), "clip_norm": 1e9}

    svi = SVI(model, guide, pyro.optim.ClippedAdam(options), objective)
    with pyro.validation_enabled(False):
        for _ in range(steps):
            index = torch.randint(task.num_data, (100,))
            svi.step(Dataset.unchecked(x[index], y[index], None))
    ordered = guide.rank_log_alpha()["0"].sort().values
    assert float(ordered[4] - ordered[3]) > 4
    assert prune_ranks(model, guide=guide, threshold="gap").kept == {"0": 4}
    with torch.no_grad():
        update = model.outputs(torch.eye(task.dim)).T
    assert float((update - truth).norm() / truth.norm()) < 0.09
