//! The report of a benchmark: where each case lies under the roof of the device, and how its time goes
//! with the bytes that it cannot do without.

use super::plot::{self, Axis, BLUE, GREEN, GREY, Mark, ORANGE, svg};
use super::{STYLE, tools};
use crate::bench::{BenchReport, BenchRow, COLUMNS, NUMBERS};
use crate::buckets::geometric_mean;
use serde::Serialize;
use spanforge_device::Basis;
use tera::{Context, Tera};

const TEMPLATE: &str = include_str!("../../../templates/bench.html");

/// Radius of the dots of cases.
const DOT: u32 = 4;

#[derive(Serialize)]
struct Page<'a> {
    report: &'a BenchReport,
    is_predicted: bool,
    headline: Vec<(String, String)>,
    roofline: String,
    by_floor: String,
    heading: [String; COLUMNS],
    numbers: [usize; NUMBERS.len()],
    /// The batch in words, and the cells.
    rows: Vec<(&'a str, [String; COLUMNS])>,
    environment: Vec<(&'static str, String)>,
}

/// The page of a benchmark, which needs neither a network nor a script.
///
/// # Errors
/// None for a report of at least one line: the page is the same for all.
pub fn bench_html(report: &BenchReport) -> Result<String, tera::Error> {
    let mut tera = Tera::new();
    tera.add_raw_templates([("report.css", STYLE), ("bench.html", TEMPLATE)])?;
    tera.render("bench.html", &Context::from_serialize(&Page::new(report))?)
}

impl<'a> Page<'a> {
    fn new(report: &'a BenchReport) -> Self {
        let spans = || report.rows.iter().filter(|row| row.attention == "span");
        let mean = |value: fn(&BenchRow) -> f64| geometric_mean(spans().map(value));
        let headline = vec![
            (
                format!("{:.2} x", mean(|row| row.time.time_us / row.time.floor_us)),
                "the floor, geometric mean of all cases".to_owned(),
            ),
            (
                format!("{:.2} x", mean(|row| row.speedup)),
                "faster than dense attention by the same kernels".to_owned(),
            ),
            (
                format!("{:.0} GB/s", report.read_gb_per_second),
                format!(
                    "{} of a kernel that only reads; data sheet {:.0}",
                    report.basis, report.dram_gb_per_second
                ),
            ),
        ];
        let mut environment =
            vec![("device", report.device.clone()), ("seed", report.seed.to_string())];
        environment.extend(tools(&report.environment));
        Self {
            report,
            is_predicted: report.basis == Basis::Predicted,
            headline,
            roofline: roofline(report),
            by_floor: by_floor(report),
            heading: report.heading(),
            numbers: NUMBERS,
            rows: report.rows.iter().map(|row| (&row.batch[..], row.cells())).collect(),
            environment,
        }
    }
}

/// Cases as they are last, above the same rows attending to everything.
fn in_order(report: &BenchReport) -> impl Iterator<Item = (&BenchRow, plotters::style::RGBColor)> {
    let of = |attention: &'static str, colour| {
        let rows = report.rows.iter().filter(move |row| row.attention == attention);
        rows.map(move |row| (row, colour))
    };
    of("dense", BLUE).chain(of("span", ORANGE))
}

/// Where each case lies under the roof of the data sheet and that of what a kernel reads that does nothing
/// else; bytes are those that no kernel can do without.
fn roofline(report: &BenchReport) -> String {
    let dot = |(row, colour): (&BenchRow, _)| {
        let (flops, time) = (row.time.flops, &row.time);
        ([flops / time.floor_bytes as f64, flops / time.time_us / 1e3], colour, DOT)
    };
    let bandwidths = [(report.read_gb_per_second, GREEN), (report.dram_gb_per_second, GREY)];
    let dots = in_order(report).map(dot).collect();
    plot::roofline("operations per byte", report.peak_gflop_per_second, &bandwidths, dots)
}

/// Times over floors: how far a case is from the line is how far it is from the floor.
fn by_floor(report: &BenchReport) -> String {
    let dots: Vec<_> = in_order(report)
        .map(|(row, colour)| ([row.time.floor_us, row.time.time_us], colour))
        .collect();
    let least = dots.iter().map(|d| d.0[0]).fold(f64::INFINITY, f64::min) / 1.5;
    let most = dots.iter().map(|d| d.0[0]).fold(0.0, f64::max) * 1.5;
    let slower = report.dram_gb_per_second / report.read_gb_per_second;
    let line = |factor: f64, colour| {
        Mark::Line(vec![[least, factor * least], [most, factor * most]], colour)
    };
    let longest = dots.iter().map(|d| d.0[1]).fold(most, f64::max);
    let mut marks = vec![line(slower, GREEN), line(1.0, GREY)];
    marks.extend(dots.into_iter().map(|(at, colour)| Mark::Dot(at, colour, DOT)));
    let axes = [
        Axis::logarithmic("floor us", [least, most]),
        Axis::logarithmic(&format!("{} us", report.basis), [least, longest]),
    ];
    svg(520, 320, axes, &marks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::CaseTime;
    use crate::environment::Environment;

    fn row(attention: &'static str, time_us: f64, floor_us: f64) -> BenchRow {
        BenchRow {
            case: "1x<4K".into(),
            attention,
            kernel: "k".into(),
            batch: "b".into(),
            gb_per_second: 1.0,
            share_of_read_bandwidth: 0.5,
            speedup: 2.0,
            time: CaseTime {
                basis: Basis::Predicted,
                time_us,
                samples_us: vec![time_us],
                plan_us: 1.5,
                floor_us,
                floor_bytes: 1 << 20,
                flops: 1e6,
                selected_kv_bytes: 1 << 20,
                bytes_ratio: None,
                imbalance: 1.0,
            },
        }
    }

    #[test]
    fn a_page_has_a_dot_for_each_line_in_either_plot_and_escapes_what_is_a_users() {
        let report = BenchReport {
            unix_s: 0,
            environment: Environment::current((13, 0)),
            device: "GPU".into(),
            basis: Basis::Predicted,
            seed: 0,
            read_gb_per_second: 4000.0,
            dram_gb_per_second: 4800.0,
            peak_gflop_per_second: 1e6,
            rows: vec![row("span", 4.0, 2.0), row("dense", 8.0, 4.0), row("span", 9.0, 1.0)],
            left_out: vec!["mine: why & not".into()],
        };
        let html = bench_html(&report).unwrap();
        assert_eq!(html.matches("<circle").count(), 2 * 3);
        assert_eq!(html.matches("<svg").count(), 2);
        assert!(html.contains("1x&lt;4K") && html.contains("why &amp; not"));
        assert!(html.contains("predicted") && !html.contains("http-equiv"));
        // The geometric mean of 2 and 9.
        assert!(html.contains("4.24 x"), "{html}");
    }
}
