//! Ticket of a swarm, whose text is a secret.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Longest text without a slash that is taken for the path of a file if it does not begin like a ticket.
const MAX_FILE_NAME: usize = 64;

/// Ticket of a swarm: its text, or the path of a file that holds it. The text is neither shown nor written, into the folder of
/// a run for example.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct TicketSpec(String);

impl TicketSpec {
    /// Value that is written instead of a ticket's text.
    pub const WITHHELD: &str = "(withheld)";

    /// Returns the text or path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if the ticket was given as text in another pipeline, of which this one is the written form.
    pub fn is_withheld(&self) -> bool {
        self.0 == Self::WITHHELD
    }

    fn written(&self) -> &str {
        if is_text(&self.0) { Self::WITHHELD } else { &self.0 }
    }
}

/// True for the text of a ticket, perhaps one with a mistake, and false for a path.
fn is_text(text: &str) -> bool {
    let text = text.trim_start();
    let begins_like_one =
        text.strip_prefix("sepal").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    begins_like_one || (text.len() > MAX_FILE_NAME && !text.contains('/'))
}

/// Withholds the text of a ticket in a pipeline as it was written.
pub(crate) fn withhold(pipeline: &mut Value) {
    if let Some(ticket) = pipeline.pointer_mut("/swarm/with/ticket")
        && ticket.as_str().is_some_and(is_text)
    {
        *ticket = TicketSpec::WITHHELD.into();
    }
}

impl fmt::Debug for TicketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketSpec({})", self.written())
    }
}

impl Serialize for TicketSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.written())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_of_a_ticket_is_withheld_and_a_path_is_not() {
        let long = "x".repeat(200);
        for text in ["sepal1in2pcbk42qyv", " sepal2abc", &long] {
            let ticket = TicketSpec(text.to_owned());
            assert_eq!(serde_json::to_value(&ticket).expect("a value"), json!("(withheld)"), "{text}");
            assert_eq!((format!("{ticket:?}").as_str(), ticket.as_str()), ("TicketSpec((withheld))", text));
        }
        let deep = format!("/srv/{long}/ticket");
        for path in ["swarm.ticket", "sepal.ticket", "secrets/sepal1.ticket", &deep] {
            let ticket: TicketSpec = serde_json::from_value(json!(path)).expect("a path");
            assert_eq!(serde_json::to_value(&ticket).expect("a value"), json!(path));
        }
        let written: TicketSpec = serde_json::from_value(json!("(withheld)")).expect("a value");
        assert!(written.is_withheld());
    }

    #[test]
    fn written_pipeline_withholds_the_text() {
        let mut pipeline = json!({ "swarm": { "use": "p2p", "with": { "ticket": "sepal1abc", "bind": null } } });
        withhold(&mut pipeline);
        assert_eq!(pipeline["swarm"]["with"], json!({ "ticket": "(withheld)", "bind": null }));
        let mut other = json!({ "swarm": { "use": "embedded" } });
        withhold(&mut other);
        assert_eq!(other, json!({ "swarm": { "use": "embedded" } }));
    }
}
