//! Transports between clients and block servers (TCP, Unix sockets, in-process pipes, transports of other crates), and the
//! options of a client.
//!
//! This crate moves, counts and encrypts bytes: [`ServerSecurity`] and [`ClientSecurity`] admit holders of a [`Secret`] alone.
//! It knows nothing of messages, and builds without libtorch. Above it, `remote` and
//! `server` speak over its streams and `discover` adds a peer-to-peer transport; beneath it, there is `core` alone.
//!
//! Invariants: a [`Traffic`] counts every byte that passes a stream, framing included, encryption not. A secret is in no message,
//! no error and no `Debug` text.
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
mod key;
mod key_file;
mod options;
mod private_file;
mod receipt;
mod secure;
mod stream;
mod watched_file;

pub use addr::{Addr, AddrError, ListedServer, ListedServerError};
pub use key::{IdentityKey, KeyError, is_signed_by};
pub use key_file::KeyFileError;
pub use options::{RemoteOptions, SwarmPath, dtype_schema};
pub use private_file::{create_private_file, replace_private_file};
pub use receipt::{Evidence, HexError, Receipt, Sha256, Statement, Witness, backward_call, forward_call};
pub use secure::{
    AcceptedSecrets, ClientSecurity, Revocation, Rights, RightsError, SECRET_NEEDED, Secret, SecretFileError,
    SecretTextError, SecurityError, ServerSecurity, proof,
};
pub use stream::{
    Accepted, Connect, Connecting, Dial, Endpoint, InProcess, Incoming, Listener, Progress, Reader, Sighting,
    Sightings, SocketFile, Stream, Streams, Traffic, Writer,
};
pub use watched_file::WatchedFile;
