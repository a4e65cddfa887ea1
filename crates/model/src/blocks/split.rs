//! The first blocks in this process, the others on servers.

use std::cell::RefCell;

use sepal_blocks::BlockStack;
use sepal_core::{Ragged, Want};
use sepal_nn::Tunable;
use sepal_remote::{EvidenceHandler, RemoteSequential, ServerUsage, StepSession};
use sepal_swarm::Traffic;
use tch::Tensor;

use super::local::run_to_next;
use super::remote::spans;
use super::{Blocks, BlocksError, BlocksSession};

/// The first blocks of a model in this process, the others on servers, which see hidden states instead of embeddings.
#[derive(Debug)]
pub struct SplitBlocks {
    stack: BlockStack,
    remote: RemoteSequential,
}

impl SplitBlocks {
    /// Joins the first blocks of a model with the remaining ones, whose `first_block` option is the end of the stack's span.
    pub fn new(stack: BlockStack, remote: RemoteSequential) -> Self {
        Self { stack, remote }
    }
}

impl Blocks for SplitBlocks {
    fn tune(&self, tunables: Vec<Tunable>) -> Result<Box<dyn BlocksSession + '_>, BlocksError> {
        let local = local_tunables(&self.stack, &tunables);
        let remote = self.remote.tune(tunables).map_err(BlocksError::Remote)?;
        Ok(Box::new(SplitSession { stack: &self.stack, local, remote, first_prefix: RefCell::default() }))
    }

    fn backward(&self, loss: &Tensor) -> Result<(), BlocksError> {
        self.remote.backward(loss).map_err(BlocksError::Remote)
    }

    fn traffic(&self) -> &Traffic {
        self.remote.traffic()
    }

    fn description(&self) -> String {
        let local = format!("{} in this process", self.stack.span());
        let spans: Vec<String> = std::iter::once(local).chain(spans(&self.remote)).collect();
        format!("blocks {}", spans.join(", "))
    }

    fn n_servers(&self) -> usize {
        self.remote.servers().len()
    }

    fn server_usage(&self) -> Vec<ServerUsage> {
        self.remote.server_usage()
    }

    fn on_evidence(&self, handler: EvidenceHandler) {
        self.remote.on_evidence(handler);
    }
}

struct SplitSession<'a> {
    stack: &'a BlockStack,
    local: Vec<Tunable>,
    remote: StepSession<'a>,
    /// Without gradients: the input and the output of the local blocks for a prefix. Servers identify a cached prefix by its
    /// bits, and these may differ with the rows of a batch.
    first_prefix: RefCell<Option<[Tensor; 2]>>,
}

impl BlocksSession for SplitSession<'_> {
    fn forward(
        &self,
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        want: Want,
    ) -> Result<Tensor, BlocksError> {
        let (output, tokens) = run_to_next(self.stack, self.stack.span(), &self.local, prefix, tokens, rows)?;
        let prefix = prefix.zip(output).map(|(input, output)| self.stable_prefix(input, output));
        self.remote.forward(prefix.as_ref(), &tokens, rows, want).map_err(BlocksError::Remote)
    }

    fn set_graph(&mut self, tunables: Vec<Tunable>) {
        self.local = local_tunables(self.stack, &tunables);
        self.remote.set_graph(tunables);
    }
}

impl SplitSession<'_> {
    /// Output of the local blocks for the prefix `input`: `output`, or without gradients the one of the first batch.
    fn stable_prefix(&self, input: &Tensor, output: Tensor) -> Tensor {
        if sepal_nn::grad_is_enabled() {
            return output;
        }
        let mut first_prefix = self.first_prefix.borrow_mut();
        if let Some([known, first]) = first_prefix.as_ref()
            && known == input
        {
            return first.shallow_clone();
        }
        *first_prefix = Some([input.detach(), output.shallow_clone()]);
        output
    }
}

/// Tunables of the blocks of this process, which are the model's first. With others, gradients of the tokens would travel
/// back for nothing.
fn local_tunables(stack: &BlockStack, tunables: &[Tunable]) -> Vec<Tunable> {
    let is_local = |tunable: &&Tunable| tunable.first_block < stack.span().end();
    tunables.iter().filter(is_local).map(Tunable::shallow_clone).collect()
}
