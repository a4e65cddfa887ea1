use sepal_swarm::{Receipt, Sha256};
use sepal_wire::sepal_capnp as wire;

use super::peer::Peer;
use crate::error::CallError;

impl Peer {
    /// True if the server is to sign the results of its calls. All calls ask for it, so that no server learns which ones are
    /// checked.
    pub(super) fn wants_receipts(&self) -> bool {
        self.shared.can_verify()
    }
}

/// Reads the receipt of an answer. One of the wrong form counts as none.
pub(super) fn read_receipt(
    has_receipt: bool,
    receipt: capnp::Result<wire::receipt::Reader<'_>>,
) -> Result<Option<Receipt>, CallError> {
    if !has_receipt {
        return Ok(None);
    }
    let receipt = receipt?;
    let (input, output) = (Sha256::from_bytes(receipt.get_input()?), Sha256::from_bytes(receipt.get_output()?));
    let signature = receipt.get_signature()?.to_vec();
    Ok(input.zip(output).map(|(input, output)| Receipt { input, output, signature }))
}
