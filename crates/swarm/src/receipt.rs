//! Receipts: signed statements of servers about single calls.
//!
//! The signed bytes are those of [`Statement::signed_bytes`]. Numbers are 64-bit and little-endian; a text or a list of bytes
//! follows its length.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256};
use sepal_core::{DType, HostTensor, HostTunable, PublicKey, Ragged, Span, Want};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::key::{IdentityKey, is_signed_by};

/// First bytes of what is signed. A change of the signed bytes changes the number.
const VERSION: &str = "sepal receipt 1";

/// SHA-256 of a batch, a result or tunables, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; Sha256::BYTES]);

/// Identity of a call: the model, the blocks, the kind of the call and the tunables of its step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Digest of the model.
    pub model: String,
    /// Blocks that were computed.
    pub span: Span,
    /// Kind of the call, with its options: [`forward_call`] or [`backward_call`].
    pub call: String,
    /// Tunables of the step in these blocks.
    pub tunables: Sha256,
}

/// Statement of a server about the input and the result of a call, signed with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Input of the call.
    pub input: Sha256,
    /// Result of the call.
    pub output: Sha256,
    /// Signature (Ed25519) of the statement with input and result.
    #[serde(serialize_with = "write_hex", deserialize_with = "read_hex")]
    pub signature: Vec<u8>,
}

/// Answer of one server to a call that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// Address or name of the server.
    pub server: String,
    /// Key that it stated, if any.
    pub key: Option<PublicKey>,
    /// Call that it answered.
    pub statement: Statement,
    /// Input, as the client sent it.
    pub input: Sha256,
    /// Result, as the client received it.
    pub output: Sha256,
    /// Receipt of the server, if it gave one.
    pub receipt: Option<Receipt>,
}

/// Record of a result that others contradict: the server's answer beside theirs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Answer that was found to be wrong or, in a dispute, that was checked.
    pub accused: Witness,
    /// True if nothing told which result is right.
    #[serde(default)]
    pub disputed: bool,
    /// Number of the session with the servers, one for each optimizer step or evaluation.
    pub session: u64,
    /// Relative difference of the results, and the largest that counts as equal.
    pub difference: f64,
    /// Tolerance of `difference`.
    pub tolerance: f64,
    /// Answers to the same call, or to parts of it in the order of the blocks.
    pub checkers: Vec<Witness>,
}

impl Statement {
    /// Returns the bytes that a server signs for a call with this input and result.
    pub fn signed_bytes(&self, input: Sha256, output: Sha256) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut text = |text: &str| {
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        let span = self.span.to_string();
        [VERSION, self.model.as_str(), span.as_str(), self.call.as_str()].into_iter().for_each(&mut text);
        [self.tunables, input, output].iter().for_each(|hash| bytes.extend_from_slice(&hash.0));
        bytes
    }
}

impl Receipt {
    /// Signs input and result of the call of `statement`.
    pub fn sign(key: &IdentityKey, statement: &Statement, input: Sha256, output: Sha256) -> Self {
        Self { input, output, signature: key.sign(&statement.signed_bytes(input, output)) }
    }

    /// True if the owner of `key` signed this receipt for the call of `statement`.
    pub fn verify(&self, key: PublicKey, statement: &Statement) -> bool {
        is_signed_by(key, &statement.signed_bytes(self.input, self.output), &self.signature)
    }
}

impl Witness {
    /// True if the server has no key, or its receipt is signed and names the input and the result that the client saw.
    pub fn is_signed(&self) -> bool {
        let Some(key) = self.key else { return true };
        self.receipt.as_ref().is_some_and(|receipt| {
            (receipt.input, receipt.output) == (self.input, self.output) && receipt.verify(key, &self.statement)
        })
    }
}

/// Name of a forward call, of which these positions are returned in this format.
pub fn forward_call(want: Want, dtype: DType) -> String {
    format!("forward {} {dtype}", want_name(want))
}

/// Name of a backward call after a forward call that returned these positions. `input` names the part of the input's gradient.
pub fn backward_call(want: Want, dtype: DType, input: &str, has_tunables: bool) -> String {
    let tunables = if has_tunables { "tunables" } else { "no-tunables" };
    format!("backward {} {dtype} {input} {tunables}", want_name(want))
}

fn want_name(want: Want) -> &'static str {
    match want {
        Want::All => "all",
        Want::LastOfRows => "last_of_rows",
        Want::Tokens => "tokens",
        Want::MeanOfRows => "mean_of_rows",
    }
}

impl Sha256 {
    /// Size of a hash.
    pub const BYTES: usize = 32;

    /// Returns the hash of these bytes; `None` if they are of another number.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Hash of a batch, the input of a forward call.
    pub fn of_batch(prefix_len: usize, is_prefix_cached: bool, rows: &Ragged, hidden: &HostTensor) -> Self {
        let mut hasher = Hasher::new();
        hasher.number(prefix_len);
        hasher.number(usize::from(is_prefix_cached));
        hasher.number(rows.offsets().len());
        rows.offsets().iter().for_each(|&offset| hasher.number(offset as usize));
        hasher.tensor(hidden);
        hasher.finish()
    }

    /// Hash of the input of a backward call: the batch of its forward call and the gradient of the output.
    pub fn of_backward_input(batch: Self, grad_output: &HostTensor) -> Self {
        let mut hasher = Hasher::new();
        hasher.bytes(&batch.0);
        hasher.tensor(grad_output);
        hasher.finish()
    }

    /// Hash of the result of a forward call.
    pub fn of_tensor(tensor: &HostTensor) -> Self {
        let mut hasher = Hasher::new();
        hasher.tensor(tensor);
        hasher.finish()
    }

    /// Hash of the tunables of a session.
    pub fn of_tunables(tunables: &[HostTunable]) -> Self {
        Self::of_grads(None, tunables)
    }

    /// Hash of the result of a backward call: the gradients of the input and of the tunables.
    pub fn of_grads(input: Option<&HostTensor>, tunables: &[HostTunable]) -> Self {
        let mut hasher = Hasher::new();
        hasher.number(usize::from(input.is_some()));
        input.iter().for_each(|input| hasher.tensor(input));
        hasher.number(tunables.len());
        for HostTunable { name, first_block, tensor } in tunables {
            hasher.bytes(name.as_bytes());
            hasher.number(*first_block);
            hasher.tensor(tensor);
        }
        hasher.finish()
    }
}

struct Hasher(Context);

impl Hasher {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    fn number(&mut self, number: usize) {
        self.0.update(&(number as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.update(bytes);
    }

    fn tensor(&mut self, tensor: &HostTensor) {
        self.bytes(tensor.dtype().name().as_bytes());
        self.number(tensor.shape().len());
        tensor.shape().iter().for_each(|&dim| self.number(dim));
        self.bytes(tensor.data());
    }

    fn finish(self) -> Sha256 {
        let mut bytes = [0; Sha256::BYTES];
        bytes.copy_from_slice(self.0.finish().as_ref());
        Sha256(bytes)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

/// A text that is no list of bytes in hexadecimal digits, or one of another length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected bytes as hexadecimal digits, 64 for a SHA-256")]
pub struct HexError;

impl FromStr for Sha256 {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        from_hex(text).and_then(|bytes| Self::from_bytes(&bytes)).ok_or(HexError)
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).ok()).collect()
}

fn write_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&to_hex(bytes))
}

fn read_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    from_hex(&String::deserialize(deserializer)?).ok_or_else(|| serde::de::Error::custom(HexError))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> Statement {
        let tunables = Sha256::of_tunables(&[]);
        let call = forward_call(Want::LastOfRows, DType::F32);
        Statement { model: "sha256:ab".into(), span: Span::new(3, 7).expect("a span"), call, tunables }
    }

    fn tensor(first: f32) -> HostTensor {
        HostTensor::from_f32(vec![2, 2], &[first, 2.0, 3.0, 4.0]).expect("fits")
    }

    #[test]
    fn receipt_is_bound_to_key_statement_input_and_output() {
        let (key, other) = (IdentityKey::generate().expect("a key"), IdentityKey::generate().expect("a key"));
        let (input, output) = (Sha256::of_tensor(&tensor(1.0)), Sha256::of_tensor(&tensor(5.0)));
        let receipt = Receipt::sign(&key, &statement(), input, output);
        assert!(receipt.verify(key.public(), &statement()));
        assert!(!receipt.verify(other.public(), &statement()));
        let span = Span::new(3, 8).expect("a span");
        let call = backward_call(Want::LastOfRows, DType::F32, "prefix", true);
        let tunables = input;
        for changed in [
            Statement { model: "sha256:ac".into(), ..statement() },
            Statement { span, ..statement() },
            Statement { call, ..statement() },
            Statement { tunables, ..statement() },
        ] {
            assert!(!receipt.verify(key.public(), &changed), "{changed:?}");
        }
        assert!(!Receipt { input: output, ..receipt.clone() }.verify(key.public(), &statement()));
        assert!(!Receipt { output: input, ..receipt.clone() }.verify(key.public(), &statement()));
        assert!(!Receipt { signature: Vec::new(), ..receipt }.verify(key.public(), &statement()));
    }

    #[test]
    fn witness_with_key_needs_a_receipt_of_what_the_client_saw() {
        let key = IdentityKey::generate().expect("a key");
        let (input, output) = (Sha256::of_tensor(&tensor(1.0)), Sha256::of_tensor(&tensor(5.0)));
        let receipt = Some(Receipt::sign(&key, &statement(), input, output));
        let server = "a:1".to_owned();
        let signed = Witness { server, key: Some(key.public()), statement: statement(), input, output, receipt };
        assert!(signed.is_signed());
        assert!(!Witness { receipt: None, ..signed.clone() }.is_signed());
        assert!(!Witness { output: input, ..signed.clone() }.is_signed());
        assert!(Witness { key: None, receipt: None, ..signed }.is_signed(), "a server without a key signs nothing");
    }

    #[test]
    fn evidence_round_trip_is_exact() {
        let key = IdentityKey::generate().expect("a key");
        let hash = Sha256::of_grads(Some(&tensor(1.0)), &[]);
        let receipt = Some(Receipt::sign(&key, &statement(), hash, hash));
        let server = "a:1".to_owned();
        let witness =
            Witness { server, key: Some(key.public()), statement: statement(), input: hash, output: hash, receipt };
        let checkers = vec![witness.clone()];
        let evidence =
            Evidence { accused: witness, disputed: false, session: 3, difference: 0.05, tolerance: 0.001, checkers };
        let text = serde_json::to_string(&evidence).expect("JSON");
        assert_eq!(serde_json::from_str::<Evidence>(&text).expect("the same"), evidence);
        assert!(serde_json::from_str::<Evidence>(&text.replace(&hash.to_string(), "xy")).is_err());
    }

    #[test]
    fn hashes_differ_in_every_part() {
        let rows = |lengths: &[usize]| Ragged::from_lengths(lengths.iter().copied()).expect("rows");
        let base = Sha256::of_batch(0, false, &rows(&[1, 1]), &tensor(1.0));
        let others = [
            Sha256::of_batch(1, false, &rows(&[1, 1]), &tensor(1.0)),
            Sha256::of_batch(0, true, &rows(&[1, 1]), &tensor(1.0)),
            Sha256::of_batch(0, false, &rows(&[2]), &tensor(1.0)),
            Sha256::of_batch(0, false, &rows(&[1, 1]), &tensor(1.5)),
            Sha256::of_backward_input(base, &tensor(1.0)),
        ];
        assert!(others.iter().all(|other| *other != base));
        let tunable = |name: &str, first_block| HostTunable { name: name.into(), first_block, tensor: tensor(1.0) };
        let tunables = [vec![], vec![tunable("a", 0)], vec![tunable("b", 0)], vec![tunable("a", 1)]];
        let hashes: std::collections::HashSet<Sha256> = tunables.iter().map(|list| Sha256::of_tunables(list)).collect();
        assert_eq!(hashes.len(), tunables.len());
    }
}
