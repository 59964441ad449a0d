"""An amortised normalizing flow over the latents of any Pyro model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import AffineTransform, constraints
from torch.nn.functional import softplus

from guides.any_model.amortised_guide import AnyModelGuide
from guides.any_model.local_parameters import Movable
from guides.any_model.normal_guides import LEAST_SCALE, raw_scale
from pp_models.arguments import CALLABLE, LAYERS, WIDTH, checked, each, integer, named, optional

FLOWS = {"nsf": "NSF", "maf": "MAF"}
#: points by which the moments of a flow are estimated
MOMENT_DRAWS = 256


def zuko() -> Any:
    """The library of flows.

    Raises:
        ImportError: it is not installed.
    """
    validates = torch.distributions.Distribution._validate_args
    try:
        import zuko as found
        import zuko.flows
    except ImportError:
        raise ImportError("FlowGuide: it needs zuko, which is not installed: pip install 'guidebook[flows]'") from None
    finally:  # importing it turns validation off for everyone
        torch.distributions.Distribution.set_default_validate_args(validates)
    return found


@cache
def normal_points(size: int) -> Tensor:
    """``[MOMENT_DRAWS, size]`` points spread like draws of a standard normal, the same at every call."""
    unit = torch.quasirandom.SobolEngine(size).draw(MOMENT_DRAWS + 1, dtype=torch.float64)[1:]
    return torch.special.ndtri(unit.clamp(1e-6, 1 - 1e-6))


def flow_distribution(flow: Any, loc: Tensor, scale: Tensor) -> Any:
    """Draws of a flow, scaled and moved, as a distribution of Pyro's: batch of the flow, event ``[D]``."""
    from pyro.contrib.zuko import ZukoToPyro

    library = zuko()

    class FlowDistribution(ZukoToPyro, Movable):
        """A flow, moved by ``loc`` and scaled by ``scale``, which :class:`RefinedGuide` may change."""

        arg_constraints: ClassVar[dict] = {
            "loc": constraints.real_vector,
            "scale": constraints.independent(constraints.positive, 1),
        }
        support = constraints.real_vector

        def __init__(self, flow: Any, loc: Tensor, scale: Tensor) -> None:
            self.flow, self.loc, self.scale = flow, loc, scale
            placed = AffineTransform(loc, scale, event_dim=1).inv
            self.placed = library.transforms.ComposedTransform(placed, flow.transform)
            super().__init__(library.distributions.NormalizingFlow(self.placed, flow.base))

        @property
        def event_shape(self) -> torch.Size:
            return self.loc.shape[-1:]  # zuko counts the batch of loc too

        def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
            return FlowDistribution(self.flow.expand(torch.Size(batch_shape)), self.loc, self.scale)

        def rsample(self, sample_shape: Any = ()) -> Tensor:
            return self.dist.rsample(torch.Size(sample_shape))

        def __call__(self, sample_shape: Any = ()) -> Tensor:
            # without the density that comes with a draw: by rounding it is another than that of the value
            return self.rsample(sample_shape)

        def _points(self) -> Tensor:
            base = self.flow.base
            points = normal_points(self.loc.shape[-1]).to(self.loc)
            points = points.reshape(-1, *(1,) * len(base.batch_shape), points.shape[-1]).expand(
                -1, *base.batch_shape, -1
            )
            return self.placed.inv(points)

        @property
        def mean(self) -> Tensor:
            """By points that are spread like draws."""
            return self._points().mean(0)

        @property
        def variance(self) -> Tensor:
            """By points that are spread like draws."""
            return self._points().var(0)

        def from_noise(self, noise: Tensor) -> Tensor:
            return self.placed.inv(noise)

        def moved(self, loc: Tensor, scale: Tensor) -> Any:
            """The same flow at another place."""
            return FlowDistribution(self.flow, loc, scale)

    return FlowDistribution(flow, loc, scale)


class FlowGuide(AnyModelGuide):
    """q(z | D), a conditional normalizing flow over the unconstrained latents of any Pyro model.

    z = μ(D) + σ(D) f⁻¹(u; D), u standard normal, f a flow of `zuko <https://zuko.readthedocs.io>`_ that is
    conditioned on the encoder's features. It needs ``guidebook[flows]``.

    Args:
        model: any Pyro model, or a simulator (with the objective ``npe``).
        width: width of the encoder and of its features.
        flow: ``"nsf"`` (neural splines, Durkan et al. 2019), ``"maf"`` (Papamakarios et al. 2017), or a function of
            ``(features, context)`` that gives any flow of zuko's.
        transforms: layers of the flow.
        hidden: hidden widths of a layer's network.
        passes: passes that a draw takes through a layer: 2 is a coupling, None is fully autoregressive, as many passes
            as latents.
        **options: see :class:`AnyModelGuide`.

    Raises:
        ImportError: zuko is not installed.
        ValueError: an argument out of range, or a model that :class:`AnyModelGuide` refuses.

    Example:
        >>> guide = FlowGuide(model, example=(x, y))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    """

    name = "flow"
    description = "any model: a conditional normalizing flow, from the data"

    @checked(transforms=LAYERS, passes=optional(integer(2)), hidden=each(WIDTH))
    def __init__(
        self,
        model: Any,
        width: int = 64,
        *,
        flow: str | Callable = "nsf",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        passes: int | None = 2,
        **options: Any,
    ) -> None:
        zuko()
        flow = named(*FLOWS, other=CALLABLE).check("flow", flow)
        self._flow_options = {"transforms": transforms, "hidden_features": tuple(hidden), "passes": passes}
        self._make = flow
        super().__init__(model, width, **options)

    def num_parameters(self, size: int) -> int:
        return 2 * size

    def initial_parameters(self, size: int) -> Tensor:
        return torch.cat([torch.zeros(size), torch.full((size,), raw_scale(self.initial_scale))])

    def build(self, size: int, features: int) -> None:
        flows = zuko().flows
        if callable(self._make):
            self.flow = self._make(size, features)
        else:
            self.flow = getattr(flows, FLOWS[self._make])(size, features, **self._flow_options)

    def distribution(self, numbers: Tensor, features: Tensor | None, centre: Tensor, spread: Tensor) -> Any:
        loc, raw = numbers.chunk(2, -1)
        return flow_distribution(self.flow(features), centre + spread * loc, spread * (softplus(raw) + LEAST_SCALE))
