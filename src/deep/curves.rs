//! The curves of a run as an SVG picture: loss and its terms, accuracy and validation, over steps.
//!
//! Plain polylines on two panels, readable in any browser. Long runs are drawn as means of neighbouring
//! steps. Leaves out everything a plotting library has beyond that.

use std::fmt::Write;

use crate::deep::run_log::TrainProgress;

const WIDTH: f64 = 860.0;
const PANEL: f64 = 240.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 160.0;
const TOP: f64 = 34.0;
/// Points of a line at most.
const POINTS_MAX: usize = 400;
const COLOURS: [&str; 6] = [
    "#0b6e99", "#c4572b", "#4f7f3a", "#7a4f9c", "#a98600", "#555555",
];

/// One line: its name and its points (step, value).
type Line = (String, Vec<(f64, f64)>);

/// The picture of these steps.
pub(crate) fn svg(entries: &[TrainProgress]) -> String {
    let mut losses: Vec<Line> = Vec::new();
    let mut figures: Vec<Line> = Vec::new();
    let mut add = |to_losses: bool, name: String, step: usize, value: f64| {
        let lines = if to_losses { &mut losses } else { &mut figures };
        let point = (step as f64, value);
        match lines.iter_mut().find(|line| line.0 == name) {
            Some(line) => line.1.push(point),
            None => lines.push((name, vec![point])),
        }
    };
    for entry in entries {
        let name = |what: &str| format!("{} {what}", entry.stage);
        add(true, name("loss"), entry.step, entry.loss);
        if entry.terms.len() > 1 {
            for (term, &value) in &entry.terms {
                add(true, name(term), entry.step, value);
            }
        }
        if let Some(accuracy) = entry.accuracy {
            add(false, name("accuracy"), entry.step, accuracy);
        }
        if let Some(validation) = entry.validation {
            add(false, "validation".to_owned(), entry.step, validation);
        }
    }
    let steps = entries.last().map_or(1.0, |entry| entry.steps as f64);
    let height = 2.0 * (PANEL + TOP) + 40.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    panel(&mut out, "loss", TOP, steps, &losses);
    panel(
        &mut out,
        "accuracy and validation",
        2.0 * TOP + PANEL,
        steps,
        &figures,
    );
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, title: &str, top: f64, steps: f64, lines: &[Line]) {
    let values = || {
        lines
            .iter()
            .flat_map(|line| line.1.iter().map(|point| point.1))
    };
    let low = values().fold(0.0, f64::min);
    let high = values().fold(f64::MIN_POSITIVE, f64::max);
    let width = WIDTH - LEFT - RIGHT;
    let x = |step: f64| LEFT + width * step / steps.max(1.0);
    let y = |value: f64| top + PANEL * (1.0 - (value - low) / (high - low));
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">{title}</text>\n\
         <rect x=\"{LEFT}\" y=\"{top}\" width=\"{width}\" height=\"{PANEL}\" fill=\"none\" stroke=\"#999\"/>",
        top - 8.0
    );
    for part in 0..=4 {
        let share = f64::from(part) / 4.0;
        let value = low + (high - low) * share;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.3}</text>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0}</text>",
            LEFT - 6.0,
            y(value) + 4.0,
            x(steps * share),
            top + PANEL + 15.0,
            steps * share
        );
    }
    for (at, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let neighbours = points.len().div_ceil(POINTS_MAX).max(1);
        let mut path = String::new();
        for part in points.chunks(neighbours) {
            let n = part.len() as f64;
            let step = part.iter().map(|point| point.0).sum::<f64>() / n;
            let value = part.iter().map(|point| point.1).sum::<f64>() / n;
            let _ = write!(path, "{:.1},{:.1} ", x(step), y(value));
        }
        let label_y = top + 14.0 + 16.0 * at as f64;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n\
             <text x=\"{:.1}\" y=\"{label_y:.1}\" fill=\"{colour}\">{name}</text>",
            path.trim_end(),
            WIDTH - RIGHT + 8.0
        );
    }
}
