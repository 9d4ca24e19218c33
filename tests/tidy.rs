//! The shape of the sources. Guards what no compiler checks: which floor may import which, where tantivy,
//! libtorch and `unsafe` may appear, that every file says what it is, and that the pages under `docs/`
//! name the code as it is. Reads text; knows nothing of what the code does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the ground up. A module imports lower floors only, and none of its own floor; the five of
/// the search floor are one unit and may import each other.
const FLOORS: [&[&str]; 9] = [
    &["error"],
    &["files"],
    &["code", "labels", "media", "npy", "random"],
    &["centers", "data", "hamming"],
    &["topk"],
    SEARCH,
    &["encode", "eval"],
    &["segment"],
    &["plugin", "deep"],
];
const SEARCH: &[&str] = &["engine", "finds", "plan", "scan", "cluster", "mih"];

/// Training and search meet in the program only, so `deep` imports less than its floor would allow.
const DEEP_MAY_IMPORT: [&str; 11] = [
    "error", "files", "code", "labels", "media", "npy", "random", "centers", "data", "encode",
    "eval",
];

/// A foreign crate, and the folders that may name it.
const FENCED_CRATES: [(&str, &[&str]); 2] = [
    ("tantivy", &["src/plugin/", "src/bin/"]),
    ("tch", &["src/deep/"]),
];

/// The files that may hold `unsafe`.
const UNSAFE_FILES: [&str; 4] = [
    "src/npy/map.rs",
    "src/hamming/x86_64.rs",
    "src/hamming/aarch64.rs",
    "src/deep/device.rs",
];

/// Lines above an unsafe block among which its `SAFETY:` stands.
const SAFETY_LINES: usize = 8;

/// Constants that `docs/FORMAT.md` must name.
const FORMAT_CONSTANTS: [&str; 8] = [
    "MAGIC",
    "FORMAT_VERSION",
    "OLDEST_READ_VERSION",
    "HEADER_BYTES",
    "SECTION_ALIGN",
    "ENTRY_BYTES",
    "TRAILER_BYTES",
    "EXTENSION",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A source file: its path from the root, its text, and its text with comments and literals blanked.
struct Source {
    path: String,
    text: String,
    code: String,
}

fn sources(folders: &[&str]) -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        let entries =
            fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    folders
        .iter()
        .for_each(|folder| walk(&root().join(folder), &mut found));
    found.sort();
    let sources = found.into_iter().map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/");
        Source {
            path,
            code: blanked(&text),
            text,
        }
    });
    sources.collect()
}

/// The text with comments, strings and characters replaced by blanks; lines stay where they are.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut blank = |from: usize, to: usize| {
        code[from..to]
            .iter_mut()
            .filter(|byte| **byte != b'\n')
            .for_each(|byte| *byte = b' ');
    };
    let find = |from: usize, what: &str| text[from..].find(what).map_or(text.len(), |at| from + at);
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let hashes = rest
            .iter()
            .skip(1)
            .take_while(|&&byte| byte == b'#')
            .count();
        let end = if rest.starts_with(b"//") {
            find(at, "\n")
        } else if rest.starts_with(b"/*") {
            let (mut depth, mut end) = (0, at);
            loop {
                match &bytes[end..] {
                    [b'/', b'*', ..] => (depth, end) = (depth + 1, end + 2),
                    [b'*', b'/', ..] => (depth, end) = (depth - 1, end + 2),
                    [] => break,
                    _ => end += 1,
                }
                if depth == 0 {
                    break;
                }
            }
            end
        } else if rest[0] == b'r'
            && !in_word_except_b(bytes, at, in_word)
            && rest.get(1 + hashes) == Some(&b'"')
        {
            let close = format!("\"{}", "#".repeat(hashes));
            (find(at + 2 + hashes, &close) + close.len()).min(text.len())
        } else if rest[0] == b'"' {
            let mut end = at + 1;
            while end < bytes.len() && bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            (end + 1).min(bytes.len())
        } else if rest[0] == b'\'' {
            // A character ends with a quote; a lifetime does not.
            match rest {
                [_, b'\\', _, ..] => (find(at + 3, "'") + 1).min(text.len()),
                _ => {
                    let next = text[at + 1..].chars().next().map_or(1, char::len_utf8);
                    if rest.get(1 + next) == Some(&b'\'') {
                        at + 2 + next
                    } else {
                        at + 1
                    }
                }
            }
        } else {
            at += 1;
            continue;
        };
        blank(at, end);
        at = end;
    }
    String::from_utf8(code).expect("whole characters were blanked")
}

/// `br"..."` is a raw string whose `r` follows a letter.
fn in_word_except_b(bytes: &[u8], at: usize, in_word: bool) -> bool {
    let after_b =
        at > 0 && bytes[at - 1] == b'b' && (at == 1 || !bytes[at - 2].is_ascii_alphanumeric());
    in_word && !after_b
}

/// Every place of `word` in `code`, as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            let before = at
                .checked_sub(1)
                .and_then(|before| code.as_bytes().get(before));
            !part(before) && !part(code.as_bytes().get(at + word.len()))
        })
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The names that follow `crate::` or a brace of several, with their places.
fn names_after(code: &str, prefix: &str) -> Vec<(usize, String)> {
    let name = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let Some(inner) = rest.strip_prefix('{') else {
            found.push((at, name(rest)));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (place, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                ',' if depth == 0 => {
                    found.push((at, name(&inner[start..place])));
                    start = place + 1;
                }
                '}' if depth == 0 => {
                    found.push((at, name(&inner[start..place])));
                    break;
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

/// The modules of the library in the order of `lib.rs`, and what it re-exports from which.
fn library() -> (Vec<String>, BTreeMap<String, String>) {
    let code = blanked(&read("src/lib.rs"));
    let word = |text: &str| -> String {
        text.trim()
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    let (mut modules, mut exports) = (Vec::new(), BTreeMap::new());
    for statement in code.split_inclusive([';', '{', '}']) {
        let lines: Vec<&str> = statement
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .collect();
        let statement = lines.join(" ");
        let statement = statement.trim().trim_start_matches("pub ");
        if let Some(name) = statement
            .strip_prefix("mod ")
            .filter(|_| statement.ends_with(';'))
        {
            modules.push(word(name));
        }
    }
    for (at, _) in code.match_indices("pub use ") {
        let rest = &code[at + 8..];
        let module = word(rest);
        for (_, name) in names_after(&rest[..rest.find(';').unwrap()], &format!("{module}::")) {
            exports.insert(name, module.clone());
        }
    }
    (modules, exports)
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn modules_stand_on_floors_in_reading_order() {
    let (modules, _) = library();
    let on_floors: Vec<&str> = FLOORS
        .iter()
        .flat_map(|floor| floor.iter().copied())
        .collect();
    for module in &modules {
        assert!(
            on_floors.contains(&module.as_str()),
            "module {module} stands on no floor of tests/tidy.rs"
        );
    }
    for module in &on_floors {
        assert!(
            modules.iter().any(|of| of == module),
            "floor module {module} is not in src/lib.rs"
        );
    }
    let floors: Vec<usize> = modules
        .iter()
        .filter_map(|module| floor_of(module))
        .collect();
    assert!(
        floors.is_sorted(),
        "src/lib.rs lists modules from the ground up, got {modules:?}"
    );
}

#[test]
fn imports_lead_down() {
    let (modules, exports) = library();
    let mut problems = Vec::new();
    for source in sources(&["src"]) {
        if source.path == "src/lib.rs" || source.path.starts_with("src/bin/") {
            continue;
        }
        let inside = source
            .path
            .trim_start_matches("src/")
            .trim_end_matches(".rs");
        let module = inside.split('/').next().unwrap();
        let floor = floor_of(module).unwrap_or_else(|| panic!("{} is of no module", source.path));
        for (at, name) in names_after(&source.code, "crate::") {
            let target = exports.get(&name).unwrap_or(&name);
            let place = format!("{}:{}", source.path, line_of(&source.code, at));
            if target == module {
                continue;
            }
            let Some(target_floor) = floor_of(target) else {
                problems.push(format!(
                    "{place}: crate::{name} is of no module in src/lib.rs"
                ));
                continue;
            };
            let one_unit = SEARCH.contains(&module) && SEARCH.contains(&target.as_str());
            if target_floor >= floor && !one_unit {
                problems.push(format!(
                    "{place}: {module} imports {target}, which is not below it"
                ));
            }
            if module == "deep" && !DEEP_MAY_IMPORT.contains(&target.as_str()) {
                problems.push(format!(
                    "{place}: deep imports {target}, of which it needs to know nothing"
                ));
            }
        }
        // Ways round `crate::`.
        let top = !inside.contains('/') || inside.ends_with("/mod");
        for (number, line) in (1..).zip(source.code.lines()) {
            if line.contains("super::super::") || (top && line.starts_with("use super::")) {
                problems.push(format!(
                    "{}:{number}: write crate:: where a path leaves its module",
                    source.path
                ));
            }
        }
    }
    assert!(
        modules.len() > 10,
        "src/lib.rs was read wrongly: {modules:?}"
    );
    report(&problems);
}

#[test]
fn tantivy_and_libtorch_stay_behind_their_fences() {
    let mut problems = Vec::new();
    for source in sources(&["src"]) {
        for (name, folders) in FENCED_CRATES {
            if folders.iter().any(|folder| source.path.starts_with(folder)) {
                continue;
            }
            for at in words(&source.code, name) {
                let (before, after) = (
                    source.code[..at].trim_end(),
                    &source.code[at + name.len()..],
                );
                if after.starts_with("::")
                    || before.ends_with("use")
                    || before.ends_with("extern crate")
                {
                    let line = line_of(&source.code, at);
                    problems.push(format!(
                        "{}:{line}: only {} name {name}",
                        source.path,
                        folders.join(" and ")
                    ));
                }
            }
        }
    }
    report(&problems);
}

#[test]
fn unsafe_is_fenced_and_explained() {
    let mut problems = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        let lines: Vec<&str> = source.text.lines().collect();
        for at in words(&source.code, "unsafe") {
            let line = line_of(&source.code, at);
            if !UNSAFE_FILES.contains(&source.path.as_str()) {
                problems.push(format!(
                    "{}:{line}: unsafe outside {}",
                    source.path,
                    UNSAFE_FILES.join(", ")
                ));
                continue;
            }
            let rest = source.code[at + "unsafe".len()..].trim_start();
            let needs_reason = rest.starts_with('{') || rest.starts_with("impl");
            let near = &lines[line.saturating_sub(SAFETY_LINES + 1)..line];
            if needs_reason && !near.iter().any(|line| line.contains("SAFETY:")) {
                problems.push(format!(
                    "{}:{line}: an unsafe block without a SAFETY: comment above it",
                    source.path
                ));
            }
        }
    }
    report(&problems);
}

#[test]
fn every_file_says_what_it_is() {
    let mut problems = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        if !source.text.starts_with("//! ") {
            problems.push(format!(
                "{}:1: expected a //! line that says what the file is",
                source.path
            ));
        }
    }
    report(&problems);
}

#[test]
fn nothing_is_left_half_done() {
    let mut problems = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        for name in ["dbg", "todo", "unimplemented"] {
            for at in words(&source.code, name) {
                if source.code[at + name.len()..].starts_with('!') {
                    problems.push(format!(
                        "{}:{}: {name}!",
                        source.path,
                        line_of(&source.code, at)
                    ));
                }
            }
        }
    }
    report(&problems);
}

/// The rows of a table under a heading, without its head.
fn table<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let section = page
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no {heading}"))
        .1;
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|'));
    rows.skip(2)
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// The value of a constant in a source text: a literal, or one shift of integers.
fn constant(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("const {name}:"))?;
    let (_, rest) = rest.split_once('=')?;
    let (value, _) = rest.split_once(';')?;
    let value = value
        .trim()
        .trim_start_matches("*b")
        .trim_matches('"')
        .replace('_', "");
    match value.split_once("<<") {
        None => Some(value),
        Some((base, shift)) => {
            let (base, shift): (u64, u32) = (base.trim().parse().ok()?, shift.trim().parse().ok()?);
            Some((base << shift).to_string())
        }
    }
}

#[test]
fn the_format_page_has_the_constants_of_the_code() {
    let page = read("docs/FORMAT.md");
    let rows = table(&page, "## Constants");
    let mut named = Vec::new();
    for row in &rows {
        let [what, value, place] = row[..] else {
            panic!("FORMAT.md: expected three columns in {row:?}")
        };
        let mut quoted = place.split('`').skip(1).step_by(2);
        let (file, name) = (quoted.next().unwrap(), quoted.next().unwrap());
        let found = constant(&read(file), name);
        let found =
            found.unwrap_or_else(|| panic!("FORMAT.md, {what}: {file} has no constant {name}"));
        let stated = value.trim_matches('`').replace('_', "");
        assert_eq!(
            stated, found,
            "FORMAT.md, {what}: the page against {name} in {file}"
        );
        named.push(name);
    }
    for name in FORMAT_CONSTANTS {
        assert!(
            named.contains(&name),
            "FORMAT.md: expected a row for {name}"
        );
    }
    let header = read("src/segment/header.rs");
    let kinds = table(&page, "### Section kinds");
    assert_eq!(
        kinds.len(),
        header.matches("=> \"").count(),
        "FORMAT.md: one row a section kind"
    );
    for row in kinds {
        let [kind, name, ..] = row[..] else {
            panic!("FORMAT.md: expected a kind and a name in {row:?}")
        };
        let variant = header
            .split_once(&format!("=> {kind},"))
            .map(|(before, _)| before.rsplit("::").next());
        let variant = variant
            .flatten()
            .unwrap_or_else(|| panic!("FORMAT.md: header.rs has no kind {kind}"))
            .trim();
        let line = format!("SectionKind::{variant} => \"{name}\"");
        assert!(
            header.contains(&line),
            "FORMAT.md, kind {kind}: expected `{line}` in header.rs"
        );
    }
}

#[test]
fn the_architecture_page_names_every_module() {
    let page = read("docs/ARCHITECTURE.md");
    for module in library().0 {
        let file = format!("src/{module}.rs");
        let name = match root().join(&file).is_file() {
            true => file,
            false => format!("src/{module}/"),
        };
        assert!(
            page.contains(&format!("`{name}`")),
            "ARCHITECTURE.md: nothing about {name}"
        );
    }
}

#[test]
fn the_reader_of_sources_sees_code_only() {
    let text = "use crate::{code::X, error}; // unsafe\nlet s = \"tch::\\\" unsafe\"; let r = br#\"unsafe \"# ;\n\
                let c = '\"'; fn f<'a>(x: &'a str) {} /* todo!() /* deep */ */ crate::Error";
    let code = blanked(text);
    assert!(
        !code.contains("unsafe") && !code.contains("tch") && !code.contains("todo"),
        "{code}"
    );
    let names: Vec<String> = names_after(&code, "crate::")
        .into_iter()
        .map(|(_, name)| name)
        .collect();
    assert_eq!(names, ["code", "error", "Error"]);
    assert!(code.contains("fn f<") && code.contains("str) {}"), "{code}");
    assert_eq!(words("tch::x catch::y tch_z", "tch").count(), 1);
    assert_eq!(
        constant("pub const A: usize = 1 << 16;", "A").unwrap(),
        "65536"
    );
}

#[test]
fn make_runs_every_test_that_needs_a_feature() {
    let manifest = read("Cargo.toml");
    let mut needing: Vec<&str> = manifest
        .split("[[test]]")
        .skip(1)
        .filter(|section| !section.contains("cuda-tests"))
        .filter_map(|section| section.split('"').nth(1))
        .collect();
    needing.sort_unstable();
    let makefile = read("Makefile");
    let listed = makefile
        .lines()
        .find_map(|line| line.strip_prefix("FULL_TESTS := "))
        .expect("the Makefile lists the tests that need a feature");
    assert_eq!(listed.split(' ').collect::<Vec<_>>(), needing);
}
