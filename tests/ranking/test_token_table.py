import numpy as np
import pytest

from llamarec_lkg.ranking.token_table import TokenTable


def tokenize(texts):
    return [[ord(letter) for letter in text] for text in texts]


def filled(texts):
    table = TokenTable(tokenize)
    return table, table.entries(texts)


def test_a_text_is_tokenized_once_and_known_again():
    asked = []
    table = TokenTable(lambda texts: asked.extend(texts) or tokenize(texts))
    first = table.entries(["a", "b", "a"], {"a": "long", "b": "bc"}.get, longest=3)
    assert first.tolist() == [0, 1, 0] and asked == ["long", "bc"] and len(table) == 2
    assert table.entries(["b"], pytest.fail).tolist() == [1]
    assert table.tokens(first).tolist() == [*map(ord, "lonbclon")] and table.text(0) is None


def test_rows_of_entries_are_padded_to_the_longest():
    table, entries = filled(["ab", "", "c"])
    nothing = np.zeros(0, dtype=np.int64)
    ids, mask = table.padded(np.append(entries, entries[2:]), [3, 0, 1], left=True)
    assert ids.tolist() == [[97, 98, 99], [0, 0, 0], [0, 0, 99]] and mask.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1]]
    ids, mask = table.padded(entries[[2, 0]], [1, 1], left=False)
    assert ids.tolist() == [[99, 0], [97, 98]] and mask.tolist() == [[1, 0], [1, 1]]
    assert table.padded(nothing, [0], left=False)[0].shape == (1, 1)


def test_many_texts_of_any_length_come_back_as_they_were():
    generator = np.random.default_rng(0)
    texts = ["x" * int(length) + str(number) for number, length in enumerate(generator.integers(0, 40, 2_000))]
    table, entries = filled(texts)
    chosen = generator.integers(len(texts), size=500)
    assert table.tokens(entries[chosen]).tolist() == [ord(letter) for place in chosen for letter in texts[place]]
    assert table.lengths(entries).tolist() == [*map(len, texts)]
