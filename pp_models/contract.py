"""The contract: what a model, a guide, a likelihood and an objective may offer one another, each with its default.

Nothing else is looked up. A model or guide of the library derives from :class:`Model` or :class:`Guide` and overrides
what differs; any other Pyro callable offers the defaults (:func:`as_model`, :func:`as_guide`, :func:`as_objective`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pp_models.data import DataError, Dataset
from pp_models.parameter_module import ParameterModule
from pp_models.recorded_arguments import Recorded


class ModelOffers:
    """What a model, called as ``model(data)``, may say about itself."""

    #: whether the function's value at a point is the same whatever other points it is asked at
    independent_points: bool = True
    #: widths of a network from input to output; the widest bounds the memory of a draw
    layer_sizes: Sequence[int] = ()
    #: width of the deterministic task representation ``representation`` that a guide must supply; 0 for none
    representation_dim: int = 0
    #: whether a guide must supply the context itself, as the site ``memory``, for a path that the model reads
    reads_memory: bool = False
    #: whether all tasks of a batch share the latents, which then have no task dimension
    shares_latents: bool = False

    @property
    def independent_layers(self) -> bool:
        """Whether no layer's prior depends on the weights of another."""
        return True

    def check(self, data: Dataset) -> None:
        """Refuses data that the model cannot take, before any handler of Pyro can obscure the message.

        Args:
            data: of a call to come.

        Raises:
            DataError: widths, dtype or labels do not fit.
        """

    def conjugate_proposal(
        self, guide_trace: Trace, data: Dataset, sweeps: int = 8
    ) -> dict[str, TorchDistribution] | None:
        """Approximate posterior given observed data, with the guide's distribution as the prior, site by site.

        Args:
            guide_trace: a trace of the guide on the context.
            data: observed points ``[*B, N]``.
            sweeps: variational updates.

        Returns:
            A distribution by site; None where the model knows no such proposal.
        """
        return None


class GuideOffers:
    """What a guide, called as ``guide(data)``, may say about itself."""

    #: its name in tables and on the command line, with a line of description; empty where it is in none
    name: str = ""
    description: str = ""
    #: no site's distribution depends on another's value: objectives need not run the guide twice for its densities
    independent_sites: bool = False
    #: whether the latents are a function of the data instead of a draw
    point_mass: bool = False
    #: whether it is amortised: another data set gives another posterior without any training
    reads_data: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def conditional_prior(self, data: Dataset) -> Any:
        """The guide as the prior of ``conditional-prior``, run on the whole task: by default the guide itself."""
        return self(data)

    @property
    def posterior_guide(self) -> Callable[[Dataset], Any]:
        """The guide on the whole task that ``npvi`` draws from: by default the guide itself."""
        return self

    def check_objective(self, objective: ObjectiveOffers) -> None:
        """Refuses an objective that cannot train this guide.

        Args:
            objective: the objective itself, with its facts.

        Raises:
            ValueError: it cannot; the message says why.
        """

    def auxiliary_values(self, latents: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Values of the sites of its own (``is_auxiliary``) at which it gives these latents, by site.

        A guide whose latents are functions of such sites has a density of given latents only by them: replay them, and
        not the latents.

        Args:
            latents: values by site of the model.
        """
        return {}

    def closed_form(self, model: Any, data: Dataset) -> tuple[Tensor, Tensor] | None:
        """Expected log-likelihood of each task ``[*B]`` and KL to the model's prior (one number), without draws.

        Args:
            model: its model.
            data: observed points.

        Returns:
            None where there is no closed form. Of classes it is a lower bound on the expectation.
        """
        return None

    def rates(self, data: Dataset) -> Mapping[str, Tensor] | None:
        """Drop probabilities by site ``[*B, k_out, k_in + 1]``; None for a guide without any."""
        return None

    def kl_counts(self, kl_count: str) -> Mapping[str, float]:
        """How often the KL of a site counts in a tempered objective; a site that is not named counts once.

        Args:
            kl_count: ``"rank"``, or ``"weights"`` for every weight of a rank.
        """
        return {}

    def concentration(self, data: Dataset) -> Tensor | None:
        """Concentration of a Dirichlet over mixture weights ``[*B, L]``; None for another guide."""
        return None


class ObjectiveOffers:
    """Facts about an objective, on its class."""

    #: its name in the table, with a line of description and where it comes from
    name: str = ""
    description: str = ""
    reference: str = ""
    #: it weighs draws by their densities, which a point mass has not
    weighs_particles: bool = False
    #: ``"posterior"``, or ``"predictor"`` where the guide is a conditional prior or only predicts
    guide_is: str = "posterior"
    #: it trains the guide on what the model draws, whatever y is; the model itself it does not train
    simulates: bool = False
    #: ``"anything"`` that model and guide take, or a ``"data set"``: a TaskBatch or a Dataset
    needs: str = "anything"
    #: what draws its particles in place of the guide
    proposal: Any = None
    #: what is trained or saved with model and guide: a proposal's network, the count of a warm-up; None for nothing
    module: nn.Module | None = None
    #: optimizer steps for one set of particles
    inner_steps: int = 1
    #: options that one may expect of it, and why there are none
    has_no: Mapping[str, str] = MappingProxyType({})

    @property
    def scores_guide(self) -> bool:
        """It differentiates the guide's log-density at fixed values, or compares two of its densities.

        A guide that has a bound in place of its density refuses it.
        """
        return False


class Likelihood(Recorded, nn.Module):
    """From network outputs ``[..., N, K]`` to a distribution of batch shape ``[..., N]`` over one point's y."""

    #: whether y holds class indices
    discrete = False

    def dim_y(self, outputs: int) -> int:
        """Width of y for a network of this many outputs."""
        return outputs

    def num_outputs(self, dim_y: int) -> int:
        """Outputs that a network needs for a y of this width: twice as many where each point has its own scale."""
        return dim_y if self.dim_y(2 * dim_y) != dim_y else 2 * dim_y

    def forward(self, outputs: Tensor) -> TorchDistribution:
        """The distribution of one point's y at the outputs."""
        raise NotImplementedError

    def check(self, y: Tensor, outputs: int) -> None:
        """Refuses a y that this likelihood cannot score.

        Raises:
            DataError: wrong dtype or width, or values that it gives no probability, such as an index of no class.
        """
        name = type(self).__name__
        if self.discrete:
            if y.dtype != torch.long:
                raise DataError(f"y: got dtype {y.dtype}; {name} needs class indices of dtype torch.int64")
            # as in Dataset, values are looked at on the host alone
            if y.device.type == "cpu" and y.numel() and not torch.compiler.is_compiling():
                low, high = int(y.min()), int(y.max())
                if low < 0 or high >= outputs:
                    allowed = f"0..{outputs - 1}"
                    raise DataError(
                        f"y: got class indices from {low} to {high}; with {outputs} classes they lie in {allowed}"
                    )
        elif not y.dtype.is_floating_point:
            raise DataError(f"y: got dtype {y.dtype}; {name} needs floating-point outputs [*B, N, Dy]")
        elif y.shape[-1] != self.dim_y(outputs):
            raise DataError(
                f"y: got width {y.shape[-1]}; a network of {outputs} outputs with {name} has {self.dim_y(outputs)}"
            )


#: the model that a guide was built for, as long as both live
_built_for: weakref.WeakKeyDictionary[Guide, weakref.ref[Model]] = weakref.WeakKeyDictionary()


class Model(ModelOffers, ParameterModule):
    """Base of the library's models, and of yours: a Pyro program ``model(data)``, its parameters its own."""


class Guide(GuideOffers, ParameterModule):
    """Base of the library's guides, and of yours: ``guide(data)`` samples the model's latents given the data."""

    __call__ = ParameterModule.__call__

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        new = super().__new__(cls, *args, **kwargs)
        model = kwargs.get("model", args[0] if args else None)
        if isinstance(model, Model):
            _built_for[new] = weakref.ref(model)
        return new


def refuse_data_ties(guide: GuideOffers, objective: ObjectiveOffers) -> None:
    """For a guide that is the same whatever the data: no divergence between two of them trains it, no simulation does.

    Raises:
        ValueError: the objective's only divergence is between the guide on the context and on the whole task; or it
            shows the guide other data than it is to be the posterior of.
    """
    if objective.simulates:
        raise ValueError(
            f"objective: {objective.name!r} shows the guide data of the model's own, and {type(guide).__name__} is the "
            "same whatever the data: it would become the prior. Use 'elbo'"
        )
    if objective.name in ("npvi", "conditional-prior"):
        raise ValueError(
            f"objective: {objective.name!r} ties the guide on the context to the guide on the whole task, and "
            f"{type(guide).__name__} is the same whatever the data: no divergence is left. Use 'elbo'"
        )


class _PlainGuide(GuideOffers):
    """Any callable as a guide that offers the defaults."""

    def __init__(self, call: Callable) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    @property
    def posterior_guide(self) -> Callable[[Dataset], Any]:
        return self._call


class _PlainObjective(ObjectiveOffers):
    """Any ELBO of Pyro's as an objective that offers the defaults, named by its class."""

    def __init__(self, objective: Any) -> None:
        self.name = type(objective).__name__


_PLAIN_MODEL = ModelOffers()


def as_model(model: Any) -> ModelOffers:
    """What a model offers: its own, or the defaults for a callable that is not of the library's kind."""
    return model if isinstance(model, ModelOffers) else _PLAIN_MODEL


def as_guide(guide: Any) -> GuideOffers:
    """What a guide offers: its own, or the defaults for a callable that is not of the library's kind."""
    return guide if isinstance(guide, GuideOffers) else _PlainGuide(guide)


def model_of(guide: Any) -> Any:
    """The model that one of the library's guides was built for; None where that is not known."""
    found = _built_for.get(guide) if isinstance(guide, Guide) else None
    return None if found is None else found()


def as_objective(objective: Any) -> ObjectiveOffers:
    """Facts about an objective: its own, or the defaults for an ELBO that is not of the library's kind."""
    return objective if isinstance(objective, ObjectiveOffers) else _PlainObjective(objective)
