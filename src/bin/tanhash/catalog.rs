//! The program's own kind of index: which fields it has, and which encoder made its codes.
//!
//! The library leaves the schema to the application; this application's schema is a key, a label, text,
//! any further fields as JSON, the fields of a schema file, and a hash field for each source of codes. Beside
//! tantivy's files lie `tanhash.json`, which names the encoders, and a copy of each model, so that a directory
//! can be shipped as it is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tanhash::encode::{EncodeError, Encoder, Itq, PerceptualHash, SignLsh};
use tanhash::plugin::{HashFieldOptions, HashIndex, HashPlugin, SchemaBuilderExt};
use tanhash::{CodeLen, ErrorKind, HashCode, Payload, PayloadKind};
use tantivy::query::{Query, QueryParser};
use tantivy::schema::{
    FAST, Field, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions, Value,
};
use tantivy::{DocAddress, Searcher, TantivyDocument};

use crate::files::{self, WholeFile};
use crate::schema::{SchemaFile, date_text};

const MANIFEST: &str = "tanhash.json";

/// Where the codes of a field come from. An encoder joins here, in [`EncoderSpec::open`], and among the values
/// of `--encoder` in `cmd/index.rs`.
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
    /// From float vectors by iterative quantization that was learned before, kept beside the index.
    Itq { file: PathBuf, model_id: String },
}

impl EncoderSpec {
    /// The file that the encoder is read from, if there is one.
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            EncoderSpec::Model { file, .. } | EncoderSpec::Itq { file, .. } => Some(file),
            EncoderSpec::None { .. } | EncoderSpec::Phash { .. } | EncoderSpec::Lsh { .. } => None,
        }
    }

    /// As [`EncoderSpec::file`], to be changed.
    pub fn file_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            EncoderSpec::Model { file, .. } | EncoderSpec::Itq { file, .. } => Some(file),
            EncoderSpec::None { .. } | EncoderSpec::Phash { .. } | EncoderSpec::Lsh { .. } => None,
        }
    }

    /// The name of that file in an index, for the codes of `field`.
    fn file_name(&self, field: &str) -> String {
        let (stem, extension) = match self {
            EncoderSpec::Itq { .. } => ("itq", "bin"),
            _ => ("model", "safetensors"),
        };
        match field {
            CODE_FIELD => format!("{stem}.{extension}"),
            field => format!("{stem}-{field}.{extension}"),
        }
    }

    /// The encoder, or `None` for ready codes. `dir` is the index that a model file lies in.
    pub fn open(&self, dir: &Path) -> Result<Option<Arc<dyn Encoder>>> {
        Ok(match self {
            EncoderSpec::None { .. } => None,
            EncoderSpec::Model { file, model_id } | EncoderSpec::Itq { file, model_id } => {
                let path = dir.join(file);
                let encoder = match self {
                    EncoderSpec::Itq { .. } => Arc::new(open_itq(&path)?),
                    _ => open_model(&path)?,
                };
                if encoder.model_id() != model_id {
                    let found = encoder.model_id();
                    bail!(
                        "{}: expected model {model_id}, found {found}",
                        path.display()
                    );
                }
                Some(encoder)
            }
            EncoderSpec::Phash { bits } => {
                Some(Arc::new(PerceptualHash::new(CodeLen::new(*bits)?)?))
            }
            EncoderSpec::Lsh { bits, dim, seed } => {
                Some(Arc::new(SignLsh::new(CodeLen::new(*bits)?, *dim, *seed)?))
            }
        })
    }
}

/// Opens a file that `tanhash fit` wrote.
pub fn open_itq(path: &Path) -> Result<Itq> {
    Itq::open(path).with_context(|| path.display().to_string())
}

/// Opens a trained model as an encoder.
#[cfg(feature = "torch")]
pub fn open_model(path: &Path) -> Result<Arc<dyn Encoder>> {
    crate::learning::note_unused_gpu();
    let device = tanhash::deep::Device::Auto;
    let encoder = tanhash::deep::TorchEncoder::open(path, device)
        .with_context(|| path.display().to_string())?;
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

/// Refuses input none of which the encoder could read; `None` is input of which that is not known.
pub fn check_kind(encoder: &dyn Encoder, input: Option<PayloadKind>) -> Result<()> {
    match (encoder.reads(), input) {
        (Some(expected), Some(input)) if input != expected => bail!(
            "expected {expected}, which are what {} reads, got {input}; give other input or another encoder",
            encoder.model_id()
        ),
        _ => Ok(()),
    }
}

/// Stands for an encoder that will not be asked, because the codes of its field are there.
struct Absent {
    len: CodeLen,
    model_id: String,
}

impl Encoder for Absent {
    fn code_len(&self) -> CodeLen {
        self.len
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }

    fn encode(&self, _: &[Payload]) -> tanhash::Result<Vec<Result<HashCode, EncodeError>>> {
        let message = format!("model {} was not loaded", self.model_id);
        Err(ErrorKind::Encoder(message).into())
    }
}

/// Which hash fields an index has, and which fields of the user's.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Each hash field and its source of codes; the first is [`CODE_FIELD`].
    pub codes: Vec<(String, EncoderSpec)>,
    pub schema: SchemaFile,
}

/// The hash field of an index with one.
pub const CODE_FIELD: &str = "image";

impl Layout {
    /// One hash field.
    pub fn new(spec: EncoderSpec, schema: SchemaFile) -> Layout {
        Layout {
            codes: vec![(CODE_FIELD.to_owned(), spec)],
            schema,
        }
    }

    /// What `tanhash.json` of an index says.
    pub fn read(dir: &Path) -> Result<Layout> {
        let path = dir.join(MANIFEST);
        let bytes = fs::read(&path).with_context(|| {
            format!(
                "{}: expected an index made by `tanhash index`",
                path.display()
            )
        })?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
        if manifest.format != 1 {
            bail!(
                "{}: expected format 1, found {}; upgrade",
                path.display(),
                manifest.format
            );
        }
        let first = (CODE_FIELD.to_owned(), manifest.codes);
        let more = manifest.more_codes.into_iter();
        let more = more.map(|more| (more.field, more.codes));
        Ok(Layout {
            codes: std::iter::once(first).chain(more).collect(),
            schema: manifest.schema,
        })
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let Some(((_, first), more)) = self.codes.split_first() else {
            bail!("expected a hash field, got none");
        };
        let more = more.iter().map(|(field, codes)| MoreCodes {
            field: field.clone(),
            codes: codes.clone(),
        });
        let manifest = Manifest {
            format: 1,
            codes: first.clone(),
            more_codes: more.collect(),
            schema: self.schema.clone(),
        };
        files::write(&dir.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)
    }

    /// The source of codes of a field.
    pub fn spec(&self, field: &str) -> Result<&EncoderSpec> {
        let found = self.codes.iter().find(|(name, _)| name == field);
        found.map(|(_, spec)| spec).with_context(|| {
            let names: Vec<&str> = self.codes.iter().map(|(name, _)| name.as_str()).collect();
            format!("expected one of the hash fields {names:?}, got `{field}`")
        })
    }
}

/// `tanhash.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    codes: EncoderSpec,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more_codes: Vec<MoreCodes>,
    #[serde(default, skip_serializing_if = "is_default")]
    schema: SchemaFile,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MoreCodes {
    field: String,
    codes: EncoderSpec,
}

fn is_default(schema: &SchemaFile) -> bool {
    *schema == SchemaFile::default()
}

/// Puts a model beside an index, and never on top of another file unless that is what an earlier, killed run
/// of the same build has left.
fn copy_model(from: &Path, to: &Path, replace: bool) -> Result<()> {
    let about = || format!("copying {} to {}", from.display(), to.display());
    if to.exists() {
        let same = fs::canonicalize(from)
            .and_then(|from| Ok(from == fs::canonicalize(to)?))
            .with_context(about)?;
        if same {
            return Ok(());
        }
        if !replace {
            bail!(
                "expected no other file at {}, found one; choose another --index or move it",
                to.display()
            );
        }
    }
    let mut copy = WholeFile::create(to)?;
    fs::File::open(from)
        .and_then(|mut model| io::copy(&mut model, &mut copy))
        .with_context(about)?;
    copy.finish()
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
    /// The codes to search or to add.
    pub code: Field,
}

impl Fields {
    fn of(index: &HashIndex, code: &str) -> tanhash::Result<Fields> {
        Ok(Fields {
            key: index.field("key")?,
            label: index.field("label")?,
            text: index.field("text")?,
            meta: index.field("meta")?,
            code: index.field(code)?,
        })
    }
}

/// An open index of the program's kind.
pub struct Catalog {
    pub index: HashIndex,
    pub fields: Fields,
    /// Where the codes of `fields.code` come from.
    pub spec: EncoderSpec,
    pub layout: Layout,
}

/// Whether a caller will encode.
#[derive(Clone, Copy, PartialEq)]
pub enum Use {
    Encode,
    SearchOnly,
}

fn schema(codes: Vec<(String, HashFieldOptions)>, more: &SchemaFile) -> tanhash::Result<Schema> {
    let indexing = TextFieldIndexing::default()
        .set_tokenizer("en_stem")
        .set_index_option(IndexRecordOption::WithFreqsAndPositions);
    let text = TextOptions::default()
        .set_indexing_options(indexing)
        .set_stored();
    let mut builder = Schema::builder();
    builder.add_text_field("key", STRING | STORED);
    builder.add_text_field("label", STRING | STORED | FAST);
    builder.add_text_field("text", text);
    builder.add_json_field("meta", tantivy::schema::TEXT | STORED | FAST);
    for (name, options) in codes {
        builder.add_hash_field(&name, options)?;
    }
    more.add_to(&mut builder);
    Ok(builder.build())
}

impl Catalog {
    /// Creates an index in a directory that holds none; models are copied into it. With `resume` what a
    /// killed run has left of this step is replaced. The last field's encoder is ready to use; codes of the
    /// others are added as they are.
    pub fn create(dir: &Path, mut layout: Layout, resume: bool) -> Result<Catalog> {
        if dir.join("meta.json").exists() {
            bail!(
                "expected a directory without an index, found one in {}; choose another, remove it, or go \
                 on with its run by --resume (`tanhash index` adds to it by --append)",
                dir.display()
            );
        }
        for field in &layout.schema.fields {
            let taken = layout.codes.iter().any(|(name, _)| *name == field.name);
            ensure!(
                !taken,
                "field `{}`: expected a name other than the hash field's",
                field.name
            );
        }
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        for (field, spec) in &mut layout.codes {
            let name = spec.file_name(field);
            if let Some(file) = spec.file_mut() {
                copy_model(file, &dir.join(&name), resume)?;
                *file = name.into();
            }
        }
        let Some((code_field, spec)) = layout.codes.last().cloned() else {
            bail!("expected a hash field, got none");
        };
        let encoders = encoders(dir, &layout, Some(&code_field), None)?;
        let options = layout
            .codes
            .iter()
            .zip(&encoders)
            .map(|((name, spec), encoder)| {
                let options = match (encoder, spec) {
                    (Some(encoder), _) => HashFieldOptions::new(encoder.code_len().bits())
                        .model_id(encoder.model_id()),
                    (None, EncoderSpec::None { bits }) => HashFieldOptions::new(*bits),
                    (None, _) => bail!("expected an encoder for the field `{name}`, got none"),
                };
                Ok((name.clone(), options))
            });
        let options = options.collect::<Result<Vec<_>>>()?;
        layout.write(dir)?;
        let schema = schema(options, &layout.schema)?;
        let index = HashIndex::create_in_dir(dir, schema, plugin(encoders)?)?;
        Ok(Catalog {
            fields: Fields::of(&index, &code_field)?,
            index,
            spec,
            layout,
        })
    }

    /// Opens an index for one of its hash fields. Only [`Use::Encode`] loads the model of that field.
    pub fn open(
        dir: &Path,
        purpose: Use,
        model: Option<&Path>,
        code_field: &str,
    ) -> Result<Catalog> {
        if !dir.join("meta.json").is_file() {
            bail!(
                "expected an index in {}, found none; make one with `tanhash index`",
                dir.display()
            );
        }
        let layout = Layout::read(dir)?;
        let spec = layout.spec(code_field)?.clone();
        let encoders = match purpose {
            Use::SearchOnly => Vec::new(),
            Use::Encode => encoders(dir, &layout, Some(code_field), model)?,
        };
        let index = HashIndex::open_in_dir(dir, plugin(encoders)?)?;
        Ok(Catalog {
            fields: Fields::of(&index, code_field)?,
            index,
            spec,
            layout,
        })
    }

    /// Refuses input none of which the encoder could read.
    pub fn check_kind(&self, input: Option<PayloadKind>) -> Result<()> {
        let options = HashFieldOptions::of(&self.index.schema(), self.fields.code)?;
        match self.index.plugin().encoder_for(&options) {
            Some(encoder) => check_kind(&*encoder, input),
            None => Ok(()),
        }
    }

    /// The fields that words without a field are looked for in.
    pub fn text_fields(&self) -> Vec<Field> {
        let mut fields = vec![self.fields.text, self.fields.label];
        fields.extend(self.layout.schema.texts(&self.index.schema()));
        fields
    }

    /// A query in tantivy's language; words without a field are looked for in `fields`.
    pub fn parse(&self, text: &str, fields: Vec<Field>) -> Result<Box<dyn Query>> {
        let mut parser = QueryParser::for_index(&self.index, fields);
        parser.set_conjunction_by_default();
        parser
            .parse_query(text)
            .with_context(|| format!("query {text:?}"))
    }

    /// The stored fields of a document.
    pub fn record(&self, searcher: &Searcher, address: DocAddress) -> Result<Stored> {
        let document: TantivyDocument = searcher.doc(address)?;
        let text = |field| {
            let value = document
                .get_first(field)
                .and_then(|value| value.as_str().map(str::to_owned));
            value.unwrap_or_default()
        };
        let meta = document.get_first(self.fields.meta).map(|value| {
            let value: tantivy::schema::OwnedValue = value.into();
            serde_json::to_value(value).unwrap_or_default()
        });
        Ok(Stored {
            key: text(self.fields.key),
            label: text(self.fields.label),
            text: text(self.fields.text),
            meta,
            fields: self.stored_fields(&document)?,
        })
    }

    fn stored_fields(&self, document: &TantivyDocument) -> Result<BTreeMap<String, Json>> {
        let schema = self.index.schema();
        let mut fields = BTreeMap::new();
        for spec in &self.layout.schema.fields {
            let values = document.get_all(schema.get_field(&spec.name)?);
            let values = values.map(|value| {
                let value: tantivy::schema::OwnedValue = value.as_value().into();
                match value {
                    tantivy::schema::OwnedValue::Date(date) => date_text(date).into(),
                    value => serde_json::to_value(value).unwrap_or_default(),
                }
            });
            let mut values: Vec<Json> = values.collect();
            match values.len() {
                0 => continue,
                1 => fields.insert(spec.name.clone(), values.remove(0)),
                _ => fields.insert(spec.name.clone(), values.into()),
            };
        }
        Ok(fields)
    }
}

/// The encoder of each field, in order. All but that of `wanted` are stand-ins.
fn encoders(
    dir: &Path,
    layout: &Layout,
    wanted: Option<&str>,
    model: Option<&Path>,
) -> Result<Vec<Option<Arc<dyn Encoder>>>> {
    let encoders = layout
        .codes
        .iter()
        .map(|(field, spec)| match (spec, model) {
            (EncoderSpec::None { .. }, _) => Ok(None),
            (_, Some(model)) if wanted == Some(field.as_str()) => Ok(Some(open_model(model)?)),
            (EncoderSpec::Model { file, model_id }, _) if wanted != Some(field.as_str()) => {
                let len = model_bits(&dir.join(file), dir, field)?;
                let model_id = model_id.clone();
                Ok(Some(Arc::new(Absent { len, model_id }) as Arc<dyn Encoder>))
            }
            (spec, _) => spec.open(dir),
        });
    encoders.collect()
}

/// Bits of a field's codes, as the schema of the index says.
fn model_bits(file: &Path, dir: &Path, field: &str) -> Result<CodeLen> {
    if !dir.join("meta.json").is_file() {
        return Ok(open_model(file)?.code_len());
    }
    let index = HashIndex::open_in_dir(dir, HashPlugin::new())?;
    let options = HashFieldOptions::of(&index.schema(), index.field(field)?)?;
    Ok(options.code_len()?)
}

/// A plugin with these encoders.
fn plugin(encoders: Vec<Option<Arc<dyn Encoder>>>) -> tanhash::Result<HashPlugin> {
    let builder = HashPlugin::builder();
    let encoders = encoders.into_iter().flatten();
    encoders
        .fold(builder, |builder, encoder| builder.encoder(encoder))
        .build()
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
    pub meta: Option<Json>,
    /// The fields of the schema file.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, Json>,
}
