//! Rules of the ledger: limits with their present use.

use super::accounts::{Account, Accounts};
use super::kind::Kind;
use super::quotas::Quotas;
use crate::client::ClientId;
use crate::refusals::Reason;

/// Limit with its present use.
pub(super) struct Rule {
    pub(super) reason: Reason,
    pub(super) limit: u64,
    pub(super) used: u64,
    /// Possessor in texts.
    pub(super) whose: &'static str,
}

/// Rules for bytes that a client reserves.
pub(super) struct Rules<'a> {
    accounts: &'a Accounts,
    client: ClientId,
    bytes: u64,
    rules: Vec<Rule>,
}

impl<'a> Rules<'a> {
    /// Returns the rules for bytes of this kind.
    pub(super) fn collect(
        quotas: &Quotas,
        accounts: &'a Accounts,
        client: ClientId,
        kind: Kind,
        bytes: u64,
    ) -> Vec<Rule> {
        let mut rules = Self { accounts, client, bytes, rules: Vec::with_capacity(8) };
        if kind == Kind::Sessions {
            let (reason, kinds) = (Reason::ConnectionBytes, &[Kind::Sessions]);
            rules.limit_client(reason, quotas.connection_sessions, kinds, "the sessions of one client");
            rules.limit_network(quotas.sessions, quotas.connection_sessions, kinds);
            rules.limit_all_but_shares(Reason::ServerBytes, quotas.sessions, kinds);
        }
        if Kind::TUNABLES.contains(&kind) {
            let (reason, kinds) = (Reason::TunableBytes, &Kind::TUNABLES);
            rules.limit_client(reason, quotas.client_tunables, kinds, "one client");
            rules.limit_network(quotas.tunables, quotas.client_tunables, kinds);
            rules.limit_all(reason, quotas.tunables, kinds);
        }
        if kind == Kind::Mailbox {
            rules.limit_all_but_shares(Reason::Mailbox, quotas.mailbox, &[Kind::Mailbox]);
        }
        if Kind::TRANSIENT.contains(&kind) {
            // An answer cannot wait, and its input is freed. Later inputs and messages wait until it is read.
            let kinds: &[Kind] = if kind == Kind::Answers { &[Kind::Answers] } else { &Kind::TRANSIENT };
            rules.limit_client(Reason::ConnectionTransientBytes, quotas.connection_transient, kinds, "one client");
            rules.limit_network(quotas.transient, quotas.connection_transient, kinds);
            rules.limit_all_but_shares(Reason::TransientBytes, quotas.transient, kinds);
            // Sessions have a limit of their own, so that they do not keep out the messages that end them.
            rules.limit_all(Reason::ServerBytes, quotas.server, &Kind::WORK);
            return rules.rules;
        }
        // A client with as many tapes as it may have must still send what frees them.
        if Kind::KEPT.contains(&kind) {
            rules.limit_client(Reason::ConnectionBytes, quotas.connection, &Kind::KEPT, "one client");
            rules.limit_network(quotas.server, quotas.connection, &Kind::KEPT);
        }
        rules.limit_all(Reason::ServerBytes, quotas.server, &Kind::ALL);
        rules.rules
    }

    fn push(&mut self, reason: Reason, limit: u64, account: &Account, kinds: &[Kind], whose: &'static str) {
        self.rules.push(Rule { reason, limit, used: account.sum(kinds), whose });
    }

    fn limit_client(&mut self, reason: Reason, limit: u64, kinds: &[Kind], whose: &'static str) {
        let accounts = self.accounts;
        self.push(reason, limit, accounts.of_client(self.client), kinds, whose);
    }

    fn limit_all(&mut self, reason: Reason, limit: u64, kinds: &[Kind]) {
        let accounts = self.accounts;
        self.push(reason, limit, &accounts.all, kinds, "all clients");
    }

    /// The connections of one network leave a quarter of the limit on all to others. One of them alone may have `least`.
    fn limit_network(&mut self, limit: u64, least: u64, kinds: &[Kind]) {
        let accounts = self.accounts;
        if self.client.has_network() {
            let limit = (limit / 4 * 3).max(least);
            let account = accounts.of_group(self.client);
            self.push(Reason::NetworkBytes, limit, account, kinds, "the clients of one address");
        }
    }

    /// Limit on all. A few that hold everything keep out those that have more than an equal share only.
    fn limit_all_but_shares(&mut self, reason: Reason, limit: u64, kinds: &[Kind]) {
        let (accounts, bytes) = (self.accounts, self.bytes);
        if accounts.all.sum(kinds).saturating_add(bytes) <= limit {
            return;
        }
        // Looks at all groups, so only if the limit is reached.
        if accounts.of_group(self.client).sum(kinds).saturating_add(bytes) > accounts.share(limit, kinds) {
            self.limit_all(reason, limit, kinds);
        }
    }
}
