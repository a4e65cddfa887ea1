//! What clients can ask, as OpenAPI 3.1 has it, with this classifier's labels and an answer of its own.

use serde_json::{Map, Value, json};

use crate::about::{About, Answer, Kind};
use crate::answer::Document;
use crate::options::Options;

/// The document. `answer` is the classifier's to its example.
pub(crate) fn openapi(about: &About, options: &Options, answer: &Answer) -> Value {
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": about.name,
            "version": env!("CARGO_PKG_VERSION"),
            "description": description(about),
        },
        "servers": [{ "url": "/" }],
        "paths": {
            "/classify": { "post": classify(about, options, answer) },
            "/health": { "get": {
                "operationId": "health",
                "summary": "Whether predictions can be had",
                "responses": { "200": health("They can."), "503": health("They cannot at the moment.") },
            }},
            "/metrics": { "get": {
                "operationId": "metrics",
                "summary": "Counts in the text format of OpenMetrics, which Prometheus reads",
                "responses": { "200": { "description": "The counts.", "content": {
                    "application/openmetrics-text": { "schema": { "type": "string" } },
                }}},
            }},
            "/openapi.json": { "get": {
                "operationId": "openapi",
                "summary": "This document",
                "responses": {
                    "200": { "description": "It.", "content": { "application/json": { "schema": { "type": "object" } } } },
                    "503": problem("The classifier is being loaded."),
                },
            }},
        },
        "components": { "schemas": schemas(about, options) },
    });
    if options.token.is_some() {
        document["components"]["securitySchemes"] = json!({ "token": { "type": "http", "scheme": "bearer" } });
        for (path, method) in [("/classify", "post"), ("/metrics", "get")] {
            document["paths"][path][method]["security"] = json!([{ "token": [] }]);
            document["paths"][path][method]["responses"]["401"] = problem("The token is missing or wrong.");
        }
    }
    document
}

/// What it predicts, in a sentence.
pub(crate) fn description(about: &About) -> String {
    let of = if about.takes_pairs { "pairs of texts" } else { "texts" };
    let names = about.labels.join(", ");
    match about.kind {
        Kind::Class => format!("Sorts {of} into one of {} classes: {names}.", about.labels.len()),
        Kind::Labels => format!("Gives {of} any of {} labels: {names}.", about.labels.len()),
        Kind::Value => format!("Gives {of} a number: {names}."),
    }
}

fn classify(about: &About, options: &Options, answer: &Answer) -> Value {
    let row = about.example();
    let row = match row.pair {
        Some(pair) => json!([row.text, pair]),
        None => json!(row.text),
    };
    let answered: Value = Document::new(about, std::slice::from_ref(answer))
        .to_json()
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let seconds = options.timeout.as_secs_f64();
    json!({
        "operationId": "classify",
        "summary": description(about),
        "requestBody": {
            "required": true,
            "description": format!("At most {} bytes, not compressed.", options.max_body_bytes),
            "content": { "application/json": {
                "schema": { "$ref": "#/components/schemas/Request" },
                "examples": {
                    "several": { "value": { "texts": [row] } },
                    "one": { "value": { "text": row } },
                },
            }},
        },
        "responses": {
            "200": { "description": "A prediction for each row, in their order.", "content": { "application/json": {
                "schema": { "$ref": "#/components/schemas/Response" },
                "examples": { "several": { "value": answered } },
            }}},
            "400": problem("The body is not JSON."),
            "408": problem(&format!("The body did not come within {seconds} s.")),
            "413": problem("The body is too large."),
            "415": problem("The body is not said to be JSON, or is compressed."),
            "422": problem("Something else is asked; `errors` names each wrong value."),
            "500": problem("The rows could not be computed."),
            "503": waits(problem("Predictions cannot be had at the moment, or too many requests are here.")),
            "504": problem(&format!("The predictions were not there within {seconds} s.")),
        },
    })
}

fn problem(description: &str) -> Value {
    let content = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    json!({ "description": description, "content": content })
}

/// With the header that says when to come back.
fn waits(mut response: Value) -> Value {
    response["headers"] = json!({ "Retry-After": {
        "description": "Seconds to wait.", "schema": { "type": "integer", "minimum": 0 },
    }});
    response
}

fn health(description: &str) -> Value {
    let content = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Health" } } });
    json!({ "description": description, "content": content })
}

fn schemas(about: &About, options: &Options) -> Value {
    json!({
        "Row": row(about, options),
        "Request": {
            "type": "object",
            "properties": {
                "texts": {
                    "type": "array", "minItems": 1, "maxItems": options.max_rows,
                    "items": { "$ref": "#/components/schemas/Row" },
                },
                "text": { "$ref": "#/components/schemas/Row" },
            },
            "oneOf": [{ "required": ["texts"] }, { "required": ["text"] }],
            "additionalProperties": false,
        },
        "Prediction": prediction(about),
        "Response": {
            "type": "object",
            "required": ["model", "predictions"],
            "properties": {
                "model": { "type": "string", "const": about.name },
                "predictions": { "type": "array", "items": { "$ref": "#/components/schemas/Prediction" } },
            },
        },
        "Health": {
            "type": "object",
            "required": ["status", "since_s"],
            "properties": {
                "status": { "type": "string", "enum": ["loading", "ready", "unavailable", "stopping"] },
                "since_s": { "type": "integer", "minimum": 0, "description": "Seconds since it is so." },
                "detail": { "type": "string" },
            },
        },
        "Problem": {
            "type": "object",
            "description": "RFC 9457",
            "required": ["title", "status", "detail"],
            "properties": {
                "title": { "type": "string" },
                "status": { "type": "integer" },
                "detail": { "type": "string" },
                "errors": { "type": "array", "items": {
                    "type": "object",
                    "required": ["pointer", "detail"],
                    "properties": {
                        "pointer": { "type": "string", "description": "A JSON pointer (RFC 6901) to the wrong value." },
                        "detail": { "type": "string" },
                    },
                }},
            },
        },
    })
}

fn row(about: &About, options: &Options) -> Value {
    let limit = format!("At most {} bytes in UTF-8, and not only white space.", options.max_text_bytes);
    let text = json!({ "type": "string", "minLength": 1, "description": limit });
    if !about.takes_pairs {
        return text;
    }
    json!({ "type": "array", "prefixItems": [text, text], "items": false, "minItems": 2, "maxItems": 2 })
}

fn prediction(about: &About) -> Value {
    let probability = json!({ "type": "number", "minimum": 0, "maximum": 1 });
    let each: Map<String, Value> = about.labels.iter().map(|label| (label.clone(), probability.clone())).collect();
    let probabilities =
        json!({ "type": "object", "required": about.labels, "properties": each, "additionalProperties": false });
    let label = json!({ "type": "string", "enum": about.labels });
    let properties = match about.kind {
        Kind::Class => json!({ "label": label, "probability": probability, "probabilities": probabilities }),
        Kind::Labels => json!({ "labels": { "type": "array", "items": label }, "probabilities": probabilities }),
        Kind::Value => json!({ "value": { "type": "number" } }),
    };
    let names: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({ "type": "object", "required": names, "properties": properties })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(kind: Kind, answer: Answer, token: Option<&str>) -> Value {
        let token = token.map(|text| crate::Token::new(text).expect("a token"));
        openapi(&About::new("films", kind, &["bad", "good"]), &Options { token, ..Options::default() }, &answer)
    }

    /// Each `$ref` of a document.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(to)) => found.push(to.clone()),
                _ => references(value, found),
            }),
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn what_is_referred_to_is_there() {
        let document = document(Kind::Value, Answer::Value(1.0), None);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 8);
        for to in found {
            assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
        }
    }

    #[test]
    fn labels_and_a_true_answer_are_shown() {
        let answer = Answer::Class { class: 1, probabilities: vec![0.25, 0.75] };
        let document = document(Kind::Class, answer, None);
        let schema = &document["components"]["schemas"]["Prediction"]["properties"];
        assert_eq!(schema["label"]["enum"], json!(["bad", "good"]));
        assert_eq!(schema["probabilities"]["required"], json!(["bad", "good"]));
        let example = &document["paths"]["/classify"]["post"]["responses"]["200"]["content"]["application/json"];
        assert_eq!(example["examples"]["several"]["value"]["predictions"][0]["probabilities"]["good"], 0.75);
        assert!(document["components"].get("securitySchemes").is_none());
    }

    #[test]
    fn a_token_is_asked_for() {
        let document = document(Kind::Value, Answer::Value(1.0), Some("0123456789abcdef"));
        assert_eq!(document["paths"]["/classify"]["post"]["security"], json!([{ "token": [] }]));
        assert!(document["paths"]["/health"]["get"].get("security").is_none());
        assert!(!document.to_string().contains("0123456789abcdef"));
    }
}
