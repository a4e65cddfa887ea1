//! The parts of Arrow that this workspace compiles, under the names of the arrow crate.
//!
//! The arrow crate needs its kernels for arithmetic, comparisons of rows and text, of which Sepal calls none and which are
//! slow to compile. This crate contains no code. It knows nothing of the other crates; `data` and the tests use it.
//!
//! ```
//! use sepal_arrow::array::{ArrayRef, Int64Array};
//! use sepal_arrow::compute::cast;
//! use sepal_arrow::datatypes::DataType;
//!
//! let numbers: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![1, 2]));
//! assert_eq!(cast(&numbers, &DataType::Float64)?.len(), 2);
//! # Ok::<(), sepal_arrow::error::ArrowError>(())
//! ```

pub use arrow_buffer::buffer;
pub use {arrow_csv as csv, arrow_ipc as ipc, arrow_json as json};

/// Arrays and their builders.
pub mod array {
    pub use arrow_array::builder::*;
    pub use arrow_array::cast::*;
    pub use arrow_array::iterator::*;
    pub use arrow_array::*;
    pub use arrow_data::{ArrayData, ArrayDataBuilder};
}

/// Functions of arrays.
pub mod compute {
    pub use arrow_cast::cast::*;
    pub use arrow_select::concat::*;
    pub use arrow_select::filter::*;
    pub use arrow_select::take::*;
}

/// Types of columns.
pub mod datatypes {
    pub use arrow_array::types::*;
    pub use arrow_array::{ArrowNumericType, ArrowPrimitiveType};
    pub use arrow_buffer::{ArrowNativeType, i256};
    pub use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit, UnionFields, UnionMode};
}

/// Errors of arrays.
pub mod error {
    pub use arrow_schema::ArrowError;
}

/// Text of values.
pub mod util {
    pub use arrow_cast::display;
}
