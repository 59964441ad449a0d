"""Every claim, experiment, failure sign and open question of the four papers, and where each stands here."""

from __future__ import annotations

from typing import NamedTuple

#: how a claim can stand
HOLDS, MIXED, REFUTED, PARTLY, NOT_RUN = "holds", "mixed", "refuted", "partly", "not run"
STANDS = (HOLDS, MIXED, REFUTED, PARTLY, NOT_RUN)


class Claim(NamedTuple):
    """A row of the index of results.

    Args:
        key: family and number.
        words: what a paper claims, shows, warns of or leaves open.
        stands: one of ``STANDS``; ``"partly"`` is measured at a smaller size, or on fewer seeds, than would decide it.
        found: what was found here, or why it was not run.
        experiments: that measured it (``guidebook reproduce``).
        tests: files of tests that prove it, below ``tests``.
    """

    key: str
    words: str
    stands: str
    found: str
    experiments: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


NVDP = (
    Claim("nvdp-1", "GP regression: LL, RLL, PLL above the other processes", MIXED,
          "above NP and NP+CNP+VP in every seed; CNP ahead in 5 of 6; with the closed-form encoder above CNP, far below "
          "ConvCNP, DNP, TNP-D", ("nvdp/gp-random", "nvdp/gp-fixed", "common/gp")),
    Claim("nvdp-2", "image completion: MNIST, Omniglot to MNIST", MIXED, "as the paper trains it below CNP, above NP on MNIST, level with it on Omniglot; with the closed-form encoder its rates complete digits (0.47 to 0.51 nats an unseen pixel, three seeds)", ("nvdp/inpainting-mnist", "nvdp/inpainting-omniglot-mnist", "nvdp/inpainting-digits", "common/images")),
    Claim("nvdp-3", "image completion: CelebA", NOT_RUN, "the data are not to be had here; the loader is tested on stand-ins",
          ("nvdp/inpainting-celeba",)),
    Claim("nvdp-4", "few-shot classification", MIXED, "Omniglot, 5 ways, 1 shot: row-times-column rates stay at chance (0.20); rates of a class's weights from its own examples (a reconstruction) reach 0.81, a prototypical network 0.89", ("common/few-shot",)),
    Claim("nvdp-5", "mitigates under-fitting and collapse", HOLDS, "against latent neural processes",
          ("nvdp/gp-random", "nvdp/trigonometric")),
    Claim("nvdp-6", "strong active learning", REFUTED, "queries by its own sd lose 0.68 nats to random ones, NP's 0.56, CNP's "
          "0.31; by the recipe 0.97 to 2.57, and by the epistemic part alone (mutual information) 0.03 to 0.26",
          ("nvdp/active-learning", "nvdp/masks")),
    Claim("nvdp-7", "a low-rank product of Bernoulli experts", HOLDS, "exact", (), ("identities/test_nvdp_identities.py",)),
    Claim("nvdp-8", "O(K + D) outputs in place of O(K D)", HOLDS, "889 outputs for 20,546 rates at width 96, where a step keeps 0.59 "
          "of the memory of full rates and takes 0.73 of the time; at width 48 and below the time is the same",
          ("nvdp/full-rates",), ("identities/test_nvdp_identities.py",)),
    Claim("nvdp-9", "the variational prior helps", HOLDS, "+0.10 nats; KL a weight below 1 against above 50",
          ("nvdp/ablations",)),
    Claim("nvdp-10", "the KL distils the whole task into the context's branch", HOLDS, "exact", ("nvdp/ablations",),
          ("identities/test_nvdp_identities.py",)),
    Claim("nvdp-11", "uncertainty without an ensemble", MIXED, "0.46 to 0.51 nats above five CNPs of the same CPU seconds in all (their "
          "encoder is a mean), but behind with 4 points in two of three seeds; 95 % intervals hold 0.89 to 0.90 of the targets, "
          "the ensemble's 0.90 to 0.91", ("nvdp/masks",)),
    Claim("nvdp-12", "Gaussian moments suffice for Bernoulli masks", HOLDS, "predictions by true masks within 0.005 nats "
          "of those by their moments, which are exact by test; training is by moments", ("nvdp/masks",),
          ("identities/test_nvdp_identities.py",)),
    Claim("nvdp-13", "training: from a context to its whole task in one step", HOLDS, "trains from nothing, by test", (),
          ("end_to_end/test_nvdp_small_training.py",)),
    Claim("nvdp-14", "low-rank against full rates", MIXED, "full rates are 0.06 to 0.07 nats ahead, with 12 times the outputs; one rate a "
          "layer loses 0.78 to 0.96 (0.19 to 0.28 as the paper trains)", ("nvdp/full-rates", "nvdp/ablations")),
    Claim("nvdp-15", "cost of the whole-task pass of the variational prior", HOLDS, "0.32 of a step's CPU time, most of it the "
          "gradient through it (0.21); one encoder pass serves both branches", ("nvdp/full-rates",),
          ("guides/test_shared_points.py",)),
    Claim("nvdp-16", "failure sign: rates collapse to 0 or 1", HOLDS, "seen with the summed KL and with any path, and said by the "
          "verdict's note on rates", ("nvdp/ablations",), ("evaluation/test_latent_findings.py",)),
    Claim("nvdp-17", "failure sign: a low RLL", HOLDS, "a finding of the verdict", (), ("evaluation/test_latent_findings.py",)),
    Claim("nvdp-18", "failure sign: posterior collapse", HOLDS, "a finding of the verdict", (),
          ("evaluation/test_latent_findings.py",)),
    Claim("nvdp-19", "bands with and without the variational prior", HOLDS, "pictures and a table", ("nvdp/ablations",)),
    Claim("nvdp-20", "layer-wise rates", PARTLY, "on GP tasks; on MNIST not run", ("nvdp/ablations", "nvdp/gp-fixed")),
    Claim("nvdp-22", "open: a set transformer as the encoder", MIXED, "trains as the mean does (-0.372, -0.382); closed-form "
          "regressions are far better", (), ("guides/test_context_parts.py",)),
    Claim("nvdp-23", "open: aleatoric and epistemic parts", MIXED, "from 4 to 40 points the epistemic part falls by 13 to 23 %, "
          "where the exact one falls to a thousandth; the aleatoric part stays, but at an sd of 0.3 where the noise has 0.02",
          ("nvdp/masks", "nmdp/active-context")),
    Claim("nvdp-24", "next check: tasks that need full-rank rates", MIXED, "renumbered classes are such tasks",
          ("common/few-shot",)),
    Claim("nvdp-25", "limitation: large scale", NOT_RUN, "the papers' sizes take days of a GPU"),
    Claim("nvdp-26", "next check: mini-ImageNet, CIFAR-FS", NOT_RUN, "the data are not to be had here; the loader is tested on "
          "stand-ins", (), ("pp_models/tasks/test_few_shot_data.py",)),
    Claim("nvdp-27", "next check: label noise in the whole task", MIXED, "rates of a class's weights lose 0.21 of accuracy to 40 % of wrong labels, least of all heads (0.34 to 0.56; prototypes 0.19); row-times-column rates stay at chance; one seed", ("nvdp/label-noise",)),
    Claim("nvdp-28", "which weights change at test", HOLDS, "pictures of rates", ("nvdp/gp-random",)),
)  # fmt: skip

BNNP = (
    Claim("bnnp-1", "weights as the latent of a neural process", HOLDS, "exact", (), ("identities/test_bnn_identities.py",)),
    Claim("bnnp-2", "accurate approximate posteriors", MIXED, "bound within 0.37 nats of the evidence; its mean misses NUTS's in "
          "one seed of three", ("bnnp/elbo-quality", "bnnp/against-nuts")),
    Claim("bnnp-3", "PP-AVI", HOLDS, "exact, by enumeration", (), ("identities/test_objective_enumeration.py",)),
    Claim("bnnp-4", "PP-AVI ahead of AVI, NPML, NPVI", REFUTED, "NPVI is ahead by 0.3 to 0.7; ahead of AVI with a fixed prior "
          "alone", ("bnnp/objectives",)),
    Claim("bnnp-5", "a learned prior helps few-shot regression", HOLDS, "by 0.8 to 5 nats a point", ("bnnp/good-prior-ecg200",)),
    Claim("bnnp-6", "a prior learned from many data sets, as a generator", MIXED, "most of seven families miss at their budget, four with one seed; with sines and cosines of x as inputs the prior of GP draws is found (energy distance 0.118 before, -0.002 after; the demo, one seed)", ("bnnp/prior-sawtooth", "bnnp/prior-heaviside", "bnnp/prior-squared-exponential", "bnnp/prior-network-draws", "bnnp/prior-ecg-simulated", "bnnp/prior-ecg200", "bnnp/prior-ecg5000")),
    Claim("bnnp-7", "minibatches within a task", HOLDS, "trained on 320 to 480 points in portions of 64 as on the whole (within 0.012 "
          "nats) with 0.29 to 0.43 of the memory and 1.3 times the CPU time; by the gradient of one portion 0.02 to 0.06 nats behind",
          ("bnnp/limits",), ("identities/test_bnn_identities.py",)),
    Claim("bnnp-8", "online update of the last layer", HOLDS, "exact by test; from 5 to 30 points it gains 1.6 to 1.8 nats, "
          "0.61 to 0.64 less than inferring anew", ("bnnp/sweeps",), ("identities/test_bnn_identities.py",)),
    Claim("bnnp-9", "electrocardiograms", REFUTED, "learned priors come no nearer the recorded ones",
          ("bnnp/prior-ecg200", "bnnp/prior-ecg5000", "bnnp/prior-ecg-simulated")),
    Claim("bnnp-10", "image completion at any resolution", REFUTED, "blobs at this budget, one seed",
          ("bnnp/images-mnist", "bnnp/images-digits")),
    Claim("bnnp-11", "a good prior replaces inference", MIXED, "helps every method; does not rescue mean-field VI in every seed",
          ("bnnp/good-prior-ecg200",)),
    Claim("bnnp-12", "BNNs as flexible generators", REFUTED, "draws of learned priors miss", ("bnnp/prior-sawtooth",)),
    Claim("bnnp-13", "two training tasks: shares of the prior trained", PARTLY, "one seed; no over-fitting seen", ("bnnp/abalone",)),
    Claim("bnnp-14", "calibrated uncertainty", HOLDS, "coverage by objective", ("bnnp/objectives",)),
    Claim("bnnp-15", "limitation: cost of full-rank priors", HOLDS, "a whole layer's covariance costs 8 times a unit's step and is "
          "ahead by 0.08 to 0.25 nats; low-rank and sparse ones cost as much as a unit's full one", ("bnnp/sweeps",),
          ("identities/test_bnn_identities.py",)),
    Claim("bnnp-16", "limitation: the attention network is inconsistent", HOLDS, "nineteen other targets move a prediction by 0.24 to 0.40 "
          "of its sd and cost 0.04 to 0.97 nats; a perceptron's by nothing", ("bnnp/limits",),
          ("pp_models/networks/test_bayesian_attention.py",)),
    Claim("bnnp-17", "limitation: sensitive to S", HOLDS, "S = 64 is 0.55 to 0.61 nats ahead of S = 1; 16 to 64 gain 0.08 for 2.5 times "
          "the step", ("bnnp/sweeps",)),
    Claim("bnnp-18", "future: non-Gaussian priors", MIXED, "the layerwise posterior needs a Gaussian, and says so; under a mean-field guide Student-t weights are 0.03 (smooth functions) and 0.52 (jumps) above a Gaussian's, spike and slab 0.45 below and 0.32 above; a learned Gaussian with the layerwise guide is 4.1 and 2.1 above all of them; one seed", ("bnnp/prior-families",), ("identities/test_sparse_weights.py",)),
    Claim("bnnp-19", "future: sequences", MIXED, "recorded beats, one seed: by sines of time 0.14 above the training series' mean in between, 0.47 below it for what comes next; by time alone and by attention below both; the training series' Gaussian is 0.46 and 0.75 ahead", ("bnnp/sequences",)),
    Claim("bnnp-20", "future: few-shot benchmarks", MIXED, "trains on an embedding (0.73 and 0.89 with 1 and 5 shots), below prototypes (0.89, 0.96)", ("common/few-shot",)),
    Claim("bnnp-21", "ERA5 precipitation", NOT_RUN, "the data are not to be had here", ("bnnp/good-prior-era5",)),
)  # fmt: skip

NMDP = (
    Claim("nmdp-1", "a Dirichlet latent over shared experts", HOLDS, "exact", (), ("identities/test_nmdp_identities.py",)),
    Claim("nmdp-2", "a large L approximates anything; choice of L", PARTLY, "the sweep was run at smoke size alone",
          ("nmdp/sweep",)),
    Claim("nmdp-3", "adaptation is one forward pass", HOLDS, "exact", (), ("identities/test_nmdp_identities.py",)),
    Claim("nmdp-4", "lighter than MAML and CAVIA at test time", HOLDS, "MAML takes 2.0 to 3.9 times its CPU time for one "
          "task, CAVIA 1.2 to 2.7", ("nmdp/adaptation",)),
    Claim("nmdp-5", "importance-weighted EM, the prior as proposal", HOLDS, "exact", (), ("identities/test_iw_em.py",)),
    Claim("nmdp-6", "self-normalised weights", HOLDS, "exact", (), ("identities/test_iw_em.py",)),
    Claim("nmdp-7", "monotone improvement", HOLDS, "exact EM never lowers the evidence", (), ("identities/test_iw_em.py",)),
    Claim("nmdp-8", "a predictive in closed form", HOLDS, "exact", (), ("identities/test_nmdp_identities.py",)),
    Claim("nmdp-9", "best on GP tasks of three kernels", HOLDS, "with experts that are regressions or Gaussian processes; with "
          "the paper's experts behind ConvCNP, TNP-D and DNP", ("common/gp", "nmdp/gp-mix")),
    Claim("nmdp-10", "images", PARTLY, "digits on common ground; CIFAR-10, SVHN and EMNIST at smoke size alone",
          ("common/images", "nmdp/images-digits", "nmdp/images-mnist", "nmdp/images-cifar10-subset",
           "nmdp/images-emnist", "nmdp/images-svhn")),
    Claim("nmdp-11", "SARCOS, WQ, SCM20D", PARTLY, "WQ with one seed, where every reader of a context overfits; the others at "
          "smoke size", ("nmdp/multi-output-wq", "nmdp/multi-output-sarcos", "nmdp/multi-output-scm20d",
          "nmdp/multi-output-synthetic")),
    Claim("nmdp-12", "the ladder A1 < … < A5", REFUTED, "A2 to A5 lie within their errors", ("nmdp/ablations",)),
    Claim("nmdp-13", "A4 is robust with sparse contexts", HOLDS, "jointly", ("nmdp/branches",)),
    Claim("nmdp-14", "A5 converges faster", REFUTED, "no fewer steps to the score that both reach (in one seed of three, on branches "
          "and GP mix alike), and its gradient is no less noisy; a step takes 0.7 of A4's time", ("nmdp/adaptation",)),
    Claim("nmdp-15", "weights know the kernel: NMI 0.42, ARI 0.44, probe 84 % (the paper's)", REFUTED, "at chance with the paper's "
          "experts, one seed", ("nmdp/representation", "nmdp/representation-convcnp")),
    Claim("nmdp-16", "a picture of the weights by UMAP", PARTLY, "PCA, and UMAP where umap-learn is installed; neither separates "
          "the kernels", ("nmdp/representation",)),
    Claim("nmdp-17", "entropy of the Dirichlet as a sign of odd tasks", REFUTED, "it points the other way", ("nmdp/ood",)),
    Claim("nmdp-18", "near-uniform weights where a context is short", REFUTED, "entropy of the mean weights of eight experts: on kernels "
          "from 1.46 nats at 2 points to 1.18 at 10, of 2.08 if uniform; on branches 1.16 to 1.23 throughout", ("nmdp/active-context",)),
    Claim("nmdp-19", "particles, and their collapse in many targets", HOLDS, "the conjugate proposal keeps 14 of 16 effective, the "
          "prior 4", ("nmdp/branches",)),
    Claim("nmdp-20", "overhead of particles", HOLDS, "linear; docs/performance.md"),
    Claim("nmdp-21", "future: stick-breaking", PARTLY, "the guide is tested; results at smoke size", (),
          ("identities/test_nmdp_identities.py",)),
    Claim("nmdp-22", "future: entropy for choosing contexts", MIXED, "LL above random points' by 0.01 to 0.06 on branches, below by 0.14 "
          "to 0.29 on kernels; information about the weights above in 5 of 6", ("nmdp/active-context",)),
    Claim("nmdp-23", "a multimodal predictive", HOLDS, "0.72 nats a point above the CNP jointly", ("nmdp/bimodal",)),
)  # fmt: skip

LRVD = (
    Claim("lrvd-1", "log-uniform prior, rank-tied family", HOLDS, "exact; planted ranks are found", ("lrvd/planted",)),
    Claim("lrvd-2", "uncertainty and rank with O(r) numbers", HOLDS, "planted ranks", ("lrvd/planted",)),
    Claim("lrvd-3", "a stable rank over seeds", MIXED, "4 to 8 %, MRPC 18 %", ("lrvd/minilm-cola", "lrvd/minilm-sst2",
          "lrvd/minilm-mrpc", "lrvd/minilm-docstrings")),
    Claim("lrvd-4", "aligned with singular directions", MIXED, "SST-2, docstrings and planted; not CoLA, MRPC",
          ("lrvd/minilm-cola", "lrvd/minilm-sst2", "lrvd/planted")),
    Claim("lrvd-5", "ahead of sparsification in accuracy", HOLDS, "LoRA truncated to as many ranks: on four sets, within errors on two",
          ("lrvd/minilm-cola", "lrvd/minilm-sst2")),
    Claim("lrvd-6", "far better calibrated", MIXED, "raw NLL on 3 of 4; both with a temperature: ahead on docstrings, level on SST-2 and CoLA",
          ("lrvd/minilm-docstrings", "lrvd/minilm-sst2", "lrvd/minilm-mrpc")),
    Claim("lrvd-7", "negligible overhead", HOLDS, "1.03 on a CPU core (python -m benchmarks.adapter_overhead)"),
    Claim("lrvd-8", "figure 1: DeBERTa-v3-base on GLUE", NOT_RUN, "weights and a GPU are not to be had here; smoke runs on a tiny "
          "random network", tuple(f"lrvd/deberta-{t}" for t in ("cola", "mrpc", "sst2", "rte", "qnli", "qqp", "mnli"))),
    Claim("lrvd-9", "figure 3: sweep of the threshold", HOLDS, "on MiniLM", ("lrvd/minilm-docstrings",)),
    Claim("lrvd-10", "figure 4: energy in the order of log α", MIXED, "by module, see lrvd-4", ("lrvd/minilm-docstrings",)),
    Claim("lrvd-11", "figure 5: stability of ranks on ARC and WinoGrande", NOT_RUN, "by MiniLM's sets instead, see lrvd-3",
          ("lrvd/llama-arc-challenge", "lrvd/llama-winogrande-s")),
    Claim("lrvd-12", "commonsense tables on LLaMA", NOT_RUN, "weights and a GPU are not to be had here",
          tuple(f"lrvd/llama-{t}" for t in ("winogrande-s", "winogrande-m", "arc-challenge", "arc-easy", "obqa", "boolq"))),
    Claim("lrvd-13", "scale invariance", HOLDS, "exact", (), ("pp_models/test_log_uniform.py",)),
    Claim("lrvd-14", "a language model of GPT-2's class", NOT_RUN, "a tiny random network alone", ("lrvd/gpt2",)),
    Claim("lrvd-15", "open: other low-rank structures, quantised bases", NOT_RUN, "refused in one line", (),
          ("guides/adapters/test_lrvd_peft.py",)),
    Claim("lrvd-16", "how heavy a rank's KL should be", MIXED, "κ = 1 for calibration, 3 to 10 for ranks", ("lrvd/kappa",)),
)  # fmt: skip

#: by family, under the words that head its part of the index
CLAIMS: dict[str, tuple[Claim, ...]] = {"nvdp": NVDP, "bnnp": BNNP, "nmdp": NMDP, "lrvd": LRVD}
