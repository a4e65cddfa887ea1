//! Receipts of calls: what a server signs, and when.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sepal_core::{DType, HostTensor, HostTunable, Span, Want};
use sepal_swarm::{IdentityKey, Receipt, Sha256, Statement, backward_call, forward_call};
use sepal_wire::codec::{GradWant, Grads, WireBatch};
use sepal_wire::sepal_capnp as wire;

use crate::stats::ServerStats;

/// Signs receipts with the key of the server.
pub(crate) struct Signer {
    key: Arc<IdentityKey>,
    /// Digest of the model.
    model: String,
    stats: Arc<ServerStats>,
}

/// Tunables of a step, hashed with the first call that wants a receipt. Their bytes are shared.
pub(crate) struct SignedTunables {
    tunables: Vec<HostTunable>,
    hash: OnceCell<Sha256>,
}

/// Forward call whose result, or that of its backward call, is signed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignedCall {
    span: Span,
    want: Want,
    tunables: Sha256,
    /// Hash of the batch.
    batch: Sha256,
}

impl SignedTunables {
    pub(crate) fn new(tunables: &[HostTunable]) -> Self {
        Self { tunables: tunables.to_vec(), hash: OnceCell::new() }
    }

    /// Begins a call on a batch.
    pub(crate) fn call(&self, span: Span, want: Want, batch: &WireBatch) -> SignedCall {
        let tunables = *self.hash.get_or_init(|| Sha256::of_tunables(&self.tunables));
        let WireBatch { prefix_len, prefix_cached, rows, hidden } = batch;
        SignedCall { span, want, tunables, batch: Sha256::of_batch(*prefix_len, *prefix_cached, rows, hidden) }
    }
}

impl Signer {
    pub(crate) fn new(key: Arc<IdentityKey>, model: String, stats: Arc<ServerStats>) -> Self {
        Self { key, model, stats }
    }

    /// Signs the result of a forward call.
    pub(crate) fn forward(&self, call: &SignedCall, dtype: DType, hidden: &HostTensor) -> Receipt {
        self.sign(call, forward_call(call.want, dtype), call.batch, Sha256::of_tensor(hidden))
    }

    /// Signs the gradients of a backward call.
    pub(crate) fn backward(
        &self,
        call: &SignedCall,
        grad_output: &HostTensor,
        want: GradWant,
        grads: &Grads,
    ) -> Receipt {
        let name = backward_call(call.want, want.dtype, want.input.name(), want.tunables);
        let input = Sha256::of_backward_input(call.batch, grad_output);
        self.sign(call, name, input, Sha256::of_grads(grads.input.as_ref(), &grads.tunables))
    }

    fn sign(&self, call: &SignedCall, name: String, input: Sha256, output: Sha256) -> Receipt {
        self.stats.receipts.fetch_add(1, Ordering::Relaxed);
        let statement = Statement { model: self.model.clone(), span: call.span, call: name, tunables: call.tunables };
        Receipt::sign(&self.key, &statement, input, output)
    }
}

/// Writes a receipt.
pub(crate) fn write_receipt(receipt: &Receipt, mut builder: wire::receipt::Builder<'_>) {
    builder.set_input(&receipt.input.0);
    builder.set_output(&receipt.output.0);
    builder.set_signature(&receipt.signature);
}
