use std::io::{BufReader, Read};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::text::{Lines, Text};
use super::text_batch::{next_batch, schema_of};
use super::{BatchIter, DecodeError, Decoder, Projection};
use crate::dialect::{Dialect, Encoding};

struct PlainLines {
    lines: Lines<BufReader<Box<dyn Read + Send>>>,
    encoding: Encoding,
    schema: SchemaRef,
}

pub(super) fn open(text: Text) -> Box<dyn Decoder> {
    let schema = schema_of(["text".to_owned()]);
    Box::new(PlainLines { lines: Lines::new(BufReader::new(text.reader)), encoding: text.encoding, schema })
}

impl Decoder for PlainLines {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn dialect(&self) -> Dialect {
        Dialect { delimiter: None, encoding: self.encoding.unless_utf8() }
    }

    fn batches(mut self: Box<Self>, projection: Projection, rows: usize) -> Result<BatchIter, DecodeError> {
        let mut batch = move || -> Result<Option<RecordBatch>, DecodeError> {
            let batch = next_batch(&self.schema, rows, |columns| {
                let line = self.lines.next()?;
                line.into_iter().for_each(|line| columns[0].append_value(line));
                Ok(line.is_some())
            })?;
            Ok(batch.map(|batch| batch.project(&projection.columns)).transpose()?)
        };
        Ok(Box::new(std::iter::from_fn(move || batch().transpose())))
    }
}
