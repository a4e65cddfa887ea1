//! Integration tests of reading, converting and writing tables.

mod damage;
mod formats;
mod inputs;
mod passthrough;
mod predictions;
mod read_back;
mod rows;
mod support;
mod survey;
mod templates;
