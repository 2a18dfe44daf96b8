import pytest
import tiny
from torch import nn

from llamarec_lkg.retrieval.layers import layers_of
from llamarec_lkg.utils.errors import LKGError


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_layers_of_a_language_model_are_found(kind):
    model = tiny.backbone(kind, num_hidden_layers=3)
    assert layers_of(model) is model.model.layers


def test_where_two_lists_could_be_the_layers_none_is_taken():
    model = tiny.backbone()
    model.model.others = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    with pytest.raises(LKGError, match=r"its 2 layers is not known.*\['layers', 'others'\]"):
        layers_of(model)
