"""Names that lead nowhere: a mistyped path is told at once and as what it is, and a Hub that is away is asked once."""

import time

import pytest
import torch
from hub_stand_in.client import use_hub
from hub_stand_in.server import HubServer
from hub_stand_in.world import RANKER, named_dataset, push_backbone, recommender
from transformers import AutoConfig, AutoModel, AutoProcessor

from llamarec_lkg import LKGError, LlamaRecLKGForRanking, LlamaRecLKGProcessor, Recommender
from llamarec_lkg.cli import main


pytestmark = pytest.mark.hub
OWN = [Recommender, LlamaRecLKGProcessor, LlamaRecLKGForRanking]
NO_ID = ["./none", "../none", "/abs/none", "~/none", "outputs/mine/none", r"outputs\none", "none/"]


@pytest.fixture
def whole(make_dataset, film_items, hub):
    push_backbone()
    return recommender(named_dataset(make_dataset, film_items))


@pytest.fixture
def away(tmp_path):
    """A Hub at which nobody listens."""
    with HubServer() as server:
        pass
    with use_hub(server, tmp_path / "home"):
        yield server


@pytest.mark.parametrize("name", NO_ID)
@pytest.mark.parametrize("kind", OWN)
def test_what_cannot_be_an_id_is_a_folder_that_is_not_there(hub, kind, name):
    with pytest.raises(LKGError, match="There is no folder .*cannot be an id on the Hub") as e:
        kind.from_pretrained(name)
    assert repr(name) in str(e.value) and not hub.calls("*")


@pytest.mark.parametrize("name", NO_ID)
@pytest.mark.parametrize("kind", [AutoModel, AutoProcessor, AutoConfig])
def test_the_auto_classes_ask_no_hub_for_it_either(hub, kind, name):
    with pytest.raises(OSError, match="(?i)repo id|local folder"):
        kind.from_pretrained(name)
    assert not hub.calls("*")


def test_a_folder_at_home_is_given_in_full(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    with pytest.raises(LKGError, match=f"Give the folder as '{tmp_path}/run'"):
        Recommender.from_pretrained("~/run")


@pytest.mark.parametrize("kind", OWN)
def test_what_could_be_either_is_told_to_be_neither(hub, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OSError, match=f"There is no folder 'outputs/none' in {tmp_path}, and .*no repository of this id"
    ):
        kind.from_pretrained("outputs/none")
    with pytest.raises(OSError, match="(?s)outputs/none is not a local folder and is not a valid model identifier"):
        AutoModel.from_pretrained("outputs/none")


@pytest.mark.parametrize("kind", OWN)
def test_a_hub_that_is_away_is_asked_once(away, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(OSError, match=f"no folder 'outputs/none' in {tmp_path}, and .*could not be asked.*refused"):
        kind.from_pretrained("outputs/none")
    assert away.waits == [] and time.monotonic() - start < 5
    with pytest.raises(OSError, match=r"no folder 'outputs/none'.*local_files_only"):
        kind.from_pretrained("outputs/none", local_files_only=True)


def test_the_command_says_so_too(away, capsys):
    assert main(["recommend", "--model", "outputs/none", "--history", "1"]) == 1
    assert "There is no folder 'outputs/none'" in capsys.readouterr().err and away.waits == []


def test_a_further_adapter_that_is_nowhere_is_told_alike(whole):
    for load in (whole.load_adapter, whole.model.load_adapter):
        with pytest.raises(LKGError, match="There is no folder './none'"):
            load("./none", "second")
        with pytest.raises(OSError, match="There is no folder 'outputs/none'"):
            load("outputs/none", "second")


def test_a_model_that_was_loaded_before_is_loaded_without_the_hub_and_without_waiting(hub, whole):
    whole.push_to_hub(RANKER)
    Recommender.from_pretrained(RANKER)
    hub.waits.clear()
    hub.fail("*", "reset", times=None)
    backbone = whole.model.language_model.unload()
    again = LlamaRecLKGForRanking.from_pretrained(RANKER, backbone=backbone)
    assert hub.waits == []
    for name, value in again.own_state_dict().items():
        assert torch.equal(value, whole.model.own_state_dict()[name])
