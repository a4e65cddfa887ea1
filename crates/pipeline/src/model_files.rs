//! A model's files: found or fetched, as far as somebody needs them.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};

use sepal_assets::{Asset, Assets, FetchEvent, Kind, Source, Unfetched, Watch};
use sepal_checkpoint::{Checkpoint, OpenError, Part, missing_shards, outline, screen};

use crate::error::RunError;
use crate::progress::{Event, Observer};

/// A model that may be here in parts. All of it is known, whichever parts are here.
#[derive(Debug)]
pub struct ModelFiles {
    /// Where it came from, and where it is.
    pub asset: Asset,
    /// What is in it.
    pub checkpoint: Checkpoint,
}

impl ModelFiles {
    /// The model of the first of the sources that can be had. Of one in shards on the hub no shard is fetched yet, and of
    /// one that cannot be used no weights at all.
    ///
    /// # Errors
    /// [`RunError::Fetch`], [`RunError::Checkpoint`].
    pub fn open(assets: &Assets, sources: &[Source], watch: &mut Watch<'_>) -> Result<Self, RunError> {
        let mut screen = |model: &Unfetched<'_>| {
            Ok(screen(model.folder, &mut |parts: &[(String, Range<u64>)]| Ok((model.peek)(parts)?))?)
        };
        let asset = assets.fetch_first_screened(sources, Kind::Model, &mut screen, watch).map_err(fetch)?;
        match open(assets, &asset) {
            Ok(checkpoint) => Ok(Self { asset, checkpoint }),
            Err(source) => Err(RunError::Checkpoint { path: asset.path, source: source.into() }),
        }
    }

    /// Fetches the shards that hold this part, as far as they are not here.
    ///
    /// # Errors
    /// [`RunError::Fetch`]. What came is kept, and the next call goes on from there.
    pub fn bring(&self, assets: &Assets, part: Part, watch: &mut Watch<'_>) -> Result<(), RunError> {
        assets.complete(&self.asset, &self.checkpoint.missing_files(part), watch).map_err(fetch)
    }
}

fn open(assets: &Assets, asset: &Asset) -> Result<Checkpoint, OpenError> {
    if asset.commit.is_some() && !missing_shards(&asset.path)?.is_empty() {
        outline(&asset.path, &mut |parts| Ok(assets.peek(asset, parts)?))?;
    }
    Checkpoint::open(&asset.path)
}

fn fetch(source: sepal_assets::FetchError) -> RunError {
    RunError::Fetch { what: "model", source }
}

/// Tells the observer of a fetch of `what`; ends it when `stop` is set.
pub(crate) fn watched<'a>(
    what: &'a str,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
) -> impl FnMut(FetchEvent<'_>) -> ControlFlow<()> + 'a {
    move |event| {
        match event {
            FetchEvent::Notice(line) => observer.event(Event::Notice(&format!("{what}: {line}"))),
            event => observer.event(Event::Fetch(event)),
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
