"""What a model is called with as one vector for each data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guides.set_encoder import SetEncoder
from pp_models.data import Dataset
from pp_models.parameter_module import mlp


class FlatEncoder(nn.Module):
    """The numbers of all tensors among the arguments, through an MLP.

    Args:
        args: arguments of one call.
        kwargs: and those by name.
        lead: leading dimensions of each tensor that are data sets.
        width: hidden width and width of the vector.

    Raises:
        ValueError: there are no numbers.
    """

    def __init__(self, args: tuple, kwargs: Mapping[str, Any], lead: int, width: int) -> None:
        super().__init__()
        self.dims = {key: value.dim() - lead for key, value in _tensors(args, kwargs).items()}
        if not self.dims or min(self.dims.values()) < 0:
            raise ValueError(
                "encoder: got 'auto', but the arguments hold no tensors of data sets; it must be None (one "
                "posterior), or a module or function that turns them into features"
            )
        self.numbers = self._flat(args, kwargs).shape[-1]
        self.layers = mlp([self.numbers, width, width, width])

    def _flat(self, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        tensors = _tensors(args, kwargs)
        for key in self.dims.keys() ^ tensors.keys():
            raise ValueError(
                f"guide: argument {key!r} is a tensor in some calls alone; the encoder reads the same ones"
            )
        flat = [t.flatten(t.dim() - self.dims[k]) if self.dims[k] else t.unsqueeze(-1) for k, t in tensors.items()]
        shape = torch.broadcast_shapes(*(t.shape[:-1] for t in flat))
        return torch.cat([t.expand(*shape, -1) for t in flat], -1)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Features ``[*B, width]``."""
        flat = self._flat(args, kwargs)
        if flat.shape[-1] != self.numbers:
            raise ValueError(
                f"guide: got {flat.shape[-1]} numbers of data; the encoder was made for {self.numbers}: give "
                "encoder= one that takes any number"
            )
        return self.layers(flat.to(self.layers[0].weight.dtype))  # type: ignore[arg-type]


def _tensors(args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    named = {str(i): value for i, value in enumerate(args)} | dict(kwargs)
    return {key: value for key, value in named.items() if isinstance(value, Tensor)}


def default_encoder(
    model: Any, args: tuple, kwargs: Mapping[str, Any], lead: int, width: int, pooling: str
) -> Callable:
    """The encoder that ``"auto"`` stands for: of sets for a Dataset, of flat tensors for anything else."""
    if args and isinstance(args[0], Dataset):
        dim_y = getattr(model, "dim_y", None)
        if dim_y is None:
            y = args[0].y
            if y is None or not y.dtype.is_floating_point:
                raise ValueError(
                    "encoder: got 'auto', but how many classes y has is not known; it must be a SetEncoder(dim_x, "
                    "num_classes), say"
                )
            dim_y = y.shape[-1]
        return SetEncoder(
            args[0].x.shape[-1],
            dim_y,
            width,
            width,
            pooling=pooling,
            missing_outputs=getattr(model, "missing_outputs", False),
        )
    return FlatEncoder(args, kwargs, lead, width)
