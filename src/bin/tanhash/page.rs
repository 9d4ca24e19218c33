//! Self-contained HTML pages: no script, no network, pictures inside.
//!
//! A page is a head with facts and a body of sections: queries with their hits, or plots.

#[cfg(feature = "torch")]
use anyhow::Result;
#[cfg(feature = "torch")]
use base64::Engine;
#[cfg(feature = "torch")]
use base64::engine::general_purpose::STANDARD;
#[cfg(feature = "torch")]
use tanhash::data::ExampleSet;

/// A page of searches.
#[cfg(feature = "torch")]
pub struct Page {
    pub title: String,
    pub facts: Vec<String>,
    pub sections: Vec<Section>,
}

#[cfg(feature = "torch")]
/// One query with its hits.
pub struct Section {
    pub title: String,
    pub note: String,
    /// How long the search took.
    pub ms: f64,
    pub query: Option<Tile>,
    pub tiles: Vec<Tile>,
}

#[cfg(feature = "torch")]
/// A picture with what is said about it.
pub struct Tile {
    pub png: Vec<u8>,
    pub caption: String,
    pub detail: String,
    /// Whether it is of the query's class; `None` where there is no class to compare.
    pub truth: Option<bool>,
}

const STYLE: &str = "\
:root { color-scheme: light dark; --good: #1a7f37; --bad: #cf222e; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .3rem; } h2 { font-size: 1.05rem; margin: 0; }
header ul { margin: .3rem 0 1.2rem; padding-left: 1.2rem; }
section { border-top: 1px solid var(--line); padding: .9rem 0; }
section p { margin: .1rem 0 .6rem; opacity: .75; font-size: .85rem; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-start; }
figure { margin: 0; width: 84px; font-size: .72rem; line-height: 1.25; }
figure img { width: 78px; height: 78px; image-rendering: pixelated; border: 3px solid var(--line); border-radius: 6px; background: #000; }
figure.good img { border-color: var(--good); } figure.good figcaption { color: var(--good); }
figure.bad img { border-color: var(--bad); border-style: dashed; } figure.bad figcaption { color: var(--bad); }
figure.query { margin-right: 1rem; } figure.query img { border-color: #0969da; }
.legend span { margin-right: 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1.4rem; align-items: start; }
.plots figure { width: auto; font-size: .8rem; } .plots figcaption { opacity: .75; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
svg .title { font-size: 13px; font-weight: 600; } svg .grid { stroke: var(--line); stroke-width: .6; }
svg .axis { stroke: currentColor; fill: none; } svg .mark { stroke: currentColor; stroke-dasharray: 4 3; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 3rem 1rem 0; }
td, th { padding: .15rem .9rem .15rem 0; text-align: left; } code { overflow-wrap: anywhere; }
";

/// A whole page: a title, facts below it, and a body that is markup already.
pub fn document(title: &str, facts: &[String], body: &str) -> String {
    let facts: String = facts
        .iter()
        .map(|fact| format!("<li>{}</li>\n", escape(fact)))
        .collect();
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n\
         <ul>\n{facts}</ul>\n</header>\n{body}</body>\n</html>\n"
    )
}

/// What the frames of pictures mean.
#[cfg(feature = "torch")]
pub const LEGEND: &str = "<p class=\"legend\"><span style=\"color:#0969da\">▢ query</span>\
    <span style=\"color:var(--good)\">▢ ✓ same class (true neighbour)</span>\
    <span style=\"color:var(--bad)\">▢ ✗ another class (false neighbour)</span></p>\n";

/// A query and its hits under a title.
#[cfg(feature = "torch")]
pub fn row(title: &str, note: &str, query: Option<&Tile>, tiles: &[Tile]) -> String {
    let query = query.map(|tile| tile.to_html("query")).unwrap_or_default();
    let tiles: String = tiles
        .iter()
        .map(|tile| match tile.truth {
            Some(true) => tile.to_html("good"),
            Some(false) => tile.to_html("bad"),
            None => tile.to_html("hit"),
        })
        .collect();
    format!(
        "<section>\n<h2>{}</h2>\n<p>{}</p>\n<div class=\"row\">\n{query}{tiles}</div>\n</section>\n",
        escape(title),
        escape(note)
    )
}

/// Picture `row` of a set as a PNG file: as it is stored, that of a file in a small square.
#[cfg(feature = "torch")]
pub fn png(set: &ExampleSet, row: usize) -> Result<Vec<u8>> {
    use image::{ExtendedColorType, ImageEncoder};
    use tanhash::data::PictureShape;
    use tanhash::media::Resize;

    const THUMBNAIL: PictureShape = PictureShape {
        side: 96,
        channels: 3,
    };
    let (shape, pixels) = match (set.stored_shape(), set.stored_picture(row)) {
        (Some(shape), Some(pixels)) => (shape, pixels.to_vec()),
        _ => (THUMBNAIL, set.pixels(&[row], THUMBNAIL, Resize::default())?),
    };
    let side = shape.side as u32;
    let color = if shape.channels == 1 {
        ExtendedColorType::L8
    } else {
        ExtendedColorType::Rgb8
    };
    let mut bytes = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.write_image(&pixels, side, side, color)?;
    Ok(bytes)
}

#[cfg(feature = "torch")]
impl Page {
    pub fn to_html(&self) -> String {
        let sections: String = self.sections.iter().map(Section::to_html).collect();
        document(&self.title, &self.facts, &format!("{LEGEND}{sections}"))
    }
}

#[cfg(feature = "torch")]
impl Section {
    fn to_html(&self) -> String {
        let note = format!("{} {:.2} ms.", self.note, self.ms);
        row(&self.title, &note, self.query.as_ref(), &self.tiles)
    }
}

#[cfg(feature = "torch")]
impl Tile {
    fn to_html(&self, class: &str) -> String {
        let (caption, detail) = (escape(&self.caption), escape(&self.detail));
        let data = STANDARD.encode(&self.png);
        format!(
            "<figure class=\"{class}\"><img src=\"data:image/png;base64,{data}\" alt=\"{caption}\" title=\"{detail}\">\
             <figcaption>{caption}</figcaption></figure>\n"
        )
    }
}

/// Text as it stands in markup.
pub fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, c| {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "torch")]
    #[test]
    fn captions_cannot_become_markup() {
        let tile = Tile {
            png: vec![1],
            caption: "<b>\"&".into(),
            detail: String::new(),
            truth: None,
        };
        let html = tile.to_html("hit");
        assert!(
            html.contains("&lt;b&gt;&quot;&amp;") && !html.contains("<b>"),
            "{html}"
        );
    }

    #[test]
    fn text_cannot_become_markup() {
        let html = document("<i>", &["a & <b>".to_owned()], "<p>body</p>");
        assert!(
            html.contains("&lt;i&gt;") && html.contains("a &amp; &lt;b&gt;"),
            "{html}"
        );
        assert!(
            html.contains("<p>body</p>") && !html.contains("<b>"),
            "{html}"
        );
    }
}
