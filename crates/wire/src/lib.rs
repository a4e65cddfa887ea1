//! Cap'n Proto messages, and the codec between them and Sepal's own types.
//!
//! This crate opens no connection (it is given streams) and knows no tensor library: it turns bytes into checked values
//! and back. The schema is `schemas/rpc/sepal.capnp`; the code made from it is committed, so that a
//! build needs no `capnp` compiler.
//!
//! Invariant: what a `read_*` function returns is well formed (a tensor has as many bytes as its
//! shape says, a batch has no empty row), whatever the peer sent.
//!
//! ```
//! use capnp::message::Builder;
//! use sepal_core::HostTensor;
//! use sepal_wire::{Parts, codec, sepal_capnp};
//!
//! let tensor = HostTensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0])?;
//! let parts = Parts::default();
//! let mut message = Builder::new_default();
//! codec::write_tensor(message.init_root::<sepal_capnp::tensor::Builder>(), &tensor, &parts);
//! let back = codec::read_tensor(message.get_root_as_reader::<sepal_capnp::tensor::Reader>()?, &parts)?;
//! assert_eq!(back, tensor);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod codec;
pub mod conversation;
mod eager;
mod frame;
mod info;
mod network;
mod parts;
mod relay;

#[expect(
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::unimplemented,
    reason = "generated code"
)]
mod generated {
    #[rustfmt::skip]
    pub mod sepal_capnp;
}

pub use generated::sepal_capnp;
pub use info::{Failure, FailureCode, Limits, Load, Retry, ServerInfo, Timing};
pub use parts::Parts;
pub use relay::{Next, ParcelKey, Relay};

/// The version of the protocol; servers and clients of different versions refuse each other.
pub const PROTOCOL: u32 = 5;
