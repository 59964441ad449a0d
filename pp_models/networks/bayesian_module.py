"""Any torch module with the weights of chosen layers as latent sites under a prior."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from pp_models.arguments import CALLABLE, POSITIVE, SCALE, TEXT, WIDTH, checked, each, either, instance, named
from pp_models.contract import Model
from pp_models.data import DataError, Dataset
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.observation_model import observe
from pp_models.task_plates import task_plates, without_repeats

PRIORS = ("fan-in", "normal", "initial")
#: numbers in the inputs, repeated for each draw, that are put through the module at once
AT_ONCE = 2**22


class BayesianModule(Model):
    """A torch module whose chosen layers have random weights, as a Pyro model of one Dataset.

    Sites: ``{module path}.{parameter}`` of the parameter's own shape for every parameter that a chosen layer owns
    (``fc.weight``, ``fc.bias``), shared by all tasks, and ``y``. What is not chosen stays an ordinary parameter of the
    model, trained along as a point estimate; ``freeze=True`` holds it. The module itself is kept, not changed: its own
    values of the chosen weights are where guides start, and :meth:`outputs` computes with them.

    How heavily the KL weighs, and the number of data where steps see minibatches, are the objective's:
    ``inference.objectives.make("tempered-elbo", num_data=N)``.

    Args:
        module: called with ``[rows, *input_shape]``, the first dimension that of examples; it gives ``[rows, K]``.
        targets: layers with random weights: endings of module paths, a regular expression for whole paths, ``"all"``
            for every layer that owns parameters, or ``"last"`` for the last of these.
        likelihood: ``"categorical"``, ``"gaussian"``, … or a Likelihood, of the module's outputs.
        noise_scale: of the Gaussian likelihood.
        prior: ``"fan-in"``, N(0, prior_scale² / k) with k the inputs of a unit (1 for biases and scales); ``"normal"``,
            N(0, prior_scale²); ``"initial"``, N(the module's value at the time, prior_scale²), for a pretrained one; or
            a function of a site's name and parameter that gives a distribution whose event is the parameter.
        prior_scale: as above.
        input_shape: shape of one example where it is not a vector, such as ``(3, 32, 32)``; x holds it flattened.
        call: how the module is applied, ``call(module, x)``; by default it is called with x.
        freeze: hold the parameters that are not chosen.
        vectorize: put many draws through the module at once by ``torch.func.vmap``; False takes them one by one, which
            a module with operations that cannot be mapped needs.

    Raises:
        ValueError: an argument out of range, or targets that name no layer with parameters.

    Example:
        >>> import torch
        >>> from pp_models import BayesianModule
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> BayesianModule(network, targets="last").sites
        ['2.weight', '2.bias']
    """

    @checked(
        module=instance(nn.Module),
        targets=either(str, other=each(TEXT)),
        noise_scale=SCALE,
        prior=named(*PRIORS, other=CALLABLE),
        prior_scale=POSITIVE,
        input_shape=each(WIDTH),
        call=CALLABLE,
    )
    def __init__(
        self,
        module: nn.Module,
        targets: str | Sequence[str] = "all",
        likelihood: str | Likelihood = "categorical",
        noise_scale: float = 0.1,
        *,
        prior: str | Callable[[str, Tensor], TorchDistribution] = "fan-in",
        prior_scale: float = 1.0,
        input_shape: Sequence[int] | None = None,
        call: Callable[[nn.Module, Tensor], Tensor] | None = None,
        freeze: bool = False,
        vectorize: bool = True,
    ) -> None:
        super().__init__()
        self.likelihood = make_likelihood(likelihood, noise_scale)
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.prior, self.prior_scale, self.vectorize = prior, float(prior_scale), vectorize
        self.sites = chosen_parameters(module, targets)
        self.module = module
        self._applied = (_Applied(module, call),)  # in a tuple, so that its parameters are not there twice
        values = self.values()
        for name, parameter in module.named_parameters():
            if name in values or freeze:  # a guide has its own
                parameter.requires_grad_(False)
        if prior == "initial":
            for i, value in enumerate(values.values()):
                self.register_buffer(f"initial_{i}", value.detach().clone())
        self._linearised_at: dict[str, Tensor] | None = None
        self.priors()  # what is wrong with a prior of the user's own is said here

    def values(self) -> dict[str, Tensor]:
        """The module's own values of the chosen weights by site."""
        found = dict(self.module.named_parameters())
        return {site: found[site] for site in self.sites}

    def priors(self) -> dict[str, TorchDistribution]:
        """The prior of every site.

        Raises:
            ValueError: a prior of the user's own whose event is not the parameter.
        """
        return {site: self._prior(i, site, value) for i, (site, value) in enumerate(self.values().items())}

    def _prior(self, index: int, site: str, value: Tensor) -> TorchDistribution:
        if callable(self.prior):
            found = self.prior(site, value)
            shape = getattr(found, "event_shape", None)
            if shape != value.shape or found.batch_shape:
                raise ValueError(
                    f"prior: it gave {type(found).__name__} of event shape {list(shape or ())} for {site!r}; it must "
                    f"be a distribution with event shape {list(value.shape)} and no batch: .to_event({value.dim()})"
                )
            return found
        loc = getattr(self, f"initial_{index}") if self.prior == "initial" else torch.zeros_like(value)
        scale = self.prior_scale
        if self.prior == "fan-in" and value.dim() > 1:
            scale /= math.sqrt(value[0].numel())
        return dist.Normal(loc, scale).to_event(value.dim())

    def outputs(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The module's outputs ``[rows, K]`` at inputs ``[rows, Dx]``, with its own weights or with given ones by site.

        With weights ``[S, *shape]`` the outputs are ``[S, rows, K]``.

        Raises:
            DataError: inputs that do not have the shape, or outputs that are no matrix.
        """
        rows = x if self.input_shape is None else self._shaped(x)
        draws = dict(weights or {})
        count = next((len(v) for s, v in draws.items() if v.dim() > self.values()[s].dim()), None)
        if count is None:
            return self._run(draws, rows)
        wide = {s: v if v.dim() > self.values()[s].dim() else v.unsqueeze(0) for s, v in draws.items()}
        each = {s: v.expand(count, *v.shape[1:]) for s, v in wide.items()}
        if self.vectorize and not self._keeps_statistics():
            size = max(1, AT_ONCE // max(rows.numel(), 1))
            return vmap(self._run, (0, None), randomness="different", chunk_size=size)(each, rows)
        return torch.stack([self._run({s: v[i] for s, v in each.items()}, rows) for i in range(count)])

    def linearised(self, at: Mapping[str, Tensor]) -> BayesianModule:
        """The same model with outputs of first order in the weights around given ones: what Laplace's Gaussian is of.

        Args:
            at: weights by site, such as those a guide has for its means.
        """
        found = copy.copy(self)
        found._linearised_at = {site: at[site].detach() for site in self.sites}
        return found

    def _run(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        def at(values: Mapping[str, Tensor]) -> Tensor:
            return functional_call(self._applied[0], {f"module.{s}": v for s, v in values.items()}, (rows,))

        if self._linearised_at is None or not weights:
            found = at(weights)
        else:
            here = self._linearised_at
            both: Any = jvp(at, (here,), ({site: weights[site] - here[site] for site in here},))
            found = both[0] + both[1]
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(rows):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(
                f"module: it gave {got} for {len(rows)} rows; it must give [rows, K]: pass call=lambda module, x: ..."
            )
        return found

    def _shaped(self, x: Tensor) -> Tensor:
        assert self.input_shape is not None
        if x.shape[-1] != math.prod(self.input_shape):
            raise DataError(
                f"x: got width {x.shape[-1]}; input_shape {self.input_shape} has {math.prod(self.input_shape)} numbers"
            )
        return x.unflatten(-1, self.input_shape)

    def _keeps_statistics(self) -> bool:
        """Whether a layer writes running statistics, which draws cannot do side by side."""
        return any(m.training and getattr(m, "running_mean", None) is not None for m in self.module.modules())

    def forward(self, data: Dataset) -> Tensor:
        """Returns the module's outputs ``[*B, N, K]``, a draw's in front where there are many."""
        drawn = {site: pyro.sample(site, prior) for site, prior in self.priors().items()}
        own = self.values()
        weights = {}
        for site, value in drawn.items():
            value = without_repeats(value, own[site].dim())
            weights[site] = value.reshape(-1, *own[site].shape)
        many = max((len(v) for v in weights.values()), default=1) > 1
        if not many:
            weights = {site: value[0] for site, value in weights.items()}
        outputs = self.outputs(data.x.reshape(-1, data.x.shape[-1]), weights)
        outputs = outputs.reshape(*outputs.shape[:-2], *data.x.shape[:-1], outputs.shape[-1])
        if data.y is not None:
            self.likelihood.check(data.y, outputs.shape[-1])
        with task_plates(data.batch_shape, data.x.device):
            observe(self.likelihood(outputs), data)
        return outputs


class _Applied(nn.Module):
    """A module behind the call that applies it, which ``functional_call`` can reach into."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) if self.call is None else self.call(self.module, x)


def chosen_parameters(module: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Names of the floating-point parameters that the chosen layers own; one that several layers share once.

    Raises:
        ValueError: targets that name no layer with parameters.
    """
    owned: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters():
        if parameter.dtype.is_floating_point:
            owned.setdefault(name.rpartition(".")[0], []).append(name)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if targets == "all":
        chosen = list(owned)
    elif targets == "last":
        chosen = list(owned)[-1:]
    elif isinstance(targets, str):
        chosen = [path for path in owned if re.fullmatch(targets, path)]
    else:
        chosen = [path for path in owned if any(path == t or path.endswith(f".{t}") for t in wanted)]
        wanted = [t for t in wanted if not any(path == t or path.endswith(f".{t}") for path in chosen)]
    if not chosen or (not isinstance(targets, str) and wanted):
        raise ValueError(
            f"targets: no layer of {type(module).__name__} that owns parameters is named {wanted[0]!r}; it has "
            f"{', '.join(repr(path) for path in list(owned)[:8]) or 'none'}"
        )
    return [name for path in chosen for name in owned[path]]
