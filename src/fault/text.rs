//! The text form of a plan.

use std::{str::FromStr, time::Duration};

use super::{Call, Fault, Plan, When};

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut plan = Self::new(0);
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            if let Some(seed) = item.strip_prefix("seed=") {
                plan.seed = number(seed)?;
                continue;
            }
            let parts: Vec<&str> = item.split(':').collect();
            let [call, fault, when] = parts[..] else {
                return Err(format!("'{item}' is not call:fault:when"));
            };
            plan = plan.rule(parse_call(call)?, parse_when(when)?, parse_fault(fault)?);
        }
        Ok(plan)
    }
}

fn parse_call(text: &str) -> Result<Call, String> {
    Ok(match text {
        "accept" => Call::Accept,
        "bind" => Call::Bind,
        "connect" => Call::Connect,
        "get-option" => Call::GetOption,
        "listen" => Call::Listen,
        "name" => Call::Name,
        "peek" => Call::Peek,
        "recv" => Call::Receive,
        "send" => Call::Send,
        "set-option" => Call::SetOption,
        "shutdown" => Call::Shutdown,
        "socket" => Call::Socket,
        _ => return Err(format!("'{text}' is no call")),
    })
}

fn parse_fault(text: &str) -> Result<Fault, String> {
    Ok(match text.split_once('=') {
        None if text == "later" => Fault::Later,
        None if text == "eintr" => Fault::Errno(libc::EINTR),
        Some(("held", n)) => Fault::Held(Duration::from_micros(number(n)?)),
        Some(("late", n)) => Fault::Late(Duration::from_micros(number(n)?)),
        Some(("cut", n)) => Fault::Cut(number(n)?),
        Some(("short", n)) => Fault::Short(number(n)?),
        Some(("errno", n)) => Fault::Errno(number(n)?),
        _ => return Err(format!("'{text}' is no fault")),
    })
}

fn parse_when(text: &str) -> Result<When, String> {
    Ok(match text.split_once('=') {
        Some(("every", n)) => When::Every(number(n)?),
        Some(("chance", n)) => When::Chance(number(n)?),
        _ => return Err(format!("'{text}' does not say when")),
    })
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is no number, or too large"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{super::tests::next, *};

    #[test]
    fn a_plan_is_read_from_text() {
        let plan: Plan = "seed=9, recv:short=7:chance=300,send:eintr:every=3,\
                          accept:errno=24:every=2,send:later:chance=1000"
            .parse()
            .unwrap();
        assert_eq!((plan.seed, plan.rules.len()), (9, 4));
        let _installed = plan.this_thread().install();
        let sends: Vec<_> = (0..3).map(|_| next(Call::Send, None)).collect();
        assert_eq!(
            sends[2].as_ref().unwrap_err().kind(),
            io::ErrorKind::Interrupted
        );
        // Without a socket nothing can come later.
        assert!(sends[..2].iter().all(|sent| matches!(sent, Ok(None))));
        assert_eq!(next(Call::Accept, None).unwrap(), None);
        let error = next(Call::Accept, None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        let cut = (0..1000).filter(|_| next(Call::Receive, None).unwrap() == Some(7));
        assert!((200..400).contains(&cut.count()));
    }

    #[test]
    fn text_that_is_no_plan_says_what_is_wrong() {
        for (text, word) in [
            ("seed=x", "x"),
            ("recv:short=7", "recv:short=7"),
            ("read:later:every=1", "read"),
            ("recv:sometimes:every=1", "sometimes"),
            ("recv:short=:every=1", "''"),
            ("recv:later:often=1", "often=1"),
        ] {
            let why = text.parse::<Plan>().unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
