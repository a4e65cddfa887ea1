//! Text to token ids, by a `tokenizer.json` and the files beside it, or by the vocabulary inside a GGUF file.
//!
//! This crate wraps `tokenizers`: it normalises, splits, encodes, truncates and adds the special
//! tokens that the model's post-processor asks for. It does not pad, does not apply chat templates,
//! fetches nothing, and does not know libtorch.
//!
//! Invariants: an [`Encoding`] has at most `max_length` tokens; its offsets are bytes of the text that was
//! given (for a pair each half counts in its own text), and `(0, 0)` where the post-processor added a
//! token. Truncation removes tokens of texts, never a special token of the
//! post-processor or the fixed words of an [`Input`]. Equal definitions have equal
//! [digests](Tokenizer::digest) in every process, and equal texts equal ids: sampling is off.
//!
//! ```
//! use sepal_tokenize::{GgufVocab, Tokenizer};
//!
//! let tokens = ["<s>", "h", "i", "Ġ", "hi", "Ġhi"];
//! let tokenizer = Tokenizer::from_gguf_vocab(&GgufVocab {
//!     model: "gpt2".into(),
//!     pre: Some("gpt-2".into()),
//!     tokens: tokens.map(String::from).to_vec(),
//!     merges: vec!["h i".into(), "Ġ hi".into()],
//!     token_types: vec![3, 1, 1, 1, 1, 1],
//!     add_bos: Some(true),
//!     bos_id: Some(0),
//!     ..GgufVocab::default()
//! })?;
//!
//! let encoding = tokenizer.encode("hi hi hi", None, 3)?;
//! assert_eq!(encoding.ids, [0, 4, 5]);
//! assert_eq!(encoding.offsets, [(0, 0), (0, 2), (2, 5)]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod gguf;
mod input;
mod side_files;
mod tokenizer;
mod truncate;

pub use error::{BatchError, EncodeError, LoadError};
pub use gguf::{GgufVocab, VocabError};
pub use input::{Input, Piece};
pub use side_files::SIDE_FILES;
pub use tokenizer::{Encoding, Tokenizer};
pub use truncate::{Truncation, TruncationSide};
