//! Failing servers, bad links, invalid requests and non-finite values.

pub(crate) mod links;
mod non_finite;
mod servers;
