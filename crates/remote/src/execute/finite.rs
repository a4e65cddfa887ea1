use sepal_core::{HostTensor, HostTunable, Span};
use sepal_route::Hop;
use sepal_wire::codec::{GradWant, Grads, InputGrad, WireBatch};

use crate::command::MicroBatchGrads;
use crate::error::{CallError, RemoteError};
use crate::servers::Servers;
use crate::step::Step;

impl MicroBatchGrads {
    pub(super) fn are_finite(&self) -> bool {
        all_finite(self.input.as_ref(), &self.tunables)
    }
}

pub(super) fn all_finite<'a>(input: Option<&HostTensor>, tunables: impl IntoIterator<Item = &'a HostTunable>) -> bool {
    input.is_none_or(HostTensor::is_finite) && tunables.into_iter().all(|named| named.tensor.is_finite())
}

/// Returns the error for non-finite values that the server of `hop` produced, in `block_idx` if that is known.
pub(super) fn non_finite(servers: &Servers, hop: Hop, block_idx: Option<usize>, what: &'static str) -> RemoteError {
    let block = block_idx.and_then(|block_idx| Span::new(block_idx, block_idx + 1).ok());
    let span = block.filter(|&block| hop.span.covers(block)).unwrap_or(hop.span);
    RemoteError::NonFinite { server: servers.label(hop.server), span, what }
}

/// Checks that an answer has all gradients that were requested. A missing one would count as zero.
pub(super) fn check_grads(
    step: &Step,
    span: Span,
    batch: &WireBatch,
    want: GradWant,
    grads: Grads,
) -> Result<Grads, CallError> {
    let positions = match want.input {
        InputGrad::All => Some(batch.positions()),
        InputGrad::Prefix => Some(batch.prefix_len),
        InputGrad::None => None,
    };
    let found = grads.input.as_ref().and_then(|grad| Some((*grad.shape().first()?, grad.dtype())));
    if found != positions.map(|positions| (positions, want.input_dtype())) {
        return Err(CallError::Missing("the requested gradient of the input"));
    }
    let wanted = if want.tunables { step.slice_tunables(span)? } else { Vec::new() };
    let is_complete = wanted.len() == grads.tunables.len()
        && wanted.iter().zip(&grads.tunables).all(|(tunable, grad)| {
            (&grad.name, grad.tensor.shape(), grad.tensor.dtype())
                == (&tunable.name, tunable.tensor.shape(), want.tunables_dtype())
        });
    // A server of an older protocol states no blocks.
    let mut grads = grads;
    for (tunable, grad) in wanted.iter().zip(&mut grads.tunables) {
        grad.first_block = tunable.first_block;
    }
    if is_complete { Ok(grads) } else { Err(CallError::Missing("the requested gradients of the tunables")) }
}
