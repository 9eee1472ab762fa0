"""The list of `transformers` architectures, by family, each in the smallest size that still has every part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from architectures import (
    BOTH,
    DECODER,
    ENCODER,
    GROUPED,
    IMAGES,
    LEFT_OUT,
    MIXTURE,
    PATCHES,
    RELATIVE,
    SEQUENCES,
    SOUND,
    STATES,
    TEXT,
    TOKENS,
    VISION,
    Case,
    Row,
    noise,
    pixels,
    plain_text,
    text,
    tokens,
)

_WINDOW = {"sliding_window": 8}
_MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
}
_BLOCKS = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
_TOWERS = {
    "text_config": TEXT | {"projection_dim": 32},
    "vision_config": VISION | {"projection_dim": 32},
    "projection_dim": 32,
}


def features(bins: int, fixed: int = 0) -> Any:
    """Spectrograms, bins last unless their length is fixed, and the tokens of a decoder."""

    def inputs(batch: int, length: int) -> dict[str, Any]:
        shape = (batch, bins, fixed) if fixed else (batch, length, bins)
        return {"input_features": noise(*shape), "decoder_input_ids": tokens(batch, length - 3)}

    return inputs


def spectrogram(batch: int, length: int) -> dict[str, Any]:
    """A spectrogram under the name of a sound."""
    return {"input_values": noise(batch, length, 16)}


def frames(batch: int, length: int) -> dict[str, Any]:
    """A spectrogram for a model that has no decoder."""
    return {"input_features": noise(batch, length // 40, 16)}


def images_in_text(batch: int, length: int) -> dict[str, Any]:
    """Tokens of which 16 stand for the patches of an image."""
    ids = tokens(batch, 16 + length)
    ids[:, 1:17] = 3
    return {"input_ids": ids} | pixels(batch, 32)


def boxes(batch: int, length: int) -> dict[str, Any]:
    """Tokens and where they stand on a page."""
    corner = tokens(batch, length, seed=2)
    box = _boxes(corner)
    return text(batch, length) | {"bbox": box}


def _boxes(corner: Any) -> Any:
    """Boxes from one corner each."""
    return (corner.unsqueeze(-1) + corner.new_tensor([0, 0, 3, 5])).clamp(max=TOKENS - 1)


ROWS: dict[str, tuple[Row, ...]] = {
    "encoder": (
        Row("BertForMaskedLM", ENCODER),
        Row("RobertaForMaskedLM", ENCODER),
        Row("DistilBertForMaskedLM", ENCODER, {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
        Row("AlbertForMaskedLM", ENCODER, {"embedding_size": 16}),
        Row("ElectraForMaskedLM", ENCODER, {"embedding_size": 16}),
        Row("DebertaV2ForMaskedLM", ENCODER, {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}),
        Row("DebertaForMaskedLM", ENCODER, {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        Row("MPNetForMaskedLM", ENCODER),
        Row("ModernBertForMaskedLM", ENCODER, {"global_attn_every_n_layers": 2, "local_attention": 8}),
        Row("XLNetLMHeadModel", ENCODER, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "use_mems_eval": False, "max_position_embeddings": LEFT_OUT}),
        Row("FunnelForMaskedLM", ENCODER, {"block_sizes": [1, 1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "num_hidden_layers": LEFT_OUT, "hidden_size": LEFT_OUT, "num_attention_heads": LEFT_OUT}),
        Row("LongformerForMaskedLM", ENCODER, {"attention_window": 4}),
        Row("BigBirdForMaskedLM", ENCODER, {"attention_type": "original_full"}),
        Row("FNetForMaskedLM", ENCODER, takes=plain_text),
        Row("ConvBertForMaskedLM", ENCODER, {"embedding_size": 16, "conv_kernel_size": 3, "num_groups": 2}),
        Row("SqueezeBertForMaskedLM", ENCODER, {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2, "intermediate_groups": 2, "output_groups": 2}),
        Row("MobileBertForMaskedLM", ENCODER, {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}),
        Row("RoFormerForMaskedLM", ENCODER, {"embedding_size": 32}),
        Row("NystromformerForMaskedLM", ENCODER, {"num_landmarks": 12, "segment_means_seq_len": 12}),
        Row("RemBertForMaskedLM", ENCODER, {"input_embedding_size": 16, "output_embedding_size": 24}),
        Row("EsmForMaskedLM", ENCODER, {"position_embedding_type": "rotary"}),
        Row("LayoutLMForMaskedLM", ENCODER, {"max_2d_position_embeddings": 128}, takes=boxes),
    ),
    "decoder": (
        Row("GPT2LMHeadModel", DECODER, {"n_inner": 64}),
        Row("GPTNeoForCausalLM", DECODER, {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8, "num_hidden_layers": LEFT_OUT}),
        Row("GPTNeoXForCausalLM", DECODER),
        Row("GPTJForCausalLM", DECODER, {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
        Row("GPTBigCodeForCausalLM", DECODER, {"n_inner": 64}),
        Row("OPTForCausalLM", DECODER, {"ffn_dim": 64, "word_embed_proj_dim": 16}),
        Row("BloomForCausalLM", DECODER, {"n_layer": 2, "n_head": 4}),
        Row("FalconForCausalLM", DECODER),
        Row("MptForCausalLM", DECODER, {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
        Row("CodeGenForCausalLM", DECODER, {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
        Row("CTRLLMHeadModel", DECODER, {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64}),
        Row("LlamaForCausalLM", DECODER, GROUPED),
        Row("MistralForCausalLM", DECODER, GROUPED | _WINDOW | {"head_dim": 8}),
        Row("Qwen2ForCausalLM", DECODER, GROUPED),
        Row("Qwen3ForCausalLM", DECODER, GROUPED | {"head_dim": 8}),
        Row("GemmaForCausalLM", DECODER, GROUPED | {"head_dim": 8}),
        Row("Gemma2ForCausalLM", DECODER, GROUPED | _WINDOW | {"head_dim": 8}),
        Row("Gemma3ForCausalLM", DECODER, GROUPED | _WINDOW | {"head_dim": 8}),
        Row("PhiForCausalLM", DECODER),
        Row("Phi3ForCausalLM", DECODER, GROUPED),
        Row("StableLmForCausalLM", DECODER, GROUPED),
        Row("OlmoForCausalLM", DECODER, GROUPED),
        Row("Olmo2ForCausalLM", DECODER, GROUPED),
        Row("CohereForCausalLM", DECODER, GROUPED),
        Row("Starcoder2ForCausalLM", DECODER, GROUPED),
        Row("GlmForCausalLM", DECODER, GROUPED | {"head_dim": 8}),
        Row("GraniteForCausalLM", DECODER, GROUPED),
        Row("NemotronForCausalLM", DECODER, GROUPED),
        Row("SmolLM3ForCausalLM", DECODER, GROUPED),
        Row("PersimmonForCausalLM", DECODER),
        Row("DiffLlamaForCausalLM", DECODER, GROUPED),
        Row("XGLMForCausalLM", DECODER, {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "num_hidden_layers": LEFT_OUT}),
        Row("BioGptForCausalLM", DECODER, {"layerdrop": 0.0}),
        Row("BitNetForCausalLM", DECODER, GROUPED),
    ),
    "encoder-decoder": (
        Row("T5ForConditionalGeneration", RELATIVE),
        Row("LongT5ForConditionalGeneration", RELATIVE, {"local_radius": 4, "global_block_size": 4}),
        Row("UMT5ForConditionalGeneration", RELATIVE),
        Row("BartForConditionalGeneration", SEQUENCES),
        Row("PegasusForConditionalGeneration", SEQUENCES),
        Row("MBartForConditionalGeneration", SEQUENCES),
        Row("MarianMTModel", SEQUENCES),
        Row("BlenderbotForConditionalGeneration", SEQUENCES),
        Row("LEDForConditionalGeneration", SEQUENCES, {"attention_window": [4, 4], "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}),
        Row("ProphetNetForConditionalGeneration", SEQUENCES, {"hidden_size": 32, "d_model": LEFT_OUT, "encoder_layers": LEFT_OUT, "decoder_layers": LEFT_OUT, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "disable_ngram_loss": True, "ngram": 2}),
        Row("M2M100ForConditionalGeneration", SEQUENCES, {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}),
        Row("BigBirdPegasusForConditionalGeneration", SEQUENCES, {"attention_type": "original_full"}),
    ),
    "mixture of experts": (
        Row("MixtralForCausalLM", DECODER, GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
        Row("Qwen2MoeForCausalLM", DECODER, MIXTURE | {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32}),
        Row("Qwen3MoeForCausalLM", DECODER, MIXTURE | {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
        Row("OlmoeForCausalLM", DECODER, GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
        Row("DeepseekV2ForCausalLM", DECODER, _MLA),
        Row("DeepseekV3ForCausalLM", DECODER, _MLA),
        Row("GptOssForCausalLM", DECODER, GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8}),
        Row("GraniteMoeForCausalLM", DECODER, GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
        Row("JetMoeForCausalLM", DECODER, {"num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": LEFT_OUT}),
        Row("Glm4MoeForCausalLM", DECODER, MIXTURE | {"n_routed_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "n_group": 1, "topk_group": 1}),
        Row("SwitchTransformersForConditionalGeneration", RELATIVE, {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 16}),
    ),
    "vision": (
        Row("ViTForImageClassification", PATCHES),
        Row("DeiTForImageClassification", PATCHES),
        Row("BeitForImageClassification", PATCHES),
        Row("Dinov2ForImageClassification", PATCHES, {"mlp_ratio": 2}),
        Row("SwinForImageClassification", PATCHES, {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 4, "num_hidden_layers": LEFT_OUT, "hidden_size": LEFT_OUT, "num_attention_heads": LEFT_OUT}),
        Row("Swinv2ForImageClassification", PATCHES, {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 4, "num_hidden_layers": LEFT_OUT, "hidden_size": LEFT_OUT, "num_attention_heads": LEFT_OUT}),
        Row("ConvNextForImageClassification", IMAGES, _BLOCKS),
        Row("ConvNextV2ForImageClassification", IMAGES, _BLOCKS),
        Row("ResNetForImageClassification", IMAGES, _BLOCKS | {"embedding_size": 16}),
        Row("BitForImageClassification", IMAGES, {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_groups": 4}),
        Row("RegNetForImageClassification", IMAGES, _BLOCKS | {"embedding_size": 16, "groups_width": 8}),
        Row("MobileNetV1ForImageClassification", IMAGES, {"depth_multiplier": 0.25, "min_depth": 8, "classifier_dropout_prob": 0.1}, scaled=True),
        Row("MobileNetV2ForImageClassification", IMAGES, {"depth_multiplier": 0.25, "min_depth": 8, "classifier_dropout_prob": 0.1}, scaled=True),
        Row("MobileViTForImageClassification", IMAGES, {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_attention_heads": 2}, scaled=True),
        Row("EfficientNetForImageClassification", IMAGES, {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}, scaled=True),
        Row("SegformerForSemanticSegmentation", IMAGES, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16, "drop_path_rate": 0.0}, name="segformer"),
        Row("PoolFormerForImageClassification", IMAGES, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "drop_path_rate": 0.0}),
        Row("CvtForImageClassification", IMAGES, {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "drop_path_rate": [0.0, 0.0, 0.0]}),
        Row("DetrForObjectDetection", IMAGES, {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_config": {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage4"]}, "d_model": 32, "num_queries": 6, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}, name="detr"),
        Row("PerceiverForImageClassificationLearned", PATCHES, {**dict.fromkeys(VISION, LEFT_OUT), "image_size": 32, "num_latents": 8, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 2, "num_self_attention_heads": 4, "num_cross_attention_heads": 4}, name="perceiver"),
    ),
    "speech": (
        Row("Wav2Vec2ForCTC", SOUND),
        Row("HubertForCTC", SOUND),
        Row("WavLMForCTC", SOUND),
        Row("UniSpeechSatForCTC", SOUND),
        Row("SEWForCTC", SOUND, {"squeeze_factor": 2}),
        Row("Data2VecAudioForCTC", SOUND, {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}),
        Row("WhisperForConditionalGeneration", SEQUENCES, {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64}, takes=features(16, 40)),
        Row("Speech2TextForConditionalGeneration", SEQUENCES, {"input_feat_per_channel": 16, "conv_channels": 32, "num_conv_layers": 2, "max_source_positions": 64, "max_target_positions": 64}, name="speech_to_text", takes=features(16)),
        Row("ASTForAudioClassification", PATCHES, {"max_length": 32, "num_mel_bins": 16, "patch_size": 8, "image_size": LEFT_OUT}, name="audio_spectrogram", takes=spectrogram),
        Row("Wav2Vec2BertForCTC", SOUND, {"feature_projection_input_dim": 16, "hidden_act": "swish"}, name="wav2vec2_bert", takes=frames),
    ),
    "state space": (
        Row("MambaForCausalLM", STATES, {"hidden_size": 64, "state_size": 8}),
        Row("Mamba2ForCausalLM", STATES, {"hidden_size": 64, "state_size": 8, "head_dim": 16, "num_heads": 8, "n_groups": 2, "chunk_size": 8, "num_attention_heads": LEFT_OUT}),
        Row("FalconMambaForCausalLM", STATES, {"hidden_size": 64, "state_size": 8}),
        Row("RwkvForCausalLM", STATES, {"attention_hidden_size": 32, "context_length": 64}),
        Row("RecurrentGemmaForCausalLM", STATES, {"num_hidden_layers": 3, "num_key_value_heads": 1, "attention_window_size": 8, "lru_width": 32}),
        Row("BambaForCausalLM", STATES, {"hidden_size": 64, "num_key_value_heads": 2, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}),
        Row("Zamba2ForCausalLM", STATES, {"hidden_size": 64, "layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "n_mamba_heads": 8, "chunk_size": 8, "adapter_rank": 4, "num_key_value_heads": 4, "use_mamba_kernels": False}),
        Row("JambaForCausalLM", STATES, {"hidden_size": 64, "num_key_value_heads": 2, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False}),
    ),
    "multimodal": (
        Row("CLIPModel", BOTH, _TOWERS),
        Row("SiglipModel", BOTH, {"text_config": TEXT, "vision_config": VISION}),
        Row("BlipForImageTextRetrieval", BOTH, {"text_config": TEXT | {"encoder_hidden_size": 32, "projection_dim": 32}, "vision_config": VISION, "projection_dim": 32, "image_text_hidden_size": 16}, name="blip"),
        Row("ViltModel", BOTH, TEXT | VISION),
        Row("LlavaForConditionalGeneration", BOTH, {"text_config": TEXT | GROUPED | {"model_type": "llama"}, "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 32}, "image_token_index": 3, "vision_feature_select_strategy": "default", "vision_feature_layer": -1}, takes=images_in_text),
        Row("FlavaModel", BOTH, {"text_config": TEXT, "image_config": VISION, "multimodal_config": TEXT, "hidden_size": 32, "projection_dim": 32}),
    ),
}  # fmt: skip


def transformers_cases() -> Iterator[Case]:
    """One case for each line."""
    for family, rows in ROWS.items():
        for row in rows:
            yield row.case(family)
