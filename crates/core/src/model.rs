use serde::{Deserialize, Serialize};

/// The architecture of a model, by the `model_type` of its `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the models")]
pub enum Family {
    Bloom,
    Falcon,
    Gemma,
    Gemma2,
    #[serde(rename = "gemma3_text")]
    Gemma3,
    Gpt2,
    GptNeox,
    Llama,
    Mistral,
    Mixtral,
    Opt,
    Phi3,
    Qwen2,
    Qwen3,
    Stablelm,
}

impl Family {
    /// All of them, by name.
    pub const ALL: [Family; 15] = [
        Self::Bloom,
        Self::Falcon,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
        Self::Gpt2,
        Self::GptNeox,
        Self::Llama,
        Self::Mistral,
        Self::Mixtral,
        Self::Opt,
        Self::Phi3,
        Self::Qwen2,
        Self::Qwen3,
        Self::Stablelm,
    ];

    /// Its `model_type`, which messages print.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bloom => "bloom",
            Self::Falcon => "falcon",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Gpt2 => "gpt2",
            Self::GptNeox => "gpt_neox",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Mixtral => "mixtral",
            Self::Opt => "opt",
            Self::Phi3 => "phi3",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Stablelm => "stablelm",
        }
    }

    /// The family of a `model_type`.
    pub fn named(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == model_type)
    }

    /// What the names of a checkpoint's tensors begin with, the head's excepted; files of the bare model leave it out.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Bloom | Self::Falcon | Self::Gpt2 => "transformer.",
            Self::GptNeox => "gpt_neox.",
            _ => "model.",
        }
    }

    /// The name of the learned positions after the prefix, where there are such. They belong to the first block.
    pub fn positions(self) -> Option<&'static str> {
        match self {
            Self::Gpt2 => Some("wpe.weight"),
            Self::Opt => Some("decoder.embed_positions.weight"),
            _ => None,
        }
    }

    /// What the names of block `block_idx`'s tensors begin with, for example `model.layers.3.`.
    pub fn block_prefix(self, block_idx: usize) -> String {
        let blocks = match self {
            Self::Bloom | Self::Falcon | Self::Gpt2 => "h",
            Self::Opt => "decoder.layers",
            _ => "layers",
        };
        format!("{}{blocks}.{block_idx}.", self.prefix())
    }
}

/// The shape of a frozen model, as its `config.json` or its GGUF metadata gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The architecture.
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
    /// Rotary positions; `None` where there are none.
    pub rope: Option<Rope>,
    /// Longest sequence, prompts included, on which the model computes what it should; `None` if nothing is stated.
    pub max_positions: Option<usize>,
    /// What attention does with its scores.
    pub scores: ScoreRule,
    /// What stands between the layers of the MLP.
    pub activation: Activation,
    /// Attention and MLP both read the block's input, and both are added to it; else one after the other.
    pub is_parallel: bool,
    /// A mixture of experts in the place of the MLP.
    pub experts: Option<Experts>,
}

impl ModelConfig {
    /// Numbers of one position's keys, all heads together; values have as many.
    pub fn kv_size(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// A model without peculiarities: as many heads of keys as of queries, heads that make up the hidden state, the
    /// positions and the activation that the family is known for, epsilon 1e-5. What differs is laid over it.
    pub fn plain(
        family: Family,
        n_blocks: usize,
        hidden: usize,
        n_heads: usize,
        ffn: usize,
        vocab_size: usize,
    ) -> Self {
        let head_dim = hidden / n_heads.max(1);
        let has_rope = !matches!(family, Family::Bloom | Family::Gpt2 | Family::Opt);
        let activation = match family {
            Family::Bloom | Family::Gemma | Family::Gemma2 | Family::Gemma3 | Family::Gpt2 => Activation::GeluTanh,
            Family::Falcon | Family::GptNeox => Activation::Gelu,
            Family::Opt => Activation::Relu,
            _ => Activation::Silu,
        };
        Self {
            family,
            n_blocks,
            hidden,
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            ffn,
            vocab_size,
            norm_eps: 1e-5,
            initializer_range: 0.02,
            rope: has_rope.then_some(Rope { theta: 10_000.0, dim: head_dim, scaling: RopeScaling::Default }),
            max_positions: None,
            scores: ScoreRule { alibi: family == Family::Bloom, ..ScoreRule::default() },
            activation,
            is_parallel: false,
            experts: None,
        }
    }
}

/// What a model's attention does with its scores, beyond the causal mask.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreRule {
    /// The factor of the products of queries and keys; `1 / sqrt(head_dim)` if not stated.
    pub scale: Option<f64>,
    /// Whether block `l` divides its scores by `l + 1` besides.
    pub by_block: bool,
    /// `cap tanh(score / cap)` in the place of a score.
    pub cap: Option<f64>,
    /// Scores fall with distance, another slope for each head (ALiBi, arXiv 2108.12409).
    pub alibi: bool,
    /// Blocks that see the nearest positions only.
    pub window: Option<Window>,
}

/// A sliding window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Positions that a query sees, its own included.
    pub size: usize,
    /// Whether block `l` has the window.
    pub blocks: Vec<bool>,
    /// The rotary positions of blocks with the window, where they are others.
    pub rope: Option<Rope>,
}

/// What stands between the layers of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU (arXiv 1606.08415).
    Gelu,
    /// GELU by its approximation with tanh.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// A mixture of experts: each position goes through the `per_token` MLPs that a router scores highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    /// MLPs in a block.
    pub count: usize,
    /// Those that a position goes through.
    pub per_token: usize,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Numbers of a head that turn, its first ones; at most `head_dim`.
    pub dim: usize,
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
    /// LongRoPE (arXiv 2402.13753): every wavelength stretched by a factor of its own. A model has a second list for
    /// sequences beyond its original maximum; as keys would depend on what follows them, Sepal stays within it.
    Longrope {
        /// One for each pair, `short_factor`.
        factors: Vec<f64>,
        /// The factor of queries and keys.
        attention_factor: f64,
    },
}
