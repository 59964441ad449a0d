"""Several methods trained in processes of their own come back as if trained here."""

import torch

from evaluation.methods import TaskShape
from evaluation.recipes import recipe
from guidebook.parallel_training import Job, train_jobs
from inference import fit
from pp_models import tasks


def test_processes_give_what_one_after_the_other_gives():
    stream = tasks.gp("rbf", 2, 0)
    jobs = [Job(name, name, TaskShape(1, 1, 16), stream, 5, 3) for name in ("cnp", "nvdp")]
    trained = train_jobs(jobs)
    assert list(trained) == ["cnp", "nvdp"]
    for job in jobs:
        method, history = trained[job.label]
        here = job.build()
        how = recipe(job.method)
        optimizer = torch.optim.Adam(
            [*here.model.parameters(), *here.guide.parameters()], how.learning_rate, fused=True
        )
        fit(
            here.model, here.guide, stream, here.objective, 5, 3, optimizer, "cpu", progress=False,
            schedule=how.schedule, warmup=how.warmup, max_grad_norm=how.max_grad_norm,
        )  # fmt: skip
        assert history[-1]["step"] == 5
        for name, value in here.guide.state_dict().items():
            torch.testing.assert_close(method.guide.state_dict()[name], value, rtol=1e-4, atol=1e-6)
