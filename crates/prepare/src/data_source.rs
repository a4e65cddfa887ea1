use sepal_assets::{Asset, Attempt, FetchError, Kind};
use sepal_config::Spec;
use sepal_config::spec::RowsSpec;

use crate::error::DataError;
use crate::fetch::{Fetcher, describe_attempts, watched};

/// The first available data source.
#[derive(Debug)]
pub struct DataSource {
    /// Columns and format of the rows.
    pub spec: RowsSpec,
    /// Training rows.
    pub train: Asset,
    /// Validation rows, unless they are split off the training rows.
    pub validation: Option<Asset>,
    /// Sources before it that are not available, with their errors.
    pub passed_over: Vec<String>,
}

impl DataSource {
    /// Fetches the first data source whose files are all available.
    ///
    /// # Errors
    /// [`DataError::Fetch`] with all attempts if none is available.
    pub fn choose(spec: &Spec, fetcher: &mut Fetcher<'_>) -> Result<Self, DataError> {
        let mut tried: Vec<Attempt> = Vec::new();
        for rows in spec.data.sources() {
            match fetch_source(rows, fetcher) {
                Ok((train, validation)) => {
                    let attempts =
                        [train.attempts.as_slice(), validation.as_ref().map_or(&[], |asset| &asset.attempts)];
                    let passed_over = describe_attempts(&[&tried, attempts.concat().as_slice()].concat());
                    return Ok(Self { spec: rows.clone(), train, validation, passed_over });
                }
                Err(FetchError::NoneAvailable { attempts }) => tried.extend(attempts),
                Err(source) => return Err(DataError::Fetch(source)),
            }
        }
        Err(DataError::Fetch(FetchError::NoneAvailable { attempts: tried }))
    }

    /// Description of the validation rows.
    pub fn validation_rows(&self) -> String {
        match (&self.validation, self.spec.validation_split) {
            (Some(asset), _) => asset.pinned().to_string(),
            (None, Some(fraction)) => format!("{fraction} of the training source, by seed"),
            (None, None) => "none".to_owned(),
        }
    }
}

fn fetch_source(rows: &RowsSpec, fetcher: &mut Fetcher<'_>) -> Result<(Asset, Option<Asset>), FetchError> {
    let assets = fetcher.assets;
    let mut watch = watched("data", fetcher.observer, fetcher.stop);
    let train = assets.fetch_first(&rows.train, Kind::Dataset, &mut watch)?;
    // The same source twice means two splits of one folder.
    let is_same = rows.validation.as_ref().is_some_and(|sources| *sources == rows.train);
    let validation = match &rows.validation {
        Some(_) if is_same => Some(Asset { attempts: Vec::new(), ..train.clone() }),
        Some(sources) => Some(assets.fetch_first(sources, Kind::Dataset, &mut watch)?),
        None => None,
    };
    Ok((train, validation))
}
