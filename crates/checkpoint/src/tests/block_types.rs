//! GGUF files with tensors of types that are not read.

use sepal_core::Span;

use super::gguf::{llama_metadata, llama_tensors, write};
use super::*;
use crate::{Part, ReadError};

/// Number of the type I32, whose numbers have as many bytes as those of F32.
const I32: u32 = 26;

/// Writes a Llama with the values' tensor stated to be of the type with this number.
fn write_with_type(path: &Path, code: u32) {
    const NAME: &[u8] = b"blk.0.attn_v.weight";
    write(path, &llama_metadata(), &llama_tensors());
    let mut file = std::fs::read(path).expect("the file");
    let name = file.windows(NAME.len()).position(|bytes| bytes == NAME).expect("the tensor");
    // After the name: the number of dimensions, two of them, and the type.
    let at = name + NAME.len() + 4 + 2 * 8;
    assert_eq!(file[at..at + 4], 0_u32.to_le_bytes(), "F32");
    file[at..at + 4].copy_from_slice(&code.to_le_bytes());
    std::fs::write(path, file).expect("written");
}

#[test]
fn tensor_of_an_unread_type_is_refused_only_where_it_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write_with_type(&path, I32);
    let checkpoint = Checkpoint::open(&path).expect("the other tensors can be used");
    assert!(checkpoint.describe().dtypes.contains(&"I32".to_owned()));
    assert!(checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").is_ok());
    assert!(checkpoint.rows("model.embed_tokens.weight", &[1, 3]).is_ok());
    assert!(checkpoint.part_sizes(Part::All).parameters() > 0);
    let values = "model.layers.0.self_attn.v_proj.weight";
    for error in [checkpoint.tensor(values).map(drop), checkpoint.rows(values, &[0]).map(drop)] {
        let error = error.expect_err("the type is not read");
        assert!(matches!(&error, ReadError::BlockType { dtype, .. } if dtype == "I32"), "{error:?}");
        let text = error.to_string();
        for words in [values, "its type I32", "F16, BF16, Q4_0", "Q6_K", "model.gguf"] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
    }
    assert_eq!(checkpoint.dtype(values), None);
    let blocks = |first: usize, end: usize| Part::Blocks(Span::new(first, end).expect("a span"));
    for part in [Part::Ends, Part::Output, blocks(1, 2)] {
        assert!(checkpoint.check_types(part).is_ok(), "{part:?}");
    }
    for part in [Part::All, blocks(0, 1)] {
        let error = checkpoint.check_types(part).expect_err("the type is not read");
        assert!(matches!(&error, ReadError::BlockType { name, .. } if name == values), "{error:?}");
    }
}

#[test]
fn tensor_of_a_type_without_a_known_size_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write_with_type(&path, 99);
    let error = Checkpoint::open(&path).expect_err("its size is not known");
    let text = sepal_core::in_one_line(&error);
    for words in ["`blk.0.attn_v.weight`", "number type 99", "Q8_0", "model.gguf"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
}
