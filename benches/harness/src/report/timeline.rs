//! Values over time: panels below each other that share the axis of time.

use super::svg::{Anchor, Svg};

/// One panel.
pub(crate) struct Panel {
    pub(crate) title: String,
    /// Seconds and values, in the order of time.
    pub(crate) points: Vec<(f64, f64)>,
    /// A line over it: its two ends.
    pub(crate) trend: Option<[(f64, f64); 2]>,
}

const WIDTH: f64 = 800.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 780.0;
const TOP: f64 = 45.0;
/// From one panel to the next, and the part of that which is drawn in.
const STEP: f64 = 105.0;
const HEIGHT: f64 = 75.0;

/// The drawing; `marks` are seconds at which something happened.
pub(crate) fn draw(title: &str, panels: &[Panel], marks: &[f64]) -> String {
    let last = panels
        .iter()
        .flat_map(|panel| panel.points.iter().map(|point| point.0))
        .fold(1.0, f64::max);
    let x = |seconds: f64| LEFT + seconds.clamp(0.0, last) / last * (RIGHT - LEFT);
    let mut svg = Svg::new(WIDTH, TOP + STEP * panels.len() as f64 + 20.0);
    svg.headline(20.0, 22.0, title);
    for (number, panel) in panels.iter().enumerate() {
        let top = TOP + STEP * number as f64;
        let bottom = top + HEIGHT;
        let most = panel.points.iter().map(|point| point.1).fold(0.0, f64::max);
        let (ceiling, step) = ceiling(most);
        let y = |value: f64| bottom - (value / ceiling).clamp(0.0, 1.0) * HEIGHT;
        svg.text(LEFT, top - 5.0, Anchor::Start, &panel.title);
        let mut tick = 0.0;
        while tick <= ceiling * 1.001 {
            svg.line(&[(LEFT, y(tick)), (RIGHT, y(tick))], "#e4e4e4", "");
            svg.text(LEFT - 6.0, y(tick) + 4.0, Anchor::End, &number_text(tick));
            tick += step;
        }
        for mark in marks {
            svg.line(&[(x(*mark), top), (x(*mark), bottom)], "#f0c090", "");
        }
        let placed: Vec<_> = panel.points.iter().map(|(t, v)| (x(*t), y(*v))).collect();
        svg.line(&placed, "#1f77b4", "stroke-width=\"1.5\"");
        if let Some(ends) = panel.trend {
            let placed = ends.map(|(t, v)| (x(t), y(v)));
            svg.line(&placed, "#d62728", "stroke-dasharray=\"6 3\"");
        }
    }
    let bottom = TOP + STEP * panels.len() as f64 - 12.0;
    let (ceiling, step) = ceiling(last);
    let mut tick = 0.0;
    while tick <= last.min(ceiling) {
        svg.text(x(tick), bottom, Anchor::Middle, &number_text(tick));
        tick += step;
    }
    svg.text(
        f64::midpoint(LEFT, RIGHT),
        bottom + 18.0,
        Anchor::Middle,
        "seconds",
    );
    svg.finish()
}

/// A round value not below `most`, and the distance of up to six ticks below it.
fn ceiling(most: f64) -> (f64, f64) {
    if most <= 0.0 {
        return (1.0, 1.0);
    }
    let power = 10f64.powf((most / 4.0).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let fits = |step: &f64| step * power * 4.0 >= most * 0.999_999;
    let step = power * steps.into_iter().find(fits).unwrap_or(10.0);
    ((most / step).ceil() * step, step)
}

fn number_text(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.1}M", value / 1e6)
    } else if value >= 10_000.0 {
        format!("{:.0}k", value / 1e3)
    } else if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_round_and_not_below() {
        for most in [0.3, 1.0, 3.0, 4.0, 7.0, 10.0, 99.0, 100.0, 12_345.0] {
            let (ceiling, step) = ceiling(most);
            assert!(
                ceiling >= most * 0.999 && ceiling <= most * 2.0,
                "{most}: {ceiling}"
            );
            assert!(ceiling / step <= 6.01, "{most}: {step}");
        }
        assert_eq!(ceiling(100.0), (100.0, 25.0));
        assert_eq!(ceiling(0.0), (1.0, 1.0));
    }

    #[test]
    fn every_panel_and_mark_is_drawn() {
        let panel = |title: &str| Panel {
            title: title.into(),
            points: vec![(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)],
            trend: None,
        };
        let mut panels = vec![panel("one"), panel("two")];
        panels[1].trend = Some([(5.0, 1.0), (10.0, 2.0)]);
        let drawing = draw("All", &panels, &[2.5, 7.5]);
        assert!(
            drawing.contains(">All<") && drawing.contains(">one<") && drawing.contains(">two<")
        );
        assert_eq!(drawing.matches("#1f77b4").count(), 2);
        assert_eq!(drawing.matches("#d62728").count(), 1);
        assert_eq!(drawing.matches("#f0c090").count(), 4);
        // With nothing to draw there is still a drawing.
        assert!(draw("None", &[], &[]).contains("</svg>"));
    }
}
