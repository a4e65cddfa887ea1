//! Bytes by kind: of all clients, of each, and of each group.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use super::kind::{Kind, N_KINDS};
use crate::client::{ClientGroup, ClientId};

/// Bytes by kind.
#[derive(Debug, Default)]
pub(super) struct Account([u64; N_KINDS]);

impl Account {
    /// Account without bytes.
    pub(super) const EMPTY: Self = Self([0; N_KINDS]);

    pub(super) fn sum(&self, kinds: &[Kind]) -> u64 {
        kinds.iter().map(|&kind| self.0[kind as usize]).sum()
    }
}

#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub(super) all: Account,
    clients: HashMap<ClientId, Account>,
    groups: HashMap<ClientGroup, Account>,
}

impl Accounts {
    pub(super) fn of_client(&self, client: ClientId) -> &Account {
        self.clients.get(&client).unwrap_or(&Account::EMPTY)
    }

    pub(super) fn of_group(&self, client: ClientId) -> &Account {
        self.groups.get(&client.group()).unwrap_or(&Account::EMPTY)
    }

    /// Equal share of `limit` for the groups of clients that use memory of these kinds, and one more.
    pub(super) fn share(&self, limit: u64, kinds: &[Kind]) -> u64 {
        let users = self.groups.values().filter(|account| account.sum(kinds) > 0).count();
        limit / (users as u64 + 1)
    }

    pub(super) fn add(&mut self, client: ClientId, kind: Kind, bytes: u64) {
        let accounts = [self.clients.entry(client).or_default(), self.groups.entry(client.group()).or_default()];
        for Account(by_kind) in accounts.into_iter().chain([&mut self.all]) {
            by_kind[kind as usize] += bytes;
        }
    }

    pub(super) fn free(&mut self, client: ClientId, kind: Kind, bytes: u64) {
        self.all.0[kind as usize] -= bytes;
        free(&mut self.clients, client, kind, bytes);
        free(&mut self.groups, client.group(), kind, bytes);
    }

    /// True if no client and no group has an account.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.groups.is_empty()
    }
}

/// Frees bytes of one account, which is removed if it was the last memory in it.
fn free<K: Eq + Hash>(accounts: &mut HashMap<K, Account>, key: K, kind: Kind, bytes: u64) {
    if let Entry::Occupied(mut entry) = accounts.entry(key) {
        entry.get_mut().0[kind as usize] -= bytes;
        if entry.get().sum(&Kind::ALL) == 0 {
            entry.remove();
        }
    }
}
