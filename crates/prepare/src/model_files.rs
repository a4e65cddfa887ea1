//! Files of a model: found or fetched, as far as they are needed.

use std::ops::Range;

use sepal_assets::{Asset, Assets, EventHandler, FetchError, ModelPreview, Source};
use sepal_checkpoint::{Checkpoint, OpenError, Part, ReadError, missing_shards, screen, write_outline};
use sepal_tokenize::Tokenizer;

use crate::error::ModelError;

/// Files of a model. The description is complete, also where only some of them, or pieces of one, have been fetched.
#[derive(Debug)]
pub struct ModelFiles {
    /// Source and local path.
    pub asset: Asset,
    /// Configuration and tensors.
    pub checkpoint: Checkpoint,
}

impl ModelFiles {
    /// Opens the model of the first available source. Shards, parts of a GGUF file and large files on the hub are not fetched
    /// yet, and no weights at all are fetched for a model with an unsupported configuration.
    ///
    /// # Errors
    /// [`ModelError::Fetch`], [`ModelError::Open`].
    pub fn open(assets: &Assets, sources: &[Source], watch: &mut EventHandler<'_>) -> Result<Self, ModelError> {
        let mut screen = |model: &ModelPreview<'_>| {
            Ok(screen(model.folder, &mut |parts: &[(String, Range<u64>)]| Ok((model.read_ranges)(parts)?))?)
        };
        let asset = assets.fetch_first_model(sources, &mut screen, watch).map_err(ModelError::Fetch)?;
        let checkpoint = open_asset(assets, &asset, watch)?;
        Ok(Self { asset, checkpoint })
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`], and [`ModelError::Vocabulary`] if it has more ids than the model has embeddings.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let path = || self.asset.path.clone();
        let read = self.checkpoint.tokenizer();
        let tokenizer = read.map_err(|source| ModelError::Tokenizer { path: path(), source: source.into() })?;
        let (ids, embeddings) = (tokenizer.vocab_size(), self.checkpoint.config().vocab_size);
        if ids > embeddings {
            let last = tokenizer.last_token().unwrap_or_default();
            return Err(ModelError::Vocabulary { path: path(), ids, embeddings, last });
        }
        Ok(tokenizer)
    }

    /// Checks that the tensors of this part are of types that are read. Fetches nothing.
    ///
    /// # Errors
    /// [`ModelError::Open`].
    pub fn check_types(&self, part: Part) -> Result<(), ModelError> {
        let failed = |source: ReadError| ModelError::Open { path: self.asset.path.clone(), source: source.into() };
        self.checkpoint.check_types(part).map_err(failed)
    }

    /// Fetches the missing files of this part, or its bytes of the model's only file.
    ///
    /// # Errors
    /// [`ModelError::Fetch`]; [`ModelError::Open`] if a tensor of the part is of a type that is not read. Fetched data is kept,
    /// and the next call continues from there.
    pub fn fetch(&self, assets: &Assets, part: Part, watch: &mut EventHandler<'_>) -> Result<(), ModelError> {
        self.check_types(part)?;
        fetch_part(assets, &self.asset, &self.checkpoint, part, watch).map_err(ModelError::Fetch)
    }
}

/// Fetches the missing bytes of a part of an open model.
///
/// # Errors
/// [`FetchError`]. Fetched data is kept, and the next call continues from there.
pub fn fetch_part(
    assets: &Assets,
    asset: &Asset,
    checkpoint: &Checkpoint,
    part: Part,
    watch: &mut EventHandler<'_>,
) -> Result<(), FetchError> {
    match checkpoint.missing_ranges(part) {
        Some((file, ranges)) => assets.fetch_ranges(asset, &file, &ranges, watch),
        None => assets.fetch_files(asset, &checkpoint.missing_files(part), watch),
    }
}

/// Opens the model of an asset, some of whose weights may not be fetched yet.
///
/// # Errors
/// [`ModelError::Fetch`], [`ModelError::Open`].
pub fn open_asset(assets: &Assets, asset: &Asset, watch: &mut EventHandler<'_>) -> Result<Checkpoint, ModelError> {
    let failed = |source: OpenError| ModelError::Open { path: asset.path.clone(), source: source.into() };
    let missing = missing_shards(&asset.path).map_err(failed)?;
    if asset.commit.is_some() && !missing.is_empty() {
        let outlined = write_outline(&asset.path, &mut |parts| Ok(assets.read_ranges(asset, parts)?));
        match outlined {
            // The headers of many files would cost all of them.
            Err(error) if is_without_ranges(&error) && missing.len() == 1 => {
                assets.fetch_files(asset, &missing, watch).map_err(ModelError::Fetch)?;
            }
            outlined => drop(outlined.map_err(failed)?),
        }
    }
    Checkpoint::open(&asset.path).map_err(failed)
}

/// True if the hub ignores byte ranges.
fn is_without_ranges(error: &OpenError) -> bool {
    let OpenError::Fetch { source, .. } = error else { return false };
    source.downcast_ref::<FetchError>().is_some_and(FetchError::is_without_ranges)
}

#[cfg(test)]
mod tests;
