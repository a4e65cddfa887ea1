//! Limits of the ledger.

use sepal_wire::Limits;

/// Maximum bytes of the sessions, steps and tapes of one connection, beside their tensors: 16 thousand.
const MAX_SESSION_BYTES: u64 = 16 << 20;

/// Limits in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quotas {
    /// Everything. Entries of sessions do not keep messages out, which may exceed it by as much.
    pub(super) server: u64,
    /// Everything that exists between calls of one connection.
    pub(super) connection: u64,
    /// Memory that exists during calls only, beside tapes, tunables and the computation. Clients with at most equal shares may
    /// exceed it.
    pub(super) transient: u64,
    pub(super) connection_transient: u64,
    /// Sessions, steps and tapes beside their tensors. Clients with at most equal shares may exceed it.
    pub(super) sessions: u64,
    pub(super) connection_sessions: u64,
    /// Tunables and cached prefixes of one connection, and of all.
    pub(super) client_tunables: u64,
    pub(super) tunables: u64,
    /// Tensors of other servers that wait for their calls.
    pub(super) mailbox: u64,
}

impl Quotas {
    /// Limits of a server. Without `max_memory` only tunables and the mailbox are limited.
    pub(crate) fn new(limits: &Limits, max_memory: Option<u64>) -> Self {
        let Limits { client_bytes: client_tunables, shared_bytes: tunables, max_message_bytes: mailbox, .. } = *limits;
        let Some(server) = max_memory else {
            return Self {
                server: u64::MAX,
                connection: u64::MAX,
                transient: u64::MAX,
                connection_transient: u64::MAX,
                sessions: u64::MAX,
                connection_sessions: u64::MAX,
                client_tunables,
                tunables,
                mailbox,
            };
        };
        let parts = [limits.tape_budget_bytes, limits.shared_bytes, limits.call_bytes];
        let transient = parts.into_iter().fold(server, u64::saturating_sub);
        // One connection leaves room for others, but a single client may have all tapes.
        let (connection, connection_transient) = (server / 4 * 3, transient / 2);
        let sessions = server / 16;
        let connection_sessions = MAX_SESSION_BYTES.min(sessions / 2);
        Self {
            server,
            connection,
            transient,
            connection_transient,
            sessions,
            connection_sessions,
            client_tunables,
            tunables,
            mailbox,
        }
    }
}
