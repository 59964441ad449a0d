"""Compare objectives: one model, one guide, one stream of tasks; only the name changes.

Run: python examples/compare_objectives.py
"""

import torch

import guidebook as gb


def compare(name: str, steps: int = 100, **options) -> tuple[float, float, float]:
    """Held-out log-likelihood per point, bound per task (both in nats) and effective sample size of the weights."""
    torch.manual_seed(0)
    model = gb.BayesianNetwork([1, 8, 1], noise_scale=0.5)
    guide = gb.guides.AmortisedMeanFieldGuide(model, width=32)
    objective = gb.objectives.make(name, **options)  # a pyro.infer.ELBO: pyro.infer.SVI takes it too
    stream = gb.tasks.gp("rbf", batch_size=8, seed=0)
    gb.fit(model, guide, stream, objective, steps, learning_rate=5e-3, progress=False)
    test = gb.tasks.gp("rbf", batch_size=64, seed=1).batch(0)
    prediction = gb.predict(model, guide, test.context, test.target.x, num_samples=64)
    held_out = prediction.log_prob(test.target.y)[test.target.full_mask()].mean()
    with torch.no_grad():
        terms = objective.terms(model, guide, test, diagnostics=True)
    return held_out.item(), terms.bound.mean().item(), terms.ess.mean().item()


if __name__ == "__main__":
    for name in ("elbo", "iwae", "rws", "pp-avi"):  # "guidebook list objectives" prints all
        held_out, bound, ess = compare(name, num_particles=16)
        print(f"{name:8s} held-out {held_out:6.2f} nats a point, bound {bound:7.1f} a task, ESS {ess:4.1f} of 16")
