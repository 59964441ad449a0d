"""A transformer whose weights are latent in every task: BNNP's attention model BNAM (docs/papers/bnnp.md)."""

from __future__ import annotations

from torch import Tensor, nn

from pp_models.arguments import FEATURES, FLAG, LAYERS, SCALE, WIDTH, checked, instance, one_of
from pp_models.attention import attend
from pp_models.likelihoods import Likelihood, make_likelihood
from pp_models.networks.bayesian_network import BayesianNetwork, Layer
from pp_models.networks.priors import WeightPrior
from pp_models.observation_model import ACTIVATIONS

#: weight matrices of a block: queries, keys, values, output, and the two of the feed-forward part
MATRICES_OF_A_BLOCK = 6


class BayesianAttentionNetwork(BayesianNetwork):
    """Self-attention between the points of a data set, one latent weight matrix a linear layer and task.

    The points of the Dataset it is called with attend to one another, and to nothing else: contexts among contexts
    where a guide propagates them, targets among targets where the model scores or predicts them. Contexts influence
    targets through the weights alone. So **a prediction at a point depends on which other points are asked**: there
    is no marginalisation consistency, and the model is not a stochastic process. A single target point attends only to
    itself, and scores depend on how targets are put together.

    An embedding of the input; blocks h ← LN(h + O attention(Q h, K h, V h)), h ← LN(h + F₂ act(F₁ h)); a head on
    act(h). Sites ``layer_{i}.weight`` in that order: embedding, for each block Q, K, V, O, F₁, F₂, and the head. The
    layer norms are ordinary learned parameters of the model. Any guide over the weights of a BayesianNetwork takes it.

    Args:
        dim_x: input width.
        dim_y: output width (number of classes for a categorical likelihood).
        width: width of the embedding and of the feed-forward part.
        num_blocks: attention blocks.
        num_heads: attention heads.
        prior: a WeightPrior; N(0, 1 / (k_in + 1)) by default. The released code does not divide the covariance of
            these layers by the fan-in: pass a prior with ``scale_by_fan_in=False`` for that.
        likelihood: as for BayesianNetwork.
        noise_scale: noise standard deviation of the shared-noise Gaussian likelihood.
        activation: ``"relu"``, ``"tanh"``, ``"silu"`` or ``"gelu"``.
        missing_outputs: as for BayesianNetwork.

    Raises:
        ValueError: a size below 1, a width that the heads cannot divide, or an unknown name.
    """

    independent_points = False

    @checked(
        dim_x=FEATURES,
        dim_y=FEATURES,
        width=WIDTH,
        num_blocks=LAYERS,
        num_heads=LAYERS,
        prior=instance(WeightPrior),
        noise_scale=SCALE,
        activation=one_of(*ACTIVATIONS),
        missing_outputs=FLAG,
    )
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        width: int = 64,
        num_blocks: int = 2,
        num_heads: int = 8,
        prior: WeightPrior | None = None,
        likelihood: str | Likelihood = "gaussian",
        noise_scale: float = 0.1,
        activation: str = "relu",
        *,
        missing_outputs: bool = False,
    ) -> None:
        if width % num_heads:
            raise ValueError(f"width: got {width}; attention needs a multiple of num_heads, {num_heads}")
        likelihood = make_likelihood(likelihood, noise_scale)
        outputs = likelihood.num_outputs(dim_y)
        # every inner matrix is square, so that the shapes are those of a perceptron with as many layers
        inner = [width] * (MATRICES_OF_A_BLOCK * num_blocks + 1)
        sizes = [dim_x, *inner, outputs]
        super().__init__(sizes, prior, likelihood, noise_scale, activation, missing_outputs=missing_outputs)
        self.width, self.num_blocks, self.num_heads = width, num_blocks, num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * num_blocks)])

    @property
    def hidden_sizes(self) -> list[int]:
        """Two layers of the embedding's width."""
        return [self.width, self.width]

    def propagate(self, x: Tensor, layer: Layer, mask: Tensor | None = None) -> Tensor:
        """See :meth:`BayesianNetwork.propagate`; points that do not exist are attended to by none."""
        activation = ACTIVATIONS[self.activation]
        hidden = layer(0, x)
        for block in range(self.num_blocks):
            first = 1 + MATRICES_OF_A_BLOCK * block
            queries, keys, values = (layer(first + i, hidden) for i in range(3))
            mixed = attend(queries, keys, values, mask, self.num_heads)
            hidden = self.norms[2 * block](hidden + layer(first + 3, mixed))
            inner = activation(layer(first + 4, hidden))
            hidden = self.norms[2 * block + 1](hidden + layer(first + 5, inner))
        return layer(self.num_layers - 1, activation(hidden))
