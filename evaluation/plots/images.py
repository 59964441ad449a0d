"""Images completed from a few pixels: what a model saw, its mean and where it is unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from evaluation.plots.style import SPREAD, WIDTH, look, picture_axes
from inference.predict import predict
from pp_models.data import Dataset
from pp_models.tasks.image_tasks import ImageTasks, pixel_grid, place_pixels

COUNTS = (10, 30, 100)
#: what an unseen pixel looks like; no grey, so that it is not taken for a value
UNSEEN = (0.56, 0.67, 0.80)


def _show(axes: Axes, picture: Tensor) -> None:
    """A picture ``[H, W, C]`` of values in [0, 1], NaN where unseen."""
    colour = picture.expand(*picture.shape[:2], 3).numpy()  # one channel is shown as grey
    shown = np.where(np.isnan(colour), UNSEEN, np.clip(np.nan_to_num(colour), 0, 1))
    axes.imshow(shown, interpolation="nearest")


def image_completions(
    model: Any,
    guide: Any,
    images: ImageTasks,
    counts: Sequence[int] | None = None,
    *,
    num_images: int = 4,
    num_samples: int = 100,
    seed: int = 0,
) -> Figure:
    """One row an image: the truth and, for each number of pixels seen, those pixels, the mean and its uncertainty.

    More pixels include the fewer. Values are on the scale of pixels, 0 to 1; the standard deviation is that of a new
    observation, averaged over colours.

    Args:
        model, guide: trained on such images.
        images: the images to choose from, of one or three channels.
        counts: numbers of pixels seen; None is 10, 30 and 100, those that leave a pixel to predict.
        num_images: rows.
        num_samples: posterior draws.
        seed: of the images, their pixels and the draws.

    Raises:
        ValueError: a count out of range, no image, or images of another number of channels.
    """
    height, width, available = images.height, images.width, images.height * images.width
    if counts is None:
        counts = [count for count in COUNTS if count < available]
    if not counts or not all(0 <= count < available for count in counts):
        raise ValueError(f"counts: got {list(counts)}; each must be from 0 to {available - 1}, below the pixels")
    if not 1 <= num_images <= len(images.pixels):
        raise ValueError(f"num_images: got {num_images}; it must be from 1 to {len(images.pixels)}")
    if images.channels not in (1, 3):
        raise ValueError(f"images: got {images.channels} channels; one or three can be shown")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.pixels), generator=generator)[:num_images]
    x = pixel_grid(height, width, images.dtype).expand(num_images, -1, -1)
    full = Dataset(x, images.pixels[chosen].to(images.dtype) / 255 - images.offset)
    centred = images.offset > 0
    order = torch.randperm(available, generator=generator)
    seen, means, spreads = [], [], []
    device = next(guide.parameters(), torch.empty(0)).device
    for count in counts:
        context = full.points(order[:count])
        found = predict(model, guide, context.to(device), full.x.to(device), num_samples, seed=seed)
        mean = Dataset(full.x, found.mean.cpu().to(images.dtype))
        seen.append(place_pixels(context, height, width, centred=centred))
        means.append(place_pixels(mean, height, width, centred=centred))
        spreads.append(found.std.cpu().mean(-1).unflatten(-1, (height, width)))
    return _draw(place_pixels(full, height, width, centred=centred), seen, means, spreads, counts)


def _draw(
    truth: Tensor, seen: list[Tensor], means: list[Tensor], spreads: list[Tensor], counts: Sequence[int]
) -> Figure:
    """Lays the pictures ``[rows, H, W, C]`` out; seen, means and spreads have one entry a count."""
    norm = Normalize(0, max(float(spread.max()) for spread in spreads))
    rows = len(truth)
    # a narrow empty column before each group
    ratios = [1.0] + [0.25, 1.0, 1.0, 1.0] * len(counts)
    side = 1.02 * WIDTH / sum(ratios) * truth.shape[1] / truth.shape[2]
    with look():
        layout = ConstrainedLayoutEngine(compress=True, w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
        figure = Figure(figsize=(WIDTH, 1.1 + side * rows), layout=layout)
        spec = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
        places = [0] + [1 + 4 * group + i for group in range(len(counts)) for i in (1, 2, 3)]
        grid = np.array([[figure.add_subplot(spec[row, place]) for place in places] for row in range(rows)])
        for axes in grid.flat:
            picture_axes(axes)
        for row in range(rows):
            _show(grid[row, 0], truth[row])
            for group in range(len(counts)):
                axes = grid[row, 1 + 3 * group : 4 + 3 * group]
                _show(axes[0], seen[group][row])
                _show(axes[1], means[group][row])
                axes[2].imshow(spreads[group][row].numpy(), interpolation="nearest", cmap=SPREAD, norm=norm)
        grid[0, 0].set_title("truth", fontsize=9)
        for group, count in enumerate(counts):
            for axes, what in zip(grid[0, 1 + 3 * group : 4 + 3 * group], ("seen", "mean", "sd"), strict=True):
                axes.set_title(f"{count} pixels\n{what}" if what == "mean" else what, fontsize=9)
        bar = figure.colorbar(
            ScalarMappable(norm, SPREAD), ax=list(grid.flat), location="bottom", fraction=0.03, pad=0.02, aspect=40
        )
        bar.set_label("sd: predictive standard deviation (pixels run from 0 to 1)")
        bar.ax.grid(False)
    return figure


def picture_rows(rows: Mapping[str, Tensor]) -> Figure:
    """Rows of single-channel pictures with a title each, such as draws from a prior at two resolutions.

    Args:
        rows: by title, pictures ``[n, H, W]`` of values in [0, 1]; the same n in every row, any H and W.

    Raises:
        ValueError: no rows, or rows of different lengths.
    """
    lengths = {len(pictures) for pictures in rows.values()}
    if len(lengths) != 1:
        raise ValueError(f"rows: got rows of {sorted(lengths)} pictures; there must be rows, all of one length")
    (columns,) = lengths
    with look():
        figure = Figure(figsize=(WIDTH, len(rows) * (0.4 + WIDTH / columns)), layout="constrained")
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (title, pictures) in zip(parts, rows.items(), strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=10)
            for axes, picture in zip(part.subplots(1, columns, squeeze=False)[0], pictures.detach().cpu(), strict=True):
                picture_axes(axes)
                _show(axes, picture.unsqueeze(-1))
    return figure
