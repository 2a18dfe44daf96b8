import numpy as np
import pytest
from scipy import sparse

from llamarec_lkg.graph.cells import Cells
from llamarec_lkg.graph.ranges import entries_of, joined, order_of, owners, portions, ranges, ranks


NONE = np.zeros(0, dtype=np.int64)


def test_ranges_stand_one_behind_the_other():
    which, places = ranges(np.array([7, 0, 3]), np.array([2, 0, 3]))
    assert which.tolist() == [0, 0, 2, 2, 2] and places.tolist() == [7, 8, 3, 4, 5]
    assert [len(array) for array in ranges(NONE, NONE)] == [0, 0]


def test_places_belong_to_ranges():
    assert owners(np.array([2, 0, 3])).tolist() == [0, 0, 2, 2, 2] and owners(NONE).tolist() == []


def test_ranks_count_within_each_group():
    assert ranks(np.array([0, 0, 2, 5, 5, 5])).tolist() == [0, 1, 0, 0, 1, 2]
    assert ranks(NONE).tolist() == []


def test_entries_of_rows():
    rows = sparse.csr_array(np.array([[0, 1, 2], [0, 0, 0], [3, 0, 0]]))
    lengths, entries = entries_of(rows, np.array([2, 0, 1, 0]))
    assert lengths.tolist() == [1, 2, 0, 2] and rows.data[entries].tolist() == [3, 1, 2, 1, 2]


def test_joined_arrays_have_the_type_where_there_are_none():
    assert joined([], np.int64).dtype == np.int64
    assert joined([[1], NONE, (2, 3)], np.int64).tolist() == [1, 2, 3]


def test_cells_tell_one_list_from_the_next():
    cells = Cells(6)
    first, others = cells.ask(np.array([4, 1, 4]), np.array([2, 4]))
    assert first[0] == first[2] == others[1] and len({*first.tolist(), *others.tolist()}) == 3
    some, numbers = cells.find(np.array([0, 4, 1, 5]))
    assert some.tolist() == [1, 2] and numbers.tolist() == [first[0], first[1]]
    (second,) = cells.ask(np.array([5, 1]))
    assert not {*first.tolist(), *others.tolist()} & set(second.tolist())
    some, _ = cells.find(np.array([4, 1, 5]))
    assert some.tolist() == [1, 2], "4 was asked about before"


@pytest.mark.parametrize("most", [3, 1 << 40, 1 << 62])
def test_numbers_are_put_in_order_and_ties_stay_as_they_were(most):
    keys = np.random.default_rng(0).integers(0, 4, size=50) * (most // 3)
    assert order_of(keys).tolist() == np.argsort(keys, kind="stable").tolist()
    assert order_of(keys[:0]).tolist() == []


def test_portions_come_to_at_most_so_much_but_hold_one_at_least():
    sizes = [2, 3, 9, 1, 4, 5, 0]
    assert [sizes[part] for part in portions(sizes, 5)] == [[2, 3], [9], [1, 4], [5, 0]]
    assert portions([], 5) == [] and portions([0, 0], 0) == [slice(0, 2)]
