"""The papers' experiments, each by one name: ``guidebook reproduce nvdp/gp-random``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from evaluation.experiments import (
    bnnp_abalone,
    bnnp_against_nuts,
    bnnp_elbo_quality,
    bnnp_good_prior,
    bnnp_images,
    bnnp_objectives,
    bnnp_prior_learning,
    lrvd_kappa,
    lrvd_language,
    lrvd_planted,
    lrvd_text,
    nmdp_active_context,
    nmdp_bimodal,
    nmdp_branches,
    nmdp_gp_mix,
    nmdp_images,
    nmdp_multi_output,
    nmdp_ood,
    nmdp_representation,
    nvdp_ablations,
    nvdp_active_learning,
    nvdp_gp,
    nvdp_inpainting,
    nvdp_trigonometric,
)
from evaluation.experiments.experiment import SCALES, Check, Experiment, Outcome, Workshop, write_outcome
from pp_models.tasks.regression_tables import TABLES

EXPERIMENTS: dict[str, Experiment] = {
    "nvdp/gp-random": Experiment("1-D GP regression, random RBF kernel", partial(nvdp_gp.run, "random")),
    "nvdp/gp-fixed": Experiment("1-D GP regression, fixed RBF kernel", partial(nvdp_gp.run, "fixed")),
    "nvdp/trigonometric": Experiment("functional ambiguity: sine, cosine or tanh", nvdp_trigonometric.run),
    "nvdp/inpainting-digits": Experiment(
        "image completion, embedded 8x8 digits", partial(nvdp_inpainting.run, "digits", "digits")
    ),
    "nvdp/inpainting-mnist": Experiment("image completion, MNIST", partial(nvdp_inpainting.run, "mnist", "mnist")),
    "nvdp/inpainting-omniglot-mnist": Experiment(
        "image completion, Omniglot to MNIST", partial(nvdp_inpainting.run, "omniglot", "mnist")
    ),
    "nvdp/inpainting-celeba": Experiment("image completion, CelebA", partial(nvdp_inpainting.run, "celeba", "celeba")),
    "nvdp/active-learning": Experiment("queries by predictive variance against random", nvdp_active_learning.run),
    "bnnp/against-nuts": Experiment("BNNP and mean-field VI against NUTS on a small network", bnnp_against_nuts.run),
    "bnnp/elbo-quality": Experiment("BNNP's bound against the evidence, over noise levels", bnnp_elbo_quality.run),
    "bnnp/objectives": Experiment("AVI, PP-AVI, NPML and NPVI with a fixed and a learned prior", bnnp_objectives.run),
    **{
        f"bnnp/prior-{name}": Experiment(f"prior learning, {family.title}", partial(bnnp_prior_learning.run, name))
        for name, family in bnnp_prior_learning.FAMILIES.items()
    },
    **{
        f"bnnp/good-prior-{name}": Experiment(
            f"does a good prior replace inference, {family.title}", partial(bnnp_good_prior.run, name)
        )
        for name, family in bnnp_good_prior.SETS.items()
    },
    "bnnp/abalone": Experiment("two training tasks: how much of the prior to learn", bnnp_abalone.run),
    "bnnp/images-digits": Experiment("learned prior over 8x8 digits", partial(bnnp_images.run, "digits")),
    "bnnp/images-mnist": Experiment(
        "learned prior over MNIST: completion, super-resolution", partial(bnnp_images.run, "mnist")
    ),
    "nmdp/branches": Experiment("four branches and their oracle: the ablation ladder", nmdp_branches.run),
    "nmdp/sweep": Experiment("experts, particles and proposals, on the branches", nmdp_branches.run_sweep),
    "nmdp/ablations": Experiment("the ablation ladder on GP tasks of three kernels", nmdp_gp_mix.run_ladder),
    "nmdp/gp-mix": Experiment("GP tasks of three kernels: NMDP and its rivals", nmdp_gp_mix.run_baselines),
    "nmdp/representation": Experiment(
        "what the weights know of the kernel", partial(nmdp_representation.run, "random")
    ),
    "nmdp/representation-convcnp": Experiment(
        "the same with ConvCNP's fixed hyper-parameters", partial(nmdp_representation.run, "convcnp")
    ),
    "nmdp/ood": Experiment("odd tasks by the doubt of a Dirichlet: AUROC of every score", nmdp_ood.run),
    **{
        f"nmdp/multi-output-{table}": Experiment(
            f"several outputs, {table}: one function and cells", partial(nmdp_multi_output.run, table)
        )
        for table in TABLES
    },
    **{
        f"nmdp/images-{images}": Experiment(f"image completion, {images}", partial(nmdp_images.run, images))
        for images in ("digits", "mnist", "cifar10-subset", "emnist", "svhn")
    },
    "nmdp/active-context": Experiment("which point to ask for next", nmdp_active_context.run),
    "nmdp/bimodal": Experiment("a process with two modes, and its exact likelihood", nmdp_bimodal.run),
    "lrvd/gpt2": Experiment("LRVD on a GPT-2-class language model", lrvd_language.run),
    "lrvd/kappa": Experiment("how heavy a rank's KL should be: a planted rank and MiniLM", lrvd_kappa.run),
    "lrvd/planted": Experiment("a planted rank, its ablations and negative controls", lrvd_planted.run),
    **{
        f"lrvd/{architecture}-{task}": Experiment(f"{title}, {task}", partial(lrvd_text.run, architecture, task))
        for architecture, (title, text_tasks) in lrvd_text.EXPERIMENTS.items()
        for task in text_tasks
    },
    "nvdp/ablations": Experiment("variational prior, KL scale, rate structure, path", nvdp_ablations.run),
}


def reproduce(
    name: str,
    scale: str = "small",
    seeds: list[int] | None = None,
    out: str | Path = "runs",
    progress: bool = True,
    device: str = "cpu",
) -> Outcome:
    """Runs an experiment and writes its tables, figures and report.

    Args:
        name: a name of ``EXPERIMENTS``.
        scale: ``"smoke"``, ``"small"`` or ``"paper"``.
        seeds: seeds; 0, 1, 2 by default (0 at smoke scale).
        out: folder; fits are kept in ``out/FAMILY/fits`` and results in ``out/FAMILY/EXPERIMENT-SCALE``.
        progress: show progress.
        device: where the methods are trained: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"``. The published results
            here are the CPU's.

    Raises:
        ValueError: unknown experiment or scale, no seeds, a seed out of range or given twice, or no such device.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment: got {name!r}; it must be one of {', '.join(EXPERIMENTS)}")
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}; it must be one of {', '.join(SCALES)}")
    seeds = ([0] if scale == "smoke" else [0, 1, 2]) if seeds is None else seeds
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {seeds}; it must be non-negative integers below 2^63, each once, at least one")
    family, short = name.split("/")
    workshop = Workshop(Path(out) / family, progress, device)
    outcome = EXPERIMENTS[name].run(scale, seeds, workshop)
    outcome.command = f"guidebook reproduce {name} --scale {scale} --seeds {','.join(map(str, seeds))}"
    write_outcome(outcome, Path(out) / family / f"{short}-{scale}")
    return outcome


__all__ = ["EXPERIMENTS", "SCALES", "Check", "Experiment", "Outcome", "Workshop", "reproduce"]
