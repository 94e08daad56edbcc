//! Where a connection goes to or comes from.

use std::{
    fmt, io, mem,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use socket2::SockAddr;

use crate::error::{Error, InvalidAddress, with_context};

/// The address of a stream socket: TCP over IPv4 or IPv6, or a unix socket.
///
/// As text: `127.0.0.1:80`, `[::1]:80`, `[fe80::1%eth0]:80`, `localhost:80`,
/// `tcp:HOST:PORT` (for hosts that are named `unix` or `tcp`), `unix:/path`, and
/// `unix:@name` for an abstract name on Linux.
///
/// # Examples
///
/// ```
/// use std::net::SocketAddr;
/// use netpoll::Address;
///
/// let address: Address = "[::1]:80".parse()?;
/// assert_eq!(address, Address::Ip(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 80))));
/// assert_eq!(Address::try_from("localhost:80")?, Address::Host("localhost".into(), 80));
/// assert_eq!(Address::try_from("unix:/run/x.sock")?.to_string(), "unix:/run/x.sock");
/// # Ok::<(), netpoll::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a TCP port.
    Ip(SocketAddr),
    /// A host name and a TCP port. Resolved anew by each call that uses it, on the calling
    /// thread or one that the call waits for.
    Host(Box<str>, u16),
    /// The path of a unix socket.
    Unix(PathBuf),
    /// The abstract name of a unix socket, without the leading zero byte. Linux only.
    Abstract(Box<[u8]>),
    /// A unix socket without a name, as the connecting side usually is. Not to be connected or
    /// bound to.
    Unnamed,
}

impl Address {
    /// The IP address and port, of an address that is one already.
    pub fn as_socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            _ => None,
        }
    }

    /// The path, of a unix address that has one.
    pub fn as_path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            _ => None,
        }
    }

    /// The TCP port.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(address) => Some(address.port()),
            Self::Host(_, port) => Some(*port),
            _ => None,
        }
    }

    /// Whether this is the address of a unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_) | Self::Abstract(_) | Self::Unnamed)
    }

    /// What the system said.
    pub(super) fn from_system(address: &SockAddr) -> Self {
        if let Some(address) = address.as_socket() {
            return Self::Ip(address);
        }
        if address.is_unnamed() {
            return Self::Unnamed;
        }
        if let Some(name) = address.as_abstract_namespace() {
            return Self::Abstract(name.into());
        }
        address
            .as_pathname()
            .map_or(Self::Unnamed, |path| Self::Unix(path.to_owned()))
    }

    /// What to tell the system; `None` for a host, which has to be resolved first.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidAddress`] for what cannot be connected or bound to.
    pub(super) fn to_system(&self) -> io::Result<Option<SockAddr>> {
        match self {
            Self::Ip(address) => Ok(Some(SockAddr::from(*address))),
            Self::Host(..) => Ok(None),
            Self::Unix(path) => {
                check_path(path).map_err(|why| self.unusable(why))?;
                SockAddr::unix(path).map(Some)
            }
            Self::Abstract(name) => {
                check_abstract(name).map_err(|why| self.unusable(why))?;
                let mut bytes = Vec::with_capacity(name.len() + 1);
                bytes.push(0);
                bytes.extend_from_slice(name);
                SockAddr::unix(Path::new(std::ffi::OsStr::from_bytes(&bytes))).map(Some)
            }
            Self::Unnamed => Err(self.unusable(InvalidAddress::Unnamed)),
        }
    }

    /// An error that says what is wrong with this address.
    pub(super) fn unusable(&self, why: InvalidAddress) -> io::Error {
        with_context(self.to_string(), Error::InvalidAddress(why).into())
    }
}

impl fmt::Display for Address {
    /// The text that parses to the same address; bytes that are not UTF-8 or not printable are
    /// shown by a stand-in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Host(host, port) if matches!(&**host, "unix" | "tcp") => {
                write!(f, "tcp:{host}:{port}")
            }
            Self::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            // Not to be taken for an abstract name.
            Self::Unix(path) if path.as_os_str().as_bytes().first() == Some(&b'@') => {
                write!(f, "unix:./{}", path.display())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => {
                f.write_str("unix:@")?;
                write_name(f, name)
            }
            Self::Unnamed => f.write_str("unix:(unnamed)"),
        }
    }
}

/// The name as it is, but for bytes that are no text and characters that cannot be seen.
fn write_name(f: &mut fmt::Formatter<'_>, name: &[u8]) -> fmt::Result {
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let bytes = c
                    .encode_utf8(&mut [0; 4])
                    .as_bytes()
                    .escape_ascii()
                    .to_string();
                f.write_str(&bytes)?;
            } else {
                write!(f, "{c}")?;
            }
        }
        write!(f, "{}", chunk.invalid().escape_ascii())?;
    }
    Ok(())
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).map_err(|why| AddressError {
            text: text.into(),
            why,
        })
    }
}

impl TryFrom<&str> for Address {
    type Error = AddressError;

    fn try_from(text: &str) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl From<SocketAddrV4> for Address {
    fn from(address: SocketAddrV4) -> Self {
        Self::Ip(address.into())
    }
}

impl From<SocketAddrV6> for Address {
    fn from(address: SocketAddrV6) -> Self {
        Self::Ip(address.into())
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Address {
    fn from(address: (I, u16)) -> Self {
        Self::Ip(address.into())
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl From<&Self> for Address {
    fn from(address: &Self) -> Self {
        address.clone()
    }
}

impl From<std::os::unix::net::SocketAddr> for Address {
    fn from(address: std::os::unix::net::SocketAddr) -> Self {
        #[cfg(target_os = "android")]
        use std::os::android::net::SocketAddrExt;
        #[cfg(target_os = "linux")]
        use std::os::linux::net::SocketAddrExt;

        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(name) = address.as_abstract_name() {
            return Self::Abstract(name.into());
        }
        address
            .as_pathname()
            .map_or(Self::Unnamed, |path| Self::Unix(path.to_owned()))
    }
}

/// A text that is no [`Address`], and why.
///
/// Turns into an [`io::Error`] of kind `InvalidInput` that carries
/// [`Error::InvalidAddress`].
///
/// # Examples
///
/// ```
/// use netpoll::{Address, InvalidAddress};
///
/// let error = "localhost".parse::<Address>().unwrap_err();
/// assert_eq!(error.reason(), InvalidAddress::NoPort);
/// assert!(error.to_string().contains("\"localhost\""));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    text: Box<str>,
    why: InvalidAddress,
}

impl AddressError {
    /// The text that failed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is wrong with it.
    pub fn reason(&self) -> InvalidAddress {
        self.why
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {:?}: {}", self.text, self.why)
    }
}

impl std::error::Error for AddressError {}

impl From<AddressError> for io::Error {
    fn from(error: AddressError) -> Self {
        with_context(
            format!("address {:?}", error.text),
            Error::InvalidAddress(error.why).into(),
        )
    }
}

fn parse(text: &str) -> Result<Address, InvalidAddress> {
    if text.is_empty() {
        return Err(InvalidAddress::Empty);
    }
    if let Some(rest) = text.strip_prefix("unix:") {
        return parse_unix(rest);
    }
    parse_tcp(text.strip_prefix("tcp:").unwrap_or(text))
}

fn parse_unix(text: &str) -> Result<Address, InvalidAddress> {
    if let Some(name) = text.strip_prefix('@') {
        check_abstract(name.as_bytes())?;
        return Ok(Address::Abstract(name.as_bytes().into()));
    }
    check_path(Path::new(text))?;
    Ok(Address::Unix(text.into()))
}

fn parse_tcp(text: &str) -> Result<Address, InvalidAddress> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Address::Ip(address));
    }
    if text.starts_with('[') && text.ends_with(']') {
        return Err(InvalidAddress::NoPort);
    }
    let (host, port) = text.rsplit_once(':').ok_or(InvalidAddress::NoPort)?;
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if bracketed.is_none() && host.contains(':') {
        // Several colons: an address without brackets, or one without a port.
        return Err(InvalidAddress::BadBrackets);
    }
    if port.is_empty() {
        return Err(InvalidAddress::NoPort);
    }
    // `u16::from_str` takes a leading plus.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidAddress::BadPort);
    }
    let port = port.parse().map_err(|_| InvalidAddress::BadPort)?;
    let host = bracketed.map_or(Ok(host), |inner| check_brackets(inner).map(|()| inner))?;
    check_host(host)?;
    Ok(Address::Host(host.into(), port))
}

/// What is in brackets and was no plain IPv6 address can only be one with a named zone.
fn check_brackets(inner: &str) -> Result<(), InvalidAddress> {
    let (address, zone) = inner.split_once('%').ok_or(InvalidAddress::BadBrackets)?;
    let v6 = address.parse::<std::net::Ipv6Addr>();
    if v6.is_err() || zone.is_empty() {
        return Err(InvalidAddress::BadBrackets);
    }
    Ok(())
}

fn check_host(host: &str) -> Result<(), InvalidAddress> {
    if host.is_empty() {
        return Err(InvalidAddress::NoHost);
    }
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '[' | ']' | '@');
    if host.len() > 255 || host.contains(bad) {
        return Err(InvalidAddress::BadHost);
    }
    Ok(())
}

fn check_path(path: &Path) -> Result<(), InvalidAddress> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(InvalidAddress::Empty);
    }
    if bytes.contains(&0) {
        return Err(InvalidAddress::ZeroInPath);
    }
    check_length(bytes)
}

fn check_abstract(name: &[u8]) -> Result<(), InvalidAddress> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        return Err(InvalidAddress::NoAbstractNames);
    }
    if name.is_empty() {
        return Err(InvalidAddress::Empty);
    }
    check_length(name)
}

fn check_length(bytes: &[u8]) -> Result<(), InvalidAddress> {
    if bytes.len() > MAX_PATH {
        return Err(InvalidAddress::PathTooLong { limit: MAX_PATH });
    }
    Ok(())
}

/// Bytes in the longest unix path: 107 on Linux, 103 elsewhere. The byte that is left is for the
/// zero at the end of a path, or at the start of an abstract name.
pub(super) const MAX_PATH: usize =
    size_of::<libc::sockaddr_un>() - mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn parsed(text: &str) -> Address {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn reason(text: &str) -> InvalidAddress {
        match text.parse::<Address>() {
            Ok(address) => panic!("{text:?} became {address:?}"),
            Err(error) => {
                assert_eq!(error.text(), text);
                error.reason()
            }
        }
    }

    fn host(name: &str, port: u16) -> Address {
        Address::Host(name.into(), port)
    }

    #[test]
    fn texts_parse_to_addresses_and_back() {
        let table = [
            ("127.0.0.1:80", Address::from(([127, 0, 0, 1], 80))),
            ("0.0.0.0:0", Address::from(([0, 0, 0, 0], 0))),
            (
                "[::1]:80",
                Address::from((std::net::Ipv6Addr::LOCALHOST, 80)),
            ),
            ("localhost:80", host("localhost", 80)),
            ("a.b-c_d.example:65535", host("a.b-c_d.example", 65535)),
            ("tcp:unix:80", host("unix", 80)),
            ("tcp:tcp:80", host("tcp", 80)),
            ("[fe80::1%eth0]:80", host("fe80::1%eth0", 80)),
            ("unix:/run/x.sock", Address::Unix("/run/x.sock".into())),
            ("unix:x.sock", Address::Unix("x.sock".into())),
            (
                "unix:with:colons:80",
                Address::Unix("with:colons:80".into()),
            ),
            ("unix:@name", Address::Abstract((*b"name").into())),
        ];
        for (text, address) in table {
            assert_eq!(parsed(text), address, "{text}");
            assert_eq!(address.to_string(), text);
            assert_eq!(Address::try_from(text).unwrap(), address);
            assert_eq!(Address::try_from(text.to_owned()).unwrap(), address);
        }
    }

    #[test]
    fn a_prefix_for_tcp_is_taken() {
        assert_eq!(parsed("tcp:127.0.0.1:80"), parsed("127.0.0.1:80"));
        assert_eq!(parsed("tcp:[::1]:80"), parsed("[::1]:80"));
        assert_eq!(parsed("tcp:localhost:80"), parsed("localhost:80"));
    }

    #[test]
    fn a_zone_by_number_is_kept_to_the_system() {
        let address = parsed("[fe80::1%7]:80");
        let Address::Ip(SocketAddr::V6(v6)) = address else {
            panic!("{address:?}");
        };
        assert_eq!(v6.scope_id(), 7);
        let system = address.to_system().unwrap().unwrap();
        assert_eq!(system.as_socket_ipv6().unwrap().scope_id(), 7);
        assert_eq!(Address::from_system(&system), address);
        assert_eq!(parsed(&address.to_string()), address);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let table = [
            ("", InvalidAddress::Empty),
            ("tcp:", InvalidAddress::NoPort),
            ("localhost", InvalidAddress::NoPort),
            ("tcp:localhost", InvalidAddress::NoPort),
            ("localhost:", InvalidAddress::NoPort),
            ("[::1]", InvalidAddress::NoPort),
            ("127.0.0.1", InvalidAddress::NoPort),
            ("localhost:65536", InvalidAddress::BadPort),
            ("localhost:http", InvalidAddress::BadPort),
            ("localhost:-1", InvalidAddress::BadPort),
            ("localhost:+1", InvalidAddress::BadPort),
            ("127.0.0.1:99999", InvalidAddress::BadPort),
            (":80", InvalidAddress::NoHost),
            ("local host:80", InvalidAddress::BadHost),
            ("user@host:80", InvalidAddress::BadHost),
            ("a/b:80", InvalidAddress::BadHost),
            ("a\0b:80", InvalidAddress::BadHost),
            ("::1:80", InvalidAddress::BadBrackets),
            ("http://host:80", InvalidAddress::BadBrackets),
            ("[localhost]:80", InvalidAddress::BadBrackets),
            ("[fe80::1%]:80", InvalidAddress::BadBrackets),
            ("[x%eth0]:80", InvalidAddress::BadBrackets),
            ("unix:", InvalidAddress::Empty),
            ("unix:@", InvalidAddress::Empty),
            ("unix:/a\0b", InvalidAddress::ZeroInPath),
        ];
        for (text, why) in table {
            assert_eq!(reason(text), why, "{text:?}");
        }
        let long = format!("{}:80", "x".repeat(256));
        assert_eq!(reason(&long), InvalidAddress::BadHost);
    }

    #[test]
    fn a_parse_error_is_invalid_input_and_names_the_text() {
        let error = io::Error::from("nowhere".parse::<Address>().unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(
            Error::from_io(&error),
            Some(Error::InvalidAddress(InvalidAddress::NoPort))
        );
        assert!(error.to_string().contains("\"nowhere\""), "{error}");
    }

    #[test]
    fn the_longest_path_fits_and_one_more_does_not() {
        let too_long = InvalidAddress::PathTooLong { limit: MAX_PATH };
        assert_eq!(MAX_PATH, if cfg!(target_os = "linux") { 107 } else { 103 });
        let longest = "x".repeat(MAX_PATH);
        let address = parsed(&format!("unix:{longest}"));
        let system = address.to_system().unwrap().unwrap();
        assert_eq!(Address::from_system(&system), address);
        assert_eq!(reason(&format!("unix:{longest}x")), too_long);
        assert_eq!(reason(&format!("unix:@{longest}x")), too_long);

        // Built from a path it is found out when it is used, and not truncated.
        let address = Address::from(PathBuf::from(format!("{longest}x")));
        let error = address.to_system().unwrap_err();
        assert_eq!(
            Error::from_io(&error),
            Some(Error::InvalidAddress(too_long))
        );
        assert!(error.to_string().contains(&longest), "{error}");
    }

    #[test]
    fn the_system_gets_and_returns_every_kind() {
        for text in [
            "127.0.0.1:80",
            "[::1]:80",
            "unix:/tmp/x",
            "unix:x",
            "unix:@name",
        ] {
            let address = parsed(text);
            let system = address.to_system().unwrap().unwrap();
            assert_eq!(Address::from_system(&system), address, "{text}");
        }
        let longest = Address::Abstract(vec![b'x'; MAX_PATH].into());
        let system = longest.to_system().unwrap().unwrap();
        assert_eq!(Address::from_system(&system), longest);
        let zeros = Address::Abstract([0, 1, 0, 255].into());
        let system = zeros.to_system().unwrap().unwrap();
        assert_eq!(Address::from_system(&system), zeros);
    }

    #[test]
    fn what_cannot_be_used_is_an_error_of_its_own() {
        assert!(host("localhost", 1).to_system().unwrap().is_none());
        for (address, why) in [
            (Address::Unnamed, InvalidAddress::Unnamed),
            (Address::Unix("".into()), InvalidAddress::Empty),
            (Address::Unix("a\0b".into()), InvalidAddress::ZeroInPath),
            (Address::Abstract([].into()), InvalidAddress::Empty),
        ] {
            let error = address.to_system().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert_eq!(Error::from_io(&error), Some(Error::InvalidAddress(why)));
        }
    }

    #[test]
    fn display_never_shows_one_kind_as_another() {
        let path = Address::Unix("@name".into());
        assert_eq!(path.to_string(), "unix:./@name");
        assert!(matches!(parsed("unix:./@name"), Address::Unix(_)));
        let odd = Address::Abstract([b'a', 0, 0xff].into());
        assert_eq!(odd.to_string(), r"unix:@a\x00\xff");
        assert_eq!(Address::Unnamed.to_string(), "unix:(unnamed)");
    }

    #[test]
    fn conversions_keep_the_address() {
        let v4: SocketAddrV4 = "127.0.0.1:1".parse().unwrap();
        let v6: SocketAddrV6 = "[::1]:1".parse().unwrap();
        assert_eq!(Address::from(v4), parsed("127.0.0.1:1"));
        assert_eq!(Address::from(v6), parsed("[::1]:1"));
        assert_eq!(Address::from(SocketAddr::V4(v4)), Address::from(v4));
        let path = Path::new("/tmp/x");
        assert_eq!(Address::from(path), parsed("unix:/tmp/x"));
        assert_eq!(Address::from(path.to_owned()), Address::from(path));
        let unix = std::os::unix::net::SocketAddr::from_pathname(path).unwrap();
        assert_eq!(Address::from(unix), Address::from(path));
        let address = Address::from(path);
        assert_eq!(Address::from(&address), address);
        let unnamed = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert_eq!(
            Address::from(unnamed.local_addr().unwrap()),
            Address::Unnamed
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_abstract_name_of_std_is_kept() {
        use std::os::linux::net::SocketAddrExt;
        let name = std::os::unix::net::SocketAddr::from_abstract_name(b"x\0y").unwrap();
        assert_eq!(Address::from(name), Address::Abstract((*b"x\0y").into()));
    }

    #[test]
    fn parts_can_be_asked_for() {
        let ip = parsed("127.0.0.1:80");
        assert_eq!(ip.as_socket_addr(), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(
            (ip.port(), ip.as_path(), ip.is_unix()),
            (Some(80), None, false)
        );
        let name = host("h", 81);
        assert_eq!((name.port(), name.as_socket_addr()), (Some(81), None));
        let unix = parsed("unix:/x");
        assert_eq!((unix.port(), unix.as_path()), (None, Some(Path::new("/x"))));
        assert!(unix.is_unix() && Address::Unnamed.is_unix() && parsed("unix:@x").is_unix());
    }

    #[test]
    fn printable_abstract_names_parse_back() {
        for name in ["it's", "a\"b\\c", "é", "with space", "@twice"] {
            let address = Address::Abstract(name.as_bytes().into());
            let text = address.to_string();
            assert_eq!(text, format!("unix:@{name}"));
            assert_eq!(text.parse::<Address>().unwrap(), address);
        }
        let odd = Address::Abstract([b'a', 0, 0xff, b'b'].as_slice().into());
        assert_eq!(odd.to_string(), r"unix:@a\x00\xffb");
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_it_takes_prints_as_itself(text in "\\PC{0,40}") {
            if let Ok(address @ (Address::Ip(_) | Address::Host(..))) = text.parse() {
                prop_assert_eq!(parsed(&address.to_string()), address);
            }
        }

        #[test]
        fn nearly_valid_text_too(text in "(tcp:|unix:|)[a-z0-9.:%@\\[\\]/]{0,20}:?[0-9]{0,6}") {
            if let Ok(address @ (Address::Ip(_) | Address::Host(..))) = text.parse() {
                prop_assert_eq!(parsed(&address.to_string()), address);
            }
        }
    }
}
