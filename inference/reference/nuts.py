"""The No-U-Turn sampler: on the NumPyro twin of the library's models, by Pyro on any other; a reference for guides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from inference.data_dtype import as_computed
from inference.prediction import Prediction, likelihood_of_points
from inference.reference.numpyro_adapters import adapter_twin
from inference.reference.numpyro_mixture import mixture_twin
from inference.reference.numpyro_twin import numpyro_twin, precision_of
from inference.reference.pyro_nuts import pyro_nuts
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.arguments import CALLABLE, DRAWS, OPEN_SHARE, SEED, checked, data_set, integer, one_of
from pp_models.contract import Model
from pp_models.data import Dataset, require_tasks
from pp_models.mixtures.mixture_density import MixtureDensityNetwork
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.task_plates import PARTICLE_PLATE

CHAIN_METHODS = ("sequential", "vectorized", "parallel")
#: models that NumPyro samples, by a twin
TWINS = (BayesianNetwork, MixtureDensityNetwork, LowRankAdapted)


@dataclass(frozen=True)
class NutsResult:
    """Draws of a sampler; ``evaluation.from_pyro_mcmc`` makes an ArviZ container of those of a Pyro model.

    Args:
        draws: ``[chains * samples, *B, *event]`` by site (without ``*B`` for an adapter, whose latents tasks share),
            chains one after the other.
        num_chains: chains.
        diverging: number of divergent transitions after warm-up.
        mcmc: NumPyro's ``MCMC`` object, which ``arviz.from_numpyro`` takes; None where Pyro sampled.
        model: the model.
        args: what it was called with.
        kwargs: what it was called with by name.
        divergent: which draws ended in a divergent transition, ``[chains, samples]``; None where NumPyro sampled.
    """

    draws: dict[str, Tensor]
    num_chains: int
    diverging: int
    mcmc: Any
    model: Any
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    divergent: Tensor | None = None

    def by_chain(self) -> dict[str, Tensor]:
        """The draws ``[chains, samples, ...]`` by site, as :mod:`evaluation.diagnostics` takes them."""
        return {name: value.unflatten(0, (self.num_chains, -1)) for name, value in self.draws.items()}

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """Posterior predictive at inputs ``[*B, N, Dx]``, as :func:`inference.predict` gives for a guide.

        Raises:
            ValueError: the model is not one of the library's.
        """
        if not isinstance(self.model, TWINS):
            raise ValueError(
                f"model: got {type(self.model).__name__}, which no inputs are known of; it must be one of the "
                "library's: for others there is pyro.infer.Predictive(model, draws)"
            )
        count = next(iter(self.draws.values())).shape[0]
        x = as_computed(x, self.model)
        draws = self.draws
        if isinstance(self.model, LowRankAdapted):  # one draw for all tasks
            draws = {name: d.reshape(count, *(1,) * (x.dim() - 2), *d.shape[1:]) for name, d in draws.items()}
        with pyro.plate(PARTICLE_PLATE, count, dim=-1 - (x.dim() - 2)):
            trace = poutine.trace(poutine.condition(self.model, data=draws)).get_trace(Dataset(x))
        site: Any = trace.nodes["y"]
        return Prediction(likelihood_of_points(site), site["value"])


def _one_masked_point(data: Dataset) -> Dataset:
    """A data set of no points as one of a single point that its mask excludes."""
    assert data.y is not None
    x, y = (
        data.x.new_zeros(*data.batch_shape, 1, data.x.shape[-1]),
        data.y.new_zeros(*data.batch_shape, 1, *data.y.shape[data.x.dim() - 1 :]),
    )
    return Dataset(x, y, torch.zeros(x.shape[:-1], dtype=torch.bool))


@checked(
    model=CALLABLE,
    num_warmup=DRAWS,
    num_samples=DRAWS,
    num_chains=integer(1, 1024),
    seed=SEED,
    target_accept=OPEN_SHARE,
    chain_method=one_of(*CHAIN_METHODS),
)
def nuts(
    model: Callable,
    *args: Any,
    num_warmup: int = 500,
    num_samples: int = 500,
    num_chains: int = 1,
    seed: int = 0,
    target_accept: float = 0.8,
    progress: bool = False,
    chain_method: str = "sequential",
    **kwargs: Any,
) -> NutsResult:
    """Samples a model's posterior by NUTS (Hoffman and Gelman 2014).

    A network, a mixture of strict experts, or an adapted small network with a proper ``rank_prior`` is sampled by
    NumPyro, called as ``nuts(model, data, 500, 500)``; any other Pyro model by Pyro, as ``nuts(model, *args)``. Pyro's
    potential is compiled where that gives the model's values, and evaluated as it is elsewhere, which is logged.

    Task dimensions are sampled together: for many tasks run it on a few.

    Args:
        model: any Pyro model; parameters as they are.
        *args: what it is called with. For the models above the observed points with y, cast to the model's dtype.
        num_warmup: adaptation steps of each chain.
        num_samples: draws of each chain.
        num_chains: chains.
        seed: seed of the sampler.
        target_accept: target acceptance probability; nearer 1 for smaller steps.
        progress: show the sampler's progress bar.
        chain_method: how chains are run, in NumPyro's words: ``"sequential"``; ``"vectorized"``, side by side in one
            pass, of NumPyro's twins; ``"parallel"``, each in a process of its own, of all other models. Each chain's
            draws are the same either way (but for rounding).
        **kwargs: what it is called with by name.

    Raises:
        ValueError: a number out of range, data without y, a model without a twin or without latents, or a chain method
            that its sampler has not.

    Example:
        >>> draws = nuts(schools, y, num_chains=4).draws["mu"]
    """
    if isinstance(model, TWINS):
        names = ("data", "num_warmup", "num_samples")
        given_by_name = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or given_by_name.keys() - set(names):
            raise TypeError(
                f"nuts: got {len(args)} arguments; for a {type(model).__name__} it must be {', '.join(names)}"
            )
        given: dict[str, Any] = {"data": None, "num_warmup": num_warmup, "num_samples": num_samples} | given_by_name
        chains: dict[str, Any] = {
            "num_chains": num_chains,
            "seed": seed,
            "target_accept": target_accept,
            "progress": progress,
            "chain_method": chain_method,
        }
        if chain_method == "parallel":
            raise ValueError(
                f"chain_method: got 'parallel'; of a {type(model).__name__}, which NumPyro samples, it must be "
                "'sequential' or 'vectorized'"
            )
        return _twin_nuts(model, **given, **chains)
    if chain_method == "vectorized":
        raise ValueError(
            f"chain_method: got 'vectorized'; of a {type(model).__name__}, which Pyro samples one chain at a time, it "
            "must be 'sequential' or 'parallel'"
        )
    if isinstance(model, Model) and args and isinstance(args[0], Dataset):
        require_tasks(args[0], "data")
        if args[0].y is None:
            raise ValueError("data: y is None; a posterior needs observed points")
        model.check(args[0])
    draws, divergent = pyro_nuts(
        model, args, kwargs, num_warmup, num_samples, num_chains, seed, target_accept, progress=progress,
        parallel=chain_method == "parallel",
    )  # fmt: skip
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    return NutsResult(flat, num_chains, int(divergent.sum()), None, model, args, kwargs, divergent)


@checked(data=data_set("Dataset"), num_warmup=DRAWS, num_samples=DRAWS)
def _twin_nuts(
    model: BayesianNetwork | MixtureDensityNetwork | LowRankAdapted,
    data: Dataset,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
    seed: int,
    target_accept: float,
    progress: bool,
    chain_method: str,
) -> NutsResult:
    """NUTS on the NumPyro twin of a model."""
    require_tasks(data, "data")
    if data.y is None:
        raise ValueError("data: y is None; a posterior needs observed points")
    data = as_computed(data, model)
    if not isinstance(model, LowRankAdapted):
        model.check(data)
    if not data.num_points:  # one that does not exist, for the twin cannot index none: the posterior is the prior
        data = _one_masked_point(data)
    import jax
    from numpyro.infer import MCMC, NUTS

    if isinstance(model, MixtureDensityNetwork):
        twin = mixture_twin(model)
    elif isinstance(model, LowRankAdapted):
        twin = adapter_twin(model)
    else:
        twin = numpyro_twin(model)
    with precision_of(model):
        kernel = NUTS(twin, target_accept_prob=target_accept)
        mcmc = MCMC(
            kernel,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            chain_method=chain_method,
            progress_bar=progress,
        )
        mcmc.run(jax.random.PRNGKey(seed), data, extra_fields=("diverging",))
        draws = {name: torch.from_numpy(np.array(value)) for name, value in mcmc.get_samples().items()}
        diverging = int(np.asarray(mcmc.get_extra_fields()["diverging"]).sum())
    return NutsResult(draws, num_chains, diverging, mcmc, model, (data,))
