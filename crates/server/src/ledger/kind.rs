//! Kinds of memory.

/// Kind of memory in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Tunables and the adapters that are made of them.
    Tunables,
    /// Cached prefixes.
    Prefixes,
    Tapes,
    /// Inputs of calls that wait or are computed.
    Calls,
    /// Tensors of other servers that wait for their calls.
    Mailbox,
    /// Messages that are being read.
    Frames,
    /// Answers that are not read yet, and results on their way to other servers.
    Answers,
    /// Entries of sessions and their parts.
    Sessions,
    /// Estimated memory of the computation that runs.
    Computation,
}

/// Number of kinds.
pub(super) const N_KINDS: usize = 9;

impl Kind {
    pub(crate) const ALL: [Self; N_KINDS] = [
        Self::Tunables,
        Self::Prefixes,
        Self::Tapes,
        Self::Calls,
        Self::Mailbox,
        Self::Frames,
        Self::Answers,
        Self::Sessions,
        Self::Computation,
    ];
    /// Kinds that share the limits of tunables.
    pub(crate) const TUNABLES: [Self; 2] = [Self::Tunables, Self::Prefixes];
    /// All kinds but sessions.
    pub(super) const WORK: [Self; N_KINDS - 1] = [
        Self::Tunables,
        Self::Prefixes,
        Self::Tapes,
        Self::Calls,
        Self::Mailbox,
        Self::Frames,
        Self::Answers,
        Self::Computation,
    ];
    /// Kinds that exist during calls only.
    pub(super) const TRANSIENT: [Self; 4] = [Self::Calls, Self::Mailbox, Self::Frames, Self::Answers];
    /// Kinds that exist between calls.
    pub(super) const KEPT: [Self; 4] = [Self::Tunables, Self::Prefixes, Self::Tapes, Self::Sessions];
    /// Kinds whose memory is freed without another message.
    pub(super) const ENDING: [Self; 3] = [Self::Calls, Self::Answers, Self::Computation];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tunables => "tunables",
            Self::Prefixes => "prefixes",
            Self::Tapes => "tapes",
            Self::Calls => "calls",
            Self::Mailbox => "mailbox",
            Self::Frames => "frames",
            Self::Answers => "answers",
            Self::Sessions => "sessions",
            Self::Computation => "computation",
        }
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Tunables | Self::Prefixes => "tunables and prefixes",
            Self::Tapes => "a tape",
            Self::Calls => "inputs",
            Self::Mailbox => "a tensor of another server",
            Self::Frames => "a message",
            Self::Answers => "an answer",
            Self::Sessions => "a session",
            Self::Computation => "a computation",
        }
    }
}
