//! Cap'n Proto messages of Sepal's protocol and their conversion to and from Sepal's types.
//!
//! The crate converts bytes to validated values and back. It opens no connection (callers pass streams) and knows no tensor
//! library. In the crate graph it stands on `core` alone; only `remote` and `server` use it to communicate, and `status` reads
//! its [`ServerInfo`]. The schema is `schemas/rpc/sepal.capnp`. The generated code is committed, so that a build needs no
//! `capnp` compiler.
//!
//! Invariant: every value that a `read` function returns is well formed, for any input. A tensor has as many bytes as its
//! shape requires, and a batch has no empty row. Malformed input is a [`codec::DecodeError`].
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

mod activity;
pub mod codec;
mod frame;
mod info;
mod network;
mod parts;
mod quota;
mod relay;
pub mod rpc;
mod rpc_error;
mod spin_reader;

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

pub use activity::Activity;
pub use generated::sepal_capnp;
pub use info::{Failure, FailureCode, Limits, Load, Retry, ServerInfo, Timing};
pub use parts::Parts;
pub use quota::{Quota, Reserved};
pub use relay::{MailboxKey, Relay, RelayTarget};
pub use rpc_error::RpcError;

/// Newest version of the protocol that servers and clients of this crate speak.
pub const PROTOCOL: u32 = 7;

/// Oldest version of a server that a client of this crate can use.
pub const OLDEST_SERVER: u32 = 5;

/// Oldest version of a client that a server of this crate accepts: one that names the first block of a tunable.
pub const OLDEST_CLIENT: u32 = 6;

/// Newest version that two ranges of versions, each `[oldest, newest]`, have in common.
pub fn common_protocol(one: [u32; 2], other: [u32; 2]) -> Option<u32> {
    let newest = one[1].min(other[1]);
    (newest >= one[0].max(other[0])).then_some(newest)
}
