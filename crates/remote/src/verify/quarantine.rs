//! Decisions about servers whose results differ.

use std::collections::{HashMap, HashSet};

use sepal_core::PublicKey;
use sepal_route::ServerId;

/// Differences after which a server is quarantined.
const MAX_STRIKES: u32 = 2;

/// Side of a check whose results are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The server whose call was checked.
    Accused,
    /// The servers that computed the call again.
    Checkers,
    /// Both.
    Both,
    /// Neither: a third result agrees with both.
    Neither,
    /// Unknown: nothing tells which result is right.
    Disputed,
}

impl Verdict {
    /// Decides by a third result. That of `own` blocks, which are part of this process, is right.
    pub(super) fn by_arbiter(agrees_with_accused: bool, agrees_with_checkers: bool, is_own: bool) -> Self {
        match (agrees_with_accused, agrees_with_checkers) {
            (true, true) => Self::Neither,
            (true, false) => Self::Checkers,
            (false, true) => Self::Accused,
            (false, false) if is_own => Self::Both,
            (false, false) => Self::Disputed,
        }
    }

    /// Decides by the second results of both sides where there is no third. A side that contradicts itself is wrong. If both
    /// do, their second results show that only if they agree.
    pub(super) fn by_repetition(second_agree: bool, accused_repeats: bool, checkers_repeat: bool) -> Self {
        match (second_agree, accused_repeats, checkers_repeat) {
            (_, false, true) => Self::Accused,
            (_, true, false) => Self::Checkers,
            (true, false, false) => Self::Both,
            (true, true, true) => Self::Neither,
            (false, false, false) | (false, true, true) => Self::Disputed,
        }
    }
}

/// Servers that gave wrong receipts, and keys of quarantined servers.
#[derive(Debug, Default)]
pub(super) struct Record {
    strikes: HashMap<ServerId, u32>,
    keys: HashSet<PublicKey>,
}

impl Record {
    /// Counts a wrong receipt. Returns true if the server is to be quarantined.
    pub(super) fn strike(&mut self, server: ServerId) -> bool {
        let strikes = self.strikes.entry(server).or_default();
        *strikes += 1;
        *strikes >= MAX_STRIKES
    }

    /// Remembers the key of a quarantined server, which may come back under another address.
    pub(super) fn ban_key(&mut self, key: PublicKey) {
        self.keys.insert(key);
    }

    pub(super) fn is_banned(&self, key: PublicKey) -> bool {
        self.keys.contains(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majority_of_three_results_decides() {
        assert_eq!(Verdict::by_arbiter(false, true, false), Verdict::Accused);
        assert_eq!(Verdict::by_arbiter(true, false, false), Verdict::Checkers);
        assert_eq!(Verdict::by_arbiter(true, true, false), Verdict::Neither);
        assert_eq!(Verdict::by_arbiter(false, false, false), Verdict::Disputed);
        assert_eq!(Verdict::by_arbiter(false, false, true), Verdict::Both, "own blocks are right");
    }

    #[test]
    fn two_results_decide_only_if_one_side_contradicts_itself() {
        assert_eq!(Verdict::by_repetition(false, true, true), Verdict::Disputed);
        assert_eq!(Verdict::by_repetition(true, false, true), Verdict::Accused);
        assert_eq!(Verdict::by_repetition(true, true, false), Verdict::Checkers);
        assert_eq!(Verdict::by_repetition(true, false, false), Verdict::Both);
        assert_eq!(Verdict::by_repetition(false, false, true), Verdict::Accused, "noise never agrees");
        assert_eq!(Verdict::by_repetition(false, true, false), Verdict::Checkers);
        assert_eq!(Verdict::by_repetition(false, false, false), Verdict::Disputed);
    }

    #[test]
    fn second_wrong_receipt_is_too_many() {
        let mut record = Record::default();
        assert!(!record.strike(ServerId(0)) && !record.strike(ServerId(1)) && record.strike(ServerId(0)));
    }

    #[test]
    fn key_stays_banned() {
        let mut record = Record::default();
        record.ban_key(PublicKey([1; 32]));
        assert!(record.is_banned(PublicKey([1; 32])) && !record.is_banned(PublicKey([2; 32])));
    }
}
