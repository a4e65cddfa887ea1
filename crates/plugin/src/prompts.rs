use std::path::{Path, PathBuf};

use sepal_core::in_one_line;
use sepal_nn::init::{normal, rng, sample_rows};
use sepal_nn::{file, from_host};
use sepal_options::{PROMPTS, PromptInit, soft_prompts};
use tch::{Device, Kind, Tensor};

use crate::{BuildError, TuningContext};

const ADAPTER: &str = "adapter.safetensors";

/// Returns the file of an adapter, given the file or its folder.
pub fn adapter_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(ADAPTER) } else { path.to_owned() }
}

/// Returns the initial prompts `[pre_seq_len, hidden]`. Random numbers come from the stream [`PROMPTS`].
///
/// Texts and names are tokenized without special tokens, because every row has its own after the prompts.
///
/// # Errors
/// [`BuildError`] if the vocabulary has too few words, a text has no tokens, there are more classes than prompts, or
/// the adapter does not fit.
pub fn initial_prompts(init: &PromptInit, pre_seq_len: usize, cx: &TuningContext<'_>) -> Result<Tensor, BuildError> {
    let shape = soft_prompts(pre_seq_len, cx.hidden).signed_shape();
    let mut rng = rng(cx.seed, PROMPTS);
    let tokens = init.tokens(pre_seq_len, cx.labels, cx.tokenize)?;
    match init {
        PromptInit::Vocabulary => Ok(sample_rows(cx.embeddings, pre_seq_len, &mut rng)?),
        PromptInit::Normal => Ok(normal(&shape, cx.initializer_range, &mut rng)?),
        PromptInit::ClassNames => {
            let names = means(&tokens, cx)?; // [n_labels, hidden]
            let rest = sample_rows(cx.embeddings, pre_seq_len - cx.labels.len(), &mut rng)?;
            Ok(Tensor::f_cat(&[names, rest], 0)?) // [pre_seq_len, hidden]
        }
        PromptInit::Text(_) => {
            let ids: Vec<i64> = tokens.concat().into_iter().cycle().take(pre_seq_len).collect();
            Ok(cx.embeddings.rows(&ids)?)
        }
        PromptInit::Adapter(path) => saved_tensor("init", path, PROMPTS, &shape, cx),
    }
}

/// Reads the tensor `name` of this shape from a saved adapter, given as its file or folder; errors name the option
/// `key`. Returns zeros without reading the file if saved values replace all parameters afterwards.
///
/// # Errors
/// [`BuildError::Option`] if the file cannot be read, or has no such tensor of this shape.
pub fn saved_tensor(
    key: &'static str,
    path: &Path,
    name: &str,
    shape: &[i64],
    cx: &TuningContext<'_>,
) -> Result<Tensor, BuildError> {
    if cx.is_restored {
        return Ok(Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?);
    }
    let refused = |message: String| BuildError::Option { key, message };
    let path = &adapter_file(path);
    let contents = file::read(path).map_err(|error| refused(in_one_line(&error)))?;
    let Some(named) = contents.tensors.iter().find(|named| named.name == name) else {
        let found: Vec<&str> = contents.tensors.iter().map(|named| named.name.as_str()).collect();
        return Err(refused(format!("{} has no `{name}`, only {}", path.display(), found.join(", "))));
    };
    let tensor = from_host(&named.tensor).map_err(|error| refused(in_one_line(&error)))?;
    if tensor.size() != shape {
        let found = tensor.size();
        return Err(refused(format!("expected `{name}` of shape {shape:?}, found {found:?} in {}", path.display())));
    }
    Ok(tensor)
}

/// Mean embedding of the tokens of each text: `[texts, hidden]`.
fn means(texts: &[Vec<i64>], cx: &TuningContext<'_>) -> Result<Tensor, BuildError> {
    let mean = |ids: &Vec<i64>| Ok(cx.embeddings.rows(ids)?.f_mean_dim([0_i64].as_slice(), false, Kind::Float)?);
    let means: Vec<Tensor> = texts.iter().map(mean).collect::<Result<_, BuildError>>()?;
    Ok(Tensor::f_stack(&means, 0)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sepal_nn::Parameters;
    use serde_json::json;

    use super::*;

    /// Uses a model whose embedding of id `i` is `[i, i, i]`; ids are the text's bytes.
    fn in_context<T>(labels: &[&str], is_restored: bool, build: impl FnOnce(&TuningContext<'_>) -> T) -> T {
        let embeddings = Tensor::arange(256, (Kind::Float, Device::Cpu)).view([256, 1]).expand([256, 3], false);
        let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
        build(&TuningContext {
            params: &mut Parameters::new(),
            n_blocks: 2,
            hidden: 3,
            kv_size: 2,
            sites: &[],
            initializer_range: 0.5,
            embeddings: &embeddings,
            tokenize: &|text| {
                if text == "?" { Err("no token".into()) } else { Ok(text.bytes().map(i64::from).collect()) }
            },
            labels: &labels,
            is_restored,
            seed: 42,
        })
    }

    fn starts(init: serde_json::Value, pre_seq_len: usize, labels: &[&str]) -> Result<Vec<f32>, BuildError> {
        let init: PromptInit = serde_json::from_value(init).expect("an option");
        let prompts = in_context(labels, false, |cx| initial_prompts(&init, pre_seq_len, cx))?;
        assert_eq!(prompts.size(), [pre_seq_len as i64, 3]);
        Ok(Vec::try_from(prompts.select(1, 2)).expect("numbers"))
    }

    fn refusal(init: serde_json::Value, pre_seq_len: usize, labels: &[&str]) -> String {
        starts(init, pre_seq_len, labels).expect_err("it does not fit").to_string()
    }

    #[test]
    fn text_init_repeats_or_truncates_tokens() {
        let text = || json!({ "text": "abc" });
        assert_eq!(starts(text(), 7, &[]).expect("prompts"), [97.0, 98.0, 99.0, 97.0, 98.0, 99.0, 97.0]);
        assert_eq!(starts(text(), 2, &[]).expect("prompts"), [97.0, 98.0]);
        assert_eq!(refusal(json!({ "text": "?" }), 2, &[]), "use option `init`: no token");
        assert_eq!(refusal(json!({ "text": "" }), 2, &[]), "use option `init`: expected a text with tokens, found ``");
    }

    #[test]
    fn class_names_come_first_and_words_fill_up() {
        let found = starts(json!("class-names"), 5, &["ac", "z"]).expect("prompts");
        assert_eq!(found[..2], [98.0, 122.0], "each is the mean of its tokens");
        assert!(found[2..].iter().all(|&word| word.fract() == 0.0 && word < 256.0), "{found:?}");
        assert_eq!(starts(json!("class-names"), 2, &["a", "z"]).expect("prompts"), [97.0, 122.0]);
        let expected = "use option `init`: expected class names for at most 2 prompts (`pre_seq_len`), found 3";
        assert_eq!(refusal(json!("class-names"), 2, &["a", "b", "c"]), expected);
    }

    #[test]
    fn words_and_normal_numbers_are_of_the_seed() {
        let words = starts(json!("vocabulary"), 9, &[]).expect("prompts");
        assert_eq!(words, starts(json!("vocabulary"), 9, &[]).expect("prompts"));
        assert!(words.iter().all(|word| word.fract() == 0.0));
        let largest = starts(json!("normal"), 9, &[]).expect("prompts").into_iter().map(f32::abs).fold(0.0, f32::max);
        assert!(largest > 0.05 && largest < 3.0, "{largest} does not fit N(0, 0.5²)");
    }

    #[test]
    fn adapter_init_requires_matching_shapes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("adapter.safetensors");
        let mut params = Parameters::new();
        let saved = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]) / 7.0;
        drop(params.add(PROMPTS, &saved).expect("new"));
        params.save(&path, &BTreeMap::new()).expect("saved");
        let adapter = json!({ "adapter": path });
        assert_eq!(starts(adapter.clone(), 2, &[]).expect("prompts"), [2.0 / 7.0, 5.0 / 7.0]);
        let shown = path.display();
        let expected = format!("use option `init`: expected `prompts` of shape [4, 3], found [2, 3] in {shown}");
        assert_eq!(refusal(adapter, 4, &[]), expected);
        let deep = |cx: &TuningContext<'_>| saved_tensor("deep_init", &path, "deep_prompts", &[1, 2, 3], cx);
        let other = in_context(&[], false, deep).expect_err("there are none");
        let expected = format!("use option `deep_init`: {shown} has no `deep_prompts`, only prompts");
        assert_eq!(other.to_string(), expected);
        let missing = json!({ "adapter": folder.path().join("none") });
        let text = refusal(missing, 2, &[]);
        assert!(text.starts_with("use option `init`: read ") && text.contains("No such file"), "{text}");
        let restored =
            in_context(&[], true, |cx| initial_prompts(&PromptInit::Adapter("none".into()), 2, cx)).expect("prompts");
        assert_eq!(restored, Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)), "the file is not asked for");
    }

    #[test]
    fn other_forms_are_refused() {
        for wrong in [json!("words"), json!({ "text": "a", "adapter": "b" }), json!({ "texts": "a" }), json!("text")] {
            assert!(serde_json::from_value::<PromptInit>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
