//! Text to token ids, by a `tokenizer.json` and the files beside it, or by the vocabulary of a GGUF file.
//!
//! **Limits.** This crate does not pad, applies no chat templates, downloads nothing, and does not know libtorch. It wraps
//! the crate `tokenizers`: normalization, pre-tokenization, encoding and special tokens are those of the definition;
//! truncation is its own.
//!
//! **Invariants.** An [`Encoding`] has at most `max_length` tokens. Its offsets are bytes of the input text (of each half of
//! a pair), and `(0, 0)` for tokens that the post-processor adds. Truncation removes tokens of texts, but neither special
//! tokens of the post-processor nor the fixed words of an [`Input`]. Equal definitions have equal
//! [digests](Tokenizer::digest) in every process, and equal texts have equal ids, as sampling is off.
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

mod charsmap;
mod check;
mod error;
mod gguf;
mod input;
mod side_files;
mod tokenizer;
mod truncate;
mod windows;

pub use error::{BatchError, EncodeError, LoadError};
pub use gguf::{GgufVocab, VocabError};
pub use input::{Input, Piece};
pub use side_files::SIDE_FILES;
pub use tokenizer::{Encoding, Tokenizer};
pub use truncate::{Truncation, TruncationSide, Windows};
