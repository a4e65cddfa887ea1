use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{Schema, UInt32Type, UInt64Type};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use sepal_core::{Ragged, RowForm, catch_panic};
use sepal_machine::durable::{self, PendingFile};
use sha2::{Digest, Sha256};

use crate::{Encode, Table, TokenSpec, TokenTable};

/// Version of the file format, part of every key.
const VERSION: &str = "sepal tokens 2";

/// Cached file of one token table, in arrow IPC.
#[derive(Debug)]
pub(crate) struct TokenCache {
    path: PathBuf,
}

impl TokenCache {
    pub(crate) fn new(folder: &Path, table: &Table, encoder: &dyn Encode, spec: &TokenSpec) -> Self {
        let mut hash = Sha256::new();
        let max_length = spec.truncation.max_length.to_string();
        let side = spec.truncation.side.name();
        // A missing template and an empty one differ.
        let template = spec.template.as_ref().map_or_else(String::new, |template| format!("={template}"));
        let form = (spec.form == RowForm::Options).then_some("options");
        for part in [VERSION, encoder.digest(), table.digest(), &max_length, side, &template].into_iter().chain(form) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { path: folder.join(format!("{}.arrow", hex::encode(hash.finalize()))) }
    }

    pub(crate) fn load(&self) -> Option<TokenTable> {
        if !self.path.exists() {
            return None;
        }
        // A damaged file can make the decoder panic.
        let found = catch_panic(|| read(&self.path)).ok().and_then(Result::ok);
        if found.is_none() {
            tracing::warn!(path = %self.path.display(), "damaged cached tokens are replaced");
        }
        found
    }

    /// Writes the file completely or not at all.
    pub(crate) fn store(&self, tokens: &TokenTable) -> Result<(), Box<dyn Error>> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        durable::create_folders(folder)?;
        let file = PendingFile::create(&self.path)?;
        write(BufWriter::new(file.as_file()), tokens)?;
        Ok(file.publish()?)
    }
}

/// Writes a row per token: its id, true if it begins a sequence, and the number of tokens that truncation removed from that
/// sequence.
fn write(writer: BufWriter<&File>, tokens: &TokenTable) -> Result<(), Box<dyn Error>> {
    let mut begins = vec![false; tokens.ids().len()];
    let mut truncated = vec![0; tokens.ids().len()];
    for (row, &n_truncated) in tokens.truncated().iter().enumerate() {
        let start = tokens.sequences().range(row).start;
        begins[start] = true;
        truncated[start] = n_truncated as u64;
    }
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(UInt32Array::from(tokens.ids().to_vec()))),
        ("begins", Arc::new(BooleanArray::from(begins))),
        ("truncated", Arc::new(UInt64Array::from(truncated))),
    ];
    let batch = RecordBatch::try_from_iter(columns)?;
    let metadata = HashMap::from([("sha256".to_owned(), digest(tokens))]);
    let schema: Schema = batch.schema().as_ref().clone().with_metadata(metadata);
    let batch = batch.with_schema(Arc::new(schema))?;
    let mut writer = FileWriter::try_new(writer, &batch.schema())?;
    writer.write(&batch)?;
    writer.finish()?;
    writer.into_inner()?.into_inner().map_err(|error| error.into_error())?;
    Ok(())
}

fn read(path: &Path) -> Result<TokenTable, Box<dyn Error>> {
    let mut reader = FileReader::try_new_buffered(File::open(path)?, None)?;
    let recorded = reader.schema().metadata().get("sha256").cloned().ok_or("no digest")?;
    let batch = reader.next().ok_or("no batch")??;
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("no column {name}"));
    let ids = column("id")?.as_primitive_opt::<UInt32Type>().ok_or("no ids")?.values().to_vec();
    let begins = column("begins")?.as_boolean_opt().ok_or("no rows")?;
    let truncated = column("truncated")?.as_primitive_opt::<UInt64Type>().ok_or("no truncated rows")?;
    let starts: Vec<usize> = (0..ids.len()).filter(|&i| begins.value(i)).collect();
    let truncated = starts.iter().map(|&start| truncated.value(start) as usize).collect();
    let ends = starts.iter().skip(1).copied().chain([ids.len()]);
    let rows = Ragged::from_lengths(starts.iter().zip(ends).map(|(start, end)| end - start))?;
    let tokens = TokenTable::new(ids, rows, truncated).ok_or("rows and ids differ")?;
    if digest(&tokens) == recorded { Ok(tokens) } else { Err("the digest differs".into()) }
}

fn digest(tokens: &TokenTable) -> String {
    let mut hash = Sha256::new();
    let numbers = [tokens.ids(), tokens.sequences().offsets()];
    numbers.into_iter().flatten().for_each(|number| hash.update(number.to_le_bytes()));
    tokens.truncated().iter().for_each(|number| hash.update(number.to_le_bytes()));
    hex::encode(hash.finalize())
}
