use sepal_track::{REDACTED, is_secret};
use serde_json::Value;

/// Options of a run: a resolved pipeline file with redacted secrets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    text: String,
    flat: Vec<(String, String)>,
    problem: Option<String>,
}

impl Options {
    pub(crate) fn new(text: &str) -> Self {
        match serde_saphyr::from_str::<Value>(text) {
            Ok(value) => {
                let mut secrets = Vec::new();
                let mut flat = Vec::new();
                flatten("", &value, &mut flat, &mut secrets);
                Self { text: redacted(text, &secrets), flat, problem: None }
            }
            Err(error) => {
                let problem = error.to_string().lines().next().unwrap_or_default().to_owned();
                Self { text: redacted(text, &[]), flat: Vec::new(), problem: Some(problem) }
            }
        }
    }

    /// Returns the text of the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the flattened keys and values in the file's order: `train.seed`, `data.train.0`.
    pub fn flat(&self) -> &[(String, String)] {
        &self.flat
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.flat.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

fn flatten(key: &str, value: &Value, flat: &mut Vec<(String, String)>, secrets: &mut Vec<String>) {
    let inner = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, value)| flatten(&inner(name), value, flat, secrets));
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&inner(&i.to_string()), value, flat, secrets));
        }
        Value::String(text) if is_secret(key) => {
            secrets.push(text.clone());
            flat.push((key.to_owned(), REDACTED.to_owned()));
        }
        Value::String(text) => flat.push((key.to_owned(), text.clone())),
        Value::Null => flat.push((key.to_owned(), "none".to_owned())),
        other => flat.push((key.to_owned(), other.to_string())),
    }
}

/// Text without these values, and without the values of secret keys.
fn redacted(text: &str, secrets: &[String]) -> String {
    let mut lines = Vec::new();
    let mut inside: Option<usize> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        if inside.is_some_and(|outer| indent > outer || line.trim().is_empty()) {
            continue;
        }
        inside = None;
        match line.split_once(':') {
            Some((key, _))
                if is_secret(key.trim_start_matches([' ', '-', '"', '\'']).trim_end_matches(['"', '\''])) =>
            {
                lines.push(format!("{key}: {REDACTED}"));
                inside = Some(indent);
            }
            _ => lines.push(line.to_owned()),
        }
    }
    let long = secrets.iter().filter(|secret| secret.len() > 3);
    long.fold(lines.join("\n"), |text, secret| text.replace(secret.as_str(), REDACTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_has_one_value_per_key() {
        let options = Options::new("name: a\ntrain: { seed: 7, clip_norm: null }\nlabels: [x, y]\nwhere: {}\n");
        let keys: Vec<&str> = options.flat().iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["name", "train.seed", "train.clip_norm", "labels.0", "labels.1", "where"]);
        assert_eq!((options.get("train.seed"), options.get("train.clip_norm")), (Some("7"), Some("none")));
        assert_eq!((options.get("where"), options.get("missing")), (Some("{}"), None));
    }

    #[test]
    fn secrets_are_redacted() {
        for text in [
            "swarm:\n  with:\n    ticket: abcdef\n    bind: null\n",
            "swarm:\n  with:\n    ticket: >-\n      abcdef\n\n      more\n    bind: null\n",
            "swarm: { with: { ticket: abcdef, bind: null } }\n",
            "swarm:\n  with:\n    \"hub_token\": abcdef\n    bind: null\n",
            "swarm:\n  with:\n    ticket: abcdef\n    bind: null\n  broken: [\n",
        ] {
            let options = Options::new(text);
            assert!(!options.text().contains("abcdef") && !options.text().contains("more"), "{}", options.text());
            assert!(options.text().contains(REDACTED) && options.text().contains("bind: null"), "{}", options.text());
            assert!(options.flat().iter().all(|(_, value)| !value.contains("abcdef")));
        }
        assert_eq!(Options::new("micro_batch_tokens: 2048\n").get("micro_batch_tokens"), Some("2048"));
    }

    #[test]
    fn invalid_yaml_is_shown() {
        let options = Options::new("name: [\n");
        assert!(options.problem().is_some());
        assert_eq!((options.text(), options.flat().len()), ("name: [", 0));
    }
}
