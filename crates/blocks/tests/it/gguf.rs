use std::path::Path;

use sepal_blocks::BlockStack;
use sepal_checkpoint::Checkpoint;
use sepal_core::{Ragged, Span, Want};
use tch::Tensor;

use crate::goldens::{EXACT, Golden};
use crate::model::{Tiny, forward, goldens};

/// Returns the name of each tiny GGUF file, and the error of its hidden states against transformers, relative to the
/// largest number.
pub(crate) fn relative_errors() -> Vec<(String, f64)> {
    let golden = Golden::read("gguf.golden.safetensors");
    let ids = Tensor::from_slice(&golden.integers["ids"]);
    let rows = Ragged::from_lengths([golden.integers["ids"].len()]).expect("rows");
    let relative_error = |(key, expected): (&String, &Tensor)| {
        let name = key.strip_suffix(".hidden")?;
        let model = Tiny::read(&goldens().join(format!("tiny-{name}.gguf")));
        let ends = model.ends();
        let hidden = forward(&model.full_stack(), &ends.embed(&ids).expect("embedded"), 0, &rows, Want::All);
        let off = (ends.final_norm(&hidden).expect("normed") - expected).abs().max() / expected.abs().max();
        Some((name.to_owned(), f64::try_from(off).expect("a number")))
    };
    golden.floats.iter().filter_map(relative_error).collect()
}

#[test]
fn gguf_files_equal_transformers() {
    let relative_errors = relative_errors();
    assert_eq!(relative_errors.len(), 25);
    for (name, off) in relative_errors {
        assert!(off < EXACT, "{name} is off by {off}");
    }
}

/// A copy of a tiny model in which the values of the last block are of a type that is not read, IQ4_NL.
fn write_with_an_unread_type(path: &Path) {
    const NAME: &[u8] = b"blk.2.attn_v.weight";
    let mut file = std::fs::read(goldens().join("tiny-mistral.gguf")).expect("the model");
    let name = file.windows(NAME.len()).position(|bytes| bytes == NAME).expect("the tensor");
    // After the name: the number of dimensions, two of them, and the type.
    let at = name + NAME.len() + 4 + 2 * 8;
    file[at..at + 4].copy_from_slice(&20_u32.to_le_bytes());
    std::fs::write(path, file).expect("written");
}

#[test]
fn blocks_without_the_tensor_of_an_unread_type_are_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write_with_an_unread_type(&path);
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let load = |start, end| BlockStack::load(&checkpoint, Span::new(start, end).expect("a span"));
    assert!(load(0, 2).is_ok());
    let error = load(2, 3).expect_err("the type is not read");
    let text = sepal_core::in_one_line(&error);
    for words in ["model.layers.2.self_attn.v_proj.weight", "IQ4_NL", "Q8_0"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
}
