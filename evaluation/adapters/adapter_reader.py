"""An adapted transformer with what is read off it, and as a Pyro model of texts that lie in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pp_models import CategoricalLikelihood, Dataset
from pp_models.adapters.text_networks import TextNetwork, TokenSet, letter_ids
from pp_models.contract import Guide, Likelihood
from pp_models.observation_model import observe


class AdaptedReader(nn.Module):
    """An adapted transformer and what is read off it.

    An encoder's hidden states are averaged over tokens and read by a linear head ``[n, C]``; of a decoder either the
    logits of the answer letters behind the last token are taken ``[n, C]``, or all tokens' ``[n, L, V]``.

    Args:
        network: the adapted transformer.
        base: what it was made from.
        num_classes: C.
    """

    letters: Tensor

    def __init__(self, network: nn.Module, base: TextNetwork, num_classes: int) -> None:
        super().__init__()
        self.network, self.kind = network, base.kind
        self.head: nn.Module = nn.Identity()
        if base.kind == "encoder":
            width = base.network.config.hidden_size  # type: ignore[union-attr]
            self.head = nn.Linear(int(width), num_classes)  # type: ignore[arg-type]
        letters = letter_ids(base.tokenizer, num_classes) if base.kind == "letters" else torch.empty(0)
        self.register_buffer("letters", letters, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.letters.device

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        found = self.network(**inputs)
        mask = inputs["attention_mask"]
        if self.kind == "encoder":
            return self.head(mean_pool(found.last_hidden_state, mask))
        if self.kind == "letters":
            return found.logits[torch.arange(len(mask)), mask.sum(-1) - 1][:, self.letters].float()
        return found.logits.float()


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``[n, L, D]`` over the tokens that exist, ``[n, D]``."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def packed(texts: TokenSet) -> Dataset:
    """Texts as points: x holds token ids, mask and whatever else side by side ``[n, k L]``, y the labels.

    Of language modelling y is the tokens ``[n, L]``, -100 where there is none.
    """
    x = torch.cat(list(texts.inputs.values()), -1).float()
    return Dataset(x, texts.labels if texts.labels.dim() == 1 else texts.labels.float())


def unpacked(x: Tensor, columns: Sequence[str]) -> dict[str, Tensor]:
    """The network's inputs from x, by the names of what lies side by side."""
    return dict(zip(columns, x.long().chunk(len(columns), -1), strict=True))


class NextTokens(TorchDistribution):
    """Of a block of tokens ``[L]``, each after those before it, by logits ``[*B, L, V]``; -100 is no token."""

    arg_constraints = {}  # noqa: RUF012 - torch's own name and type
    support = constraints.real_vector

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        logits, labels = self.logits[..., :-1, :], value[..., 1:].long()
        losses = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="none")
        return -losses.reshape(labels.shape).sum(-1)


class NextTokensLikelihood(Likelihood):
    """Blocks of tokens from their logits, flattened to ``[n, L V]``.

    Args:
        vocabulary: V.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def dim_y(self, outputs: int) -> int:
        return outputs // self.vocabulary

    def forward(self, outputs: Tensor) -> TorchDistribution:
        return NextTokens(outputs.unflatten(-1, (-1, self.vocabulary)))


def likelihood_of(reader: AdaptedReader) -> Likelihood:
    """What makes a density of labels of the outputs of :func:`read`."""
    if reader.kind != "tokens":
        return CategoricalLikelihood()
    return NextTokensLikelihood(int(reader.network.config.vocab_size))  # type: ignore[union-attr, arg-type]


def read(reader: nn.Module, x: Tensor, columns: Sequence[str]) -> Tensor:
    """Outputs ``[n, C]``, or ``[n, L V]`` of a language model, of packed texts."""
    return reader(unpacked(x, columns)).flatten(1)


class ReaderModel(nn.Module):
    """A reader as a Pyro model of packed texts with nothing latent: what is random is inside of its layers.

    Args:
        reader: it.
        columns: see :func:`unpacked`.
        penalty: added to the mean negative log-likelihood of a text's labels.
    """

    def __init__(self, reader: AdaptedReader, columns: Sequence[str], penalty: Callable[[], Tensor | float]) -> None:
        super().__init__()
        self.reader, self.columns, self.penalty = reader, tuple(columns), penalty
        self.likelihood = likelihood_of(reader)

    def forward(self, data: Dataset) -> Tensor:
        outputs = read(self.reader, data.x, self.columns)
        values = len(outputs) * scored_values(self.reader, data)
        pyro.factor("penalty", -values * torch.as_tensor(self.penalty(), device=outputs.device))
        return observe(self.likelihood(outputs), data)


def scored_values(reader: AdaptedReader, data: Dataset) -> int:
    """Labels of each text: one, or all tokens of a block but the first."""
    return 1 if reader.kind != "tokens" or data.y is None else data.y.shape[-1] - 1


class NothingLatent(Guide):
    """The guide of a model without latents."""

    def forward(self, data: Dataset) -> dict[str, Tensor]:
        return {}
