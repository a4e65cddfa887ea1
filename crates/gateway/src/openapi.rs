//! OpenAPI 3.1 document with the classifier's labels and an example of its answers.

use serde_json::{Map, Value, json};

use crate::classifier::{Answer, AnswerKind, ClassifierInfo};
use crate::options::Options;
use crate::response::Document;

/// Returns the document. `answer` is the classifier's answer to its example.
pub(crate) fn openapi(info: &ClassifierInfo, options: &Options, answer: &Answer) -> Value {
    let mut document = json!({
        "openapi": "3.1.0",
        "info": { "title": info.name, "version": env!("CARGO_PKG_VERSION"), "description": description(info) },
        "servers": [{ "url": "/" }],
        "paths": {
            "/classify": { "post": classify(info, options, answer) },
            "/health": { "get": {
                "operationId": "health", "summary": "Availability of predictions",
                "responses": { "200": health("Predictions are available."), "503": health("Predictions are unavailable at the moment.") },
            }},
            "/metrics": { "get": {
                "operationId": "metrics",
                "summary": "Metrics in the text format of OpenMetrics, which Prometheus reads",
                "responses": { "200": { "description": "The metrics.", "content": {
                    "application/openmetrics-text": { "schema": { "type": "string" } },
                }}},
            }},
            "/openapi.json": { "get": {
                "operationId": "openapi", "summary": "This document",
                "responses": {
                    "200": { "description": "The document.", "content": { "application/json": { "schema": { "type": "object" } } } },
                    "503": problem("The classifier is being loaded."),
                },
            }},
        },
        "components": { "schemas": schemas(info, options) },
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

pub(crate) fn description(info: &ClassifierInfo) -> String {
    let inputs = if info.takes_pairs { "pairs of texts" } else { "texts" };
    let names = info.labels.join(", ");
    match info.kind {
        AnswerKind::Class => format!("Sorts {inputs} into one of {} classes: {names}.", info.labels.len()),
        AnswerKind::Labels => format!("Gives {inputs} any of {} labels: {names}.", info.labels.len()),
        AnswerKind::Value => format!("Gives {inputs} a number: {names}."),
        AnswerKind::Tags => format!("Gives each word of {inputs} one of {} labels: {names}.", info.labels.len()),
    }
}

fn classify(info: &ClassifierInfo, options: &Options, answer: &Answer) -> Value {
    let row = info.example();
    let row = match row.pair {
        Some(pair) => json!([row.text, pair]),
        None => json!(row.text),
    };
    let example = Document::new(info, std::slice::from_ref(answer)).to_json().ok();
    let example: Value = example.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let seconds = options.timeout.as_secs_f64();
    json!({
        "operationId": "classify",
        "summary": description(info),
        "requestBody": {
            "required": true,
            "description": format!("At most {} bytes, not compressed.", options.max_body_bytes),
            "content": { "application/json": {
                "schema": { "$ref": "#/components/schemas/Request" },
                "examples": { "several": { "value": { "texts": [row] } }, "one": { "value": { "text": row } } },
            }},
        },
        "responses": {
            "200": { "description": "A prediction for each row, in their order.", "content": { "application/json": {
                "schema": { "$ref": "#/components/schemas/Response" },
                "examples": { "several": { "value": example } },
            }}},
            "400": problem("The body is not JSON."),
            "408": problem(&format!("The body did not arrive within {seconds} s.")),
            "413": problem("The body is too large."),
            "415": problem("The content type is not JSON, or the body is compressed."),
            "422": problem("The request is invalid; `errors` lists each invalid value."),
            "500": problem("The rows could not be computed."),
            "503": with_retry_after(problem("Predictions are unavailable at the moment, or too many requests are in progress.")),
            "504": problem(&format!("The predictions were not ready within {seconds} s.")),
        },
    })
}

fn problem(description: &str) -> Value {
    response(description, "application/problem+json", "Problem")
}

fn health(description: &str) -> Value {
    response(description, "application/json", "Health")
}

fn response(description: &str, content_type: &str, schema: &str) -> Value {
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    json!({ "description": description, "content": { content_type: { "schema": schema } } })
}

fn with_retry_after(mut response: Value) -> Value {
    response["headers"] = json!({ "Retry-After": {
        "description": "Seconds to wait.", "schema": { "type": "integer", "minimum": 0 },
    }});
    response
}

fn schemas(info: &ClassifierInfo, options: &Options) -> Value {
    json!({
        "Row": row(info, options),
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
        "Prediction": prediction(info),
        "Response": {
            "type": "object", "required": ["model", "predictions"],
            "properties": {
                "model": { "type": "string", "const": info.name },
                "predictions": { "type": "array", "items": { "$ref": "#/components/schemas/Prediction" } },
            },
        },
        "Health": {
            "type": "object", "required": ["status", "since_s"],
            "properties": {
                "status": { "type": "string", "enum": ["loading", "ready", "unavailable", "stopping"] },
                "since_s": { "type": "integer", "minimum": 0, "description": "Seconds since the last change of the status." },
                "detail": { "type": "string" },
            },
        },
        "Problem": {
            "type": "object", "description": "RFC 9457", "required": ["title", "status", "detail"],
            "properties": {
                "title": { "type": "string" }, "status": { "type": "integer" }, "detail": { "type": "string" },
                "errors": { "type": "array", "items": {
                    "type": "object", "required": ["pointer", "detail"],
                    "properties": {
                        "pointer": { "type": "string", "description": "A JSON pointer (RFC 6901) to the invalid value." },
                        "detail": { "type": "string" },
                    },
                }},
            },
        },
    })
}

fn row(info: &ClassifierInfo, options: &Options) -> Value {
    let limit = format!("At most {} bytes in UTF-8, and not only white space.", options.max_text_bytes);
    let text = json!({ "type": "string", "minLength": 1, "description": limit });
    if !info.takes_pairs {
        return text;
    }
    json!({ "type": "array", "prefixItems": [text, text], "items": false, "minItems": 2, "maxItems": 2 })
}

fn prediction(info: &ClassifierInfo) -> Value {
    let probability = json!({ "type": "number", "minimum": 0, "maximum": 1 });
    let each: Map<String, Value> = info.labels.iter().map(|label| (label.clone(), probability.clone())).collect();
    let probabilities =
        json!({ "type": "object", "required": info.labels, "properties": each, "additionalProperties": false });
    let label = json!({ "type": "string", "enum": info.labels });
    let properties = match info.kind {
        AnswerKind::Class => json!({ "label": label, "probability": probability, "probabilities": probabilities }),
        AnswerKind::Labels => json!({ "labels": { "type": "array", "items": label }, "probabilities": probabilities }),
        AnswerKind::Value => json!({ "value": { "type": "number" } }),
        AnswerKind::Tags => json!({
            "words": { "type": "array", "items": { "type": "string" } },
            "labels": { "type": "array", "items": label },
            "probabilities": { "type": "array", "items": probability },
        }),
    };
    let names: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({ "type": "object", "required": names, "properties": properties })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(kind: AnswerKind, answer: Answer, token: Option<&str>) -> Value {
        let token = token.map(|text| crate::Token::new(text).expect("a token"));
        let info = ClassifierInfo::new("films", kind, &["bad", "good"]);
        openapi(&info, &Options { token, ..Options::default() }, &answer)
    }

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
    fn references_are_defined() {
        let document = document(AnswerKind::Value, Answer::Value(1.0), None);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 8);
        for to in found {
            assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
        }
    }

    #[test]
    fn document_has_labels_and_example() {
        let answer = Answer::Class { class: 1, probabilities: vec![0.25, 0.75] };
        let document = document(AnswerKind::Class, answer, None);
        let schema = &document["components"]["schemas"]["Prediction"]["properties"];
        assert_eq!(schema["label"]["enum"], json!(["bad", "good"]));
        assert_eq!(schema["probabilities"]["required"], json!(["bad", "good"]));
        let example = &document["paths"]["/classify"]["post"]["responses"]["200"]["content"]["application/json"];
        assert_eq!(example["examples"]["several"]["value"]["predictions"][0]["probabilities"]["good"], 0.75);
        assert!(document["components"].get("securitySchemes").is_none());
    }

    #[test]
    fn token_adds_security_scheme() {
        let document = document(AnswerKind::Value, Answer::Value(1.0), Some("0123456789abcdef"));
        assert_eq!(document["paths"]["/classify"]["post"]["security"], json!([{ "token": [] }]));
        assert!(document["paths"]["/health"]["get"].get("security").is_none());
        assert!(!document.to_string().contains("0123456789abcdef"));
    }
}
