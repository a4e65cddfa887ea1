//! Base model that several classifiers share.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sepal_config::spec::{EmbeddedSpec, Spec, SwarmSpec};
use sepal_core::{DType, Device};
use sepal_prepare::Fetcher;
use sepal_track::ModelFacts;

use crate::embedded::EmbeddedServers;
use crate::error::{AdapterError, ClassifierError};
use crate::frozen_model::FrozenModel;

/// Base model of several classifiers, which are opened by [`Classifier::open_on`](crate::Classifier::open_on).
///
/// The first classifier opens the model's files and, if the blocks run in this process, the server of the blocks. All others
/// use the same, so that the server computes their calls together, each with its own adapter. Threads can share a base.
#[derive(Debug, Default)]
pub struct SharedBase(Mutex<Option<OpenBase>>);

#[derive(Debug)]
struct OpenBase {
    /// Run that opened the base.
    run: PathBuf,
    device: Device,
    facts: ModelFacts,
    frozen: FrozenModel,
}

impl SharedBase {
    /// Returns a base without a model, which the first classifier opens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the frozen model of the base for a run that was trained with the model of `trained`.
    pub(crate) fn frozen(
        &self,
        spec: &Spec,
        run: &Path,
        trained: &ModelFacts,
        fetcher: &mut Fetcher<'_>,
    ) -> Result<FrozenModel, ClassifierError> {
        let mut base = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(base) = &*base {
            base.check(spec, run, trained)?;
            // The first run may have left the blocks to servers.
            base.frozen.fetch_parts(spec, fetcher)?;
            return Ok(base.frozen.clone());
        }
        let mut frozen = FrozenModel::fetch(spec, fetcher)?;
        frozen.servers = EmbeddedServers::for_predictions();
        let facts = frozen.facts(spec);
        *base = Some(OpenBase { run: run.to_owned(), device: spec.model.device, facts, frozen: frozen.clone() });
        Ok(frozen)
    }
}

impl OpenBase {
    fn check(&self, spec: &Spec, run: &Path, trained: &ModelFacts) -> Result<(), AdapterError> {
        let mut differences = Vec::new();
        if self.facts.digest != trained.digest {
            let (own, other) = (&self.facts, trained);
            differences
                .push(format!("its model is {} ({}), not {} ({})", other.digest, other.source, own.digest, own.source));
        }
        if self.facts.digest == trained.digest && self.frozen.facts(spec).digest != self.facts.digest {
            differences.push("its pipeline sets other formats (`model.weights`, `model.compute`)".to_owned());
        }
        if spec.model.device != self.device {
            differences.push(format!("its `model.device` is {}, not {}", spec.model.device, self.device));
        }
        if differences.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "it does not share the base model of {}: {}; use it in a process of its own",
            self.run.display(),
            differences.join(", and ")
        );
        Err(AdapterError { path: run.to_owned(), problem })
    }
}

/// Returns the pipeline with all blocks that would run in this process on a server in this process, which can be shared.
pub(crate) fn on_shared_server(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    if let SwarmSpec::None(_) = spec.swarm {
        // Without a server, hidden states are not rounded between the blocks and the head.
        spec.swarm = SwarmSpec::Embedded(EmbeddedSpec { wire_dtype: Some(DType::F32), ..EmbeddedSpec::default() });
    }
    if let SwarmSpec::Embedded(_) = spec.swarm {
        spec.model.local_blocks = 0;
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn shared(swarm: &str) -> Spec {
        on_shared_server(&spec(&["model.local_blocks=2", swarm]))
    }

    #[test]
    fn blocks_of_this_process_move_to_the_shared_server() {
        let spec = shared("swarm={ use: none }");
        assert!(matches!(spec.swarm, SwarmSpec::Embedded(_)));
        assert_eq!((spec.wire_dtype(), spec.model.local_blocks), (DType::F32, 0));
        let spec = shared("swarm={ use: embedded, with: { wire_dtype: bf16 } }");
        assert_eq!((spec.wire_dtype(), spec.model.local_blocks), (DType::Bf16, 0));
    }

    #[test]
    fn blocks_of_servers_stay_there() {
        let spec = shared("swarm={ use: static, with: { servers: ['10.0.0.5:4000'] } }");
        assert!(matches!(spec.swarm, SwarmSpec::Static(_)));
        assert_eq!(spec.model.local_blocks, 2);
    }
}
