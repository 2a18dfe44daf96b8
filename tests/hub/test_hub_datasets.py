"""Data sets pushed and loaded by the real client over HTTP, and what is left when that fails."""

from dataclasses import replace

import pandas as pd
import pytest
from hub_stand_in.client import use_hub
from huggingface_hub import HfApi

from llamarec_lkg import (
    PreprocessingSettings,
    load_dataset_bundle,
    prepare_dataset,
    push_dataset,
    stream_interactions,
    write_dataset,
)
from llamarec_lkg.data.interactions import Interactions
from llamarec_lkg.data.schema import DatasetBundle, ItemTable, Triples
from llamarec_lkg.hub.model_card import ModelCard
from llamarec_lkg.utils.errors import LKGError
from llamarec_lkg.utils.files import cache_dir


pytestmark = pytest.mark.hub
NAME = "tester/films"
TABLES = {f"{name}.parquet" for name in ("interactions", "items", "triples", "links")}


@pytest.fixture
def bundle():
    rows = [("ann", "b"), ("ann", "c"), ("bob", "c"), ("cyd", "b"), ("cyd", "a")]
    rows = [(user, item, 3.5, 2**40 + step) for step, (user, item) in enumerate(rows)]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "GENRE": [["x", "y"], [], ["y"]]})
    facts = pd.DataFrame({"head": ["m.1"], "relation": ["SEQUEL"], "tail": ["m.2"]})
    triples = Triples.from_frame(facts, {"m.1": "a", "m.2": "b"})
    return DatasetBundle("films", Interactions.from_frame(interactions), ItemTable.from_frame(items), triples, "Me")


def plain(bundle):
    tables = (bundle.interactions.__dict__, bundle.items.__dict__, bundle.triples.__dict__)
    return [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in table.items()} for table in tables]


def test_a_private_data_set_is_read_with_a_token_and_without_a_login(hub, bundle, tmp_path):
    push_dataset(bundle, NAME, anonymize=False, private=True)
    with use_hub(hub, tmp_path / "nobody", token=None):
        for read in (load_dataset_bundle, lambda name: next(stream_interactions(name))):
            with pytest.raises(LKGError, match=f"'{NAME}' could not be read"):
                read(NAME)
        assert plain(load_dataset_bundle(NAME, token=hub.token)) == plain(bundle)
    with use_hub(hub, tmp_path / "nobody else", token=None):
        (batch,) = stream_interactions(NAME, token=hub.token)
        assert batch.to_pandas().equals(bundle.interactions.to_frame())
        push_dataset(NAME, "tester/again", anonymize=False, token=hub.token)
    assert plain(load_dataset_bundle("tester/again")) == plain(bundle)


def test_a_data_set_has_the_name_it_is_loaded_by_and_files_another(hub, bundle, tmp_path):
    push_dataset(bundle, NAME, anonymize=False)
    again = load_dataset_bundle(NAME)
    assert again.name == NAME
    settings = PreprocessingSettings(min_user_interactions=1, min_item_interactions=1)
    rows = pd.DataFrame({"user_id": ["a"] * 3, "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})
    dataset = prepare_dataset(replace(again, interactions=Interactions.from_frame(rows)), settings)
    assert dataset.name == NAME
    (folder,) = (cache_dir() / "prepared").iterdir()
    assert folder.name.startswith("tester--films-") and (folder / "dataset.json").exists()
    write_dataset(again, tmp_path / "copy")
    assert "pretty_name: tester/films" in (tmp_path / "copy" / "README.md").read_text()
    assert ModelCard("tester/ranker", dataset_name=again.name).to_hub_card().data.datasets == [NAME]


def test_a_card_that_cannot_be_read_is_told_and_the_tables_are_loaded(hub, bundle, monkeypatch):
    push_dataset(bundle, NAME, anonymize=False)
    said = []

    class Offline(HfApi):
        def hf_hub_download(self, *args, **options):
            raise OSError("no network, and the card is in no cache")

    monkeypatch.setattr("llamarec_lkg.data.sources.HfApi", Offline)
    monkeypatch.setattr("llamarec_lkg.data.sources.logger.warning", said.append)
    assert plain(load_dataset_bundle(NAME)) == plain(bundle)
    assert len(said) == 1 and "card of tester/films could not be read" in said[0]


@pytest.mark.parametrize("how", ["401", "429", "cut"])
def test_a_download_that_fails_is_told_and_works_again(hub, bundle, tmp_path, how):
    push_dataset(bundle, NAME, anonymize=False)
    with use_hub(hub, tmp_path / "other"):
        failure = hub.fail("* *interactions.parquet*", how, times=None)
        with pytest.raises(LKGError, match=NAME):
            load_dataset_bundle(NAME)
        assert failure.happened
        hub.heal()
        assert plain(load_dataset_bundle(NAME)) == plain(bundle)
