//! Who owns the file of a unix socket.
//!
//! A file is removed in two cases only: at the end of the listener that made it, if it is still
//! the same file; and before a bind, if it is a socket nobody listens on.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

#[cfg(target_os = "linux")]
use std::os::{fd::AsRawFd, unix::fs::OpenOptionsExt};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    address::MAX_PATH,
    syscall::{Call, call},
};
use crate::trace;

/// The socket file a listener made; removed when this is dropped, if nobody replaced it.
#[derive(Debug)]
pub(super) struct OwnedPath {
    path: PathBuf,
    file: FileId,
    keep: bool,
    /// Of the process that bound it: one that was forked since does not remove it.
    process: u32,
}

impl OwnedPath {
    /// Remembers the file that a bind to `path` just made.
    pub(super) fn claim(path: &Path) -> io::Result<Self> {
        Ok(Self {
            // So that it is found again after the working directory changed.
            path: std::path::absolute(path)?,
            file: FileId::of(path)?,
            keep: false,
            process: process::id(),
        })
    }

    /// Gives the file this mode. It was bound under it, so that only what the umask took is missing.
    ///
    /// What has its name may be another file by now, so the file is opened without following a link, and gets
    /// the mode through that descriptor. Nobody can have connected to it yet: a socket that takes connections
    /// is another one.
    #[cfg(target_os = "linux")]
    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(&self.path)?;
        let meta = file.metadata()?;
        let opened = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if FileId::from(&meta) != self.file || !self.file.is_socket || is_live(&opened)? {
            return Err(replaced());
        }
        if meta.permissions().mode() & 0o7777 == mode {
            return Ok(());
        }
        fs::set_permissions(&opened, fs::Permissions::from_mode(mode))
    }

    /// Gives the file this mode, unless another file has its name by now.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        if FileId::of(&self.path)? != self.file || !self.file.is_socket {
            return Err(replaced());
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))
    }

    /// Leaves the file to somebody else.
    pub(super) fn leave(mut self) {
        self.keep = true;
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        let inherited = self.process != process::id();
        if self.keep || inherited || !FileId::of(&self.path).is_ok_and(|file| file == self.file) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            trace::warn!("{}: remove: {error}", self.path.display());
        }
    }
}

/// Removes the socket at `path` if it was left behind by a process that is gone.
///
/// `false` if it is anything else: a socket somebody listens on or that may not be asked, or no
/// socket at all. Takes about 20 ms, so that a server that is just starting is not mistaken for a
/// dead one.
pub(super) fn remove_stale(path: &Path) -> io::Result<bool> {
    let Ok(file) = FileId::of(path) else {
        // Gone meanwhile.
        return Ok(true);
    };
    if !file.is_socket || !refuses(path)? {
        return Ok(false);
    }
    // Between `bind` and `listen` a live server refuses as well.
    poller::before_blocking();
    thread::sleep(STARTING);
    if !refuses(path)? {
        return Ok(false);
    }
    take_away(path, file)
}

/// Removes `path` if it still is `file`. It is moved aside first and judged there, because
/// another server may have done all of this a moment ago and be live at `path`.
fn take_away(path: &Path, file: FileId) -> io::Result<bool> {
    let aside = aside(path);
    match fs::rename(path, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    }
    if FileId::of(&aside)? == file {
        fs::remove_file(&aside)?;
        return Ok(true);
    }
    // A link, as it fails where a rename would replace.
    let restored = fs::hard_link(&aside, path);
    fs::remove_file(&aside)?;
    restored.map(|()| false)
}

/// A name next to `path` that nobody else uses.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(
        ".stale-{}-{:?}",
        process::id(),
        thread::current().id()
    ));
    PathBuf::from(name)
}

/// Whether a connect to the socket at `path` is refused, so nobody listens. A path that is gone
/// refuses too; one that may not be asked does not.
fn refuses(path: &Path) -> io::Result<bool> {
    let refused = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
    Ok(connect(path)?.is_err_and(|error| refused.contains(&error.kind())))
}

/// What comes of a connect to the socket at `path` that does not wait.
fn connect(path: &Path) -> io::Result<io::Result<()>> {
    debug_assert!(path.as_os_str().as_bytes().len() <= MAX_PATH);
    let address = SockAddr::unix(path)?;
    let socket = call(Call::Socket, || {
        Socket::new(Domain::UNIX, Type::STREAM, None)
    })?;
    socket.set_nonblocking(true)?;
    Ok(call(Call::Connect, || socket.connect(&address)))
}

/// Whether a server listens on the socket at `path`, with room in its queue or without.
#[cfg(target_os = "linux")]
fn is_live(path: &Path) -> io::Result<bool> {
    Ok(match connect(path)? {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    })
}

/// Tells one file from another that has its name, and mostly from one that has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
    /// Of the last change of the content, which for a socket is its making: a file system may
    /// give the number of a removed file to the next one.
    made: (i64, i64),
    is_socket: bool,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&fs::symlink_metadata(path)?))
    }
}

impl From<&fs::Metadata> for FileId {
    fn from(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            made: (meta.mtime(), meta.mtime_nsec()),
            is_socket: meta.file_type().is_socket(),
        }
    }
}

fn replaced() -> io::Error {
    let text = "another file took the place of the socket while its mode was set: bind in a directory that only this user may change";
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// How long a server may take from `bind` to `listen`.
const STARTING: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::super::testing::TempDir;
    use super::*;

    #[test]
    fn a_file_is_removed_by_its_owner() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let _live = UnixListener::bind(&path).unwrap();
        drop(OwnedPath::claim(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_was_replaced_stays() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let _old = UnixListener::bind(&path).unwrap();
        let owned = OwnedPath::claim(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "not a socket").unwrap();
        drop(owned);
        assert!(path.exists());

        fs::remove_file(&path).unwrap();
        let _old = UnixListener::bind(&path).unwrap();
        let owned = OwnedPath::claim(&path).unwrap();
        // Made while the old file exists, so it has a number of its own.
        let other = dir.join("other");
        let _new = UnixListener::bind(&other).unwrap();
        fs::rename(&other, &path).unwrap();
        drop(owned);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_gone_is_no_trouble() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let _live = UnixListener::bind(&path).unwrap();
        let owned = OwnedPath::claim(&path).unwrap();
        fs::remove_file(&path).unwrap();
        drop(owned);
        assert!(remove_stale(&path).unwrap());
    }

    #[test]
    fn a_file_can_be_left_to_others() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let _live = UnixListener::bind(&path).unwrap();
        OwnedPath::claim(&path).unwrap().leave();
        assert!(path.exists());
    }

    #[test]
    fn a_relative_path_is_remembered_in_full() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let _live = UnixListener::bind(&path).unwrap();
        let owned = OwnedPath::claim(&path).unwrap();
        assert!(owned.path.is_absolute());
        let absolute = std::path::absolute("s").unwrap();
        assert!(absolute.is_absolute() && absolute.ends_with("s"));
    }

    #[test]
    fn a_server_that_was_faster_gets_its_path_back() {
        let dir = TempDir::new();
        let path = dir.join("s");
        drop(UnixListener::bind(&path).unwrap());
        let stale = FileId::of(&path).unwrap();
        // Another server finds the same stale file and replaces it.
        let other = dir.join("other");
        let _live = UnixListener::bind(&other).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!take_away(&path, stale).unwrap());
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_stale_file_is_taken_away() {
        let dir = TempDir::new();
        let path = dir.join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(remove_stale(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_mode_is_for_the_file_that_was_made_alone() {
        let dir = TempDir::new();
        let (path, other) = (dir.join("s"), dir.join("other"));
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let _listener = UnixListener::bind(&path).unwrap();
        let owned = OwnedPath::claim(&path).unwrap();
        assert!(owned.set_mode(0o777).is_err(), "it takes connections");
        fs::write(&other, "").unwrap();
        fs::rename(&other, &path).unwrap();
        let before = mode(&path);
        assert!(owned.set_mode(0o777).is_err(), "another file");
        assert_eq!(mode(&path), before);
    }

    #[test]
    fn who_listens_does_not_refuse() {
        let dir = TempDir::new();
        let path = dir.join("s");
        assert!(refuses(&path).unwrap());
        let live = UnixListener::bind(&path).unwrap();
        assert!(!refuses(&path).unwrap());
        drop(live);
        assert!(refuses(&path).unwrap());
    }
}
