"""What a verdict says of fits of ordinary Pyro models, good ones and broken ones: its confusion table.

Run: python -m benchmarks.verdict_any_model [--nuts-seconds 60]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal

import guidebook as gb

SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred(y: torch.Tensor) -> None:
    """Eight schools (Rubin 1981), centred."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=y)


def non_centred(y: torch.Tensor) -> None:
    """The same, non-centred."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * offset, ERRORS), obs=y)


def regression(x: torch.Tensor, y: torch.Tensor) -> None:
    """A linear regression with its noise."""
    weights = pyro.sample("weights", dist.Normal(0.0, 3.0).expand([x.shape[-1]]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ weights, scale), obs=y)


def funnel(y: torch.Tensor) -> None:
    """Neal's funnel with a weak observation."""
    level = pyro.sample("level", dist.Normal(0.0, 3.0))
    with pyro.plate("parts", len(y)):
        part = pyro.sample("part", dist.Normal(0.0, (level / 2).exp()))
        pyro.sample("y", dist.Normal(part, 3.0), obs=y)


def fitted(model: Callable, guide: type, args: tuple, steps: int) -> tuple[Any, list[float]]:
    """A guide trained by Pyro's SVI, and its losses."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    made = guide(model)
    svi = SVI(model, made, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / steps)}), Trace_ELBO(5))
    return made, [svi.step(*args) for _ in range(steps)]


def cases() -> list[tuple[str, Callable, type, tuple, int, str]]:
    """Name, model, guide, arguments, steps, and what it is: good, mendable or broken."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.5 * torch.randn(100, generator=generator)
    twin = torch.cat([x[:, :1], x[:, :1] + 0.02 * torch.randn(100, 1, generator=generator)], 1)
    return [
        ("regression, full covariance", regression, AutoMultivariateNormal, (x, y), 1500, "good"),
        ("regression, mean field", regression, AutoNormal, (x, y), 1500, "good"),
        ("regression, 60 steps", regression, AutoNormal, (x, y), 60, "broken"),
        ("regression, a point", regression, AutoDelta, (x, y), 1500, "broken"),
        ("twin inputs, mean field", regression, AutoNormal, (twin, y), 1500, "broken"),
        ("twin inputs, full covariance", regression, AutoMultivariateNormal, (twin, y), 3000, "good"),
        ("schools, non-centred, full covariance", non_centred, AutoMultivariateNormal, (SCHOOLS,), 1500, "mendable"),
        ("schools, non-centred, low rank", non_centred, AutoLowRankMultivariateNormal, (SCHOOLS,), 1500, "mendable"),
        ("schools, non-centred, mean field", non_centred, AutoNormal, (SCHOOLS,), 1500, "mendable"),
        ("schools, centred, mean field", centred, AutoNormal, (SCHOOLS,), 1500, "broken"),
        ("funnel, mean field", funnel, AutoNormal, (torch.zeros(5),), 1500, "broken"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuts-seconds", type=float, default=60.0)
    seconds = parser.parse_args().nuts_seconds
    torch.set_num_threads(1)
    rows = []
    for name, model, guide, args, steps, kind in cases():
        made, losses = fitted(model, guide, args, steps)
        found = gb.verdict(model, made, *args, losses=losses, nuts_seconds=seconds)
        measured = {finding.name: finding.mark for finding in found.findings}
        rows.append(
            {
                "fit": name, "is": kind, "verdict": found.level, "k-hat": found.numbers.get("khat"),
                "effective": found.numbers.get("efficiency"), "near NUTS": found.numbers.get("share_near_nuts"),
                "loss settled": {"+": "yes", "-": "no"}.get(measured.get("training", ""), "?"),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
