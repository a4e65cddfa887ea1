"""The step that all peers compute: 32 sentences with 16 virtual tokens, on a Llama of SmolLM2-135M's shape."""

# As in benches/speed/step.rs.
LENGTHS = [12, 7, 3, 26, 8, 19, 13, 5, 40, 11, 7, 21, 3, 16, 12, 31,
           8, 3, 23, 10, 12, 7, 26, 5, 18, 12, 3, 25, 11, 6, 16, 7]
VIRTUAL_TOKENS = 16
CONFIG = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192, "pad_token_id": 0,
}
