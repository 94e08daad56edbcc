//! Parsing an address never panics, and what was parsed reads the same after it was printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netpoll::Address;

fuzz_target!(|text: &str| {
    match text.parse::<Address>() {
        Ok(address) => {
            let printed = address.to_string();
            let again = printed.parse::<Address>();
            // What cannot be printed is shown by a stand-in with a backslash.
            if !printed.contains('\\') && !printed.contains(char::REPLACEMENT_CHARACTER) {
                assert_eq!(again, Ok(address), "{text:?} was printed as {printed:?}");
            }
        }
        Err(error) => {
            assert_eq!(error.text(), text);
            let _ = error.to_string();
        }
    }
});
