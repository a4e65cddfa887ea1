//! Descriptions of servers and of their failures.

use std::fmt;
use std::time::Duration;

use sepal_core::{
    DEEP_PROMPTS, DType, MAX_BLOCKS, MAX_HIDDEN, PREFIX_KEYS_VALUES, PublicKey, ServerName, Span, visible,
};

use crate::codec::{self, DecodeError};
use crate::sepal_capnp as wire;

/// Recommended reaction to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Retry on the same server after a short pause.
    Here,
    /// Retry on another server.
    Elsewhere,
    /// No retry: the request is wrong.
    Never,
}

/// Kind of a failure on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureCode {
    /// Wrong shape, dtype or name, or a limit that is exceeded.
    InvalidRequest,
    /// Blocks outside the server's span.
    NotServed,
    /// Evicted tape: send the inputs again.
    TapeExpired,
    /// Full queue.
    Overloaded,
    /// Server that shuts down.
    ShuttingDown,
    /// Out of memory, or a bug.
    ComputeFailed,
    /// Message damaged in transit: send it again.
    Unreadable,
    /// Result that could not be forwarded to the next server.
    NotRelayed,
    /// A call or tensors that never fit the server's memory for one client.
    NoMemory,
    /// Caller without the right to this.
    NotPermitted,
}

/// Failure that a server reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("{message}")]
pub struct Failure {
    pub retry: Retry,
    pub code: FailureCode,
    pub message: String,
}

impl Failure {
    /// Returns a failure with the reaction that its code recommends.
    pub fn new(code: FailureCode, message: impl fmt::Display) -> Self {
        let retry = match code {
            FailureCode::InvalidRequest => Retry::Never,
            FailureCode::TapeExpired | FailureCode::Overloaded | FailureCode::Unreadable => Retry::Here,
            FailureCode::NotServed
            | FailureCode::ShuttingDown
            | FailureCode::ComputeFailed
            | FailureCode::NotRelayed
            | FailureCode::NoMemory
            | FailureCode::NotPermitted => Retry::Elsewhere,
        };
        Self { retry, code, message: message.to_string() }
    }

    /// Writes the failure.
    pub fn write(&self, mut builder: wire::failure::Builder<'_>) {
        builder.set_retry(retry_to_wire(self.retry));
        builder.set_code(code_to_wire(self.code));
        builder.set_message(&self.message);
    }

    /// Reads a failure.
    pub fn read(reader: wire::failure::Reader<'_>) -> Result<Self, DecodeError> {
        let (retry, code) = (retry_from_wire(reader.get_retry()?), code_from_wire(reader.get_code()?));
        Ok(Self { retry, code, message: text(reader.get_message()?)? })
    }
}

codec::wire_enums! {
    retry_to_wire, retry_from_wire: Retry { Here, Elsewhere, Never }
    code_to_wire, code_from_wire: FailureCode {
        InvalidRequest, NotServed, TapeExpired, Overloaded, ShuttingDown, ComputeFailed, Unreadable, NotRelayed, NoMemory,
        NotPermitted
    }
}

/// Limits on the requests that a server accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum rows of one batch.
    pub max_rows: u32,
    /// Maximum positions of one batch, prefix and tokens.
    pub max_tokens: u32,
    /// Maximum bytes of one message.
    pub max_message_bytes: u64,
    /// Maximum bytes of all tapes of all clients.
    pub tape_budget_bytes: u64,
    /// Maximum bytes of the tunables and prefixes of one client; 0 if the server does not state it.
    pub client_bytes: u64,
    /// Maximum bytes of the tunables and prefixes of all clients; 0 if the server does not state it.
    pub shared_bytes: u64,
    /// Maximum positions of one row with its prefix; 0 if the server does not state it.
    pub max_row_tokens: u32,
    /// Maximum estimated bytes of one computation; 0 if the server does not state it.
    pub call_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_rows: 4096,
            max_tokens: 16_384,
            max_message_bytes: 256 << 20,
            tape_budget_bytes: 4 << 30,
            client_bytes: 512 << 20,
            shared_bytes: 1 << 30,
            max_row_tokens: 0,
            call_bytes: 0,
        }
    }
}

/// Load of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Number of calls that wait or run.
    pub queue: u32,
    /// Number of stored tapes.
    pub tapes: u32,
    /// Estimated bytes of the stored tapes.
    pub tape_bytes: u64,
    /// Number of computations since the start. It shows clients whether a busy server makes progress.
    pub completed: u64,
    /// Measured seconds per token and block of a forward pass; 0 before the first.
    pub rate: f64,
}

/// Durations of a call on the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Time in the queue.
    pub queued: Duration,
    /// Time of the computation.
    pub computed: Duration,
}

impl Timing {
    /// Writes the durations in microseconds.
    pub fn write(&self, mut builder: wire::timing::Builder<'_>) {
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        builder.set_queued_us(microseconds(self.queued));
        builder.set_computed_us(microseconds(self.computed));
    }

    /// Reads the durations.
    pub fn read(reader: wire::timing::Reader<'_>) -> Self {
        Self {
            queued: Duration::from_micros(reader.get_queued_us()),
            computed: Duration::from_micros(reader.get_computed_us()),
        }
    }
}

/// Description of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerInfo {
    /// Newest protocol that the server speaks.
    pub protocol: u32,
    /// Oldest protocol of a client that the server accepts.
    pub oldest_protocol: u32,
    /// Name and version of the program.
    pub software: String,
    /// Digest of the whole model.
    pub model_digest: String,
    /// Name of the architecture.
    pub family: String,
    /// Number of blocks in the model.
    pub n_blocks: usize,
    /// Size of a hidden state.
    pub hidden: usize,
    /// Blocks that the server holds.
    pub span: Span,
    /// Format of the computation.
    pub compute_dtype: DType,
    /// Description of the checkpoint for people.
    pub weights: String,
    /// Limits on requests.
    pub limits: Limits,
    /// Current load.
    pub load: Load,
    /// Estimated bytes of a tape per token and block.
    pub tape_token_bytes: u32,
    /// True if the server finishes its calls and accepts no new ones.
    pub draining: bool,
    /// Names of the tunables that the blocks take.
    pub tunables: Vec<String>,
    /// Name for people, if the server has one.
    pub name: Option<ServerName>,
    /// Key that signs receipts, if the server has one.
    pub key: Option<PublicKey>,
    /// Number of receipts that were signed since the start.
    pub receipts: u64,
}

impl ServerInfo {
    /// Writes the description.
    pub fn write(&self, mut builder: wire::server_info::Builder<'_>) {
        builder.set_protocol(self.protocol);
        builder.set_software(&self.software);
        builder.set_model_digest(&self.model_digest);
        builder.set_family(&self.family);
        builder.set_n_blocks(codec::size(self.n_blocks));
        builder.set_hidden(codec::size(self.hidden));
        codec::write_span(builder.reborrow().init_span(), self.span);
        builder.set_compute_dtype(codec::dtype_to_wire(self.compute_dtype));
        builder.set_weights(&self.weights);
        let mut limits = builder.reborrow().init_limits();
        limits.set_max_rows(self.limits.max_rows);
        limits.set_max_tokens(self.limits.max_tokens);
        limits.set_max_message_bytes(self.limits.max_message_bytes);
        limits.set_tape_budget_bytes(self.limits.tape_budget_bytes);
        limits.set_client_bytes(self.limits.client_bytes);
        limits.set_shared_bytes(self.limits.shared_bytes);
        limits.set_max_row_tokens(self.limits.max_row_tokens);
        limits.set_call_bytes(self.limits.call_bytes);
        builder.set_tape_token_bytes(self.tape_token_bytes);
        builder.set_draining(self.draining);
        builder.set_oldest_protocol(self.oldest_protocol);
        let mut tunables = builder.reborrow().init_tunables(codec::size(self.tunables.len()));
        for (index, name) in (0..).zip(&self.tunables) {
            tunables.set(index, name);
        }
        if let Some(name) = &self.name {
            builder.set_name(name.as_str());
        }
        if let Some(key) = &self.key {
            builder.set_key(&key.0);
        }
        builder.set_receipts(self.receipts);
        let mut load = builder.init_load();
        load.set_queue(self.load.queue);
        load.set_tapes(self.load.tapes);
        load.set_tape_bytes(self.load.tape_bytes);
        load.set_completed(self.load.completed);
        load.set_rate(self.load.rate);
    }

    /// Reads a description.
    pub fn read(reader: wire::server_info::Reader<'_>) -> Result<Self, DecodeError> {
        let limits = reader.get_limits()?;
        let load = reader.get_load()?;
        let protocol = reader.get_protocol();
        let oldest_protocol = match reader.get_oldest_protocol() {
            0 => protocol,
            oldest => oldest,
        };
        let tunables = reader.get_tunables()?;
        stated("number of tunables", tunables.len().max(1), MAX_TUNABLES)?;
        let mut tunables = tunables.iter().map(|name| text(name?)).collect::<Result<Vec<String>, DecodeError>>()?;
        if tunables.is_empty() {
            tunables = [DEEP_PROMPTS, PREFIX_KEYS_VALUES].map(str::to_owned).into();
        }
        let n_blocks = stated("number of blocks", reader.get_n_blocks(), MAX_BLOCKS)?;
        let span = codec::read_span(reader.get_span()?)?;
        if span.end() > n_blocks {
            return Err(DecodeError::Outside { span, n_blocks });
        }
        Ok(Self {
            protocol,
            oldest_protocol,
            software: text(reader.get_software()?)?,
            model_digest: text(reader.get_model_digest()?)?,
            family: text(reader.get_family()?)?,
            n_blocks,
            hidden: stated("hidden size", reader.get_hidden(), MAX_HIDDEN)?,
            span,
            compute_dtype: codec::dtype_from_wire(reader.get_compute_dtype()?),
            weights: text(reader.get_weights()?)?,
            limits: Limits {
                max_rows: limits.get_max_rows(),
                max_tokens: limits.get_max_tokens(),
                max_message_bytes: limits.get_max_message_bytes(),
                tape_budget_bytes: limits.get_tape_budget_bytes(),
                client_bytes: limits.get_client_bytes(),
                shared_bytes: limits.get_shared_bytes(),
                max_row_tokens: limits.get_max_row_tokens(),
                call_bytes: limits.get_call_bytes(),
            },
            load: Load {
                queue: load.get_queue(),
                tapes: load.get_tapes(),
                tape_bytes: load.get_tape_bytes(),
                completed: load.get_completed(),
                rate: Some(load.get_rate()).filter(|rate| rate.is_finite() && *rate > 0.0).unwrap_or_default(),
            },
            tape_token_bytes: reader.get_tape_token_bytes(),
            draining: reader.get_draining(),
            tunables,
            name: ServerName::from_peer(reader.get_name()?.to_str()?),
            key: PublicKey::from_bytes(reader.get_key()?),
            receipts: reader.get_receipts(),
        })
    }
}

/// Most names of tunables in a description, above those of any family.
const MAX_TUNABLES: usize = 256;

/// Text of a peer. It is compared and shown, so characters that change a terminal are escaped where it enters.
fn text(text: capnp::text::Reader<'_>) -> Result<String, DecodeError> {
    Ok(visible(text.to_str()?).into_owned())
}

/// Number of a peer that sizes memory or loops, from 1 to `greatest`.
fn stated(field: &'static str, found: u32, greatest: usize) -> Result<usize, DecodeError> {
    let out_of_range = DecodeError::Stated { field, found: found.into(), greatest: greatest as u64 };
    usize::try_from(found).ok().filter(|found| (1..=greatest).contains(found)).ok_or(out_of_range)
}

#[cfg(test)]
mod tests {
    use capnp::message::Builder;

    use super::*;

    fn info() -> ServerInfo {
        ServerInfo {
            protocol: crate::PROTOCOL,
            oldest_protocol: 6,
            software: "sepal 0.1.0".into(),
            model_digest: "sha256:ab".into(),
            family: "llama".into(),
            n_blocks: 30,
            hidden: 576,
            span: Span::new(10, 20).expect("a span"),
            compute_dtype: DType::F32,
            weights: "gguf".into(),
            limits: Limits { max_row_tokens: 9, call_bytes: 10, ..Limits::default() },
            load: Load { queue: 1, tapes: 2, tape_bytes: 3, completed: 4, rate: 5e-6 },
            tape_token_bytes: 6,
            draining: true,
            tunables: vec!["deep_prompts".into()],
            name: "lab-3".parse().ok(),
            key: Some(PublicKey([7; 32])),
            receipts: 8,
        }
    }

    fn read_back(info: &ServerInfo) -> Result<ServerInfo, DecodeError> {
        let mut message = Builder::new_default();
        info.write(message.init_root());
        ServerInfo::read(message.get_root_as_reader().expect("a root"))
    }

    #[test]
    fn server_info_round_trip_is_exact() {
        assert_eq!(read_back(&info()).expect("info"), info());
    }

    #[test]
    fn numbers_that_no_model_has_are_refused() {
        let check = |info: ServerInfo, needle: &str| {
            let error = read_back(&info).expect_err("refused").to_string();
            assert!(error.contains(needle), "{error}");
        };
        check(ServerInfo { n_blocks: 4_000_000_000, ..info() }, "a server's number of blocks is 4000000000");
        check(ServerInfo { n_blocks: 0, ..info() }, "number of blocks is 0");
        check(ServerInfo { n_blocks: 15, ..info() }, "blocks 10:20 of a model with 15");
        check(ServerInfo { hidden: 0, ..info() }, "hidden size is 0");
        check(ServerInfo { hidden: MAX_HIDDEN + 1, ..info() }, "hidden size is");
        check(ServerInfo { tunables: vec!["x".into(); MAX_TUNABLES + 1], ..info() }, "number of tunables is 257");
    }

    #[test]
    fn rates_that_are_no_durations_count_as_unmeasured() {
        for rate in [f64::NAN, f64::INFINITY, -1.0, -0.0] {
            let read = read_back(&ServerInfo { load: Load { rate, ..info().load }, ..info() }).expect("info");
            assert_eq!(read.load.rate.to_bits(), 0.0_f64.to_bits(), "{rate}");
        }
    }

    #[test]
    fn texts_of_peers_cannot_change_a_terminal() {
        let hostile = "llama\u{1b}]0;owned\u{7}\n\u{202e}";
        let read = read_back(&ServerInfo { family: hostile.into(), weights: hostile.into(), ..info() }).expect("info");
        assert_eq!(read.family, "llama\\u{1b}]0;owned\\u{7}\\u{a}\\u{202e}");
        assert_eq!(read.weights, read.family);
        let mut message = Builder::new_default();
        Failure::new(FailureCode::ComputeFailed, hostile).write(message.init_root());
        let failure = Failure::read(message.get_root_as_reader().expect("a root")).expect("a failure");
        assert_eq!(failure.message, read.family);
    }

    #[test]
    fn timing_round_trip_is_exact() {
        let timing = Timing { queued: Duration::from_micros(7), computed: Duration::from_secs(8) };
        let mut message = Builder::new_default();
        timing.write(message.init_root());
        assert_eq!(Timing::read(message.get_root_as_reader().expect("a root")), timing);
    }

    #[test]
    fn failure_round_trip_keeps_code_and_reaction() {
        for (code, retry) in [
            (FailureCode::InvalidRequest, Retry::Never),
            (FailureCode::TapeExpired, Retry::Here),
            (FailureCode::ComputeFailed, Retry::Elsewhere),
            (FailureCode::Unreadable, Retry::Here),
        ] {
            let failure = Failure::new(code, "a message");
            assert_eq!(failure.retry, retry);
            let mut message = Builder::new_default();
            failure.write(message.init_root());
            assert_eq!(Failure::read(message.get_root_as_reader().expect("a root")).expect("a failure"), failure);
        }
    }
}
