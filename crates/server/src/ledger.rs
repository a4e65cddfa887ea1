//! Ledger of the memory that clients use, within limits for each connection and for all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

use sepal_wire::{Failure, FailureCode, Limits, Quota, Reserved};

use crate::lock::lock;
use crate::queue::ClientId;
use crate::refusals::{Reason, Refusals};

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

const N_KINDS: usize = 9;

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
    /// Kinds that exist during calls only.
    const TRANSIENT: [Self; 4] = [Self::Calls, Self::Mailbox, Self::Frames, Self::Answers];
    /// Kinds that exist between calls.
    const KEPT: [Self; 4] = [Self::Tunables, Self::Prefixes, Self::Tapes, Self::Sessions];
    /// Kinds whose memory is freed without another message.
    const ENDING: [Self; 3] = [Self::Calls, Self::Answers, Self::Computation];

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

    fn describe(self) -> &'static str {
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

/// Maximum bytes of the sessions, steps and tapes of one connection, beside their tensors: 16 thousand.
const MAX_SESSION_BYTES: u64 = 16 << 20;

/// Limits in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quotas {
    /// Everything.
    server: u64,
    /// Everything that exists between calls of one connection.
    connection: u64,
    /// Memory that exists during calls only, beside tapes, tunables and the computation. Connections with at most equal shares
    /// may exceed it.
    transient: u64,
    connection_transient: u64,
    /// Sessions, steps and tapes of one connection, beside their tensors.
    connection_sessions: u64,
    /// Tunables and cached prefixes of one connection, and of all.
    client_tunables: u64,
    tunables: u64,
}

impl Quotas {
    /// Limits of a server. Without `max_memory` only tunables are limited.
    pub(crate) fn new(limits: &Limits, max_memory: Option<u64>) -> Self {
        let (client_tunables, tunables) = (limits.client_bytes, limits.shared_bytes);
        let Some(server) = max_memory else {
            return Self {
                server: u64::MAX,
                connection: u64::MAX,
                transient: u64::MAX,
                connection_transient: u64::MAX,
                connection_sessions: u64::MAX,
                client_tunables,
                tunables,
            };
        };
        let parts = [limits.tape_budget_bytes, limits.shared_bytes, limits.call_bytes];
        let transient = parts.into_iter().fold(server, u64::saturating_sub);
        // One connection leaves room for others, but a single client may have all tapes.
        let (connection, connection_transient) = (server / 4 * 3, transient / 2);
        let connection_sessions = MAX_SESSION_BYTES.min(server / 16);
        Self { server, connection, transient, connection_transient, connection_sessions, client_tunables, tunables }
    }
}

/// Bytes by kind.
#[derive(Debug, Default)]
struct Account([u64; N_KINDS]);

impl Account {
    fn sum(&self, kinds: &[Kind]) -> u64 {
        kinds.iter().map(|&kind| self.0[kind as usize]).sum()
    }
}

#[derive(Debug, Default)]
struct Accounts {
    all: Account,
    connections: HashMap<ClientId, Account>,
}

impl Accounts {
    /// Equal share of `limit` for the connections that use memory of these kinds, and one more.
    fn share(&self, limit: u64, kinds: &[Kind]) -> u64 {
        let users = self.connections.values().filter(|account| account.sum(kinds) > 0).count();
        limit / (users as u64 + 1)
    }

    fn add(&mut self, client: ClientId, kind: Kind, bytes: u64) {
        self.all.0[kind as usize] += bytes;
        self.connections.entry(client).or_default().0[kind as usize] += bytes;
    }

    fn free(&mut self, client: ClientId, kind: Kind, bytes: u64) {
        self.all.0[kind as usize] -= bytes;
        if let Entry::Occupied(mut entry) = self.connections.entry(client) {
            entry.get_mut().0[kind as usize] -= bytes;
            if entry.get().sum(&Kind::ALL) == 0 {
                entry.remove();
            }
        }
    }
}

/// Limit with its present use.
struct Rule {
    reason: Reason,
    limit: u64,
    used: u64,
    /// Possessor in texts.
    whose: &'static str,
}

/// Memory that does not fit, as reason and failure.
#[derive(Debug)]
pub(crate) struct Denied {
    reason: Reason,
    failure: Failure,
}

/// Ledger of one server. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    quotas: Quotas,
    accounts: Arc<Mutex<Accounts>>,
    refusals: Arc<Refusals>,
}

impl Ledger {
    pub(crate) fn new(quotas: Quotas) -> Self {
        Self { quotas, accounts: Arc::default(), refusals: Arc::default() }
    }

    pub(crate) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// The ledger for one connection.
    pub(crate) fn client(&self, client: ClientId) -> ClientQuota {
        ClientQuota { ledger: self.clone(), client }
    }

    /// Bytes of these kinds.
    pub(crate) fn used(&self, kinds: &[Kind]) -> u64 {
        lock(&self.accounts).all.sum(kinds)
    }

    /// Counts bytes without a check, until the result is dropped. They are those of no client.
    pub(crate) fn record(&self, kind: Kind, bytes: u64) -> Reservation {
        lock(&self.accounts).add(ClientId::SERVER, kind, bytes);
        Reservation { ledger: self.clone(), client: ClientId::SERVER, kind, bytes }
    }

    /// Reserves bytes for a client, without counting a refusal.
    pub(crate) fn try_reserve(&self, client: ClientId, kind: Kind, bytes: u64) -> Result<Reservation, Denied> {
        self.add(client, kind, bytes)?;
        Ok(Reservation { ledger: self.clone(), client, kind, bytes })
    }

    fn add(&self, client: ClientId, kind: Kind, bytes: u64) -> Result<(), Denied> {
        let mut accounts = lock(&self.accounts);
        self.check(&accounts, client, kind, bytes)?;
        accounts.add(client, kind, bytes);
        Ok(())
    }

    fn check(&self, accounts: &Accounts, client: ClientId, kind: Kind, bytes: u64) -> Result<(), Denied> {
        let rules = self.rules(accounts, client, kind, bytes);
        if let Some(rule) = rules.iter().filter(|rule| bytes > rule.limit).min_by_key(|rule| rule.limit) {
            let (what, limit, whose) = (kind.describe(), rule.limit, rule.whose);
            let message = format!("{what} of {bytes} bytes: this server keeps {limit} bytes of {whose}");
            return Err(Denied { reason: rule.reason, failure: Failure::new(FailureCode::NoMemory, message) });
        }
        let full = |rule: &&Rule| rule.used.saturating_add(bytes) > rule.limit;
        let Some(Rule { reason, limit, used, whose }) = rules.iter().find(full) else { return Ok(()) };
        let what = kind.describe();
        let message = format!("{what} of {bytes} bytes: this server keeps {used} of {limit} bytes of {whose} now");
        Err(Denied { reason: *reason, failure: Failure::new(FailureCode::Overloaded, message) })
    }

    /// Limits that hold for bytes of this kind.
    fn rules(&self, accounts: &Accounts, client: ClientId, kind: Kind, bytes: u64) -> Vec<Rule> {
        let (quotas, all) = (&self.quotas, &accounts.all);
        let none = Account::default();
        let own = accounts.connections.get(&client).unwrap_or(&none);
        let (of_client, of_all) = ("one client", "all clients");
        let rule = |reason, limit, account: &Account, kinds: &[Kind], whose| {
            let used = account.sum(kinds);
            Rule { reason, limit, used, whose }
        };
        let mut rules = Vec::with_capacity(4);
        if kind == Kind::Sessions {
            let (reason, whose) = (Reason::ConnectionBytes, "the sessions of one client");
            rules.push(rule(reason, quotas.connection_sessions, own, &[Kind::Sessions], whose));
        }
        if Kind::TUNABLES.contains(&kind) {
            rules.push(rule(Reason::TunableBytes, quotas.client_tunables, own, &Kind::TUNABLES, of_client));
            rules.push(rule(Reason::TunableBytes, quotas.tunables, all, &Kind::TUNABLES, of_all));
        }
        if Kind::TRANSIENT.contains(&kind) {
            // An answer cannot wait, and its input is freed. Later inputs and messages wait until it is read.
            let kinds: &[Kind] = if kind == Kind::Answers { &[Kind::Answers] } else { &Kind::TRANSIENT };
            let reason = Reason::ConnectionTransientBytes;
            rules.push(rule(reason, quotas.connection_transient, own, kinds, of_client));
            let total = rule(Reason::TransientBytes, quotas.transient, all, kinds, of_all);
            let is_full = total.used.saturating_add(bytes) > total.limit;
            // A few connections that hold all keep out those that have more than their share only.
            if is_full && own.sum(kinds).saturating_add(bytes) > accounts.share(total.limit, kinds) {
                rules.push(total);
            }
        }
        // A client with as many tapes as it may have must still send what frees them.
        if Kind::KEPT.contains(&kind) {
            rules.push(rule(Reason::ConnectionBytes, quotas.connection, own, &Kind::KEPT, of_client));
        }
        rules.push(rule(Reason::ServerBytes, quotas.server, all, &Kind::ALL, of_all));
        rules
    }
}

/// Ledger for one connection.
#[derive(Debug, Clone)]
pub(crate) struct ClientQuota {
    ledger: Ledger,
    client: ClientId,
}

impl ClientQuota {
    pub(crate) fn client(&self) -> ClientId {
        self.client
    }

    /// Reserves bytes until the result is dropped.
    ///
    /// # Errors
    /// A failure that sends the client elsewhere if the bytes can never fit, or back later if others must be freed first.
    pub(crate) fn reserve(&self, kind: Kind, bytes: u64) -> Result<Reservation, Failure> {
        self.ledger.try_reserve(self.client, kind, bytes).map_err(|denied| self.refuse(denied.reason, denied.failure))
    }

    /// Reserves bytes that are freed only after those of `other`, of the same client and under the same limits.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve), for both together.
    pub(crate) fn reserve_beside(&self, other: &Reservation, kind: Kind, bytes: u64) -> Result<Reservation, Failure> {
        let both = other.bytes.saturating_add(bytes);
        let empty = Accounts::default();
        self.ledger
            .check(&empty, self.client, kind, both)
            .map_err(|denied| self.refuse(denied.reason, denied.failure))?;
        self.reserve(kind, bytes)
    }

    /// Counts and logs a refusal; returns its failure.
    pub(crate) fn refuse(&self, reason: Reason, failure: Failure) -> Failure {
        self.ledger.refusals.refuse(reason, failure)
    }
}

impl Quota for ClientQuota {
    fn reserve(&self, bytes: u64) -> Option<Reserved> {
        // A message may wait for memory, so that only the connection's end counts as a refusal.
        let reserved = self.ledger.try_reserve(self.client, Kind::Frames, bytes).ok()?;
        Some(Box::new(reserved))
    }

    fn reserve_answer(&self, bytes: u64) -> Option<Reserved> {
        let reserved = self.ledger.try_reserve(self.client, Kind::Answers, bytes).ok()?;
        Some(Box::new(reserved))
    }

    fn will_free(&self) -> bool {
        self.ledger.used(&Kind::ENDING) > 0
    }
}

/// Bytes that are reserved until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    ledger: Ledger,
    client: ClientId,
    kind: Kind,
    bytes: u64,
}

impl Reservation {
    pub(crate) fn client(&self) -> ClientId {
        self.client
    }

    /// Adds bytes of the same kind.
    ///
    /// # Errors
    /// As [`ClientQuota::reserve`].
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Failure> {
        let added = self.ledger.add(self.client, self.kind, bytes);
        added.map_err(|Denied { reason, failure }| self.ledger.refusals.refuse(reason, failure))?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.ledger.accounts).free(self.client, self.kind, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn ledger(limits: Limits, max_memory: Option<u64>) -> Ledger {
        Ledger::new(Quotas::new(&limits, max_memory))
    }

    /// A server of 100 MB: 40 for tapes, 10 for tunables, 30 for a computation, which leaves 20.
    fn small() -> Ledger {
        let limits = Limits {
            tape_budget_bytes: 40 * MB,
            shared_bytes: 10 * MB,
            client_bytes: 5 * MB,
            call_bytes: 30 * MB,
            ..Limits::default()
        };
        ledger(limits, Some(100 * MB))
    }

    fn code(ledger: &Ledger, client: u64, kind: Kind, bytes: u64) -> Result<(), FailureCode> {
        ledger.client(ClientId(client)).reserve(kind, bytes).map(drop).map_err(|failure| failure.code)
    }

    #[test]
    fn tunables_are_limited_for_each_client_and_for_all() {
        let ledger = ledger(Limits { client_bytes: 60, shared_bytes: 100, ..Limits::default() }, None);
        let first = ledger.client(ClientId(1));
        let reserved = first.reserve(Kind::Tunables, 40).expect("room");
        assert_eq!(code(&ledger, 1, Kind::Tunables, 30), Err(FailureCode::Overloaded), "70 of 60");
        assert_eq!(code(&ledger, 2, Kind::Tunables, 61), Err(FailureCode::NoMemory), "never fits");
        let beside = |bytes| first.reserve_beside(&reserved, Kind::Prefixes, bytes).map(drop).map_err(|f| f.code);
        assert_eq!((beside(20), beside(21)), (Ok(()), Err(FailureCode::NoMemory)), "never fits beside the first");
        let second = ledger.client(ClientId(2)).reserve(Kind::Prefixes, 60).expect("room");
        assert_eq!(code(&ledger, 3, Kind::Tunables, 1), Err(FailureCode::Overloaded), "101 of 100");
        drop(reserved);
        assert_eq!(code(&ledger, 3, Kind::Tunables, 40), Ok(()));
        drop(second);
        assert_eq!(ledger.used(&Kind::ALL), 0);
        assert!(lock(&ledger.accounts).connections.is_empty());
        assert_eq!(ledger.refusals().count(Reason::TunableBytes), 4);
    }

    #[test]
    fn messages_and_inputs_of_one_connection_leave_room_for_another() {
        let ledger = small();
        assert_eq!(code(&ledger, 1, Kind::Frames, 10 * MB + 1), Err(FailureCode::NoMemory), "more than half of 20 MB");
        let first = ledger.client(ClientId(1));
        let frame = first.reserve(Kind::Frames, 6 * MB).expect("room");
        let input = first.reserve(Kind::Calls, 4 * MB).expect("room");
        assert_eq!(code(&ledger, 1, Kind::Mailbox, 1), Err(FailureCode::Overloaded));
        let second = ledger.client(ClientId(2)).reserve(Kind::Calls, 10 * MB).expect("the other half");
        assert_eq!(code(&ledger, 3, Kind::Frames, 7 * MB), Err(FailureCode::Overloaded), "more than a third of 20 MB");
        assert_eq!(code(&ledger, 3, Kind::Frames, 6 * MB), Ok(()), "a share that the others cannot take");
        assert_eq!(code(&ledger, 3, Kind::Tunables, MB), Ok(()), "tunables have a part of their own");
        drop((frame, input, second));
        assert_eq!(ledger.used(&Kind::ALL), 0);
    }

    #[test]
    fn answers_do_not_wait_for_inputs_and_keep_out_later_ones() {
        let ledger = small();
        let first = ledger.client(ClientId(1));
        let input = first.reserve(Kind::Calls, 10 * MB).expect("room");
        assert!(first.will_free());
        let answer = first.reserve(Kind::Answers, 10 * MB).expect("beside the input");
        assert_eq!(code(&ledger, 1, Kind::Answers, 1), Err(FailureCode::Overloaded), "11 of 10 MB are not read");
        drop(input);
        assert_eq!(code(&ledger, 1, Kind::Frames, 1), Err(FailureCode::Overloaded), "10 MB are not read");
        drop(answer);
        assert_eq!((ledger.used(&Kind::ALL), first.will_free()), (0, false));
    }

    #[test]
    fn sessions_of_a_few_connections_do_not_fill_a_server() {
        let ledger = small();
        let _first = ledger.client(ClientId(1)).reserve(Kind::Sessions, 6 * MB).expect("a sixteenth of 100 MB");
        assert_eq!(code(&ledger, 1, Kind::Sessions, MB), Err(FailureCode::Overloaded));
        assert_eq!(code(&ledger, 2, Kind::Sessions, 6 * MB), Ok(()));
    }

    #[test]
    fn everything_that_a_connection_keeps_is_limited() {
        let ledger = small();
        let first = ledger.client(ClientId(1));
        let _tapes = first.reserve(Kind::Tapes, 70 * MB).expect("three quarters are 75 MB");
        assert_eq!(code(&ledger, 1, Kind::Sessions, 6 * MB), Err(FailureCode::Overloaded));
        assert_eq!(code(&ledger, 1, Kind::Frames, 10 * MB), Ok(()), "the call that uses a tape");
        assert_eq!(code(&ledger, 2, Kind::Sessions, 6 * MB), Ok(()));
        let _computation = ledger.record(Kind::Computation, 30 * MB);
        assert_eq!(code(&ledger, 2, Kind::Sessions, MB), Err(FailureCode::Overloaded), "100 MB are in use");
    }

    #[test]
    fn reservation_grows_within_the_limits() {
        let ledger = small();
        let mut input = ledger.client(ClientId(1)).reserve(Kind::Calls, 4 * MB).expect("room");
        input.grow(5 * MB).expect("9 of 10 MB");
        assert_eq!(input.grow(2 * MB).map_err(|failure| failure.code), Err(FailureCode::Overloaded));
        assert_eq!(ledger.used(&[Kind::Calls]), 9 * MB);
        drop(input);
        assert_eq!(ledger.used(&Kind::ALL), 0);
    }

    #[test]
    fn server_without_a_limit_takes_everything_but_tunables() {
        let ledger = ledger(Limits::default(), None);
        for kind in [Kind::Tapes, Kind::Calls, Kind::Mailbox, Kind::Frames, Kind::Answers, Kind::Sessions] {
            assert_eq!(code(&ledger, 1, kind, 1 << 50), Ok(()), "{kind:?}");
        }
    }
}
