"""Every family of backbones can be read at each candidate, or is refused when the ranker is built, with the reason."""

import pytest
import torch
from tiny import SIZES, backbone, examples, processor
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.utils.errors import LKGError


OLD_NAMES = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}
LONG_NAMES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "olmo2", "granite"), SIZES),
    **dict.fromkeys(("starcoder2", "gpt_neox", "falcon", "mixtral", "qwen3_moe"), SIZES),
    "gemma3_text": {**SIZES, "sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": OLD_NAMES,
    "gptj": {**OLD_NAMES, "rotary_dim": 4},
    "opt": {**LONG_NAMES, "ffn_dim": 64, "max_position_embeddings": 2048, "word_embed_proj_dim": 16},
}
APART = "does not keep candidates apart: a candidate's state moves by"
REFUSED = {
    "bloom": ({"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "it does not run"),
    "mpt": ({"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 2048}, APART),
    "gpt_oss": (
        {**SIZES, "layer_types": ["sliding_attention", "full_attention"]},
        "sliding window is 128 tokens wide",
    ),
    "gpt_neo": (
        {"vocab_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 2048}
        | {"attention_types": [[["global", "local"], 1]]},
        "has local layers, which count tokens",
    ),
    "mamba2": (
        {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "n_groups": 1},
        APART,
    ),
    "lfm2": ({**SIZES, "layer_types": ["conv", "full_attention"]}, APART),
}


def made(family, sizes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)  # so that tokens heed each other as in a trained one
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_can_be_read_at_each_candidate(film_dataset, family):
    proc = processor(film_dataset).fit(examples(film_dataset))
    ranker = LlamaRecLKGForRanking.from_backbone(made(family, FAMILIES[family]), proc.model_config())
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in ranker.readout.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    batch = proc(examples(film_dataset, count=3))
    whole = ranker.score(batch)
    ranker.config.candidates_per_pass = 2
    torch.testing.assert_close(ranker.score(batch), whole, rtol=1e-5, atol=1e-5)
    output = ranker.train()(**batch)
    output.loss.backward()
    assert output.lm_logits.isfinite().all() and output.lm_logits.std() > 1e-5
    assert ranker._decoder().get_input_embeddings().weight.grad.any() and ranker.preference.bias.grad.any()


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_cannot_are_refused_with_the_reason_and_the_remedy_works(film_dataset, family):
    sizes, reason = REFUSED[family]
    plain, proc = made(family, sizes), processor(film_dataset)
    with pytest.raises(LKGError, match=f"(?s){reason}.*candidate_attention='causal'.*readout='letters'"):
        LlamaRecLKGForRanking.from_backbone(plain, proc.model_config())
    causal = processor(film_dataset, candidate_attention="causal").fit(examples(film_dataset))
    gate = {"path_gate": "straight_through"}  # some of them have no sdpa
    ranker = LlamaRecLKGForRanking.from_backbone(plain, causal.model_config(**gate))
    ranker(**causal(examples(film_dataset, count=2))).loss.backward()


def test_learned_positions_must_reach_as_far_as_max_length(film_dataset):
    short = {**OLD_NAMES, "n_positions": 512}
    for readout in ("candidates", "letters"):
        proc = processor(film_dataset, readout=readout)
        with pytest.raises(
            LKGError, match="positions for 512 tokens .*wpe.*, and max_length is 1024. Lower max_length"
        ):
            LlamaRecLKGForRanking.from_backbone(made("gpt2", short), proc.model_config())
    proc = processor(film_dataset, max_length=512)
    LlamaRecLKGForRanking.from_backbone(made("gpt2", short), proc.model_config())


def test_a_kernel_that_ignores_the_mask_is_found_out(film_dataset, tmp_path):
    def deaf(module, query, key, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("deaf", deaf)
    plain, proc = made("llama", SIZES), processor(film_dataset)
    plain.set_attn_implementation("deaf")
    with pytest.raises(LKGError, match=f"{APART}.*kernel \\('deaf'\\) does not take the mask.*attn_implementation="):
        LlamaRecLKGForRanking.from_backbone(plain, proc.model_config())
    plain.set_attn_implementation("sdpa")
    LlamaRecLKGForRanking.from_backbone(plain, proc.model_config()).save_pretrained(tmp_path / "whole")
    with pytest.raises(LKGError, match=APART):
        AutoModel.from_pretrained(tmp_path / "whole", attn_implementation="deaf")
    with pytest.raises(LKGError, match="'flex_attention' takes no mask"):
        AutoModel.from_pretrained(tmp_path / "whole", attn_implementation="flex_attention")


def test_half_precision_is_not_taken_for_a_fault(film_dataset):
    for dtype in (torch.bfloat16, torch.float16):
        LlamaRecLKGForRanking.from_backbone(backbone().to(dtype), processor(film_dataset).model_config())
