"""IWAE with doubly reparameterised gradients."""

from __future__ import annotations

from inference.objectives.renyi import RenyiBound


class DReG(RenyiBound):
    """The bound of :class:`IWAE` with the gradient Σ_k ŵ_k² ∂ log w_k / ∂z_k dz_k / dφ (Tucker et al. 2019, eq. 6).

    The expectation is IWAE's gradient; the variance falls with K as the bound tightens, and it is zero where the guide
    is the exact posterior. The model's gradient is IWAE's. For a guide of several dependent sites the guide is run a
    second time at the fixed values, since ∂ / ∂z is to be taken through its own conditionals too.

    Args:
        num_particles: particles of each task, K.
        **options: see :class:`ImportanceWeighted`.

    Raises:
        ValueError: when used, for a site that cannot be reparameterised.
    """

    name = "dreg"
    description = "the same bound with doubly reparameterised gradients"
    reference = "Tucker et al. 2019"
    doubly_reparameterized = needs_score = weighs_gradients = True
