"""Laplace's approximation around a trained adapter."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.adapters.adapter_guide import AdapterGuide
from guides.adapters.kronecker_normal import KroneckerNormal
from guides.adapters.recorded_calls import are_per_example, recorded_calls
from guides.curvature import KroneckerMoments, check_structure, eigenbases, fisher_roots
from pp_models.adapters.low_rank_adapted import LowRankAdapted
from pp_models.arguments import POSITIVE, checked
from pp_models.data import Dataset
from pp_models.likelihoods import of_observed

#: points of one backward pass
AT_ONCE = 64


def _flat(parts: list[Tensor], like: Tensor) -> Tensor:
    """Rows of all parts ``[places, k]``, in the dtype of a tensor."""
    return torch.cat([part.to(like.dtype).flatten(0, -2) for part in parts])


class LaplaceAdapterGuide(AdapterGuide):
    """Plain LoRA while it trains; after :meth:`fit_curvature` a Gaussian around the factors (cf. Laplace-LoRA).

    ``structure="diagonal"``: each weight of A and B is N(trained value, 1 / (prior precision + Fisher information)),
    with the diagonal of the Fisher information from labels drawn from the model itself.

    ``structure="kronecker"`` (Yang et al. 2024, after Martens and Grosse 2015): the generalised Gauss-Newton matrix of
    each factor W is taken to be G ⊗ Q, with Q the sum of the factor's inputs' outer products and G the mean of its
    outputs' gradients' (over points, and over those tokens that the outputs depend on). That is exact where either does
    not vary, such as for one point, or for the factor behind a linear map of Gaussian outputs. The prior's precision is
    added in the eigenbasis, exactly.

    Args:
        model: the adapted model.
        prior_precision: of the Gaussian prior on factors; may be changed at any time.
        structure: ``"diagonal"`` or ``"kronecker"``.

    Raises:
        TypeError: another family of model.
        ValueError: a precision that is not positive, or an unknown structure.
    """

    @checked(prior_precision=POSITIVE)
    def __init__(self, model: LowRankAdapted, prior_precision: float = 1.0, structure: str = "diagonal") -> None:
        super().__init__(model)
        check_structure(structure)
        self.prior_precision, self.structure = float(prior_precision), structure
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.fisher = nn.ParameterList()
        for factor in self._factors() if structure == "diagonal" else ():
            self.fisher.append(nn.Parameter(torch.zeros_like(factor), requires_grad=False))
        # G and Q of A and B, of one module after the other
        self.gradients, self.inputs = nn.ParameterList(), nn.ParameterList()
        for factor in self._factors() if structure == "kronecker" else ():
            rows, columns = factor.shape
            self.gradients.append(nn.Parameter(factor.detach().new_zeros(rows, rows), requires_grad=False))
            self.inputs.append(nn.Parameter(factor.detach().new_zeros(columns, columns), requires_grad=False))
        # known on the host, so that no forward pass reads the device
        self._is_fitted: bool | None = None
        self._bases: dict[int, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = {}

    fitted: Tensor

    def _factors(self) -> list[nn.Parameter]:
        return [f for m in self.model.rank_modules().values() for f in m.factors() or ()]

    def fit_curvature(self, data: Dataset, num_data: int | None = None, seed: int | None = 0) -> LaplaceAdapterGuide:
        """Estimates the curvature; from then on draws are Gaussian.

        The diagonal takes one backward pass a point. Kronecker factors take one for each output (class) of every 64
        points, and draw no labels where the likelihood's own curvature is known (:func:`fisher_roots`).

        Args:
            data: inputs of training points (of y only which outputs are missing); task dimensions are flattened.
            num_data: number of training points where these are only some of them.
            seed: of the labels drawn; the global random state is left as it was. None draws from that one.
        """
        model = self.model
        x = data.x.reshape(-1, data.x.shape[-1])
        observed = None if data.observed is None else data.observed.reshape(len(x), -1)
        if data.mask is not None:
            keep = data.mask.reshape(-1)
            x, observed = x[keep], None if observed is None else observed[keep]
        scale = 1.0 if num_data is None else num_data / max(len(x), 1)
        training = model.training
        model.eval()
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            (self._fit_diagonal if self.structure == "diagonal" else self._fit_kronecker)(x, observed, scale)
        model.train(training)
        with torch.no_grad():
            self.fitted.fill_(True)
        self._is_fitted = True
        return self

    def _fit_diagonal(self, x: Tensor, observed: Tensor | None, scale: float) -> None:
        factors = self._factors()
        totals = [torch.zeros_like(f) for f in factors]
        for i in range(len(x)):
            likelihood = self.model.likelihood(self.model.outputs(x[i : i + 1]))
            known = of_observed(likelihood, None if observed is None else observed[i : i + 1])
            gradients = torch.autograd.grad(known.log_prob(likelihood.sample()).sum(), factors)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient.square()
        with torch.no_grad():
            for stored, total in zip(self.fisher, totals, strict=True):
                stored.copy_(total * scale)

    def _fit_kronecker(self, x: Tensor, observed: Tensor | None, scale: float) -> None:
        modules: list[Any] = [m for m in self.model.rank_modules().values() if m.factors() is not None]
        moments = KroneckerMoments(self._factors())

        def add(rows: Tensor, known: Tensor | None) -> None:
            outputs = self.model.outputs(rows)
            layers = calls.take()
            if len(rows) > 1 and not are_per_example(layers, len(rows)):
                for n in range(len(rows)):
                    add(rows[n : n + 1], None if known is None else known[n : n + 1])
                return
            flat = [_flat([inputs for inputs, _ in each], p) for each, p in zip(layers, self.inputs[::2], strict=True)]
            used = [torch.zeros_like(inputs[:, 0], dtype=torch.bool) for inputs in flat]
            at = [output for each in layers for _, output in each]
            for roots in fisher_roots(self.model.likelihood(outputs), outputs, known):
                found = iter(torch.autograd.grad(outputs, at, roots, retain_graph=True))
                for i, (module, each) in enumerate(zip(modules, layers, strict=True)):
                    lora_B = module.factors()[1].detach()
                    at_output = _flat([next(found) for _ in each], lora_B) * module.update_scale()
                    moments.add_gradients(2 * i, at_output @ lora_B)
                    moments.add_gradients(2 * i + 1, at_output)
                    used[i] |= (at_output != 0).any(-1)
            for i, (module, inputs, there) in enumerate(zip(modules, flat, used, strict=True)):
                hidden = inputs @ module.factors()[0].detach().mT
                moments.add_inputs(2 * i, inputs, there)
                moments.add_inputs(2 * i + 1, hidden, there)

        with recorded_calls(modules) as calls:
            for start in range(0, len(x), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                add(x[part], None if observed is None else observed[part])
        with torch.no_grad():
            for gradients, inputs, (g, q) in zip(self.gradients, self.inputs, moments.factors(scale), strict=True):
                gradients.copy_(g)
                inputs.copy_(q)
        self._bases.clear()

    def is_fitted(self) -> bool:
        """Whether draws are Gaussian."""
        if self._is_fitted is None:
            self._is_fitted = bool(self.fitted)
        return self._is_fitted

    def _apply(self, *args, **kwargs):
        self._bases.clear()
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        self._is_fitted = None
        self._bases.clear()
        return super().load_state_dict(*args, **kwargs)

    def posterior(self, number: int, mean: Tensor) -> dist.TorchDistribution:
        """The Gaussian of the ``number``-th factor (A and B of one module after the other) around a mean."""
        if self.structure == "diagonal":
            scale = (self.prior_precision + self.fisher[number]).rsqrt()
            return dist.Normal(mean, scale)
        if number not in self._bases:  # the decomposition is good for every prior precision
            self._bases[number] = eigenbases(self.gradients[number], self.inputs[number])
        return KroneckerNormal(mean, *self._bases[number], self.prior_precision)

    def sample_module(self, index: int, path: str, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        values = self.point_rank_scale(path, lora_A)
        if self.training or not self.is_fitted():
            return values
        for number, name, mean in ((2 * index, "lora_A", lora_A), (2 * index + 1, "lora_B", lora_B)):
            values |= self.factor(path, name, self.posterior(number, mean))
        return values

    def weights_per_rank(self, path: str) -> int:
        return 1
