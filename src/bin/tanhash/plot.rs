//! Plots as inline SVG: lines, bars, and a matrix of correlations. Numbers in, text out; no script.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ExtendedColorType, ImageEncoder};

use crate::page::escape;

/// The drawing area and its margins, in units of the view box.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 44.0;

/// One axis: its label and range.
pub struct Axis {
    pub label: String,
    pub from: f64,
    pub to: f64,
    /// Powers of ten at equal steps; `from` is above 0.
    pub log: bool,
}

impl Axis {
    pub fn new(label: &str, from: f64, to: f64) -> Axis {
        Axis {
            label: label.to_owned(),
            from,
            to: if to > from { to } else { from + 1.0 },
            log: false,
        }
    }

    /// Where a value lies, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.log { v.log10() } else { v };
        (scale(value) - scale(self.from)) / (scale(self.to) - scale(self.from))
    }

    /// Round values across the range, about five of them.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = self.from.log10().ceil() as i32..=self.to.log10().floor() as i32;
            return decades.map(|power| 10f64.powi(power)).collect();
        }
        let rough = (self.to - self.from) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(10.0 * power);
        let (first, last) = (
            (self.from / step).ceil() as i64,
            (self.to / step + 1e-9).floor() as i64,
        );
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// A named line.
pub struct Line {
    pub name: &'static str,
    pub color: &'static str,
    pub points: Vec<(f64, f64)>,
    /// Fills the area down to the horizontal axis.
    pub fill: bool,
    /// Marks each point.
    pub dots: bool,
}

pub const BLUE: &str = "#1f6feb";
pub const RED: &str = "#d1433b";
pub const GREEN: &str = "#1a7f37";

/// Without trailing zeros, and short for large and small numbers.
fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1e5 || (size > 0.0 && size < 1e-3) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn text(x: f64, y: f64, anchor: &str, content: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(content)
    )
}

/// A drawing of this height with what is in it.
fn svg(height: f64, title: &str, content: &str) -> String {
    let title = escape(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{title}\">\n<text class=\"title\" x=\"{LEFT}\" \
         y=\"16\">{title}</text>\n{content}</svg>\n"
    )
}

/// Grid lines, numbers and labels of both axes.
fn frame(x: &Axis, y: &Axis) -> String {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut out = String::new();
    for tick in x.ticks() {
        let at = LEFT + x.place(tick) * (right - LEFT);
        out += &format!(
            "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>"
        );
        out += &text(at, bottom + 15.0, "middle", &number(tick));
    }
    for tick in y.ticks() {
        let at = bottom - y.place(tick) * (bottom - TOP);
        out += &format!(
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>"
        );
        out += &text(LEFT - 6.0, at + 3.5, "end", &number(tick));
    }
    out += &format!("<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\n");
    out += &text((LEFT + right) / 2.0, HEIGHT - 8.0, "middle", &x.label);
    out += &format!(
        "<text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
        (TOP + bottom) / 2.0,
        escape(&y.label)
    );
    out
}

/// Lines over two axes, with a legend if there are several: at the top right, or at the bottom if a
/// point of theirs is there.
pub fn lines(title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> String {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut out = frame(x, y);
    let (legend_left, legend_rows) = (right - 112.0, 15.0 * lines.len() as f64);
    let mut legend_top = TOP;
    for line in lines {
        let places: Vec<(f64, f64)> = line
            .points
            .iter()
            .map(|&(px, py)| {
                (
                    LEFT + x.place(px).clamp(0.0, 1.0) * (right - LEFT),
                    bottom - y.place(py).clamp(0.0, 1.0) * (bottom - TOP),
                )
            })
            .collect();
        let is_crossed = |&(px, py): &(f64, f64)| px >= legend_left && py < TOP + legend_rows + 5.0;
        if places.iter().any(is_crossed) {
            legend_top = bottom - legend_rows - 5.0;
        }
        let path: Vec<String> = places
            .iter()
            .map(|(px, py)| format!("{px:.1} {py:.1}"))
            .collect();
        let color = line.color;
        if let (true, Some(first), Some(last)) = (line.fill, places.first(), places.last()) {
            out += &format!(
                "<path d=\"M{:.1} {bottom}L{}L{:.1} {bottom}Z\" fill=\"{color}\" fill-opacity=\".18\"/>",
                first.0,
                path.join("L"),
                last.0
            );
        }
        if !path.is_empty() {
            out += &format!(
                "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.8\"/>\n",
                path.join("L")
            );
        }
        if line.dots {
            for (px, py) in places {
                out +=
                    &format!("<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.4\" fill=\"{color}\"/>");
            }
        }
    }
    if lines.len() > 1 {
        for (line, row) in lines.iter().zip(0..) {
            let y = legend_top + 12.0 + 15.0 * f64::from(row);
            out += &format!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{}\"/>",
                legend_left,
                y - 9.0,
                line.color
            );
            out += &text(right - 97.0, y, "start", line.name);
        }
    }
    svg(HEIGHT, title, &out)
}

/// A vertical bar for each value at 0, 1, 2, .., and a dashed line at `mark`.
pub fn columns(title: &str, x_label: &str, y: &Axis, values: &[f64], mark: f64) -> String {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = Axis::new(x_label, 0.0, values.len() as f64);
    let mut out = frame(&x, y);
    let width = (right - LEFT) / values.len().max(1) as f64;
    for (i, &value) in values.iter().enumerate() {
        let height = y.place(value).clamp(0.0, 1.0) * (bottom - TOP);
        out += &format!(
            "<rect x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{height:.1}\" fill=\"{BLUE}\" fill-opacity=\".75\"/>",
            LEFT + i as f64 * width,
            bottom - height,
            (width * 0.85).max(0.2)
        );
    }
    let at = bottom - y.place(mark) * (bottom - TOP);
    out += &format!(
        "<line class=\"mark\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>"
    );
    svg(HEIGHT, title, &out)
}

/// A horizontal bar from 0 to 1 for each name.
pub fn bars(title: &str, rows: &[(String, f64)]) -> String {
    const ROW: f64 = 15.0;
    const NAMES: f64 = 150.0;
    let right = WIDTH - 50.0;
    let bottom = TOP + ROW * rows.len() as f64;
    let mut out = String::new();
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let at = NAMES + tick * (right - NAMES);
        out += &format!(
            "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>"
        );
        out += &text(at, bottom + 15.0, "middle", &number(tick));
    }
    for ((name, value), row) in rows.iter().zip(0..) {
        let y = TOP + ROW * f64::from(row);
        let short: String = match name.chars().count() {
            0..=22 => name.clone(),
            _ => name.chars().take(21).chain(['…']).collect(),
        };
        let width = value.clamp(0.0, 1.0) * (right - NAMES);
        out += &text(NAMES - 6.0, y + 11.0, "end", &short);
        out += &format!(
            "<rect x=\"{NAMES}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{}\" fill=\"{BLUE}\" fill-opacity=\".75\"/>",
            y + 2.0,
            ROW - 4.0
        );
        out += &text(
            NAMES + width + 5.0,
            y + 11.0,
            "start",
            &format!("{value:.3}"),
        );
    }
    out += &text(
        (NAMES + right) / 2.0,
        bottom + 34.0,
        "middle",
        "average precision",
    );
    svg(bottom + 44.0, title, &out)
}

/// A square matrix of values from -1 to 1: blue, white, red.
pub fn heat_map(title: &str, axis: &str, matrix: &[f32], n: usize) -> String {
    const SIDE: f64 = 250.0;
    let color = |value: f64| -> [u8; 3] {
        let value = value.clamp(-1.0, 1.0);
        // A root, because most correlations are small.
        let strength = value.abs().sqrt();
        let end = if value < 0.0 {
            [31.0, 111.0, 235.0]
        } else {
            [209.0, 67.0, 59.0]
        };
        end.map(|c: f64| (255.0 + (c - 255.0) * strength).round() as u8)
    };
    let png = |pixels: &[u8], width: usize, height: usize| -> String {
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes)
            .write_image(pixels, width as u32, height as u32, ExtendedColorType::Rgb8)
            .expect("as many pixels as the size says, into memory");
        STANDARD.encode(bytes)
    };
    let place = |x: f64, y: f64, width: f64, height: f64, data: &str| {
        format!(
            "<image x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" preserveAspectRatio=\"none\" \
             style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{data}\"/>\n"
        )
    };
    let pixels: Vec<u8> = matrix.iter().flat_map(|&v| color(f64::from(v))).collect();
    let mut out = place(LEFT, TOP, SIDE, SIDE, &png(&pixels, n, n));
    let range = Axis::new(axis, 0.0, n as f64);
    for tick in range.ticks() {
        let at = range.place(tick) * SIDE;
        out += &text(LEFT + at, TOP + SIDE + 15.0, "middle", &number(tick));
        out += &text(LEFT - 6.0, TOP + at + 3.5, "end", &number(tick));
    }
    out += &text(LEFT + SIDE / 2.0, TOP + SIDE + 34.0, "middle", axis);
    out += &format!(
        "<text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
        TOP + SIDE / 2.0,
        escape(axis)
    );
    // The scale, 1 at the top.
    let steps = 101;
    let scale: Vec<u8> = (0..steps)
        .flat_map(|i| color(1.0 - 2.0 * f64::from(i) / f64::from(steps - 1)))
        .collect();
    let x = LEFT + SIDE + 40.0;
    out += &place(x, TOP, 14.0, SIDE, &png(&scale, 1, steps as usize));
    for value in [1.0, 0.5, 0.0, -0.5, -1.0] {
        let y = TOP + (1.0 - value) / 2.0 * SIDE + 3.5;
        out += &text(x + 20.0, y, "start", &number(value));
    }
    svg(TOP + SIDE + 44.0, title, &out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(Axis::new("", 0.0, 1.0).ticks().len(), 6);
        assert_eq!(Axis::new("", 0.0, 64.0).ticks(), [0.0, 20.0, 40.0, 60.0]);
        let log = Axis {
            log: true,
            ..Axis::new("", 1.0, 1000.0)
        };
        assert_eq!(log.ticks(), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(log.place(100.0), 2.0 / 3.0);
        assert_eq!(Axis::new("", 3.0, 3.0).place(3.0), 0.0);
        assert_eq!(
            (number(0.25), number(20.0), number(2e6)),
            ("0.25".into(), "20".into(), "2e6".into())
        );
    }

    #[test]
    fn every_mark_lies_in_the_picture() {
        let line = Line {
            name: "a",
            color: BLUE,
            points: vec![(-5.0, 0.0), (0.5, 7.0)],
            fill: true,
            dots: true,
        };
        let plot = lines(
            "t<",
            &Axis::new("x", 0.0, 1.0),
            &Axis::new("y", 0.0, 1.0),
            &[line],
        );
        assert!(plot.contains("t&lt;") && plot.contains(">x</text>") && plot.contains(">y</text>"));
        for circle in plot.split("<circle cx=\"").skip(1) {
            let x: f64 = circle.split('"').next().unwrap().parse().unwrap();
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{x}");
        }
        assert!(!plot.contains("NaN"));
        let map = heat_map("m", "bit", &[1.0, -0.5, -0.5, 0.0], 2);
        assert_eq!(map.matches("data:image/png").count(), 2);
    }
}
