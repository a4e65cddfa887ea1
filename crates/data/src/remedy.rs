use std::error::Error;

use crate::{LoaderError, ReadError, Remedy};

impl Remedy {
    /// Returns the remedy that an error or one of its causes suggests.
    pub fn find(error: &(dyn Error + 'static)) -> Option<Self> {
        std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
            let read = error.downcast_ref::<ReadError>().and_then(ReadError::remedy);
            read.or_else(|| error.downcast_ref::<LoaderError>().and_then(LoaderError::remedy))
        })
    }
}
