use std::fs::File;

use arrow::array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Failure, project};

pub(super) fn read(file: File, wanted: &[&str]) -> Result<Vec<RecordBatch>, Failure> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let columns: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), project(&columns, wanted)?);
    let batches = builder.with_projection(mask).with_batch_size(8192).build()?;
    Ok(batches.collect::<Result<_, _>>()?)
}
