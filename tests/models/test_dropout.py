"""The quick dropout is dropout: its share, its scale, its gradient, its seed."""

import pytest
import torch

from tlray.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_is_dropped_and_the_rest_divided_by_what_is_left(p, dtype):
    torch.manual_seed(0)
    ones = torch.ones(333, 3001, dtype=dtype)
    dropped = Dropout(p)(ones)
    assert dropped.dtype == dtype
    kept = dropped != 0
    assert float((~kept).double().mean()) == pytest.approx(p, abs=0.002)  # four standard errors of a million
    assert torch.equal(dropped[kept], torch.full_like(dropped[kept], 1 / (1 - p)))
    for axis in (0, 1):  # no row and no column is special
        assert (~kept).double().mean(axis).std() < 0.05


def test_neighbours_are_dropped_independently():
    """The four numbers of a word as well: every pattern of four comes as often as it should."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(250_000, 4)) != 0).long()
    counts = torch.bincount((kept * torch.tensor([1, 2, 4, 8])).sum(dim=1), minlength=16).double()
    assert ((counts - 15625).abs() < 4.5 * 15625**0.5).all()


def test_the_gradient_flows_through_what_is_kept():
    torch.manual_seed(0)
    values = torch.randn(7, 5, requires_grad=True)
    out = Dropout(0.4)(values)
    out.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values, out)


@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (1, 1), (2, 3, 4, 5)])
def test_any_shape_and_the_seed_decides(shape):
    values, drawn = torch.ones(shape), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(Dropout(0.5)(values))
    assert drawn[0].shape == shape
    assert torch.equal(drawn[0], drawn[1])
    assert values.numel() < 10 or not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_it_does_nothing_in_eval_mode_or_at_probability_zero(p, training):
    values = torch.randn(3, 4)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(p).train(training)(values), values)
    assert torch.equal(torch.get_rng_state(), before)
