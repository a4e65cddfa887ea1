/// Error of an adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum AdapterError {
    /// The file cannot be read.
    #[error("read the adapter")]
    Read(#[from] sepal_nn::file::ReadError),
    /// The run has another task than to classify texts.
    #[error(
        "use the adapter: `{task}` predicts {kind}, and folders of PEFT and transformers' classes for sequence \
         classification have one prediction for each text"
    )]
    Task { task: String, kind: String },
    /// A required tensor is missing.
    #[error("use the adapter: it has no `{name}`")]
    Missing { name: String },
    /// No tuning mode left a tensor.
    #[error("use the adapter: it holds a head and no tensor of a tuning mode")]
    Empty,
    /// The head has a bias.
    #[error(
        "use the adapter: its head has a bias (`{name}`), which PEFT drops without a warning; train a head without one"
    )]
    Bias { name: String },
    /// The file contains an unknown tensor.
    #[error(
        "use the adapter: it holds `{name}`; the supported tensors are `prompts`, `deep_prompts`, `prefix_keys_values`, \
         `lora_A:LAYER`, `lora_B:LAYER`, `scale_output:LAYER`, `scale_input:LAYER`, `p_tuning.*` and a linear head \
         `score.weight`"
    )]
    Unknown { name: String },
    /// A shape does not match the other tensors or the model.
    #[error("use the adapter: `{name}` is {found:?}, expected {expected}")]
    Shape { name: String, expected: String, found: Vec<usize> },
    /// The model's blocks do not take a tensor.
    #[error("use the adapter")]
    Tunable(#[from] sepal_blocks::TunableError),
    /// Several tuning modes were combined.
    #[error(
        "use the adapter: it combines {}, and a folder of PEFT holds one method; train with one of them",
        modes.join(" and ")
    )]
    Combined {
        /// Names of the tuning modes.
        modes: Vec<&'static str>,
    },
    /// Low-rank factors of several modes.
    #[error(
        "use the adapter: its low-rank factors differ in rank or in the number of blocks, as those of two modes do; train \
         with one of them"
    )]
    MixedFactors,
    /// The number of names differs from the number of logits.
    #[error("use the adapter: it names {names} labels for {logits} logits")]
    Labels { names: usize, logits: usize },
    /// A tensor is non-finite.
    #[error("use the adapter: `{name}` holds numbers that are not finite")]
    NotFinite { name: String },
}
