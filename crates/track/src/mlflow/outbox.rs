//! Items waiting to be sent to a server. An item that the server refuses is dropped alone, by its name; items that
//! could not be sent for other reasons are kept and sent later.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::api::{Api, MlflowError};
use crate::names::{Rule, is_word};

/// Numbers, parameters or tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Metrics,
    Params,
    Tags,
}

/// A number, a parameter or a tag.
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

/// Names that MLflow takes; on Windows, colons are refused.
const NAMES: Rule = Rule { allows: |c| is_word(c) || "-. :/".contains(c), is_path: true, max_chars: 250 };

/// Names for a server that refused the one by [`NAMES`]: one on Windows, of an older Unicode, or with a database that ignores
/// case.
const PLAIN_NAMES: Rule = Rule {
    allows: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-. /".contains(c),
    is_path: true,
    max_chars: 250,
};

/// Characters of a text at the most, for the ways in which it is tried; servers before 2.8 take 500 of a parameter, those
/// before 1.28 take 250.
const PARAM_CHARS: [usize; 4] = [6000, 500, 250, 250];
const TAG_CHARS: [usize; 4] = [5000, 250, 250, 250];

/// The way from which on names are plain.
const PLAIN: usize = 3;

impl Kind {
    pub(super) fn key(self) -> &'static str {
        match self {
            Kind::Metrics => "metrics",
            Kind::Params => "params",
            Kind::Tags => "tags",
        }
    }

    /// Entries that MLflow takes in one request.
    fn per_request(self) -> usize {
        match self {
            Kind::Metrics => 1000,
            Kind::Params | Kind::Tags => 100,
        }
    }

    /// An entry as it is sent, in the `way`-th of four ways.
    fn body(self, entry: &Entry, way: usize) -> Value {
        let rule = if way < PLAIN { NAMES } else { PLAIN_NAMES };
        let key = rule.rename(&entry.name);
        match &entry.content {
            Content::Number { value, timestamp, step } => {
                json!({ "key": key, "value": value, "timestamp": timestamp, "step": step })
            }
            Content::Text(text) => {
                let chars = if self == Kind::Tags { TAG_CHARS[way] } else { PARAM_CHARS[way] };
                json!({ "key": key, "value": cut(text, chars) })
            }
        }
    }

    /// The next way that sends something else.
    fn next_way(self, entry: &Entry, way: usize) -> Option<usize> {
        let refused = self.body(entry, way);
        (way + 1..=PLAIN).find(|&next| self.body(entry, next) != refused)
    }
}

/// Bytes of a request at the most; MLflow takes a million.
const REQUEST_BYTES: usize = 900_000;

/// Entries that are kept at most while the server cannot be reached; the oldest go first.
const KEPT: usize = 50_000;

/// Rounds after which a name is dropped with which the server fails, rather than refusing it.
const STRIKES: u32 = 3;

/// Names with which a server fails that takes no other, until it is left alone.
const FAILURES: usize = 3;

/// Entries of one kind that are not sent yet, the oldest first.
#[derive(Debug)]
pub(super) struct Outbox {
    kind: Kind,
    pending: Vec<Entry>,
    names: HashMap<String, NameState>,
    /// Entries that were dropped because there were too many.
    overflowed: usize,
}

/// Treatment of a name by the server.
#[derive(Debug, Default)]
struct NameState {
    way: usize,
    strikes: u32,
    is_refused: bool,
}

impl Outbox {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, pending: Vec::new(), names: HashMap::new(), overflowed: 0 }
    }

    /// Adds entries, but for those whose name the server refuses.
    pub(super) fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let is_refused = |entry: &Entry| self.names.get(&entry.name).is_some_and(|name| name.is_refused);
        self.pending.extend(entries.into_iter().filter(|entry| !is_refused(entry)));
        let too_many = self.pending.len().saturating_sub(KEPT);
        self.overflowed += too_many;
        self.pending.drain(..too_many);
    }

    /// Entries that the server did not get, but for refused ones.
    pub(super) fn unsent(&self) -> usize {
        self.pending.len() + self.overflowed
    }

    /// Sends what is pending. What the server does not take for reasons of its own stays pending.
    ///
    /// # Errors
    /// [`MlflowError::LeftOut`] once for names that the server refuses: they are dropped from now on, and the others are
    /// sent. Any other error says why entries stay pending.
    pub(super) fn send(&mut self, api: &Api, run_id: &str) -> Result<(), MlflowError> {
        let entries = std::mem::take(&mut self.pending);
        let mut round = Round {
            api,
            run_id,
            outbox: self,
            has_accepted: false,
            is_active: false,
            suspects: Vec::new(),
            failed: None,
        };
        round.send(entries);
        round.end()
    }

    fn way(&self, name: &str) -> usize {
        self.names.get(name).map_or(0, |name| name.way)
    }
}

/// One attempt to send all that is pending.
struct Round<'a> {
    api: &'a Api,
    run_id: &'a str,
    outbox: &'a mut Outbox,
    has_accepted: bool,
    /// The server was asked, and says that the run can be written to.
    is_active: bool,
    /// Entries of one name each that were refused in every way.
    suspects: Vec<(Vec<Entry>, MlflowError)>,
    /// Error that ended this round, if any.
    failed: Option<MlflowError>,
}

impl Round<'_> {
    /// Sends entries in as few requests as there can be.
    fn send(&mut self, entries: Vec<Entry>) {
        let (mut request, mut bodies, mut bytes) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            let body = self.outbox.kind.body(&entry, self.outbox.way(&entry.name));
            let length = body.to_string().len();
            if bodies.len() == self.outbox.kind.per_request() || bytes + length > REQUEST_BYTES {
                self.request(std::mem::take(&mut request), &std::mem::take(&mut bodies));
                bytes = 0;
            }
            bytes += length;
            request.push(entry);
            bodies.push(body);
        }
        if !request.is_empty() {
            self.request(request, &bodies);
        }
    }

    fn request(&mut self, entries: Vec<Entry>, bodies: &[Value]) {
        if self.failed.is_some() {
            return self.outbox.pending.extend(entries);
        }
        match self.api.log_batch(self.run_id, self.outbox.kind.key(), bodies) {
            Ok(()) => self.has_accepted = true,
            Err(error) if error.may_be_an_item() => self.refused(entries, error),
            Err(error) => {
                self.failed = Some(error);
                self.outbox.pending.extend(entries);
            }
        }
    }

    /// Finds out which of the entries the server refuses.
    fn refused(&mut self, entries: Vec<Entry>, error: MlflowError) {
        if let Err(error) = self.check_active() {
            self.failed = Some(error);
            return self.outbox.pending.extend(entries);
        }
        if !error.is_refusal() && !self.has_accepted && self.suspects.len() >= FAILURES {
            self.failed = Some(error);
            return self.outbox.pending.extend(entries);
        }
        if let Some((one, other)) = split(&entries) {
            self.send(one);
            return self.send(other);
        }
        let Some(first) = entries.first() else { return };
        match self.outbox.kind.next_way(first, self.outbox.way(&first.name)) {
            Some(way) => {
                self.outbox.names.entry(first.name.clone()).or_default().way = way;
                self.send(entries);
            }
            None => self.suspects.push((entries, error)),
        }
    }

    /// A run that was deleted takes nothing, whatever its name.
    fn check_active(&mut self) -> Result<(), MlflowError> {
        if !self.is_active {
            self.api.check_active(self.run_id)?;
            self.is_active = true;
        }
        Ok(())
    }

    /// Drops what the server refuses while it takes others, and keeps the rest.
    fn end(self) -> Result<(), MlflowError> {
        let (mut left_out, mut reason, mut failed) = (Vec::new(), None, self.failed);
        for (entries, error) in self.suspects {
            let Some(name) = entries.first().map(|entry| entry.name.clone()) else { continue };
            let state = self.outbox.names.entry(name.clone()).or_default();
            state.strikes += 1;
            let is_sure = error.is_refusal() || state.strikes >= STRIKES;
            if self.has_accepted && is_sure {
                state.is_refused = true;
                left_out.push(name);
                reason.get_or_insert(error);
            } else {
                // As if it had not been tried.
                state.way = 0;
                self.outbox.pending.extend(entries);
                failed.get_or_insert(error);
            }
        }
        match (reason, failed) {
            (Some(reason), _) => {
                Err(MlflowError::LeftOut { kind: self.outbox.kind.key(), names: left_out, source: Box::new(reason) })
            }
            (None, Some(failed)) => Err(failed),
            (None, None) => Ok(()),
        }
    }
}

/// Two parts of entries, each with names of its own; none if all have the same name.
fn split(entries: &[Entry]) -> Option<(Vec<Entry>, Vec<Entry>)> {
    let mut names: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
    names.sort_unstable();
    names.dedup();
    let middle = *names.get(names.len() / 2).filter(|_| names.len() > 1)?;
    Some(entries.iter().cloned().partition(|entry| *entry.name < *middle))
}

fn cut(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(end, _)| &text[..end])
}
