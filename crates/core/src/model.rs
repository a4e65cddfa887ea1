use serde::{Deserialize, Serialize};

/// The architecture of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// RoPE, grouped-query attention, RMSNorm, SwiGLU; biases wherever the checkpoint has them
    /// (so Llama, Mistral without sliding windows, Qwen2).
    Llama,
    /// ALiBi, LayerNorm, fused QKV, GELU (tanh), an embedding LayerNorm.
    Bloom,
}

impl Family {
    /// The name as messages print it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Bloom => "bloom",
        }
    }
}

/// The shape of a frozen model, as its `config.json` or its GGUF metadata gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The architecture of its blocks.
    pub family: Family,
    /// Number of transformer blocks.
    pub n_blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; `n_heads` if queries are not grouped.
    pub n_kv_heads: usize,
    /// Size of one head.
    pub head_dim: usize,
    /// Inner size of the MLP.
    pub ffn: usize,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Epsilon of RMSNorm or LayerNorm.
    pub norm_eps: f64,
    /// Standard deviation that the model's weights were initialised with; 0.02 if not stated.
    pub initializer_range: f64,
    /// Rotary positions; `None` where the family has none.
    pub rope: Option<Rope>,
    /// Longest sequence that the model was made for, if stated.
    pub max_positions: Option<usize>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How the wavelengths are stretched.
    pub scaling: RopeScaling,
}

/// The scaling variants of rotary positions, named as `rope_type` in `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "rope_type")]
pub enum RopeScaling {
    /// Wavelengths as they are.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// `low_freq_factor`.
        low_freq_factor: f64,
        /// `high_freq_factor`.
        high_freq_factor: f64,
        /// `original_max_position_embeddings`.
        original_max_positions: usize,
    },
    /// YaRN (arXiv 2309.00071): a ramp between interpolated and kept wavelengths, and scaled scores.
    Yarn {
        /// The stretch.
        factor: f64,
        /// `beta_fast`, 32 by default.
        beta_fast: f64,
        /// `beta_slow`, 1 by default.
        beta_slow: f64,
        /// `original_max_position_embeddings`.
        original_max_positions: usize,
        /// `attention_factor`; `0.1 ln(factor) + 1` if not stated.
        attention_factor: Option<f64>,
    },
}
