//! Models as the owner of a gateway adds them.

use std::sync::{Arc, mpsc};

use crate::name::ModelName;
use crate::shared::Shared;
use crate::worker::Worker;

/// Models of a gateway. The owner adds models, and loads those that clients ask for.
#[derive(Debug)]
pub struct Models {
    pub(crate) shared: Arc<Shared>,
    pub(crate) loads: mpsc::Receiver<LoadRequest>,
}

/// Run that a client asks to load as a model. Dropping the worker refuses it.
#[derive(Debug)]
pub struct LoadRequest {
    /// Worker of the new model.
    pub worker: Worker,
    /// Run, as the client names it.
    pub run: String,
}

/// Model that cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum AddError {
    /// Second model of one name.
    #[error("add a second model `{name}`: names are unique")]
    Exists { name: ModelName },
    /// Model whose predecessor is still being loaded.
    #[error("add the model `{name}`: another of this name is being loaded")]
    Loading { name: ModelName },
    /// New model beyond the maximum number.
    #[error("add the model `{name}`: there are {max} models, which is the maximum; unload one first")]
    Full { name: ModelName, max: usize },
    /// New model while as many others as may exist are being replaced or unloaded.
    #[error(
        "add the model `{name}`: {n_models} others are loaded, replaced or unloaded at the moment; try again later"
    )]
    Busy { name: ModelName, n_models: usize },
}

impl Models {
    /// Adds a model. The gateway answers its requests with a retry time until the worker is ready.
    ///
    /// # Errors
    /// [`AddError`] if there is a model of this name, or the maximum number of models.
    pub fn add(&self, name: ModelName) -> Result<Worker, AddError> {
        let model = self.shared.add(name, true, None)?;
        Ok(Worker { shared: Arc::clone(&self.shared), model })
    }

    /// Waits for the next run that a client asks to load; none once the gateway is stopped.
    pub fn next_load(&self) -> Option<LoadRequest> {
        self.loads.recv().ok()
    }
}
