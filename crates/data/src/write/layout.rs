use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float32Array, Float64Array, ListBuilder, PrimitiveBuilder, RecordBatch};
use arrow::array::{StringArray, StringBuilder, new_null_array};
use arrow::datatypes::{DataType, Field, FieldRef, Float32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;

use super::{OutputSpec, WriteError, cells};
use crate::labels::{JOIN, parts};
use crate::rows::Form;
use crate::{Format, LabelKind, Layout, Predicted, RawLabel, Rows, json};

/// The columns of what is written: those of the input that are kept, and the new ones behind them.
pub(super) struct Plan {
    pub(super) schema: SchemaRef,
    /// The new ones alone.
    pub(super) new: SchemaRef,
    pub(super) form: Form,
    /// The places of those that are kept among those that the rows carry.
    pub(super) kept: Vec<usize>,
    /// The kept columns that are written as texts, because the format has no such type.
    texts: Vec<bool>,
    /// The places among the kept columns of all that the rows carry, by name; none for those that are replaced.
    places: HashMap<String, Option<usize>>,
    /// Columns of the input in whose place stand new ones of the same name.
    pub(super) replaced: Vec<String>,
}

impl Plan {
    fn new(layout: &Layout, new: Vec<Field>, format: Format) -> Result<Self, WriteError> {
        let carried = layout.carried.fields();
        let is_new = |name: &String| new.iter().any(|field| field.name() == name);
        let (replaced, kept): (Vec<usize>, Vec<usize>) =
            (0..carried.len()).partition(|&index| is_new(carried[index].name()));
        unique(kept.iter().map(|&index| carried[index].name()))?;
        let texts: Vec<bool> = kept
            .iter()
            .map(|&index| layout.form == Form::Arrow && format == Format::Parquet && !parquet_has(&carried[index]))
            .collect();
        let field = |(&index, &text): (&usize, &bool)| match text {
            true => Field::new(carried[index].name(), DataType::Utf8, true),
            false => carried[index].as_ref().clone(),
        };
        let fields = kept.iter().zip(&texts).map(field).chain(new.iter().cloned());
        let name = |index: usize| carried[index].name().clone();
        let places = kept.iter().enumerate().map(|(place, &index)| (name(index), Some(place)));
        Ok(Self {
            schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            new: Arc::new(Schema::new(new)),
            form: layout.form,
            texts,
            places: places.chain(replaced.iter().map(|&index| (name(index), None))).collect(),
            replaced: replaced.into_iter().map(name).collect(),
            kept,
        })
    }

    /// The kept columns of a chunk.
    pub(super) fn carried(&self, rows: &Rows) -> Result<Vec<ArrayRef>, WriteError> {
        if self.form == Form::Objects {
            return self.members(rows);
        }
        let columns = self.kept.iter().zip(&self.texts).map(|(&index, &text)| {
            let column = rows.carried.column(index);
            if text {
                Ok(Arc::new(cells::texts(rows.carried.schema_ref().field(index), column)?) as ArrayRef)
            } else {
                Ok(column.clone())
            }
        });
        columns.collect()
    }

    /// The members of objects as columns with their JSON.
    fn members(&self, rows: &Rows) -> Result<Vec<ArrayRef>, WriteError> {
        let mut columns: Vec<StringBuilder> = self.kept.iter().map(|_| StringBuilder::new()).collect();
        for (row, object) in objects(rows).iter().flatten().enumerate() {
            let mut cells = vec![None; columns.len()];
            for member in json::members(object).map_err(not_json)? {
                match self.places.get(&*member.name()) {
                    Some(Some(place)) => cells[*place] = member.cell(),
                    Some(None) => {}
                    None => {
                        let key = member.name().into_owned();
                        return Err(WriteError::LateKey { place: rows.place(row), key });
                    }
                }
            }
            columns.iter_mut().zip(cells).for_each(|(column, cell)| column.append_option(cell));
        }
        Ok(columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect())
    }
}

/// The objects that rows carry.
pub(super) fn objects(rows: &Rows) -> &StringArray {
    rows.carried.column(0).as_string()
}

/// Of what was read as JSON before.
pub(super) fn not_json(error: serde_json::Error) -> WriteError {
    ArrowError::from_external_error(error.into()).into()
}

/// Errors if two columns have one name.
fn unique<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), WriteError> {
    let mut seen = BTreeSet::new();
    let mut names = names;
    names.find(|name| !seen.insert(*name)).map_or(Ok(()), |name| Err(WriteError::Column { column: name.clone() }))
}

/// Checks that the rows do not carry two columns of one name, unless new ones replace them in every case, and none of a
/// type that cannot be written.
pub(super) fn check_carried(layout: &Layout) -> Result<(), WriteError> {
    let is_new = |name: &str| matches!(name, "predicted" | "probability") || (layout.label && name == "label");
    unique(layout.carried.fields().iter().map(|field| field.name()).filter(|name| !is_new(name)))?;
    let written = |field: &FieldRef| cells::texts(field, &new_null_array(field.data_type(), 1)).is_ok();
    match layout.carried.fields().iter().find(|field| !written(field)) {
        Some(field) => Err(WriteError::Type { column: field.name().clone(), found: field.data_type().to_string() }),
        None => Ok(()),
    }
}

/// Returns true if a parquet file can hold such a column.
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

/// What is written of such rows.
pub(super) fn plan(spec: &OutputSpec, layout: &Layout, format: Format) -> Result<Plan, WriteError> {
    let joins = spec.kind == LabelKind::Multi && matches!(format, Format::Csv | Format::Tsv);
    if joins && let Some(name) = spec.labels.names().iter().find(|name| name.contains(JOIN)) {
        return Err(WriteError::Name { name: name.clone() });
    }
    let mut fields = Vec::new();
    let list = |of: DataType| DataType::new_list(of, true);
    let (label, predicted, probability) = match spec.kind {
        LabelKind::Class => (DataType::Utf8, DataType::Utf8, Some(DataType::Float32)),
        LabelKind::Value => (DataType::Float64, DataType::Float32, None),
        LabelKind::Multi => (list(DataType::Utf8), list(DataType::Utf8), Some(list(DataType::Float32))),
    };
    fields.extend(layout.label.then(|| Field::new("label", label, true)));
    fields.push(Field::new("predicted", predicted, false));
    fields.extend(probability.map(|kind| Field::new("probability", kind, false)));
    if with_probabilities(spec) {
        let names = spec.labels.names().iter();
        fields.extend(names.map(|name| Field::new(format!("probability_{name}"), DataType::Float32, false)));
    }
    Plan::new(layout, fields, format)
}

fn with_probabilities(spec: &OutputSpec) -> bool {
    spec.probabilities && spec.kind != LabelKind::Value
}

/// Checks that there is one prediction for each row, and in it one number for each class.
pub(super) fn check(spec: &OutputSpec, rows: &Rows, predicted: Predicted<'_>) -> Result<(), WriteError> {
    let names = spec.labels.names().len();
    let numbers = match spec.kind {
        LabelKind::Value => predicted.logits,
        LabelKind::Class | LabelKind::Multi => predicted.probabilities,
    };
    let classes = if spec.kind == LabelKind::Class { predicted.class.len() } else { rows.len() };
    for predictions in [numbers.len(), classes] {
        if predictions != rows.len() {
            return Err(WriteError::Rows { predictions, rows: rows.len(), of: "rows" });
        }
    }
    match numbers.iter().find(|row| row.len() != names) {
        Some(row) => Err(WriteError::Rows { predictions: row.len(), rows: names, of: "classes" }),
        None => Ok(()),
    }
}

/// The new columns of a [`Plan`] for a chunk.
pub(super) fn new_columns(
    spec: &OutputSpec,
    rows: &Rows,
    predicted: Predicted<'_>,
) -> Result<Vec<ArrayRef>, WriteError> {
    let mut columns: Vec<ArrayRef> = Vec::new();
    if let Some(labels) = &rows.labels {
        columns.push(label_column(spec, labels));
    }
    columns.extend(predictions(spec, predicted)?);
    if with_probabilities(spec) {
        for class in 0..spec.labels.names().len() {
            let of_class = predicted.probabilities.iter().map(|row| row[class]);
            columns.push(Arc::new(Float32Array::from_iter_values(of_class)));
        }
    }
    Ok(columns)
}

/// `predicted` and `probability`.
fn predictions(spec: &OutputSpec, predicted: Predicted<'_>) -> Result<Vec<ArrayRef>, WriteError> {
    let names = spec.labels.names();
    Ok(match spec.kind {
        LabelKind::Value => vec![Arc::new(Float32Array::from_iter_values(predicted.logits.iter().map(|row| row[0])))],
        LabelKind::Class => {
            let place = |&class: &i64| usize::try_from(class).ok().filter(|class| *class < names.len());
            let unknown = || WriteError::Rows { predictions: names.len(), rows: names.len(), of: "classes" };
            let classes = predicted.class.iter().map(|class| place(class).ok_or_else(unknown));
            let classes = classes.collect::<Result<Vec<_>, _>>()?;
            let of_class = classes.iter().zip(predicted.probabilities).map(|(&class, row)| row[class]);
            let probabilities = Float32Array::from_iter_values(of_class);
            let chosen = StringArray::from_iter_values(classes.iter().map(|&class| &names[class]));
            vec![Arc::new(chosen), Arc::new(probabilities)]
        }
        LabelKind::Multi => {
            let mut chosen = ListBuilder::new(StringBuilder::new());
            let mut probabilities = ListBuilder::new(PrimitiveBuilder::<Float32Type>::new());
            for row in predicted.probabilities {
                for (name, &probability) in names.iter().zip(row).filter(|(_, p)| **p >= spec.threshold) {
                    chosen.values().append_value(name);
                    probabilities.values().append_value(probability);
                }
                chosen.append(true);
                probabilities.append(true);
            }
            vec![Arc::new(chosen.finish()), Arc::new(probabilities.finish())]
        }
    })
}

/// Labels by name, and as they stand in the file where they are none of the task's.
fn label_column(spec: &OutputSpec, labels: &[Option<RawLabel>]) -> ArrayRef {
    let is_blank = |label: &&RawLabel| matches!(label, RawLabel::Name(name) if name.is_empty());
    let name = |label: &Option<RawLabel>| Some(class_name(spec, label.as_ref().filter(|label| !is_blank(label))?));
    match spec.kind {
        LabelKind::Class => Arc::new(labels.iter().map(name).collect::<StringArray>()),
        LabelKind::Value => {
            let number = |label: &Option<RawLabel>| match label.as_ref()? {
                RawLabel::Bool(truth) => Some(f64::from(u8::from(*truth))),
                RawLabel::Int(number) => Some(*number as f64),
                RawLabel::Float(number) => Some(*number),
                RawLabel::Name(name) => name.trim().parse().ok(),
                RawLabel::Many(_) => None,
            };
            Arc::new(labels.iter().map(number).collect::<Float64Array>())
        }
        LabelKind::Multi => {
            let mut lists = ListBuilder::new(StringBuilder::new());
            for label in labels {
                let names = label.as_ref().map(|label| several(spec, label));
                names.iter().flatten().for_each(|name| lists.values().append_value(name));
                lists.append(names.is_some());
            }
            Arc::new(lists.finish())
        }
    }
}

/// The names of several labels; what is no label as it stands in the file.
fn several(spec: &OutputSpec, label: &RawLabel) -> Vec<String> {
    match spec.labels.names_of(label, spec.threshold) {
        Some(names) => names.into_iter().map(str::to_owned).collect(),
        None => match label {
            RawLabel::Many(items) => items.iter().map(|item| class_name(spec, item)).collect(),
            RawLabel::Name(joined) => parts(joined, &[JOIN]).map(str::to_owned).collect(),
            other => vec![class_name(spec, other)],
        },
    }
}

fn class_name(spec: &OutputSpec, label: &RawLabel) -> String {
    match spec.labels.class_of(label) {
        Some(class) => spec.labels.names()[class].clone(),
        None => label.to_string(),
    }
}
