"""The importance-weighted bound of each task."""

from __future__ import annotations

from inference.objectives.renyi import RenyiBound


class IWAE(RenyiBound):
    """log (1/K) Σ_k p(y, z_k) / q(z_k | D) for each task, z_k ~ q (Burda et al. 2016, eq. 8).

    A lower bound on the log evidence, tighter with every particle. Reparameterised sites have the pathwise gradient
    Σ_k ŵ_k ∇ log w_k; others the score-function gradient with VIMCO's leave-one-out baselines (Mnih and Rezende 2016).
    The guide's gradient drowns in noise as K grows (Rainforth et al. 2018): then use :class:`DReG` or
    :class:`ReweightedWakeSleep`.

    Args:
        num_particles: particles of each task, K.
        **options: see :class:`ImportanceWeighted`.
    """

    name = "iwae"
    description = "K-particle importance-weighted bound; VIMCO where a site cannot be reparameterised"
    reference = "Burda et al. 2016; Mnih and Rezende 2016"
