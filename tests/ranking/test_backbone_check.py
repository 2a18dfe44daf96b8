"""Every family of backbones can be read at each candidate, or is refused when the ranker is built, with the reason."""

import numpy as np
import pytest
import torch
from tiny import SIZES, backbone, examples, processor
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llamarec_lkg.ranking.backbone_check import LAYOUTS
from llamarec_lkg.ranking.modeling_llamarec_lkg import LlamaRecLKGForRanking
from llamarec_lkg.ranking.scoring import ranker_scores
from llamarec_lkg.serving.recommender import Recommender
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
    "lfm2 with convolutions last": ({**SIZES, "layer_types": ["full_attention", "conv"]}, APART),
    "jamba": (
        {**SIZES, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8}
        | {"mamba_dt_rank": 4},
        APART,
    ),
}

HYBRIDS = ["lfm2", "lfm2 with convolutions last", "jamba"]


def made(family, sizes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.split()[0], **sizes)).eval()
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


@pytest.mark.parametrize("family", HYBRIDS)
def test_half_precision_hides_no_layer_that_carries_over_what_was_before(film_dataset, family):
    with pytest.raises(LKGError, match=APART):
        LlamaRecLKGForRanking.from_backbone(
            made(family, REFUSED[family][0]).bfloat16(), processor(film_dataset).model_config()
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_read_in_half_precision(film_dataset, family):
    ranker = LlamaRecLKGForRanking.from_backbone(
        made(family, FAMILIES[family]).bfloat16(), processor(film_dataset).model_config(use_path_gate=False)
    )
    assert ranker._kernel != "sdpa" or list(ranker._layouts.values()) == [list(LAYOUTS)]


@pytest.mark.parametrize("attention", ["isolated", "causal", "letters"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "mpt", "opt"])
def test_positions_that_end_must_reach_as_far_as_max_length(film_dataset, family, attention):
    """Learned, in a table of sines, and of ALiBi; OPT's table has two rows that are no positions."""
    readout = {"readout": "letters"} if attention == "letters" else {"candidate_attention": attention}
    sizes = (FAMILIES | {"mpt": REFUSED["mpt"][0]})[family]
    end = next(name for name in ("n_positions", "max_seq_len", "max_position_embeddings") if name in sizes)
    short = made(family, {**sizes, end: 450})
    gate = {"path_gate": "straight_through"}
    with pytest.raises(LKGError, match="positions for 450 tokens, and max_length is 451. Set max_length to 450 or"):
        LlamaRecLKGForRanking.from_backbone(short, processor(film_dataset, max_length=451, **readout).model_config())
    if (family, attention) == ("mpt", "isolated"):
        return  # it cannot be read so, see REFUSED
    proc = processor(film_dataset, max_length=450, **readout).fit(examples(film_dataset))
    ranker = LlamaRecLKGForRanking.from_backbone(short, proc.model_config(**gate))
    assert ranker.train()(**proc(examples(film_dataset, count=2))).loss.isfinite()


def test_beyond_the_positions_that_rotary_ones_were_trained_on_there_is_a_warning(either, caplog):
    for known, told in ((1024, False), (1023, True)):
        LlamaRecLKGForRanking.from_backbone(backbone(max_position_embeddings=known), either.model_config())
        assert ("may read the end of longer prompts badly. Set max_length to 1023" in caplog.text) == told


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("readout", ["candidates", "letters"])
def test_tokens_that_the_backbone_does_not_know_are_refused_and_resized_it_knows_them(
    film_dataset, readout, grown, tmp_path
):
    """Those of every prompt when the ranker is built, those that a title may bring when it meets the processor."""
    proc, plain = processor(film_dataset, readout=readout), backbone(vocab_size=257 if grown else 100)
    if grown:
        proc.tokenizer.add_tokens(["Heat"])
    with pytest.raises(LKGError, match=r"can write token \d+, .* tokens 0 to (99|256): .*resize_token_embeddings"):
        Recommender(LlamaRecLKGForRanking.from_backbone(plain, proc.model_config()), proc)
    plain.resize_token_embeddings(len(proc.tokenizer))
    plain.save_pretrained(tmp_path)
    ranker = LlamaRecLKGForRanking.from_backbone(tmp_path, proc.model_config())
    assert np.isfinite(ranker_scores(ranker, proc, examples(film_dataset))).all()


def test_special_tokens_that_no_prompt_holds_need_no_embeddings(film_dataset):
    proc = processor(film_dataset)
    proc.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    ranker = LlamaRecLKGForRanking.from_backbone(backbone(vocab_size=257), proc.model_config())
    assert len(proc.tokenizer) == 258 and np.isfinite(ranker_scores(ranker, proc, examples(film_dataset))).all()


# -- the path gate


SHORT_NAMES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
DEAF = {
    "falcon": (SIZES, "sdpa"),
    **{family: (FAMILIES[family], "eager") for family in ("gemma2", "gptj")},
    **{family: (REFUSED[family][0], "eager") for family in ("bloom", "mpt", "gpt_neo", "gpt_oss", "mamba2")},
    "codegen": ({**OLD_NAMES, "rotary_dim": 4}, "eager"),
    "mamba": (SHORT_NAMES, "eager"),
}
READINGS = {"letters": {"readout": "letters"}, "causal": {"candidate_attention": "causal"}}


def gate_gradient(ranker, batch):
    """What reaches the preferences by the gate alone."""
    torch.manual_seed(1)
    with torch.no_grad():
        for head in ranker.heads().values():
            for weight in head.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    ranker(**batch).loss.backward()
    return ranker.preference.bias.grad


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("family", DEAF)
def test_a_backbone_that_passes_the_gate_by_is_refused_and_each_remedy_works(film_dataset, family, reading):
    sizes, kernel = DEAF[family]
    plain, proc = made(family, sizes), processor(film_dataset, **READINGS[reading]).fit(examples(film_dataset))
    off = {"use_evidence_fusion": False, "lm_scale": 1.0}
    message = (
        f"'attention_bias' does not work on .* with the attention kernel '{kernel}': the gate changes nothing.*"
        "To mend it, set path_gate='straight_through', or set use_path_gate=False"
    )
    with pytest.raises(LKGError, match=message):
        LlamaRecLKGForRanking.from_backbone(plain, proc.model_config(**off))
    assert plain.config._attn_implementation == kernel, "what was tried for the remedy is undone"
    batch = proc(examples(film_dataset, count=3))
    through = LlamaRecLKGForRanking.from_backbone(plain, proc.model_config(path_gate="straight_through", **off))
    assert gate_gradient(through, batch).any()
    LlamaRecLKGForRanking.from_backbone(plain, proc.model_config(use_path_gate=False))(**batch)


@pytest.mark.parametrize("reading", READINGS)
def test_a_kernel_that_passes_the_gate_by_is_refused_and_the_other_kernel_works(film_dataset, reading, tmp_path):
    proc = processor(film_dataset, **READINGS[reading]).fit(examples(film_dataset))
    plain = backbone()
    plain.set_attn_implementation("eager")
    message = (
        "'eager': the gate changes nothing.*To mend it, load it with attn_implementation='sdpa', or set path_gate"
    )
    with pytest.raises(LKGError, match=message):
        LlamaRecLKGForRanking.from_backbone(plain, proc.model_config())
    plain.save_pretrained(tmp_path)
    off = {"use_evidence_fusion": False, "lm_scale": 1.0}
    ranker = LlamaRecLKGForRanking.from_backbone(tmp_path, proc.model_config(**off), attn_implementation="sdpa")
    assert gate_gradient(ranker, proc(examples(film_dataset))).any()
    with pytest.raises(LKGError, match=message):
        ranker.set_attn_implementation("eager")
    assert ranker.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("reading", READINGS)
def test_where_no_path_is_written_no_gate_is_asked_for(film_dataset, cycle_dataset, reading):
    for dataset, paths in ((film_dataset, {"num_paths": 0}), (cycle_dataset, {})):  # the second has no facts
        proc = processor(dataset, **READINGS[reading], **paths)
        ranker = LlamaRecLKGForRanking.from_backbone(made("falcon", SIZES), proc.model_config())
        assert ranker.score(proc(examples(dataset, count=2))).isfinite().all()


def test_a_backbone_that_needs_the_tokens_themselves_is_not_read_through_embeddings(either, film_dataset):
    """Its layers look the tokens up once more, as those of Gemma 3n do."""
    plain = backbone()
    plain.model.register_forward_pre_hook(
        lambda module, args, inputs: setattr(module, "known", inputs.get("input_ids") is not None), with_kwargs=True
    )
    plain.model.layers[0].register_forward_hook(lambda module, args, out: out if plain.model.known else 2 * out)
    with pytest.raises(LKGError, match="moves by .*% while all gates are 1.*, set path_gate='attention_bias', or set"):
        LlamaRecLKGForRanking.from_backbone(plain, either.model_config(path_gate="straight_through"))
    LlamaRecLKGForRanking.from_backbone(plain, either.model_config())(**either(examples(film_dataset)))


def test_the_gate_is_tried_out_whatever_context_the_ranker_is_built_in(either):
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            LlamaRecLKGForRanking.from_backbone(backbone(), either.model_config())


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
    with pytest.raises(LKGError, match="'flex_attention' takes no mask.*with attn_implementation='sdpa'"):
        AutoModel.from_pretrained(tmp_path / "whole", attn_implementation="flex_attention")


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_kernels_without_masks_and_biases_are_refused_where_those_are_needed(film_dataset, kernel):
    """The rest of the table in examples/train.md; they need not run where the ranker is built."""
    plain = made("llama", {**SIZES, "hidden_size": 64})
    plain.config._attn_implementation = kernel
    with pytest.raises(LKGError, match=f"{kernel}' takes no mask made by others.*candidate_attention='causal'"):
        LlamaRecLKGForRanking.from_backbone(plain, processor(film_dataset).model_config())
    for reading in READINGS.values():
        proc = processor(film_dataset, **reading).fit(examples(film_dataset))
        with pytest.raises(LKGError, match=f"{kernel}', which takes no bias.*'sdpa', or set path_gate='straight_"):
            LlamaRecLKGForRanking.from_backbone(plain, proc.model_config())
        LlamaRecLKGForRanking.from_backbone(plain, proc.model_config(path_gate="straight_through"))


@pytest.mark.parametrize("gate", ["attention_bias", "straight_through"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_not_taken_for_a_fault(either, dtype, gate):
    LlamaRecLKGForRanking.from_backbone(backbone().to(dtype), either.model_config(path_gate=gate))
