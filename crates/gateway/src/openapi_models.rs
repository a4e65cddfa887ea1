//! Parts of the OpenAPI document for each model, and for the list of models.

use serde_json::{Map, Value, json};

use crate::abstain;
use crate::classifier::{AnswerKind, ClassifierInfo};
use crate::openapi::{Schemas, problem, response, status};
use crate::options::Options;

/// Methods of the paths that list, load and unload models.
pub(crate) fn model_paths(options: &Options) -> [(&'static str, Map<String, Value>); 2] {
    let name = json!([{ "name": "name", "in": "path", "required": true, "schema": { "type": "string" } }]);
    let model = |description: &str| response(description, "application/json", "Model");
    let (mut list, mut one) = (Map::new(), Map::new());
    list.insert(
        "get".into(),
        json!({
            "operationId": "listModels", "summary": "Models with their labels, limits and use",
            "responses": { "200": { "description": "The models.", "content": { "application/json": { "schema": {
                "type": "object", "required": ["models"],
                "properties": { "models": { "type": "array", "items": { "$ref": "#/components/schemas/Model" } } },
            }}}}},
        }),
    );
    one.insert(
        "get".into(),
        json!({
            "operationId": "showModel", "summary": "One model", "parameters": name,
            "responses": { "200": model("The model."), "404": problem("There is no such model.") },
        }),
    );
    if options.admin_token.is_some() {
        list.insert(
            "post".into(),
            json!({
                "operationId": "loadModel",
                "summary": "Loads a run as a model, in place of the model of this name if there is one",
                "requestBody": { "required": true, "content": { "application/json": { "schema": {
                    "type": "object", "required": ["name", "run"], "additionalProperties": false,
                    "properties": {
                        "name": { "type": "string" },
                        "run": { "type": "string", "description": "Folder of the run under the root of the server." },
                    },
                }}}},
                "responses": {
                    "200": model("The model that replaced another."),
                    "201": model("The new model."),
                    "409": problem("A model of this name is being loaded, or there are too many models."),
                    "422": problem("The run cannot be loaded."),
                    "503": problem("Too many models are being replaced or unloaded."),
                },
            }),
        );
        one.insert(
            "delete".into(),
            json!({
                "operationId": "unloadModel", "summary": "Unloads a model after its open requests", "parameters": name,
                "responses": {
                    "200": { "description": "The model takes no new requests.", "content": {
                        "application/json": { "schema": { "type": "object" } },
                    }},
                    "404": problem("There is no such model."),
                },
            }),
        );
    }
    [("/v1/models", list), ("/v1/models/{name}", one)]
}

/// Schemas of the rows and answers of all models.
pub(crate) fn model_schemas(models: &[Schemas<'_>], options: &Options) -> Map<String, Value> {
    let mut schemas = Map::new();
    for model in models {
        let mut add = |kind: &str, schema: Value| schemas.insert(format!("{kind}{}", model.suffix), schema);
        add("Row", row(model.info, options));
        add("Request", request(model, options, models.len() > 1));
        add("Prediction", prediction(model.info));
        add(
            "Response",
            json!({
                "type": "object", "required": ["model", "predictions"],
                "properties": {
                    "model": { "type": "string", "const": model.info.name },
                    "predictions": { "type": "array", "items": model.reference("Prediction") },
                },
            }),
        );
    }
    if models.len() > 1 {
        let responses: Vec<Value> = models.iter().map(|model| model.reference("Response")).collect();
        let results = json!({
            "type": "object", "description": "Answer to a request with `models`.", "required": ["results"],
            "properties": { "results": { "type": "array", "items": { "anyOf": responses } } },
        });
        schemas.insert("Results".into(), results);
    }
    schemas.insert("Model".into(), model_entry());
    schemas
}

fn model_entry() -> Value {
    let count = json!({ "type": "integer", "minimum": 0 });
    let limits = ["open_requests", "waiting_rows", "rows_of_request", "text_bytes"];
    let limits: Map<String, Value> = limits.iter().map(|&name| (name.to_owned(), count.clone())).collect();
    json!({
        "type": "object",
        "required": ["name", "status", "rows", "waiting_rows", "open_requests", "limits"],
        "properties": {
            "name": { "type": "string" },
            "status": status(),
            "predicts": { "type": "string", "enum": ["class", "labels", "value", "tags"] },
            "labels": { "type": "array", "items": { "type": "string" } },
            "takes_pairs": { "type": "boolean" },
            "loaded_s": { "type": "integer", "minimum": 0, "description": "Seconds since the model was loaded." },
            "rows": { "type": "integer", "minimum": 0, "description": "Rows that were predicted." },
            "waiting_rows": count,
            "open_requests": count,
            "limits": { "type": "object", "properties": limits },
            "facts": { "type": "object", "additionalProperties": { "type": "string" } },
        },
    })
}

fn request(model: &Schemas<'_>, options: &Options, is_choice: bool) -> Value {
    let mut request = json!({
        "type": "object",
        "properties": {
            "texts": {
                "type": "array", "minItems": 1, "maxItems": options.max_rows, "items": model.reference("Row"),
            },
            "text": model.reference("Row"),
            "model": { "type": "string", "description": "Model that answers; not needed if there is only one." },
        },
        "oneOf": [{ "required": ["texts"] }, { "required": ["text"] }],
        "additionalProperties": false,
    });
    if model.info.kind == AnswerKind::Class {
        request["properties"][abstain::FIELD] = abstain_below(options);
    }
    if is_choice {
        request["properties"]["models"] = json!({
            "description": "Models that answer the same texts, or `*` for all.",
            "oneOf": [
                { "type": "array", "minItems": 1, "uniqueItems": true, "items": { "type": "string" } },
                { "const": "*" },
            ],
        });
    }
    request
}

fn abstain_below(options: &Options) -> Value {
    let mut field = json!({
        "type": "number", "minimum": 0, "maximum": 1,
        "description": "Least probability of a label; for a row with a less probable one, the label is null.",
    });
    if let Some(default) = options.abstain_below {
        field["default"] = default.into();
    }
    field
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
        AnswerKind::Class => {
            let names: Vec<Option<&String>> = info.labels.iter().map(Some).chain([None]).collect();
            let label = json!({ "type": ["string", "null"], "enum": names });
            json!({ "label": label, "probability": probability, "probabilities": probabilities })
        }
        AnswerKind::Labels => json!({ "labels": { "type": "array", "items": label }, "probabilities": probabilities }),
        AnswerKind::Value => json!({ "value": { "type": "number" } }),
        AnswerKind::Tags => json!({
            "words": { "type": "array", "items": { "type": "string" } },
            "labels": { "type": "array", "items": label },
            "probabilities": { "type": "array", "items": probability },
        }),
    };
    let names: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    let mut prediction = json!({ "type": "object", "required": names, "properties": properties });
    if info.kind == AnswerKind::Class {
        let description = "True if the label is left out; present if there is a least probability.";
        prediction["properties"]["abstained"] = json!({ "type": "boolean", "description": description });
    }
    prediction
}
