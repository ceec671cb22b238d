"""A tiny model from the config class of any architecture: sizes by the name of the field, exceptions as a table."""

import re
from inspect import signature
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, set_seed

# Field name -> size; the first that matches decides. Widths are multiples of 32, so that heads and groups divide them.
SIZES: tuple[tuple[str, Any], ...] = (
    (r".*vocab_size|vocab_size_.*", 120),
    (
        r"num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_decoder_layers|num_encoder_layers",
        2,
    ),
    (r".*num_hidden_layers|.*_num_layers", 2),
    (r".*(num_)?(key_value|kv)_heads", 4),
    (r".*attention_heads|n_heads?|num_heads|.*num_heads", 4),
    (r"head_dim|.*_head_dim|d_kv|attention_head_dim", 8),
    (r"moe_intermediate_size|shared_expert_intermediate_size|expert_.*size", 16),
    (
        r"intermediate_size|.*_intermediate_size|.*ffn_dim|d_ff|n_inner|feed_forward_size|.*ffn_hidden_size",
        64,
    ),
    (
        r"hidden_size|d_model|dim|n_embd|emb_dim|embed_dim|hidden_dim|embedding_size|projection_dim|.*hidden_size",
        32,
    ),
    (
        r"max_position_embeddings|n_positions|max_seq_len|max_sequence_length|n_ctx|seq_length|block_size",
        128,
    ),
    (r"(num|n)_(local_|routed_)?experts", 4),
    (r"num_experts_per_tok", 2),
    (r"image_size", 64),
    (r"codevector_dim|proj_codevector_dim|classifier_proj_size|num_codevectors_per_group", 16),
)
SPECIAL_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
TOKEN_ID = re.compile(r".*_token_id$|.*_token_index$")
LAST_ID, TOKENS = 119, 16

# What the size of a field by its name gets wrong, by model type.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "axk1": {"n_group": 2, "topk_group": 1, "n_routed_experts": 4},
    "axk2": {"n_group": 2, "topk_group": 1, "n_routed_experts": 4},
    "beit": {"out_indices": [2], "out_features": None},
    "bit": {"num_groups": 4, "hidden_sizes": [16, 32, 48, 64], "embedding_size": 16},
    "bros": {
        "hidden_size": 64,
        "dim_bbox_sinusoid_emb_2d": 16,
        "dim_bbox_sinusoid_emb_1d": 2,
        "dim_bbox_projection": 16,
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
        "layer_types": ["full_attention", "full_attention"],
    },
    "cvt": {"depth": [1, 2, 3], "embed_dim": [16, 24, 36], "num_heads": [1, 3, 6]},
    "deepseek_v2": {"n_group": 2, "topk_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {"n_group": 2, "topk_group": 1, "n_routed_experts": 4},
    "dinov2": {"out_indices": [2], "out_features": None},
    "dinov2_with_registers": {"out_indices": [2], "out_features": None},
    "donut-swin": {"embed_dim": 24, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4},
    "efficientnet": {
        "width_coefficient": 0.5,
        "depth_coefficient": 1.0,
        "hidden_dim": 640,
        "num_block_repeats": [1, 1, 1, 1, 1, 1, 1],
    },
    "esm": {"vocab_size": 120, "pad_token_id": 0, "mask_token_id": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "hgnet_v2": {
        "embedding_size": 16,
        "stem_channels": [3, 8, 12],
        "stage_in_channels": [12, 16, 24, 32],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [16, 24, 32, 40],
        "hidden_sizes": [16, 24, 32, 40],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "imagegpt": {"n_positions": 64},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 32},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "ministral": {"head_dim": 8},
    "mistral4": {"head_dim": 16},
    "mobilebert": {
        "embedding_size": 32,
        "intra_bottleneck_size": 32,
        "hidden_size": 64,
        "true_hidden_size": 32,
    },
    "mobilevit": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]},
    "nemotron": {"num_key_value_heads": 4},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_self_attends_per_block": 3,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "pp_lcnet": {"class_expand": 32, "scale": 0.5},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "qwen3_next": {"num_hidden_layers": 4},
    "reformer": {
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [8, 24],
        "max_position_embeddings": 16,
    },
    "swin": {
        "embed_dim": 24,
        "depths": [1, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "out_features": None,
        "out_indices": None,
    },
    "swinv2": {
        "embed_dim": 24,
        "depths": [1, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "out_features": None,
        "out_indices": None,
    },
    "t5": {"decoder_start_token_id": 0},
    "textnet": {"hidden_sizes": [8, 8, 16, 24, 32], "stem_out_channels": 8, "image_size": [64, 64]},
    "wav2vec2-bert": {"feature_projection_input_dim": 16},
    "whisper": {"max_source_positions": 30, "num_mel_bins": 16},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 8,
        "hybrid_layer_ids": [1, 3],
        "chunk_size": 16,
        "use_mamba_kernels": False,
    },
}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny model of a type: its class's defaults, made small field by field."""
    config = AutoConfig.for_model(model_type)
    return type(config)(**{**_shrunk(config), **changes})


def inputs_for(model: Any, modality: str, rows: int = 4) -> dict[str, torch.Tensor]:
    """A batch of random inputs that a tiny model takes."""
    set_seed(0)
    takes = signature(model.forward).parameters
    if modality == "image":
        return _pictures(model.config, takes, rows)
    if modality == "audio":
        return _sounds(model.config, takes, rows)
    words = torch.randint(5, 60, (rows, TOKENS))
    words[:, -1] = SPECIAL_TOKENS["eos_token_id"]  # encoder-decoders read what they say at the end
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    if "bbox" in takes:
        inputs["bbox"] = torch.randint(0, 50, (rows, TOKENS, 4)).sort(dim=-1).values
    if model.config.model_type == "bros":
        inputs["bbox"] = inputs["bbox"][..., [0, 1, 2, 1, 2, 3, 0, 3]].float()
    if model.config.model_type == "perceiver":
        inputs["inputs"] = inputs.pop("input_ids")
    return inputs


def _pictures(config: Any, takes: Any, rows: int) -> dict[str, torch.Tensor]:
    if config.model_type == "imagegpt":  # pixels are words there
        return {"input_ids": torch.randint(0, 100, (rows, 64))}
    if "spatial_shapes" in takes:  # patches that the processor has cut
        patches, side = 16, config.vision_config.patch_size
        return {
            "pixel_values": torch.randn(rows, patches, 3 * side * side),
            "pixel_attention_mask": torch.ones(rows, patches, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * rows),
        }
    size = getattr(getattr(config, "vision_config", config), "image_size", 64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return {
        "pixel_values" if "pixel_values" in takes else "inputs": torch.randn(rows, 3, height, width)
    }


def _sounds(config: Any, takes: Any, rows: int) -> dict[str, torch.Tensor]:
    if "input_features" in takes:
        bands = getattr(config, "feature_projection_input_dim", None)
        shape = (
            (rows, 24, bands)
            if bands
            else (rows, config.num_mel_bins, 2 * config.max_source_positions)
        )
        return {"input_features": torch.randn(shape)}
    if hasattr(config, "num_mel_bins"):
        return {"input_values": torch.randn(rows, config.max_length, config.num_mel_bins)}
    return {"input_values": torch.randn(rows, 4000)}


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            small[name] = _shrunk(part)
        elif name in SPECIAL_TOKENS:
            small[name] = SPECIAL_TOKENS[name]
        elif isinstance(value, int) and not isinstance(value, bool):
            small[name] = _small(name, value)
        elif isinstance(value, list) and value and all(type(v) is int for v in value):
            small[name] = _small_list(name, value)
    return {**small, **EXCEPTIONS.get(config.model_type, {})}


def _small(name: str, value: int) -> int:
    if TOKEN_ID.match(name):
        return min(value, LAST_ID)
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size) if value > 0 else value
    return value


def _small_list(name: str, values: list[int]) -> list[int]:
    if re.search(r"depth|layers|num_blocks", name):
        return [1] * len(values)
    if re.search(r"hidden_sizes|embed_dim|channels|.*_dims?$|neck", name):
        smallest = min(values)
        return [max(8, 16 * value // smallest) if value > 0 else value for value in values]
    return values
