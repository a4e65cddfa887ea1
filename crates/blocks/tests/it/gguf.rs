use sepal_core::{Ragged, Want};
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
