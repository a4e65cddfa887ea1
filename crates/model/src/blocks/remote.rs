//! Blocks on servers.

use sepal_core::{Ragged, Want};
use sepal_nn::Tunable;
use sepal_remote::{EvidenceHandler, RemoteSequential, ServerUsage, StepSession};
use sepal_swarm::Traffic;
use tch::Tensor;

use super::{Blocks, BlocksError, BlocksSession};

impl Blocks for RemoteSequential {
    fn tune(&self, tunables: Vec<Tunable>) -> Result<Box<dyn BlocksSession + '_>, BlocksError> {
        Ok(Box::new(RemoteSequential::tune(self, tunables).map_err(BlocksError::Remote)?))
    }

    fn backward(&self, loss: &Tensor) -> Result<(), BlocksError> {
        RemoteSequential::backward(self, loss).map_err(BlocksError::Remote)
    }

    fn traffic(&self) -> &Traffic {
        RemoteSequential::traffic(self)
    }

    fn description(&self) -> String {
        format!("blocks {}", spans(self).join(", "))
    }

    fn n_servers(&self) -> usize {
        self.servers().len()
    }

    fn server_usage(&self) -> Vec<ServerUsage> {
        RemoteSequential::server_usage(self)
    }

    fn on_evidence(&self, handler: EvidenceHandler) {
        RemoteSequential::on_evidence(self, handler);
    }
}

impl BlocksSession for StepSession<'_> {
    fn forward(
        &self,
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        want: Want,
    ) -> Result<Tensor, BlocksError> {
        StepSession::forward(self, prefix, tokens, rows, want).map_err(BlocksError::Remote)
    }

    fn set_graph(&mut self, tunables: Vec<Tunable>) {
        StepSession::set_graph(self, tunables);
    }
}

pub(super) fn spans(remote: &RemoteSequential) -> Vec<String> {
    remote.servers().iter().map(|info| info.span.to_string()).collect()
}
