//! Log lines: text for people, or JSON with one object per line. Texts of servers and files cannot change a terminal.

use std::fmt;

use sepal_core::{visible_json, visible_lines};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Prefix of the fields that describe the origin of a record of the crate `log`.
const LOG_RECORD: &str = "log.";

/// Objects with `timestamp`, `level`, the fields of the event (its text is `message`) and `target`. Spans are left out.
pub(crate) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut line = Fields { values: Map::new(), target: event.metadata().target().to_owned() };
        line.insert("timestamp", timestamp);
        line.insert("level", event.metadata().level().as_str());
        event.record(&mut line);
        let Fields { mut values, target } = line;
        values.insert("target".to_owned(), target.into());
        writeln!(writer, "{}", visible_json(&Value::Object(values).to_string()))
    }
}

/// Lines of the level, the text of the event and its other fields. Spans are left out. Line breaks inside are followed by
/// spaces, so that no text looks like a line of the log.
pub(crate) struct TextLines;

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (level, colour) = match *event.metadata().level() {
            Level::ERROR => ("ERROR", 31),
            Level::WARN => (" WARN", 33),
            Level::INFO => (" INFO", 32),
            Level::DEBUG => ("DEBUG", 34),
            Level::TRACE => ("TRACE", 35),
        };
        let mut text = Text(String::new());
        event.record(&mut text);
        let text = visible_lines(&text.0).replace('\n', "\n      ");
        if writer.has_ansi_escapes() {
            writeln!(writer, "\x1b[{colour}m{level}\x1b[0m {text}")
        } else {
            writeln!(writer, "{level} {text}")
        }
    }
}

/// Text of an event, and behind it its other fields as `name=value`.
struct Text(String);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = field.name();
        if name.starts_with(LOG_RECORD) {
            return;
        }
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        match name {
            "message" => self.0.push_str(&format!("{value:?}")),
            name => self.0.push_str(&format!("{}={value:?}", name.strip_prefix("r#").unwrap_or(name))),
        }
    }
}

/// Fields of an event, in their order.
struct Fields {
    values: Map<String, Value>,
    target: String,
}

impl Fields {
    fn insert(&mut self, name: &str, value: impl Into<Value>) {
        if let Some(part) = name.strip_prefix(LOG_RECORD) {
            if let (true, Value::String(target)) = (part == "target", value.into()) {
                self.target = target;
            }
            return;
        }
        // Names such as `type` are written as `r#type` in the code.
        self.values.insert(name.strip_prefix("r#").unwrap_or(name).to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field.name(), format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Writer with a shared text.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no other writer").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_lines_show_no_foreign_escapes_and_no_faked_lines() {
        let kept = Shared::default();
        let writer = kept.clone();
        let logging = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(TextLines)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(logging, || {
            let hostile = "gone\x1b]0;x\x07\n WARN all servers failed\u{202e}";
            tracing::warn!(rows = 3, error = %hostile, "a call failed");
            tracing::info!(name = "a b", "{hostile}");
            tracing::error!(target: "other", { log.line = 7 }, "plain");
        });
        let text = String::from_utf8(kept.0.lock().expect("no other writer").clone()).expect("UTF-8");
        let shown = "gone\\u{1b}]0;x\\u{7}\n       WARN all servers failed\\u{202e}";
        let expected = format!(" WARN a call failed rows=3 error={shown}\n INFO {shown} name=\"a b\"\nERROR plain\n");
        assert_eq!(text, expected);
    }

    #[test]
    fn objects_keep_values_without_raw_hidden_characters() {
        let kept = Shared::default();
        let writer = kept.clone();
        let logging = tracing_subscriber::fmt().event_format(JsonLines).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(logging, || tracing::warn!("\u{9b}2J\u{202e}"));
        let text = String::from_utf8(kept.0.lock().expect("no other writer").clone()).expect("UTF-8");
        assert!(text.contains("\\u009b2J\\u202e"), "{text}");
        let line: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(line["message"], "\u{9b}2J\u{202e}");
    }

    #[test]
    fn events_are_objects_in_one_line_each() {
        let kept = Shared::default();
        let writer = kept.clone();
        let logging = tracing_subscriber::fmt().event_format(JsonLines).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(logging, || {
            tracing::info!(rows = 3, share = 0.5, is_new = true, name = "a\"b", error = %"line 1\nline 2", "two\nlines");
            tracing::warn!(target: "other", count = -1, r#type = ?Some(1), log.target = "library", log.line = 7);
        });
        let text = String::from_utf8(kept.0.lock().expect("no other writer").clone()).expect("UTF-8");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2, "{text}");
        let keys: Vec<&String> = lines[0].as_object().expect("an object").keys().collect();
        assert_eq!(
            (keys[0].as_str(), keys[1].as_str(), keys[keys.len() - 1].as_str()),
            ("timestamp", "level", "target")
        );
        let expected = serde_json::json!({
            "timestamp": lines[0]["timestamp"], "level": "INFO", "message": "two\nlines", "rows": 3, "share": 0.5,
            "is_new": true, "name": "a\"b", "error": "line 1\nline 2", "target": module_path!(),
        });
        assert_eq!(lines[0], expected);
        let timestamp = lines[0]["timestamp"].as_str().expect("text");
        assert!(timestamp.len() == 27 && timestamp.ends_with('Z') && timestamp.contains('T'), "{timestamp}");
        let expected = serde_json::json!({
            "timestamp": lines[1]["timestamp"], "level": "WARN", "count": -1, "type": "Some(1)", "target": "library",
        });
        assert_eq!(lines[1], expected);
    }
}
