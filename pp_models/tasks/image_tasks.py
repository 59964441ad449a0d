"""Images as functions from the square [-1, 1]² to pixel values: completion from a few pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pp_models.arguments import (
    MOST_POINTS,
    POINTS,
    WIDTH,
    checked,
    each,
    either,
    instance,
    integer,
    interval,
    number,
    one_of,
)
from pp_models.data import DataError, Dataset, TaskBatch
from pp_models.tasks.image_data import ImageData
from pp_models.tasks.point_counts import PointCounts, ShareCounts, random_subsets
from pp_models.tasks.task_stream import TaskStream


def pixel_grid(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Coordinates ``[H * W, 2]`` of the pixels in row-major order: row from -1 (top), column from -1 (left).

    They span the same square at any height and width, so a model fitted to small images can be asked for large ones.
    """
    rows = torch.linspace(-1, 1, height, dtype=torch.float64)
    columns = torch.linspace(-1, 1, width, dtype=torch.float64)
    return torch.cartesian_prod(rows, columns).to(dtype)


def place_pixels(data: Dataset, height: int, width: int, *, centred: bool = True) -> Tensor:
    """Puts points back into images: values in [0, 1] (0.5 is added to a centred y), NaN where there is no point.

    Args:
        data: points of an image task, or of a prediction at its inputs: x ``[*B, N, 2]``, y ``[*B, N, C]``.
        height, width: of the images, in pixels.
        centred: whether y is in [-0.5, 0.5] rather than [0, 1].

    Returns:
        ``[*B, H, W, C]``.

    Raises:
        DataError: y is None, or x is not of width 2.
    """
    if data.y is None or data.x.shape[-1] != 2:
        raise DataError(f"data: got x of width {data.x.shape[-1]}; it must be 2, with y present")
    size = torch.tensor([height - 1, width - 1], dtype=data.x.dtype, device=data.x.device)
    row, column = ((data.x + 1) / 2 * size).round().long().clamp_min(0).unbind(-1)
    # points that do not exist go to a spare pixel past the end
    index = torch.where(data.full_mask(), row * width + column, height * width)
    channels = data.y.shape[-1]
    flat = data.y.new_full((*data.batch_shape, height * width + 1, channels), float("nan"))
    flat.scatter_(-2, index.unsqueeze(-1).expand(*index.shape, channels), data.y + (0.5 if centred else 0.0))
    return flat[..., :-1, :].reshape(*data.batch_shape, height, width, channels)


def shrink(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Area means: uint8 images ``[n, H, W, *C]`` at ``size`` (height, width), both of which divide the images' own.

    Raises:
        ValueError: they do not.
    """
    height, width = pixels.shape[1:3]
    if min(size) < 1 or height % size[0] or width % size[1]:
        raise ValueError(f"size: got {size}; it must divide the images' {height} by {width} pixels")
    blocks = pixels.reshape(len(pixels), size[0], height // size[0], size[1], width // size[1], *pixels.shape[3:])
    return blocks.to(torch.float32).mean((2, 4)).round().to(torch.uint8)


#: whose numbers of pixels: NVDP, TNP or SI-NP
PROTOCOLS = ("nvdp", "tnp", "si-np")


def protocol_counts(protocol: str, pixels: int) -> PointCounts:
    """How many pixels of an image are context and target, by the paper whose protocol it is.

    ``"nvdp"``: m ~ U{3..196}, at least one target, at most 200 in all. ``"tnp"``: N_c ~ U{3..196} and
    N_t ~ U{3..199 - N_c} (TNP, code release). ``"si-np"``: N_c ~ U{1..pixels - 1}, all others target (SI-NP, code
    release). The first two are for images of 32 by 32; of smaller ones at most a quarter of the pixels is context.
    """
    most = min(196, pixels // 4)
    if protocol == "nvdp":
        return PointCounts((3, most), (1, None), most + 4)
    if protocol == "tnp":
        return PointCounts((3, most), (3, None), most + 3)
    return PointCounts((1, pixels - 1), (1, None), pixels)


class ImageTasks(TaskStream):
    """Each task is one image: x a pixel's place in [-1, 1]² (row, column), y its value in [-0.5, 0.5].

    A pixel's colours belong to one point at that pixel's true place (NVDP's CelebA code mixes places and channels),
    and y is centred for every reader: the encoder sees ``pixel / 255 - 0.5`` too, where NVDP's code shows it the
    uncentred value and centres only in the likelihood. Images are drawn with replacement, and each task has its own
    random pixels: m as context and others, ``max_points`` in all at most, as target. Batches are ``x [T, N, 2]``,
    ``y [T, N, C]``; ``truth`` holds ``index`` (which image) and, where labels are given, ``label``, long ``[T]``.

    Args:
        images: uint8 ``[n, H, W]`` or ``[n, H, W, C]``, or an ``ImageData``.
        batch_size: tasks a batch, T.
        seed: any non-negative integer.
        labels: class indices ``[n]``, or None.
        num_context: smallest and largest m; None is what the protocol says.
        num_target: see ``PointCounts``.
        max_points: most pixels a task; None is four more than the most context (NVDP's 200), or leaves it to
            ``num_target`` where that has an upper end. With ``context_share`` it is the number of pixels of every
            task, and None is all of them.
        context_share: smallest and largest share of a task's pixels that is context, in place of the counts (see
            ``ShareCounts``); BNNP's completion of MNIST has (0.01, 0.6).
        protocol: ``"nvdp"``, ``"tnp"`` or ``"si-np"``, the counts where ``num_context`` is None (see
            ``protocol_counts``). With ``"si-np"`` all pixels that are no context are target.
        size: side (or height and width) to which images are reduced by area means; None keeps them.
        full_image: the test mode, where all pixels that are no context are target.
        centred: y in [-0.5, 0.5]; False for [0, 1], what a Bernoulli likelihood needs.
        dtype: of x and y.

    Raises:
        DataError: images are not uint8, or of another shape.
        ValueError: the counts are out of range, or the size divides the images' not.
    """

    @checked(
        images=instance(np.ndarray, Tensor, ImageData),
        labels=instance(np.ndarray, Tensor),
        num_context=interval(integer(0, MOST_POINTS), strict=False),
        num_target=interval(POINTS, strict=False, open_end=True),
        max_points=POINTS,
        context_share=interval(number(0, 1, "[)"), strict=False),
        size=either(int, other=each(WIDTH, 2, 2, "be a size, or (height, width)")),
        protocol=one_of(*PROTOCOLS),
    )
    def __init__(
        self,
        images: np.ndarray | Tensor | ImageData,
        batch_size: int = 16,
        seed: int = 0,
        *,
        labels: np.ndarray | Tensor | None = None,
        num_context: tuple[int, int] | None = None,
        num_target: tuple[int, int | None] = (1, None),
        max_points: int | None = None,
        context_share: tuple[float, float] | None = None,
        protocol: str = "nvdp",
        size: int | tuple[int, int] | None = None,
        full_image: bool = False,
        centred: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(batch_size, seed)
        self.source = ""
        if isinstance(images, ImageData):
            self.source = images.source
            labels = images.labels if labels is None else labels
            images = images.images
        if isinstance(images, np.ndarray) and not images.flags.writeable:
            images = images.copy()  # torch warns of read-only arrays
        pixels = torch.as_tensor(images)
        if pixels.dtype != torch.uint8:
            raise DataError(f"images: got dtype {pixels.dtype}; it must be uint8")
        if pixels.dim() not in (3, 4) or 0 in pixels.shape:
            raise DataError(f"images: got shape {list(pixels.shape)}; it must be [n, H, W] or [n, H, W, C], not empty")
        if size is not None:
            pixels = shrink(pixels, (size, size) if isinstance(size, int) else size)
        self.height, self.width = pixels.shape[1:3]
        self.image_size = (self.height, self.width)
        self.channels = 1 if pixels.dim() == 3 else pixels.shape[3]
        self.pixels = pixels.reshape(len(pixels), self.height * self.width, self.channels)
        self.labels = None if labels is None else torch.as_tensor(labels).long()
        if self.labels is not None and self.labels.shape != pixels.shape[:1]:
            raise DataError(f"labels: got shape {list(self.labels.shape)}; it must be [{len(pixels)}]")
        available = self.height * self.width
        self.counts: PointCounts | ShareCounts
        if context_share is not None:
            if num_context is not None:
                raise ValueError(f"context_share: got {context_share} and num_context too; give one of the two")
            most = available if full_image or max_points is None else max_points
            self.counts = ShareCounts((most, most), context_share)
        else:
            if num_context is None:
                named = protocol_counts(protocol, available)
                num_context = named.num_context
                full_image = full_image or protocol == "si-np"
                if num_target == (1, None) and max_points is None:
                    num_target, max_points = named.num_target, named.max_points
            if full_image:
                num_target, max_points = (1, None), available
            elif max_points is None and num_target[1] is None:
                max_points = num_context[1] + max(4, num_target[0])
            self.counts = PointCounts(num_context, num_target, max_points)
            most = self.counts.most_points
        if most > available:
            raise ValueError(f"max_points: got {most}; it must be at most the number of pixels, {available}")
        self.full_image = full_image
        self.offset = 0.5 if centred else 0.0
        self.dtype = dtype

    def sample(self, generator: torch.Generator) -> TaskBatch:
        """Draws one batch: counts, images, then pixels."""
        m, t = self.counts.draw(generator)
        if isinstance(self.counts, ShareCounts):
            t -= m  # it draws the number of all points
        available = self.height * self.width
        if self.full_image:
            t = available - m
        index = torch.randint(len(self.pixels), (self.batch_size,), generator=generator)
        place = torch.cat(random_subsets(self.batch_size, available, (m, t), generator), -1)
        x = pixel_grid(self.height, self.width, self.dtype)[place]
        value = self.pixels[index].gather(1, place.unsqueeze(-1).expand(-1, -1, self.channels))
        y = value.to(self.dtype) / 255 - self.offset
        truth = {"index": index}
        if self.labels is not None:
            truth["label"] = self.labels[index]
        return TaskBatch(Dataset(x[:, :m], y[:, :m]), Dataset(x[:, m:], y[:, m:]), truth)
