//! Where the model's blocks run: in this process, on servers, or the first here and the others there.

use std::cell::RefCell;

use sepal_blocks::{BlockStack, Injected};
use sepal_core::{DEEP_PROMPTS, PREFIX_KEYS_VALUES, Ragged, Want};
use sepal_remote::{RemoteError, RemoteSequential};
use sepal_swarm::Traffic;
use sepal_track::ServerUse;
use tch::{TchError, Tensor};

use crate::error::RunError;

/// All blocks of the model.
pub(crate) struct Blocks {
    place: Place,
    traffic: Traffic,
}

/// Where they run.
pub(crate) enum Place {
    Here(Box<BlockStack>),
    There(RemoteSequential),
    /// The first ones here, the others there.
    Both(Box<BlockStack>, RemoteSequential),
}

impl Place {
    fn here(&self) -> Option<&BlockStack> {
        match self {
            Place::Here(stack) | Place::Both(stack, _) => Some(stack),
            Place::There(_) => None,
        }
    }

    fn there(&self) -> Option<&RemoteSequential> {
        match self {
            Place::There(remote) | Place::Both(_, remote) => Some(remote),
            Place::Here(_) => None,
        }
    }
}

impl Blocks {
    pub(crate) fn new(place: Place) -> Self {
        let traffic = place.there().map(|remote| remote.traffic().clone()).unwrap_or_default();
        Self { place, traffic }
    }

    /// Bytes sent and received so far.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Where they are, for messages.
    pub(crate) fn places(&self) -> String {
        let here = self.place.here().map(|stack| format!("{} in this process", stack.span()));
        let servers = self.place.there().into_iter().flat_map(RemoteSequential::servers);
        let places: Vec<String> = here.into_iter().chain(servers.map(|info| info.span.to_string())).collect();
        format!("blocks {}", places.join(", "))
    }

    /// Servers that were met.
    pub(crate) fn n_servers(&self) -> usize {
        self.place.there().map_or(0, |remote| remote.servers().len())
    }

    /// What was made of each server, those of `before` included, which processes before this one used.
    pub(crate) fn uses(&self, before: &[ServerUse]) -> Vec<ServerUse> {
        let mut uses = before.to_vec();
        for now in self.place.there().map(RemoteSequential::server_usage).unwrap_or_default() {
            let blocks = now.span.to_string();
            match uses.iter_mut().find(|earlier| earlier.server == now.server && earlier.blocks == blocks) {
                Some(earlier) => {
                    earlier.calls += now.calls;
                    earlier.failures += now.failures;
                }
                None => {
                    uses.push(ServerUse { server: now.server, blocks, calls: now.calls, failures: now.failures });
                }
            }
        }
        uses
    }

    /// With the tunables of one optimizer step, stacked by block: each `[n_blocks, ..]`.
    pub(crate) fn tune(&self, tunables: Vec<(String, Tensor)>) -> Result<Tuned<'_>, RunError> {
        let is_known = |name: &str| self.place.here().is_none() || [DEEP_PROMPTS, PREFIX_KEYS_VALUES].contains(&name);
        if let Some((name, _)) = tunables.iter().find(|(name, _)| !is_known(name)) {
            return Err(RunError::Tunable { name: name.clone() });
        }
        let here = Here::of(&tunables);
        let place = match &self.place {
            Place::Here(stack) => TunedPlace::Here(stack),
            Place::There(remote) => TunedPlace::There(remote.tune(tunables).map_err(RunError::Remote)?),
            Place::Both(stack, remote) => TunedPlace::Both(stack, remote.tune(tunables).map_err(RunError::Remote)?),
        };
        Ok(Tuned { place, here, seen: RefCell::default() })
    }

    /// Runs the graph of `loss` backward.
    pub(crate) fn backward(&self, loss: &Tensor) -> Result<(), RemoteError> {
        match self.place.there() {
            Some(remote) => remote.backward(loss),
            None => loss.f_backward().map_err(|error| RemoteError::Local { message: error.to_string() }),
        }
    }
}

/// The tunables of all blocks, for those of this process.
struct Here {
    deep_prompts: Option<Tensor>,
    keys_values: Option<Tensor>,
}

impl Here {
    fn of(tunables: &[(String, Tensor)]) -> Self {
        let find = |name| tunables.iter().find(|(other, _)| other == name).map(|(_, tensor)| tensor.shallow_clone());
        Self { deep_prompts: find(DEEP_PROMPTS), keys_values: find(PREFIX_KEYS_VALUES) }
    }

    /// Returns the tunables of the first `n_blocks` blocks.
    fn first(&self, n_blocks: usize) -> Result<Self, TchError> {
        let first =
            |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.f_narrow(0, 0, n_blocks as i64)).transpose();
        Ok(Self { deep_prompts: first(&self.deep_prompts)?, keys_values: first(&self.keys_values)? })
    }

    fn injected(&self) -> Injected<'_> {
        Injected { deep_prompts: self.deep_prompts.as_ref(), keys_values: self.keys_values.as_ref() }
    }
}

/// Blocks with the tunables of one optimizer step.
pub(crate) struct Tuned<'a> {
    place: TunedPlace<'a>,
    here: Here,
    /// Without gradients: a prefix, and what came of it behind the blocks of this process. Servers know what they kept
    /// of a prefix by its bits, and those may differ with the rows that it was computed with.
    seen: RefCell<Option<[Tensor; 2]>>,
}

enum TunedPlace<'a> {
    Here(&'a BlockStack),
    There(sepal_remote::StepSession<'a>),
    Both(&'a BlockStack, sepal_remote::StepSession<'a>),
}

impl Tuned<'_> {
    /// The same numbers, already uploaded, from another graph: for a second backward within one step.
    pub(crate) fn with_graph(self, tunables: Vec<(String, Tensor)>) -> Self {
        let here = Here::of(&tunables);
        let place = match self.place {
            TunedPlace::Here(stack) => TunedPlace::Here(stack),
            TunedPlace::There(tuned) => TunedPlace::There(tuned.with_graph(tunables)),
            TunedPlace::Both(stack, tuned) => TunedPlace::Both(stack, tuned.with_graph(tunables)),
        };
        Self { place, here, ..self }
    }

    /// The hidden state of each row's last token behind the last block, `[rows, hidden]`, from the prefix
    /// `[prefix_len, hidden]` and the rows' tokens `[n_tokens, hidden]`. Differentiable.
    pub(crate) fn forward(&self, prefix: Option<&Tensor>, tokens: &Tensor, rows: &Ragged) -> Result<Tensor, RunError> {
        match &self.place {
            TunedPlace::Here(stack) => self.run(stack, prefix, tokens, rows, Want::LastOfRows),
            TunedPlace::There(tuned) => tuned.forward(prefix, tokens, rows).map_err(RunError::Remote),
            TunedPlace::Both(stack, tuned) => {
                let hidden = self.run(stack, prefix, tokens, rows, Want::All)?;
                let (start, len) = (prefix.map_or(0, |prefix| prefix.size()[0]), rows.n_tokens() as i64);
                let tokens = hidden.f_narrow(0, start, len).map_err(RunError::Torch)?;
                let behind = |before| Ok(self.behind(before, hidden.f_narrow(0, 0, start)?));
                let prefix = prefix.map(behind).transpose().map_err(RunError::Torch)?;
                tuned.forward(prefix.as_ref(), &tokens, rows).map_err(RunError::Remote)
            }
        }
    }

    /// Through the blocks of this process.
    fn run(
        &self,
        stack: &BlockStack,
        prefix: Option<&Tensor>,
        tokens: &Tensor,
        rows: &Ragged,
        want: Want,
    ) -> Result<Tensor, RunError> {
        let inputs: Vec<&Tensor> = prefix.into_iter().chain([tokens]).collect();
        let hidden = Tensor::f_cat(&inputs, 0).map_err(RunError::Torch)?;
        let prefix_len = prefix.map_or(0, |prefix| prefix.size()[0].unsigned_abs() as usize);
        let first = self.here.first(stack.span().len()).map_err(RunError::Torch)?;
        let injected = if prefix.is_some() { first.injected() } else { Injected::default() };
        let output = stack.forward_injected(stack.span(), &hidden, prefix_len, rows, injected, want);
        output.map_err(|error| RunError::Blocks(error.into()))
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
}
