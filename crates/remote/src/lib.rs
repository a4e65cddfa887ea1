//! The frozen blocks of other machines as one differentiable operation.
//!
//! [`RemoteSequential`] finds a chain of servers that covers every block, sends ragged batches through
//! it and makes the result a node of the libtorch graph, so that the training loop is ordinary:
//! `loss.backward()`. It knows nothing of text, heads or optimizers.
//!
//! Invariants: a call either returns the same numbers as the blocks in this process would or an error;
//! a server that fails is left at once and only its part of the work is done again, from the inputs
//! that the client kept; what a server calls wrong is never sent again.
//!
//! ```no_run
//! use sepal_core::Ragged;
//! use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
//! use sepal_swarm::Endpoint;
//! use tch::{Device, Kind, Tensor};
//!
//! let servers = vec![Endpoint::Addr("127.0.0.1:4000".parse()?)];
//! let expected = ModelExpectation { digest: "sha256:…".into(), n_blocks: 30, hidden: 576 };
//! let remote = RemoteSequential::connect(servers, expected, RemoteOptions::default())?;
//!
//! let prompts = Tensor::randn([16, 576], (Kind::Float, Device::Cpu)).set_requires_grad(true);
//! let deep = Tensor::zeros([30, 16, 576], (Kind::Float, Device::Cpu)).set_requires_grad(true);
//! let rows = Ragged::from_lengths([3, 5])?;
//! let embedded = Tensor::randn([8, 576], (Kind::Float, Device::Cpu));
//!
//! let step = remote.tune(vec![("deep_prompts".into(), deep.shallow_clone())])?;
//! let pooled = step.forward(Some(&prompts), &embedded, &rows)?; // [rows, hidden]
//! pooled.sum(Kind::Float).backward(); // prompts.grad() [16, 576], deep.grad() [30, 16, 576]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backward;
mod chain;
mod cuts;
mod error;
mod held;
mod kept;
mod patience;
mod peer;
mod relay;
mod sequential;
mod servers;
mod step;
mod survey;
mod thread;

pub use error::RemoteError;
pub use sepal_swarm::{RemoteOptions, SwarmPath};
pub use sequential::{ModelExpectation, RemoteSequential, StepSession};
pub use servers::ServerUsage;
pub use survey::{SurveyedServer, survey};
