import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_models import DataError, tasks
from pp_models.tasks.image_tasks import ImageTasks, pixel_grid, place_pixels, shrink


def test_digits_shapes_ranges_and_counts():
    stream = tasks.images(batch_size=5, seed=1)
    for batch in (next(stream) for _ in range(30)):
        m = batch.context.num_points
        assert 3 <= m <= 16 and batch.full.num_points <= 20
        assert batch.context.x.shape == (5, m, 2) and batch.context.y.shape == (5, m, 1)
        assert batch.full.y.abs().max() <= 0.5 and batch.full.x.abs().max() <= 1
        assert torch.equal(batch.truth["label"], stream.labels[batch.truth["index"]])


def test_train_and_test_images_are_apart():
    train, test = tasks.images(split="train"), tasks.images(split="test")
    assert (len(train.pixels), len(test.pixels)) == (1500, 297)
    assert (train.height, train.width, train.channels) == (8, 8, 1)


def test_defaults_are_the_papers_on_28_by_28_and_32_by_32():
    for size in (28, 32):
        counts = ImageTasks(np.zeros((1, size, size), np.uint8)).counts
        assert counts.num_context == (3, 196) and counts.num_target == (1, None) and counts.max_points == 200


def test_counts_of_other_papers_by_name():
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    tnp = ImageTasks(picture, 2, protocol="tnp")
    assert (tnp.counts.num_context, tnp.counts.num_target, tnp.counts.max_points) == ((3, 196), (3, None), 199)
    counts = [tnp.counts.draw(torch.Generator().manual_seed(i)) for i in range(300)]
    assert min(t for _, t in counts) >= 3 and max(m + t for m, t in counts) <= 199
    si_np = ImageTasks(picture, 2, protocol="si-np")
    assert si_np.counts.num_context == (1, 1023)
    assert {si_np.batch(i).full.num_points for i in range(5)} == {1024}
    assert ImageTasks(picture, 2, protocol="tnp", num_context=(1, 5)).counts.max_points == 9
    with pytest.raises(ValueError, match="protocol: got 'np'; it must be one of nvdp, tnp, si-np"):
        ImageTasks(picture, protocol="np")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_full_image_is_put_back_exactly(channels):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 5, 7, channels), dtype=np.uint8)
    stream = ImageTasks(pictures, batch_size=6, full_image=True, num_context=(0, 9))
    batch = stream.batch(3)
    assert batch.full.num_points == 35
    back = place_pixels(batch.full, 5, 7)
    expected = torch.as_tensor(pictures)[batch.truth["index"]] / 255
    torch.testing.assert_close(back, expected)
    shown = place_pixels(batch.context, 5, 7)
    assert (~shown.isnan()).all(-1).sum((1, 2)).eq(batch.context.num_points).all()


def test_place_pixels_leaves_padding_out():
    batch = ImageTasks(np.full((1, 4, 4), 255, np.uint8), batch_size=2, num_context=(5, 5), max_points=9).batch(0)
    data = batch.context
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    shown = place_pixels(type(data)(data.x, data.y, mask), 4, 4)
    assert (~shown.isnan()).sum((1, 2, 3)).tolist() == [5, 2]


def test_coordinates_are_the_true_places_of_the_pixels():
    grid = pixel_grid(3, 5)
    assert grid[0].tolist() == [-1, -1] and grid[4].tolist() == [-1, 1] and grid[10].tolist() == [1, -1]
    picture = np.zeros((1, 3, 5, 3), np.uint8)
    picture[0, 2, 1] = (10, 20, 30)  # third row, second column
    full = ImageTasks(picture, batch_size=1, full_image=True, num_context=(1, 2)).batch(0).full
    where = (full.x[0] == torch.tensor([1.0, -0.5])).all(-1)
    torch.testing.assert_close(full.y[0][where], torch.tensor([[10.0, 20.0, 30.0]]) / 255 - 0.5)


def test_the_stream_is_seeded_resumes_and_differs_from_batch_to_batch():
    whole, cut = tasks.images(seed=5), tasks.images(seed=5)
    first = next(whole)
    assert torch.equal(first.full.y, next(cut).full.y)
    resumed = tasks.images()
    resumed.load_state_dict(cut.state_dict())
    second = next(whole)
    assert torch.equal(second.full.x, next(resumed).full.x)
    assert not torch.equal(first.truth["index"], second.truth["index"])


@settings(max_examples=30, deadline=None)
@given(low=st.integers(0, 8), width=st.integers(0, 8), extra=st.integers(1, 9), index=st.integers(0, 1000))
def test_counts_stay_within_bounds_and_pixels_are_distinct(low, width, extra, index):
    most = low + width + extra
    stream = ImageTasks(np.zeros((2, 5, 5), np.uint8), 2, num_context=(low, low + width), max_points=most)
    batch = stream.batch(index)
    assert low <= batch.context.num_points <= low + width
    assert batch.context.num_points < batch.full.num_points <= most
    assert len(batch.full.x[0].unique(dim=0)) == batch.full.num_points


@pytest.mark.parametrize(
    ("pictures", "options", "error", "match"),
    [
        (np.zeros((2, 4, 4)), {}, DataError, "images: got dtype torch.float64; it must be uint8"),
        (np.zeros((4, 4), np.uint8), {}, DataError, r"images: got shape \[4, 4\]"),
        (np.zeros((0, 4, 4), np.uint8), {}, DataError, r"images: got shape \[0, 4, 4\]"),
        (np.zeros((2, 4, 4), np.uint8), {"labels": np.zeros(3)}, DataError, r"labels: got shape \[3\]; .* \[2\]"),
        (np.zeros((2, 4, 4), np.uint8), {"size": 3}, ValueError, r"size: got \(3, 3\); it must divide .* 4 by 4"),
        (
            np.zeros((2, 4, 4), np.uint8),
            {"context_share": (0.1, 0.2), "num_context": (1, 2)},
            ValueError,
            r"context_share: got \(0.1, 0.2\) and num_context too; give one",
        ),
        (
            np.zeros((2, 4, 4), np.uint8),
            {"context_share": (0.1, 0.2), "max_points": 17},
            ValueError,
            "max_points: got 17; .* pixels, 16",
        ),
        (np.zeros((2, 4, 4), np.uint8), {"num_context": (3, 13)}, ValueError, "max_points: got 17; .* pixels, 16"),
        (np.zeros((2, 4, 4), np.uint8), {"num_context": (3, 16), "full_image": True}, ValueError, "max_points: got 16"),
    ],
)
def test_bad_images_and_counts(pictures, options, error, match):
    with pytest.raises(error, match=match):
        ImageTasks(pictures, **options)


def test_a_share_of_the_pixels_is_context():
    stream = ImageTasks(np.zeros((1, 10, 10), np.uint8), 2, context_share=(0.01, 0.6))
    counts = [stream.batch(i).context.num_points for i in range(60)]
    assert 1 <= min(counts) < 8 and 52 < max(counts) <= 60
    assert {stream.batch(i).full.num_points for i in range(5)} == {100}
    assert len(stream.batch(0).full.x[0].unique(dim=0)) == 100
    part = ImageTasks(np.zeros((1, 10, 10), np.uint8), 2, context_share=(0.25, 0.25), max_points=40).batch(0)
    assert (part.context.num_points, part.target.num_points) == (10, 30)


def test_images_are_reduced_by_area_means():
    picture = np.array([[[0, 100, 7, 7], [200, 100, 9, 9], [255] * 4, [255] * 4]], np.uint8)
    assert shrink(torch.as_tensor(picture), (2, 2)).tolist() == [[[100, 8], [255, 255]]]
    stream = ImageTasks(np.stack([picture] * 3, -1), 1, size=2, full_image=True, num_context=(1, 1))
    assert (stream.height, stream.width, stream.channels) == (2, 2, 3)
    seen = place_pixels(stream.batch(0).full, 2, 2)[0, ..., 0]
    torch.testing.assert_close(seen, torch.tensor([[100.0, 8.0], [255.0, 255.0]]) / 255)
    assert ImageTasks(picture, 1, size=(2, 4), num_context=(1, 1)).width == 4


def test_place_pixels_needs_outputs():
    batch = tasks.images().batch(0)
    with pytest.raises(DataError, match="with y present"):
        place_pixels(batch.context.without_y(), 8, 8)


def test_pixels_in_zero_to_one_for_a_bernoulli_likelihood():
    options = {"batch_size": 2, "full_image": True}
    centred, plain = (tasks.images("digits", **options, centred=c).batch(0).full for c in (True, False))
    torch.testing.assert_close(centred.y + 0.5, plain.y)
    assert float(plain.y.min()) >= 0 and float(plain.y.max()) <= 1
    torch.testing.assert_close(place_pixels(centred, 8, 8), place_pixels(plain, 8, 8, centred=False))
