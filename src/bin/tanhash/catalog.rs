//! The program's own kind of index: which fields it has, and which encoder made its codes.
//!
//! The library leaves the schema to the application; this application's schema is a key, a label, text,
//! any further fields as JSON, and one hash field. Beside tantivy's files lie `tanhash.json`, which names
//! the encoder, and a copy of the model, so that a directory can be shipped as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tanhash::CodeLen;
use tanhash::encode::{Encoder, PerceptualHash, SignLsh};
use tanhash::plugin::{HashFieldOptions, HashIndex, HashPlugin, SchemaBuilderExt};
use tantivy::query::{Query, QueryParser};
use tantivy::schema::{
    FAST, Field, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions, Value,
};
use tantivy::{DocAddress, Searcher, TantivyDocument};

const MANIFEST: &str = "tanhash.json";
const MODEL_FILE: &str = "model.safetensors";

/// Where the codes of an index come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "encoder", rename_all = "kebab-case", deny_unknown_fields)]
pub enum EncoderSpec {
    /// From a file of ready codes; nothing can be encoded later.
    None { bits: usize },
    /// From a trained model, kept beside the index.
    Model { file: PathBuf, model_id: String },
    /// From a perceptual hash of the picture.
    Phash { bits: usize },
    /// From float vectors by random hyperplanes.
    Lsh { bits: usize, dim: usize, seed: u64 },
}

impl EncoderSpec {
    /// The encoder, or `None` for ready codes. `dir` is the index that a model file lies in.
    pub fn open(&self, dir: &Path) -> Result<Option<Arc<dyn Encoder>>> {
        Ok(match self {
            EncoderSpec::None { .. } => None,
            EncoderSpec::Model { file, model_id } => {
                let encoder = open_model(&dir.join(file))?;
                if encoder.model_id() != model_id {
                    let found = encoder.model_id();
                    bail!("{}: expected model {model_id}, found {found}", dir.join(file).display());
                }
                Some(encoder)
            }
            EncoderSpec::Phash { bits } => Some(Arc::new(PerceptualHash::new(CodeLen::new(*bits)?)?)),
            EncoderSpec::Lsh { bits, dim, seed } => {
                Some(Arc::new(SignLsh::new(CodeLen::new(*bits)?, *dim, *seed)?))
            }
        })
    }
}

/// Opens a trained model as an encoder.
#[cfg(feature = "torch")]
pub fn open_model(path: &Path) -> Result<Arc<dyn Encoder>> {
    let device = tanhash::deep::Device::Auto;
    let encoder = tanhash::deep::TorchEncoder::open(path, device).with_context(|| path.display().to_string())?;
    Ok(Arc::new(encoder))
}

/// Opens a trained model as an encoder.
#[cfg(not(feature = "torch"))]
pub fn open_model(path: &Path) -> Result<Arc<dyn Encoder>> {
    bail!(
        "{}: encoding with a model needs a program built with --features cli,torch, this one is built with cli alone",
        path.display()
    )
}

/// `tanhash.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    codes: EncoderSpec,
}

/// Puts a model beside an index, and never on top of another file.
fn copy_model(from: &Path, to: &Path) -> Result<()> {
    let about = || format!("copying {} to {}", from.display(), to.display());
    if to.exists() {
        let same = fs::canonicalize(from).and_then(|from| Ok(from == fs::canonicalize(to)?)).with_context(about)?;
        if same {
            return Ok(());
        }
        bail!("expected no other file at {}, found one; choose another --index or move it", to.display());
    }
    let temporary = to.with_extension("safetensors.part");
    fs::copy(from, &temporary).and_then(|_| fs::rename(&temporary, to)).with_context(about)
}

/// The fields of the program's schema.
#[derive(Clone, Copy)]
pub struct Fields {
    /// Path, id or row number.
    pub key: Field,
    /// The class or folder, as one term.
    pub label: Field,
    /// Words to search for.
    pub text: Field,
    /// Any other fields of a manifest line.
    pub meta: Field,
    /// The codes.
    pub code: Field,
}

impl Fields {
    fn of(index: &HashIndex) -> tanhash::Result<Fields> {
        Ok(Fields {
            key: index.field("key")?,
            label: index.field("label")?,
            text: index.field("text")?,
            meta: index.field("meta")?,
            code: index.field("image")?,
        })
    }
}

/// An open index of the program's kind.
pub struct Catalog {
    pub index: HashIndex,
    pub fields: Fields,
    pub spec: EncoderSpec,
}

/// Whether a caller will encode.
#[derive(Clone, Copy, PartialEq)]
pub enum Use {
    Encode,
    SearchOnly,
}

fn schema(options: HashFieldOptions) -> tanhash::Result<Schema> {
    let indexing = TextFieldIndexing::default()
        .set_tokenizer("en_stem")
        .set_index_option(IndexRecordOption::WithFreqsAndPositions);
    let text = TextOptions::default().set_indexing_options(indexing).set_stored();
    let mut builder = Schema::builder();
    builder.add_text_field("key", STRING | STORED);
    builder.add_text_field("label", STRING | STORED | FAST);
    builder.add_text_field("text", text);
    builder.add_json_field("meta", tantivy::schema::TEXT | STORED | FAST);
    builder.add_hash_field("image", options)?;
    Ok(builder.build())
}

impl Catalog {
    /// Creates an index in a directory that holds none; a model is copied into it.
    pub fn create(dir: &Path, spec: EncoderSpec, plugin: impl Fn(Option<Arc<dyn Encoder>>) -> tanhash::Result<HashPlugin>) -> Result<Catalog> {
        if dir.join("meta.json").exists() {
            bail!("expected a directory without an index, found one in {}; choose another or remove it", dir.display());
        }
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let spec = match spec {
            EncoderSpec::Model { file, model_id } => {
                copy_model(&file, &dir.join(MODEL_FILE))?;
                EncoderSpec::Model { file: MODEL_FILE.into(), model_id }
            }
            other => other,
        };
        let encoder = spec.open(dir)?;
        let options = match (&encoder, &spec) {
            (Some(encoder), _) => HashFieldOptions::new(encoder.code_len().bits()).model_id(encoder.model_id()),
            (None, EncoderSpec::None { bits }) => HashFieldOptions::new(*bits),
            (None, _) => bail!("expected an encoder, got none"),
        };
        let manifest = Manifest { format: 1, codes: spec.clone() };
        fs::write(dir.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)
            .with_context(|| dir.join(MANIFEST).display().to_string())?;
        let index = HashIndex::create_in_dir(dir, schema(options)?, plugin(encoder)?)?;
        Ok(Catalog { fields: Fields::of(&index)?, index, spec })
    }

    /// Opens an index. Only [`Use::Encode`] loads its model.
    pub fn open(dir: &Path, purpose: Use, model: Option<&Path>) -> Result<Catalog> {
        if !dir.join("meta.json").is_file() {
            bail!("expected an index in {}, found none; make one with `tanhash index`", dir.display());
        }
        let path = dir.join(MANIFEST);
        let bytes = fs::read(&path).with_context(|| {
            format!("{}: expected an index made by `tanhash index`", path.display())
        })?;
        let manifest: Manifest = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
        if manifest.format != 1 {
            bail!("{}: expected format 1, found {}; upgrade", path.display(), manifest.format);
        }
        let spec = manifest.codes;
        let encoder = match (purpose, model) {
            (Use::SearchOnly, _) => None,
            (Use::Encode, Some(model)) => Some(open_model(model)?),
            (Use::Encode, None) => spec.open(dir)?,
        };
        let plugin = encoder.map_or_else(|| Ok(HashPlugin::new()), HashPlugin::with_encoder)?;
        let index = HashIndex::open_in_dir(dir, plugin)?;
        Ok(Catalog { fields: Fields::of(&index)?, index, spec })
    }

    /// A query in tantivy's language; words without a field are looked for in `fields`.
    pub fn parse(&self, text: &str, fields: Vec<Field>) -> Result<Box<dyn Query>> {
        let mut parser = QueryParser::for_index(&self.index, fields);
        parser.set_conjunction_by_default();
        parser.parse_query(text).with_context(|| format!("query {text:?}"))
    }

    /// The stored fields of a document.
    pub fn record(&self, searcher: &Searcher, address: DocAddress) -> Result<Stored> {
        let document: TantivyDocument = searcher.doc(address)?;
        let text = |field| {
            let value = document.get_first(field).and_then(|value| value.as_str().map(str::to_owned));
            value.unwrap_or_default()
        };
        let meta = document.get_first(self.fields.meta).map(|value| {
            let value: tantivy::schema::OwnedValue = value.into();
            serde_json::to_value(value).unwrap_or_default()
        });
        Ok(Stored { key: text(self.fields.key), label: text(self.fields.label), text: text(self.fields.text), meta })
    }
}

/// What a hit shows of its document.
#[derive(Clone, Debug, Serialize)]
pub struct Stored {
    pub key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<serde_json::Value>,
}
