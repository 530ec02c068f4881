"""Orders are functions of counters."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from crosscode.data.shuffle import permutation, shuffled_in_blocks, unit_order


def test_a_permutation_never_changes_between_versions_of_this_code():
    """A stored order: were it to change, no run could be resumed after an update."""
    assert permutation(8, 0, "block", 0, 0).tolist() == [5, 4, 2, 1, 6, 3, 0, 7]


@given(st.integers(0, 50), st.integers(0, 2**64), st.text(max_size=3))
def test_a_permutation_depends_on_its_counters_only(n, seed, purpose):
    """Equal counters give an equal order, and every index occurs once."""
    torch.rand(1)  # the global generator has no say

    order = permutation(n, seed, purpose)

    assert order.tolist() == permutation(n, seed, purpose).tolist()
    assert sorted(order.tolist()) == list(range(n))


def test_different_counters_give_different_orders():
    """Epochs, blocks, purposes and seeds each have their own order."""
    counters = [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]

    orders = {tuple(permutation(20, *each).tolist()) for each in counters}

    assert len(orders) == 4


@given(st.integers(0, 60), st.integers(1, 15), st.data())
def test_a_block_shuffle_can_be_entered_at_any_block(n, block_size, data):
    """Starting at block b gives what a pass from the start gives from there on."""
    block = data.draw(st.integers(0, n // block_size))
    whole = list(shuffled_in_blocks(range(n), block_size, 7))

    entered = list(shuffled_in_blocks(range(block * block_size, n), block_size, 7, first_block=block))

    assert entered == whole[block * block_size :]
    assert sorted(whole) == list(range(n))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 5))
def test_units_serve_every_token_exactly_once(block_sizes, seed):
    """Second half of the block before, first half of this one, and a last unit for what remains."""
    sizes = [0, *block_sizes, 0]
    served = []
    for unit, (previous, current) in enumerate(itertools.pairwise(sizes)):
        which_N, index_N = unit_order(previous, current, seed, 0, unit)
        served += [(unit - 1 + which, index) for which, index in zip(which_N.tolist(), index_N.tolist())]

    assert sorted(served) == [(block, i) for block, size in enumerate(block_sizes) for i in range(size)]
