import numpy as np
import pytest

from llamarec_lkg.data.hidden_items import hide_items
from llamarec_lkg.data.sequences import TEST, TRAIN, UNUSED
from llamarec_lkg.utils.errors import LKGError


def test_hidden_items_are_trained_on_nowhere_and_stay_as_targets(cycle_dataset):
    hidden_from, hidden = hide_items(cycle_dataset, 0.2, seed=3)
    assert hidden.shape == (31,) and hidden.sum() == 6 and not hidden[0]
    assert not hidden_from.training_counts()[hidden].any()
    assert not any(hidden[sequence].any() for sequence in hidden_from.training_sequences())
    assert not hidden[hidden_from.item_sequence[hidden_from.positions("validation")]].any()
    assert np.array_equal(hidden_from.positions("test"), cycle_dataset.positions("test"))
    assert hidden[hidden_from.item_sequence[hidden_from.positions("test")]].any()
    changed = hidden_from.labels != cycle_dataset.labels
    assert (hidden_from.labels[changed] == UNUSED).all()
    assert np.array_equal(changed, hidden[cycle_dataset.item_sequence] & (cycle_dataset.labels != TEST))
    assert (hidden_from.labels == TRAIN).any()


def test_the_seed_decides_which(cycle_dataset):
    drawn = [hide_items(cycle_dataset, 0.2, seed)[1] for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_something_is_hidden_and_something_is_not(cycle_dataset, share):
    with pytest.raises(LKGError, match="of 30 items are"):
        hide_items(cycle_dataset, share)
