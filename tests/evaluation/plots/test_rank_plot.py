"""The picture of simulated ranks: lines inside the band for uniform ranks, outside for others."""

import torch

from evaluation.plots import rank_ecdf_plot
from evaluation.simulation_calibration import CalibrationRanks, ecdf_envelope


def test_lines_and_band():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.randint(0, 100, (300,), generator=generator)
    ranks = CalibrationRanks({"good": uniform, "low": uniform // 3}, 99)
    axes = rank_ecdf_plot(ranks).axes[0]
    lines = {line.get_label(): torch.as_tensor(line.get_ydata()) for line in axes.lines}
    assert set(lines) == {"good", "low"}
    band = float(ecdf_envelope(300, 99))
    assert lines["good"].abs().max() <= band < lines["low"].abs().max()
    assert ranks.summary()["low"][0] < -0.5 and abs(ranks.summary()["good"][0]) < 0.2
