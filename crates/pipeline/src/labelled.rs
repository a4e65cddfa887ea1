//! Labelled rows for a trained classifier, read without it.

use std::sync::atomic::AtomicBool;

use sepal_assets::{Assets, Kind, Sources};
use sepal_data::{Table, TableSpec};
use sepal_prepare::{WithoutSplits, read_split, watched};

use crate::error::{BoxError, DataError};
use crate::progress::Observer;

/// Labelled rows at a source.
#[derive(Debug, Clone)]
pub struct LabelledSource<'a> {
    /// Sources of the rows, the preferred one first.
    pub sources: Sources,
    /// Columns of the rows; the path is that of the source.
    pub columns: TableSpec,
    /// Names of splits. The first one that the source has is read.
    pub splits: Vec<&'a str>,
}

/// Labelled rows as they were read, before the labels of a task are known.
#[derive(Debug)]
pub struct LabelledTable {
    pub(crate) table: Table,
    /// Source of the rows.
    pub(crate) source: String,
    /// Column of the labels, if rows without one are left out.
    pub(crate) label: Option<String>,
}

impl LabelledSource<'_> {
    /// Fetches the rows and reads their columns.
    ///
    /// # Errors
    /// [`DataError`] if no source is available or the columns are not readable.
    pub fn read(&self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<LabelledTable, DataError> {
        let Self { sources, columns, splits } = self;
        let asset = Assets::from_env().fetch_first(sources, Kind::Dataset, &mut watched("data", observer, stop));
        let asset = asset.map_err(DataError::Fetch)?;
        // A single split was asked for by name.
        let without_splits = if splits.len() == 1 { WithoutSplits::Refuse } else { WithoutSplits::All };
        let table = read_split(&asset.path, columns, splits, without_splits).map_err(unusable)?;
        let label = skipped_without(columns).map(str::to_owned);
        Ok(LabelledTable { table, source: asset.pinned().to_string(), label })
    }
}

/// Column of the labels, if rows without one are left out.
pub(crate) fn skipped_without(columns: &TableSpec) -> Option<&str> {
    columns.label.as_deref().filter(|_| columns.skip_empty)
}

pub(crate) fn unusable(source: BoxError) -> DataError {
    DataError::Rows { split: "labelled", source }
}
