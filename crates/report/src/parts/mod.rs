//! The parts of a report, in the page's order.

pub(crate) mod again;
mod calibration;
mod classes;
pub(crate) mod curves;
pub(crate) mod facts;
pub(crate) mod headline;
mod labelled;
pub(crate) mod mistakes;
pub(crate) mod quality;
pub(crate) mod servers;
mod values;
pub(crate) mod words;
