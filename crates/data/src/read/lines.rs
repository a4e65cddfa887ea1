use std::io::{BufReader, Read};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::text::{Lines, Text};
use super::{Decode, Decoded, Failure, Projection};
use crate::dialect::{Dialect, Encoding};

/// One text to a line.
struct Plain {
    lines: Lines<BufReader<Box<dyn Read + Send>>>,
    encoding: Encoding,
    schema: SchemaRef,
}

pub(super) fn open(text: Text) -> Box<dyn Decode> {
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
    Box::new(Plain { lines: Lines::new(BufReader::new(text.reader)), encoding: text.encoding, schema })
}

impl Decode for Plain {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn dialect(&self) -> Dialect {
        Dialect { delimiter: None, encoding: Some(self.encoding).filter(|encoding| *encoding != Encoding::UTF_8) }
    }

    fn batches(mut self: Box<Self>, wanted: Projection, rows: usize) -> Result<Decoded, Failure> {
        Ok(Box::new(std::iter::from_fn(move || self.batch(&wanted.columns, rows).transpose())))
    }
}

impl Plain {
    fn batch(&mut self, indices: &[usize], rows: usize) -> Result<Option<RecordBatch>, Failure> {
        let mut texts = StringBuilder::new();
        let mut n = 0;
        while n < rows {
            let Some(line) = self.lines.next()? else { break };
            texts.append_value(line);
            n += 1;
        }
        let batch = RecordBatch::try_new(self.schema.clone(), vec![Arc::new(texts.finish()) as ArrayRef])?;
        Ok((n > 0).then(|| batch.project(indices)).transpose()?)
    }
}
