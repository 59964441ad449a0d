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
#: of the hierarchical regression
GROUPS = 10


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


def hierarchy(group: torch.Tensor, x: torch.Tensor, y: torch.Tensor, centred: bool = False) -> None:
    """A regression whose slopes vary by group."""
    level, slope = pyro.sample("level", dist.Normal(0.0, 2.0)), pyro.sample("slope", dist.Normal(0.0, 2.0))
    spread, noise = pyro.sample("spread", dist.HalfNormal(1.0)), pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", GROUPS):
        if centred:
            slopes = pyro.sample("slopes", dist.Normal(slope, spread))
        else:
            slopes = slope + spread * pyro.sample("offsets", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(level + slopes[..., group] * x, noise), obs=y)


def centred_hierarchy(group: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
    """The same, centred, where a mean field has to give the spread a value that its groups share."""
    hierarchy(group, x, y, centred=True)


def mixture(y: torch.Tensor) -> None:
    """Two normal components of unknown weight, places and scale; which is which the prior says."""
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    places = pyro.sample("places", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("data", len(y)):
        kinds = dist.Categorical(torch.stack([weight, 1 - weight], -1))
        parts = dist.Normal(places, scale.unsqueeze(-1))
        pyro.sample("y", dist.MixtureSameFamily(kinds, parts), obs=y)


class Decoder(torch.nn.Module):
    """A model of images of six pixels by two latents, its network as a training left it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(2 * self.network(z), 0.5).to_event(1), obs=x)


def encoder(model: Callable) -> Any:
    """A Gaussian of full covariance for each image, amortised."""
    return gb.guides.AmortisedMultivariateNormalGuide(model, 32, plates="images")


def blind(model: Callable) -> Any:
    """One Gaussian, the same for every image: an encoder that has collapsed."""
    return gb.guides.AmortisedNormalGuide(model, plates="images", encoder=lambda x: torch.zeros(len(x), 1))


POISSON_X = torch.linspace(-10.0, 10.0, 11)
POISSON_Y = torch.tensor([40.0, 37.0, 29.0, 12.0, 4.0, 3.0, 9.0, 19.0, 77.0, 82.0, 33.0])


def poisson_process(y: torch.Tensor) -> None:
    """posteriordb's ``gp_pois_regr``: counts whose log-rate is a Gaussian process."""
    rho, alpha = pyro.sample("rho", dist.Gamma(25.0, 4.0)), pyro.sample("alpha", dist.HalfNormal(2.0))
    white = pyro.sample("white", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    gaps = (POISSON_X.unsqueeze(-1) - POISSON_X).square()
    rho, alpha = rho[..., None, None], alpha[..., None, None]
    cov = alpha**2 * (-0.5 * gaps / rho**2).exp() + 1e-4 * torch.eye(len(y))
    rate = (torch.linalg.cholesky(cov) @ white.unsqueeze(-1)).squeeze(-1)
    pyro.deterministic("f", rate, event_dim=1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate.exp()), obs=y)


#: means and standard deviations of posteriordb's reference draws (github.com/stan-dev/posteriordb); those of the eight
#: schools are 100 times the standard error of the mean of 10,000 draws
REFERENCES: dict[Callable, dict[str, tuple[list[float], list[float]]]] = {
    non_centred: {"mu": ([4.411], [3.30]), "tau": ([3.602], [3.19])},
    centred: {"mu": ([4.411], [3.30]), "tau": ([3.602], [3.19])},
    poisson_process: {"rho": ([5.667], [0.679]), "alpha": ([2.921], [0.793])},
}


def off_reference(model: Callable, guide: Any, args: tuple, draws: int = 1_000) -> float:
    """The largest distance of a mean from the reference's, in its standard deviations; NaN where there is none."""
    known = REFERENCES.get(model, {})
    with torch.no_grad():
        found = [guide(*args) for _ in range(draws)] if known else []
    gaps = []
    for site, (mean, sd) in known.items():
        values = torch.stack([each[site] for each in found]).reshape(draws, -1)
        gaps.append(float(((values.mean(0) - torch.tensor(mean)).abs() / torch.tensor(sd)).max()))
    return max(gaps, default=float("nan"))


def fitted(model: Callable, guide: Callable, args: tuple, steps: int) -> tuple[Any, list[float]]:
    """A guide trained by Pyro's SVI, and its losses."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    made = guide(model)
    made(*args)  # amortised guides are set up by their first call
    svi = SVI(model, made, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / steps)}), Trace_ELBO(5))
    return made, [svi.step(*args) for _ in range(steps)]


def cases() -> list[tuple[str, Callable, Callable, tuple, int, str]]:
    """Name, model, guide, arguments, steps, and what it is: good, mendable or broken."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.5 * torch.randn(100, generator=generator)
    group = torch.arange(60) % GROUPS
    hx, slopes = torch.randn(60, generator=generator), 1.0 + 0.5 * torch.randn(GROUPS, generator=generator)
    hy = 0.3 + slopes[group] * hx + 0.4 * torch.randn(60, generator=generator)
    which = (torch.rand(80, generator=generator) < 0.3).float()
    points = torch.where(which > 0, -2.0, 2.5) + 0.7 * torch.randn(80, generator=generator)
    decoder = Decoder()
    with torch.no_grad():
        codes = torch.randn(64, 2, generator=generator)
        images = 2 * decoder.network(codes) + 0.5 * torch.randn(64, 6, generator=generator)
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
        (
            "hierarchy, centred, full covariance",
            centred_hierarchy,
            AutoMultivariateNormal,
            (group, hx, hy),
            3000,
            "good",
        ),
        ("hierarchy, non-centred, full covariance", hierarchy, AutoMultivariateNormal, (group, hx, hy), 3000, "broken"),
        ("hierarchy, 60 steps", hierarchy, AutoNormal, (group, hx, hy), 60, "broken"),
        ("hierarchy, centred, mean field", centred_hierarchy, AutoNormal, (group, hx, hy), 3000, "mendable"),
        ("mixture, full covariance", mixture, AutoMultivariateNormal, (points,), 2000, "good"),
        ("mixture, mean field", mixture, AutoNormal, (points,), 2000, "good"),
        ("mixture, 100 steps", mixture, AutoNormal, (points,), 100, "broken"),
        ("VAE, an encoder of full covariance", decoder, encoder, (images,), 3000, "good"),
        ("VAE, a collapsed encoder", decoder, blind, (images,), 1500, "broken"),
        ("VAE, 20 steps", decoder, encoder, (images,), 20, "broken"),
        ("Poisson process, full covariance", poisson_process, AutoMultivariateNormal, (POISSON_Y,), 3000, "broken"),
        ("Poisson process, mean field", poisson_process, AutoNormal, (POISSON_Y,), 3000, "broken"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuts-seconds", type=float, default=60.0)
    parser.add_argument("--only", default="", help="fits whose name begins so")
    given = parser.parse_args()
    seconds = given.nuts_seconds
    torch.set_num_threads(1)
    rows = []
    for name, model, guide, args, steps, kind in cases():
        if not name.startswith(given.only):
            continue
        made, losses = fitted(model, guide, args, steps)
        found = gb.verdict(model, made, *args, losses=losses, nuts_seconds=seconds)
        measured = {finding.name: finding.mark for finding in found.findings}
        rows.append(
            {
                "fit": name, "is": kind, "verdict": found.level, "k-hat": found.numbers.get("khat"),
                "effective": found.numbers.get("efficiency"), "near NUTS": found.numbers.get("share_near_nuts"),
                "loss settled": {"+": "yes", "-": "no"}.get(measured.get("training", ""), "?"),
                "off posteriordb": off_reference(model, made, args),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
