"""What the amortised guides of any Pyro model share: one joint density over all of its latents, from its arguments."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from guides.any_model.argument_encoder import default_encoder
from guides.any_model.latent_layout import Layout, find_layout
from guides.any_model.outside_handlers import outside_handlers, own_randomness
from guides.set_encoder import POOLINGS
from pp_models.arguments import CALLABLE, SCALE, TEXT, WIDTH, check_weights, checked, each, named, one_of, optional
from pp_models.contract import Guide, Model
from pp_models.data import Dataset

#: the site of the unconstrained vector
VECTOR = "unconstrained_latents"


class AnyModelGuide(Guide):
    """q(z | D), a joint density over the unconstrained latents z of any Pyro model, from an encoding of its arguments.

    The latents are found by running the model. Each is drawn as a part of one vector ``[*B, D]`` (the auxiliary site
    ``unconstrained_latents``) and taken to its support by ``biject_to``, whose Jacobian is counted, as in Pyro's
    AutoGuides; unlike theirs, the density follows from the data, so that one guide serves many data sets. It starts
    around the prior's median, in units of the prior's spread.

    What the features' leading dimensions say is what a data set is: ``[R]`` one; ``[*B, R]`` many, whose posteriors are
    drawn at once. The library's models have task dimensions for it. For a model of your own whose *plate* holds many
    data sets (the images of a VAE) name the plate.

    Args:
        model: any Pyro model, called as the guide is.
        width: width of the encoder and of its features.
        example: arguments of a call, by which latents are found now; None for the first call. The library's own models
            need none.
        encoder: ``"auto"`` (a set encoder for a Dataset, an MLP on the flat tensors otherwise); a module or function of
            the arguments that gives features ``[*B, R]``; or None, one posterior whatever the data.
        plates: names of plates whose elements are data sets of their own; each must hold every latent.
        pooling: pooling of the set encoder that ``"auto"`` makes.
        initial_scale: spread at the start, in that of the prior.

    Raises:
        ValueError: an argument out of range; a model whose latents are discrete, subsampled, masked or of no fixed
            shape and support.
    """

    independent_sites = True  # one drawn site; all others are functions of it

    @checked(model=CALLABLE, width=WIDTH, pooling=one_of(*POOLINGS), initial_scale=SCALE)
    def __init__(
        self,
        model: Callable,
        width: int = 64,
        *,
        example: tuple | None = None,
        encoder: Any = "auto",
        plates: Sequence[str] = (),
        pooling: str = "mean",
        initial_scale: float = 0.3,
    ) -> None:
        super().__init__()
        if isinstance(example, Tensor | Dataset) or (example is not None and not isinstance(example, tuple | list)):
            raise ValueError(
                f"example: got a {type(example).__name__}; it must be a tuple of the model's arguments, such as (y,)"
            )
        plates = each(TEXT).check("plates", (plates,) if isinstance(plates, str) else plates)
        encoder = optional(named("auto", other=CALLABLE)).check("encoder", encoder)
        self.width, self.pooling, self.initial_scale = width, pooling, initial_scale
        self.plates = tuple(plates)
        self.layout: Layout | None = None
        self.encoder: Any = encoder if isinstance(encoder, nn.Module) else None
        self._function = None if isinstance(encoder, nn.Module) else encoder
        self._of_model = (model,)  # in a tuple: its parameters are the model's, not the guide's
        if example is None and isinstance(model, Model) and getattr(model, "dim_x", None) is not None:
            example = (_points_of(model),)
        if example is not None:
            self.set_up(*example)

    # -- what a subclass says -----------------------------------------------------------------------------------

    def num_parameters(self, size: int) -> int:
        """Numbers that describe a density of a vector of that size."""
        raise NotImplementedError

    def initial_parameters(self, size: int) -> Tensor:
        """These numbers at the start."""
        raise NotImplementedError

    def build(self, size: int, features: int) -> None:
        """Makes what a density needs beside the numbers."""

    def distribution(self, numbers: Tensor, features: Tensor | None, centre: Tensor, spread: Tensor) -> Any:
        """The density of the vector, batch ``*B``, event ``[D]``.

        Args:
            numbers: ``[*B, num_parameters]``.
            features: ``[*B, R]``; None without an encoder.
            centre: of the prior ``[D]``.
            spread: of the prior ``[D]``.
        """
        raise NotImplementedError

    def latent_part(self, vector: Tensor) -> Tensor:
        """The latents ``[*B, D]`` of what the density draws, where it draws more."""
        return vector

    # -- setting up ---------------------------------------------------------------------------------------------

    def set_up(self, *args: Any, **kwargs: Any) -> None:
        """Finds the model's latents by these arguments, and makes the networks; the first call does it where needed.

        Raises:
            ValueError: see the class.
        """
        model = self._of_model[0]
        if isinstance(model, Model):
            if not args or not isinstance(args[0], Dataset):
                raise ValueError(f"example: a {type(model).__name__} is called with data; it must be (Dataset(x, y),)")
            args = (_with_y(args[0], model), *args[1:])
        own = next((t for t in _tensors(model) if t.dtype.is_floating_point), None)
        layout = find_layout(model, args, kwargs, self.plates, None if own is None else own.dtype)
        if isinstance(model, Model):
            _check_fixed(model, args, layout)
            if model.shares_latents and (self.encoder is not None or callable(self._function)):
                raise ValueError(
                    f"encoder: got one, but all tasks share the latents of {type(model).__name__}; it must be None"
                )
        size = layout.size
        dtype, device = layout.centre.dtype, layout.centre.device
        if self._function == "auto":
            if isinstance(model, Model) and model.shares_latents:
                found = None
            elif args or kwargs:
                lead = len(args[0].batch_shape) if args and isinstance(args[0], Dataset) else len(layout.plates)
                found = default_encoder(model, args, kwargs, lead, self.width, self.pooling)
            else:
                found = None  # a model that closes over its data has one posterior
            self._function, self.encoder = None, found
        if self.encoder is not None:
            self.encoder.to(device, dtype)
        with outside_handlers(), torch.no_grad(), own_randomness(0):
            encoded = self._encoded(args, kwargs)
        count = self.num_parameters(size)
        start = self.initial_parameters(size)
        if encoded is None:
            self.numbers = nn.Parameter(start.to(device, dtype))
        else:
            check_weights("model", [encoded.shape[-1], count])
            head = nn.Linear(encoded.shape[-1], count)
            nn.init.normal_(head.weight, std=0.1 / math.sqrt(encoded.shape[-1]))
            with torch.no_grad():
                head.bias.copy_(start)
            self.head = head.to(device, dtype)
        self.register_buffer("centre", layout.centre)
        self.register_buffer("spread", layout.spread)
        self.build(size, 0 if encoded is None else encoded.shape[-1])
        self.to(device, dtype)
        self.layout = layout

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module.

        Raises:
            ValueError: it is not set up, so that an optimizer would miss them.
        """
        if self.layout is None:
            raise ValueError(
                f"{type(self).__name__}: it has no parameters before it has seen the model's arguments; call it "
                "once, or give example=(...)"
            )
        return super().named_parameters(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.layout is None:
            self.set_up(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> Any:
        model = self._of_model[0]
        memo.setdefault(id(model), model)  # the copy is of the same model, which is not the guide's
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return new

    # -- drawing ------------------------------------------------------------------------------------------------

    def _encoded(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
        encoder = self.encoder if self.encoder is not None else self._function
        if encoder is None:
            return None
        try:
            found = encoder(*args, **kwargs)
        except TypeError as error:
            if isinstance(encoder, torch.nn.Module):
                raise  # of its own making
            raise ValueError(f"encoder: it does not take the model's arguments ({error})") from error
        if not isinstance(found, Tensor) or not found.dim():
            raise ValueError(f"encoder: it gave {type(found).__name__}; it must give features [*B, R]")
        return found

    def vector_distribution(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The density of the unconstrained vector, given the model's arguments."""
        assert self.layout is not None
        features = self._encoded(args, kwargs)
        if features is None:
            if self._has_tasks(args):
                raise ValueError(
                    "encoder: got None, and the data are many data sets, which would share one posterior; it must "
                    "be 'auto' or an encoder"
                )
            return self.distribution(self.numbers, None, self.centre, self.spread)
        features = self.layout.aligned(features.to(self.centre.dtype))
        return self.distribution(self.head(features), features, self.centre, self.spread)

    def _has_tasks(self, args: tuple) -> bool:
        """Whether these arguments are several data sets, each with latents of its own."""
        assert self.layout is not None
        model = self._of_model[0]
        own = isinstance(model, Model) and not model.shares_latents
        return bool(self.layout.plates) or (own and isinstance(args[0], Dataset) and bool(args[0].batch_shape))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples every latent site given the model's arguments; returns the values by site."""
        assert self.layout is not None
        density = self.vector_distribution(*args, **kwargs)
        made = self.layout.made_plates(density.batch_shape, self.centre.device)
        with self.layout.entered(made):
            vector = pyro.sample(VECTOR, density, infer={"is_auxiliary": True}).to(self.centre.dtype)
        found = {}
        for latent, (value, log_density) in zip(
            self.layout.latents, self.layout.unpacked(self.latent_part(vector)).values(), strict=True
        ):
            with self.layout.entered(made, latent):
                delta = dist.Delta(value, log_density, event_dim=latent.event_dims)
                found[latent.name] = pyro.sample(latent.name, delta)
        return found

    def auxiliary_values(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The unconstrained vector of given latents: with it replayed, the guide's density is that of the latents."""
        assert self.layout is not None
        return {VECTOR: self.layout.packed(latents)}


def _tensors(model: Any) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())


def _points_of(model: Any) -> Dataset:
    own = next((t for t in _tensors(model) if t.dtype.is_floating_point), torch.zeros(()))
    return Dataset(torch.zeros(1, model.dim_x, dtype=own.dtype, device=own.device))


def _with_y(data: Dataset, model: Any) -> Dataset:
    """Data with the y of any draw, where it has none: without y the model has one latent more."""
    if data.y is not None:
        return data
    with outside_handlers(), torch.no_grad(), own_randomness(0):
        trace = pyro.poutine.trace(model).get_trace(data)
    return Dataset(data.x, trace.nodes["y"]["value"], data.mask)


def _check_fixed(model: Model, args: tuple, layout: Layout) -> None:
    """Refuses a model whose latents follow the points, or that reads more of a context than its latents."""
    if model.representation_dim or model.reads_memory:
        raise ValueError(
            f"model: got {type(model).__name__} with a deterministic path, which a guide of its own must supply; it "
            "must have representation_dim=0 and no path"
        )
    x = args[0].x
    longer = _with_y(Dataset(torch.cat([x, x], -2)), model)
    other = find_layout(model, (longer,), {}, (), runs=1)
    if [latent.size for latent in other.latents] != [latent.size for latent in layout.latents]:
        raise ValueError(
            f"model: got {type(model).__name__}, which has a latent at every point; it must have global ones"
        )
