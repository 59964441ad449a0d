"""NVDP's guide: dropout rates of every weight, a product of Bernoulli experts, given the context."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from guides.networks.dropout_normal import DropoutNormal, DropRates
from guides.networks.weight_guide import WeightGuide, initial_weight
from guides.set_encoder import SetEncoder
from pp_models.arguments import checked, number, one_of
from pp_models.data import Dataset
from pp_models.likelihoods import CategoricalLikelihood
from pp_models.networks.bayesian_network import BayesianNetwork
from pp_models.observation_model import seen_outputs
from pp_models.parameter_module import mlp

CLIPS = ("logit", "probability")
RATES = ("product", "layer", "full", "class")
#: logit clips of the released code: the posterior given a context, and the prior given the whole task
POSTERIOR_CLIP = (-2.0, 2.5)
PRIOR_CLIP = (-4.0, 4.0)
PROBABILITY_CLIP = (0.01, 0.99)
#: range of the learned temperatures
TEMPERATURES = (0.5, 5.0)


class RateNetworks(nn.Module):
    """One MLP a layer from the representation to its rate logits: five linear layers, LeakyReLU(0.1) between.

    The hidden layers of all networks are evaluated together, as batched products.

    Args:
        width: width of the representation and of the hidden layers.
        outputs: number of logits of each layer.
    """

    def __init__(self, width: int, outputs: list[int], depth: int = 5) -> None:
        super().__init__()
        networks = [mlp([width] * depth + [count]) for count in outputs]
        hidden = [[layer for layer in network if isinstance(layer, nn.Linear)] for network in networks]
        self.hidden_weights = nn.ParameterList(
            [nn.Parameter(torch.stack([net[i].weight.detach().T for net in hidden])) for i in range(depth - 1)]
        )
        self.hidden_biases = nn.ParameterList(
            [nn.Parameter(torch.stack([net[i].bias.detach() for net in hidden]).unsqueeze(1)) for i in range(depth - 1)]
        )
        self.heads = nn.ModuleList([net[-1] for net in hidden])

    def forward(self, encoded: Tensor) -> list[Tensor]:
        """Representations ``[*B, width]`` to logits ``[*B, count]``, layer by layer."""
        batch_shape = encoded.shape[:-1]
        hidden = encoded.reshape(1, -1, encoded.shape[-1]).expand(len(self.heads), -1, -1)
        for weight, bias in zip(self.hidden_weights, self.hidden_biases, strict=True):
            hidden = nn.functional.leaky_relu(torch.baddbmm(bias, hidden, weight), 0.1)
        return [head(h).reshape(*batch_shape, -1) for head, h in zip(self.heads, hidden, strict=True)]


class ClassRates(nn.Module):
    """Rate logits of a classifier's rows, each from the examples of its own class.

    Args:
        dim_x: input width.
        width: of an example's embedding.
        columns: weights of a row, its bias among them.
        num_classes: rows.
    """

    def __init__(self, dim_x: int, width: int, columns: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embed = mlp([dim_x, width, width, width])
        self.head = mlp([width + 1, width, columns])

    def forward(self, data: Dataset) -> Tensor:
        """Logits ``[*B, C, columns]`` given examples ``[*B, N]``; those of a class without any read zeros."""
        y = seen_outputs(data, self.num_classes)
        shown = y * data.full_mask().unsqueeze(-1).to(y.dtype)  # [*B, N, C]
        count = shown.sum(-2).unsqueeze(-1)
        embedded = self.embed(data.x)
        if data.mask is not None:  # absent inputs may be anything
            embedded = torch.where(data.mask.unsqueeze(-1), embedded, torch.zeros_like(embedded))
        mean = shown.mT @ embedded / count.clamp_min(1)
        return self.head(torch.cat([mean, count.log1p() / 4], -1))


class BernoulliExpertGuide(WeightGuide):
    """Neural Variational Dropout Processes (Jeon, Park and Kim, ICLR 2022).

    All tasks share the weights θ (parameters of this guide); a task has its own drop probabilities, from one pass of a
    set encoder and one small network a layer:

        P[k, d] = s(b_k) s(a_d) s(c),   bias: s(e_k),   s(u) = sigmoid(clip(u) / τ)

    and q(W | D) is Gaussian dropout with those rates (:class:`guides.networks.dropout_normal.DropoutNormal`); see
    docs/papers/nvdp.md, eq. 2 to 5.

    Args:
        model: the network.
        width: width of the encoder, the rate networks and the representation (128 in the paper's code).
        clip: ``"logit"`` clips the logits as the released code does, to [-2, 2.5] given a context and to [-4, 4] in
            :meth:`conditional_prior`, so that at the initial temperature P >= 0.009; training the temperature moves
            that bound. ``"probability"`` clips P itself to (0.01, 0.99) for both, as the paper says.
        rates: ``"product"`` (row × column × layer experts), ``"layer"`` (one rate a layer and one for its biases) or
            ``"full"`` (a rate network output for each weight), which are for ablations; ``"class"`` for few-shot
            classification, where a class's number means nothing outside its task: the last layer's θ is one row that
            all classes share, and the rates of class c come from the mean embedding of its own examples. The layers
            before it have products. (A reconstruction: the paper's few-shot code is not public.)
        pooling: pooling of the set encoder, see :class:`guides.set_encoder.SetEncoder`.
        temperature: τ of every layer at the start, learned within [0.5, 5]. The released code has 1.5, where the clip
            keeps every rate between 0.009 and 0.595, so that no weight falls below 0.4 θ; at 0.5 they reach from
            0 to 0.98.
        share_encoder: on a model with a representation, use the rate encoder's output for it (the trigonometric
            experiment) instead of an encoder of its own.

    Raises:
        ValueError: unknown option, or ``share_encoder`` with a model whose representation has another width.
    """

    name = "bernoulli-expert"
    description = "NVDP: drop rates of every weight from the context"

    @checked(clip=one_of(*CLIPS), rates=one_of(*RATES), temperature=number(*TEMPERATURES))
    def __init__(
        self,
        model: BayesianNetwork,
        width: int = 128,
        *,
        clip: str = "logit",
        rates: str = "product",
        pooling: str = "mean",
        temperature: float = 1.5,
        share_encoder: bool = False,
    ) -> None:
        super().__init__(model, width, pooling=pooling)
        self.clip = clip
        self.rate_structure = rates
        self.encoder = SetEncoder(
            model.dim_x, model.dim_y, width, width, pooling=pooling, missing_outputs=model.missing_outputs
        )
        self.share_encoder = share_encoder
        if share_encoder:
            if model.representation_dim != width:
                raise ValueError(
                    f"share_encoder: the model's representation_dim is {model.representation_dim} and the encoder's "
                    f"width {width}; they must be equal"
                )
            self.representation_encoder = None
        self.by_class: ClassRates | None = None
        if rates == "class":
            if not isinstance(model.likelihood, CategoricalLikelihood):
                raise ValueError("rates: got 'class', which needs a model with likelihood='categorical'")
            self.by_class = ClassRates(model.dim_x, width, self.shapes[-1][1], model.dim_y)
        # of a last layer by class one row stands for all
        own = self.shapes if self.by_class is None else [*self.shapes[:-1], (1, self.shapes[-1][1])]
        self.weights = nn.ParameterList([nn.Parameter(initial_weight(shape)) for shape in own])
        self.temperatures = nn.Parameter(torch.full((len(self.shapes),), float(temperature)))
        lengths = [self.rate_vector_length(i) for i in range(self.shared_layers)]
        self.rate_networks = RateNetworks(width, lengths) if lengths else None

    @property
    def shared_layers(self) -> int:
        """Layers whose rates come from the whole context: all but a last one whose rates come class by class."""
        return len(self.shapes) - (self.by_class is not None)

    def rate_vector_length(self, index: int) -> int:
        """Outputs of a layer's rate network: k_in + k_out + 1 + k_out for the product of experts."""
        k_out, columns = self.shapes[index]
        product = columns - 1 + k_out + 1 + k_out
        return {"layer": 2, "full": k_out * columns}.get(self.rate_structure, product)

    def representation(self, data: Dataset) -> Tensor | None:
        return self.encoder(data) if self.share_encoder else super().representation(data)

    def layer_rates(self, data: Dataset, clip: tuple[float, float] = POSTERIOR_CLIP) -> list[DropRates]:
        """The rates of each layer given the data."""
        logits = [] if self.rate_networks is None else self.rate_networks(self.encoder(data))
        if self.by_class is not None:
            logits = [*logits, self.by_class(data)]
        if self.clip == "logit":
            logits = [u.clamp(*clip) for u in logits]
        temperatures = self.temperatures.clamp(*TEMPERATURES)
        found = []
        for i, ((k_out, columns), u, temperature) in enumerate(zip(self.shapes, logits, temperatures, strict=True)):
            p = torch.sigmoid(u / temperature)
            if i >= self.shared_layers:
                rates = DropRates(dense=p)
            elif self.rate_structure in ("product", "class"):
                row, column, layer, bias = p.split([columns - 1, k_out, 1, k_out], -1)
                rates = DropRates(row, column, layer.squeeze(-1), bias)
            elif self.rate_structure == "layer":
                both = p.unsqueeze(-2).expand(*p.shape[:-1], k_out, 2)
                rates = DropRates(
                    dense=torch.cat([both[..., :1].expand(*both.shape[:-1], columns - 1), both[..., 1:]], -1)
                )
            else:
                rates = DropRates(dense=p.unflatten(-1, (k_out, columns)))
            if self.clip == "probability":  # a clipped product is no longer a product
                rates = DropRates(dense=rates.matrix().clamp(*PROBABILITY_CLIP))
            found.append(rates)
        return found

    def layer_distributions(self, data: Dataset, clip: tuple[float, float] = POSTERIOR_CLIP) -> list[TorchDistribution]:
        weights = list(self.weights)
        if self.by_class is not None:
            weights[-1] = weights[-1].expand(self.shapes[-1])
        return [DropoutNormal(w, r) for w, r in zip(weights, self.layer_rates(data, clip), strict=True)]

    def conditional_prior(self, data: Dataset) -> dict[str, Tensor]:
        """The same family given a whole task, with the wider logit clip: what the objective calls the prior."""
        return self._sample(data, self.layer_distributions(data, PRIOR_CLIP))

    def rates(self, data: Dataset) -> dict[str, Tensor]:
        """Drop probabilities ``[*B, k_out, k_in + 1]`` by site, biases in the last column."""
        return {site: r.matrix() for site, r in zip(self.sites, self.layer_rates(data), strict=True)}
