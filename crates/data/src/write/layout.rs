use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Float64Array, ListBuilder, PrimitiveBuilder, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Float32Type, Schema, SchemaRef};

use super::{JOIN, OutputSpec, WriteError};
use crate::{Format, LabelKind, Layout, Predicted, RawLabel, Rows};

/// The columns of what is written: those of the input that are kept, and the new ones behind them.
pub(super) struct Plan {
    pub(super) schema: SchemaRef,
    /// The places of those that are kept among those that the rows carry.
    pub(super) kept: Vec<usize>,
    /// Columns of the input in whose place stand new ones of the same name.
    pub(super) replaced: Vec<String>,
}

impl Plan {
    fn new(layout: &Layout, new: Vec<Field>) -> Result<Self, WriteError> {
        let carried = layout.carried.fields();
        let is_new = |name: &String| new.iter().any(|field| field.name() == name);
        let (replaced, kept): (Vec<usize>, Vec<usize>) =
            (0..carried.len()).partition(|&index| is_new(carried[index].name()));
        let mut seen = BTreeSet::new();
        if let Some(&twice) = kept.iter().find(|&&index| !seen.insert(carried[index].name())) {
            return Err(WriteError::Column { column: carried[twice].name().clone() });
        }
        let fields = kept.iter().map(|&index| carried[index].as_ref().clone()).chain(new);
        Ok(Self {
            schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            replaced: replaced.into_iter().map(|index| carried[index].name().clone()).collect(),
            kept,
        })
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
    Plan::new(layout, fields)
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

/// The columns of a [`Plan`] for a chunk.
pub(super) fn columns(
    spec: &OutputSpec,
    kept: &[usize],
    rows: &Rows,
    predicted: Predicted<'_>,
) -> Result<Vec<ArrayRef>, WriteError> {
    let mut columns: Vec<ArrayRef> = kept.iter().map(|&index| rows.carried.column(index).clone()).collect();
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
    let name = |label: &RawLabel| match spec.labels.class_of(label) {
        Some(class) => spec.labels.names()[class].clone(),
        None => label.to_string(),
    };
    match spec.kind {
        LabelKind::Class => Arc::new(labels.iter().map(|label| label.as_ref().map(name)).collect::<StringArray>()),
        LabelKind::Value => {
            let number = |label: &Option<RawLabel>| match label.as_ref()? {
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

/// The names of several labels: of a list, a multi-hot vector, or what is joined as in a csv file.
fn several(spec: &OutputSpec, label: &RawLabel) -> Vec<String> {
    let names = spec.labels.names();
    let name = |label: &RawLabel| spec.labels.class_of(label).map_or_else(|| label.to_string(), |i| names[i].clone());
    match label {
        RawLabel::Many(items)
            if items.len() == names.len() && items.iter().all(|i| matches!(i, RawLabel::Float(_))) =>
        {
            let hot = |item: &RawLabel| matches!(item, RawLabel::Float(p) if *p >= f64::from(spec.threshold));
            names.iter().zip(items).filter(|(_, item)| hot(item)).map(|(name, _)| name.clone()).collect()
        }
        RawLabel::Many(items) => items.iter().map(name).collect(),
        RawLabel::Name(joined) => {
            let parts = joined.split(JOIN).map(str::trim).filter(|part| !part.is_empty());
            parts.map(|part| name(&RawLabel::Name(part.to_owned()))).collect()
        }
        other => vec![name(other)],
    }
}
