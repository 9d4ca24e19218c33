//! Words and a picture in one query: "boots, like this one, under 100".
//!
//! `cargo run --example hybrid_query`. The encoder is a perceptual hash, which finds copies of a picture;
//! with the feature `torch`, `deep::TorchEncoder` takes its place and finds pictures of the same kind.

mod pictures;

use std::sync::Arc;

use pictures::picture;
use tanhash::encode::PerceptualHash;
use tanhash::plugin::{
    HashDocumentExt, HashFieldOptions, HashIndex, HashPlugin, HybridSearch, KnnQuery,
    SchemaBuilderExt, WriterOptions,
};
use tanhash::{Encoder, Payload};
use tantivy::TantivyDocument;
use tantivy::query::QueryParser;
use tantivy::schema::{FAST, INDEXED, STORED, Schema, TEXT, Value};

/// Title, price, and the motif of the picture.
const CATALOGUE: [(&str, u64, u32); 6] = [
    ("red leather boot", 80, 1),
    ("brown leather boot", 120, 1),
    ("rubber boot", 25, 2),
    ("canvas shoe", 40, 1),
    ("red wool scarf", 15, 3),
    ("leather belt", 30, 4),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let encoder = Arc::new(PerceptualHash::default());
    let mut schema = Schema::builder();
    let title = schema.add_text_field("title", TEXT | STORED);
    let price = schema.add_u64_field("price", INDEXED | FAST | STORED);
    let hash = HashFieldOptions::new(64).model_id(encoder.model_id());
    let image = schema.add_hash_field("image", hash)?;
    let index = HashIndex::create_in_ram(schema.build(), HashPlugin::with_encoder(encoder)?)?;

    let writer = index.writer(WriterOptions::default())?;
    let documents = CATALOGUE.map(|(words, cost, motif)| {
        let mut document = TantivyDocument::new();
        document.add_text(title, words);
        document.add_u64(price, cost);
        document.add_image(image, &picture(motif, 300, 200, 1.0));
        document
    });
    writer.add_documents(documents.into())?;
    writer.commit()?;

    // The customer's photograph: the same motif, smaller and darker.
    let photograph = Payload::Image(picture(1, 180, 120, 0.8).into());
    let code = index.encode(image, photograph)?;

    let searcher = index.searcher()?;
    let parser = QueryParser::for_index(&index, vec![title]);
    let affordable = parser.parse_query("price:[0 TO 100]")?;
    let result = HybridSearch::new()
        .text(parser.parse_query("boot")?)
        .knn(KnnQuery::new(image, code, 100).max_distance(10))
        .filter(affordable)
        .limit(3)
        .search(&searcher)?;

    let mut found = Vec::new();
    for hit in &result.hits {
        let document: TantivyDocument = searcher.doc(hit.address)?;
        let words = document.get_first(title).and_then(|value| value.as_str());
        let words = words.unwrap_or_default().to_owned();
        // What each leg has to say about the hit.
        let of_text = hit.legs[0].map(|leg| format!("text rank {}", leg.rank));
        let of_image = hit.legs[1].map(|leg| format!("{} bits away", leg.distance.unwrap_or(0)));
        let why: Vec<String> = of_text.into_iter().chain(of_image).collect();
        println!("{:.4}  {words:<20} {}", hit.score, why.join(", "));
        found.push(words);
    }
    // Both words and picture; then one of them each, in either order. The brown boot costs too much.
    assert_eq!(found[0], "red leather boot");
    assert_eq!(found.len(), 3);
    assert!(found.contains(&"rubber boot".to_owned()));
    assert!(found.contains(&"canvas shoe".to_owned()));
    Ok(())
}
