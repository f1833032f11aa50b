//! The plots of a report.

use super::plot::{self, Axis, BLUE, GREEN, GREY, Mark, ORANGE, svg};
use crate::record::{Candidate, Run};
use spanforge_kernels::SearchSpace;

/// What a report's plots are drawn from.
pub struct Drawn<'a> {
    pub run: &'a Run,
    /// Correct candidates with their times in microseconds, in the order of evaluation.
    pub timed: Vec<(&'a Candidate, f64)>,
    /// All candidates, in the order of evaluation.
    pub all: &'a [Candidate],
    pub winner: &'a str,
    pub flops: f64,
}

/// Times beyond this many times the best one are drawn at the edge, so that they do not press all
/// others together.
pub const SLOWEST: u32 = 3;

/// Half the width of the band over which the dots of one value are spread.
const JITTER: f64 = 0.32;

impl Drawn<'_> {
    fn colour(&self, candidate: &Candidate) -> (plotters::style::RGBColor, u32) {
        match candidate {
            c if c.id == self.winner => (ORANGE, 6),
            c if c.index == 0 => (GREEN, 5),
            _ => (BLUE, 3),
        }
    }

    fn time_title(&self) -> String {
        format!("{} us", self.run.properties.basis)
    }

    /// The candidates that stand out are drawn last, above the others.
    fn in_order(&self) -> Vec<(&Candidate, f64)> {
        let mut timed = self.timed.clone();
        timed.sort_by_key(|(c, _)| (c.id == self.winner, c.index == 0));
        timed
    }

    /// A time as it is drawn.
    fn shown(&self, us: f64) -> f64 {
        let best = self.timed.iter().map(|(_, us)| *us).fold(f64::INFINITY, f64::min);
        us.min(f64::from(SLOWEST) * best)
    }

    fn time_axis(&self) -> Axis {
        let times = self.timed.iter().map(|(_, us)| self.shown(*us));
        Axis::logarithmic(&self.time_title(), times.chain([self.run.floor_us]))
    }

    /// The best time so far over what `x` makes of the candidates up to each one.
    fn best_so_far(&self, title: &str, x: impl Fn(&[Candidate]) -> f64) -> String {
        let mut marks = vec![Mark::Level(self.run.floor_us, GREY)];
        let (mut line, mut best, mut last) = (Vec::new(), f64::INFINITY, 0.0);
        let mut dots = Vec::new();
        for (place, candidate) in self.all.iter().enumerate() {
            last = x(&self.all[..=place]);
            let Some((_, us)) = self.timed.iter().find(|(c, _)| c.index == candidate.index) else {
                continue;
            };
            let (colour, radius) = self.colour(candidate);
            dots.push(Mark::Dot([last, self.shown(*us)], colour, radius));
            if *us < best {
                if best.is_finite() {
                    line.push([last, self.shown(best)]);
                }
                best = *us;
                line.push([last, self.shown(best)]);
            }
        }
        line.push([last, best]);
        marks.push(Mark::Line(line, ORANGE));
        marks.extend(dots);
        let axes = [Axis::linear(title, [0.0, last]), self.time_axis()];
        svg(520, 300, axes, &marks)
    }

    /// The best time so far over evaluations.
    pub fn by_evaluations(&self) -> String {
        self.best_so_far("evaluations", |done| done.len() as f64)
    }

    /// The best time so far over the workers' seconds.
    pub fn by_seconds(&self) -> String {
        let seconds = |c: &Candidate| c.compile_s + c.check_s + c.time_s;
        self.best_so_far("seconds of all workers", |done| done.iter().map(seconds).sum())
    }

    /// Every time by the value of one parameter; `None` where only one value has times.
    pub fn by_parameter(&self, space: &SearchSpace, parameter: usize) -> Option<String> {
        let point = |c: &Candidate| Some(space.point_of(&c.spec.configuration)?[parameter]);
        let mut values: Vec<usize> = self.timed.iter().filter_map(|(c, _)| point(c)).collect();
        values.sort_unstable();
        values.dedup();
        if values.len() < 2 {
            return None;
        }
        let names = values.iter().map(|v| space.parameters()[parameter].text(*v)).collect();
        let mut marks = vec![Mark::Level(self.run.floor_us, GREY)];
        for (candidate, us) in self.in_order() {
            let value = point(candidate)?;
            let place = values.iter().position(|v| *v == value)? as f64;
            // The golden ratio spreads dots evenly however many there are.
            let aside = (candidate.index as f64 * 0.618_034).fract() * 2.0 - 1.0;
            let (colour, radius) = self.colour(candidate);
            marks.push(Mark::Dot([place + JITTER * aside, self.shown(us)], colour, radius));
        }
        let axes = [Axis::names(space.parameters()[parameter].name, names), self.time_axis()];
        Some(svg(340, 240, axes, &marks))
    }

    /// Operations per second over operations per byte, under the roof of the device.
    pub fn roofline(&self) -> String {
        let p = &self.run.properties;
        let floor =
            [self.flops / self.run.floor_bytes as f64, self.flops / self.run.floor_us / 1e3];
        let bandwidth = p.dram_bytes_per_second / 1e9;
        let peak = p.float32_per_second.max(p.tensor_per_second) / 1e9;
        let mut dots = vec![(floor, GREY, 6)];
        for (candidate, us) in self.in_order() {
            let bytes = candidate.bytes_moved().unwrap_or(self.run.floor_bytes) as f64;
            let (colour, radius) = self.colour(candidate);
            dots.push(([self.flops / bytes, self.flops / us / 1e3], colour, radius));
        }
        plot::roofline("operations per byte moved", peak, &[(bandwidth, GREY)], dots)
    }

    /// The times of some candidates with their intervals, the first on top.
    pub fn intervals(&self, finalists: &[(&Candidate, f64)]) -> String {
        let mut marks = vec![Mark::Upright(self.run.floor_us, GREY)];
        let mut ends = vec![self.run.floor_us];
        for (place, (candidate, us)) in finalists.iter().enumerate() {
            let (colour, _) = self.colour(candidate);
            let interval = candidate.interval_us().unwrap_or([*us, *us]);
            ends.extend(interval);
            marks.push(Mark::Span(interval, place as f64, colour));
            marks.push(Mark::Dot([*us, place as f64], colour, 4));
        }
        let names = (1..=finalists.len()).map(|place| place.to_string()).collect();
        let axes = [Axis::linear(&self.time_title(), ends), Axis::names("", names).reversed()];
        let height = 70 + 18 * finalists.len() as u32;
        svg(520, height, axes, &marks)
    }
}
