//! Fuzz targets: a function for each parser of bytes that come from other machines or from files, and mutations of inputs.
//!
//! A target takes any bytes and returns. A panic, an abort, an allocation beyond the limit of the driver or an input that
//! takes long is a finding. The program `sepal-fuzz` runs the targets in processes of their own; the test `corpus` runs all
//! seeds and the inputs of past findings.
//!
//! The crate knows libtorch only by its default feature `peft`, for the tensors of imported adapters. Place in the crate
//! graph: above the crates with parsers; nothing stands on it, and no build of the programs contains it. Seeds are the files
//! `seeds/TARGET/*`, past findings `crashes/TARGET/*`; `make_seeds.py` writes those that are not text. Further seeds are made
//! by the target itself. The folder `fuzz` of the repository runs the targets with libFuzzer.
//!
//! ```
//! let target = sepal_fuzz_targets::target("tokenizer").ok_or("a target")?;
//! (target.run)(b"{}");
//! # Ok::<(), &str>(())
//! ```

#[cfg(feature = "peft")]
mod adapters;
mod checkpoints;
mod messages;
mod mutate;
mod peers;
mod receipts;
mod secrets;
mod tables;
mod texts;
#[cfg(feature = "p2p")]
mod tickets;

use std::io;
use std::path::Path;

pub use mutate::Mutator;

/// Parser with its inputs.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name, also of the folders of its seeds and past findings.
    pub name: &'static str,
    /// Gives bytes to the parser, and uses its result as the programs do.
    pub run: fn(&[u8]),
    /// Words of its language.
    pub dictionary: &'static [&'static str],
    /// Seeds that are made by code.
    made_seeds: fn() -> Vec<Vec<u8>>,
}

const NUMBERS: &[&str] = &["0", "-1", "4294967295", "18446744073709551615", "1e308", "null"];
const JSON: &[&str] = &["[", "]", "{", "}", "null", "true", "\"\":", "-1", "1e999", "\\u0000", "\\ud800", "[[[[[[[["];
const GGUF: &[&str] = &["general.alignment", "llama.block_count", "llama.expert_count", "blk.0.ffn_gate_exps.weight"];
const CONFIG: &[&str] =
    &["num_hidden_layers", "hidden_size", "quantization_config", "\"quant_method\": \"gptq\"", "-1"];
const HEADER: &[&str] = &["\"F32\"", "\"U8\"", "\"shape\"", "\"data_offsets\"", "18446744073709551615", "0", "[0,0]"];
const TOKENIZER: &[&str] =
    &["2147483648", "TemplateProcessing", "Precompiled", "Replace", "ByteLevel", "Sequence", "null"];
const SECRET: &[&str] = &["sepal-secret1", "sepal-secret2", "server", "observer", ":", "4294967296", "-1", "00"];
#[cfg(feature = "peft")]
const PEFT: &[&str] =
    &["\"LORA\"", "\"IA3\"", "\"P_TUNING\"", "\"alpha_pattern\": {\"^q\": 1}", "\"use_rslora\": true", "-1", "1e308"];
const YAML: &[&str] = &["&a ", "*a", "<<: ", "- ", "[*a,*a]", "!!binary ", "---\n", "use: ", "with: ", "{", "|\n"];
const HTTP: &[&str] =
    &["\r\n", "Content-Length: 18446744073709551615\r\n", "Transfer-Encoding: chunked\r\n", "ffffffff\r\n"];
const CELLS: &[&str] = &["\"", ",", "\t", "\r\n", "\0", "\u{feff}", "\u{202e}", "[", "{", "nan", "1e999"];

/// All targets.
pub static TARGETS: &[Target] = &[
    target_of("frames", messages::frames, NUMBERS, messages::frame_seeds),
    target_of("calls", messages::calls, NUMBERS, messages::call_seeds),
    target_of("messages", messages::messages, NUMBERS, messages::message_seeds),
    target_of("announcements", peers::announcements, JSON, Vec::new),
    target_of("secret-files", secrets::secret_files, SECRET, secrets::seeds),
    target_of("evidence", receipts::evidence, JSON, receipts::seeds),
    target_of("http", peers::http, HTTP, Vec::new),
    target_of("gguf", checkpoints::gguf, GGUF, Vec::new),
    target_of("safetensors", checkpoints::safetensors, HEADER, Vec::new),
    target_of("shards", checkpoints::shards, HEADER, Vec::new),
    target_of("model-config", checkpoints::model_config, CONFIG, Vec::new),
    target_of("tokenizer", texts::tokenizer, TOKENIZER, Vec::new),
    target_of("tokenizer-config", texts::tokenizer_config, JSON, Vec::new),
    target_of("pipeline", texts::pipeline, YAML, Vec::new),
    target_of("run-folder", texts::run_folder, JSON, Vec::new),
    target_of("csv", tables::csv, CELLS, Vec::new),
    target_of("json", tables::json, JSON, Vec::new),
    target_of("jsonl", tables::jsonl, JSON, Vec::new),
    target_of("parquet", tables::parquet, NUMBERS, tables::parquet_seeds),
    #[cfg(feature = "p2p")]
    target_of("tickets", tickets::tickets, NUMBERS, tickets::seeds),
    #[cfg(feature = "peft")]
    target_of("peft-config", adapters::config, PEFT, adapters::config_seeds),
    #[cfg(feature = "peft")]
    target_of("peft-weights", adapters::weights, HEADER, adapters::weight_seeds),
];

const fn target_of(
    name: &'static str,
    run: fn(&[u8]),
    dictionary: &'static [&'static str],
    made_seeds: fn() -> Vec<Vec<u8>>,
) -> Target {
    Target { name, run, dictionary, made_seeds }
}

/// Returns the target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Seeds and the inputs of past findings, with a name for each.
    ///
    /// # Errors
    /// The error of a file that cannot be read.
    pub fn corpus(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        let made = (self.made_seeds)().into_iter().enumerate();
        let mut corpus: Vec<(String, Vec<u8>)> = made.map(|(index, seed)| (format!("seed {index}"), seed)).collect();
        for kind in ["seeds", "crashes"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(self.name);
            if !folder.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                corpus.push((path.display().to_string(), std::fs::read(&path)?));
            }
        }
        corpus.sort();
        Ok(corpus)
    }
}

/// Calls `parse` with a folder that has these files.
fn with_files(files: &[(&str, &[u8])], parse: impl FnOnce(&Path)) {
    // A full disk is no finding.
    let Ok(folder) = tempfile::tempdir() else { return };
    if files.iter().all(|(name, bytes)| std::fs::write(folder.path().join(name), bytes).is_ok()) {
        parse(folder.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_name_of_its_own_and_seeds() {
        for (index, target) in TARGETS.iter().enumerate() {
            assert!(TARGETS[..index].iter().all(|other| other.name != target.name), "{}", target.name);
            assert!(!target.corpus().expect("readable").is_empty(), "{} has no seeds", target.name);
        }
    }

    #[test]
    fn every_folder_of_seeds_has_a_target() {
        for kind in ["seeds", "crashes"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind);
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
                assert!(target(&name).is_some() || (name == "tickets" && cfg!(not(feature = "p2p"))), "{name}");
            }
        }
    }
}
