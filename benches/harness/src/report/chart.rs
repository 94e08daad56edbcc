//! Two charts: lines over a logarithmic axis, and horizontal bars.

use super::svg::{Anchor, Svg};

/// A line chart; both axes are logarithmic.
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) x: String,
    pub(super) y: String,
    /// Name and points, all coordinates above zero.
    pub(super) series: Vec<(String, Vec<(f64, f64)>)>,
}

/// A bar chart; a row has one bar per name in `bars`.
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) unit: String,
    pub(super) bars: Vec<String>,
    pub(super) rows: Vec<(String, Vec<f64>)>,
}

const COLOURS: [&str; 10] = [
    "#000000", "#8c8c8c", "#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2",
    "#17becf", "#bcbd22",
];
const DASHES: [&str; 3] = ["", "stroke-dasharray=\"6 3\"", "stroke-dasharray=\"2 2\""];
/// The colour of our own: it has to be found at a glance.
const OURS: &str = "#d62728";
/// The colours of its variants.
const VARIANTS: [&str; 3] = ["#ff7b7b", "#8c1515", "#ffb3a7"];

impl Lines {
    /// The drawing; `None` when there is nothing to draw.
    pub(super) fn draw(&self) -> Option<String> {
        let points = || {
            self.series
                .iter()
                .flat_map(|(_, points)| points.iter().copied())
        };
        let x = Scale::around(points().map(|point| point.0), 70.0, 620.0)?;
        let y = Scale::around(points().map(|point| point.1), 400.0, 50.0)?;
        let mut svg = Svg::new(800.0, 450.0);
        svg.headline(20.0, 25.0, &self.title);
        svg.text(345.0, 440.0, Anchor::Middle, &self.x);
        svg.upwards(18.0, 225.0, &self.y);
        for tick in x.ticks() {
            let at = x.place(tick);
            svg.line(&[(at, 50.0), (at, 400.0)], "#e4e4e4", "");
            svg.text(at, 417.0, Anchor::Middle, &number(tick));
        }
        for tick in y.ticks() {
            let at = y.place(tick);
            svg.line(&[(70.0, at), (620.0, at)], "#e4e4e4", "");
            svg.text(64.0, at + 4.0, Anchor::End, &number(tick));
        }
        for (at, (name, points)) in self.series.iter().enumerate() {
            let (colour, style) = look(name, at);
            let placed: Vec<_> = points
                .iter()
                .map(|point| (x.place(point.0), y.place(point.1)))
                .collect();
            svg.line(&placed, colour, &style);
            for (x, y) in placed {
                svg.dot(x, y, colour);
            }
            let row = 60.0 + 18.0 * at as f64;
            svg.line(&[(635.0, row), (660.0, row)], colour, &style);
            svg.text(667.0, row + 4.0, Anchor::Start, name);
        }
        Some(svg.finish())
    }
}

impl Bars {
    /// The drawing; `None` when there is nothing to draw.
    pub(super) fn draw(&self) -> Option<String> {
        let values = self
            .rows
            .iter()
            .flat_map(|(_, values)| values.iter().copied());
        let longest = values.fold(0.0, f64::max);
        if longest <= 0.0 {
            return None;
        }
        let bar = 14.0;
        let row = bar * self.bars.len() as f64 + 8.0;
        let top = 48.0
            + 18.0
                * if self.bars.len() > 1 {
                    self.bars.len() as f64
                } else {
                    0.0
                };
        let mut svg = Svg::new(800.0, top + row * self.rows.len() as f64 + 12.0);
        svg.headline(20.0, 25.0, &format!("{} ({})", self.title, self.unit));
        if self.bars.len() > 1 {
            for (at, name) in self.bars.iter().enumerate() {
                let y = 38.0 + 18.0 * at as f64;
                svg.rectangle(20.0, y, 14.0, 10.0, shade(at, false));
                svg.text(40.0, y + 9.0, Anchor::Start, name);
            }
        }
        for (at, (name, values)) in self.rows.iter().enumerate() {
            let y = top + row * at as f64;
            svg.text(150.0, y + row / 2.0, Anchor::End, name);
            for (which, value) in values.iter().enumerate() {
                let y = y + bar * which as f64;
                let length = value.max(0.0) / longest * 540.0;
                svg.rectangle(160.0, y, length, bar - 2.0, shade(which, is_ours(name)));
                svg.text(
                    166.0 + length,
                    y + bar - 4.0,
                    Anchor::Start,
                    &number(*value),
                );
            }
        }
        Some(svg.finish())
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("netpoll")
}

/// Colour and stroke of the series `name`, which is the `at`-th.
fn look(name: &str, at: usize) -> (&'static str, String) {
    if is_ours(name) {
        let variant = name.contains('-').then_some(VARIANTS[at % VARIANTS.len()]);
        return match variant {
            Some(colour) => (colour, format!("stroke-width=\"2\" {}", DASHES[1])),
            None => (OURS, "stroke-width=\"3\"".into()),
        };
    }
    let dash = DASHES[(at / COLOURS.len()).min(2)];
    (
        COLOURS[at % COLOURS.len()],
        format!("stroke-width=\"1.5\" {dash}"),
    )
}

fn shade(which: usize, ours: bool) -> &'static str {
    match (which, ours) {
        (0, false) => "#9db4cc",
        (_, false) => "#4d7ba8",
        (0, true) => "#e79a9a",
        (_, true) => OURS,
    }
}

/// A logarithmic axis.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// An axis around all `values` above zero, from pixel `from` to pixel `to`.
    fn around(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let (mut low, mut high) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|value| *value > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        if high <= 0.0 {
            return None;
        }
        Some(Self {
            low: low / 1.15,
            high: high * 1.15,
            from,
            to,
        })
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// Round values on the axis: powers of ten, and 2 and 5 times them where there are few.
    fn ticks(&self) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let of = |factors: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|decade| {
                factors
                    .iter()
                    .map(move |factor| factor * 10f64.powi(decade))
            });
            all.filter(|tick| (self.low..=self.high).contains(tick))
                .collect()
        };
        let powers = of(&[1.0]);
        if powers.len() >= 4 {
            powers
        } else {
            of(&[1.0, 2.0, 5.0])
        }
    }
}

/// A number with as many digits as it deserves.
fn number(value: f64) -> String {
    match value.abs() {
        huge if huge >= 1e6 => format!("{:.0}M", value / 1e6),
        large if large >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
        medium if medium >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_spreads_its_values_and_marks_round_ones() {
        let scale = Scale::around([1.0, 10.0, 1000.0, 0.0].into_iter(), 0.0, 100.0).unwrap();
        assert!(scale.place(1.0) > 0.0 && scale.place(1000.0) < 100.0);
        let middle = scale.place(1000f64.sqrt());
        assert!((middle - 50.0).abs() < 1e-9, "{middle}");
        let ticks = scale.ticks();
        assert_eq!(ticks.len(), 4);
        assert!(
            ticks
                .iter()
                .zip([1.0, 10.0, 100.0, 1000.0])
                .all(|(a, b)| (a / b - 1.0).abs() < 1e-9)
        );
        assert!(Scale::around([].into_iter(), 0.0, 1.0).is_none());
    }

    #[test]
    fn a_chart_names_every_series_and_draws_nothing_from_nothing() {
        let mut lines = Lines {
            title: "Latency".into(),
            x: "connections".into(),
            y: "us".into(),
            series: Vec::new(),
        };
        assert!(lines.draw().is_none());
        lines
            .series
            .push(("netpoll".into(), vec![(1.0, 50.0), (100.0, 900.0)]));
        lines.series.push(("mio".into(), vec![(1.0, 55.0)]));
        let drawing = lines.draw().unwrap();
        assert!(drawing.contains(">netpoll<") && drawing.contains(">mio<"));
        assert_eq!(drawing.matches("<circle").count(), 3);
        let bars = Bars {
            title: "Memory".into(),
            unit: "bytes".into(),
            bars: vec!["connected".into(), "used".into()],
            rows: vec![
                ("mio".into(), vec![100.0, 120.0]),
                ("may".into(), vec![16_000.0, 16_000.0]),
            ],
        };
        let drawing = bars.draw().unwrap();
        assert!(drawing.contains(">16k<") && drawing.contains(">120<"));
        assert_eq!(drawing.matches("<rect").count(), 1 + 2 + 4);
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.123, 1.25, 12.6, 345.6, 16_065.0, 2e6].map(number);
        assert_eq!(texts, ["0.12", "1.2", "13", "346", "16k", "2M"]);
    }
}
