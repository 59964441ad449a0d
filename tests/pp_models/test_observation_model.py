"""A decoder that takes its vectors once a task is the one that takes them at every point."""

import pytest
import torch

from pp_models.observation_model import decode_jointly, join
from pp_models.parameter_module import mlp


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3,), ()), ((5, 3), (3,)), ((5, 3), (5, 1)), ((2, 3), (2, 3))])
def test_vectors_by_task_and_at_every_point_decode_alike(shapes):
    batch = (2, 3) if shapes[0] == (2, 3) else (3,)
    decoder = mlp([2 + 4 + 3, 8, 8, 2]).double()
    x = torch.randn(*batch, 7, 2, dtype=torch.float64)
    vectors = [torch.randn(*shape, width, dtype=torch.float64) for shape, width in zip(shapes, (4, 3), strict=True)]
    expected = decoder(join(join(x, vectors[0]), vectors[1]))
    found = decode_jointly(decoder, x, vectors)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), list(decoder.parameters())) for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
