use std::sync::Arc;

use sepal_core::{HostTensor, HostTunable, Want};
use sepal_route::Hop;
use sepal_wire::codec::{InputGrad, WireBatch};
use tokio::sync::oneshot;

use crate::error::RemoteError;
use crate::step::Step;

/// Number of a forward call whose traces are kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CallId(pub(crate) u64);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, RemoteError>>;

/// Command to the RPC thread.
pub(crate) enum Command {
    Forward {
        step: Arc<Step>,
        /// Each micro-batch with its planned route.
        batches: Vec<(WireBatch, Vec<Hop>)>,
        want: Want,
        keep_tape: bool,
        reply: Reply<(CallId, Vec<HostTensor>)>,
    },
    Backward {
        call: CallId,
        grads: Vec<HostTensor>,
        want: WantedGrads,
        reply: Reply<Vec<MicroBatchGrads>>,
    },
    Forget {
        call: CallId,
    },
    Stop,
}

/// Gradients of one micro-batch.
#[derive(Default)]
pub(crate) struct MicroBatchGrads {
    /// Gradient of the prefix `[prefix_len, hidden]` or of all positions, as wanted.
    pub(crate) input: Option<HostTensor>,
    /// Gradients of the tunables' parts, span by span.
    pub(crate) tunables: Vec<HostTunable>,
}

/// Gradients that the client wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedGrads {
    /// Gradient of the input of the first hop.
    pub(crate) input: InputGrad,
    pub(crate) tunables: bool,
}

impl WantedGrads {
    /// Returns the wanted gradient of the first hop's input. A batch without a prefix has no gradient of the prefix.
    pub(crate) fn input_of(self, prefix_len: usize) -> InputGrad {
        if self.input == InputGrad::Prefix && prefix_len == 0 { InputGrad::None } else { self.input }
    }
}
