//! `quantization_config` of a `config.json`.

use sepal_core::Family;
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::keys::Keys;

/// Key of the configuration.
const KEY: &str = "quantization_config";

/// Key of the configuration, for the names of the keys in it.
const SCOPE: &str = "quantization_config.";

/// Size of blocks of FP8 that a configuration does not state.
const BLOCK: [usize; 2] = [128, 128];

/// Size of groups of GPTQ and AWQ that a configuration does not state.
const GROUP: usize = 128;

/// Largest size of a block or group.
const MAX_GROUP: u64 = 1 << 16;

/// Layout of quantized layers. The layers that are not quantized need no list: they have plain weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Quantization {
    /// `fp8` and `fbgemm_fp8`.
    Fp8 {
        /// Outputs and inputs of a block, if factors are those of blocks.
        block: [usize; 2],
    },
    Gptq(Gptq),
    Awq {
        /// Inputs that share a factor; `None` for all of them.
        group: Option<usize>,
    },
    /// `bitsandbytes` with `load_in_8bit`.
    Int8,
    /// `bitsandbytes` with `load_in_4bit`.
    Nf4,
    /// `compressed-tensors`.
    Compressed {
        block: [usize; 2],
        /// Scheme of `pack-quantized`, if a group of layers has it.
        packed: Option<Packed>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gptq {
    pub(super) bits: usize,
    /// Inputs that share a factor; `None` for all of them.
    pub(super) group: Option<usize>,
    pub(super) is_v2: bool,
    /// True if inputs are quantized in the order of their activations.
    pub(super) is_reordered: bool,
    /// True if all zeros are half of the numbers.
    pub(super) is_symmetric: bool,
    /// True if GPTQModel wrote the file.
    pub(super) is_of_gptqmodel: bool,
}

impl Gptq {
    /// True if zeros are 4, and the file may have them in two forms that cannot be told apart.
    pub(super) fn has_known_zeros(&self) -> bool {
        self.bits == 3 && !self.is_v2 && self.is_symmetric
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Packed {
    pub(super) bits: usize,
    /// Inputs that share a factor; `None` for all of them.
    pub(super) group: Option<usize>,
    pub(super) is_symmetric: bool,
}

impl Quantization {
    /// Reads the configuration of a model of `family`; `None` if layers are not quantized. The experts of GPT-OSS in MXFP4 are
    /// known by their tensors, see [`separate`](crate::experts::separate).
    ///
    /// # Errors
    /// [`OpenError`] if a key has an invalid value, or weights are quantized in another way than those of this enum.
    pub(crate) fn read(keys: Keys<'_>, family: Family) -> Result<Option<Self>, OpenError> {
        let Some(map) = keys.object(KEY)? else { return Ok(None) };
        let config = keys.inside(SCOPE, map);
        let quantization = match method(map) {
            "fp8" | "fbgemm_fp8" => fp8(config),
            "gptq" => gptq(config),
            "awq" => awq(config),
            "bitsandbytes" => bitsandbytes(config),
            "compressed-tensors" => compressed(config, map),
            "mxfp4" if family == Family::GptOss => return Ok(None),
            other => Err(keys.quantized(KEY, other.to_owned())),
        };
        quantization.map(Some)
    }

    /// Name of the method.
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Self::Fp8 { .. } => "fp8",
            Self::Gptq(_) => "gptq",
            Self::Awq { .. } => "awq",
            Self::Int8 | Self::Nf4 => "bitsandbytes",
            Self::Compressed { .. } => "compressed-tensors",
        }
    }
}

/// Name of the quantization method. Old files of bitsandbytes do not state it.
fn method(map: &Map<String, Value>) -> &str {
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    let flag = |key: &str| map.get(key) == Some(&Value::Bool(true));
    match text("quant_method") {
        Some(method) => method,
        None if flag("load_in_4bit") || flag("load_in_8bit") => "bitsandbytes",
        None => text("format").unwrap_or("there"),
    }
}

fn fp8(config: Keys<'_>) -> Result<Quantization, OpenError> {
    one_of(config, "fmt", &["e4m3", "float8_e4m3fn"])?;
    one_of(config, "expert_dtype", &["fp8"])?;
    Ok(Quantization::Fp8 { block: block(config, "weight_block_size")? })
}

fn gptq(config: Keys<'_>) -> Result<Quantization, OpenError> {
    let bits = config.count("bits")?;
    if ![2, 3, 4, 8].contains(&bits) {
        return Err(refused(config, "bits", "2, 3, 4 or 8"));
    }
    let key = if config.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    one_of(config, key, &["gptq", "gptq_v2"])?;
    one_of(config, "pack_dtype", &["int32"])?;
    if config.flag("is_marlin_format")? {
        return Err(refused(config, "is_marlin_format", "false"));
    }
    // Rules that begin with `-:` name layers that are not quantized.
    let mut rules = config.object("dynamic")?.into_iter().flat_map(Map::keys);
    if rules.any(|rule| !rule.starts_with("-:")) {
        return Err(refused(config, "dynamic", "the same bits and groups for all layers"));
    }
    if config.get("adapter").is_some_and(is_set) {
        return Err(refused(config, "adapter", "null"));
    }
    let group = group(config, &["group_size"])?;
    let is_v2 = config.optional_text(key)? == Some("gptq_v2");
    Ok(Quantization::Gptq(Gptq {
        bits,
        group,
        is_v2,
        is_reordered: config.flag("desc_act")?,
        is_symmetric: config.flag("sym")?,
        is_of_gptqmodel: is_of_gptqmodel(config)?,
    }))
}

/// True if `meta.quantizer`, a text or a list of them, names GPTQModel and its version.
fn is_of_gptqmodel(config: Keys<'_>) -> Result<bool, OpenError> {
    let quantizer = config.object("meta")?.and_then(|meta| meta.get("quantizer"));
    let names = quantizer.map_or(&[][..], |names| names.as_array().map_or(std::slice::from_ref(names), Vec::as_slice));
    Ok(names.iter().filter_map(Value::as_str).any(|name| name.starts_with("gptqmodel")))
}

fn awq(config: Keys<'_>) -> Result<Quantization, OpenError> {
    for key in ["bits", "w_bit"] {
        if config.optional_count(key)?.is_some_and(|bits| bits != 4) {
            return Err(refused(config, key, "4"));
        }
    }
    for key in ["version", "format"] {
        if config.optional_text(key)?.is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
            return Err(refused(config, key, "gemm"));
        }
    }
    if config.optional_text("backend")? == Some("llm-awq") {
        return Err(refused(config, "backend", "autoawq"));
    }
    if config.optional_flag("zero_point")? == Some(false) {
        return Err(refused(config, "zero_point", "true"));
    }
    Ok(Quantization::Awq { group: group(config, &["group_size", "q_group_size"])? })
}

fn bitsandbytes(config: Keys<'_>) -> Result<Quantization, OpenError> {
    let is_4bit = config.flag("load_in_4bit")? || config.flag("_load_in_4bit")?;
    let is_8bit = config.flag("load_in_8bit")? || config.flag("_load_in_8bit")?;
    match (is_4bit, is_8bit) {
        (true, false) if config.optional_text("bnb_4bit_quant_type")? != Some("nf4") => {
            Err(refused(config, "bnb_4bit_quant_type", "nf4"))
        }
        (true, false) => {
            one_of(config, "bnb_4bit_quant_storage", &["uint8"])?;
            Ok(Quantization::Nf4)
        }
        (false, true) if config.flag("llm_int8_has_fp16_weight")? => {
            Err(refused(config, "llm_int8_has_fp16_weight", "false"))
        }
        (false, true) => Ok(Quantization::Int8),
        _ => Err(config.wrong("load_in_4bit", "true, or `load_in_8bit` to be true, but not both")),
    }
}

fn compressed(config: Keys<'_>, map: &Map<String, Value>) -> Result<Quantization, OpenError> {
    let is_dense = |sparsity: &Value| sparsity.get("format").is_none_or(|format| format == "dense");
    if config.get("sparsity_config").is_some_and(|sparsity| !is_dense(sparsity)) {
        return Err(refused(config, "sparsity_config", "weights that are not sparse"));
    }
    if config.get("transform_config").is_some_and(is_set) {
        return Err(refused(config, "transform_config", "null"));
    }
    let groups = config.object("config_groups")?.ok_or_else(|| config.missing("config_groups"))?;
    let (mut blocks, mut packed): (Option<[usize; 2]>, Option<Packed>) = (None, None);
    for (name, group) in groups {
        let scope = format!("{SCOPE}config_groups.{name}.weights.");
        let Some(weights) = group.get("weights").and_then(Value::as_object) else { continue };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let format = text(group.get("format")).or_else(|| text(map.get("format"))).unwrap_or_default();
        match scheme(config.inside(&scope, weights), &format)? {
            Scheme::Bytes => {}
            Scheme::Blocks(block) if blocks.is_none_or(|other| other == block) => blocks = Some(block),
            Scheme::Packed(scheme) if packed.as_ref().is_none_or(|other| *other == scheme) => packed = Some(scheme),
            Scheme::Blocks(_) | Scheme::Packed(_) => {
                return Err(refused(config, "config_groups", "the same bits and sizes of groups for all layers"));
            }
        }
    }
    Ok(Quantization::Compressed { block: blocks.unwrap_or(BLOCK), packed })
}

/// Scheme of a group of layers of compressed-tensors.
enum Scheme {
    /// A byte for each weight, with factors of layers or outputs.
    Bytes,
    /// A byte for each weight, with factors of blocks.
    Blocks([usize; 2]),
    Packed(Packed),
}

fn scheme(weights: Keys<'_>, format: &str) -> Result<Scheme, OpenError> {
    let bits = weights.optional_count("num_bits")?.unwrap_or(8);
    let number = weights.optional_text("type")?.unwrap_or("int");
    let is_symmetric = weights.optional_flag("symmetric")?.unwrap_or(true);
    let strategy = weights.optional_text("strategy")?;
    match (format, number, bits) {
        ("float-quantized" | "naive-quantized", "float", 8) if strategy == Some("block") => {
            Ok(Scheme::Blocks(block_structure(weights)?))
        }
        ("float-quantized" | "int-quantized" | "naive-quantized", "float" | "int", 8) => {
            one_of(weights, "strategy", &["tensor", "channel"])?;
            if is_symmetric { Ok(Scheme::Bytes) } else { Err(refused(weights, "symmetric", "true")) }
        }
        ("pack-quantized", "int", 4 | 8) => {
            one_of(weights, "strategy", &["tensor", "channel", "group"])?;
            let group = if strategy == Some("group") { group(weights, &["group_size"])? } else { None };
            Ok(Scheme::Packed(Packed { bits, group, is_symmetric }))
        }
        ("pack-quantized", "int", _) => Err(refused(weights, "num_bits", "4 or 8")),
        _ => Err(refused(
            weights,
            "num_bits",
            "8 in the formats float-quantized, int-quantized and naive-quantized, or 4 and 8 of the type int in \
             pack-quantized",
        )),
    }
}

/// Size of blocks: `[128, 128]` or `"128x128"`.
fn block_structure(weights: Keys<'_>) -> Result<[usize; 2], OpenError> {
    const KEY: &str = "block_structure";
    let Some(text) = weights.get(KEY).and_then(Value::as_str) else { return block(weights, KEY) };
    let sizes: Option<Vec<usize>> = text.split('x').map(|size| size.trim().parse().ok()).collect();
    match sizes.as_deref() {
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(weights.wrong(KEY, "two sizes, for example [128, 128]")),
    }
}

fn block(config: Keys<'_>, key: &str) -> Result<[usize; 2], OpenError> {
    let Some(value) = config.get(key) else { return Ok(BLOCK) };
    let size = |value: &Value| {
        let size = value.as_u64().filter(|size| (1..=MAX_GROUP).contains(size));
        size.and_then(|size| usize::try_from(size).ok())
    };
    let sizes: Option<Vec<usize>> = value.as_array().and_then(|sizes| sizes.iter().map(size).collect());
    match sizes.as_deref() {
        Some(&[rows, columns]) => Ok([rows, columns]),
        _ => Err(config.wrong(key, "two sizes, for example [128, 128]")),
    }
}

/// Size of groups under the first of `keys` that is present; `None` for whole rows.
fn group(config: Keys<'_>, keys: &[&str]) -> Result<Option<usize>, OpenError> {
    let Some(key) = keys.iter().find(|key| config.get(key).is_some()) else { return Ok(Some(GROUP)) };
    match config.get(key).and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size) if size % 2 == 0 && size > 0 && size.unsigned_abs() <= MAX_GROUP => Ok(usize::try_from(size).ok()),
        _ => Err(config.wrong(key, "an even number from 2 to 65536, or -1 for whole rows")),
    }
}

/// Refuses a text under `key` that is none of `values`.
fn one_of(config: Keys<'_>, key: &str, values: &[&str]) -> Result<(), OpenError> {
    match config.optional_text(key)? {
        Some(text) if !values.contains(&text) => Err(refused(config, key, &values.join(" or "))),
        _ => Ok(()),
    }
}

/// True if a value holds more than nulls and empty objects.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Object(map) => map.values().any(is_set),
        _ => true,
    }
}

fn refused(config: Keys<'_>, key: &str, supported: &str) -> OpenError {
    let alternative = "otherwise use the original checkpoint in f32, f16 or bf16, or a GGUF file of the model";
    config.unsupported(key, format!("{supported}; {alternative}"))
}
