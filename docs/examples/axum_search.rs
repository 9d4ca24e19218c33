//! A picture search inside a web service: no database beside it, the index is part of the process.
//!
//! `cargo run --example axum_search -- 127.0.0.1:3000 INDEX` serves; without arguments it starts on a free
//! port, asks itself, and ends.
//!
//! ```text
//! curl --data-binary @boot.jpg '127.0.0.1:3000/pictures/boot-1?title=red+boot'
//! curl --data-binary @photo.jpg '127.0.0.1:3000/search?k=5&text=boot'
//! ```
//!
//! The encoder is a perceptual hash; with the feature `torch`, `deep::TorchEncoder` takes its place.

mod pictures;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tanhash::encode::PerceptualHash;
use tanhash::plugin::{
    HashDocumentExt, HashFieldOptions, HashIndex, HashIndexWriter, HashPlugin, HybridSearch,
    KnnQuery, SchemaBuilderExt, WriterOptions,
};
use tanhash::{Encoder, ErrorKind, Payload};
use tantivy::query::QueryParser;
use tantivy::schema::{Field, STORED, STRING, Schema, TEXT, Value};
use tantivy::{IndexReader, TantivyDocument};
use tokio::net::TcpListener;

/// What the handlers share.
struct App {
    index: HashIndex,
    /// Shared by all requests: their pictures are encoded in common batches.
    writer: HashIndexWriter,
    /// Kept, so that a search opens nothing. It sees commits by itself.
    reader: IndexReader,
    key: Field,
    title: Field,
    image: Field,
}

impl App {
    fn open(dir: &Path) -> tanhash::Result<App> {
        let encoder = Arc::new(PerceptualHash::default());
        let mut schema = Schema::builder();
        let key = schema.add_text_field("key", STRING | STORED);
        let title = schema.add_text_field("title", TEXT | STORED);
        let hash = HashFieldOptions::new(64).model_id(encoder.model_id());
        let image = schema.add_hash_field("image", hash)?;
        let plugin = HashPlugin::with_encoder(encoder)?;
        let index = match dir.join("meta.json").exists() {
            true => HashIndex::open_in_dir(dir, plugin)?,
            false => HashIndex::create_in_dir(dir, schema.build(), plugin)?,
        };
        Ok(App {
            writer: index.writer(WriterOptions::default())?,
            reader: index.reader()?,
            index,
            key,
            title,
            image,
        })
    }

    fn put(&self, key: &str, title: &str, picture: &[u8]) -> tanhash::Result<()> {
        let mut document = TantivyDocument::new();
        document.add_text(self.key, key);
        document.add_text(self.title, title);
        document.add_image(self.image, picture);
        let outcome = self.writer.upsert_documents(self.key, vec![document])?;
        // The picture of this request is bad, and only this request hears of it.
        match outcome.failures().next() {
            Some((_, reason)) => Err(ErrorKind::Payload(reason.to_owned()).into()),
            None => Ok(()),
        }
    }

    fn search(&self, wanted: &Wanted, picture: &Bytes) -> tanhash::Result<Vec<Hit>> {
        let picture = Payload::Image(picture[..].into());
        let code = self.index.encode(self.image, picture)?;
        let mut search = HybridSearch::new()
            .knn(KnnQuery::new(self.image, code, 100))
            .limit(wanted.k.clamp(1, 100));
        if let Some(words) = &wanted.text {
            let (query, _) =
                QueryParser::for_index(&self.index, vec![self.title]).parse_query_lenient(words);
            search = search.text(query);
        }
        let searcher = self.reader.searcher();
        let hits = search.search(&searcher)?.hits;
        hits.into_iter()
            .map(|hit| {
                let document: TantivyDocument = searcher.doc(hit.address)?;
                let text = |field| Some(document.get_first(field)?.as_str()?.to_owned());
                Ok(Hit {
                    key: text(self.key).unwrap_or_default(),
                    title: text(self.title).unwrap_or_default(),
                    score: hit.score,
                    distance: hit.legs[0].and_then(|leg| leg.distance),
                })
            })
            .collect()
    }
}

#[derive(Deserialize)]
struct Titled {
    #[serde(default)]
    title: String,
}

#[derive(Deserialize)]
struct Wanted {
    #[serde(default = "ten")]
    k: usize,
    text: Option<String>,
}

fn ten() -> usize {
    10
}

#[derive(Serialize, Deserialize, Debug)]
struct Hit {
    key: String,
    title: String,
    score: f32,
    /// Bits between the pictures, where the picture is among the nearest.
    distance: Option<u32>,
}

type Answer<T> = Result<T, (StatusCode, String)>;

/// Encoding and searching block, so they run beside the threads that answer requests.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> tanhash::Result<T> + Send + 'static,
) -> Answer<T> {
    let done = tokio::task::spawn_blocking(run).await;
    let done = done.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    done.map_err(|error| {
        let status = match error.kind() {
            ErrorKind::Payload(_) | ErrorKind::InvalidArgument(_) => StatusCode::BAD_REQUEST,
            ErrorKind::EncoderStopped { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, error.to_string())
    })
}

async fn put(
    State(app): State<Arc<App>>,
    UrlPath(key): UrlPath<String>,
    Query(Titled { title }): Query<Titled>,
    picture: Bytes,
) -> Answer<StatusCode> {
    // Searched after the next commit, a second later at most.
    blocking(move || app.put(&key, &title, &picture)).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn search(
    State(app): State<Arc<App>>,
    Query(wanted): Query<Wanted>,
    picture: Bytes,
) -> Answer<Json<Vec<Hit>>> {
    blocking(move || app.search(&wanted, &picture))
        .await
        .map(Json)
}

/// One commit for the uploads of a second: each syncs the disk.
async fn commit_often(app: Arc<App>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let app = app.clone();
        if let Err((_, reason)) = blocking(move || app.writer.commit()).await {
            eprintln!("uploads since the last commit were lost: {reason}");
        }
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/pictures/{key}", post(put))
        .route("/search", post(search))
        // As much as the decoder would accept.
        .layer(DefaultBodyLimit::max(32_000_000))
        .with_state(app)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, dir] = &args[..] else {
        return ask_itself().await;
    };
    std::fs::create_dir_all(dir)?;
    let app = Arc::new(App::open(Path::new(dir))?);
    tokio::spawn(commit_often(app.clone()));
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, router(app)).await?)
}

/// Uploads two pictures and a broken one to a service on a free port, and searches.
async fn ask_itself() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let app = Arc::new(App::open(dir.path())?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, router(app.clone())).into_future());

    let ask = |path: &'static str, body: Vec<u8>| async move {
        tokio::task::spawn_blocking(move || request(address, path, &body)).await?
    };
    let boot = pictures::picture(1, 300, 200, 1.0);
    let scarf = pictures::picture(2, 300, 200, 1.0);
    assert_eq!(ask("/pictures/boot-1?title=red+boot", boot).await?.0, 202);
    assert_eq!(
        ask("/pictures/scarf-1?title=red+scarf", scarf).await?.0,
        202
    );
    let (status, reason) = ask("/pictures/note?title=x", b"no picture".to_vec()).await?;
    println!("{status} {reason}");
    assert_eq!(status, 400);
    app.writer.commit()?;
    app.reader.reload()?;

    // A smaller, darker copy of the boot.
    let photograph = pictures::picture(1, 150, 100, 0.8);
    let (status, body) = ask("/search?k=5&text=red", photograph).await?;
    println!("{status} {body}");
    let hits: Vec<Hit> = serde_json::from_str(&body)?;
    assert_eq!(hits[0].key, "boot-1");
    assert!(hits[0].distance < hits[1].distance);
    // The broken upload is found by its words alone, until it is sent again.
    assert!(hits.iter().all(|hit| hit.key != "note"));
    Ok(())
}

/// The least HTTP that asks a question.
fn request(
    address: std::net::SocketAddr,
    path: &str,
    body: &[u8],
) -> Result<(u16, String), std::io::Error> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.unwrap_or(0), body.to_owned()))
}
