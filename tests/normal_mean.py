"""A normal mean with a normal prior, whose posterior is known: what verdicts and resampled draws are held to."""

import pyro
import pyro.distributions as dist


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def exact(y):
    """Posterior mean and standard deviation."""
    precision = 1 / 9 + len(y)
    return float(y.sum()) / precision, precision**-0.5
