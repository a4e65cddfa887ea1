//! OpenAPI 3.1 document with the labels of the models and an example of their answers.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::classifier::{Answer, AnswerKind, ClassifierInfo};
use crate::model::Description;
use crate::openapi_models::{model_paths, model_schemas};
use crate::options::Options;
use crate::response::Document;

/// Schemas of one model: their names end with its position if there are several.
#[derive(Debug, Clone)]
pub(crate) struct Schemas<'a> {
    pub(crate) info: &'a ClassifierInfo,
    answer: &'a Answer,
    pub(crate) suffix: String,
}

/// Returns the document.
pub(crate) fn openapi(models: &[Arc<Description>], options: &Options) -> Value {
    let suffix = |index: usize| if models.len() > 1 { (index + 1).to_string() } else { String::new() };
    let models: Vec<Schemas<'_>> = models
        .iter()
        .enumerate()
        .map(|(index, model)| Schemas { info: &model.info, answer: &model.example, suffix: suffix(index) })
        .collect();
    let names: Vec<&str> = models.iter().map(|model| model.info.name.as_str()).collect();
    let about: Vec<String> = models.iter().map(|model| about(model.info, models.len())).collect();
    let mut paths = json!({
        "/classify": { "post": classify(&models, options, "classify") },
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
                "503": problem("No model has answered yet, or none is loaded."),
            },
        }},
    });
    let mut public = vec![("/classify".to_owned(), "post"), ("/metrics".to_owned(), "get")];
    for (index, model) in models.iter().enumerate() {
        let path = format!("/v1/models/{}/classify", model.info.name);
        let operation = format!("classifyWith{}", index + 1);
        paths[&path] = json!({ "post": classify(std::slice::from_ref(model), options, &operation) });
        public.push((path, "post"));
    }
    for (path, methods) in model_paths(options) {
        public.push((path.to_owned(), "get"));
        paths[path] = methods.into();
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": { "title": names.join(", "), "version": env!("CARGO_PKG_VERSION"), "description": about.join("\n") },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas(&models, options) },
    });
    secure(&mut document, &public, options);
    document
}

/// Adds the tokens of clients and administrators to the operations that require them.
fn secure(document: &mut Value, public: &[(String, &str)], options: &Options) {
    let mut secure = |path: &str, method: &str| {
        document["paths"][path][method]["security"] = json!([{ "token": [] }]);
        document["paths"][path][method]["responses"]["401"] = problem("The token is missing or wrong.");
    };
    if options.token.is_some() {
        public.iter().for_each(|(path, method)| secure(path, method));
    }
    if options.admin_token.is_some() {
        secure("/v1/models", "post");
        secure("/v1/models/{name}", "delete");
    }
    if options.token.is_some() || options.admin_token.is_some() {
        document["components"]["securitySchemes"] = json!({ "token": { "type": "http", "scheme": "bearer" } });
    }
}

fn about(info: &ClassifierInfo, n_models: usize) -> String {
    let text = description(info);
    if n_models > 1 { format!("{}: {text}", info.name) } else { text }
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

/// Operation that predicts with one of these models.
fn classify(models: &[Schemas<'_>], options: &Options, operation: &str) -> Value {
    let is_choice = models.len() > 1;
    let summaries: Vec<String> = models.iter().map(|model| about(model.info, models.len())).collect();
    let (mut requests, mut responses) = (Map::new(), Map::new());
    for model in models {
        model.add_examples(is_choice, options.abstain_below, &mut requests, &mut responses);
    }
    let seconds = options.timeout.as_secs_f64();
    let mut responses = json!({
        "200": { "description": "A prediction for each row, in their order.", "content": { "application/json": {
            "schema": one_of(models, "Response", is_choice.then_some("Results")),
            "examples": responses,
        }}},
        "400": problem("The body is not JSON."),
        "408": problem(&format!("The body did not arrive within {seconds} s.")),
        "413": problem("The body is too large."),
        "415": problem("The content type is not JSON, or the body is compressed."),
        "422": problem("The request is invalid; `errors` lists each invalid value."),
        "500": problem("The rows could not be computed."),
        "503": with_retry_after(problem("Predictions are unavailable at the moment, or too many requests are in progress.")),
        "504": problem(&format!("The predictions were not ready within {seconds} s.")),
    });
    responses["404"] = problem("There is no such model.");
    json!({
        "operationId": operation,
        "summary": summaries.join(" "),
        "requestBody": {
            "required": true,
            "description": format!("At most {} bytes, not compressed.", options.max_body_bytes),
            "content": { "application/json": { "schema": one_of(models, "Request", None), "examples": requests } },
        },
        "responses": responses,
    })
}

/// Schema of this kind of one of the models, or another one.
fn one_of(models: &[Schemas<'_>], kind: &str, other: Option<&str>) -> Value {
    let references: Vec<Value> = models.iter().map(|model| model.reference(kind)).chain(other.map(reference)).collect();
    match references.as_slice() {
        [only] => only.clone(),
        _ => json!({ "anyOf": references }),
    }
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

impl Schemas<'_> {
    pub(crate) fn reference(&self, kind: &str) -> Value {
        reference(&format!("{kind}{}", self.suffix))
    }

    fn add_examples(
        &self,
        is_choice: bool,
        abstain_below: Option<f32>,
        requests: &mut Map<String, Value>,
        responses: &mut Map<String, Value>,
    ) {
        let row = self.info.example();
        let row = match row.pair {
            Some(pair) => json!([row.text, pair]),
            None => json!(row.text),
        };
        let example = Document::new(self.info, std::slice::from_ref(self.answer), abstain_below).to_json().ok();
        let example: Value = example.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        for (name, key, value) in [("several", "texts", json!([row])), ("one", "text", row.clone())] {
            let mut request = Map::new();
            if is_choice {
                request.insert("model".into(), self.info.name.as_str().into());
            }
            request.insert(key.into(), value);
            requests.insert(format!("{name}{}", self.suffix), json!({ "value": request }));
        }
        responses.insert(format!("several{}", self.suffix), json!({ "value": example }));
    }
}

pub(crate) fn problem(description: &str) -> Value {
    response(description, "application/problem+json", "Problem")
}

fn health(description: &str) -> Value {
    response(description, "application/json", "Health")
}

pub(crate) fn response(description: &str, content_type: &str, schema: &str) -> Value {
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    json!({ "description": description, "content": { content_type: { "schema": schema } } })
}

fn with_retry_after(mut response: Value) -> Value {
    response["headers"] = json!({ "Retry-After": {
        "description": "Seconds to wait.", "schema": { "type": "integer", "minimum": 0 },
    }});
    response
}

fn schemas(models: &[Schemas<'_>], options: &Options) -> Value {
    let mut schemas = model_schemas(models, options);
    schemas.extend([
        ("Health".to_owned(), json!({
            "type": "object", "required": ["status", "since_s", "models"],
            "properties": {
                "status": status(),
                "since_s": { "type": "integer", "minimum": 0, "description": "Seconds since the last change of the status." },
                "models": { "type": "object", "additionalProperties": status() },
                "detail": { "type": "string" },
            },
        })),
        ("Problem".to_owned(), json!({
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
        })),
    ]);
    schemas.into()
}

pub(crate) fn status() -> Value {
    json!({ "type": "string", "enum": ["loading", "ready", "unavailable", "stopping"] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(kind: AnswerKind, answer: Answer, token: Option<&str>) -> Value {
        let token = token.map(|text| crate::Token::new(text).expect("a token"));
        let info = ClassifierInfo::new("films", kind, &["bad", "good"]);
        let model = Arc::new(Description { info, example: answer });
        openapi(&[model], &Options { token, ..Options::default() })
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

    fn check_references(document: &Value) {
        let mut found = Vec::new();
        references(document, &mut found);
        assert!(found.len() > 8);
        for to in found {
            assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
        }
    }

    #[test]
    fn references_are_defined() {
        check_references(&document(AnswerKind::Value, Answer::Value(1.0), None));
    }

    #[test]
    fn several_models_have_their_own_schemas_and_paths() {
        let model = |name: &str, kind, example| {
            Arc::new(Description { info: ClassifierInfo::new(name, kind, &["bad", "good"]), example })
        };
        let class = Answer::Class { class: 1, probabilities: vec![0.25, 0.75] };
        let models = [model("films", AnswerKind::Class, class), model("stars", AnswerKind::Value, Answer::Value(4.0))];
        let document = openapi(&models, &Options::default());
        check_references(&document);
        assert_eq!(document["info"]["title"], "films, stars");
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["Prediction1"]["properties"]["label"]["enum"], json!(["bad", "good", null]));
        assert!(schemas["Prediction2"]["properties"]["value"].is_object());
        let body = &document["paths"]["/classify"]["post"]["requestBody"]["content"]["application/json"];
        assert_eq!(body["examples"]["one2"]["value"]["model"], "stars");
        let body = &document["paths"]["/v1/models/stars/classify"]["post"]["requestBody"]["content"];
        assert!(body["application/json"]["examples"]["one2"]["value"].get("model").is_none());
    }

    #[test]
    fn document_has_labels_and_example() {
        let answer = Answer::Class { class: 1, probabilities: vec![0.25, 0.75] };
        let document = document(AnswerKind::Class, answer, None);
        let schema = &document["components"]["schemas"]["Prediction"]["properties"];
        assert_eq!(schema["label"]["enum"], json!(["bad", "good", null]));
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
        assert!(document["paths"]["/v1/models"]["get"].get("security").is_some());
        assert!(document["paths"]["/v1/models"].get("post").is_none(), "there are no administrators");
        assert!(!document.to_string().contains("0123456789abcdef"));
    }
}
