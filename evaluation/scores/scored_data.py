"""The one check of what a score is given: outputs, masks, predictions, class labels and probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

#: a label that is not scored, as in ``torch.nn.functional.cross_entropy``
IGNORED = -100


def check_mask(mask: Tensor | None, outputs: torch.Size) -> Tensor | None:
    """The mask itself.

    Args:
        mask: of points ``[*B, N]`` or of single outputs ``[*B, N, Dy]``.
        outputs: ``[*B, N, Dy]``.

    Raises:
        ValueError: it is not of dtype bool (integers would pick rows), or not of a shape that fits.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask: got {kind}; it must be a tensor of dtype torch.bool, True where the point is scored")
    if mask.shape not in (outputs[:-1], outputs):
        raise ValueError(
            f"mask: got shape {list(mask.shape)}; it must be that of the points, {list(outputs[:-1])}, or of the "
            f"outputs, {list(outputs)}"
        )
    return mask


def check_outputs(y: Tensor, predicted: torch.Size, mask: Tensor | None = None) -> Tensor:
    """Real outputs ``[*B, N, Dy]`` as they can be scored: zeros where the mask says that nothing is.

    Args:
        y: outputs.
        predicted: the shape of what is predicted, which must be theirs: nothing is broadcast.
        mask: True where the point ``[*B, N]``, or the single output ``[*B, N, Dy]``, is scored.

    Raises:
        ValueError: another shape, dtype, or mask; or a NaN or infinity at a point that is scored.
    """
    if not isinstance(y, Tensor) or not y.dtype.is_floating_point:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y: got {kind}; this score needs a floating-point tensor of outputs")
    if y.shape != predicted:
        raise ValueError(f"y: got shape {list(y.shape)}; the prediction has shape {list(predicted)}")
    if (kept := check_mask(mask, y.shape)) is not None:
        y = torch.where(kept if kept.shape == y.shape else kept.unsqueeze(-1), y, torch.zeros_like(y))
    bad = int((~torch.isfinite(y)).sum())
    if bad:
        raise ValueError(f"y: {bad} value(s) are NaN or infinite; every scored output must be finite (mask the others)")
    return y


def check_probabilities(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities ``[n, C]`` in float64 and labels ``[n]`` of the items that are scored: not those of label -100.

    Raises:
        ValueError: shapes that do not match, labels that name no class, no item left, or rows that are no
            probabilities.
    """
    probs, labels = check_classes(probs, labels, "probs")
    off = (probs < 0).any(-1) | ((probs.sum(-1) - 1).abs() > 1e-2)
    if bool(off.any()):
        first = probs[off][0].tolist()
        raise ValueError(f"probs: {int(off.sum())} row(s) are no probabilities, such as {first}; a row sums to 1")
    return probs, labels


def check_classes(values: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The same for rows ``[n, C]`` of any numbers, such as logits, by the name of their argument."""
    if values.dim() != 2 or labels.shape != values.shape[:1]:
        raise ValueError(
            f"{name}: got shape {list(values.shape)} with labels of shape {list(labels.shape)}; they must be "
            "[n, C] and [n]"
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise ValueError(f"labels: got dtype {labels.dtype}; they must be class indices, integers")
    labels = labels.long()
    kept = labels != IGNORED
    values, labels = values[kept].double(), labels[kept]
    if not len(labels):
        raise ValueError(f"labels: got none to score; at least one must be a class index and not {IGNORED} (ignored)")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= values.shape[-1]:
        raise ValueError(
            f"labels: got indices from {low} to {high}; with {values.shape[-1]} classes they lie in "
            f"0..{values.shape[-1] - 1} ({IGNORED} is ignored)"
        )
    bad = int((~torch.isfinite(values)).any(-1).sum())
    if bad:
        raise ValueError(f"{name}: {bad} row(s) of scored items hold NaN or infinity; all must be finite")
    return values, labels
