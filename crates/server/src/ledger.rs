//! Ledger of the memory that clients use, within limits for each connection, for those of one network, and for all of them.

mod accounts;
mod kind;
mod quotas;
mod rules;

use std::sync::{Arc, Mutex};

use sepal_wire::{Failure, FailureCode, Quota, Reserved};

use crate::client::ClientId;
use crate::lock::lock;
use crate::refusals::{Reason, Refusals};
use accounts::Accounts;
pub(crate) use kind::Kind;
pub(crate) use quotas::Quotas;
use rules::{Rule, Rules};

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
        self.record_of(ClientId::SERVER, kind, bytes)
    }

    fn record_of(&self, client: ClientId, kind: Kind, bytes: u64) -> Reservation {
        lock(&self.accounts).add(client, kind, bytes);
        Reservation { ledger: self.clone(), client, kind, bytes }
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
        let rules = Rules::collect(&self.quotas, accounts, client, kind, bytes);
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
mod tests;
