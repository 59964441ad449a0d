# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
# ---

# %% [markdown]
# # Sensors with few readings each
#
# Carbon dioxide at Mauna Loa, a reading a week since 1974, some weeks missing. **What was decided.** A task is a year:
# its level is its own, its seasons are those of all years. A model that has learned from other years should draw the
# whole curve of a new one from a handful of readings, and say how sure it is.
#
# The table is NOAA's weekly file, looked for in the folder that `GUIDEBOOK_DATA` names; without it a curve of the same
# shape is made up, so that this page runs anywhere.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import guidebook as gb

torch.manual_seed(0)
file = Path(os.environ.get("GUIDEBOOK_DATA", ".")) / "co2_mauna_loa" / "co2_weekly_mlo.csv"
if file.exists():
    table = pd.read_csv(file, comment="#")
    table = table.rename(columns={"average": "co2"})[["year", "month", "day", "co2"]]
    table["co2"] = table["co2"].where(table["co2"] > 0)  # -999.99 stands for a missing week
else:
    rng = np.random.default_rng(0)
    weeks = pd.date_range("1975-01-05", "2020-12-27", freq="7D")
    phase = 2 * np.pi * weeks.dayofyear / 365.25
    co2 = 331 + 1.85 * (weeks.year - 1975) + 1.85 * weeks.dayofyear / 365 + 3 * np.sin(phase) - np.cos(2 * phase)
    table = pd.DataFrame({"year": weeks.year, "month": weeks.month, "day": weeks.day, "co2": co2})
    table["co2"] += rng.normal(0, 0.4, len(table))
    table.loc[rng.random(len(table)) < 0.02, "co2"] = np.nan
table["day of year"] = pd.to_datetime(table[["year", "month", "day"]]).dt.dayofyear
f"{table['year'].nunique()} years, {len(table)} weeks, {int(table['co2'].isna().sum())} of them missing"

# %% [markdown]
# Missing weeks are no points; levels and days are scaled by the training years, and predictions come back in ppm. A
# context has 1 to 12 readings: that is what will be there when the model is used.

# %%
tasks = gb.tasks.from_dataframe(
    table, task="year", x="day of year", y="co2", split=(0.7, 0.15, 0.15), num_context=(1, 12), batch_size=8, seed=0
)
tasks

# %% [markdown]
# The decoder reads a closed-form regression of the readings at each day (`path="learned-regression"`), and a network
# the rest; `npml` maximises what is scored in the end, the likelihood of the other weeks.

# %%
model = gb.NeuralProcess(
    1, 1, latent_dim=0, representation_dim=32, path="learned-regression", width=32, depth=3,
    likelihood=gb.GaussianHeadLikelihood(0.01),
)  # fmt: skip
guide = gb.guides.NeuralProcessGuide(model, 32)
objective = gb.objectives.make("npml", num_particles=1, normalize=True)
gb.fit(
    model, guide, tasks, objective, steps=600, learning_rate=3e-3, schedule="cosine", max_grad_norm=1.0, progress=False
)

# %% [markdown]
# A year that was never seen, six of its weeks given, in the units of the table.

# %%
year = tasks.test.names[0]
unseen = table[table["year"].astype(str) == year].reset_index(drop=True)  # predictions name rows by number
truth = unseen["co2"].copy()
given = unseen.index[:: len(unseen) // 6]
unseen.loc[~unseen.index.isin(given), "co2"] = None
found = gb.predict_frame(model, guide, unseen, tasks, num_samples=100, seed=0)
frame = found.to_dataframe()
inside = truth[frame.index].between(frame["co2_q0.05"], frame["co2_q0.95"])[truth[frame.index].notna()]
print(f"{year}: {inside.mean():.0%} of the other weeks inside the 90 % interval, which is")
wide = (frame["co2_q0.95"] - frame["co2_q0.05"]).mean()
print(f"{wide:.1f} ppm wide; all years span {np.ptp(table['co2'].dropna()):.0f}")

# %%
figure, axes = plt.subplots(figsize=(7, 3.5))
axes.fill_between(frame["day of year"], frame["co2_q0.05"], frame["co2_q0.95"], alpha=0.25, label="90 % interval")
axes.plot(frame["day of year"], frame["co2_mean"], label="mean")
axes.plot(unseen["day of year"], truth, ".", color="0.6", label="not given")
axes.plot(unseen.loc[given, "day of year"], truth[given], "o", color="black", label="given")
axes.set(xlabel="day of the year", ylabel="CO2, ppm", title=f"{year}, from {len(given)} readings")
axes.legend()

# %% [markdown]
# **The verdict, read aloud.** A conditional process is held to its predictions: whether a year's own readings are worth
# something over another's, whether intervals hold what they say, and whether the result beats the plain spread of all
# years. It is given on the validation years, which no step saw.

# %%
print(gb.verdict(model, guide, [tasks.validation.batch(i) for i in range(6)], objective="npml"))

# %% [markdown]
# With NOAA's file this page saw: 93 % of the other weeks inside an interval 1.7 ppm wide, where all years span 93 ppm;
# TRUST, for 95 % intervals hold 92 ± 1 % and the mean explains the given points as a Gaussian process of a year does.
#
# `validation` and `test` are few years, and years far above all training ones ask for extrapolation: split by time
# (`forecast=True` within a task; by hand between tasks) where that is what the model is for.
