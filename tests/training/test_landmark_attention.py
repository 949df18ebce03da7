"""The attention that training differentiates: its gradients, and the crowd of other rows' blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from training.attention import LandmarkSettings, crowd_attention, grouped_softmax, landmark_attention

SETTINGS = LandmarkSettings(block_size=4, recent_blocks=1, sink_blocks=1, blocks_per_head=2)
INV_FREQ = torch.tensor([1.0, 0.1, 0.01])
SCALING = 6**-0.5


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Layer(torch.nn.Module):
    """What transformers passes as the module; layer 0 is special."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index


def attend(query: Tensor, key: Tensor, value: Tensor, settings: LandmarkSettings = SETTINGS, **options: Any) -> Tensor:
    """Output (batch, heads, slots, dim) of a layer that is not the first, unless `index` says so."""
    module = Layer(options.pop("index", 1))
    output, _ = landmark_attention(
        module, query, key, value, None, SCALING, inv_freq=INV_FREQ, landmarks=settings, **options
    )
    return output.transpose(1, 2)


# -- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_the_grouped_softmax(tied: bool) -> None:
    scores = random(1, 2, 20, 20, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: grouped_softmax(s, SETTINGS, tied=tied), scores)


@pytest.mark.parametrize("options", [{}, {"index": 0}, {"crowd_queries": 6}])
def test_gradients_of_the_whole_attention(options: dict[str, Any]) -> None:
    heads = {"query": 2, "key": 1, "value": 1}  # two query heads share keys and values
    inputs = [random(2, h, 16, 6, seed=seed).requires_grad_() for seed, h in enumerate(heads.values())]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, **options), inputs, fast_mode=True)


def test_gradients_reach_a_block_through_its_landmark() -> None:
    """The landmark's key learns from what its block's tokens are worth; blocks that are not read learn nothing."""
    query, key, value = (random(1, 1, 32, 6, seed=seed).requires_grad_() for seed in range(3))
    attend(query, key, value)[0, 0, 30].sum().backward()
    assert key.grad is not None
    learned = key.grad[0, 0].abs().sum(-1).unflatten(0, (8, 4)) > 0
    read = learned.any(-1)
    assert read[[0, 6, 7]].all()  # sink, recent and own block
    assert int(read[1:6].sum()) == SETTINGS.blocks_per_head
    assert learned[:7][read[:7]].all(), "each token of a block that is read, and its landmark"
    assert learned[7].tolist() == [True, True, True, False]  # the own landmark is not looked at


# -- meaning -------------------------------------------------------------------------------------------------


def test_nothing_looks_ahead() -> None:
    query, key, value = (random(1, 2, 32, 6, seed=seed) for seed in range(3))
    before = attend(query, key, value)
    for x in (key, value):
        x[:, :, 21:] = 9.0
    assert torch.equal(attend(query, key, value)[:, :, :21], before[:, :, :21])


def test_layer_0_reads_the_latest_blocks() -> None:
    """Its landmarks all score the same."""
    query, key, value = (random(1, 1, 48, 6, seed=seed) for seed in range(3))
    before = attend(query, key, value, index=0)[0, 0, 46]
    for block in range(12):  # sink 0, latest two far ones 8 and 9, recent 10, own 11
        changed = value.clone()
        changed[:, :, 4 * block : 4 * block + 4] += 1.0
        differs = not torch.allclose(attend(query, key, changed, index=0)[0, 0, 46], before)
        assert differs == (block in (0, 8, 9, 10, 11))


# -- crowds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 5, 16, 32])
def test_a_crowd_of_one_row_is_the_plain_attention(queries: int) -> None:
    query, key, value = (random(1, 2, 32, 6, seed=seed) for seed in range(3))
    torch.testing.assert_close(attend(query, key, value, crowd_queries=queries), attend(query, key, value))


@pytest.mark.parametrize("fetch", [1, 3, 100])
def test_other_rows_are_as_a_longer_past(fetch: int) -> None:
    """Far blocks carry no distance, so each row may as well stand behind the others in one long row."""
    settings = LandmarkSettings(block_size=4, recent_blocks=1, sink_blocks=0, blocks_per_head=fetch)
    rows, slots, queries = 3, 16, 7
    query, key, value = (random(rows, 2, slots, 6, seed=seed) for seed in range(3))
    crowded = attend(query, key, value, settings, crowd_queries=queries)[:, :, -queries:]
    for row in range(rows):
        order = [other for other in range(rows) if other != row] + [row]
        q, k, v = (torch.cat([x[i] for i in order], dim=1)[None] for x in (query, key, value))
        expected = attend(q, k, v, settings)[0, :, -queries:]
        torch.testing.assert_close(crowded[row], expected, atol=1e-5, rtol=1e-5)


def test_a_crowd_changes_only_its_queries() -> None:
    query, key, value = (random(3, 2, 32, 6, seed=seed) for seed in range(3))
    crowded, plain = attend(query, key, value, crowd_queries=4), attend(query, key, value)
    assert torch.equal(crowded[:, :, :28], plain[:, :, :28])
    assert not torch.allclose(crowded[:, :, 28:], plain[:, :, 28:])


def test_layer_0_meets_no_crowd() -> None:
    query, key, value = (random(3, 2, 32, 6, seed=seed) for seed in range(3))
    crowded = attend(query, key, value, index=0, crowd_queries=4)
    assert torch.equal(crowded, attend(query, key, value, index=0))


def test_crowd_weights_sum_to_one() -> None:
    query, key = (random(3, 2, 16, 6, seed=seed) for seed in range(2))
    output = crowd_attention(query[:, :, -4:], key, torch.ones_like(key), torch.arange(12, 16), INV_FREQ, SETTINGS)
    torch.testing.assert_close(output, torch.ones_like(output))
