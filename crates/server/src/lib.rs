//! The block server: holds a span of frozen blocks and runs them forward and backward for its clients.
//!
//! The server trains nothing, stores no text and no labels, and knows of heads and prompts only the tensors that a client
//! injects. One thread serves all connections and one thread computes, so that calls of several clients queue for the
//! device instead of competing for it. In the crate graph it stands on `blocks`, `checkpoint`, `swarm` and `wire`; `remote` is
//! its client, and only `status`, `pipeline` and `cli` start or show servers.
//!
//! Invariants: everything that clients make the server hold is counted in one ledger before it is made, with a limit for all,
//! one for each connection and one for those of a network. The tapes of all clients together stay within a byte budget (the
//! oldest of the clients with the most are evicted, and their owners get an error that says so). A failing request never
//! stops the server, and a call whose caller has left ends. The memory of a client is freed when the client drops its
//! capabilities or disconnects. Connections that are silent, slow or unused never keep out a new one.
//!
//! ```no_run
//! use sepal_blocks::BlockStack;
//! use sepal_checkpoint::Checkpoint;
//! use sepal_core::Span;
//! use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
//!
//! let checkpoint = Checkpoint::open("model.gguf")?;
//! let stack = BlockStack::load(&checkpoint, Span::new(0, 10)?)?;
//! let identity = ModelIdentity::from_checkpoint(&checkpoint);
//! let server = BlockServer::listen(stack, identity, ServerOptions::default(), "127.0.0.1:0".parse()?)?;
//! println!("listening on {}", server.endpoint());
//! server.shutdown();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accept;
mod admission;
mod client;
mod compute;
mod device_memory;
mod engine;
mod forwarder;
mod ledger;
mod lock;
mod mailbox;
pub mod memory;
mod queue;
mod receipts;
mod refusals;
mod serve;
mod service;
mod stacks;
mod state;
mod stats;
mod tapes;

pub use sepal_wire::Limits;
pub use serve::{BlockServer, ModelIdentity, ServerOptions, StartError};
pub use stacks::{DeviceStacks, even_shares};
pub use stats::ServerStats;
