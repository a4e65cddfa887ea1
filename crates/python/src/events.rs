//! Events of a run as JSON.

use std::sync::mpsc::Sender;

use sepal_assets::FetchEvent;
use sepal_pipeline::{Event, Observer};
use serde_json::{Value, json};

use crate::worker::Message;

/// Sends the events of a job to the thread that waits for it.
pub(crate) struct Events<T>(pub(crate) Sender<Message<T>>);

impl<T> Observer for Events<T> {
    fn event(&mut self, event: Event<'_>) {
        if let Some(value) = to_json(event) {
            // The waiting thread may have left after a second Ctrl-C.
            drop(self.0.send(Message::Event(value.to_string())));
        }
    }
}

fn to_json(event: Event<'_>) -> Option<Value> {
    Some(match event {
        Event::Notice(text) | Event::Fetch(FetchEvent::Notice(text)) => json!({ "event": "notice", "text": text }),
        Event::Fetch(FetchEvent::Begin { file, size, .. }) => json!({ "event": "fetch", "file": file, "bytes": size }),
        Event::Started { total_steps, done, trainable } => {
            json!({ "event": "started", "total_steps": total_steps, "done": done, "trainable": trainable })
        }
        Event::Step(record) => json!({ "event": "step", "record": record }),
        Event::Evaluating { done, total } => json!({ "event": "evaluating", "done": done, "total": total }),
        Event::Evaluated { record, headline } => {
            json!({ "event": "evaluated", "record": record, "headline": headline })
        }
        _ => return None,
    })
}
