use std::fs::File;
use std::io::{BufReader, Read, Seek};

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::{FileReader, StreamReader};

use super::{Decode, Decoded, Failure, Projection};

/// A file begins with this, a stream does not.
const MAGIC: &[u8; 6] = b"ARROW1";

struct Arrow {
    file: File,
    /// Whether it is a file with an index at its end, or a stream.
    indexed: bool,
    schema: SchemaRef,
}

pub(super) fn open(mut file: File) -> Result<Box<dyn Decode>, Failure> {
    let mut start = Vec::new();
    (&mut file).take(MAGIC.len() as u64).read_to_end(&mut start)?;
    file.rewind()?;
    if start.starts_with(b"FEA1") {
        return Err(Failure::Broken(
            "it is a Feather file of version 1, which is no arrow file; write version 2".into(),
        ));
    }
    let indexed = start == MAGIC;
    let first = BufReader::new(file.try_clone()?);
    let schema = match indexed {
        true => FileReader::try_new(first, None)?.schema(),
        false => StreamReader::try_new(first, None)?.schema(),
    };
    Ok(Box::new(Arrow { file, indexed, schema }))
}

impl Decode for Arrow {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The file's own batches, however large.
    fn batches(mut self: Box<Self>, wanted: Projection, _: usize) -> Result<Decoded, Failure> {
        // A reader must know the columns from its beginning.
        self.file.rewind()?;
        let reader = BufReader::new(self.file);
        Ok(match self.indexed {
            true => Box::new(FileReader::try_new(reader, Some(wanted.columns))?.map(|batch| Ok(batch?))),
            false => Box::new(StreamReader::try_new(reader, Some(wanted.columns))?.map(|batch| Ok(batch?))),
        })
    }
}
