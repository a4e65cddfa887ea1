use sepal_core::{Ragged, Want};
use tch::Tensor;

use crate::goldens::{EXACT, Golden};
use crate::model::{Tiny, forward, goldens};

/// How far the hidden states of each tiny GGUF file are from what transformers has of what the file says, relative to
/// the largest: names and distances.
pub(crate) fn distances() -> Vec<(String, f64)> {
    let golden = Golden::read("gguf.golden.safetensors");
    let ids = Tensor::from_slice(&golden.integers["ids"]);
    let rows = Ragged::from_lengths([golden.integers["ids"].len()]).expect("rows");
    let distance = |(key, expected): (&String, &Tensor)| {
        let name = key.strip_suffix(".hidden")?;
        let model = Tiny::read(&goldens().join(format!("tiny-{name}.gguf")));
        let ends = model.ends();
        let hidden = forward(&model.whole(), &ends.embed(&ids).expect("embedded"), 0, &rows, Want::All);
        let off = (ends.final_norm(&hidden).expect("normed") - expected).abs().max() / expected.abs().max();
        Some((name.to_owned(), f64::try_from(off).expect("a number")))
    };
    golden.floats.iter().filter_map(distance).collect()
}

#[test]
fn gguf_files_equal_transformers() {
    let distances = distances();
    assert_eq!(distances.len(), 19);
    for (name, off) in distances {
        assert!(off < EXACT, "{name} is off by {off}");
    }
}
