"""`pipeline("recommendation")`: what the Recommender says, in batches, from one line; and clear refusals."""

import json
import logging
import shutil
from dataclasses import asdict

import pytest
import torch
from datasets import Dataset as HubDataset
from tiny import backbone, examples, processor
from torch.utils.data import Dataset
from transformers import pipeline

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, RecommendationPipeline, Recommender
from llamarec_lkg.retrieval.base import PopularityRetriever
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval


pytestmark = pytest.mark.hub
REQUESTS = [
    {"history": ["1"], "user": "2"},
    {"history": ["3", "1", "2", "5"], "user": "nobody"},
    {"history": []},
    {"history": ["4", "6"], "candidates": ["2"]},
    {"history": ["2", "3"], "candidates": ["6", "1", "4"], "user": None},
    {"history": ["6"], "candidates": ["1", "2", "3", "4", "5", "6"], "user": 1},
]


@pytest.fixture(scope="module")
def saved(film_dataset, tmp_path_factory):
    """A small form with a trained-looking backbone beside it, processor and retriever: what the quickstart leaves."""
    return saved_run(film_dataset, tmp_path_factory.mktemp("run"))


def saved_run(dataset, root, **settings):
    backbone().save_pretrained(root / "backbone")
    proc = processor(dataset, **settings).fit(examples(dataset))
    config = proc.model_config(use_user_embedding=True, evidence_weight=2.0, lm_scale=1.0)
    ranker = LlamaRecLKGForRanking.from_backbone(str(root / "backbone"), config)
    torch.manual_seed(1)
    torch.nn.init.normal_(ranker.preference.user_embedding.weight)
    if ranker.readout is not None:
        torch.nn.init.normal_(ranker.readout.key.weight)
    ranker.save_pretrained(root / "run", include_backbone=False)
    proc.save_pretrained(root / "run")
    torch.manual_seed(0)
    LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=8)).save_pretrained(root / "run" / "retriever")
    return root / "run"


@pytest.fixture(scope="module")
def recommend(saved):
    return pipeline("recommendation", model=str(saved), device="cpu")


@pytest.fixture
def passes(recommend, monkeypatch):
    """How many lists went through the ranker in each forward pass."""
    return counted(recommend.model, monkeypatch)


def counted(model, monkeypatch):
    sizes, score = [], model.score_parts
    monkeypatch.setattr(model, "score_parts", lambda batch: sizes.append(len(batch["user_ids"])) or score(batch))
    return sizes


def assert_same(found, wanted):
    """Equal records, numbers up to what another padding rounds."""
    for one, other in zip(found, wanted, strict=True):
        assert all(one[name] == other[name] for name in ("rank", "item_id", "title", "paths"))
        for name in ("score", "retrieval_score", "relations"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5)
        for reason, same in zip(one["reasons"], other["reasons"], strict=True):
            assert reason["share"] == pytest.approx(same["share"], rel=1e-4, abs=1e-5)
            assert all(reason[name] == same[name] for name in ("kind", "relation", "nodes"))


def test_one_line_from_a_saved_folder_says_what_the_recommender_says(saved, recommend):
    recommender = Recommender.from_pretrained(saved)
    for request in REQUESTS:
        wanted = recommender.recommend(**request, k=5, num_reasons=2)
        found = recommend(request, top_k=5, num_reasons=2)
        assert_same(found, [asdict(item) for item in wanted])
        assert json.loads(json.dumps(found)) == found


def test_batches_are_one_pass_each_and_change_nothing(recommend, passes):
    single = [recommend(request, top_k=5) for request in REQUESTS]
    assert passes == [1] * 5, "a list of one is not scored; one of six is ranked at once, though five are retrieved"
    passes.clear()
    assert [len(items) for items in single] == [5, 2, 5, 1, 3, 5]
    for batch_size, sizes in ((1, [1] * 5), (4, [3, 2]), (64, [5])):
        found = recommend(REQUESTS, batch_size=batch_size, top_k=5)
        for one, other in zip(found, single, strict=True):
            assert_same(one, other)
        assert passes == sizes
        passes.clear()


@pytest.mark.parametrize(("readout", "sizes"), [("letters", [4, 3]), ("candidates", [4])])
def test_long_lists_slide_their_windows_in_the_same_passes(film_dataset, tmp_path, monkeypatch, readout, sizes):
    """Six candidates, five letters: two windows a list. Three of them in one batch are two passes, not six. Where
    candidates are read by themselves, a list of any length is ranked at once."""
    saved = saved_run(film_dataset, tmp_path, readout=readout)
    recommend = pipeline("recommendation", model=str(saved), device="cpu")
    passes = counted(recommend.model, monkeypatch)
    long = [{"history": [str(item)], "candidates": list("123456")} for item in (1, 2, 3)]
    found = recommend([*long, {"history": ["4"]}], batch_size=4, top_k=6)
    assert passes == sizes
    recommender = Recommender.from_pretrained(saved)
    for request, items in zip(long, found, strict=False):
        assert_same(items, [asdict(item) for item in recommender.recommend(**request, k=6)])


def test_batch_size_top_k_and_num_reasons_may_be_set_once(saved, passes, recommend):
    fixed = pipeline(
        "recommendation", model=recommend.model, processor=recommend.processor, top_k=2, num_reasons=0, batch_size=3
    )
    found = fixed([{"history": ["1"]}] * 4)
    assert passes == [3, 1]
    assert [len(items) for items in found] == [2, 2, 2, 2]
    assert all(item["paths"] == [] for items in found for item in items)
    assert len(fixed({"history": ["1"]}, top_k=4, num_reasons=1)) == 4
    assert isinstance(fixed.recommender.retriever.model, LRURecForRetrieval), "found beside the processor"


class Rows(Dataset):
    def __len__(self):
        return len(REQUESTS)

    def __getitem__(self, index):
        return REQUESTS[index % len(REQUESTS)]  # never an IndexError: its length must be asked


def test_generators_and_data_sets_are_streamed(recommend):
    wanted = recommend(REQUESTS, top_k=3, batch_size=4)
    rows = [{"user": None, "candidates": None, **request} for request in REQUESTS]
    rows = [{**row, "user": None if row["user"] is None else str(row["user"])} for row in rows]
    for inputs in (Rows(), (request for request in REQUESTS), HubDataset.from_list(rows)):
        found = recommend(inputs, top_k=3, batch_size=4)
        assert iter(found) is found
        assert list(found) == wanted
    assert recommend(tuple(REQUESTS), top_k=3, batch_size=4) == wanted
    assert recommend([]) == []

    def broken():
        yield REQUESTS[0]
        raise AssertionError("the second request was read before the first was answered")

    assert len(next(iter(recommend(broken(), top_k=2)))) == 2


def test_bad_requests_are_named(recommend):
    with pytest.raises(LKGError, match="not in the catalogue of 6, the first is '999'"):
        recommend({"history": ["1", "999"]})
    with pytest.raises(LKGError, match="Request 2: .*'999'"):
        recommend([REQUESTS[0], REQUESTS[1], {"history": ["999"]}], batch_size=2)
    with pytest.raises(LKGError, match="'2' appears 2 times"):
        recommend({"history": ["1"], "candidates": ["2", "3", "2"]})
    with pytest.raises(LKGError, match="Request 0: A request is a dictionary .* not str"):
        recommend(["50", "181"])
    with pytest.raises(LKGError, match="A request is a dictionary .* not str"):
        recommend("50")
    with pytest.raises(LKGError, match=r"found \['history', 'users'\]"):
        recommend({"history": ["1"], "users": "2"})
    with pytest.raises(LKGError, match=r"found \['user'\]"):
        recommend({"user": "2"})
    with pytest.raises(LKGError, match="top_k is 0; it is a whole number, 1 or more"):
        recommend({"history": ["1"]}, top_k=0)
    with pytest.raises(LKGError, match="batch_size is 0"):
        recommend(REQUESTS, batch_size=0)


def test_a_hub_id_brings_its_retriever_from_the_same_place(saved, tmp_path, recommend, monkeypatch):
    """From a cache as the Hub's client leaves it, at a revision, without the network."""
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--you--films", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    place = {"revision": "v1", "local_files_only": True}
    found = pipeline("recommendation", model="you/films", device="cpu", **place)
    assert isinstance(found.recommender.retriever.model, LRURecForRetrieval)
    assert_same(found(REQUESTS[0]), recommend(REQUESTS[0]))


def test_without_a_retriever_it_ranks_what_it_is_given_and_says_so(saved, tmp_path, caplog, recommend, film_dataset):
    bare = tmp_path / "bare"
    shutil.copytree(saved, bare, ignore=shutil.ignore_patterns("retriever"))
    logging.getLogger("llamarec_lkg").propagate = True
    with caplog.at_level("WARNING"):
        alone = pipeline("recommendation", model=str(bare), device="cpu")
    assert "no folder 'retriever' beside the model" in caplog.text
    with pytest.raises(LKGError, match="give `candidates`"):
        alone({"history": ["1"]})
    wanted = Recommender(recommend.model, recommend.processor).recommend(["1"], candidates=["2", "3"])
    assert_same(alone({"history": ["1"], "candidates": ["2", "3"]}), [asdict(item) for item in wanted])

    caplog.clear()
    pipeline("recommendation", model=str(bare), retriever=False, device="cpu")
    assert "retriever" not in caplog.text
    for given in (saved / "retriever", LRURecForRetrieval.from_pretrained(saved / "retriever")):
        whole = pipeline("recommendation", model=str(bare), retriever=given, device="cpu")
        assert_same(whole({"history": ["1"]}), recommend({"history": ["1"]}))
    popular = pipeline(
        "recommendation", model=str(bare), retriever=PopularityRetriever.from_dataset(film_dataset), device="cpu"
    )
    assert len(popular({"history": ["1"]}, top_k=3)) == 3
    with pytest.raises(LKGError, match="PopularityRetriever cannot be saved"):
        popular.save_pretrained(tmp_path / "popular")


def test_parts_that_do_not_belong_together_are_refused(saved, recommend):
    with pytest.raises(LKGError, match="The retriever knows 9 items, the processor 6"):
        pipeline("recommendation", model=str(saved), retriever=LRURecForRetrieval(LRURecConfig(num_items=9)))
    with pytest.raises(LKGError, match="needs a LlamaRecLKGForRanking, not LlamaForCausalLM"):
        RecommendationPipeline(model=backbone(), processor=recommend.processor)
    with pytest.raises(LKGError, match="needs a LlamaRecLKGProcessor, not NoneType"):
        RecommendationPipeline(model=recommend.model)


def test_a_saved_pipeline_loads_in_one_line_and_pushes_no_folder_of_this_machine(recommend, tmp_path):
    recommend.save_pretrained(tmp_path / "again")
    again = pipeline("recommendation", model=tmp_path / "again", device="cpu")
    assert not (tmp_path / "again" / "model.safetensors").stat().st_size > 100_000, "the backbone is named, not copied"
    for one, other in zip(again(REQUESTS, batch_size=4), recommend(REQUESTS, batch_size=4), strict=True):
        assert_same(one, other)
    for push in (
        lambda: recommend.push_to_hub("you/name"),
        lambda: recommend.save_pretrained(tmp_path / "no", push_to_hub=True),
    ):
        with pytest.raises(LKGError, match="no name that others can load"):
            push()
