//! Command lines of the form `--name value` or `--name=value`.

use netpoll::{Address, Dispatch};
use std::{fmt, io, process::ExitCode, str::FromStr, thread, time::Duration};

/// Why an example ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is wrong: exit code 2.
    Usage(String),
    /// Something went wrong on the way: exit code 1.
    Failed(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs an example: its flags, its errors, its exit code.
pub(crate) fn run(
    usage: &str,
    example: impl FnOnce(Args) -> Result<ExitCode, Failure>,
) -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{usage}");
        return ExitCode::SUCCESS;
    }
    match Args::parse(words).and_then(example) {
        Ok(code) => code,
        Err(Failure::Usage(text)) => {
            eprintln!("error: {text}\n\n{usage}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Flags that nobody has asked for yet.
#[derive(Debug)]
pub(crate) struct Args {
    flags: Vec<(String, String)>,
}

impl Args {
    fn parse(words: Vec<String>) -> Result<Self, Failure> {
        let mut flags: Vec<(String, String)> = Vec::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--") else {
                return Err(Failure::Usage(format!(
                    "{word:?} is no flag: flags are --name value"
                )));
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => match words.next() {
                    Some(value) => (flag.to_owned(), value),
                    None => return Err(Failure::Usage(format!("--{flag} needs a value"))),
                },
            };
            if flags.iter().any(|(other, _)| *other == name) {
                return Err(Failure::Usage(format!("--{name} is given twice")));
            }
            flags.push((name, value));
        }
        Ok(Self { flags })
    }

    /// The value of `--name`, if it was given.
    pub(crate) fn take<T>(&mut self, name: &str) -> Result<Option<T>, Failure>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let Some(at) = self.flags.iter().position(|(other, _)| other == name) else {
            return Ok(None);
        };
        let (_, value) = self.flags.remove(at);
        match value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(Failure::Usage(format!("--{name} {value}: {error}"))),
        }
    }

    /// The value of `--name`, or `default`.
    pub(crate) fn or<T>(&mut self, name: &str, default: T) -> Result<T, Failure>
    where
        T: FromStr<Err: fmt::Display>,
    {
        Ok(self.take(name)?.unwrap_or(default))
    }

    /// The value of `--name`, at least 1, or `default`.
    pub(crate) fn count(&mut self, name: &str, default: usize) -> Result<usize, Failure> {
        match self.or(name, default)? {
            0 => Err(Failure::Usage(format!("--{name} 0: at least 1"))),
            n => Ok(n),
        }
    }

    /// The value of `--name`, which must be given.
    pub(crate) fn need<T>(&mut self, name: &str) -> Result<T, Failure>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let value = self.take(name)?;
        value.ok_or_else(|| Failure::Usage(format!("--{name} is missing")))
    }

    /// `--name` as milliseconds; 0 and an absent flag are none.
    pub(crate) fn millis(&mut self, name: &str) -> Result<Option<Duration>, Failure> {
        let millis = self.take(name)?.filter(|&millis: &u64| millis > 0);
        Ok(millis.map(Duration::from_millis))
    }

    /// All flags were asked for: what is left is unknown.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self.flags.first() {
            None => Ok(()),
            Some((name, _)) => Err(Failure::Usage(format!("--{name} is unknown"))),
        }
    }
}

/// An address and the text it was given as, so that it can be told in the same form.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) address: Address,
    text: String,
}

impl FromStr for Place {
    type Err = netpoll::AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            address: text.parse()?,
            text: text.to_owned(),
        })
    }
}

impl Place {
    /// How to tell where the server listens: as it was given, with the port that was chosen.
    pub(crate) fn told(&self, bound: &Address) -> String {
        if bound.is_unix() {
            return self.text.clone();
        }
        let prefix = if self.text.starts_with("tcp:") {
            "tcp:"
        } else {
            ""
        };
        format!("{prefix}{bound}")
    }
}

/// `--dispatch`: where handlers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Adaptive,
    Workers,
    Inline,
}

impl Mode {
    /// As the library has it. `workers` is the most threads, if it was given.
    pub(crate) fn dispatch(self, workers: Option<usize>) -> Dispatch {
        match self {
            Self::Adaptive => Dispatch::Adaptive,
            Self::Inline => Dispatch::Inline,
            Self::Workers => {
                let cores = thread::available_parallelism().map_or(4, usize::from);
                Dispatch::Workers {
                    max: workers.unwrap_or(cores * 4),
                    keep_alive: Duration::from_secs(10),
                }
            }
        }
    }

    /// Whether handlers may wait.
    pub(crate) fn may_wait(self) -> bool {
        self != Self::Inline
    }
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "adaptive" => Ok(Self::Adaptive),
            "workers" => Ok(Self::Workers),
            "inline" => Ok(Self::Inline),
            _ => Err("adaptive, workers or inline"),
        }
    }
}
