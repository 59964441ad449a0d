"""The log-joint of a NumPyro twin, for tests that hold it to the model's own."""

from collections.abc import Callable

import jax
from numpyro.infer.util import log_density
from torch import Tensor
from torch.nn import Module

from inference.reference.numpyro_twin import as_array, precision_of
from pp_models import Dataset


def twin_log_joint(model: Module, twin: Callable[[Dataset], None], data: Dataset, values: dict[str, Tensor]) -> float:
    """log p(data, values) under the twin of a model, in the model's precision."""
    with precision_of(model):
        # compiled as a whole: operation by operation takes three times as long
        density = jax.jit(lambda found: log_density(twin, (data,), {}, found)[0])
        return float(density({name: as_array(value) for name, value in values.items()}))
