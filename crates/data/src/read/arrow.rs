use std::fs::File;
use std::io::{BufReader, Read, Seek};

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::{FileReader, StreamReader};

use super::{BatchIter, DecodeError, Decoder, Projection, check_uncompressed};

/// First bytes of a file; a stream begins with others.
const MAGIC: &[u8; 6] = b"ARROW1";

struct Arrow {
    file: File,
    /// True for a file with an index at its end, false for a stream.
    is_indexed: bool,
    schema: SchemaRef,
}

pub(super) fn open(mut file: File) -> Result<Box<dyn Decoder>, DecodeError> {
    check_uncompressed(&file)?;
    let mut start = Vec::new();
    (&mut file).take(MAGIC.len() as u64).read_to_end(&mut start)?;
    file.rewind()?;
    if start.starts_with(b"FEA1") {
        return Err(DecodeError::Broken(
            "it is a Feather file of version 1, which is not an arrow file; write version 2".into(),
        ));
    }
    let is_indexed = start == MAGIC;
    let first = BufReader::new(file.try_clone()?);
    let schema = match is_indexed {
        true => FileReader::try_new(first, None)?.schema(),
        false => StreamReader::try_new(first, None)?.schema(),
    };
    Ok(Box::new(Arrow { file, is_indexed, schema }))
}

impl Decoder for Arrow {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn batches(mut self: Box<Self>, projection: Projection, _: usize) -> Result<BatchIter, DecodeError> {
        // The projection is an argument of the reader's constructor, so that the header is read again.
        self.file.rewind()?;
        let reader = BufReader::new(self.file);
        Ok(match self.is_indexed {
            true => Box::new(FileReader::try_new(reader, Some(projection.columns))?.map(|batch| Ok(batch?))),
            false => Box::new(StreamReader::try_new(reader, Some(projection.columns))?.map(|batch| Ok(batch?))),
        })
    }
}
