use std::fs::File;

use arrow::datatypes::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Decode, Decoded, Failure, Projection};

struct Parquet(ParquetRecordBatchReaderBuilder<File>);

pub(super) fn open(file: File) -> Result<Box<dyn Decode>, Failure> {
    Ok(Box::new(Parquet(ParquetRecordBatchReaderBuilder::try_new(file)?)))
}

impl Decode for Parquet {
    fn schema(&self) -> SchemaRef {
        self.0.schema().clone()
    }

    fn batches(self: Box<Self>, wanted: Projection, rows: usize) -> Result<Decoded, Failure> {
        let mask = ProjectionMask::roots(self.0.parquet_schema(), wanted.columns);
        let batches = self.0.with_projection(mask).with_batch_size(rows).build()?;
        Ok(Box::new(batches.map(|batch| Ok(batch?))))
    }
}
