//! A writer of plain SVG: rectangles, lines and text, escaped.

use std::fmt::Write as _;

/// Where a text is anchored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing of a fixed size in pixels.
pub(super) struct Svg {
    text: String,
}

impl Svg {
    /// An empty drawing on white, so that it can be read on any page.
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">"
        );
        let mut svg = Self { text };
        svg.rectangle(0.0, 0.0, width, height, "#ffffff");
        svg
    }

    /// A filled rectangle.
    pub(super) fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        let _ = writeln!(
            self.text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{}\"/>",
            escape(fill)
        );
    }

    /// A line through `points`; `style` is further attributes of the stroke.
    pub(super) fn line(&mut self, points: &[(f64, f64)], stroke: &str, style: &str) {
        let mut path = String::new();
        for (x, y) in points {
            let _ = write!(path, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(
            self.text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" {style}/>",
            path.trim_end(),
            escape(stroke)
        );
    }

    /// A dot.
    pub(super) fn dot(&mut self, x: f64, y: f64, fill: &str) {
        let _ = writeln!(
            self.text,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{}\"/>",
            escape(fill)
        );
    }

    /// A line of text.
    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, content: &str) {
        self.styled(x, y, anchor, "", content);
    }

    /// A headline.
    pub(super) fn headline(&mut self, x: f64, y: f64, content: &str) {
        self.styled(
            x,
            y,
            Anchor::Start,
            " font-size=\"15\" font-weight=\"bold\"",
            content,
        );
    }

    /// Text that runs upwards.
    pub(super) fn upwards(&mut self, x: f64, y: f64, content: &str) {
        let turned = format!(" transform=\"rotate(-90 {x:.1} {y:.1})\"");
        self.styled(x, y, Anchor::Middle, &turned, content);
    }

    fn styled(&mut self, x: f64, y: f64, anchor: Anchor, style: &str, content: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\"{style}>{}</text>",
            escape(content)
        );
    }

    /// The finished document.
    pub(super) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_is_one_well_formed_element() {
        let mut svg = Svg::new(100.0, 50.0);
        svg.line(&[(0.0, 0.0), (10.0, 5.25)], "#ff0000", "stroke-width=\"2\"");
        svg.dot(1.0, 2.0, "#000000");
        svg.text(3.0, 4.0, Anchor::End, "a < b & \"c\"");
        svg.upwards(5.0, 6.0, "up");
        let text = svg.finish();
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(text.contains("points=\"0.0,0.0 10.0,5.2\"") || text.contains("10.0,5.3"));
        assert!(text.contains(">a &lt; b &amp; &quot;c&quot;</text>"));
        assert!(text.contains("text-anchor=\"end\"") && text.contains("rotate(-90 5.0 6.0)"));
        let opened = text.matches('<').count();
        assert_eq!(opened, text.matches('>').count());
        assert_eq!(
            opened,
            2 + text.matches("/>").count() + 2 * text.matches("</text>").count()
        );
    }
}
