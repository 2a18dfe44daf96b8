"""A ranker whose language model another server holds ranks as it does by itself."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from completions_stand_in import CompletionsServer
from peft import LoraConfig
from tiny import LORA, backbone, examples, processor
from tiny_batch import SMALL, make_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, Recommender, rank_file
from llamarec_lkg.cli import main
from llamarec_lkg.ranking.merged import export_merged
from llamarec_lkg.retrieval.modeling_lrurec import LRURecConfig, LRURecForRetrieval
from llamarec_lkg.serving.prompt_files import write_prompts
from llamarec_lkg.serving.remote import API_KEY, RemoteScorer


def save_run(dataset, folder, **config):
    """A ranker with letters and an adapter that says something, with all parts, saved."""
    backbone().save_pretrained(folder / "backbone")
    proc = processor(dataset, readout=config.pop("readout", "letters")).fit(examples(dataset))
    settings = {"path_gate": "straight_through", "lm_scale": 1.0, **config}
    ranker = LlamaRecLKGForRanking.from_backbone(str(folder / "backbone"), proc.model_config(**settings))
    ranker.add_adapter(LoraConfig(**LORA))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in ranker.named_parameters():
            if "lora_" in name or name.startswith("preference."):
                weight.add_(0.5 * torch.randn_like(weight))
    ranker.save_pretrained(folder / "run")
    proc.save_pretrained(folder / "run")
    LRURecForRetrieval(LRURecConfig(num_items=6, hidden_size=8)).save_pretrained(folder / "run" / "retriever")
    return folder / "run"


@pytest.fixture(scope="module")
def run(film_dataset, tmp_path_factory):
    return save_run(film_dataset, tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory):
    return export_merged(run, tmp_path_factory.mktemp("export") / "merged")


def ranked(recommender, dataset):
    rankings = recommender.rank(examples(dataset, count=9))
    return np.stack([ranking.parts.sum(1) for ranking in rankings]), rankings


def test_the_export_is_a_plain_model_that_says_what_the_ranker_says(run, merged):
    plain, whole = AutoModelForCausalLM.from_pretrained(merged), Recommender.from_pretrained(run)
    ids = torch.tensor([AutoTokenizer.from_pretrained(merged)("Heat (1995)\n")["input_ids"]])
    torch.testing.assert_close(plain(ids).logits, whole.model.language_model(ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain(ids).logits, backbone()(ids).logits, atol=1e-2), "the adapter says something"
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in merged.iterdir()
    }
    with pytest.raises(LKGError, match="is not empty. Give a new folder"):
        export_merged(run, merged)


def test_an_export_in_another_precision_keeps_the_name_free_when_it_fails(run, tmp_path, monkeypatch):
    half = export_merged(run, tmp_path / "half", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == torch.bfloat16
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_merged(run, tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_scores_over_the_wire_are_those_of_the_whole_ranker(run, merged, film_dataset, kind):
    here, wanted = ranked(Recommender.from_pretrained(run), film_dataset)
    with CompletionsServer(merged, kind).running() as server:
        scorer = RemoteScorer(server.url, batch_size=2, top_logprobs=20 if kind == "vllm" else 300)
        away = Recommender.from_pretrained(run, remote=scorer)
        assert away.model.language_model is None
        found, rankings = ranked(away, film_dataset)
    np.testing.assert_allclose(found, here, atol=1e-3)
    for one, other in zip(rankings, wanted, strict=True):
        np.testing.assert_allclose(one.parts, other.parts, atol=1e-3)
    assert np.abs([ranking.parts[:, 0] for ranking in wanted]).max() > 0.05, "the language model has a say"
    assert scorer.bounded == 0 and scorer.letters == 9 * 5 + 5
    assert sum(request["prompt"] == [away.processor.empty_prompt_ids()] for request in server.requests) == 1


def test_reasons_are_the_same(run, merged):
    here = Recommender.from_pretrained(run).recommend(["1"], user="2", k=3)
    with CompletionsServer(merged).running() as server:
        away = Recommender.from_pretrained(run, remote=RemoteScorer(server.url)).recommend(["1"], user="2", k=3)
    assert [item.item_id for item in here] == [item.item_id for item in away]
    assert [[reason.text for reason in item.reasons] for item in here] == [
        [reason.text for reason in item.reasons] for item in away
    ]


@pytest.mark.parametrize("kind", ["older-vllm", "sglang"])
def test_letters_outside_of_the_most_likely_tokens_are_bounded_and_counted(run, merged, film_dataset, kind, caplog):
    recommender = Recommender.from_pretrained(run)
    batch = recommender.processor(examples(film_dataset))
    prompt, _ = recommender.model.letter_prompts(batch)
    with CompletionsServer(merged, kind).running() as server:
        scorer = RemoteScorer(server.url)
        rows = [ids[mask].tolist() for ids, mask in zip(prompt.input_ids, prompt.attention_mask.bool(), strict=True)]
        letters = recommender.processor.letter_token_ids
        found = scorer._logprobs(rows, letters, [5] * len(rows), recommender.processor)
        exact = torch.stack(
            [server.model(torch.tensor([row])).logits[0, -1].log_softmax(-1)[letters].detach() for row in rows]
        )
        twentieth = torch.stack(
            [server.model(torch.tensor([row])).logits[0, -1].log_softmax(-1).topk(20).values[-1] for row in rows]
        )
    outside = exact < twentieth[:, None] - 1e-5
    assert 0 < outside.sum() < outside.numel()
    torch.testing.assert_close(found[~outside], exact[~outside], atol=1e-4, rtol=0)
    assert (found[outside] >= exact[outside]).all()
    if kind == "older-vllm":  # whose names are one for each token
        torch.testing.assert_close(found, torch.maximum(exact, twentieth[:, None]), atol=1e-4, rtol=0)
    assert (scorer.bounded, scorer.letters) == (int(outside.sum()), outside.numel())
    assert f"{int(outside.sum())} of {outside.numel()} letters so far were not among the 20" in caplog.text
    assert len(caplog.records) == 1


@pytest.fixture
def waits(monkeypatch):
    """How long was waited, in place of waiting."""
    slept = []
    monkeypatch.setattr("llamarec_lkg.serving.remote.time", SimpleNamespace(sleep=slept.append))
    return slept


def test_a_busy_server_is_asked_again_when_it_says_so(run, merged, waits):
    troubles = [(429, {"Retry-After": "3"}), (503, {}), (500, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"})]
    with CompletionsServer(merged, troubles=troubles).running() as server:
        recommender = Recommender.from_pretrained(run, remote=RemoteScorer(server.url))
        assert recommender.recommend(["1"], k=1)
    assert len(waits) == 3 and waits[0] == 3.0 and 0.5 <= waits[1] <= 1.0
    assert waits[2] == 0.0, "a date that is over is no wait"


def test_what_is_no_use_to_repeat_is_refused_at_once_with_the_remedy(run, merged, waits, monkeypatch):
    with CompletionsServer(merged, key="secret").running() as server:
        ask = Recommender.from_pretrained(run, remote=RemoteScorer(server.url)).recommend
        with pytest.raises(LKGError, match=f"answered 401.*environment variable {API_KEY}"):
            ask(["1"])
        monkeypatch.setenv(API_KEY, "secret")
        assert Recommender.from_pretrained(run, remote=RemoteScorer(server.url)).recommend(["1"])
        for scorer, says in (
            (RemoteScorer(server.url, "others"), "answered 404.*the name that the model is served under"),
            (RemoteScorer(server.url, top_logprobs=21), "answered 400.*max allowed: 20.*--max-logprobs"),
            (RemoteScorer(server.url.removesuffix("/v1"), "films"), "answered 404.*with /v1"),
        ):
            with pytest.raises(LKGError, match=says):
                Recommender.from_pretrained(run, remote=scorer).recommend(["1"])
    assert not waits


def test_a_server_that_is_not_there_or_never_well_is_given_up(run, merged, waits):
    with CompletionsServer(merged, troubles=[(500, {})] * 9).running() as server:
        with pytest.raises(LKGError, match="answered 500.*trouble.*, 3 times. Start the server"):
            Recommender.from_pretrained(run, remote=RemoteScorer(server.url, attempts=3)).recommend(["1"])
        server.troubles, server.delay = [], 0.5
    with pytest.raises(LKGError, match="could not be reached .ConnectError.*, 5 times"):
        Recommender.from_pretrained(run, remote=RemoteScorer(server.url)).recommend(["1"])
    assert len(waits) == 2 + 4 and waits[-1] > waits[-2] > waits[-3]
    with CompletionsServer(merged, "tgi").running() as server:
        with pytest.raises(LKGError, match="no log-probabilities.*vLLM or SGLang"):
            Recommender.from_pretrained(run, remote=RemoteScorer(server.url)).recommend(["1"])
    with pytest.raises(LKGError, match="such as http://localhost:8000/v1"):
        RemoteScorer("localhost:8000")


NAMED = {"data": [{"id": "films"}]}


@pytest.mark.parametrize(
    ("models", "completions", "says"),
    [
        ([], None, "names no model"),
        ({"data": [{}]}, None, "names no model"),
        (NAMED, [], "no log-probabilities"),
        (NAMED, {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"A": None}]}}]}, "no log-probabilities"),
        (NAMED, {"choices": [{"index": 0, "logprobs": {"top_logprobs": [["A"]]}}]}, "no log-probabilities"),
    ],
)
def test_answers_of_another_form_are_the_servers_fault(run, monkeypatch, models, completions, says):
    scorer = RemoteScorer("http://localhost:9/v1")
    monkeypatch.setattr(scorer, "_ask", lambda method, path, body=None: models if path == "models" else completions)
    with pytest.raises(LKGError, match=says):
        Recommender.from_pretrained(run, remote=scorer).recommend(["1"])


def test_no_more_requests_are_under_way_than_allowed(run, merged, film_dataset):
    with CompletionsServer(merged).running() as server:
        server.delay = 0.05
        recommender = Recommender.from_pretrained(run, remote=RemoteScorer(server.url, batch_size=1, concurrency=3))
        ranked(recommender, film_dataset)
    assert server.most_under_way == 3
    assert all(len(request["prompt"]) == 1 for request in server.requests)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"readout": "candidates"}, "reads its language model in states.*prompt.readout=letters"),
        ({"path_gate": "attention_bias"}, "biases attention to paths.*model.path_gate=straight_through"),
    ],
)
def test_what_no_server_can_do_is_said(film_dataset, tmp_path, config, says, monkeypatch, caplog):
    run = save_run(film_dataset, tmp_path, **config)
    with pytest.raises(LKGError, match=says):
        Recommender.from_pretrained(run, remote=RemoteScorer("http://localhost:1/v1"))
    monkeypatch.setattr("llamarec_lkg.ranking.merged.LlamaRecLKGForRanking.from_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # before the long work
        export_merged(run, tmp_path / "merged")
    assert re.search(f"no use to --remote.*{says}", caplog.text)


def test_prompts_in_a_file_are_what_the_ranker_reads(run, merged, film_dataset, tmp_path, capsys):
    rows = pd.DataFrame({"user": ["1", "2", "3", "new"], "history": [["1", "2"], ["none such"], [], ["4"]]})
    rows["candidates"] = [None, None, ["1", "2", "3", "4", "5", "6"], ["1", "2", "3"]]
    rows.to_parquet(tmp_path / "rows.parquet")
    recommender, plain = Recommender.from_pretrained(run), AutoModelForCausalLM.from_pretrained(merged)
    tokens = AutoTokenizer.from_pretrained(merged)
    for name in ("prompts.jsonl", "prompts.parquet"):
        path = tmp_path / name
        words = ["prompts", "--model", run, "--input", tmp_path / "rows.parquet", "--output", path]
        assert main(list(map(str, words))) == 0
        said = capsys.readouterr()
        assert said.out == f"{path}: prompts of 2 of 4 rows\n" and "'none such'" in said.err
        found = pd.read_json(path, lines=True) if path.suffix == ".jsonl" else pd.read_parquet(path)
        assert list(found.columns) == ["row", "user", "prompt", "letters", "candidates", "tokens"]
        assert found["user"].astype(str).tolist() == ["1", "new"] and found["row"].tolist() == [0, 3]
        for one in found.to_dict("records"):
            assert one["prompt"].startswith("### Instruction") and one["prompt"].endswith("### Response:\n")
            assert tokens(one["prompt"])["input_ids"] == list(one["tokens"])
            assert "".join(one["letters"]) == "ABCDE"[: len(one["candidates"])]
        second = found.iloc[1]
        logits = plain(torch.tensor([list(second["tokens"])])).logits[0, -1]
        example = recommender.processor.example(["4"], list(second["candidates"]), user="new")
        said = recommender.model(**recommender.processor([example])).lm_logits[0]
        letters = [tokens(letter)["input_ids"][0] for letter in second["letters"]]
        torch.testing.assert_close(logits[letters], said, atol=1e-4, rtol=1e-4)
    with pytest.raises(LKGError, match="ends in .jsonl or .parquet"):
        write_prompts(run, tmp_path / "rows.parquet", tmp_path / "prompts.csv")


def test_the_commands_export_and_ask(run, tmp_path, capsys):
    assert main(["export", "--merged", "--model", str(run), "--output", str(tmp_path / "merged")]) == 0
    ask = ["recommend", "--model", str(run), "--history", "1", "--json"]
    assert main(ask) == 0
    here = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    with CompletionsServer(tmp_path / "merged").running() as server:
        assert main([*ask, "--remote", server.url]) == 0
        away = json.loads(capsys.readouterr().out)
        assert len(server.requests) == 2
    assert [item["item_id"] for item in here] == [item["item_id"] for item in away]
    np.testing.assert_allclose([item["score"] for item in here], [item["score"] for item in away], atol=1e-3)


def test_a_user_base_is_ranked_over_the_wire_and_a_server_that_fails_refuses_no_row(run, merged, tmp_path, waits):
    rows = make_rows(12, ["1", "2", "3", "4", "5", "6"])
    rows.to_parquet(tmp_path / "rows.parquet")
    given = {"input": tmp_path / "rows.parquet", "progress": False, **SMALL}
    assert rank_file(run, output=tmp_path / "here", **given).refused == 0
    with CompletionsServer(merged).running() as server:
        remote = {"base_url": server.url, "attempts": 2}
        away = {**given, "output": tmp_path / "away", "remote": remote}
        server.troubles = [None] * 4 + [(503, {})] * 2  # it fails in the first shard or the second
        with pytest.raises(LKGError, match="answered 503"):
            rank_file(run, **away)
        server.troubles = []
        assert rank_file(run, **{**away, "remote": {**remote, "model": "films"}}).ranked == 12
    here, away = (pd.read_parquet(tmp_path / name) for name in ("here", "away"))
    assert here[["user", "item", "rank"]].equals(away[["user", "item", "rank"]])
    np.testing.assert_allclose(here["score"], away["score"], atol=1e-3)
    with pytest.raises(LKGError, match="begun with"):
        rank_file(run, output=tmp_path / "away", **given)


def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv(API_KEY, "hidden\nhidden")
    with pytest.raises(LKGError, match="characters that no header can") as refused:
        RemoteScorer("http://localhost:1/v1")
    assert "hidden" not in str(refused.value)
    monkeypatch.setenv(API_KEY, "secret\n")  # as a file that is read whole
    assert RemoteScorer("http://localhost:1/v1")._client.headers["authorization"] == "Bearer secret"
    with pytest.raises(LKGError, match="address holds a password") as refused:
        RemoteScorer("http://user:hidden@localhost:1/v1")
    assert "hidden" not in str(refused.value)
