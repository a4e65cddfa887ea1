//! Where the model's blocks run: in this process, on servers, or the first here and the others there.

use std::cell::RefCell;

use sepal_blocks::{BlockStack, ForwardError};
use sepal_core::{Ragged, Want};
use sepal_remote::{RemoteError, RemoteSequential};
use sepal_swarm::Traffic;
use tch::Tensor;

use crate::error::RunError;

/// The tunable that blocks of this process know.
const DEEP_PROMPTS: &str = "deep_prompts";

/// All blocks of the model.
pub(crate) struct Blocks {
    /// The first ones, or all.
    here: Option<BlockStack>,
    /// The others.
    there: Option<RemoteSequential>,
    traffic: Traffic,
}

impl Blocks {
    pub(crate) fn new(here: Option<BlockStack>, there: Option<RemoteSequential>) -> Self {
        let traffic = there.as_ref().map(|remote| remote.traffic().clone()).unwrap_or_default();
        Self { here, there, traffic }
    }

    /// Bytes sent and received so far.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Where they are, for messages.
    pub(crate) fn places(&self) -> String {
        let here = self.here.iter().map(|stack| format!("{} in this process", stack.span()));
        let servers = self.there.iter().flat_map(RemoteSequential::servers);
        let places: Vec<String> = here.chain(servers.map(|info| info.span.to_string())).collect();
        format!("blocks {}", places.join(", "))
    }

    /// With the tunables of one optimizer step, stacked by block: each `[n_blocks, ..]`.
    pub(crate) fn tune(&self, tunables: Vec<(String, Tensor)>) -> Result<Tuned<'_>, RunError> {
        if let Some((name, _)) = tunables.iter().find(|(name, _)| self.here.is_some() && name != DEEP_PROMPTS) {
            let known = format!("`{name}` is no tunable that blocks of this process know; they know {DEEP_PROMPTS}");
            return Err(RunError::Tunable { problem: known });
        }
        let deep = tunables.iter().map(|(_, tensor)| tensor.shallow_clone()).next();
        let there = self.there.as_ref().map(|remote| remote.tune(tunables)).transpose().map_err(RunError::Remote)?;
        Ok(Tuned { blocks: self, deep, seen: RefCell::default(), there })
    }

    /// Runs the graph of `loss` backward.
    pub(crate) fn backward(&self, loss: &Tensor) -> Result<(), RemoteError> {
        match &self.there {
            Some(remote) => remote.backward(loss),
            None => loss.f_backward().map_err(|error| RemoteError::Local { message: error.to_string() }),
        }
    }
}

/// Blocks with the tunables of one optimizer step.
pub(crate) struct Tuned<'a> {
    blocks: &'a Blocks,
    /// Of all blocks; for those of this process.
    deep: Option<Tensor>,
    /// Without gradients: a prefix, and what came of it behind the blocks of this process. Servers know what they kept
    /// of a prefix by its bits, and those may differ with the rows that it was computed with.
    seen: RefCell<Option<[Tensor; 2]>>,
    there: Option<sepal_remote::Tuned<'a>>,
}

impl Tuned<'_> {
    /// The same numbers, already uploaded, from another graph: for a second backward within one step.
    pub(crate) fn with_graph(self, tunables: Vec<(String, Tensor)>) -> Self {
        let deep = tunables.iter().map(|(_, tensor)| tensor.shallow_clone()).next();
        Self { deep, there: self.there.map(|there| there.with_graph(tunables)), ..self }
    }

    /// The hidden state of each row's last token behind the last block, `[rows, hidden]`, from the prefix
    /// `[prefix_len, hidden]` and the rows' tokens `[n_tokens, hidden]`. Differentiable.
    pub(crate) fn forward(&self, prefix: Option<&Tensor>, tokens: &Tensor, rows: &Ragged) -> Result<Tensor, RunError> {
        let Some(stack) = &self.blocks.here else { return self.remote(prefix, tokens, rows) };
        let prefix_len = prefix.map_or(0, |prefix| prefix.size()[0]);
        let inputs: Vec<&Tensor> = prefix.into_iter().chain([tokens]).collect();
        let hidden = Tensor::f_cat(&inputs, 0).map_err(RunError::Torch)?;
        let deep = self.deep.as_ref().filter(|_| prefix_len > 0);
        let deep =
            deep.map(|deep| deep.f_narrow(0, 0, stack.span().len() as i64)).transpose().map_err(RunError::Torch)?;
        let want = if self.there.is_some() { Want::All } else { Want::LastOfRows };
        let run = stack.forward(&hidden, prefix_len.unsigned_abs() as usize, rows, deep.as_ref(), want);
        let hidden = run.map_err(blocks)?;
        if self.there.is_none() {
            return Ok(hidden);
        }
        let part = |start: i64, len: i64| hidden.f_narrow(0, start, len).map_err(RunError::Torch);
        let tokens = part(prefix_len, hidden.size()[0] - prefix_len)?;
        let prefix = match prefix {
            Some(before) => Some(self.behind(before, part(0, prefix_len)?)),
            None => None,
        };
        self.remote(prefix.as_ref(), &tokens, rows)
    }

    /// What came of the prefix `before` behind the blocks of this process: `after`, or what came of it the first time.
    fn behind(&self, before: &Tensor, after: Tensor) -> Tensor {
        if sepal_nn::grad_is_enabled() {
            return after;
        }
        let mut seen = self.seen.borrow_mut();
        if let Some([known, first]) = seen.as_ref()
            && known == before
        {
            return first.shallow_clone();
        }
        *seen = Some([before.detach(), after.shallow_clone()]);
        after
    }

    fn remote(&self, prefix: Option<&Tensor>, tokens: &Tensor, rows: &Ragged) -> Result<Tensor, RunError> {
        match &self.there {
            Some(there) => there.forward(prefix, tokens, rows).map_err(RunError::Remote),
            None => Err(RunError::Tunable { problem: "no blocks are there to run".to_owned() }),
        }
    }
}

fn blocks(error: ForwardError) -> RunError {
    RunError::Blocks(error.into())
}
