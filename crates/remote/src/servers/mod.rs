//! Servers of one model: discovery, routes through them, and recovery from failures.

mod discovery;
mod failures;
mod registry;

pub(crate) use discovery::Source;
pub(crate) use registry::Servers;
