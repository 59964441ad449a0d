"""What models have in common that predict a y at every point x."""

from __future__ import annotations

from pp_models.data import DataError, Dataset
from pp_models.likelihoods import Likelihood
from pp_models.parameter_module import ParameterModule


def network_outputs(likelihood: Likelihood, dim_y: int) -> int:
    """Outputs that a network needs for a y of this width: twice as many where each point has its own scale."""
    return dim_y if likelihood.dim_y(2 * dim_y) != dim_y else 2 * dim_y


class ObservationModel(ParameterModule):
    """A model with inputs ``[*B, N, dim_x]``, whose network's ``outputs`` a likelihood turns into a density of y."""

    dim_x: int
    outputs: int
    likelihood: Likelihood

    def check(self, data: Dataset) -> None:
        """Refuses data that this model cannot take.

        Raises:
            DataError: input width, or dtype or width of y, does not fit.
        """
        if data.x.shape[-1] != self.dim_x:
            raise DataError(f"x: got input width {data.x.shape[-1]}; this model was built for {self.dim_x}")
        if data.y is not None:
            self.likelihood.check(data.y, self.outputs)
