//! `list`: what can be compared, and under what.

use super::Failure;
use crate::compare::scenario;
use crate::{clients, peers, proxies};

pub(super) fn run() -> Result<(), Failure> {
    println!("peers:");
    for peer in peers::ALL {
        println!(
            "  {:<16} {}; handlers {}",
            peer.name, peer.design, peer.handlers
        );
    }
    println!("clients:");
    for client in clients::ALL {
        println!("  {:<16} {}", client.name, client.design);
    }
    println!("proxies:");
    for proxy in proxies::ALL {
        println!("  {:<16} {}", proxy.name, proxy.design);
    }
    println!("scenarios:");
    for scenario in scenario::all() {
        let modes: Vec<_> = scenario.modes.iter().map(|mode| mode.name()).collect();
        println!(
            "  {:<16} {} [{}]",
            scenario.name,
            scenario.about,
            modes.join(", ")
        );
    }
    Ok(())
}
