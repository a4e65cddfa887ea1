//! Frozen transformer blocks on ragged batches with a shared prefix, differentiable in everything but the weights.
//!
//! The crate does not train, does no networking and opens no files: weights come through [`Weights`]. It builds on
//! `autograd`, `checkpoint`, `nn` and `core`, and serves `model`, `server`, `peft` and `pipeline`.
//!
//! - [`BlockStack`] runs consecutive blocks, for one caller or for several at once.
//! - [`Ends`] has the embeddings before the first block, of which large ones stay in their file, and the norm after the last.
//! - [`Injected`] holds trainable tensors that change the blocks at named sites.
//! - A [`Tape`] holds the tensors for one backward pass, a [`PrefixCache`] the keys and values of a prefix.
//!
//! Invariants: weights never require gradients. The output of a row depends on the prefix and on that row only, so a batch
//! equals its rows one by one, in any order. The prefix is computed once per call, for any number of rows. Linear layers
//! run on exactly `prefix_len + n_tokens` positions.
//!
//! ```
//! # use sepal_blocks::{BlockStack, BoxError, Ends, Weights};
//! # use sepal_core::{Family, HostTensor, ModelConfig, Ragged, Span, Want};
//! # struct Random(ModelConfig);
//! # impl Weights for Random {
//! #     fn config(&self) -> &ModelConfig { &self.0 }
//! #     fn has(&self, _: &str) -> bool { false }
//! #     fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
//! #         let shape = match name.rsplit('.').nth(1) {
//! #             Some("q_proj" | "o_proj") => vec![8, 8],
//! #             Some("k_proj" | "v_proj") => vec![4, 8],
//! #             Some("gate_proj" | "up_proj") => vec![12, 8],
//! #             Some("down_proj") => vec![8, 12],
//! #             Some("embed_tokens") => vec![32, 8],
//! #             _ => vec![8],
//! #         };
//! #         let numbers: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32).sin()).collect();
//! #         Ok(HostTensor::from_f32(shape, &numbers)?)
//! #     }
//! # }
//! # let plain = ModelConfig::plain(Family::Llama, 2, 8, 2, 12, 32);
//! # let checkpoint = Random(ModelConfig { n_kv_heads: 1, ..plain });
//! use tch::Tensor;
//!
//! let ends = Ends::load(&checkpoint)?;
//! let blocks = BlockStack::load(&checkpoint, Span::new(0, 2)?)?;
//!
//! let rows = Ragged::from_lengths([3, 1])?;
//! let prompts = ends.embeddings().rows(&[0, 1])?.set_requires_grad(true); // [prefix_len, hidden]
//! let text = ends.embed(&Tensor::from_slice(&[5_i64, 6, 7, 5]))?; // [n_tokens, hidden]
//! let hidden = Tensor::cat(&[ends.embed_prompts(&prompts)?, text], 0);
//! let last = blocks.forward(&hidden, 2, &rows, &[], Want::LastOfRows)?;
//! let last = ends.final_norm(&last)?; // [rows, hidden]
//! assert_eq!(last.size(), [2, 8]);
//!
//! last.sum(tch::Kind::Float).backward();
//! assert_eq!(prompts.grad().size(), [2, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapters;
mod attention;
mod embedding;
mod ends;
mod exec;
mod families;
mod layers;
mod loading;
mod prefix_cache;
mod segment;
mod stack;
mod tensor_bytes;
mod weights;

pub use adapters::{Injected, TunableError, check_tunables, tunable_names};
pub use ends::{Ends, EndsError};
pub use exec::batch::{Batch, BatchGrads, BatchOutput, GradOptions, InputGrad, Prefix, PrefixCache, SaveMode};
pub use exec::call_memory::{CallMemory, Passes};
pub use exec::cancel::Cancel;
pub use exec::tape::Tape;
pub use loading::{loading_bytes, weight_bytes};
pub use prefix_cache::KeysValues;
pub use stack::{BlockStack, ForwardError};
pub use weights::{BoxError, LoadError, Placement, Weights};
