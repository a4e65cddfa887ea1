use sepal_core::Family;

/// The defaults of a family's configuration class in transformers 5.23, for keys that a file leaves out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Class {
    /// `vocab_size`
    pub(crate) vocab_size: usize,
    /// `hidden_size`
    pub(crate) hidden: usize,
    /// `intermediate_size`; four times the hidden size where there is none.
    pub(crate) ffn: Option<usize>,
    /// `num_hidden_layers`
    pub(crate) n_blocks: usize,
    /// `num_attention_heads`
    pub(crate) n_heads: usize,
    /// `num_key_value_heads`; as many as query heads where there is none.
    pub(crate) n_kv_heads: Option<usize>,
    /// `head_dim`; a head's share of the hidden size where there is none.
    pub(crate) head_dim: Option<usize>,
    /// The epsilon of norms.
    pub(crate) norm_eps: f64,
    /// `max_position_embeddings`
    pub(crate) max_positions: usize,
    /// The base of rotary positions.
    pub(crate) theta: f64,
}

impl Class {
    pub(crate) const fn of(family: Family) -> Self {
        let llama = Self {
            vocab_size: 32_000,
            hidden: 4096,
            ffn: Some(11_008),
            n_blocks: 32,
            n_heads: 32,
            n_kv_heads: None,
            head_dim: None,
            norm_eps: 1e-6,
            max_positions: 2048,
            theta: 10_000.0,
        };
        let mistral = Self { ffn: Some(14_336), n_kv_heads: Some(8), max_positions: 131_072, ..llama };
        let qwen2 =
            Self { vocab_size: 151_936, ffn: Some(22_016), n_kv_heads: Some(32), max_positions: 32_768, ..llama };
        let gemma = Self {
            vocab_size: 256_000,
            hidden: 3072,
            ffn: Some(24_576),
            n_blocks: 28,
            n_heads: 16,
            n_kv_heads: Some(16),
            head_dim: Some(256),
            max_positions: 8192,
            ..llama
        };
        let gemma2 = Self { hidden: 2304, ffn: Some(9216), n_blocks: 26, n_heads: 8, n_kv_heads: Some(4), ..gemma };
        // Those with LayerNorms.
        let layer_norms = Self { ffn: None, norm_eps: 1e-5, ..llama };
        match family {
            Family::Mistral => mistral,
            Family::Mixtral => Self { norm_eps: 1e-5, theta: 1_000_000.0, ..mistral },
            Family::Qwen2 => qwen2,
            Family::Qwen3 => Self { head_dim: Some(128), ..qwen2 },
            Family::Gemma => gemma,
            Family::Gemma2 => gemma2,
            Family::Gemma3 => Self { vocab_size: 262_208, max_positions: 131_072, theta: 1_000_000.0, ..gemma2 },
            Family::Phi3 => {
                Self { vocab_size: 32_064, hidden: 3072, ffn: Some(8192), norm_eps: 1e-5, max_positions: 4096, ..llama }
            }
            Family::Stablelm => Self {
                vocab_size: 50_304,
                hidden: 2560,
                ffn: Some(6912),
                n_kv_heads: Some(32),
                max_positions: 4096,
                ..layer_norms
            },
            Family::Falcon => Self { vocab_size: 65_024, hidden: 4544, n_heads: 71, ..layer_norms },
            Family::GptNeox => {
                Self { vocab_size: 50_432, hidden: 6144, ffn: Some(24_576), n_blocks: 44, n_heads: 64, ..layer_norms }
            }
            Family::Bloom => Self { vocab_size: 250_880, hidden: 64, n_blocks: 2, n_heads: 8, ..layer_norms },
            Family::Gpt2 => {
                Self { vocab_size: 50_257, hidden: 768, n_blocks: 12, n_heads: 12, max_positions: 1024, ..layer_norms }
            }
            Family::Opt => {
                Self { vocab_size: 50_272, hidden: 768, ffn: Some(3072), n_blocks: 12, n_heads: 12, ..layer_norms }
            }
            // Llama, and what has no defaults of its own.
            _ => llama,
        }
    }
}
