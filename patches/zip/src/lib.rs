//! The interface of zip 0.6 on a newer zip, as far as the dependencies of this workspace call it.
//!
//! tch and the build script of torch-sys ask for zip 0.6 with all its features: encryption, bzip2, a second zstd and a
//! library for dates, in 25 packages. Sepal calls none of the functions behind them, and an archive that is read through
//! this crate is read by the same code as wheels are.

pub use newer::{CompressionMethod, ZipArchive, ZipWriter, read, result};

/// Options of written members.
pub mod write {
    pub use newer::write::SimpleFileOptions as FileOptions;
    pub use newer::write::ZipWriter;
}
