use serde::{Deserialize, Serialize};

/// Declares [`Family`] from one line for each family: the variant and its `model_type`.
macro_rules! families {
    ($($variant:ident = $name:literal,)*) => {
        /// The architecture of a model, by the `model_type` of its `config.json`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "the names are those of the models")]
        pub enum Family {
            $(#[serde(rename = $name)] $variant,)*
        }

        impl Family {
            /// All families, by name.
            pub const ALL: [Family; [$($name),*].len()] = [$(Self::$variant),*];

            /// The `model_type` of the family.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

families! {
    Bloom = "bloom",
    Cohere = "cohere",
    Cohere2 = "cohere2",
    Falcon = "falcon",
    Gemma = "gemma",
    Gemma2 = "gemma2",
    Gemma3 = "gemma3_text",
    Glm = "glm",
    Glm4 = "glm4",
    Gpt2 = "gpt2",
    GptNeox = "gpt_neox",
    GptOss = "gpt_oss",
    Granite = "granite",
    Llama = "llama",
    Mistral = "mistral",
    Mixtral = "mixtral",
    Olmo2 = "olmo2",
    Olmo3 = "olmo3",
    Opt = "opt",
    Phi3 = "phi3",
    Phimoe = "phimoe",
    Qwen2 = "qwen2",
    Qwen2Moe = "qwen2_moe",
    Qwen3 = "qwen3",
    Qwen3Moe = "qwen3_moe",
    Smollm3 = "smollm3",
    Stablelm = "stablelm",
}

impl Family {
    /// The family of a `model_type`.
    pub fn named(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == model_type)
    }
}

/// Most blocks of a model, far above those of any. Peers and files that state more are refused.
pub const MAX_BLOCKS: usize = 4096;

/// Greatest size of a hidden state, far above that of any model.
pub const MAX_HIDDEN: usize = 1 << 20;

/// The shape of a frozen model, read from `config.json` or GGUF metadata.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Number of transformer blocks.
    pub n_blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key heads and of value heads; `n_heads` without grouped queries.
    pub n_kv_heads: usize,
    /// Size of one head.
    pub head_dim: usize,
    /// Inner size of the MLP, or of each expert of a mixture.
    pub ffn: usize,
    /// Number of rows of the embedding matrix.
    pub vocab_size: usize,
    /// Epsilon of RMSNorm or LayerNorm.
    pub norm_eps: f64,
    /// Standard deviation of the model's initial weights; 0.02 if the configuration does not state it.
    pub initializer_range: f64,
    /// Rotary embedding, if the model has one.
    pub rope: Option<Rope>,
    /// For each block, true if it has no positions; empty if all blocks have those of the model. Digests of models are made
    /// of the serialized configuration, so a part that only some families have is left out where it is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unrotated_blocks: Vec<bool>,
    /// True if queries and keys have norms with a weight for each head, in a family of which only some models have them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_head_norms: bool,
    /// Longest supported sequence, prompts included; `None` without a stated limit.
    pub max_positions: Option<usize>,
    /// Treatment of attention scores.
    pub scores: ScoreRule,
    /// Activation of the MLP.
    pub activation: Activation,
    /// True if attention and MLP both read the block's input and are both added to it; false if they are sequential.
    pub is_parallel: bool,
    /// Mixture of experts, if it replaces the MLP.
    pub experts: Option<Experts>,
    /// Constant factors, if the model has some.
    #[serde(default, skip_serializing_if = "Factors::are_absent")]
    pub factors: Factors,
}

impl ModelConfig {
    /// Size of one position's keys over all heads; values have the same size.
    pub fn kv_size(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// A model of these sizes with the usual parts: one key head for each query head, heads that make up the hidden
    /// state, rotary positions of base 10,000, SiLU, epsilon 1e-5.
    pub fn plain(
        family: Family,
        n_blocks: usize,
        hidden: usize,
        n_heads: usize,
        ffn: usize,
        vocab_size: usize,
    ) -> Self {
        let head_dim = hidden / n_heads.max(1);
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
            rope: Some(Rope { theta: 10_000.0, dim: head_dim, scaling: RopeScaling::Default }),
            unrotated_blocks: Vec::new(),
            has_head_norms: false,
            max_positions: None,
            scores: ScoreRule::default(),
            activation: Activation::Silu,
            is_parallel: false,
            experts: None,
            factors: Factors::default(),
        }
    }
}

/// Constant factors of hidden states and logits; `None` stands for 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Factors {
    /// Factor of embeddings and prompts before the first block.
    pub embedding: Option<f64>,
    /// Factor of the outputs of attention and MLP before they are added to their input.
    pub residual: Option<f64>,
    /// Factor of the logits of the language model.
    pub logits: Option<f64>,
}

impl Factors {
    fn are_absent(&self) -> bool {
        *self == Self::default()
    }
}

/// Treatment of attention scores beyond the causal mask.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreRule {
    /// Factor of the products of queries and keys; `1 / sqrt(head_dim)` if `None`.
    pub scale: Option<f64>,
    /// True if block `l` also divides its scores by `l + 1`.
    pub by_block: bool,
    /// Soft cap: scores become `cap tanh(score / cap)`.
    pub cap: Option<f64>,
    /// True if scores fall with distance, with a slope for each head (ALiBi, arXiv 2108.12409).
    pub alibi: bool,
    /// Sliding window of some blocks.
    pub window: Option<Window>,
}

/// Sliding-window attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Number of positions that a query sees, its own included.
    pub size: usize,
    /// For each block, true if it has the window.
    pub blocks: Vec<bool>,
    /// Rotary embedding of blocks with the window, if it differs from that of the others.
    pub rope: Option<Rope>,
}

/// Activation between the layers of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// `x sigmoid(alpha x)` of `x` up to `limit`. In a gated MLP the other half is limited to `-limit..limit`, and 1 is added
    /// to it.
    ClampedSwiglu {
        /// Factor within the sigmoid.
        alpha: f64,
        /// Limit of both halves.
        limit: f64,
    },
}

/// A mixture of experts: each position passes the `per_token` MLPs with the highest router scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Experts {
    /// Number of MLPs in a block.
    pub count: usize,
    /// Number of MLPs that a position passes.
    pub per_token: usize,
    /// True if the weights of the chosen MLPs are parts of the softmax of all scores, so that they sum up to less than 1;
    /// false if they are the softmax of their own scores.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_softmax_of_all: bool,
    /// Inner size of an MLP that all positions pass as well, times the sigmoid of a gate, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_ffn: Option<usize>,
    /// Jitter of a SparseMixer (arXiv 2409.12136), if it weights the two chosen MLPs: each by its part of a softmax of the
    /// scores that were not chosen before it and are close to its own. A score `s` is close to the score `m` of a chosen MLP
    /// if `(m - s) / max(m, |s|)` is at most twice the jitter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse_mixer: Option<f64>,
}

impl Experts {
    /// A mixture of `count` MLPs with the softmax of the `per_token` highest scores, and no shared MLP.
    pub fn new(count: usize, per_token: usize) -> Self {
        Self { count, per_token, is_softmax_of_all: false, shared_ffn: None, sparse_mixer: None }
    }

    /// Inner size of `n` of the MLPs, each of the inner size `ffn`, and of the shared one together.
    pub fn inner_size(&self, n: usize, ffn: usize) -> usize {
        n * ffn + self.shared_ffn.unwrap_or(0)
    }
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Number of leading dimensions of a head that rotate; at most `head_dim`.
    pub dim: usize,
    /// Scaling of the wavelengths.
    pub scaling: RopeScaling,
}

/// Scaling of a rotary embedding, named as `rope_type` in `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "rope_type")]
pub enum RopeScaling {
    /// Unscaled wavelengths.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor of positions.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths multiplied by `factor`, short ones unscaled, a ramp between.
    Llama3 {
        /// Factor of long wavelengths.
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
        /// Factor of interpolation.
        factor: f64,
        /// `beta_fast`, 32 by default.
        beta_fast: f64,
        /// `beta_slow`, 1 by default.
        beta_slow: f64,
        /// `original_max_position_embeddings`.
        original_max_positions: usize,
        /// `attention_factor`; `0.1 ln(factor) + 1` if not stated.
        attention_factor: Option<f64>,
        /// True if the ramp begins and ends between pairs of dimensions, `truncate: false`; false if it is rounded outwards
        /// to whole pairs.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_untruncated: bool,
    },
    /// LongRoPE (arXiv 2402.13753): a factor for each wavelength. Models have a second list for sequences beyond their
    /// original maximum. It is not used: keys would depend on the positions that follow them.
    Longrope {
        /// Factor of each pair of dimensions, `short_factor`.
        factors: Vec<f64>,
        /// Factor of queries and keys.
        attention_factor: f64,
    },
}
