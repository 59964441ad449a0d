"""What can be done to a trained LoRA afterwards: fewer ranks, Laplace's approximation, noise without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evaluation.adapters.adapter_reader import AdaptedReader
from evaluation.adapters.adapter_training import predict_classes
from evaluation.scores.calibration_metrics import negative_log_likelihood
from guides.adapters.blob_layers import lora_layers
from guides.adapters.recorded_calls import are_per_example, recorded_calls
from guides.curvature import KroneckerMoments, check_structure, eigenbases
from inference.random_state import seeded
from pp_models.adapters.text_networks import TokenSet


@torch.no_grad()
def truncate_ranks(model: nn.Module, total_rank: int, by: str = "svd") -> dict[str, int]:
    """Keeps the largest rank-one components of a LoRA over all its layers, in place.

    Args:
        model: with LoRA layers.
        total_rank: components that are left in all.
        by: ``"magnitude"`` (|b_k| |a_k| of the components as they are) or ``"svd"`` (singular values of each layer's
            update, after turning its factors into the gauge of the SVD).

    Returns:
        the rank of every layer.

    Raises:
        ValueError: an unknown criterion, or a total out of range.
    """
    if by not in ("magnitude", "svd"):
        raise ValueError(f"by: got {by!r}; it must be magnitude or svd")
    layers = lora_layers(model)
    sizes = {}
    for path, layer in layers.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        if by == "svd":
            q_b, r_b = torch.linalg.qr(b)
            q_a, r_a = torch.linalg.qr(a.mT)
            u, s, vh = torch.linalg.svd(r_b @ r_a.mT)
            b.copy_(q_b @ u * s.sqrt())
            a.copy_(s.sqrt().unsqueeze(-1) * (vh @ q_a.mT))
        sizes[path] = layer.scaling["default"] * b.norm(dim=0) * a.norm(dim=1)
    together = torch.cat(list(sizes.values()))
    if not 0 <= total_rank <= len(together):
        raise ValueError(f"total_rank: got {total_rank}; it must be between 0 and {len(together)}")
    keep = torch.zeros_like(together, dtype=torch.bool)
    keep[together.topk(total_rank).indices] = True
    kept = dict(zip(sizes, keep.split([len(s) for s in sizes.values()]), strict=True))
    mask_ranks(model, kept)
    return {path: int(value.sum()) for path, value in kept.items()}


@torch.no_grad()
def mask_ranks(model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Silences components, in place: columns of B at ranks that are not kept (bool ``[r]`` by module) become 0."""
    for path, layer in lora_layers(model).items():
        layer.lora_B["default"].weight.mul_(keep[path].to(layer.lora_B["default"].weight))


class LogitPosterior(NamedTuple):
    """Gaussian over n texts' logits: mean ``[n, C]``, covariance ``[G, n, C, C]`` by prior precision."""

    mean: Tensor
    covariance: Tensor

    def draw(self, number: int, draws: int, seed: int = 0) -> Tensor:
        """Class probabilities ``[S, n, C]`` of S draws under the grid's precision of that number."""
        generator = torch.Generator().manual_seed(seed)
        values, vectors = torch.linalg.eigh(self.covariance[number])
        root = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
        noise = torch.randn(draws, *self.mean.shape, generator=generator, dtype=root.dtype)
        return (self.mean + (root @ noise.unsqueeze(-1)).squeeze(-1)).softmax(-1)


class AdapterLaplace:
    """Linearised Laplace over all factors A and B, with the generalised Gauss-Newton matrix in a simple form.

    f(x) ~ N(f̂(x), J(x) (H + λ I)⁻¹ J(x)ᵀ) (Immer et al. 2021; on LoRA: Yang et al. 2024, who use Kronecker factors).
    The head stays a point. λ is chosen from a grid by the NLL on held-out texts.

    H is diagonal, or of each factor the Kronecker product of its outputs' gradients' second moment (the mean over
    places, that is tokens that the logits depend on) and its inputs' (the sum); λ is then added in the eigenbasis.

    Args:
        reader: trained, of classes.
        precisions: the grid of λ.
        structure: of H, ``"diagonal"`` or ``"kronecker"``.

    Raises:
        ValueError: an unknown structure.
    """

    def __init__(
        self,
        reader: AdaptedReader,
        precisions: tuple[float, ...] = (0.1, 1, 10, 100, 1e3, 1e4),
        structure: str = "diagonal",
    ) -> None:
        check_structure(structure)
        self.reader = reader.eval()
        self.precisions, self.structure = precisions, structure
        self.linears: list[nn.Module] = []
        for layer in lora_layers(reader.network).values():
            self.linears += [layer.lora_A["default"], layer.lora_B["default"]]
        #: the diagonal by factor, or eigenvalues; those are in the bases (of gradients, of inputs)
        self.curvature: list[Tensor] = []
        self.bases: list[tuple[Tensor, Tensor]] = []
        self.chosen = 0

    def _gradients(self, texts: TokenSet) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits ``[n, C]``, and by factor its inputs ``[n, L, k_in]`` and the logits' derivatives by its outputs,
        ``[n, C, L, k_out]``, at all L places where it is used."""
        with recorded_calls(self.linears) as calls:
            logits = self.reader(texts.to(self.reader.device).inputs)
            seen = calls.take()
        n = len(texts)
        if n > 1 and not are_per_example(seen, n):  # examples share what a factor is used on: one at a time
            rows = [self._gradients(one) for one in texts.singles()]
            by_factor = [[torch.cat(parts) for parts in zip(*(row[k] for row in rows), strict=True)] for k in (1, 2)]
            return torch.cat([row[0] for row in rows]), by_factor[0], by_factor[1]
        outputs = [output for each in seen for _, output in each]
        by_class = [torch.autograd.grad(logits[:, c].sum(), outputs, retain_graph=True) for c in range(logits.shape[1])]
        by_call = iter([torch.stack(parts, 1).flatten(2, -2) for parts in zip(*by_class, strict=True)])
        inputs = [torch.cat([x.reshape(n, -1, x.shape[-1]) for x, _ in each], 1) for each in seen]
        gradients = [torch.cat([next(by_call) for _ in each], 2) for each in seen]
        return logits.detach(), inputs, gradients

    def _jacobians(self, texts: TokenSet) -> tuple[Tensor, list[Tensor]]:
        """Logits ``[n, C]`` and their derivatives by every factor, ``[n, C, k_out, k_in]`` each."""
        logits, inputs, gradients = self._gradients(texts)
        # an example's places share its logits and no one else's
        pairs = zip(inputs, gradients, strict=True)
        return logits, [torch.einsum("nclo,nli->ncoi", gradient, x) for x, gradient in pairs]

    def fit(self, texts: TokenSet, batch_size: int = 16) -> AdapterLaplace:
        """Sums the curvature over training texts."""
        if self.structure == "kronecker":
            return self._fit_kronecker(texts, batch_size)
        self.curvature = [torch.zeros_like(linear.weight) for linear in self.linears]  # type: ignore[arg-type]
        for rows in torch.arange(len(texts)).split(batch_size):
            logits, jacobians = self._jacobians(texts.take(rows))
            probs = logits.softmax(-1)
            for total, jacobian in zip(self.curvature, jacobians, strict=True):
                mean = torch.einsum("nc,nc...->n...", probs, jacobian)
                total += torch.einsum("nc,nc...->...", probs, jacobian.square()) - mean.square().sum(0)
        return self

    def _fit_kronecker(self, texts: TokenSet, batch_size: int) -> AdapterLaplace:
        moments = KroneckerMoments([linear.weight for linear in self.linears])  # type: ignore[misc]
        for rows in torch.arange(len(texts)).split(batch_size):
            logits, inputs, gradients = self._gradients(texts.take(rows))
            probs = logits.softmax(-1).unsqueeze(-1).unsqueeze(-1)
            for i, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
                # the square root of diag(p) - p pᵀ: sqrt(p_c) (e_c - p)
                moments.add_gradients(i, probs.sqrt() * (gradient - (probs * gradient).sum(1, keepdim=True)))
                used = (gradient != 0).any(-1).any(1)  # padding, for one, has no say in the logits
                moments.add_inputs(i, x.flatten(0, 1), used.flatten())
        self.bases, self.curvature = [], []
        for g, q in moments.factors():
            (left, u), (right, v) = eigenbases(g, q)
            self.curvature.append(left.clamp_min(0.0).unsqueeze(-1) * right.clamp_min(0.0))
            self.bases.append((u, v))
        return self

    def posterior(self, texts: TokenSet, batch_size: int = 16) -> LogitPosterior:
        """The logits' Gaussian at texts, for each precision of the grid, on the host."""
        means, covariances = [], []
        grid = torch.tensor(self.precisions, device=self.reader.device)
        variances = [1 / (c.clamp_min(0.0).flatten().unsqueeze(-1) + grid) for c in self.curvature]  # [P, G] a factor
        for rows in torch.arange(len(texts)).split(batch_size):
            logits, jacobians = self._jacobians(texts.take(rows))
            if self.bases:
                jacobians = [u.mT @ (jacobian @ v) for jacobian, (u, v) in zip(jacobians, self.bases, strict=True)]
            classes = logits.shape[-1]
            total = torch.zeros(len(rows), classes, classes, len(grid), device=self.reader.device)
            for jacobian, variance in zip(jacobians, variances, strict=True):
                flat = jacobian.flatten(2)
                total += (flat.unsqueeze(2) * flat.unsqueeze(1)) @ variance
            means.append(logits.cpu())
            covariances.append(total.movedim(-1, 0).cpu())
        return LogitPosterior(torch.cat(means), torch.cat(covariances, 1))

    def choose(self, texts: TokenSet, draws: int = 100) -> float:
        """Takes the precision with the lowest NLL on held-out texts, and returns it."""
        found = self.posterior(texts)
        losses = [
            negative_log_likelihood(found.draw(i, draws).mean(0), texts.labels) for i in range(len(self.precisions))
        ]
        self.chosen = min(range(len(losses)), key=losses.__getitem__)
        return self.precisions[self.chosen]

    def predict(self, texts: TokenSet, draws: int = 100, seed: int = 0) -> Tensor:
        """Class probabilities ``[S, n, C]`` under the chosen precision."""
        return self.posterior(texts).draw(self.chosen, draws, seed)


class TrainingFree:
    """Noise on the factors A of a trained LoRA in the gauge of B's SVD (TFB, Shi et al. 2024); nothing is trained.

    With B = U diag(d) Vᵀ a layer is U diag(d) (Vᵀ A), and row i of Vᵀ A gets noise of standard deviation σ / d_i, so
    that every direction of the update has the same. The authors take the largest σ within a tolerance; here
    the one of a grid with the lowest NLL on held-out texts is taken, which is at least as good there.

    Args:
        reader: trained, of classes; its factors are turned in place, its function stays.
        scales: the grid of σ.
    """

    def __init__(self, reader: AdaptedReader, scales: tuple[float, ...] = (0.002, 0.004, 0.008, 0.016, 0.03)) -> None:
        self.reader, self.scales, self.scale = reader.eval(), scales, 0.0
        #: by layer: A's parameter, its mean, and d
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for layer in lora_layers(reader.network).values():
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                u, d, vh = torch.linalg.svd(b, full_matrices=False)
                b.copy_(u * d)
                a.copy_(vh @ a)
                self.rows.append((a, a.detach().clone(), d.clamp_min(1e-6).unsqueeze(-1)))

    @torch.no_grad()
    def predict(self, texts: TokenSet, draws: int, seed: int = 0, scale: float | None = None) -> Tensor:
        """Class probabilities ``[S, n, C]`` under the chosen σ, or a given one."""
        sigma = self.scale if scale is None else scale
        found = []
        with seeded(seed, self.reader.device):
            for _ in range(draws):
                for a, mean, d in self.rows:
                    a.copy_(mean + sigma / d * torch.randn_like(mean))
                found.append(predict_classes(self.reader, texts)[0])
        for a, mean, _ in self.rows:
            a.copy_(mean)
        return torch.stack(found)

    def choose(self, texts: TokenSet, draws: int = 5) -> float:
        """Takes the σ with the lowest NLL on held-out texts, and returns it."""
        losses = {
            s: negative_log_likelihood(self.predict(texts, draws, 0, s).mean(0), texts.labels) for s in self.scales
        }
        self.scale = min(losses, key=losses.__getitem__)
        return self.scale
