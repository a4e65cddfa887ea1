use sepal_core::{Ragged, Want};
use tch::Tensor;

use crate::goldens::Golden;
use crate::model::{Tiny, assert_close, forward, goldens};

/// Every tiny GGUF file gives the hidden states that transformers has of what the file says.
#[test]
fn gguf_files_equal_transformers() {
    let golden = Golden::read("gguf.golden.safetensors");
    let ids = Tensor::from_slice(&golden.integers["ids"]);
    let rows = Ragged::from_lengths([golden.integers["ids"].len()]).expect("rows");
    let files: Vec<&str> = golden.floats.keys().filter_map(|key| key.strip_suffix(".hidden")).collect();
    assert_eq!(files.len(), 17);
    for name in files {
        let model = Tiny::read(&goldens().join(format!("tiny-{name}.gguf")));
        let ends = model.ends();
        let hidden = forward(&model.whole(), &ends.embed(&ids).expect("embedded"), 0, &rows, Want::All);
        let hidden = ends.final_norm(&hidden).expect("normed");
        assert_close(&hidden, &golden.floats[&format!("{name}.hidden")], 1e-5, name);
    }
}
