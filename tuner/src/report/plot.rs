//! One kind of plot, as SVG: marks over two axes, each linear or logarithmic.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::ops::Range;

/// Where the drawing is made: twice as large as it is shown, since its coordinates are whole pixels.
const SCALE: u32 = 2;
const FONT: (&str, u32) = ("sans-serif", 12 * SCALE);

/// Colours that people with any colour vision tell apart (Okabe and Ito), dark enough for paper.
pub const GREY: RGBColor = RGBColor(0x8c, 0x95, 0x9f);
pub const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
pub const ORANGE: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
pub const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const INK: RGBColor = RGBColor(0x33, 0x3a, 0x42);
const MESH: RGBColor = RGBColor(0xe3, 0xe6, 0xea);

/// What an axis shows.
#[derive(Clone)]
pub struct Axis {
    title: String,
    is_logarithmic: bool,
    /// On the axis: logarithms where it is logarithmic.
    range: Range<f64>,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From the least to the largest of `values` with some room.
    pub fn linear(title: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let range = spread(values, 0.05);
        let ticks = steps(&range);
        Self { title: title.to_owned(), is_logarithmic: false, range, ticks }
    }

    /// The same of positive values, logarithmic.
    pub fn logarithmic(title: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|v| *v > 0.0).map(f64::log10);
        let range = spread(positive, 0.05);
        let of_decade = |mantissa: i32, power: i32| {
            let value = f64::from(mantissa) * 10_f64.powi(power);
            (value.log10(), number(value))
        };
        let powers = range.start.floor() as i32..=range.end.ceil() as i32;
        let mut ticks: Vec<(f64, String)> = powers
            .flat_map(|power| [1, 2, 5].map(|mantissa| of_decade(mantissa, power)))
            .filter(|(at, _)| range.contains(at))
            .collect();
        if ticks.len() > 8 {
            ticks.retain(|(at, _)| (at - at.round()).abs() < 1e-9);
        } else if ticks.len() < 4 {
            let values = 10_f64.powf(range.start)..10_f64.powf(range.end);
            ticks = steps(&values).into_iter().map(|(v, text)| (v.log10(), text)).collect();
        }
        Self { title: title.to_owned(), is_logarithmic: true, range, ticks }
    }

    /// One place per name, at 0, 1, 2 and so on.
    pub fn names(title: &str, names: Vec<String>) -> Self {
        let range = -0.5..names.len().max(1) as f64 - 0.5;
        let ticks = names.into_iter().enumerate().map(|(at, name)| (at as f64, name)).collect();
        Self { title: title.to_owned(), is_logarithmic: false, range, ticks }
    }

    /// The axis the other way round, from top to bottom.
    pub fn reversed(self) -> Self {
        Self { range: self.range.end..self.range.start, ..self }
    }

    fn place(&self, value: f64) -> f64 {
        if self.is_logarithmic { value.log10() } else { value }
    }
}

/// Of places on the axis, which are logarithms where it is logarithmic.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (place - self.range.start) / (self.range.end - self.range.start);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let bold = hint.bold_points() > 0;
        self.ticks.iter().filter(|_| bold).map(|tick| tick.0).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, place: &f64) -> String {
        let tick = self.ticks.iter().find(|tick| tick.0 == *place);
        tick.map(|tick| tick.1.clone()).unwrap_or_default()
    }
}

/// Something drawn, in values of the axes.
pub enum Mark {
    /// Filled, of this radius.
    Dot([f64; 2], RGBColor, u32),
    /// Through these points.
    Line(Vec<[f64; 2]>, RGBColor),
    /// From one end of the plot to the other at this y.
    Level(f64, RGBColor),
    /// The same at this x.
    Upright(f64, RGBColor),
    /// From the first x to the second at y.
    Span([f64; 2], f64, RGBColor),
}

/// An SVG element of `width` by `height` pixels.
pub fn svg(width: u32, height: u32, axes: [Axis; 2], marks: &[Mark]) -> String {
    let mut text = String::new();
    // A string can always be written to, and all sizes are positive.
    draw(&mut text, [width * SCALE, height * SCALE], &axes, marks).expect("a plot is drawn");
    text
}

/// Dots of operations per byte and Gflop/s under the peak (Gflop/s) and under each bandwidth (GB/s), the
/// last of which is drawn last and is the largest.
pub fn roofline(
    title: &str,
    peak: f64,
    bandwidths: &[(f64, RGBColor)],
    dots: Vec<([f64; 2], RGBColor, u32)>,
) -> String {
    let bandwidth = bandwidths.last().map_or(1.0, |last| last.0);
    let ridge = peak / bandwidth;
    let least = dots.iter().map(|d| d.0[0]).fold(ridge, f64::min) / 3.0;
    let most = dots.iter().map(|d| d.0[0]).fold(ridge, f64::max) * 3.0;
    let lowest = dots.iter().map(|d| d.0[1]).fold(peak, f64::min) / 1.5;
    let roof = |(bandwidth, colour): &(f64, RGBColor)| {
        let line = vec![[least, least * bandwidth], [peak / bandwidth, peak], [most, peak]];
        Mark::Line(line, *colour)
    };
    let mut marks: Vec<Mark> = bandwidths.iter().map(roof).collect();
    marks.extend(dots.into_iter().map(|(at, colour, radius)| Mark::Dot(at, colour, radius)));
    let axes = [
        Axis::logarithmic(title, [least, most]),
        Axis::logarithmic("Gflop/s", [lowest.min(least * bandwidth), peak]),
    ];
    svg(520, 300, axes, &marks)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(text: &mut String, [width, height]: [u32; 2], axes: &[Axis; 2], marks: &[Mark]) -> Drawn {
    let [x, y] = axes;
    let root = SVGBackend::with_string(text, (width, height)).into_drawing_area();
    let widest = y.ticks.iter().map(|tick| tick.1.chars().count()).max().unwrap_or(0) as u32;
    let mut chart = ChartBuilder::on(&root)
        .margin(6 * SCALE)
        .x_label_area_size(38 * SCALE)
        .y_label_area_size((24 + 7 * widest.max(2)) * SCALE)
        .build_cartesian_2d(x.clone(), y.clone())?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(MESH)
        .axis_style(INK)
        .label_style(FONT.into_font().color(&INK))
        .axis_desc_style(FONT.into_font().color(&INK))
        .x_desc(x.title.clone());
    if !y.title.is_empty() {
        mesh.y_desc(y.title.clone());
    }
    mesh.draw()?;
    let at = |[a, b]: [f64; 2]| (x.place(a), y.place(b));
    let line = |colour: &RGBColor| colour.stroke_width(2 * SCALE);
    for mark in marks {
        match mark {
            Mark::Dot(point, colour, radius) => {
                let style = colour.mix(0.75).filled();
                chart.draw_series([Circle::new(at(*point), radius * SCALE, style)])?;
            }
            Mark::Line(points, colour) => {
                chart.draw_series(LineSeries::new(points.iter().map(|p| at(*p)), line(colour)))?;
            }
            Mark::Level(value, colour) => {
                let ends = [x.range.start, x.range.end].map(|end| (end, y.place(*value)));
                chart.draw_series(LineSeries::new(ends, line(colour)))?;
            }
            Mark::Upright(value, colour) => {
                let ends = [y.range.start, y.range.end].map(|end| (x.place(*value), end));
                chart.draw_series(LineSeries::new(ends, line(colour)))?;
            }
            Mark::Span(ends, value, colour) => {
                let ends = ends.map(|end| at([end, *value]));
                chart.draw_series(LineSeries::new(ends, colour.stroke_width(3 * SCALE)))?;
            }
        }
    }
    root.present()?;
    Ok(())
}

/// The range of some values with a share of it as room at both ends; never empty.
fn spread(values: impl IntoIterator<Item = f64>, room: f64) -> Range<f64> {
    let finite = values.into_iter().filter(|v| v.is_finite());
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let more = ((high - low) * room).max(high.abs() * 1e-3).max(1e-9);
    low - more..high + more
}

/// Three to seven round values of a range, as they are written.
fn steps(range: &Range<f64>) -> Vec<(f64, String)> {
    let rough = (range.end - range.start) / 7.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough);
    let step = step.unwrap_or(10.0 * power);
    let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    let first = (range.start / step).ceil() as i64;
    let last = (range.end / step).floor() as i64;
    // The bound is for ranges that are beyond what whole numbers do.
    (first..=last)
        .take(20)
        .map(|n| n as f64 * step)
        .map(|value| (value, format!("{value:.decimals$}")))
        .collect()
}

/// A number in as few characters as say it.
fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.0}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 0.99 => format!("{v:.0}"),
        v => format!("{v}"),
    }
}
