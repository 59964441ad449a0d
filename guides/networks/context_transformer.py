"""Self-attention over a context, one output for each point."""

from __future__ import annotations

from torch import Tensor, nn

from guides.set_encoder import AttentionBlock


class ContextTransformer(nn.Sequential):
    """Per-point outputs that depend on the whole set, whatever its order (Set Transformer, Lee et al. 2019).

    An embedding, self-attention blocks, a layer norm and a linear layer; points know of their order nothing but what
    they hold. Without a point it is its per-point part alone.

    Args:
        dim_in: width of what is read at a point.
        dim_out: width of the output.
        width: width of the embedding.
        num_blocks: attention blocks.
        num_heads: attention heads.

    Raises:
        ValueError: a number below 1, or a width that the heads cannot divide.
    """

    def __init__(self, dim_in: int, dim_out: int, width: int, num_blocks: int, num_heads: int) -> None:
        for name, value in (("num_blocks", num_blocks), ("num_heads", num_heads)):
            if value < 1:
                raise ValueError(f"{name}: got {value}; it must be at least 1")
        if width % num_heads:
            raise ValueError(f"width: got {width}; attention needs a multiple of num_heads, {num_heads}")
        blocks = [AttentionBlock(width, num_heads) for _ in range(num_blocks)]
        head = nn.Linear(width, dim_out)
        nn.init.kaiming_normal_(head.weight)
        nn.init.normal_(head.bias, std=1e-3)
        super().__init__(nn.Linear(dim_in, width), *blocks, nn.LayerNorm(width), head)

    def forward(self, points: Tensor, mask: Tensor | None = None) -> Tensor:
        """Points ``[*B, N, dim_in]`` with a mask ``[*B, N]`` (leading dimensions broadcast) to ``[*B, N, dim_out]``."""
        for module in self:
            if not isinstance(module, AttentionBlock):
                points = module(points)
            elif points.shape[-2]:
                points = module(points, mask)
        return points
