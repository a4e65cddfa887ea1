//! Blocks that run in this process.

use sepal_blocks::{BlockStack, InjectedTensors};
use sepal_core::{DEEP_PROMPTS, PREFIX_KEYS_VALUES, Ragged, Want};
use sepal_remote::ServerUsage;
use sepal_swarm::Traffic;
use tch::{TchError, Tensor};

use super::{Blocks, BlocksError, BlocksSession};

/// Names of the tunables that blocks in this process support.
pub(super) const TUNABLES: [&str; 2] = [DEEP_PROMPTS, PREFIX_KEYS_VALUES];

/// All blocks of a model in this process.
#[derive(Debug)]
pub struct LocalBlocks {
    stack: BlockStack,
    traffic: Traffic,
}

impl LocalBlocks {
    /// Wraps the blocks of a model, all of them.
    pub fn new(stack: BlockStack) -> Self {
        Self { stack, traffic: Traffic::default() }
    }
}

impl Blocks for LocalBlocks {
    fn tune(&self, tunables: Vec<(String, Tensor)>) -> Result<Box<dyn BlocksSession + '_>, BlocksError> {
        Ok(Box::new(LocalSession { stack: &self.stack, tunables: LocalTunables::new(&tunables)? }))
    }

    fn backward(&self, loss: &Tensor) -> Result<(), BlocksError> {
        Ok(loss.f_backward()?)
    }

    fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    fn description(&self) -> String {
        format!("blocks {} in this process", self.stack.span())
    }

    fn n_servers(&self) -> usize {
        0
    }

    fn server_usage(&self) -> Vec<ServerUsage> {
        Vec::new()
    }
}

struct LocalSession<'a> {
    stack: &'a BlockStack,
    tunables: LocalTunables,
}

impl BlocksSession for LocalSession<'_> {
    fn forward(&self, prefix: Option<&Tensor>, tokens: &Tensor, rows: &Ragged) -> Result<Tensor, BlocksError> {
        run(self.stack, &self.tunables, prefix, tokens, rows, Want::LastOfRows)
    }

    fn set_graph(&mut self, tunables: Vec<(String, Tensor)>) {
        self.tunables = LocalTunables::find(&tunables);
    }
}

/// Tunables of all blocks of the model, for those of this process.
pub(super) struct LocalTunables {
    deep_prompts: Option<Tensor>,
    keys_values: Option<Tensor>,
}

impl LocalTunables {
    pub(super) fn new(tunables: &[(String, Tensor)]) -> Result<Self, BlocksError> {
        match tunables.iter().find(|(name, _)| !TUNABLES.contains(&name.as_str())) {
            Some((name, _)) => Err(BlocksError::Tunable { name: name.clone() }),
            None => Ok(Self::find(tunables)),
        }
    }

    pub(super) fn find(tunables: &[(String, Tensor)]) -> Self {
        let find = |name| tunables.iter().find(|(other, _)| other == name).map(|(_, tensor)| tensor.shallow_clone());
        Self { deep_prompts: find(DEEP_PROMPTS), keys_values: find(PREFIX_KEYS_VALUES) }
    }

    fn first(&self, n_blocks: usize) -> Result<Self, TchError> {
        let first =
            |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.f_narrow(0, 0, n_blocks as i64)).transpose();
        Ok(Self { deep_prompts: first(&self.deep_prompts)?, keys_values: first(&self.keys_values)? })
    }

    fn injected(&self) -> InjectedTensors<'_> {
        InjectedTensors { deep_prompts: self.deep_prompts.as_ref(), keys_values: self.keys_values.as_ref() }
    }
}

/// Runs the blocks of this process on `[prefix; tokens]`.
pub(super) fn run(
    stack: &BlockStack,
    tunables: &LocalTunables,
    prefix: Option<&Tensor>,
    tokens: &Tensor,
    rows: &Ragged,
    want: Want,
) -> Result<Tensor, BlocksError> {
    let inputs: Vec<&Tensor> = prefix.into_iter().chain([tokens]).collect();
    let hidden = Tensor::f_cat(&inputs, 0)?; // [prefix_len + n_tokens, hidden]
    let prefix_len = prefix.map_or(0, |prefix| prefix.size()[0].unsigned_abs() as usize);
    let first = tunables.first(stack.span().len())?;
    let injected = if prefix.is_some() { first.injected() } else { InjectedTensors::default() };
    stack.forward_with(stack.span(), &hidden, prefix_len, rows, injected, want).map_err(BlocksError::Local)
}
