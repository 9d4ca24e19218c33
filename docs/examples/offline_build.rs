//! A folder of pictures becomes an index to ship: one segment, checked, with a list of what was left out.
//!
//! `cargo run --release --example offline_build -- PICTURES INDEX`; without arguments, in a temporary folder
//! with pictures it makes. Near-duplicates of the first picture are printed at the end. The encoder is a
//! perceptual hash; with the feature `torch`, `deep::TorchEncoder` takes its place.

mod pictures;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tanhash::encode::PerceptualHash;
use tanhash::plugin::{
    HammingQuery, HashDocumentExt, HashFieldOptions, HashIndex, HashPlugin, SchemaBuilderExt,
    WriterOptions,
};
use tanhash::{Encoder, Payload};
use tantivy::TantivyDocument;
use tantivy::schema::{STORED, STRING, Schema, Value};

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> AnyResult<()> {
    let args: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    match &args[..] {
        [pictures, index] => build(pictures, index).map(|_| ()),
        [] => {
            let folder = tempfile::tempdir()?;
            let pictures = make_pictures(folder.path())?;
            let built = build(&pictures, &folder.path().join("index"))?;
            assert_eq!((built.n_indexed, built.n_without_code), (25, 1));
            assert_eq!(built.like_first.len(), 3);
            Ok(())
        }
        _ => Err("expected a folder of pictures and a folder for the index".into()),
    }
}

struct Built {
    n_indexed: u64,
    n_without_code: usize,
    like_first: Vec<String>,
}

fn build(pictures: &Path, out: &Path) -> AnyResult<Built> {
    let encoder = Arc::new(PerceptualHash::default());
    let mut schema = Schema::builder();
    let path = schema.add_text_field("path", STRING | STORED);
    let hash = HashFieldOptions::new(64).model_id(encoder.model_id());
    let image = schema.add_hash_field("image", hash)?;
    fs::create_dir_all(out)?;
    let plugin = HashPlugin::with_encoder(encoder)?;
    let index = HashIndex::create_in_dir(out, schema.build(), plugin)?;

    let mut files = Vec::new();
    list(pictures, &mut files)?;
    // Files are read as the writer asks for them, so the folder may be larger than memory.
    let documents = files.iter().map(|file| {
        let mut document = TantivyDocument::new();
        document.add_text(path, file.to_string_lossy());
        // A file that cannot be read is quarantined like one that cannot be decoded.
        document.add_image(image, &fs::read(file).unwrap_or_default());
        document
    });

    let writer = index.writer(WriterOptions::default())?;
    let mut n_seen = 0;
    let mut n_without_code = 0;
    let n_indexed = writer.add_stream(None, documents, |outcome| {
        for (position, reason) in outcome.failures() {
            println!("{}: {reason}", files[n_seen + position].display());
            n_without_code += 1;
        }
        n_seen += outcome.documents.len();
        // What is committed is not lost if the build is stopped. Here, after every group: yours may wait.
        Ok(())
    })?;
    writer.commit()?;
    writer.merge_all()?;
    writer.close()?;

    // Every checksum, every table, every count.
    let report = index.verify()?;
    if !report.is_ok() {
        return Err(format!("the index is damaged: {report:?}").into());
    }
    println!("{n_indexed} pictures, {n_without_code} of them without a code");

    let searcher = index.searcher()?;
    let mut like_first = Vec::new();
    let first = files.iter().find_map(|file| {
        let picture = Payload::Image(fs::read(file).ok()?.into());
        index.encode(image, picture).ok()
    });
    if let Some(code) = first {
        for hit in HammingQuery::new(image, code, 6)
            .search(&searcher, None)?
            .hits
        {
            let document: TantivyDocument = searcher.doc(hit.address)?;
            let value = document.get_first(path).and_then(|value| value.as_str());
            let name = value.unwrap_or_default().to_owned();
            println!("{:>3} bits away: {name}", hit.distance);
            like_first.push(name);
        }
    }
    Ok(Built {
        n_indexed,
        n_without_code,
        like_first,
    })
}

/// The files under a folder, in order of their paths.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> AnyResult<()> {
    let entries: Result<Vec<_>, _> = fs::read_dir(folder)?.collect();
    let mut paths: Vec<PathBuf> = entries?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        match path.is_dir() {
            true => list(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

/// Eight motifs, each in three versions, and a file that was cut off.
fn make_pictures(folder: &Path) -> AnyResult<PathBuf> {
    let pictures = folder.join("pictures");
    for motif in 0..8 {
        let folder = pictures.join(format!("motif-{motif}"));
        fs::create_dir_all(&folder)?;
        for (version, width) in [400, 300, 200].into_iter().enumerate() {
            let file = pictures::picture(motif, width, width * 3 / 4, 1.0 - 0.1 * version as f32);
            fs::write(folder.join(format!("{version}.jpg")), &file)?;
        }
    }
    let whole = pictures::picture(1, 300, 200, 1.0);
    fs::write(pictures.join("cut-off.jpg"), &whole[..whole.len() / 2])?;
    Ok(pictures)
}
