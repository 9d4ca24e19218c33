//! `tanhash demo`: the whole journey on Fashion-MNIST. Train, measure, index, search, and a page to look at.

use std::path::PathBuf;

use anyhow::Result;
#[cfg(not(feature = "torch"))]
use anyhow::bail;

use crate::cmd::Common;

/// Train, measure, index and search Fashion-MNIST, and write a page of the hits
#[derive(clap::Args)]
pub struct Args {
    /// The folder of the four IDX files; without it they are looked for, then downloaded by apt-get
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the model, the index and the page go
    #[arg(long, default_value = "tanhash-demo")]
    out: PathBuf,
    /// Bits of each code
    #[arg(long, default_value_t = 64)]
    bits: usize,
    /// Use this model instead of training one
    #[arg(long)]
    model: Option<PathBuf>,
}

#[cfg(not(feature = "torch"))]
pub fn run(args: Args, _common: Common) -> Result<()> {
    bail!(
        "the demo in {} trains a model, which needs a program built with --features cli,torch, this one is built with cli alone",
        args.out.display()
    )
}

#[cfg(feature = "torch")]
pub fn run(args: Args, common: Common) -> Result<()> {
    journey::run(args, common)
}

#[cfg(feature = "torch")]
mod journey {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Instant;

    use anyhow::{Context, Result, bail, ensure};
    use serde_json::json;
    use tanhash::data::Dataset;
    use tanhash::deep::{Device, TorchEncoder};
    use tanhash::eval::{Cutoff, Protocol};
    use tanhash::plugin::{HammingQuery, HybridSearch, KnnQuery, OnBadDocument};
    use tanhash::{HashCode, Payload, PayloadKind};
    use tantivy::Searcher;

    use super::Args;
    use crate::catalog::{CODE_FIELD, Catalog, EncoderSpec, Layout, Use};
    use crate::cmd::{Common, index, train};
    use crate::page::{Page, Section, Tile, png};
    use crate::records::{Body, Entry, Record, Records};
    use crate::schema::SchemaFile;
    use crate::{learning, output};

    /// The published code of Debian's package of the data set.
    const PACKAGE: &str = "dataset-fashion-mnist";
    /// Says that a folder is the demo's own.
    const MARK: &str = "MADE_BY_DEMO";
    const HITS: usize = 11;
    const RADIUS: u32 = 2;

    pub fn run(args: Args, common: Common) -> Result<()> {
        let out = &args.out;
        fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        let say = |text: String| {
            if common.json {
                Ok(())
            } else {
                output::line(text)
            }
        };

        let data = data_folder(args.data.as_deref(), out)?;
        let name = format!("fashion-mnist:{}", data.display());
        let dataset = learning::load(&name, None, common.seed)?;
        say(format!(
            "data: {} train pictures, {} queries, from {}",
            dataset.train.len(),
            dataset.query.len(),
            data.display()
        ))?;

        let (model, training) = match &args.model {
            Some(model) if lies_in(model, &out.join("index")) => {
                bail!(
                    "expected a model outside {}, which the demo replaces",
                    out.join("index").display()
                )
            }
            Some(model) => (model.clone(), None),
            None => {
                let model = out.join("model.safetensors");
                say(format!(
                    "training {}-bit OrthoHash, about two minutes on two cores ...",
                    args.bits
                ))?;
                let options =
                    train::Args::for_demo(name, args.bits, model.clone(), out.join("train.jsonl"));
                let summary = learning::train(&dataset, &options, common.seed)?;
                say(format!(
                    "trained {} in {:.0} s on {}",
                    summary.model_id, summary.seconds, summary.device
                ))?;
                (model, Some(summary))
            }
        };

        let encoder = TorchEncoder::open(&model, Device::Auto)
            .with_context(|| model.display().to_string())?;
        let protocols = [Cutoff::At(1000), Cutoff::All].map(Protocol::new);
        let reports = learning::evaluate(&encoder, &dataset, &protocols)?;
        for report in &reports {
            say(learning::headline(report))?;
        }

        let dir = out.join("index");
        // Only what an earlier demo made is replaced.
        let mark = out.join(MARK);
        if dir.exists() {
            ensure!(
                mark.is_file(),
                "expected no {} or one made by an earlier demo, found another; choose another --out",
                dir.display()
            );
            fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        fs::write(
            &mark,
            "This folder is made by `tanhash demo` and replaced by the next one.\n",
        )
        .with_context(|| mark.display().to_string())?;
        let spec = EncoderSpec::Model {
            file: model.clone(),
            model_id: tanhash::Encoder::model_id(&encoder).to_owned(),
        };
        drop(encoder);
        let catalog = Catalog::create(&dir, Layout::new(spec, SchemaFile::default()), false)?;
        let records = records(&dataset)?;
        let summary = index::fill(&catalog, records, OnBadDocument::Fail, 256 << 20, &dir)?;
        say(summary.to_line(&dir))?;
        drop(catalog);

        let searches = Searches::open(&dir, &dataset)?;
        let sections = searches.run()?;
        for section in &sections {
            say(String::new())?;
            say(format!("{} ({:.2} ms)", section.title, section.ms))?;
            for tile in section.tiles.iter().take(5) {
                say(format!("    {}", tile.caption))?;
            }
        }
        let page = out.join("demo.html");
        let headlines = reports.iter().map(learning::headline).collect();
        let shown = Page {
            title: "tanhash on Fashion-MNIST".to_owned(),
            facts: facts(
                &args,
                &dataset,
                training.as_ref().map(|summary| summary.seconds),
                headlines,
                &summary,
            ),
            sections,
        };
        fs::write(&page, shown.to_html()).with_context(|| page.display().to_string())?;
        if common.json {
            let figures: BTreeMap<String, f64> = reports
                .iter()
                .map(|report| (report.metric(), report.map))
                .collect();
            let sections: Vec<_> = shown
                .sections
                .iter()
                .map(|section| {
                    let hits: Vec<&str> = section
                        .tiles
                        .iter()
                        .map(|tile| tile.caption.as_str())
                        .collect();
                    json!({"title": section.title, "ms": section.ms, "hits": hits})
                })
                .collect();
            return output::json(&json!({
                "model": model, "training": training, "map": figures, "index": dir, "indexing": summary,
                "searches": sections, "page": page,
            }));
        }
        say(String::new())?;
        output::line(format!("look at {}", page.display()))?;
        output::line(format!(
            "search on: tanhash search --index {} --text \"dark boot\"",
            dir.display()
        ))
    }

    /// Whether a file lies below a folder, symbolic links and `..` followed.
    fn lies_in(file: &Path, dir: &Path) -> bool {
        let real = (fs::canonicalize(file), fs::canonicalize(dir));
        matches!(real, (Ok(file), Ok(dir)) if file.starts_with(&dir))
    }

    fn facts(
        args: &Args,
        dataset: &Dataset,
        train_s: Option<f64>,
        headlines: Vec<String>,
        summary: &index::Summary,
    ) -> Vec<String> {
        let training = match train_s {
            Some(seconds) => format!("{}-bit OrthoHash, trained in {seconds:.0} s", args.bits),
            None => "a model that was there already".to_owned(),
        };
        let indexing = format!(
            "{} documents encoded and indexed in {:.1} s; queries are test pictures the model never saw",
            summary.documents, summary.seconds
        );
        let mut facts = vec![training, dataset.protocol.clone()];
        facts.extend(headlines);
        facts.push(indexing);
        facts
    }

    /// Where the IDX files are: named, found, or fetched as a Debian package.
    fn data_folder(named: Option<&Path>, out: &Path) -> Result<PathBuf> {
        const FILE: &str = "train-images-idx3-ubyte";
        let holds =
            |dir: &Path| dir.join(FILE).is_file() || dir.join(format!("{FILE}.gz")).is_file();
        if let Some(dir) = named {
            ensure!(
                holds(dir),
                "expected {FILE} or {FILE}.gz in {}, found neither",
                dir.display()
            );
            return Ok(dir.to_owned());
        }
        let installed = Path::new("usr/share/datasets/fashion-mnist");
        let download = out.join("data");
        let places = [
            PathBuf::from(".data/fashion-mnist"),
            Path::new("/").join(installed),
            download.join(installed),
        ];
        if let Some(dir) = places.iter().find(|dir| holds(dir)) {
            return Ok(dir.clone());
        }
        let remedy = "give the folder of its four IDX files with --data DIR";
        fs::create_dir_all(&download).with_context(|| download.display().to_string())?;
        output::note(format!(
            "fetching Fashion-MNIST (31 MB): apt-get download {PACKAGE}"
        ));
        let fetched = Command::new("apt-get")
            .args(["-q", "download", PACKAGE])
            .current_dir(&download)
            .output();
        let fetched = fetched.with_context(|| {
            format!("Fashion-MNIST is not here and apt-get is not either; {remedy}")
        })?;
        if !fetched.status.success() {
            let text = String::from_utf8_lossy(&fetched.stderr);
            let reason = text
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or("no reason given");
            bail!("apt-get download {PACKAGE} failed ({reason}); {remedy}");
        }
        let package = fs::read_dir(&download)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| {
                format!(
                    "apt-get left no package in {}; {remedy}",
                    download.display()
                )
            })?;
        let unpacked = Command::new("dpkg")
            .arg("-x")
            .arg(&package)
            .arg(&download)
            .status();
        let unpacked = unpacked.with_context(|| format!("dpkg is not here; {remedy}"))?;
        ensure!(
            unpacked.success(),
            "dpkg -x {} failed; {remedy}",
            package.display()
        );
        let dir = download.join(installed);
        ensure!(holds(&dir), "the package {PACKAGE} has no {FILE}; {remedy}");
        Ok(dir)
    }

    /// What a shop would write under each class.
    const DESCRIPTIONS: [&str; 10] = [
        "short-sleeved top of jersey, for summer",
        "long legs, worn from the waist down",
        "knitted sweater with long sleeves, warm",
        "one piece from shoulder to knee",
        "outerwear with long sleeves, for winter",
        "open footwear with straps, for summer",
        "buttoned top with a collar",
        "sports footwear with laces, for running",
        "accessory with a handle to carry things",
        "closed footwear that covers the ankle, for winter",
    ];

    /// A class in words, and what can be seen of the picture without a network.
    fn describe(class: &str, label: u32, pixels: &[u8]) -> String {
        let inked: Vec<u32> = pixels
            .iter()
            .filter(|&&pixel| pixel > 20)
            .map(|&pixel| u32::from(pixel))
            .collect();
        let mean = inked.iter().sum::<u32>() / (inked.len().max(1) as u32);
        let tone = match mean {
            0..=95 => "dark",
            96..=165 => "medium",
            _ => "bright",
        };
        let size = if inked.len() * 2 > pixels.len() {
            "large"
        } else {
            "small"
        };
        let text = DESCRIPTIONS
            .get(label as usize)
            .copied()
            .unwrap_or_default();
        format!("{tone} {size} {class}: {text}")
    }

    fn class(dataset: &Dataset, label: u32) -> &str {
        dataset
            .class_names
            .get(label as usize)
            .map_or("", String::as_str)
    }

    /// The database pictures as documents: encoded files, as an application would hand them in.
    fn records(dataset: &Dataset) -> Result<Records> {
        let (set, names) = (dataset.database.clone(), dataset.class_names.clone());
        let expected = Some(set.len() as u64);
        let iter = (0..set.len()).map(move |row| {
            let label = set.labels[row];
            let name = names.get(label as usize).cloned().unwrap_or_default();
            let text = describe(&name, label, set.stored_picture(row).unwrap_or_default());
            let body = Body::Payload(Payload::Image(png(&set, row)?.into()));
            Ok(Entry::Record(Box::new(Record {
                key: row.to_string(),
                label: name,
                text,
                body,
                ..Record::default()
            })))
        });
        Ok(Records {
            expected,
            source: dataset.name.clone(),
            kind: Some(PayloadKind::Image),
            iter: Box::new(iter),
        })
    }

    /// The index opened again as a reader would, and the queries of the demo.
    struct Searches<'a> {
        catalog: Catalog,
        searcher: Searcher,
        dataset: &'a Dataset,
    }

    impl<'a> Searches<'a> {
        fn open(dir: &Path, dataset: &'a Dataset) -> Result<Searches<'a>> {
            let catalog = Catalog::open(dir, Use::Encode, None, CODE_FIELD)?;
            let searcher = catalog.index.searcher()?;
            Ok(Searches {
                catalog,
                searcher,
                dataset,
            })
        }

        /// The first test picture of a class, past `skip` of them.
        fn query(&self, label: u32, skip: usize) -> Result<usize> {
            let labels = &self.dataset.query.labels;
            let mut rows = (0..labels.len()).filter(|&row| labels[row] == label);
            rows.nth(skip)
                .with_context(|| format!("no test picture of class {label}"))
        }

        fn encode(&self, row: usize) -> Result<HashCode> {
            let payload = Payload::Image(png(&self.dataset.query, row)?.into());
            Ok(self
                .catalog
                .index
                .encode(self.catalog.fields.code, payload)?)
        }

        fn knn(&self, row: usize, k: usize) -> Result<KnnQuery> {
            Ok(KnnQuery::new(
                self.catalog.fields.code,
                self.encode(row)?,
                k,
            ))
        }

        fn text(&self, text: &str) -> Result<Box<dyn tantivy::query::Query>> {
            self.catalog.parse(text, vec![self.catalog.fields.text])
        }

        fn run(&self) -> Result<Vec<Section>> {
            let mut sections = Vec::new();
            for label in 0..10 {
                let row = self.query(label, 0)?;
                let knn = self.knn(row, HITS)?;
                let title = format!("Picture only: {}", class(self.dataset, label));
                let note = "The nearest codes, by whichever engine is fastest; exact in any case.";
                sections.push(self.section(
                    title,
                    note,
                    Some(row),
                    HybridSearch::new().knn(knn),
                )?);
            }
            for words in ["bright ankle boot", "warm sweater", "dark bag"] {
                let search = HybridSearch::new().text(self.text(words)?);
                let title = format!("Text only: “{words}”");
                sections.push(self.section(
                    title,
                    "Ranked by BM25 on the descriptions.",
                    None,
                    search,
                )?);
            }
            for (label, skip, words) in [
                (7, 1, "dark sneaker"),
                (4, 2, "bright coat"),
                (8, 3, "small bag"),
            ] {
                let row = self.query(label, skip)?;
                let search = HybridSearch::new()
                    .text(self.text(words)?)
                    .knn(self.knn(row, 1_000)?);
                let title = format!(
                    "Picture and text: {} + “{words}”",
                    class(self.dataset, label)
                );
                let note =
                    "Reciprocal rank fusion of the nearest 1,000 codes and the best 1,000 texts.";
                sections.push(self.section(title, note, Some(row), search)?);
            }
            for (label, filter) in [
                (0, "label:Shirt"),
                (5, "text:winter AND label:\"Ankle boot\""),
            ] {
                let row = self.query(label, 4)?;
                let search = HybridSearch::new()
                    .knn(self.knn(row, HITS)?)
                    .filter(self.text(filter)?);
                let title = format!(
                    "Picture, filtered: {}, only {filter}",
                    class(self.dataset, label)
                );
                let note =
                    "The filter acts before the cut to k, so there are as many hits as asked for.";
                sections.push(self.section(title, note, Some(row), search)?);
            }
            for label in [1, 9] {
                let row = self.query(label, 5)?;
                let range = HammingQuery::new(self.catalog.fields.code, self.encode(row)?, RADIUS);
                let title = format!(
                    "Radius {RADIUS}: everything near a {}",
                    class(self.dataset, label)
                );
                let search = HybridSearch::new().range(range).rank_window(100_000);
                sections.push(self.section(
                    title,
                    "Every code within the radius; the first are shown.",
                    Some(row),
                    search,
                )?);
            }
            Ok(sections)
        }

        fn section(
            &self,
            title: String,
            note: &str,
            query: Option<usize>,
            search: HybridSearch,
        ) -> Result<Section> {
            let search = search.limit(HITS);
            search.search(&self.searcher)?;
            let started = Instant::now();
            let result = search.search(&self.searcher)?;
            let ms = started.elapsed().as_secs_f64() * 1e3;
            let wanted = query.map(|row| self.dataset.query.labels[row]);
            let tiles = result
                .hits
                .iter()
                .map(|hit| {
                    let stored = self.catalog.record(&self.searcher, hit.address)?;
                    let row: usize = stored.key.parse().context("keys are row numbers")?;
                    let distance = hit.legs.iter().flatten().find_map(|leg| leg.distance);
                    let distance = distance
                        .map(|distance| format!(", distance {distance}"))
                        .unwrap_or_default();
                    let truth = wanted.map(|label| self.dataset.database.labels[row] == label);
                    let mark = match truth {
                        Some(true) => "✓ ",
                        Some(false) => "✗ ",
                        None => "",
                    };
                    Ok(Tile {
                        png: png(&self.dataset.database, row)?,
                        caption: format!("{mark}{}{distance}", stored.label),
                        detail: stored.text,
                        truth,
                    })
                })
                .collect::<Result<Vec<Tile>>>()?;
            let query = match query {
                None => None,
                Some(row) => Some(Tile {
                    png: png(&self.dataset.query, row)?,
                    caption: format!(
                        "query: {}",
                        class(self.dataset, self.dataset.query.labels[row])
                    ),
                    detail: format!("test picture {row}"),
                    truth: None,
                }),
            };
            let legs: Vec<String> = result
                .legs
                .iter()
                .map(|leg| format!("{} {}", leg.n_hits, leg.name))
                .collect();
            let note = format!(
                "{note} {} documents found ({}).",
                result.total,
                legs.join(", ")
            );
            Ok(Section {
                title,
                note,
                ms,
                query,
                tiles,
            })
        }
    }

    impl train::Args {
        /// The recipe of the demo: the defaults of `tanhash train`.
        fn for_demo(data: String, bits: usize, out: PathBuf, log: PathBuf) -> train::Args {
            train::Args {
                method: "orthohash".to_owned(),
                recipe: "default".to_owned(),
                data,
                bits,
                backbone: None,
                weights: None,
                freeze: false,
                feature_cache: None,
                augment: None,
                half: false,
                running_statistics: false,
                out,
                device: "auto".to_owned(),
                log: Some(log),
                ..train::Args::default()
            }
        }
    }
}
