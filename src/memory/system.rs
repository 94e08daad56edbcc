//! How much memory this process may use.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Half of the memory that the process may use: of its control group's limit, or of the machine's
/// memory where that is less. `usize::MAX` where the system does not tell.
pub(crate) fn half_of_what_there_is() -> usize {
    most_below(Path::new("/")).map_or(usize::MAX, |bytes| bytes / 2)
}

/// As the files below `root` say.
fn most_below(root: &Path) -> Option<usize> {
    let machine = of_the_machine(&root.join("proc/meminfo"));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().filter_map(|line| of_group(root, line)).min();
    machine.into_iter().chain(group).min()
}

fn of_the_machine(file: &Path) -> Option<usize> {
    let text = fs::read_to_string(file).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A line is `0::/path` with the second version of control groups, `4:cpu,memory:/path` with the first.
fn of_group(root: &Path, line: &str) -> Option<usize> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    if controllers.is_empty() {
        let dirs = ["sys/fs/cgroup", "sys/fs/cgroup/unified"];
        let limits = dirs.map(|dir| least_above(&root.join(dir), path, "memory.max"));
        limits.into_iter().flatten().min()
    } else if controllers.split(',').any(|name| name == "memory") {
        let dir = root.join("sys/fs/cgroup/memory");
        least_above(&dir, path, "memory.limit_in_bytes")
    } else {
        None
    }
}

/// The least limit of a group and those above it. In a container the path may be that of the host, and
/// only the root is there.
fn least_above(dir: &Path, path: &str, file: &str) -> Option<usize> {
    let mut group = PathBuf::from(path.trim_start_matches('/'));
    let mut least = None;
    loop {
        // "max", where there is no limit, is no number.
        let text = fs::read_to_string(dir.join(&group).join(file)).ok();
        let limit = text.and_then(|text| text.trim().parse::<usize>().ok());
        least = least.into_iter().chain(limit).min();
        if !group.pop() {
            return least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these files, below the temporary one.
    fn with_files(name: &str, files: &[(&str, &str)]) -> Option<usize> {
        let root =
            std::env::temp_dir().join(format!("netpoll-memory-{}-{name}", std::process::id()));
        for (path, text) in files {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let found = most_below(&root);
        let _ = fs::remove_dir_all(&root);
        found
    }

    const MACHINE: (&str, &str) = (
        "proc/meminfo",
        "MemFree:  1 kB\nMemTotal:        8192 kB\nBuffers: 3 kB\n",
    );

    #[test]
    fn a_control_groups_limit_counts_and_those_above_it() {
        for (name, files, least) in [
            ("none", vec![], None),
            ("machine", vec![MACHINE], Some(8 << 20)),
            (
                "second",
                vec![
                    MACHINE,
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("sys/fs/cgroup/a/memory.max", "4194304\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ],
                Some(4 << 20),
            ),
            (
                "container",
                vec![
                    MACHINE,
                    ("proc/self/cgroup", "0::/../host/path\n"),
                    ("sys/fs/cgroup/memory.max", "1048576\n"),
                ],
                Some(1 << 20),
            ),
            (
                "first",
                vec![
                    MACHINE,
                    (
                        "proc/self/cgroup",
                        "5:cpu,cpuacct:/x\n4:memory:/job\n1:name=systemd:/y\n",
                    ),
                    (
                        "sys/fs/cgroup/memory/memory.limit_in_bytes",
                        "9223372036854771712\n",
                    ),
                    (
                        "sys/fs/cgroup/memory/job/memory.limit_in_bytes",
                        "3145728\n",
                    ),
                ],
                Some(3 << 20),
            ),
            (
                "more than the machine",
                vec![
                    MACHINE,
                    ("proc/self/cgroup", "0::/\n"),
                    ("sys/fs/cgroup/memory.max", "99999999999\n"),
                ],
                Some(8 << 20),
            ),
            (
                "nonsense",
                vec![
                    ("proc/meminfo", "MemTotal: much\n"),
                    ("proc/self/cgroup", "x\n:\n"),
                ],
                None,
            ),
        ] {
            assert_eq!(with_files(name, &files), least, "{name}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_system_tells() {
        let half = half_of_what_there_is();
        assert!(half > 1 << 20 && half < usize::MAX, "{half}");
    }
}
