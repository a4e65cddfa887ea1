//! Limits of the open connections of a port: in all and per address, and the choice of the one that makes room for another.
//!
//! The crate knows no protocol but HTTP, which it serves under such limits with the feature `http`. In the crate graph it
//! stands on the ground floor; `server`, `status` and `gateway` stand on it, and `cli` raises the limit of open files.
//!
//! Invariant: a connection that has sent nothing complete never keeps out a new one.
//!
//! ```
//! use std::time::Duration;
//!
//! use sepal_connections::{ConnectionLimits, Register, Standing, Tracked};
//!
//! struct Silent;
//!
//! impl Tracked for Silent {
//!     fn standing(&self) -> Standing {
//!         Standing::Unproven(Duration::from_secs(1))
//!     }
//!
//!     fn replace(&self) {}
//! }
//!
//! let mut register = Register::new(ConnectionLimits { total: 1, per_address: 1 });
//! let first = register.admit(None, Silent).expect("room");
//! let second = register.admit(None, Silent).expect("the room of the first");
//! assert_ne!(first, second);
//! assert_eq!(register.len(), 1);
//! ```

mod checks;
mod files;
#[cfg(feature = "http")]
pub mod http;
mod metrics;
mod register;

pub use checks::check_regularly;
pub use files::{open_file_limit, raise_open_file_limit};
pub use metrics::{ConnectionMetrics, End};
pub use register::{ConnectionLimits, Refusal, Register, Standing, Tracked, limited_network};
