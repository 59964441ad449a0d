"""How each named method is trained where nothing else is asked for: its best recipe at a two-core budget.

Chosen on validation tasks of their own; `docs/recipes.md` has the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """Settings of a fit.

    Args:
        learning_rate: of Adam, its largest.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        warmup: share of the steps over which the learning rate grows.
        max_grad_norm: of the gradient; None does not clip.
        batch_size: tasks a step.
        width: hidden width of every network.
        beta: weight of the KL of the method's own objective; None for that of the tasks.
    """

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.03
    max_grad_norm: float | None = 1.0
    batch_size: int = 16
    width: int = 64
    beta: float | None = None


DEFAULT = Recipe()
#: the recipes that differ from it
RECIPES: dict[str, Recipe] = {
    **dict.fromkeys(
        ("nvdp", "nvdp+path", "nvdp+det", "nvdp-layer", "nvdp-full", "nvdp-class"), Recipe(3e-3, width=48, beta=1.4)
    ),
    **dict.fromkeys(
        ("nmdp", "nmdp-conjugate", "nmdp-kernels", "cnp+path", "cnp+kernels", "convcnp", "np"), Recipe(2e-3)
    ),
    **dict.fromkeys(("anp", "dnp"), Recipe(5e-3)),
    "bnp": Recipe(3e-3, width=48),
    **dict.fromkeys(("bnnp", "bnam"), Recipe(5e-3, batch_size=8)),
}


#: width of NVDP's networks on pictures
NVDP_WIDTH_ON_PICTURES = 64


def recipe(name: str, pictures: bool = False) -> Recipe:
    """The recipe of a method; the default one for a name that has none of its own.

    Args:
        name: of the method.
        pictures: whether tasks are the pixels of pictures.
    """
    found = RECIPES.get(name, DEFAULT)
    return replace(found, width=NVDP_WIDTH_ON_PICTURES) if pictures and name.startswith("nvdp") else found
