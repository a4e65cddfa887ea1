//! Frozen blocks on other machines as one differentiable operation.
//!
//! [`RemoteSequential`] connects to servers that together hold all blocks, sends ragged batches through them and attaches
//! the result to the libtorch graph, so the training loop is the usual one with `loss.backward()`. It knows nothing of
//! text, heads and optimizers. Above it, the training loop calls it; beneath it, `route` plans, `swarm` transports bytes and
//! `wire` encodes messages.
//!
//! Invariants:
//!
//! - A call returns the numbers that the blocks in this process would return, or an error.
//! - A failed server is disconnected at once. Its part of the work is repeated elsewhere, from the inputs that the client
//!   kept.
//! - No prediction and no gradient of a step reaches the caller before the checks of the step have passed.
//! - Every answer is checked against the request before it is used: shapes, formats, names and sizes, exactly.
//! - One server is believed neither that a request is invalid nor that numbers are non-finite while another has its blocks.
//!
//! ```
//! use sepal_blocks::BlockStack;
//! use sepal_checkpoint::Checkpoint;
//! use sepal_core::{Ragged, Span, Want};
//! use sepal_nn::Tunable;
//! use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
//! use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
//! use tch::{Device, Kind, Tensor};
//!
//! // A server in this process, with all 3 blocks of a tiny model.
//! let checkpoint = Checkpoint::open("../testkit/goldens/tiny-llama-gqa")?;
//! let stack = BlockStack::load(&checkpoint, Span::new(0, 3)?)?;
//! let identity = ModelIdentity::from_checkpoint(&checkpoint);
//! let server = BlockServer::embedded(stack, identity, ServerOptions::default())?;
//!
//! let digest = checkpoint.digest().to_owned();
//! let expected = ModelExpectation { digest, n_blocks: 3, hidden: 32, tunables: Vec::new() };
//! let remote = RemoteSequential::connect(vec![server.endpoint().clone()], expected, RemoteOptions::default())?;
//!
//! let prompts = Tensor::randn([4, 32], (Kind::Float, Device::Cpu)).set_requires_grad(true);
//! let deep = Tensor::zeros([3, 4, 32], (Kind::Float, Device::Cpu)).set_requires_grad(true);
//! let rows = Ragged::from_lengths([3, 5])?;
//! let embedded = Tensor::randn([8, 32], (Kind::Float, Device::Cpu));
//!
//! let session = remote.tune(vec![Tunable::new("deep_prompts", deep.shallow_clone())])?;
//! let pooled = session.forward(Some(&prompts), &embedded, &rows, Want::LastOfRows)?;
//! assert_eq!(pooled.size(), [2, 32]); // [rows, hidden]
//! remote.backward(&pooled.sum(Kind::Float))?;
//! assert_eq!(prompts.grad().size(), [4, 32]);
//! assert_eq!(deep.grad().size(), [3, 4, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backward;
mod command;
mod connection;
mod error;
mod execute;
mod expectation;
mod micro_batching;
mod noise;
mod retry;
mod sequential;
mod servers;
mod shared;
mod step;
mod thread;
mod verify;

pub use error::{Refusal, RemoteError};
pub use expectation::ModelExpectation;
pub use noise::with_noise;
pub use sepal_swarm::{Evidence, RemoteOptions, SwarmPath};
pub use sequential::{RemoteSequential, StepSession};
pub use shared::{EvidenceHandler, ServerUsage};
pub use verify::{Difference, Tolerance};
