//! Receipts of servers, and evidence against them.

use sepal_core::{DType, Want};
use sepal_swarm::{Evidence, IdentityKey, Receipt, Sha256, Statement, Witness, backward_call, forward_call};

/// The file of an evidence, or one of its parts.
pub(crate) fn evidence(bytes: &[u8]) {
    if let Ok(evidence) = serde_json::from_slice::<Evidence>(bytes) {
        std::iter::once(&evidence.accused).chain(&evidence.checkers).for_each(check);
        let _ = serde_json::to_vec_pretty(&evidence).is_ok();
    }
    if let Ok(witness) = serde_json::from_slice::<Witness>(bytes) {
        check(&witness);
    }
    if let (Ok(receipt), Some(key)) = (serde_json::from_slice::<Receipt>(bytes), key()) {
        assert!(!statements().iter().any(|statement| receipt.verify(key.public(), statement) && !is_own(&receipt)));
    }
}

/// True for the receipt of the seeds: nothing else is signed with its key.
fn is_own(receipt: &Receipt) -> bool {
    (receipt.input, receipt.output) == (hash(), hash())
}

/// Checks the signature of a witness, which names what it signs.
fn check(witness: &Witness) {
    let text = format!("{witness:?}");
    let is_signed = witness.is_signed();
    let bytes = witness.statement.signed_bytes(witness.input, witness.output);
    let _ = (text.len(), is_signed, bytes.len());
}

fn key() -> Option<IdentityKey> {
    IdentityKey::from_seed([7; 32]).ok()
}

fn hash() -> Sha256 {
    Sha256([7; Sha256::BYTES])
}

fn statements() -> Vec<Statement> {
    let calls = [forward_call(Want::All, DType::F32), backward_call(Want::MeanOfRows, DType::Bf16, "prefix", true)];
    let statement = |call| {
        let span = "0:4".parse().ok()?;
        Some(Statement { model: "sha256:ab".to_owned(), span, call, tunables: hash() })
    };
    calls.into_iter().filter_map(statement).collect()
}

/// An evidence, a witness and a receipt, signed.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let Some(key) = key() else { return Vec::new() };
    let witness = |statement: Statement| Witness {
        server: "10.0.0.5:4000".to_owned(),
        key: Some(key.public()),
        receipt: Some(Receipt::sign(&key, &statement, hash(), hash())),
        statement,
        input: hash(),
        output: hash(),
    };
    let witnesses: Vec<Witness> = statements().into_iter().map(witness).collect();
    let Some(accused) = witnesses.first().cloned() else { return Vec::new() };
    let seeds = [
        serde_json::to_vec(&accused.receipt),
        serde_json::to_vec(&accused),
        serde_json::to_vec(&Evidence {
            accused,
            disputed: true,
            session: 7,
            difference: 0.5,
            tolerance: 0.01,
            checkers: witnesses,
        }),
    ];
    seeds.into_iter().flatten().collect()
}
