//! Parts of a report.

mod calibration;
mod class_predictions;
mod classes;
pub(crate) mod curves;
pub(crate) mod facts;
pub(crate) mod headline;
mod items;
pub(crate) mod mistakes;
pub(crate) mod quality;
pub(crate) mod reproduce;
pub(crate) mod servers;
mod values;
pub(crate) mod words;
