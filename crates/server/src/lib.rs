//! The block server: holds a span of frozen blocks and runs them forward and backward for its clients.
//!
//! It trains nothing, keeps no text and no labels, and knows nothing of heads or prompts beyond the
//! tensors that a client has it inject. One thread speaks with all clients; one thread computes, so
//! that calls of different clients queue for the device instead of fighting over it.
//!
//! Invariants: the tapes of all clients together stay within their byte budget (the oldest give way,
//! and their owners are told so); a failing request never takes the server down; what a client held
//! is freed when it drops it or disconnects.
//!
//! ```no_run
//! use sepal_blocks::BlockStack;
//! use sepal_checkpoint::Checkpoint;
//! use sepal_core::Span;
//! use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
//!
//! let checkpoint = Checkpoint::open("model.gguf")?;
//! let stack = BlockStack::load(&checkpoint, Span::new(0, 10)?)?;
//! let identity = ModelIdentity::of(&checkpoint);
//! let server = BlockServer::listen(stack, identity, ServerOptions::default(), "127.0.0.1:0".parse()?)?;
//! println!("listening on {}", server.endpoint());
//! server.shutdown();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod board;
mod compute;
mod engine;
pub mod environment;
mod queue;
mod relay;
mod rpc;
mod serve;
mod tapes;

pub use board::Board;
pub use sepal_wire::Limits;
pub use serve::{BlockServer, ModelIdentity, ServerOptions, StartError};
