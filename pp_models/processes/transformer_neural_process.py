"""The Transformer Neural Process with diagonal predictions (TNP-D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pp_models.arguments import FEATURES, LAYERS, WIDTH, checked
from pp_models.data import Dataset
from pp_models.likelihoods import Likelihood
from pp_models.parameter_module import mlp
from pp_models.processes.conditional_process import ConditionalProcess


class TransformerNeuralProcess(ConditionalProcess):
    """A transformer whose tokens are the context's points and the inputs asked (TNP-D, Nguyen and Grover 2022).

    Context tokens attend to one another; the token of an input asked attends to them and to itself, so that what is
    predicted at a point does not depend on which others are asked. No positional encoding: the order of the context
    does not matter. A token embeds (x, y, 0) or (x, 0, 1): the flag, which the released code lacks, tells an unknown y
    from y = 0. Layer norms come after each residual sum, as there.

    Args:
        dim_x: input width.
        dim_y: output width (number of classes for a categorical likelihood).
        width: width of a token.
        num_layers: transformer layers.
        num_heads: attention heads.
        feedforward: hidden width of a layer's MLP, and of the head.
        likelihood: as for BayesianNetwork; the per-point Gaussian head (floor 0.1) by default.
        missing_outputs: as for BayesianNetwork; a flag each in a context's token.

    Raises:
        ValueError: a size below 1, or a width that the heads cannot divide.
    """

    @checked(dim_x=FEATURES, dim_y=FEATURES, width=WIDTH, num_layers=LAYERS, num_heads=LAYERS, feedforward=WIDTH)
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        width: int = 64,
        num_layers: int = 6,
        num_heads: int = 4,
        feedforward: int = 128,
        likelihood: str | Likelihood = "gaussian-head",
        *,
        missing_outputs: bool = False,
    ) -> None:
        super().__init__(dim_x, dim_y, likelihood, missing_outputs=missing_outputs)
        if width % num_heads:
            raise ValueError(f"width: got {width}; attention needs a multiple of num_heads, {num_heads}")
        # torch's own initial values throughout, as the released code has them: larger ones cost half a nat and more
        self.embed = mlp([dim_x + self.dim_seen + 1, width, width, width, width], kaiming=False)
        self.layers = nn.ModuleList([TokenLayer(width, num_heads, feedforward) for _ in range(num_layers)])
        self.head = mlp([width, feedforward, self.outputs], kaiming=False)

    def decode(self, asked: Dataset, context: Dataset, *latents: Tensor) -> Tensor:
        """See :meth:`ConditionalProcess.decode`."""
        assert context.y is not None and context.mask is not None
        x = asked.x
        unknown = x.new_zeros(*x.shape[:-1], self.dim_seen)
        targets = self.embed(torch.cat([x, unknown, torch.ones_like(x[..., :1])], -1))
        known = self.embed(torch.cat([context.x, self.seen(context), torch.zeros_like(context.x[..., :1])], -1))
        for layer in self.layers:
            known, targets = layer(known, targets, context.mask)
        return self.head(targets)


class TokenLayer(nn.Module):
    """One transformer layer over context tokens and target tokens, with the attention pattern of TNP-D."""

    def __init__(self, width: int, num_heads: int, feedforward: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)  # as torch's attention starts
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        self.mlp = nn.Sequential(nn.Linear(width, feedforward), nn.ReLU(), nn.Linear(feedforward, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, known: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Context tokens ``[P, M, width]`` (existing where ``mask`` ``[P, M]``) and target tokens ``[P, N, width]``."""
        count = known.shape[-2]
        tokens = torch.cat([known, targets], -2)
        queries, keys, values = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for t in self.qkv(tokens).chunk(3, -1)
        )
        # every token reads the context and itself; a context token finds itself there
        scale = queries.shape[-1] ** -0.5
        logits = scale * queries @ keys[..., :count, :].mT
        logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
        own = scale * (queries * keys).sum(-1, keepdim=True)
        is_target = torch.arange(tokens.shape[-2], device=tokens.device).unsqueeze(-1) >= count
        # a context token that does not exist reads itself, for a softmax over nothing is NaN; nobody reads it
        absent = torch.cat([~mask, torch.zeros_like(targets[..., 0], dtype=torch.bool)], -1)[:, None, :, None]
        own = own.masked_fill(~(is_target | absent), -torch.inf)
        weights = torch.softmax(torch.cat([logits, own], -1), -1)
        mixed = weights[..., :count] @ values[..., :count, :] + weights[..., count:] * values
        tokens = self.norms[0](tokens + self.out(mixed.transpose(-2, -3).flatten(-2)))
        tokens = self.norms[1](tokens + self.mlp(tokens))
        return tokens[..., :count, :], tokens[..., count:, :]
