"""One way to train a low-rank adapter: what every method has in common, plain LoRA, and what all get alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from evaluation.adapters.adapter_reader import AdaptedReader, NothingLatent, ReaderModel
from guides.adapters.blob_layers import lora_layers
from inference.adapters.bayesian_adapters import sampling
from inference.adapters.lrvd_training import TRAVEL, log_alpha_learning_rate
from inference.objectives import TaskObjective, make
from pp_models.adapters.text_networks import TextNetwork
from pp_models.data import DataError


class Programs(NamedTuple):
    """Model, guide and objective of a fit, and the texts that its loss is a sum over."""

    model: nn.Module
    guide: nn.Module
    objective: TaskObjective
    texts: int


@dataclass(frozen=True)
class AdapterBudget:
    """What every method gets alike.

    Args:
        steps: optimizer steps; the learning rate falls linearly to 0.
        batch_size: texts a step.
        rank: r of every layer.
        lora_alpha: s = lora_alpha / r.
        learning_rate: of AdamW for factors and head, without weight decay.
        max_grad_norm: gradient norms are clipped to this.
        temperature: T of LRVD's KL, counted once a rank; 1 is the evidence bound.
        travel: the sum of the learning rates of log α (or log σ²) over the run; less than about 12 prunes nothing.
        draws: S of Monte-Carlo predictions.
        max_len: tokens a text.
        half_frozen: whether the frozen layers' products are taken in bfloat16, where the machine is faster with it.
    """

    steps: int = 300
    batch_size: int = 16
    rank: int = 8
    lora_alpha: int = 16
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    travel: float = TRAVEL
    draws: int = 10
    max_len: int = 40
    half_frozen: bool = False


def require_peft() -> Any:
    """The package.

    Raises:
        DataError: it is missing.
    """
    try:
        import peft
    except ImportError:
        raise DataError("peft: the package is missing; pip install guidebook[adapters]") from None
    return peft


class PlainLora:
    """LoRA, a point estimate; the other methods change what they must.

    Args:
        budget: ranks, steps and rates.
        num_data: N.
    """

    #: whether predictions are Monte-Carlo means over draws
    stochastic = False

    def __init__(self, budget: AdapterBudget, num_data: int) -> None:
        self.budget, self.num_data = budget, num_data
        self.model: Any = None
        self.transposed = False

    def adapt(self, base: TextNetwork) -> nn.Module:
        """The transformer with fresh adapters, its other parameters frozen."""
        peft = require_peft()
        # GPT-2's Conv1D keeps the transpose of a linear layer's weight
        self.transposed = any(type(module).__name__ == "Conv1D" for module in base.network.modules())
        with warnings.catch_warnings():
            # transformers 5 says it of its own attribute, which peft reads
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            self.model = peft.get_peft_model(base.network, self.config(base.targets))
        self.prepare()
        return self.model

    def config(self, targets: str) -> Any:
        """peft's configuration."""
        return require_peft().LoraConfig(**self._options(targets))

    def _options(self, targets: str) -> dict[str, Any]:
        found = {"r": self.budget.rank, "lora_alpha": self.budget.lora_alpha, "target_modules": targets}
        return found | {"fan_in_fan_out": self.transposed}

    def prepare(self) -> None:
        """Adds parameters or hooks to the adapted model."""

    def programs(self, reader: AdaptedReader, columns: Sequence[str], texts: int) -> Programs:
        """What :func:`inference.fit` trains: by default a model whose noise is in peft's layers.

        Args:
            reader: the adapted transformer with its head.
            columns: what a row of x holds side by side, see :func:`adapter_reader.packed`.
            texts: that are trained on.
        """
        model = ReaderModel(reader, columns, self.penalty)
        return Programs(model, NothingLatent(), make("elbo"), self.budget.batch_size)

    def scale_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained at :meth:`scale_rate` instead of the learning rate."""
        return []

    def scale_rate(self) -> float:
        """The first learning rate of :meth:`scale_parameters`: over the run they can travel by ``budget.travel``."""
        return log_alpha_learning_rate(self.budget.steps, self.budget.travel)

    def penalty(self) -> Tensor | float:
        """Added to the mean NLL."""
        return 0.0

    #: called after each optimizer step, gradients still there, with its number and the schedule's factor; or None
    after_step: Callable[[int, float], None] | None = None

    def look(self) -> None:
        """Called where the training is looked at: before it, some twenty times, and when it is over."""

    def drawing(self, draws: int, seed: int) -> Any:
        """A context in which every pass over ``for _ in draws`` is a posterior draw."""
        return sampling(self.model, draws, seed) if self.stochastic else nullcontext(range(draws))

    def log_alpha(self) -> dict[str, Tensor]:
        """log noise-to-signal ratio by module, where the method has one."""
        return {}

    def ranks(self) -> dict[str, int]:
        """Ranks in use by module."""
        return {path: len(layer.lora_A["default"].weight) for path, layer in lora_layers(self.model).items()}
