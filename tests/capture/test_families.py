"""Every family of models, tiny: what is open, that the sizes are right elsewhere, and FLOPs as torch counts them."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from foretrace.capture import capture_graph
from foretrace.capture.families import position_limits, recipe_of
from foretrace.capture.inputs import Sampler, vision_language, waveform
from foretrace.capture.models import PretrainedModel
from foretrace.capture.phases import make_step
from foretrace.capture.points import config_steps
from foretrace.capture.recorder import Recorder
from foretrace.ir import ForetraceError, GraphError, OpKind, Role, evaluate_dim

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SMALL | {"vocab_size": 120, "num_key_value_heads": 2}
VISION = SMALL | {"image_size": 32, "patch_size": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "bert": SMALL | {"vocab_size": 100, "max_position_embeddings": 64},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 100},
    "vit": VISION,
    "clip": {
        "text_config": SMALL | {"vocab_size": 100, "max_position_embeddings": 50},
        "vision_config": VISION,
        "projection_dim": 32,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "image_size": 64},
    "wav2vec2": SMALL | {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    "whisper": {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "vocab_size": 100,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_source_positions": 50,
        "max_target_positions": 60, "pad_token_id": 0, "decoder_start_token_id": 1, "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "llava": {
        "image_token_index": 119, "text_config": LLAMA | {"model_type": "llama"}, "vision_feature_layer": -1,
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
}  # fmt: skip
FAMILY = {
    "llama": "decoder", "bert": "encoder", "t5": "encoder-decoder", "vit": "image", "clip": "image-text",
    "resnet": "image", "wav2vec2": "audio", "whisper": "speech encoder-decoder", "llava": "vision-language",
}  # fmt: skip
CASES = [(n, "forward") for n in CONFIGS] + [(n, "decode") for n in ("llama", "t5", "whisper", "llava")]
ELSEWHERE = {"batch": 4, "seq": 41, "target": 33, "context": 27, "frames": 77}


def model_of(kind: str, **changes: Any) -> PretrainedModel:
    return PretrainedModel(kind, AutoConfig.for_model(kind, **CONFIGS[kind] | changes), "float32")


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_family_is_that_of_the_configuration(kind: str) -> None:
    assert model_of(kind).family.name == FAMILY[kind]


@pytest.mark.parametrize(("kind", "phase"), CASES)
def test_flops_are_torchs_at_sizes_never_captured(kind: str, phase: str) -> None:
    model = model_of(kind)
    graph = capture_graph(model, phase=phase)
    at = graph.bind({n: v for n, v in ELSEWHERE.items() if n in graph.symbols})
    fixed = {n.removeprefix("fixed."): int(v) for n, v in graph.metadata.items() if n.startswith("fixed.")}
    step = make_step(model.build(None, "sdpa"), model.config, phase, at | fixed, "meta")
    with torch.no_grad(), Recorder(), FlopCounterMode(display=False) as counter:
        step.run()
    assert "batch" in graph.symbols
    assert graph.flops(at) == counter.get_total_flops() > 0


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertLMHeadModel", "BertModel"])
def test_the_architecture_of_the_configuration_is_built(architecture: str) -> None:
    model = model_of("bert", architectures=[architecture], is_decoder=architecture == "BertLMHeadModel")
    assert type(model.build(None, "sdpa")).__name__ == architecture


def test_a_model_nobody_can_feed_says_so() -> None:
    config = AutoConfig.for_model("llama")
    config.__class__ = type("Unknown", (type(config),), {"model_type": "unknown"})
    with pytest.raises(ForetraceError, match="no way is known to feed a 'unknown' model by name"):
        recipe_of("mine", config)


def test_a_position_table_is_the_most_a_graph_answers_for() -> None:
    graph = capture_graph(model_of("bert"))
    assert graph.symbols["seq"].maximum == graph.symbols["seq"].default == 64
    with pytest.raises(GraphError, match="at least 2 and at most 64"):
        graph.bind({"seq": 65})
    with pytest.raises(ForetraceError, match="--seq 65: the model has learned positions for seq of at most 64"):
        capture_graph(model_of("bert"), seq=65)
    whisper = model_of("whisper")
    assert position_limits(whisper.build(None, "sdpa"), whisper.family) == {"target": 60}
    decode = capture_graph(whisper, phase="decode")
    assert decode.symbols["context"].maximum == 59


def test_a_window_is_a_size_in_decode_and_never_passed_over() -> None:
    """A cache of 160 tokens at most: the graph says min(), or refuses to speak for the other side of the window."""
    model = PretrainedModel("m", AutoConfig.for_model("mistral", **LLAMA | {"sliding_window": 160}), "float32")
    assert config_steps(model.config) == [160]
    for context in (16, 300):
        graph = capture_graph(model, phase="decode", context=context)
        for elsewhere in (10, 158, 159, 160, 161, 175, 2000):
            s = graph.symbols["context"]
            if not s.minimum <= elsewhere <= (s.maximum or elsewhere):
                with pytest.raises(GraphError, match="capture it again"):
                    graph.bind({"context": elsewhere})
                continue
            at = graph.bind({"context": elsewhere})
            step = make_step(model.build(None, "sdpa"), model.config, "decode", at | {"seq": 1}, "meta")
            with torch.no_grad(), Recorder(), FlopCounterMode(display=False) as counter:
                step.run()
            assert graph.flops(at) == counter.get_total_flops()


def test_an_image_is_as_large_as_is_asked() -> None:
    usual, large = (capture_graph(model_of("resnet"), dims=d) for d in ({}, {"height": 128, "width": 128}))
    at = {"batch": 2}
    assert large.flops(at, {OpKind.CONVOLUTION}) == 4 * usual.flops(at, {OpKind.CONVOLUTION})
    assert large.metadata["fixed.height"] == "128"


def test_an_encoder_has_no_decode() -> None:
    with pytest.raises(ForetraceError, match="of family encoder keeps no cache; its phases are forward"):
        capture_graph(model_of("bert"), phase="decode")


def test_decode_of_an_encoder_decoder_reads_both_caches() -> None:
    graph = capture_graph(model_of("t5"), phase="decode")
    read = {i for op in graph.ops for i in op.inputs} - {t for op in graph.ops for t in op.outputs}
    lengths = {str(graph.tensors[i].shape[2]) for i in read if graph.tensors[i].role is Role.KV_CACHE}
    assert lengths == {"context", "seq"}


def test_samples_give_whole_frames() -> None:
    model = model_of("wav2vec2")
    root = model.build(None, "sdpa")
    samples = waveform(Sampler(root, model.config, "meta"), {"batch": 1, "frames": 50})["input_values"]
    assert samples.shape == (1, 49 * 320 + 400)  # wav2vec 2.0: a stride of 20 ms, a receptive field of 25 ms
    graph = capture_graph(model)
    convolutions = [op for op in graph.ops if op.kind is OpKind.CONVOLUTION]
    assert evaluate_dim(graph.tensors[convolutions[6].outputs[0]].shape[-1], {"batch": 1, "frames": 50}) == 50


def test_image_tokens_hold_the_place_of_the_image() -> None:
    model = model_of("llava")
    make = Sampler(model.build(None, "sdpa"), model.config, "meta")
    ids = vision_language(make, {"batch": 2, "seq": 5, "height": 32, "width": 32})["input_ids"]
    assert ids.shape == (2, 16 + 5)
    assert (ids == 119).sum(1).tolist() == [16, 16]


def test_no_cache_is_kept_where_only_the_keyword_arguments_take_it() -> None:
    """granitemoehybrid's forward has no argument use_cache; one that it makes all the same would be no forward."""
    config = AutoConfig.for_model(
        "granitemoehybrid", **LLAMA, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=64,
        layer_types=["attention", "attention"],
    )  # fmt: skip
    graph = capture_graph(PretrainedModel("m", config, "float32"))
    assert not any(t.role is Role.KV_CACHE for t in graph.tensors)


def test_a_model_that_cannot_take_its_image_is_captured_with_text_and_says_so() -> None:
    """The default Qwen2-VL: its image features are wider than its text."""
    text = LLAMA | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 8}
    config = AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=vision, image_token_id=119)
    model = PretrainedModel("m", config, "float32")
    graph = capture_graph(model)
    assert not any(op.kind is OpKind.CONVOLUTION for op in graph.ops)
    assert "text alone, no image" in graph.metadata["note.images"]
    assert list(graph.symbols) == ["batch", "seq"]
    with pytest.raises(ForetraceError, match="Image features and image tokens do not match"):
        capture_graph(model, dims={"height": 64, "width": 64})
