import numpy as np
import pytest

from llamarec_lkg.retrieval.packing import Chunks, Groups, places_of


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


def test_chunks_are_filled_up_to_a_multiple():
    plain, filled = Chunks.of([5, 0, 1, 3], 2), Chunks.of([5, 0, 1, 3], 2, multiple=4)
    assert filled.groups == plain.groups and filled.num_chunks == 8
    assert filled.slots.tolist() == (plain.slots % 6 + plain.slots // 6 * 8).tolist()


def test_places_count_within_each_history():
    assert places_of(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]
    assert places_of(np.array([], dtype=int)).tolist() == []


def test_groups_by_hand():
    # the longest and the one of four share a group, then the one of two
    groups = Groups.of([2, 5, 0, 4], share=0.8)
    assert groups.shapes == ((2, 5), (1, 2))
    assert groups.sources.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 0, 1]
    assert groups.slots.tolist() == [10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_groups_hold_every_place_once_and_stay_small():
    lengths = np.random.default_rng(0).integers(0, 30, 200)
    groups = Groups.of(lengths, cells=5000)
    assert np.array_equal(groups.sources[groups.slots], np.arange(lengths.sum()))
    assert len(np.unique(groups.slots)) == lengths.sum() and len(groups.sources) < 1.25 * lengths.sum()
    assert all(size * length**2 <= 5000 for size, length in groups.shapes)
    assert sum(size for size, _ in groups.shapes) == (lengths > 0).sum()
    assert Groups.of([7], cells=1).shapes == ((1, 7),), "one history is not parted"
    assert Groups.of([0]).shapes == () and len(Groups.of([]).sources) == 0
