"""Bayesian adapters of a Hugging Face model behind one interface, whoever made them: ``gb.adapters``.

``sampling``, ``kl``, ``predict``, ``predict_sequences``, ``calibrate``, ``laplace``, ``blob``, ``rank_summary`` and
``adapter_kinds`` work on LRVD, BLoB, Laplace and MC dropout, and on peft's own PVeRA and MonteCLoRA; ``half_frozen`` on
any adapted model. With it imported, peft's ``PeftModel.from_pretrained`` opens a saved LRVD adapter as one.
"""

from contextlib import suppress

from evaluation.adapters.rank_analysis import rank_summary
from guides.adapters.blob_layers import blob
from inference.adapters.bayesian_adapters import adapter_kinds, calibrate, kl, laplace, predict, sampling
from inference.adapters.sequence_prediction import SequencePrediction, predict_sequences
from pp_models.adapters.half_frozen import half_frozen

with suppress(ImportError):  # peft is an extra
    from guides.adapters import lrvd_peft as _opens_as_lrvd  # noqa: F401

__all__ = [
    "SequencePrediction",
    "adapter_kinds",
    "blob",
    "calibrate",
    "half_frozen",
    "kl",
    "laplace",
    "predict",
    "predict_sequences",
    "rank_summary",
    "sampling",
]
