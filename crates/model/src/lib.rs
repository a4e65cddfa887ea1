//! A frozen model with its tuning mode and task head: token ids in, logits out.
//!
//! [`Model`] joins the embeddings and the final norm in this process, the [`Blocks`] wherever they run, a tuning mode and a
//! task head. [`Blocks`] is implemented for blocks in this process ([`LocalBlocks`]), for servers
//! ([`RemoteSequential`](sepal_remote::RemoteSequential)) and for the split of the two ([`SplitBlocks`]). This crate reads no
//! files, knows no pipeline and runs no training loop.
//!
//! Invariants: the frozen parts get no gradient; a prediction is finite, or an error that names the origin of the
//! non-finite values.
//!
//! Place in the crate graph: above `blocks`, `remote` and `plugin`; below `train` and `pipeline`.
//!
//! ```
//! use sepal_blocks::{BlockStack, Ends};
//! use sepal_checkpoint::Checkpoint;
//! use sepal_core::{Ragged, Span, Want};
//! use sepal_model::{Blocks, LocalBlocks};
//! use tch::Tensor;
//!
//! let checkpoint = Checkpoint::open(sepal_testkit::tiny::goldens().join("tiny-llama-gqa"))?;
//! let span = Span::new(0, checkpoint.config().n_blocks)?;
//! let blocks = LocalBlocks::new(BlockStack::load(&checkpoint, span)?);
//! let tokens = Ends::load(&checkpoint)?.embed(&Tensor::from_slice(&[1_i64, 2, 3]))?; // [n_tokens, hidden]
//!
//! let session = blocks.tune(Vec::new())?;
//! let pooled = session.forward(None, &tokens, &Ragged::from_lengths([2, 1])?, Want::LastOfRows)?;
//! assert_eq!(pooled.size(), [2, checkpoint.config().hidden as i64]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blocks;
mod error;
mod model;
mod non_finite;
mod repeat;
mod rounding;

pub use blocks::{Blocks, BlocksError, BlocksSession, LocalBlocks, SplitBlocks};
pub use error::{ForwardError, list_rows};
pub use model::Model;
pub use non_finite::NonFiniteOrigin;
pub use repeat::{Repeatable, without_liars};
