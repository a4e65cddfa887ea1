use std::fs::File;

use arrow::datatypes::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{BatchIter, DecodeError, Decoder, Projection, check_uncompressed};

struct Parquet(ParquetRecordBatchReaderBuilder<File>);

pub(super) fn open(file: File) -> Result<Box<dyn Decoder>, DecodeError> {
    check_uncompressed(&file)?;
    Ok(Box::new(Parquet(ParquetRecordBatchReaderBuilder::try_new(file)?)))
}

impl Decoder for Parquet {
    fn schema(&self) -> SchemaRef {
        self.0.schema().clone()
    }

    fn batches(self: Box<Self>, projection: Projection, rows: usize) -> Result<BatchIter, DecodeError> {
        let mask = ProjectionMask::roots(self.0.parquet_schema(), projection.columns);
        let batches = self.0.with_projection(mask).with_batch_size(rows).build()?;
        Ok(Box::new(batches.map(|batch| Ok(batch?))))
    }
}
