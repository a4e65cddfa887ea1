//! Entries waiting to be sent to a server. A refused entry is dropped by its name; entries that cannot be sent for
//! other reasons are kept and sent later.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::api::{Api, MlflowError};
use crate::names::{NameRule, is_word};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Metrics,
    Params,
    Tags,
}

/// Metric value, parameter or tag.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    Number { value: f64, timestamp: u64, step: u64 },
    Text(String),
}

/// Names that MLflow accepts; servers on Windows refuse colons.
const NAMES: NameRule = NameRule { allows: |c| is_word(c) || "-. :/".contains(c), is_path: true, max_chars: 250 };

/// Names for a server that refused the one by [`NAMES`]: a server on Windows, of an older Unicode version, or with a
/// database that ignores case.
const PLAIN_NAMES: NameRule =
    NameRule { allows: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-. /".contains(c), ..NAMES };

/// Maximum length of a text at each fallback level; servers before 2.8 accept 500 characters of a parameter, those
/// before 1.28 accept 250.
const PARAM_CHARS: [usize; 4] = [6000, 500, 250, 250];
const TAG_CHARS: [usize; 4] = [5000, 250, 250, 250];

/// Fallback level from which names are plain.
const PLAIN_FALLBACK: usize = 3;

impl Kind {
    pub(super) fn key(self) -> &'static str {
        match self {
            Kind::Metrics => "metrics",
            Kind::Params => "params",
            Kind::Tags => "tags",
        }
    }

    /// Maximum number of entries of one request.
    fn per_request(self) -> usize {
        match self {
            Kind::Metrics => 1000,
            Kind::Params | Kind::Tags => 100,
        }
    }

    /// JSON of an entry at a fallback level.
    fn body(self, entry: &Entry, fallback: usize) -> Value {
        let rule = if fallback < PLAIN_FALLBACK { NAMES } else { PLAIN_NAMES };
        let key = rule.rename(&entry.name);
        match &entry.content {
            Content::Number { value, timestamp, step } => {
                json!({ "key": key, "value": value, "timestamp": timestamp, "step": step })
            }
            Content::Text(text) => {
                let chars = if self == Kind::Tags { TAG_CHARS[fallback] } else { PARAM_CHARS[fallback] };
                json!({ "key": key, "value": truncate(text, chars) })
            }
        }
    }

    /// Next fallback level with different JSON.
    fn next_fallback(self, entry: &Entry, fallback: usize) -> Option<usize> {
        let refused = self.body(entry, fallback);
        (fallback + 1..=PLAIN_FALLBACK).find(|&next| self.body(entry, next) != refused)
    }
}

/// Maximum bytes of a request; MLflow accepts a million.
const MAX_REQUEST_BYTES: usize = 900_000;

/// Maximum number of pending entries; the oldest are dropped first.
const MAX_PENDING: usize = 50_000;

/// Number of failed rounds after which a name is dropped although the server fails rather than refuses.
const MAX_FAILED_ROUNDS: u32 = 3;

/// Number of failing names, without any accepted one, after which a round ends.
const MAX_FAILING_NAMES: usize = 3;

/// Pending entries of one kind, the oldest first.
#[derive(Debug)]
pub(super) struct Outbox {
    kind: Kind,
    pending: Vec<Entry>,
    names: HashMap<String, NameState>,
    /// Number of entries dropped by the limit.
    overflowed: usize,
}

#[derive(Debug, Default)]
struct NameState {
    fallback: usize,
    failed_rounds: u32,
    is_refused: bool,
}

impl Outbox {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, pending: Vec::new(), names: HashMap::new(), overflowed: 0 }
    }

    /// Adds entries, except those with a refused name.
    pub(super) fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let is_refused = |entry: &Entry| self.names.get(&entry.name).is_some_and(|name| name.is_refused);
        self.pending.extend(entries.into_iter().filter(|entry| !is_refused(entry)));
        let excess = self.pending.len().saturating_sub(MAX_PENDING);
        self.overflowed += excess;
        self.pending.drain(..excess);
    }

    /// Number of entries that were not sent, without refused ones.
    pub(super) fn unsent(&self) -> usize {
        self.pending.len() + self.overflowed
    }

    /// Sends pending entries. Entries that the server fails to accept stay pending.
    ///
    /// # Errors
    /// [`MlflowError::Dropped`] once for refused names: their entries are dropped from now on, and the others are sent.
    /// Any other error is the reason why entries stay pending.
    pub(super) fn send(&mut self, api: &Api, run_id: &str) -> Result<(), MlflowError> {
        let entries = std::mem::take(&mut self.pending);
        let mut round = SendRound {
            api,
            run_id,
            outbox: self,
            has_accepted: false,
            is_active: false,
            rejected: Vec::new(),
            failure: None,
        };
        round.send(entries);
        round.finish()
    }

    fn fallback(&self, name: &str) -> usize {
        self.names.get(name).map_or(0, |name| name.fallback)
    }
}

/// One attempt to send all pending entries.
struct SendRound<'a> {
    api: &'a Api,
    run_id: &'a str,
    outbox: &'a mut Outbox,
    has_accepted: bool,
    /// The server confirmed that the run accepts entries.
    is_active: bool,
    /// Entries of one name each that were refused at every fallback level.
    rejected: Vec<(Vec<Entry>, MlflowError)>,
    /// Error that ended this round.
    failure: Option<MlflowError>,
}

impl SendRound<'_> {
    /// Sends entries in as few requests as possible.
    fn send(&mut self, entries: Vec<Entry>) {
        let (mut request, mut bodies, mut bytes) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            let body = self.outbox.kind.body(&entry, self.outbox.fallback(&entry.name));
            let length = body.to_string().len();
            if bodies.len() == self.outbox.kind.per_request() || bytes + length > MAX_REQUEST_BYTES {
                self.send_request(std::mem::take(&mut request), &std::mem::take(&mut bodies));
                bytes = 0;
            }
            bytes += length;
            request.push(entry);
            bodies.push(body);
        }
        if !request.is_empty() {
            self.send_request(request, &bodies);
        }
    }

    fn send_request(&mut self, entries: Vec<Entry>, bodies: &[Value]) {
        if self.failure.is_some() {
            return self.outbox.pending.extend(entries);
        }
        match self.api.log_batch(self.run_id, self.outbox.kind.key(), bodies) {
            Ok(()) => self.has_accepted = true,
            Err(error) if error.may_concern_one_entry() => self.isolate_rejected(entries, error),
            Err(error) => {
                self.failure = Some(error);
                self.outbox.pending.extend(entries);
            }
        }
    }

    /// Bisects the entries to find the refused ones.
    fn isolate_rejected(&mut self, entries: Vec<Entry>, error: MlflowError) {
        if let Err(error) = self.check_active() {
            self.failure = Some(error);
            return self.outbox.pending.extend(entries);
        }
        if !error.is_refusal() && !self.has_accepted && self.rejected.len() >= MAX_FAILING_NAMES {
            self.failure = Some(error);
            return self.outbox.pending.extend(entries);
        }
        if let Some((first_part, second_part)) = split(&entries) {
            self.send(first_part);
            return self.send(second_part);
        }
        let Some(first) = entries.first() else { return };
        match self.outbox.kind.next_fallback(first, self.outbox.fallback(&first.name)) {
            Some(fallback) => {
                self.outbox.names.entry(first.name.clone()).or_default().fallback = fallback;
                self.send(entries);
            }
            None => self.rejected.push((entries, error)),
        }
    }

    /// A deleted run accepts no entry.
    fn check_active(&mut self) -> Result<(), MlflowError> {
        if !self.is_active {
            self.api.check_active(self.run_id)?;
            self.is_active = true;
        }
        Ok(())
    }

    /// Drops names that the server refuses while it accepts others, and keeps the rest.
    fn finish(self) -> Result<(), MlflowError> {
        let (mut dropped, mut reason, mut failure) = (Vec::new(), None, self.failure);
        for (entries, error) in self.rejected {
            let Some(name) = entries.first().map(|entry| entry.name.clone()) else { continue };
            let state = self.outbox.names.entry(name.clone()).or_default();
            state.failed_rounds += 1;
            let is_certain = error.is_refusal() || state.failed_rounds >= MAX_FAILED_ROUNDS;
            if self.has_accepted && is_certain {
                state.is_refused = true;
                dropped.push(name);
                reason.get_or_insert(error);
            } else {
                // The next round starts from the first level.
                state.fallback = 0;
                self.outbox.pending.extend(entries);
                failure.get_or_insert(error);
            }
        }
        match (reason, failure) {
            (Some(reason), _) => {
                Err(MlflowError::Dropped { kind: self.outbox.kind.key(), names: dropped, source: Box::new(reason) })
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(()),
        }
    }
}

/// Splits entries into two parts without common names; none if all have the same name.
fn split(entries: &[Entry]) -> Option<(Vec<Entry>, Vec<Entry>)> {
    let mut names: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
    names.sort_unstable();
    names.dedup();
    let middle = *names.get(names.len() / 2).filter(|_| names.len() > 1)?;
    Some(entries.iter().cloned().partition(|entry| *entry.name < *middle))
}

fn truncate(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}
