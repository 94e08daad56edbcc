//! Turns results into files: JSON, Markdown, plots.

mod chart;
mod details;
mod overview;
mod plots;
mod svg;
mod table;
mod targets;
pub(crate) mod timeline;

use std::path::Path;
use std::{fs, io};

use crate::peers;
use crate::results::Results;

pub(crate) use targets::needed;

/// Writes all files of the report into the directory `out`.
pub(crate) fn write(results: &Results, out: &Path) -> io::Result<()> {
    fs::create_dir_all(out)?;
    results.write(&out.join("results.json"))?;
    let plots = plots::all(results);
    let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
    fs::write(out.join("README.md"), overview::text(results, &names))?;
    fs::write(out.join("details.md"), details::text(results))?;
    for (name, drawing) in &plots {
        fs::write(out.join(name), drawing)?;
    }
    Ok(())
}

/// The overview alone, for the terminal.
pub(crate) fn summary(results: &Results) -> String {
    overview::tables(results)
}

/// Those of `names` there are results of.
fn present(results: &Results, names: Vec<&'static str>) -> Vec<&'static str> {
    let has = |name: &&str| results.samples.iter().any(|one| one.peer == *name);
    names.into_iter().filter(has).collect()
}

/// The servers there are results of, in the order of the list of peers.
fn servers_of(results: &Results) -> Vec<&'static str> {
    present(results, peers::ALL.iter().map(|peer| peer.name).collect())
}
