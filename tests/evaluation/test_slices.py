"""What kind of targets there are: facts for the protocol, labels for slices."""

import json

import numpy as np
import pytest

from llamarec_lkg.evaluation.slices import describe_targets, target_slices


def test_the_protocol_says_how_ties_went_and_what_cannot_be_ranked(make_dataset):
    rows = [
        (1, 1, 1),
        (1, 2, 2),
        (1, 3, 3),
        (1, 3, 3),
        (2, 1, 1),
        (2, 2, 5),
        (2, 3, 5),
        (3, 2, 1),
        (3, 1, 2),
        (3, 2, 3),
    ]
    facts = describe_targets(make_dataset(rows))
    assert facts == {
        "ties": "shuffled, seed 42",
        "tied_targets": 1,
        "repeats": "excluded: what is in a history is not ranked",
        "repeated_targets": 1,
        "interactions": "of 10 interactions 9 are kept. Left out: 1 that repeat user, item and time of another.",
    }
    json.dumps(facts)
    words = {ties: describe_targets(make_dataset(rows, ties=ties))["ties"] for ties in ("file", "item_id")}
    assert words == {"file": "in file order", "item_id": "by item id, as published"}
    assert describe_targets(make_dataset(rows), "validation")["tied_targets"] == 1


def test_targets_are_parted_by_how_often_their_item_was_trained_on(make_dataset):
    rows = [(user, item, item) for user in range(40) for item in (1, 2, 3)]  # trained on 1, tested on 3
    rows += [(100 + user, 3, 1) for user in range(5)]
    rows += [(200, 2, 1), (200, 4, 2), (200, 5, 3), (300, 5, 1), (300, 4, 2), (300, 1, 3), (400, 1, 1), (400, 2, 2)]
    rows += [(400, 4, 3)]
    data = make_dataset(rows)
    assert data.training_counts().tolist() == [0, 41, 1, 5, 0, 1]
    assert target_slices(data)["item popularity"].tolist() == ["1 to 9"] * 41 + ["30 and more", "0 (new)"]


@pytest.mark.parametrize(
    ("lengths", "labels"),
    [
        ([4] * 50 + [7] * 30 + [30] * 20, ["0 to 4", "5 to 9", "10 and more"]),
        ([15] * 30 + [60] * 50 + [300] * 20, ["0 to 19", "20 to 99", "100 and more"]),
        ([15] * 99 + [60], None),
    ],
)
def test_histories_are_parted_where_each_part_has_people(make_dataset, lengths, labels):
    rows = [(user, item, item) for user, length in enumerate(lengths) for item in range(length + 1)]
    found = target_slices(make_dataset(rows)).get("history length")
    if labels is None:
        assert found is None
    else:
        names, counts = np.unique(found, return_counts=True)
        assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == dict(
            zip(labels, np.unique(lengths, return_counts=True)[1].tolist(), strict=True)
        )


def test_the_history_of_each_of_a_users_targets_is_its_own(make_dataset):
    data = make_dataset([(user, item, item) for user in range(3) for item in range(14)], last=8)
    assert target_slices(data)["history length"].tolist() == (["0 to 9"] * 2 + ["10 and more"] * 4) * 3


def test_users_without_a_training_interaction_are_new(make_dataset):
    rows = [(1, item, item) for item in range(1, 11)] + [(2, 3, 85), (2, 4, 96), (2, 5, 97)]
    data = make_dataset(rows, split="time", validation_fraction=0.3, test_fraction=0.3, targets="all")
    new = data.user_of(data.positions("test")) == 2
    assert new.any() and not new.all()
    assert target_slices(data)["user"].tolist() == np.where(new, "new", "known").tolist()


def test_tied_targets_stand_apart(make_dataset):
    rows = [(user, item, min(item, 4 + user % 2)) for user in range(10) for item in range(1, 6)]
    labels = target_slices(make_dataset(rows))["time"]
    assert labels.tolist() == ["tied", "alone"] * 5


def test_what_parts_nothing_is_left_out(film_dataset, cycle_dataset):
    assert not {"user", "time"} & set(target_slices(film_dataset))
    for split in ("validation", "test"):
        for labels in target_slices(cycle_dataset, split).values():
            assert len(labels) == len(cycle_dataset.positions(split)) and labels.dtype.kind == "U"
