"""The server: what the recommender says, over HTTP, for many at once; what it refuses, and how it ends."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import aiohttp
import pytest
import torch
from peft import LoraConfig
from serve_load import CLOSE, ask, metric, questions, serving
from starlette.testclient import TestClient
from tiny import LORA, backbone, examples, processor
from tiny_batch import save_ranker

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, Recommender
from llamarec_lkg.cli import main
from llamarec_lkg.serving.server.app import make_app
from llamarec_lkg.serving.server.batching import Batcher, QueueFull
from llamarec_lkg.serving.server.bodies import LimitBodies
from llamarec_lkg.serving.server.options import ServerOptions
from llamarec_lkg.serving.server.problems import Problem
from llamarec_lkg.serving.server.run import load_app
from llamarec_lkg.serving.server.work import Asked, key_of, rank_batch


HISTORIES = [["1"], ["2", "1"], [], ["3", "4", "5"], ["6"], ["5", "6"]]


@pytest.fixture(scope="module")
def model(film_dataset, tmp_path_factory):
    return save_ranker(film_dataset, tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def recommender(model):
    return Recommender.from_pretrained(model)


@pytest.fixture(scope="module")
def client(recommender):
    with TestClient(make_app({"default": recommender}), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture
def held(recommender, monkeypatch):
    """The recommender's ranking waits until this is set; `held.ranked` has the histories it was given."""
    event, rank = threading.Event(), recommender.rank
    event.ranked = []

    def wait(examples):
        event.ranked += [example.history.tolist() for example in examples]
        event.wait(20)
        return rank(examples)

    monkeypatch.setattr(recommender, "rank", wait)
    yield event
    event.set()


def until(holds):
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    assert holds()


def same(answer, items):
    """Records of an answer and what the recommender says."""
    wanted = json.loads(json.dumps([asdict(item) for item in items]))
    assert [one["item_id"] for one in answer["items"]] == [one["item_id"] for one in wanted]
    for one, other in zip(answer["items"], wanted, strict=True):
        assert one.keys() == other.keys()
        assert one["score"] == pytest.approx(other["score"], abs=CLOSE)
        assert [reason["kind"] for reason in one["reasons"]] == [reason["kind"] for reason in other["reasons"]]
        assert (one["title"], one["paths"]) == (other["title"], other["paths"])


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["type"], found["status"]) == ("about:blank", status) and found["title"] and found["detail"]
    return found


def test_each_of_many_clients_is_told_what_one_alone_is_told_and_they_share_batches(client, recommender):
    def question(number):
        history = HISTORIES[number % len(HISTORIES)]
        if number % 4:
            return client.post("/recommend", json={"history": history, "k": number % 4})
        return client.post("/rank", json={"history": history, "candidates": ["1", "2", "6"], "user": "2"})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(question, range(36)))
    for number, answer in enumerate(answers):
        history = HISTORIES[number % len(HISTORIES)]
        asked = {"k": number % 4} if number % 4 else {"candidates": ["1", "2", "6"], "user": "2"}
        same(answer.json(), recommender.recommend(history, **asked))
    counts = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(counts["llamarec_batch_size_sum"]) == 36 > 1.5 * float(counts["llamarec_batch_size_count"])
    assert float(counts['llamarec_requests_total{route="/rank",status="200"}']) == 9


def test_the_examples_of_its_pages_run_as_they_stand(client):
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path: call["post"] for path, call in paths.items() if "post" in call}
    assert len(posts) == 4
    for path, call in posts.items():
        (example,) = call["requestBody"]["content"]["application/json"]["examples"].values()
        answer = client.post(path.format(adapter="default"), json=example["value"])
        assert answer.status_code == 200 and answer.json()["items"]
        assert "application/problem+json" in call["responses"]["422"]["content"]
    assert "swagger" in client.get("/docs").text


def test_an_item_and_what_the_graph_has_of_it(client):
    found = client.get("/items/4").json()
    assert (found["item_id"], found["title"]) == ("4", "Antz (1998)")
    assert found["relations"]["DIRECTED_BY"] == ["Darnell", "Johnson"]
    assert "User" not in str(found) and "RATED" not in found["relations"]
    assert client.get("/adapters/default/items/4").json() == found
    assert "'404'" in problem(client.get("/items/404"), 404)["detail"]


@pytest.mark.parametrize(
    "path, body, pointer",
    [
        ("recommend", {}, "#/history"),
        ("recommend", {"history": "1"}, "#/history"),
        ("recommend", {"history": [["1"]]}, "#/history/0"),
        ("recommend", {"history": ["1", "404"]}, "#/history/1"),
        ("recommend", {"history": [], "k": 0}, "#/k"),
        ("recommend", {"history": [], "k": 101}, "#/k"),
        ("recommend", {"history": [], "repeats": "yes"}, "#/repeats"),
        ("recommend", {"history": [], "canidates": ["1"]}, "#/canidates"),
        ("recommend", {"history": ["1"] * 1001}, "#/history"),
        ("rank", {"history": ["1"], "candidates": []}, "#/candidates"),
        ("rank", {"history": ["1"], "candidates": ["1", "505"]}, "#/candidates/1"),
        ("rank", {"history": ["1"], "candidates": ["2", "2"]}, "#/candidates"),
        ("rank", {"history": ["1"], "candidates": list(map(str, range(501)))}, "#/candidates"),
    ],
)
def test_what_is_wrong_names_the_field(client, path, body, pointer):
    found = problem(client.post(f"/{path}", json=body), 422)
    assert pointer in [error["pointer"] for error in found["errors"]]


def test_what_is_no_json_too_large_or_nowhere_is_a_problem_too(client):
    header = {"content-type": "application/json"}
    problem(client.post("/recommend", content=b'{"history": [', headers=header), 422)
    for other in ({}, {"content-type": "application/x-www-form-urlencoded"}):  # the second is what curl -d says
        answer = client.post("/recommend", content=b'{"history": []}', headers=other)
        assert "the header `Content-Type: application/json`" in problem(answer, 415)["detail"]
    problem(client.post("/recommend", content=b" " * (2 << 20), headers=header), 413)
    problem(client.post("/recommend", content=(b" " * (1 << 16) for _ in range(40)), headers=header), 413)
    assert "adapters" not in problem(client.get("/nothing"), 404)["detail"]
    assert "['default']" in problem(client.post("/adapters/x/recommend", json={"history": []}), 404)["detail"]
    problem(client.get("/recommend"), 405)
    problem(client.post("/recommend", json={"history": list("123456")}), 422)  # nothing is left to find


def test_unknown_ids_are_passed_over_where_that_is_asked_for(client, recommender):
    asked = {"history": ["1", "404"], "leave_out_unknown": True}
    answer = client.post("/recommend", json=asked).json()
    same(answer, recommender.recommend(["1"]))
    assert answer["left_out"] == 1
    ranked = client.post("/rank", json={**asked, "candidates": ["405", "2", "406"]}).json()
    assert ranked["left_out"] == 3 and [item["item_id"] for item in ranked["items"]] == ["2"]
    assert client.post("/recommend", json={"history": ["1"]}).json()["left_out"] == 0


def test_nothing_of_its_insides_leaves_the_process(client, recommender, monkeypatch):
    def fail(examples):
        raise RuntimeError("cannot open /home/somebody/weights.bin")

    monkeypatch.setattr(recommender, "rank", fail)
    found = problem(client.post("/recommend", json={"history": ["1"]}), 500)
    assert "/" not in found["detail"] and "weights" not in str(found)
    monkeypatch.undo()
    assert client.post("/recommend", json={"history": ["1"]}).status_code == 200, "it goes on"


def test_what_fits_is_told_of_where_there_are_pages(client, recommender):
    assert problem(client.post("/recommend", json={}), 422)["detail"].endswith("See /docs for what does.")
    with TestClient(make_app({"default": recommender}, api_key="secret")) as one:
        sent = one.post("/recommend", json={}, headers={"Authorization": "Bearer secret"})
        assert "See" not in problem(sent, 422)["detail"]


def test_a_list_that_cannot_be_described_takes_no_other_of_its_batch_along(recommender, monkeypatch):
    describe = recommender.describe_all

    def fail_for_one(rankings, **options):
        if any(ranking.example.history.tolist() == [2] for ranking in rankings):
            raise RuntimeError("no words")
        return describe(rankings, **options)

    monkeypatch.setattr(recommender, "describe_all", fail_for_one)
    batch = [Asked(recommender.request([raw]), k=3, num_reasons=1) for raw in "123"]
    first, second, third = rank_batch({"default": recommender}, key_of(recommender, "default", batch[0]), batch)
    same(json.loads(first), recommender.recommend(["1"], k=3, num_reasons=1))
    same(json.loads(third), recommender.recommend(["3"], k=3, num_reasons=1))
    assert isinstance(second, RuntimeError)


def test_lists_that_cannot_be_described_together_are_told_of_and_answered(recommender, monkeypatch, caplog):
    describe = recommender.describe_all

    def fail_for_several(rankings, **options):
        if len(rankings) > 1:
            raise MemoryError("too much")
        return describe(rankings, **options)

    monkeypatch.setattr(recommender, "describe_all", fail_for_several)
    batch = [Asked(recommender.request([raw]), k=3, num_reasons=1) for raw in "12"]
    for raw, answer in zip("12", rank_batch({"": recommender}, key_of(recommender, "", batch[0]), batch), strict=True):
        same(json.loads(answer), recommender.recommend([raw], k=3, num_reasons=1))
    assert "2 lists are described one by one" in caplog.text and "too much" in caplog.text


def test_scores_that_are_no_numbers_are_the_servers_fault(client, recommender, monkeypatch):
    rank = recommender.rank

    def broken(examples):
        rankings = rank(examples)
        for ranking in rankings:
            ranking.scores[:] = float("nan")
        return rankings

    monkeypatch.setattr(recommender, "rank", broken)
    problem(client.post("/recommend", json={"history": ["1"]}), 500)


def test_a_full_queue_says_when_to_come_again_and_a_late_answer_is_none(recommender, held):
    options = ServerOptions(queue_size=2, timeout=1.0)
    with TestClient(make_app({"default": recommender}, options)) as one, ThreadPoolExecutor(3) as pool:
        first = pool.submit(one.post, "/recommend", json={"history": ["1"]})
        until(lambda: held.ranked)
        waiting = [pool.submit(one.post, "/recommend", json={"history": ["2"]}) for _ in range(2)]
        until(lambda: "llamarec_queue_length 2.0" in one.get("/metrics").text)
        refused = one.post("/recommend", json={"history": ["3"]})
        problem(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        problem(one.get("/ready"), 503)
        assert one.get("/health").status_code == 200
        for answer in (first, *waiting):
            problem(answer.result(), 504)
        held.set()
        assert one.get("/ready").json() == {"status": "ready"}
        assert len(held.ranked) == 1, "what had to wait for too long is not computed any more"
        assert one.post("/recommend", json={"history": ["4"]}).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for():
    async def read(scope, receive, send):
        assert (await receive())["body"] == b"{"
        await receive()

    async def slowly(parts):
        await asyncio.sleep(0 if parts else 10)
        return {"type": "http.request", "body": parts.pop(), "more_body": True}

    limited = LimitBodies(read, max_body=10, timeout=0.05)
    with pytest.raises(Problem, match="408.*did not come within 0.05 s"):
        asyncio.run(limited({"type": "http"}, partial(slowly, [b"{"]), None))


def test_with_a_key_only_those_who_have_it_are_answered(recommender):
    with TestClient(make_app({"default": recommender}, api_key="söcret")) as one:
        for header in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic söcret".encode()}):
            refused = one.post("/recommend", json={"history": []}, headers=header)
            problem(refused, 401)
            assert refused.headers["www-authenticate"] == "Bearer"
        problem(one.get("/metrics"), 401)
        problem(one.get("/items/1"), 401)
        assert one.get("/health").status_code == one.get("/ready").status_code == 200
        right = {"Authorization": "Bearer söcret".encode()}
        assert one.post("/recommend", json={"history": []}, headers=right).status_code == 200
        assert {one.get(page).status_code for page in ("/docs", "/redoc", "/openapi.json")} == {404}
    with TestClient(make_app({"default": recommender}, api_key="secret")) as one:
        right = {"Authorization": "Bearer secret"}
        assert one.post("/recommend", json={"history": []}, headers=right).status_code == 200
        assert one.get("/metrics", headers=right).status_code == 200


def test_tenants_of_one_backbone_are_asked_by_name(film_dataset, tmp_path, monkeypatch):
    backbone().save_pretrained(tmp_path / "backbone")
    proc = processor(film_dataset).fit(examples(film_dataset))
    for seed, name in enumerate(("films", "others")):
        torch.manual_seed(seed)
        ranker = LlamaRecLKGForRanking.from_backbone(str(tmp_path / "backbone"), proc.model_config())
        ranker.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
        ranker.save_pretrained(tmp_path / name)
        proc.save_pretrained(tmp_path / name)
    body = {"history": ["1"], "candidates": ["2", "3", "4"]}
    wanted = [Recommender.from_pretrained(tmp_path / name).recommend(**body) for name in ("films", "others")]
    monkeypatch.setenv("LLAMAREC_LKG_API_KEY", " ")
    with pytest.raises(LKGError, match="LLAMAREC_LKG_API_KEY is set, and empty"):
        load_app(str(tmp_path / "films"))
    monkeypatch.delenv("LLAMAREC_LKG_API_KEY")
    with TestClient(load_app(str(tmp_path / "films"), {"others": str(tmp_path / "others")})) as one:
        paths = ["/rank", "/adapters/others/rank", "/adapters/default/rank"]
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda path: one.post(path, json=body).json(), paths * 4))
        for path, answer in zip(paths * 4, answers, strict=True):
            same(answer, wanted["others" in path])
        assert "no retriever" in problem(one.post("/recommend", json={"history": []}), 422)["detail"]
    with pytest.raises(LKGError, match="Two adapters are called 'default'"):
        load_app(str(tmp_path / "films"), {"default": str(tmp_path / "others")})


def test_an_application_may_be_started_again(model):
    app = load_app(str(model))
    for _ in range(2):
        with TestClient(app) as one:
            assert one.post("/recommend", json={"history": ["1"]}).status_code == 200


def test_a_batch_holds_one_key_and_nothing_that_was_given_up():
    batches, go = [], threading.Event()

    def work(key, items):
        batches.append((key, items))
        go.wait(5)
        return [ValueError(item) if item < 0 else 2 * item for item in items]

    async def ask_it():
        batcher = Batcher(work, size=3, wait=0.01, queue_size=8)
        batcher.start()
        first = batcher.put("a", 0)
        while not batches:
            await asyncio.sleep(0.001)
        assert batcher.busy_seconds > 0
        others = [
            batcher.put(key, item) for key, item in [("b", 1), ("a", 2), ("b", 3), ("b", 4), ("b", -5), ("b", 6)]
        ]
        others[2].cancel()
        await asyncio.sleep(0)
        others.append(batcher.put("a", 7))
        batcher.put("a", 8), batcher.put("a", 9)
        with pytest.raises(QueueFull):
            batcher.put("a", 10)
        go.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        await asyncio.sleep(0.1)
        await batcher.close()
        return results, batcher

    results, batcher = asyncio.run(ask_it())
    assert batches == [("a", [0]), ("b", [1, 4, -5]), ("a", [2, 7, 8]), ("b", [6]), ("a", [9])]
    assert results[:3] == [0, 2, 4] and isinstance(results[3], asyncio.CancelledError)
    assert results[4] == 8 and isinstance(results[5], ValueError) and results[6:] == [12, 14]
    assert not batcher.running


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("batch_size", 0, "more than 0"),
        ("timeout", -1.0, "more than 0"),
        ("timeout", float("nan"), "more than 0"),
        ("batch_wait", float("inf"), "0 or more"),
    ],
)
def test_bounds_that_let_nothing_through_are_refused(name, value, least):
    with pytest.raises(LKGError, match=f"{name} is {value!r}; it is a finite number, {least}[.]"):
        ServerOptions(**{name: value})


@pytest.mark.parametrize(("reads", "given", "wanted"), [(False, None, 1), (True, None, 3), (False, "3", 3)])
def test_where_little_is_computed_no_second_thread_is_woken(
    model, film_dataset, tmp_path, monkeypatch, reads, given, wanted
):
    threads = [3]
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    if not reads:
        proc = processor(film_dataset).fit(examples(film_dataset))
        LlamaRecLKGForRanking(proc.model_config(use_language_model=False)).save_pretrained(tmp_path)
        proc.save_pretrained(tmp_path)
    load_app(str(model if reads else tmp_path))
    assert threads[-1] == wanted


def test_an_adapter_has_a_name_and_a_place(model, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--model", str(model), "--adapter", "books"])
    assert "--adapter is 'books'; it is NAME=MODEL" in capsys.readouterr().err


def test_a_process_answers_many_forgets_who_hangs_up_and_ends_with_what_it_took(model, recommender, tmp_path):
    asked = questions(recommender, 16)
    log = tmp_path / "log"

    async def hang_up(address):
        """Clients who are gone before the batch of theirs begins."""
        sizes = await metric(address, "llamarec_batch_size_sum")
        async with aiohttp.ClientSession(address) as session:
            calls = [asyncio.create_task(session.post("/recommend", json=asked[0][0])) for _ in range(60)]
            await asyncio.sleep(0.15)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0.3)
        return await metric(address, "llamarec_batch_size_sum") - sizes

    async def end(process, address):
        async with aiohttp.ClientSession(address) as session:
            calls = [asyncio.create_task(session.post("/recommend", json=body)) for body, _ in asked]
            await asyncio.sleep(0.1)
            process.terminate()
            answers = await asyncio.gather(*calls)
            return [answer.status for answer in answers]

    with serving(model, "--device", "cpu", "--batch-size", "4", log=log) as (process, address):
        found = asyncio.run(ask(address, asked, clients=8, seconds=1))
        assert found["survived"] == found["tried"] > 8, found
        assert asyncio.run(hang_up(address)) < 60
        assert asyncio.run(end(process, address)) == [200] * len(asked)
        process.wait(10)
    assert "Traceback" not in log.read_text()
