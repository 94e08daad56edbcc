//! What a run shows while it runs.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal; elsewhere a line per round.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `steps`.
    pub(crate) fn new(steps: usize) -> Self {
        const LAYOUT: &str = "{elapsed_precise} [{bar:32}] {pos}/{len} {msg} (left: {eta})";
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template(LAYOUT) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }

    /// Says what is done now.
    pub(crate) fn doing(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        self.bar.tick();
    }

    /// One step is done.
    pub(crate) fn done(&self) {
        self.bar.inc(1);
    }

    /// A line that stays.
    pub(crate) fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Ends the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
