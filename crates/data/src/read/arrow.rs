use std::fs::File;
use std::io::{BufReader, Read, Seek};

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};

use super::{Failure, project};

/// A file begins with this, a stream does not.
const MAGIC: &[u8; 6] = b"ARROW1";

pub(super) fn read(mut file: File, wanted: &[&str]) -> Result<Vec<RecordBatch>, Failure> {
    let mut start = Vec::new();
    (&mut file).take(MAGIC.len() as u64).read_to_end(&mut start)?;
    file.rewind()?;
    let mut again = file.try_clone()?;
    // The schema is needed to say which columns are wanted, so a reader is made twice.
    if start == MAGIC {
        let indices = indices(&FileReader::try_new(BufReader::new(file), None)?.schema(), wanted)?;
        again.rewind()?;
        collect(FileReader::try_new(BufReader::new(again), Some(indices))?)
    } else {
        let indices = indices(&StreamReader::try_new(BufReader::new(file), None)?.schema(), wanted)?;
        again.rewind()?;
        collect(StreamReader::try_new(BufReader::new(again), Some(indices))?)
    }
}

fn indices(schema: &Schema, wanted: &[&str]) -> Result<Vec<usize>, Failure> {
    let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    project(&columns, wanted)
}

fn collect(batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>) -> Result<Vec<RecordBatch>, Failure> {
    Ok(batches.collect::<Result<_, _>>()?)
}
