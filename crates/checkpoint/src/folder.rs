//! Opening a folder in the HF layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use sepal_core::ModelConfig;
use serde_json::{Map, Value};

use crate::config::{check_weights, ruled_out_biases};
use crate::error::{OpenError, ReadError};
use crate::experts;
use crate::families::{read_config, spec};
use crate::file::WeightsFile;
use crate::header::{FetchRanges, fetch_headers, parse_header, read_header};
use crate::keys::Keys;
use crate::layout::{CONFIG, INDEX, SINGLE, is_sharded, read_object, shards};
use crate::multimodal::{multimodal_type, text_json, text_name};
use crate::outline::{OUTLINE, Outline};
use crate::quantized::{self, Kind, Quantization};
use crate::rows::Rows;
use crate::store::{Encoding, Store, Stored};

/// A folder in the HF layout: the configuration, the tensors, and the `model_type` of the multimodal model if they are its
/// text model.
pub(crate) struct Folder {
    pub(crate) config: ModelConfig,
    pub(crate) store: Store,
    pub(crate) multimodal: Option<&'static str>,
}

/// Reads the configuration and the headers of all shards; `outline` has the headers of missing shards.
pub(crate) fn open(folder: &Path, outline: &Outline) -> Result<Folder, OpenError> {
    let file = ConfigFile::read(folder)?;
    let store = file.checked(folder, store(folder, outline)?)?;
    file.check_sizes(&store)?;
    Ok(Folder { config: file.config, store, multimodal: file.multimodal })
}

/// Refuses a model before its weights are in `folder`, if [`Checkpoint::open`](crate::Checkpoint::open) would refuse it
/// afterwards: by its configuration and, for weights in one file, by the names and types of its tensors. For weights in
/// shards, [`write_outline`](crate::write_outline) checks the tensors. `fetch` reads the beginning of the file; if it fails,
/// only the configuration is checked.
///
/// # Errors
/// [`OpenError`] if the configuration cannot be read or is not supported, the weights are quantized in an unsupported format,
/// or tensors of quantized layers are missing or have other shapes than the configuration implies.
pub fn screen(folder: impl AsRef<Path>, fetch: &mut FetchRanges<'_>) -> Result<(), OpenError> {
    let (folder, single) = (folder.as_ref(), folder.as_ref().join(SINGLE));
    let file = ConfigFile::read(folder)?;
    if single.is_file() || is_sharded(folder) {
        return Ok(());
    }
    let header = fetch_headers(&[SINGLE.to_owned()], fetch).ok().and_then(|headers| headers.into_iter().next());
    let parsed =
        header.and_then(|header| Some((8 + header.len() as u64, serde_json::from_slice::<Metadata>(&header).ok()?)));
    let Some((start, metadata)) = parsed else { return Ok(()) };
    let absent = WeightsFile::absent(&single, Vec::new(), 0, BTreeMap::new());
    length(&absent, start, &metadata)?;
    let (files, tensors) = (vec![absent], located(&metadata, 0, start));
    let store = Store { files, tensors, experts: BTreeMap::new(), layers: Vec::new() };
    file.checked(&single, store).map(|_| ())
}

/// `config.json`, as JSON of the text model and as its shape.
struct ConfigFile {
    path: PathBuf,
    json: Map<String, Value>,
    config: ModelConfig,
    /// `model_type` of the multimodal model that contains the text model.
    multimodal: Option<&'static str>,
    quantization: Option<Quantization>,
}

impl ConfigFile {
    fn read(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(CONFIG);
        let json = read_object(&path)?;
        let config = read_config(&path, &json)?;
        let of_all = Quantization::read(Keys::new(&path, &json), config.family)?;
        let multimodal = multimodal_type(&json).map(|(name, _)| name);
        let json = text_json(json);
        let quantization = match of_all {
            Some(quantization) => Some(quantization),
            None => Quantization::read(Keys::new(&path, &json), config.family)?,
        };
        Ok(Self { path, json, config, multimodal, quantization })
    }

    /// The store with a single tensor for each quantized layer, and with the layers of single experts, if all its weights are
    /// supported. `path` is the file or folder of the weights.
    fn checked(&self, path: &Path, mut store: Store) -> Result<Store, OpenError> {
        store.check_size(path)?;
        if self.multimodal.is_some() {
            store.tensors = text_tensors(path, store.tensors)?;
        }
        let mut store = match &self.quantization {
            None => store,
            Some(quantization) => {
                let (tensors, layers) = quantized::fold(quantization, &self.config, path, store.tensors)?;
                self.without_added_biases(Store { tensors, layers, ..store })?
            }
        };
        let tensors = store.tensors.iter().filter_map(|(name, stored)| match stored.encoding {
            Encoding::Plain(dtype) => Some((&**name, dtype)),
            Encoding::Gguf(_) | Encoding::Mxfp4 { .. } | Encoding::Quantized { .. } => None,
        });
        let spec = spec(self.config.family);
        check_weights(path, (&self.path, &self.json), spec, tensors)?;
        if spec.has_stacked_experts {
            experts::separate(&mut store, &self.config)?;
        }
        Ok(store)
    }

    /// The store without the biases of zeros that programs for GPTQ add to layers without biases. The numbers of such a bias
    /// that are not there are not compared.
    fn without_added_biases(&self, mut store: Store) -> Result<Store, OpenError> {
        let is_of_gptq = |bias: &str| {
            let weight = bias.strip_suffix("bias").and_then(|layer| store.tensors.get(&format!("{layer}weight")));
            let encoding = weight.map(|weight| weight.encoding);
            matches!(encoding, Some(Encoding::Quantized { kind: Kind::Gptq { .. }, .. }))
        };
        let is_zero = |bias: &str| match store.read(bias, &store.tensors[bias]) {
            Ok(bias) => bias.to_f32().iter().all(|number| *number == 0.0),
            Err(ReadError::MissingShard { .. }) => true,
            Err(_) => false,
        };
        let names = store.tensors.keys().map(String::as_str);
        let ruled_out = ruled_out_biases((&self.path, &self.json), spec(self.config.family), names)?;
        let added = ruled_out.into_iter().map(|(name, _)| name).filter(|name| is_of_gptq(name) && is_zero(name));
        let added: Vec<String> = added.map(str::to_owned).collect();
        for name in added {
            store.tensors.remove(&name);
        }
        Ok(store)
    }

    /// Refuses the default of a size that the file leaves out, if the weights have another size.
    fn check_sizes(&self, store: &Store) -> Result<(), OpenError> {
        let ModelConfig { family, n_blocks, hidden, vocab_size, .. } = self.config;
        let names = &spec(family).tensors;
        let has_block = |block_idx: usize| {
            let name = names.block_prefix(block_idx);
            let bare = name.strip_prefix(names.prefix).unwrap_or(&name);
            store.tensors.keys().any(|tensor| tensor.starts_with(&name) || tensor.starts_with(bare))
        };
        if has_block(0) && (!has_block(n_blocks - 1) || has_block(n_blocks)) {
            self.stated(&["num_hidden_layers", "n_layer"])?;
        }
        let ends = ["embed_tokens.weight", "word_embeddings.weight", "wte.weight", "embed_in.weight"];
        let is_embedding = |name: &&String| ends.iter().any(|end| name.ends_with(end));
        let embedding = store.tensors.keys().find(is_embedding).map(|name| store.tensors[name].shape.as_slice());
        if let Some([rows, width]) = embedding {
            if *width != hidden {
                self.stated(&["hidden_size", "n_embd", "n_embed"])?;
            }
            if *rows != vocab_size {
                self.stated(&["vocab_size"])?;
            }
        }
        Ok(())
    }

    /// Error if a size is not in the file, under any of its names.
    fn stated(&self, names: &[&str]) -> Result<(), OpenError> {
        if names.iter().any(|name| self.json.contains_key(*name)) {
            return Ok(());
        }
        Err(OpenError::MissingKey { path: self.path.clone(), key: names[0].to_owned() })
    }
}

/// The tensors of the text model under its own names.
fn text_tensors(path: &Path, tensors: BTreeMap<String, Stored>) -> Result<BTreeMap<String, Stored>, OpenError> {
    let (mut text, mut names) = (BTreeMap::new(), BTreeMap::<String, String>::new());
    for (name, stored) in tensors {
        let Some(of_text) = text_name(&name) else { continue };
        if let Some(other) = names.insert(of_text.clone(), name.clone()) {
            let problem = format!("its tensors `{other}` and `{name}` are both `{of_text}` of the text model");
            return Err(OpenError::Layout { path: path.to_owned(), problem });
        }
        text.insert(of_text, stored);
    }
    Ok(text)
}

/// The tensors of all shards.
fn store(folder: &Path, outline: &Outline) -> Result<Store, OpenError> {
    let mut store = Store { files: Vec::new(), tensors: BTreeMap::new(), experts: BTreeMap::new(), layers: Vec::new() };
    let single = folder.join(SINGLE);
    if single.is_file() || (!is_sharded(folder) && outline.header(&single).is_some()) {
        store.tensors.extend(shard(&mut store.files, &single, outline)?);
        return Ok(store);
    }
    if !folder.join(INDEX).is_file() {
        return Err(no_weights(folder));
    }
    for (path, names) in shards(folder)? {
        let mut tensors = shard(&mut store.files, &path, outline)?;
        for name in names {
            let stored = tensors.remove(&name);
            let stored = stored.ok_or_else(|| OpenError::NotInShard { path: path.clone(), name: name.clone() })?;
            store.tensors.insert(name, stored);
        }
    }
    Ok(store)
}

fn no_weights(folder: &Path) -> OpenError {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_pickled = |name: &String| {
        name.starts_with("pytorch_model") && [".bin", ".pt", ".pth"].iter().any(|ending| name.ends_with(ending))
    };
    let path = folder.to_owned();
    match names.filter(is_pickled).min() {
        Some(file) => OpenError::Pickled { path, file },
        None => {
            let problem =
                format!("it holds {CONFIG} but neither {SINGLE} nor {INDEX}; other formats of weights are not read");
            OpenError::Layout { path, problem }
        }
    }
}

/// Opens one safetensors file and reads its header.
fn shard(files: &mut Vec<WeightsFile>, path: &Path, outline: &Outline) -> Result<BTreeMap<String, Stored>, OpenError> {
    let (file, metadata, start) = if path.is_file() { present(path)? } else { absent(path, outline)? };
    let tensors = located(&metadata, files.len(), start);
    files.push(file);
    Ok(tensors)
}

/// The tensors of a header. `file` is the index of the file, `start` the offset of its data.
fn located(metadata: &Metadata, file: usize, start: u64) -> BTreeMap<String, Stored> {
    let stored = |info: &TensorInfo| {
        let ((begin, end), encoding) = (info.data_offsets, Encoding::Plain(info.dtype));
        let (offset, len) = (start + begin as u64, (end - begin) as u64);
        Stored { file, encoding, shape: info.shape.clone(), offset, len, rows: Rows::Same }
    };
    metadata.tensors().into_iter().map(|(name, info)| (name, stored(info))).collect()
}

/// Length of a file with this header, whose data begins at `start`.
fn length(file: &WeightsFile, start: u64, metadata: &Metadata) -> Result<u64, OpenError> {
    let length = start.checked_add(metadata.data_len() as u64);
    length.ok_or_else(|| file.header("the tensors have more bytes than a file can have"))
}

/// A file in the folder, its header, and the offset of its data.
fn present(path: &Path) -> Result<(WeightsFile, Metadata, u64), OpenError> {
    let file = WeightsFile::open(path)?;
    let header = read_header(&file)?;
    let metadata = parse_header(&file, &header)?;
    let start = 8 + header.len() as u64;
    let expected = length(&file, start, &metadata)?;
    if expected != file.len() {
        return Err(OpenError::Length { path: path.to_owned(), expected, found: file.len() });
    }
    Ok((file, metadata, start))
}

/// A missing file, its header, and the offset of its data.
fn absent(path: &Path, outline: &Outline) -> Result<(WeightsFile, Metadata, u64), OpenError> {
    let no_outline = || OpenError::NoOutline { path: path.to_owned(), outline: OUTLINE.to_owned() };
    let header = outline.header(path).ok_or_else(no_outline)?;
    let head = [&(header.len() as u64).to_le_bytes(), header].concat();
    let start = head.len() as u64;
    let unknown = WeightsFile::absent(path, Vec::new(), 0, BTreeMap::new());
    let metadata = parse_header(&unknown, header)?;
    let len = length(&unknown, start, &metadata)?;
    Ok((WeightsFile::absent(path, head, len, outline.known(path)), metadata, start))
}
