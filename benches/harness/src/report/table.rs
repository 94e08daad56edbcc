//! Markdown tables.

use std::fmt::Write as _;

/// A table that is laid out so that its source can be read, too.
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            head: head.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are shown as a dash.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Option<String>>) {
        let mut cells: Vec<_> = cells
            .into_iter()
            .map(|cell| cell.unwrap_or_else(|| "-".into()))
            .collect();
        cells.resize(self.head.len(), "-".into());
        self.rows.push(cells);
    }

    /// Whether there is nothing in it but names and dashes.
    pub(super) fn is_empty(&self) -> bool {
        self.rows
            .iter()
            .all(|row| row.iter().skip(1).all(|cell| cell == "-"))
    }

    /// The text: the first column to the left, the others to the right.
    pub(super) fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| &row[column]);
            cells
                .chain([&self.head[column]])
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len())
            .map(width)
            .map(|it| it.max(3))
            .collect();
        let mut text = String::new();
        let mut line = |cells: &[String]| {
            for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let _ = if at == 0 {
                    write!(text, "| {cell:<width$} ")
                } else {
                    write!(text, "| {cell:>width$} ")
                };
            }
            text.push_str("|\n");
        };
        line(&self.head);
        let rule = |(at, width): (usize, &usize)| {
            if at == 0 {
                "-".repeat(*width)
            } else {
                format!("{}:", "-".repeat(width - 1))
            }
        };
        let rules: Vec<String> = widths.iter().enumerate().map(rule).collect();
        line(&rules);
        for row in &self.rows {
            line(row);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_gaps_show() {
        let mut table = Table::new(["peer", "us"]);
        assert!(table.is_empty());
        table.row([Some("mio".into())]);
        assert!(table.is_empty());
        table.row([Some("tokio-mt".into()), Some("9.25".into())]);
        assert!(!table.is_empty());
        let expected = "\
| peer     |   us |
| -------- | ---: |
| mio      |    - |
| tokio-mt | 9.25 |
";
        assert_eq!(table.text(), expected);
    }
}
