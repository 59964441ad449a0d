# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
# ---

# %% [markdown]
# # Ten minutes
#
# Many small data sets, each a function seen at a few points: what is the function elsewhere, and how sure can one be?
# An *amortised* guide answers for a data set that it has not seen, in one pass. Here one is fitted, then its guide
# and its objective are swapped, and what came out is looked at. The fits are short, so that the page builds in a
# minute.

# %%
import matplotlib.pyplot as plt
import torch

import guidebook as gb

torch.manual_seed(0)
tasks = gb.tasks.gp("rbf", batch_size=16, seed=0)  # an infinite stream of seeded tasks
batch = tasks.batch(0)
batch.context.x.shape, batch.target.y.shape  # [tasks, points, inputs], [tasks, points, outputs]

# %% [markdown]
# ## Fit
#
# A **model** is a prior over a network's weights and a likelihood; its path hands the first layer a closed-form
# regression of the context at each x, which is what makes it go through the points. A **guide** is a distribution
# over the weights, given a data set. This one reads it through dropout rates (NVDP).

# %%
head = gb.GaussianHeadLikelihood(min_scale=0.02)  # a mean and a standard deviation at each point, not below the noise
model = gb.BayesianNetwork([1, 32, 32, 2], likelihood=head, input_features=8, path="regression")
guide = gb.guides.BernoulliExpertGuide(model, width=32, pooling="regression", temperature=0.5)
recipe = dict(steps=200, learning_rate=3e-3, schedule="cosine", warmup=0.05, max_grad_norm=1.0, progress=False)
result = gb.fit(model, guide, tasks, objective="conditional-prior", **recipe)
result.history[-1]["loss"]

# %% [markdown]
# ## Predict

# %%
test = gb.tasks.gp_test("rbf", batch_size=3).batch(0)


def show(model, guide):
    """Three test tasks: their points, the mean, 90 % of the predictive."""
    x = torch.linspace(-2, 2, 200).unsqueeze(-1)
    prediction = gb.predict(model, guide, test.context, x, num_samples=50)
    low, high = prediction.quantile(torch.tensor([0.05, 0.95]))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
    for task, ax in enumerate(axes):
        ax.fill_between(x[:, 0], low[task, :, 0], high[task, :, 0], alpha=0.3)
        ax.plot(x[:, 0], prediction.mean[task, :, 0])
        ax.plot(test.context.x[task, :, 0], test.context.y[task, :, 0], "k.")
    figure.tight_layout()
    return gb.predict(model, guide, test.context, test.target.x).log_prob(test.target.y).mean()


print(f"{show(model, guide):.2f} nats a held-out point")

# %% [markdown]
# ## Swap the guide
#
# The same model, stream and line of code; the guide is an argument. So is everything in [the table of
# guides](../models_and_guides.md).

# %%
other = gb.BayesianNetwork([1, 32, 32, 2], likelihood=head, input_features=8, path="regression")
mean_field = gb.guides.AmortisedMeanFieldGuide(other, 32)
gb.fit(other, mean_field, tasks, objective="conditional-prior", **recipe)
print(f"{show(other, mean_field):.2f} nats a held-out point")

# %% [markdown]
# ## Swap the objective
#
# Each is a `pyro.infer.ELBO`, so an argument too. On a smaller network, a guide that is a posterior under a fixed
# prior: what each objective's bound is, how noisy its gradients are, and how many of 8 particles count.

# %%
small = gb.BayesianNetwork([1, 8, 1], noise_scale=0.5)
posterior = gb.guides.AmortisedMeanFieldGuide(small, 32)
gb.fit(small, posterior, tasks, objective="iwae", steps=200, learning_rate=5e-3, progress=False)
gb.compare_objectives(small, posterior, batch, objectives=["elbo", "iwae", "dreg", "rws"], num_particles=[8])

# %% [markdown]
# ## Look at the posterior
#
# Draws of the weights, predictions, log-likelihoods and importance weights in ArviZ, with named dimensions.

# %%
idata = gb.to_arviz(small, posterior, test.context, num_samples=200)
idata

# %% [markdown]
# ## Trust it?
#
# A verdict puts a guide to the test on tasks that it was not trained on, and says what it found. After so few steps
# it need not be kind.

# %%
held_out = gb.tasks.gp("rbf", 32, seed=99).batch(0)
print(gb.verdict(model, guide, held_out, objective="conditional-prior"))

# %% [markdown]
# From here: [your own data](../own_data.md), [choosing a recipe](../recipes.md), [any Pyro
# model](../any_pyro_model.md).
