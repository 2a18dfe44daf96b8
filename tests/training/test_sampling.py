"""Lists of a user that begin alike, and the order they are trained on."""

from dataclasses import replace
from os.path import commonprefix

import numpy as np
import pytest
from tiny import examples, model, processor

from llamarec_lkg import LlamaRecLKGTrainer, LlamaRecLKGTrainingArguments
from llamarec_lkg.data.schema import RankingExample
from llamarec_lkg.ranking.prompts import NEXT_CUE
from llamarec_lkg.training.lists import sampled
from llamarec_lkg.training.sampling import GroupSampler, share_histories


def one_list(user, history):
    history = np.arange(1, history + 1) if isinstance(history, int) else np.asarray(history)
    return RankingExample(user, history, np.ones(len(history)), np.array([91, 92]), np.zeros(2), label=0)


def test_lists_of_a_user_show_histories_that_begin_at_the_same_item():
    given = [one_list(1, 14), one_list(2, 30), one_list(1, 12), one_list(1, 20), one_list(1, 17), one_list(1, 18)]
    lists, groups = share_histories(given, 4, history_length=10)
    assert [rows.tolist() for rows in groups] == [[2, 0, 4], [5, 3], [1]], "20 is too far from 12 for half of 10"
    assert [one.shown for one in lists] == [7, None, 5, None, None, 8]
    for rows in groups:
        shown = [lists[row].history[len(lists[row].history) - (lists[row].shown or 10) :] for row in rows]
        assert len(shown[-1]) == 10 and all(len(items) >= 5 for items in shown)
        assert all(np.array_equal(items, shown[-1][: len(items)]) for items in shown)
    for before, after in zip(given, lists, strict=True):
        assert replace(after, shown=None).history is before.history, "all else is as it was"


def test_histories_that_do_not_go_on_from_each_other_are_not_shared():
    given = [one_list(0, [1, 2, 3]), one_list(0, [1, 2, 4, 5]), one_list(0, [1, 2, 3, 7]), one_list(0, [1, 2, 3])]
    lists, groups = share_histories(given, 4, history_length=10)
    assert sorted(len(rows) for rows in groups) == [1, 3]
    assert [one.shown for one in lists] == [3, None, None, 3]
    of_two = [one_list(0, [who] * count) for count in range(5, 9) for who in (1, 2)]
    _, groups = share_histories(of_two, 4, history_length=10)
    assert [len(rows) for rows in groups] == [4, 4], "nor those of unknown users, though theirs take turns"
    _, groups = share_histories([one_list(1, 3)] * 5, 2, history_length=10)
    assert [len(rows) for rows in groups] == [2, 2, 1]


def test_a_sample_is_of_whole_groups_but_for_the_last():
    given = [replace(one_list(1 + row // 4, 10 + row % 4), label=-(row % 4 == 3)) for row in range(16)]
    _, groups = share_histories(given, 4, history_length=10)
    found = sampled(given, 5, 0, groups)
    users = [one.user for one in found]
    assert len(found) == 5 and sorted(map(users.count, set(users))) == [2, 3] and all(one.label == 0 for one in found)
    assert sampled([], 5, 0, []) == []


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_batches_hold_whole_groups_in_another_order_each_epoch(size):
    generator, groups, row = np.random.default_rng(0), [], 0
    for count in generator.integers(1, 5, 40):
        groups.append(np.arange(row, row + count))
        row += count
    sampler = GroupSampler(groups, size, seed=3)
    first = list(sampler)
    assert len(sampler) == row and sorted(first) == list(range(row)) and first == list(sampler)
    batch_of = {row: place // size for place, row in enumerate(first)}
    split = [rows for rows in groups if len({batch_of[row] for row in rows}) > 1]
    by_chance = [rows for rows in groups if len({row // size for row in rows}) > 1]
    assert all(len(rows) > size for rows in split) or len(split) < len(by_chance) / 2
    sampler.set_epoch(1)
    assert list(sampler) != first and sorted(sampler) == sorted(first)


def test_a_trainer_puts_lists_that_begin_alike_into_one_batch(film_dataset, tmp_path):
    proc = processor(film_dataset).fit(examples(film_dataset))
    lists = [
        replace(one, history=one.history[:count], ratings=one.ratings[:count])
        for count in (4, 3)
        for one in examples(film_dataset, count=4)
    ]
    args = LlamaRecLKGTrainingArguments(
        tmp_path, share_histories=4, per_device_train_batch_size=2, use_cpu=True, report_to=[]
    )
    trainer = LlamaRecLKGTrainer(model(proc), args, lists, None, proc)
    cue = len(proc._ids(NEXT_CUE))
    for batch in trainer.get_train_dataloader():
        masks = batch["prefix_attention_mask"].bool()
        texts = [ids[mask].tolist() for ids, mask in zip(batch["prefix_input_ids"], masks, strict=True)]
        common = len(commonprefix(texts))
        assert common == min(map(len, texts)) - cue < max(map(len, texts)) - cue
    trainer._train_batch_size = 1  # as auto_find_batch_size leaves it where memory ran out
    trainer.get_train_dataloader()
    assert trainer._get_train_sampler().size == 1 and all(len(rows) == 1 for rows in trainer._groups)
