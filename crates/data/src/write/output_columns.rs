use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int64Array, ListBuilder, PrimitiveBuilder,
};
use arrow::array::{RecordBatch, StringArray, StringBuilder, new_null_array};
use arrow::datatypes::{DataType, Field, FieldRef, Float32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use sepal_core::{CellKind, Columns};

use super::{OutputSpec, WriteError, cells};
use crate::labels::{OUTPUT_SEPARATOR, share, split_parts};
use crate::rows::Form;
use crate::{Format, LabelKind, PredictionRef, RawLabel, RowSchema, Rows, json};

/// Output columns: retained passthrough columns, followed by new ones.
pub(super) struct OutputColumns {
    pub(super) schema: SchemaRef,
    pub(super) new: SchemaRef,
    pub(super) form: Form,
    /// Indices of the retained columns among the passthrough columns.
    retained: Vec<usize>,
    /// For each retained column, true if it is written as text because the format lacks its type.
    as_text: Vec<bool>,
    /// Positions of the passthrough columns among the retained columns, by name; none for replaced columns.
    positions: HashMap<String, Option<usize>>,
    /// Columns of the input that new columns of the same name replace.
    pub(super) replaced: Vec<String>,
}

impl OutputColumns {
    fn new(row_schema: &RowSchema, new: Vec<Field>, format: Format) -> Result<Self, WriteError> {
        let passthrough = row_schema.passthrough.fields();
        let is_new = |name: &String| new.iter().any(|field| field.name() == name);
        let (replaced, retained): (Vec<usize>, Vec<usize>) =
            (0..passthrough.len()).partition(|&index| is_new(passthrough[index].name()));
        unique(retained.iter().map(|&index| passthrough[index].name()))?;
        let may_lack_types = row_schema.form == Form::Arrow && format == Format::Parquet;
        let is_text = |&index: &usize| may_lack_types && !parquet_has(&passthrough[index]);
        let as_text: Vec<bool> = retained.iter().map(is_text).collect();
        let field = |(&index, &text): (&usize, &bool)| match text {
            true => Field::new(passthrough[index].name(), DataType::Utf8, true),
            false => passthrough[index].as_ref().clone(),
        };
        let fields = retained.iter().zip(&as_text).map(field).chain(new.iter().cloned());
        let name = |index: usize| passthrough[index].name().clone();
        let positions = retained.iter().enumerate().map(|(position, &index)| (name(index), Some(position)));
        Ok(Self {
            schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            new: Arc::new(Schema::new(new)),
            form: row_schema.form,
            as_text,
            positions: positions.chain(replaced.iter().map(|&index| (name(index), None))).collect(),
            replaced: replaced.into_iter().map(name).collect(),
            retained,
        })
    }

    pub(super) fn passthrough(&self, rows: &Rows) -> Result<Vec<ArrayRef>, WriteError> {
        if self.form == Form::Objects {
            return self.members(rows);
        }
        let columns = self.retained.iter().zip(&self.as_text).map(|(&index, &is_text)| {
            let column = rows.passthrough.column(index);
            if is_text {
                Ok(Arc::new(cells::texts(rows.passthrough.schema_ref().field(index), column)?) as ArrayRef)
            } else {
                Ok(column.clone())
            }
        });
        columns.collect()
    }

    fn members(&self, rows: &Rows) -> Result<Vec<ArrayRef>, WriteError> {
        let mut columns: Vec<StringBuilder> = self.retained.iter().map(|_| StringBuilder::new()).collect();
        for (row, object) in objects(rows).iter().flatten().enumerate() {
            let mut cells = vec![None; columns.len()];
            for member in json::members(object).map_err(not_json)? {
                match self.positions.get(&*member.name()) {
                    Some(Some(position)) => cells[*position] = member.cell(),
                    Some(None) => {}
                    None => {
                        let key = member.name().into_owned();
                        return Err(WriteError::LateKey { location: rows.location(row), key });
                    }
                }
            }
            columns.iter_mut().zip(cells).for_each(|(column, cell)| column.append_option(cell));
        }
        Ok(columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect())
    }
}

pub(super) fn objects(rows: &Rows) -> &StringArray {
    rows.passthrough.column(0).as_string()
}

/// Error of JSON that was valid when it was read.
pub(super) fn not_json(error: serde_json::Error) -> WriteError {
    ArrowError::from_external_error(error.into()).into()
}

fn unique<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), WriteError> {
    let mut seen = BTreeSet::new();
    names.find(|name| !seen.insert(*name)).map_or(Ok(()), |name| Err(WriteError::Column { column: name.clone() }))
}

/// Checks that passthrough columns have distinct names, unless new columns always replace them, and types that can be
/// written.
pub(super) fn check_passthrough(row_schema: &RowSchema) -> Result<(), WriteError> {
    let is_new = |name: &str| matches!(name, "predicted" | "probability") || (row_schema.label && name == "label");
    unique(row_schema.passthrough.fields().iter().map(|field| field.name()).filter(|name| !is_new(name)))?;
    let is_writable = |field: &FieldRef| cells::texts(field, &new_null_array(field.data_type(), 1)).is_ok();
    match row_schema.passthrough.fields().iter().find(|field| !is_writable(field)) {
        Some(field) => Err(WriteError::Type { column: field.name().clone(), found: field.data_type().to_string() }),
        None => Ok(()),
    }
}

fn parquet_has(field: &FieldRef) -> bool {
    let field = field.as_ref().clone().with_nullable(true);
    let write = || -> Result<(), ParquetError> {
        let schema = Arc::new(Schema::new(vec![field.clone()]));
        let batch = RecordBatch::try_new(schema.clone(), vec![new_null_array(field.data_type(), 1)])?;
        let mut writer = ArrowWriter::try_new(std::io::sink(), schema, None)?;
        writer.write(&batch)?;
        writer.close().map(drop)
    };
    // The writer panics at unions.
    !has_union(field.data_type()) && write().is_ok()
}

fn has_union(kind: &DataType) -> bool {
    match kind {
        DataType::Union(..) => true,
        DataType::Struct(fields) => fields.iter().any(|field| has_union(field.data_type())),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _)
        | DataType::RunEndEncoded(_, item) => has_union(item.data_type()),
        _ => false,
    }
}

pub(super) fn plan(specs: &[OutputSpec], row_schema: &RowSchema, format: Format) -> Result<OutputColumns, WriteError> {
    let mut fields: Vec<Field> = Vec::new();
    for spec in specs {
        fields.extend(new_fields(spec, row_schema, format)?);
    }
    let mut seen = BTreeSet::new();
    if let Some(field) = fields.iter().find(|field| !seen.insert(field.name())) {
        return Err(WriteError::NewColumn { column: field.name().clone() });
    }
    OutputColumns::new(row_schema, fields, format)
}

/// New columns of one model.
fn new_fields(spec: &OutputSpec, row_schema: &RowSchema, format: Format) -> Result<Vec<Field>, WriteError> {
    let Columns { label, predicted, probability, .. } = spec.task.columns();
    let joins = predicted == CellKind::Texts && format.is_delimited();
    if joins && let Some(name) = spec.labels.names().iter().find(|name| name.contains(OUTPUT_SEPARATOR)) {
        return Err(WriteError::Name { name: name.clone() });
    }
    let name = |name: &str| format!("{}{name}", spec.prefix);
    let names_type = |kind: CellKind| match kind {
        CellKind::Texts if joins && is_read_as_multi_hot(spec) => DataType::Utf8,
        kind => data_type(kind),
    };
    let mut fields = Vec::new();
    fields.extend(row_schema.label.then(|| Field::new(name("label"), names_type(label), true)));
    fields.push(Field::new(name("predicted"), names_type(predicted), spec.abstain_below.is_some()));
    fields.extend(probability.map(|kind| Field::new(name("probability"), data_type(kind), false)));
    fields.extend(spec.abstain_below.map(|_| Field::new(name("abstained"), DataType::Boolean, false)));
    if has_probabilities(spec) {
        let labels = spec.labels.names().iter();
        fields.extend(labels.map(|label| Field::new(name(&format!("probability_{label}")), DataType::Float32, false)));
    }
    Ok(fields)
}

/// Returns true if the names of all labels, joined, are also a multi-hot vector, as `0|1` is.
fn is_read_as_multi_hot(spec: &OutputSpec) -> bool {
    let names = spec.labels.names();
    spec.task.kind() == LabelKind::Multi
        && names.len() > 1
        && names.iter().all(|name| share(&RawLabel::Name(name.clone())).is_some())
}

fn data_type(kind: CellKind) -> DataType {
    let list = |item: DataType| DataType::new_list(item, true);
    match kind {
        CellKind::Text => DataType::Utf8,
        CellKind::Texts => list(DataType::Utf8),
        CellKind::Index => DataType::Int64,
        CellKind::Float32 => DataType::Float32,
        CellKind::Float64 => DataType::Float64,
        CellKind::Floats => list(DataType::Float32),
    }
}

fn has_probabilities(spec: &OutputSpec) -> bool {
    spec.probabilities && spec.task.columns().has_label_columns
}

/// Checks that there is a prediction for each row, and a number in it for each class, option or word.
pub(super) fn check(spec: &OutputSpec, rows: &Rows, predicted: PredictionRef<'_>) -> Result<(), WriteError> {
    let names = spec.labels.names().len();
    let PredictionRef { class, logits, probabilities, items, texts, .. } = predicted;
    let lengths = match spec.task.kind() {
        LabelKind::Value => [logits.len(), logits.len()],
        LabelKind::Multi => [probabilities.len(), probabilities.len()],
        LabelKind::Class | LabelKind::Choice => [probabilities.len(), class.len()],
        LabelKind::Tags => [probabilities.len(), items.len()],
        LabelKind::Text => [texts.len(), texts.len()],
    };
    for predictions in lengths {
        if predictions != rows.len() {
            return Err(WriteError::Rows { predictions, rows: rows.len(), unit: "rows" });
        }
    }
    let other = |numbers: &[Vec<f32>]| numbers.iter().map(Vec::len).find(|&length| length != names);
    let wrong = match spec.task.kind() {
        LabelKind::Value => other(logits).map(|found| (found, names, "classes")),
        LabelKind::Class | LabelKind::Multi => other(probabilities).map(|found| (found, names, "classes")),
        LabelKind::Choice => {
            let pairs = class.iter().zip(probabilities);
            let mut pairs = pairs.map(|(&class, row)| (usize::try_from(class).unwrap_or(usize::MAX), row.len()));
            pairs.find(|(class, options)| class >= options).map(|(class, options)| (class, options, "options"))
        }
        LabelKind::Tags => {
            let mut pairs = items.iter().zip(probabilities).map(|(tags, row)| (tags.len(), row.len(), "words"));
            pairs.find(|(tags, words, _)| tags != words)
        }
        LabelKind::Text => None,
    };
    match wrong {
        Some((predictions, rows, unit)) => Err(WriteError::Rows { predictions, rows, unit }),
        None => Ok(()),
    }
}

pub(super) fn new_columns(
    spec: &OutputSpec,
    rows: &Rows,
    predicted: PredictionRef<'_>,
) -> Result<Vec<ArrayRef>, WriteError> {
    let mut columns: Vec<ArrayRef> = Vec::new();
    if let Some(labels) = &rows.labels {
        columns.push(label_column(spec, labels));
    }
    columns.extend(predictions(spec, predicted)?);
    if has_probabilities(spec) {
        for class in 0..spec.labels.names().len() {
            let probabilities = predicted.probabilities.iter().map(|row| row[class]);
            columns.push(Arc::new(Float32Array::from_iter_values(probabilities)));
        }
    }
    Ok(columns)
}

/// Columns `predicted`, `probability` and `abstained`.
fn predictions(spec: &OutputSpec, predicted: PredictionRef<'_>) -> Result<Vec<ArrayRef>, WriteError> {
    let names = spec.labels.names();
    Ok(match spec.task.kind() {
        LabelKind::Value => vec![Arc::new(Float32Array::from_iter_values(predicted.logits.iter().map(|row| row[0])))],
        LabelKind::Class => {
            let index = |&class: &i64| usize::try_from(class).ok().filter(|class| *class < names.len());
            let unknown = || WriteError::Rows { predictions: names.len(), rows: names.len(), unit: "classes" };
            let classes = predicted.class.iter().map(|class| index(class).ok_or_else(unknown));
            let classes = classes.collect::<Result<Vec<_>, _>>()?;
            let probabilities = classes.iter().zip(predicted.probabilities).map(|(&class, row)| row[class]);
            let probabilities: Vec<f32> = probabilities.collect();
            let is_abstained = |probability: f32| spec.abstain_below.is_some_and(|least| probability < least);
            let abstained: Vec<bool> = probabilities.iter().map(|&probability| is_abstained(probability)).collect();
            let rows = classes.iter().zip(&abstained);
            let names: StringArray = rows.map(|(&class, &abstained)| (!abstained).then(|| &names[class])).collect();
            let mut columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(Float32Array::from(probabilities))];
            columns.extend(spec.abstain_below.map(|_| Arc::new(BooleanArray::from(abstained)) as ArrayRef));
            columns
        }
        LabelKind::Choice => {
            let chosen = |(&class, row): (&i64, &Vec<f32>)| usize::try_from(class).ok().map_or(0.0, |class| row[class]);
            let probabilities = predicted.class.iter().zip(predicted.probabilities).map(chosen);
            let probabilities = Float32Array::from_iter_values(probabilities);
            vec![Arc::new(Int64Array::from(predicted.class.to_vec())), Arc::new(probabilities)]
        }
        LabelKind::Tags => {
            let name = |&tag: &i64| usize::try_from(tag).ok().and_then(|tag| names.get(tag)).map_or("", String::as_str);
            let tags = predicted.items.iter().map(|tags| tags.iter().map(name).collect());
            vec![text_lists(tags), float_lists(predicted.probabilities)]
        }
        LabelKind::Text => vec![Arc::new(StringArray::from_iter_values(predicted.texts))],
        LabelKind::Multi => {
            let mut labels = ListBuilder::new(StringBuilder::new());
            let mut probabilities = ListBuilder::new(PrimitiveBuilder::<Float32Type>::new());
            for row in predicted.probabilities {
                let decisions = names.iter().zip(predicted.with_decisions(row));
                for (name, (probability, _)) in decisions.filter(|(_, (_, is_predicted))| *is_predicted) {
                    labels.values().append_value(name);
                    probabilities.values().append_value(probability);
                }
                labels.append(true);
                probabilities.append(true);
            }
            vec![Arc::new(labels.finish()), Arc::new(probabilities.finish())]
        }
    })
}

/// Least number of a label in a multi-hot vector.
const LABEL_SHARE: f32 = 0.5;

/// Labels by name; cells that are not labels of the task are copied.
fn label_column(spec: &OutputSpec, labels: &[Option<RawLabel>]) -> ArrayRef {
    let is_blank = |label: &&RawLabel| matches!(label, RawLabel::Name(name) if name.is_empty());
    let name = |label: &Option<RawLabel>| Some(class_name(spec, label.as_ref().filter(|label| !is_blank(label))?));
    match spec.task.kind() {
        LabelKind::Text => {
            Arc::new(labels.iter().map(|label| Some(label.as_ref()?.to_string())).collect::<StringArray>())
        }
        LabelKind::Choice => {
            let index = |label: &Option<RawLabel>| label.as_ref()?.to_string().trim().parse::<i64>().ok();
            Arc::new(labels.iter().map(index).collect::<Int64Array>())
        }
        LabelKind::Class => Arc::new(labels.iter().map(name).collect::<StringArray>()),
        LabelKind::Value => {
            let number = |label: &Option<RawLabel>| match label.as_ref()? {
                RawLabel::Bool(truth) => Some(f64::from(u8::from(*truth))),
                RawLabel::Int(number) => Some(*number as f64),
                RawLabel::Float(number) => Some(*number),
                RawLabel::Name(text) | RawLabel::Quoted(text) => text.trim().parse().ok(),
                RawLabel::Many(_) => None,
            };
            Arc::new(labels.iter().map(number).collect::<Float64Array>())
        }
        LabelKind::Multi | LabelKind::Tags => {
            let mut lists = ListBuilder::new(StringBuilder::new());
            for label in labels {
                let names = label.as_ref().map(|label| label_names(spec, label));
                names.iter().flatten().for_each(|name| lists.values().append_value(name));
                lists.append(names.is_some());
            }
            Arc::new(lists.finish())
        }
    }
}

pub(crate) fn text_lists<'a>(rows: impl Iterator<Item = Vec<&'a str>>) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for row in rows {
        row.into_iter().for_each(|text| lists.values().append_value(text));
        lists.append(true);
    }
    Arc::new(lists.finish())
}

pub(crate) fn float_lists(rows: &[Vec<f32>]) -> ArrayRef {
    let mut lists = ListBuilder::new(PrimitiveBuilder::<Float32Type>::new());
    for row in rows {
        lists.values().append_slice(row);
        lists.append(true);
    }
    Arc::new(lists.finish())
}

/// Names of several labels; items that are not labels are copied.
fn label_names(spec: &OutputSpec, label: &RawLabel) -> Vec<String> {
    if spec.task.kind() == LabelKind::Tags {
        return tag_names(spec, label);
    }
    match spec.labels.names_of(label, LABEL_SHARE) {
        Some(names) => names.into_iter().map(str::to_owned).collect(),
        None => match label {
            RawLabel::Many(items) => items.iter().map(|item| class_name(spec, item)).collect(),
            RawLabel::Name(joined) => split_parts(joined, &[OUTPUT_SEPARATOR]).map(str::to_owned).collect(),
            other => vec![class_name(spec, other)],
        },
    }
}

/// Names of the tags of words.
fn tag_names(spec: &OutputSpec, label: &RawLabel) -> Vec<String> {
    match label {
        RawLabel::Many(items) => items.iter().map(|item| class_name(spec, item)).collect(),
        RawLabel::Name(text) => text.split_whitespace().map(str::to_owned).collect(),
        other => vec![class_name(spec, other)],
    }
}

fn class_name(spec: &OutputSpec, label: &RawLabel) -> String {
    match spec.labels.class_of(label) {
        Some(class) => spec.labels.names()[class].clone(),
        None => label.to_string(),
    }
}
