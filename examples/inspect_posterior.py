"""From a fit to ArviZ tables, plots and a verdict: what to look at before a posterior is used.

Run: python examples/inspect_posterior.py
"""

import arviz as az
import torch

import guidebook as gb

if __name__ == "__main__":
    torch.manual_seed(0)
    stream = gb.tasks.squared_exponential(batch_size=4, lengthscale=1.0, num_points=(20, 30))
    model = gb.BayesianNetwork([1, 8, 1], noise_scale=0.1, activation="tanh")
    guide = gb.guides.BNNWeightGuide(model)
    gb.fit(model, guide, stream, objective="elbo", steps=100, learning_rate=1e-2, progress=False)

    held_out = gb.tasks.squared_exponential(16, seed=1, lengthscale=1.0, num_points=(25, 25)).batch(0)
    idata = gb.to_arviz(model, guide, held_out.full, num_samples=200, seed=0)
    print(az.summary(idata, var_names=["layer_1.weight"], coords={"task": [0]}, kind="stats"))

    verdict = gb.verdict(model, guide, held_out, num_samples=200, num_simulations=100)
    print(verdict)  # trust, use with importance weights, or do not trust, and why
    better = gb.sample_posterior(model, guide, held_out.full, 200, correct="psis")
    print("corrected draws:", {name: list(draws.shape) for name, draws in better.items()})

    gb.plots.rank_ecdf_plot(verdict.ranks).savefig("calibration.png")
    forest = az.plot_forest(idata, var_names=["layer_1.weight"], coords={"task": [0]}, combined=True)
    figure = forest if hasattr(forest, "savefig") else forest[0].figure  # a PlotCollection from ArviZ 1 on
    figure.savefig("forest.png")
