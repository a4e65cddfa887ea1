//! Transports between clients and block servers (TCP, Unix sockets, in-process pipes, transports of other crates), and the
//! options of a client.
//!
//! This crate moves and counts bytes. It knows nothing of messages, and builds without libtorch. Above it, `remote` and
//! `server` speak over its streams and `discover` adds a peer-to-peer transport; beneath it, there is `core` alone.
//!
//! Invariant: a [`Traffic`] counts every byte that a stream moves, framing included.
//!
//! ```
//! use sepal_swarm::Addr;
//!
//! assert_eq!("127.0.0.1:4000".parse::<Addr>()?, Addr::Tcp("127.0.0.1:4000".into()));
//! assert_eq!("unix:/run/sepal.sock".parse::<Addr>()?.to_string(), "unix:/run/sepal.sock");
//! assert!("4000".parse::<Addr>().is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod addr;
mod options;
mod stream;

pub use addr::{Addr, AddrError};
pub use options::{RemoteOptions, SwarmPath, dtype_schema};
pub use stream::{
    Connect, Connecting, Dial, Endpoint, InProcess, Incoming, Listener, Progress, Reader, Sighting, Sightings,
    SocketFile, Stream, Streams, Traffic, Writer,
};
