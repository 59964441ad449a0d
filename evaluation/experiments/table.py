"""The table of the experiments by name, the papers' and those that no paper has: one line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pp_models.registry import Registry, load

if TYPE_CHECKING:
    from evaluation.experiments.experiment import Outcome, Workshop


class Experiment:
    """An experiment by name.

    Args:
        title: one line.
        place: ``"file:function"`` in this folder; the function takes the arguments, then scale, seeds and workshop.
        *arguments: which variant of it.
        tasks: the task distributions of an experiment that can be run in pieces; its function also takes ``tasks``,
            ``methods`` and ``cpu_seconds``, each None for all of them or the scale's own.
    """

    def __init__(self, title: str, place: str, *arguments: Any, tasks: Sequence[str] = ()) -> None:
        self.title, self.place, self.arguments, self.tasks = title, place, arguments, tuple(tasks)

    def run(self, scale: str, seeds: list[int], workshop: Workshop, **options: Any) -> Outcome:
        """Runs it at a scale, for some seeds, with fits kept in a workshop."""
        return load(f"evaluation.experiments.{self.place}")(*self.arguments, scale, seeds, workshop, **options)


EXPERIMENTS: Registry[Experiment] = Registry(
    "experiment",
    {
        "nvdp/gp-random": Experiment("1-D GP regression, random RBF kernel", "nvdp_gp:run", "random"),
        "nvdp/gp-fixed": Experiment("1-D GP regression, fixed RBF kernel", "nvdp_gp:run", "fixed"),
        "nvdp/trigonometric": Experiment("functional ambiguity: sine, cosine or tanh", "nvdp_trigonometric:run"),
        "nvdp/inpainting-digits": Experiment(
            "image completion, embedded 8x8 digits",
            "nvdp_inpainting:run",
            "digits",
            "digits",
        ),
        "nvdp/inpainting-mnist": Experiment("image completion, MNIST", "nvdp_inpainting:run", "mnist", "mnist"),
        "nvdp/inpainting-omniglot-mnist": Experiment(
            "image completion, Omniglot to MNIST",
            "nvdp_inpainting:run",
            "omniglot",
            "mnist",
        ),
        "nvdp/inpainting-celeba": Experiment("image completion, CelebA", "nvdp_inpainting:run", "celeba", "celeba"),
        "nvdp/active-learning": Experiment("queries by predictive variance against random", "nvdp_active_learning:run"),
        "nvdp/masks": Experiment(
            "Gaussian weights, true masks, mean weights, an ensemble; parts of the variance", "nvdp_masks:run"
        ),
        "nvdp/full-rates": Experiment(
            "rates by rows and columns against a rate for every weight: quality and cost", "nvdp_full_rates:run"
        ),
        "bnnp/against-nuts": Experiment(
            "BNNP and mean-field VI against NUTS on a small network",
            "bnnp_against_nuts:run",
        ),
        "bnnp/elbo-quality": Experiment(
            "BNNP's bound against the evidence, over noise levels",
            "bnnp_elbo_quality:run",
        ),
        "bnnp/objectives": Experiment(
            "AVI, PP-AVI, NPML and NPVI with a fixed and a learned prior",
            "bnnp_objectives:run",
        ),
        "bnnp/sweeps": Experiment(
            "draws in training, covariances of the learned prior, points that come one by one",
            "bnnp_sweeps:run",
        ),
        "bnnp/limits": Experiment(
            "contexts in portions, and an attention network's targets asked for together", "bnnp_limits:run"
        ),
        "bnnp/prior-families": Experiment(
            "priors that are no Gaussians: heavy tails, spike and slab", "bnnp_prior_families:run"
        ),
        "bnnp/sequences": Experiment("time series: what comes next, and what lies between", "bnnp_sequences:run"),
        "bnnp/prior-sawtooth": Experiment("prior learning, sawtooth waves", "bnnp_prior_learning:run", "sawtooth"),
        "bnnp/prior-heaviside": Experiment(
            "prior learning, functions that jump between -1 and 1",
            "bnnp_prior_learning:run",
            "heaviside",
        ),
        "bnnp/prior-squared-exponential": Experiment(
            "prior learning, smooth GP functions, length scale 0.5",
            "bnnp_prior_learning:run",
            "squared-exponential",
        ),
        "bnnp/prior-network-draws": Experiment(
            "prior learning, draws of a wide ReLU network",
            "bnnp_prior_learning:run",
            "network-draws",
        ),
        "bnnp/prior-ecg-simulated": Experiment(
            "prior learning, simulated electrocardiograms",
            "bnnp_prior_learning:run",
            "ecg-simulated",
        ),
        "bnnp/prior-ecg200": Experiment(
            "prior learning, recorded electrocardiograms (ECG200)",
            "bnnp_prior_learning:run",
            "ecg200",
        ),
        "bnnp/prior-ecg5000": Experiment(
            "prior learning, recorded electrocardiograms (ECG5000)",
            "bnnp_prior_learning:run",
            "ecg5000",
        ),
        "bnnp/good-prior-ecg200": Experiment(
            "does a good prior replace inference, recorded electrocardiograms (ECG200)",
            "bnnp_good_prior:run",
            "ecg200",
        ),
        "bnnp/good-prior-era5": Experiment(
            "does a good prior replace inference, precipitation (ERA5-Land, your own copy)",
            "bnnp_good_prior:run",
            "era5",
        ),
        "bnnp/abalone": Experiment("two training tasks: how much of the prior to learn", "bnnp_abalone:run"),
        "bnnp/images-digits": Experiment("learned prior over 8x8 digits", "bnnp_images:run", "digits"),
        "bnnp/images-mnist": Experiment(
            "learned prior over MNIST: completion, super-resolution",
            "bnnp_images:run",
            "mnist",
        ),
        "nmdp/adaptation": Experiment(
            "what adapting takes against MAML and CAVIA, and how fast A4 and A5 train", "nmdp_adaptation:run"
        ),
        "nmdp/branches": Experiment("four branches and their oracle: the ablation ladder", "nmdp_branches:run"),
        "nmdp/sweep": Experiment("experts, particles and proposals, on the branches", "nmdp_branches:run_sweep"),
        "nmdp/ablations": Experiment("the ablation ladder on GP tasks of three kernels", "nmdp_gp_mix:run_ladder"),
        "nmdp/gp-mix": Experiment("GP tasks of three kernels: NMDP and its rivals", "nmdp_gp_mix:run_baselines"),
        "nmdp/representation": Experiment("what the weights know of the kernel", "nmdp_representation:run", "random"),
        "nmdp/representation-convcnp": Experiment(
            "the same with ConvCNP's fixed hyper-parameters",
            "nmdp_representation:run",
            "convcnp",
        ),
        "nmdp/ood": Experiment("odd tasks by the doubt of a Dirichlet: AUROC of every score", "nmdp_ood:run"),
        "nmdp/multi-output-sarcos": Experiment(
            "several outputs, sarcos: one function and cells",
            "nmdp_multi_output:run",
            "sarcos",
        ),
        "nmdp/multi-output-wq": Experiment(
            "several outputs, wq: one function and cells",
            "nmdp_multi_output:run",
            "wq",
        ),
        "nmdp/multi-output-scm20d": Experiment(
            "several outputs, scm20d: one function and cells",
            "nmdp_multi_output:run",
            "scm20d",
        ),
        "nmdp/multi-output-synthetic": Experiment(
            "several outputs, synthetic: one function and cells",
            "nmdp_multi_output:run",
            "synthetic",
        ),
        "nmdp/images-digits": Experiment("image completion, digits", "nmdp_images:run", "digits"),
        "nmdp/images-mnist": Experiment("image completion, mnist", "nmdp_images:run", "mnist"),
        "nmdp/images-cifar10-subset": Experiment(
            "image completion, cifar10-subset",
            "nmdp_images:run",
            "cifar10-subset",
        ),
        "nmdp/images-emnist": Experiment("image completion, emnist", "nmdp_images:run", "emnist"),
        "nmdp/images-svhn": Experiment("image completion, svhn", "nmdp_images:run", "svhn"),
        "nmdp/active-context": Experiment("which point to ask for next", "nmdp_active_context:run"),
        "nmdp/bimodal": Experiment("a process with two modes, and its exact likelihood", "nmdp_bimodal:run"),
        "lrvd/gpt2": Experiment("LRVD on a GPT-2-class language model", "lrvd_language:run"),
        "lrvd/kappa": Experiment("how heavy a rank's KL should be: a planted rank and MiniLM", "lrvd_kappa:run"),
        "lrvd/planted": Experiment("a planted rank, its ablations and negative controls", "lrvd_planted:run"),
        "lrvd/minilm-cola": Experiment("LRVD and its rivals on MiniLM-L6, cola", "lrvd_text:run", "minilm", "cola"),
        "lrvd/minilm-mrpc": Experiment("LRVD and its rivals on MiniLM-L6, mrpc", "lrvd_text:run", "minilm", "mrpc"),
        "lrvd/minilm-sst2": Experiment("LRVD and its rivals on MiniLM-L6, sst2", "lrvd_text:run", "minilm", "sst2"),
        "lrvd/minilm-docstrings": Experiment(
            "LRVD and its rivals on MiniLM-L6, docstrings",
            "lrvd_text:run",
            "minilm",
            "docstrings",
        ),
        "lrvd/deberta-cola": Experiment(
            "LRVD and its rivals on DeBERTa-v3-base, cola",
            "lrvd_text:run",
            "deberta",
            "cola",
        ),
        "lrvd/deberta-mrpc": Experiment(
            "LRVD and its rivals on DeBERTa-v3-base, mrpc",
            "lrvd_text:run",
            "deberta",
            "mrpc",
        ),
        "lrvd/deberta-sst2": Experiment(
            "LRVD and its rivals on DeBERTa-v3-base, sst2",
            "lrvd_text:run",
            "deberta",
            "sst2",
        ),
        "lrvd/deberta-rte": Experiment(
            "LRVD and its rivals on DeBERTa-v3-base, rte",
            "lrvd_text:run",
            "deberta",
            "rte",
        ),
        "lrvd/deberta-qnli": Experiment(
            "LRVD and its rivals on DeBERTa-v3-base, qnli",
            "lrvd_text:run",
            "deberta",
            "qnli",
        ),
        "lrvd/deberta-qqp": Experiment(
            "LRVD and its rivals on DeBERTa-v3-base, qqp",
            "lrvd_text:run",
            "deberta",
            "qqp",
        ),
        "lrvd/deberta-mnli": Experiment(
            "LRVD and its rivals on DeBERTa-v3-base, mnli",
            "lrvd_text:run",
            "deberta",
            "mnli",
        ),
        "lrvd/llama-winogrande-s": Experiment(
            "LRVD and its rivals on a LLaMA, winogrande-s",
            "lrvd_text:run",
            "llama",
            "winogrande-s",
        ),
        "lrvd/llama-winogrande-m": Experiment(
            "LRVD and its rivals on a LLaMA, winogrande-m",
            "lrvd_text:run",
            "llama",
            "winogrande-m",
        ),
        "lrvd/llama-arc-challenge": Experiment(
            "LRVD and its rivals on a LLaMA, arc-challenge",
            "lrvd_text:run",
            "llama",
            "arc-challenge",
        ),
        "lrvd/llama-arc-easy": Experiment(
            "LRVD and its rivals on a LLaMA, arc-easy",
            "lrvd_text:run",
            "llama",
            "arc-easy",
        ),
        "lrvd/llama-obqa": Experiment("LRVD and its rivals on a LLaMA, obqa", "lrvd_text:run", "llama", "obqa"),
        "lrvd/llama-boolq": Experiment("LRVD and its rivals on a LLaMA, boolq", "lrvd_text:run", "llama", "boolq"),
        "common/gp": Experiment(
            "every method on four GP kernels: one floor, one budget",
            "common_gp:run",
            tasks=[f"gp-{k}{f}-tnp" for k in ("rbf", "matern52", "weakly-periodic", "mix") for f in ("-fixed", "")],
        ),
        "common/images": Experiment(
            "every method on images: one floor, one budget", "common_images:run", tasks=("digits", "mnist")
        ),
        "common/few-shot": Experiment(
            "every head on one embedding, few-shot classification of characters",
            "common_few_shot:run",
            tasks=[f"omniglot-{ways}way-{shots}shot" for ways in (5, 20) for shots in (1, 5)],
        ),
        "nvdp/label-noise": Experiment(
            "few-shot classification with wrong labels in the whole task", "common_few_shot:run_label_noise"
        ),
        "nvdp/ablations": Experiment("variational prior, KL scale, rate structure, path", "nvdp_ablations:run"),
    },
    "guidebook list experiments",
)
