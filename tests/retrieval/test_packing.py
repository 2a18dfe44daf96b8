import numpy as np
import pytest

from llamarec_lkg.retrieval.packing import Chunks, places_of


def test_chunks_by_hand():
    # chunks of two: of the first history three, of the third one, of the fourth two
    chunks = Chunks.of([5, 0, 1, 3], 2)
    assert chunks.groups == (3, 2, 1) and chunks.num_chunks == 6
    # first chunks are 0 (first history), 1 (fourth), 2 (third); second ones 3, 4; the third one 5
    assert chunks.slots.tolist() == [0, 6, 3, 9, 5, 2, 1, 7, 4]


@pytest.mark.parametrize("size", [1, 2, 5, 50])
def test_every_place_has_a_slot_of_its_own_and_groups_never_grow(size):
    lengths = np.random.default_rng(0).integers(0, 30, 40)
    chunks = Chunks.of(lengths, size)
    assert len(np.unique(chunks.slots)) == lengths.sum() and chunks.slots.max() < size * chunks.num_chunks
    assert list(chunks.groups) == sorted(chunks.groups, reverse=True)
    assert chunks.num_chunks == -(-lengths // size).sum()


def test_no_history_has_no_chunks():
    for lengths in ([], [0, 0]):
        chunks = Chunks.of(lengths, 3)
        assert chunks.groups == () and chunks.num_chunks == 0 and len(chunks.slots) == 0


def test_places_count_within_each_history():
    assert places_of(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
    assert places_of(np.array([], dtype=int)).tolist() == []
