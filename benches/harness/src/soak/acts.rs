//! What peers do to the server: one connection per act, in an order that the seed decides.

use std::thread;
use std::time::Duration;

use super::peer::{Peer, Route};
use super::tally::{Act, Fault, Tally};
use super::wire::{Dice, Head, Order};

/// How often each act is done, out of the sum.
const SHARES: [(Act, u64); 13] = [
    (Act::Churn, 24),
    (Act::Reset, 12),
    (Act::HalfClose, 12),
    (Act::Partial, 12),
    (Act::Fragments, 4),
    (Act::Stall, 1),
    (Act::Large, 3),
    (Act::Sleep, 4),
    (Act::Late, 6),
    (Act::Close, 6),
    (Act::Abort, 4),
    (Act::Fail, 4),
    (Act::Panic, 8),
];

/// Orders whose answer is the frame, at once.
const PLAIN: [Order; 4] = [Order::Echo, Order::Copy, Order::Take, Order::Wait];

/// Acts until told to stop.
pub(super) fn run(route: &Route, tally: &Tally, mut dice: Dice) {
    while !tally.is_over() {
        let act = choose(&mut dice);
        tally.done(act, perform(act, route, tally, &mut dice));
        thread::sleep(Duration::from_millis(dice.roll(10)));
    }
}

fn choose(dice: &mut Dice) -> Act {
    let mut left = dice.roll(SHARES.iter().map(|(_, share)| share).sum());
    for (act, share) in SHARES {
        match left.checked_sub(share) {
            Some(rest) => left = rest,
            None => return act,
        }
    }
    Act::Churn
}

fn perform(act: Act, route: &Route, tally: &Tally, dice: &mut Dice) -> Result<(), Fault> {
    let mut peer = Peer::connect(route, tally)?;
    match act {
        Act::Reset => reset(peer, dice),
        Act::HalfClose => half_close(&mut peer, dice),
        Act::Partial => partial(peer, dice),
        Act::Fragments => fragments(&mut peer, dice),
        Act::Stall => stall(&mut peer, dice),
        Act::Large => {
            let size = (256 << 10) + dice.roll(768 << 10) as usize;
            let head = peer.head(plain(dice), 0, size);
            peer.pass(&[head], Duration::ZERO, false)
        }
        Act::Sleep => peer.ping(Order::Sleep, 1 + dice.roll(100) as u16, dice.length(4096)),
        Act::Late => {
            peer.ping(Order::Late, dice.roll(20) as u16, dice.length(4096))?;
            if dice.once_in(2) {
                return Ok(());
            }
            // The answer is owed although the stream has ended.
            let head = peer.head(Order::Late, dice.roll(20) as u16, dice.length(4096));
            peer.pass(&[head], Duration::ZERO, true)?;
            peer.expect_end()
        }
        Act::Close => {
            pings(&mut peer, dice)?;
            peer.ping(Order::Close, 0, dice.length(65_536))?;
            peer.expect_end()
        }
        Act::Abort => ended(peer, Order::Abort, dice),
        Act::Fail => ended(peer, Order::Fail, dice),
        Act::Panic => ended(peer, Order::Panic, dice),
        _ => churn(&mut peer, dice),
    }
}

fn plain(dice: &mut Dice) -> Order {
    PLAIN[dice.roll(PLAIN.len() as u64) as usize]
}

fn pings(peer: &mut Peer<'_>, dice: &mut Dice) -> Result<(), Fault> {
    for _ in 0..dice.roll(4) {
        peer.ping(plain(dice), 0, dice.length(16_384))?;
    }
    Ok(())
}

/// A few frames that fit into any socket together.
fn several(peer: &mut Peer<'_>, dice: &mut Dice, most: u64) -> Vec<Head> {
    (0..dice.roll(most + 1))
        .map(|_| peer.head(plain(dice), 0, dice.length(4096)))
        .collect()
}

fn frames(heads: &[Head]) -> Vec<u8> {
    heads.iter().flat_map(Head::frame).collect()
}

fn churn(peer: &mut Peer<'_>, dice: &mut Dice) -> Result<(), Fault> {
    pings(peer, dice)?;
    let heads = several(peer, dice, 8);
    peer.send(&frames(&heads))?;
    heads.iter().try_for_each(|head| peer.expect(head))
}

/// Ends the connection when the server may have everything or nothing.
fn reset(mut peer: Peer<'_>, dice: &mut Dice) -> Result<(), Fault> {
    match dice.roll(4) {
        0 => {}
        1 => peer.ping(plain(dice), 0, dice.length(4096))?,
        2 => {
            let heads = several(&mut peer, dice, 8);
            peer.send_anyway(&frames(&heads));
        }
        _ => {
            let order = if dice.once_in(2) {
                Order::Late
            } else {
                Order::Sleep
            };
            let head = peer.head(order, dice.roll(5) as u16, 10_000);
            peer.send_anyway(&head.frame());
            let frame = peer.head(plain(dice), 0, 20_000).frame();
            peer.send_anyway(&frame[..dice.roll(frame.len() as u64) as usize]);
        }
    }
    if dice.once_in(2) {
        thread::sleep(Duration::from_micros(dice.roll(2000)));
    }
    peer.reset();
    Ok(())
}

fn half_close(peer: &mut Peer<'_>, dice: &mut Dice) -> Result<(), Fault> {
    if dice.once_in(4) {
        let mut heads = several(peer, dice, 4);
        heads.push(peer.head(plain(dice), 0, dice.length(1 << 20)));
        peer.pass(&heads, Duration::ZERO, true)?;
        return peer.expect_end();
    }
    let mut heads = several(peer, dice, 8);
    if dice.once_in(4) {
        heads.push(peer.head(Order::Sleep, dice.roll(10) as u16, 100));
    }
    peer.send(&frames(&heads))?;
    peer.finish()?;
    heads.iter().try_for_each(|head| peer.expect(head))?;
    peer.expect_end()
}

/// Leaves in the middle of a frame. What was whole before it is answered.
fn partial(mut peer: Peer<'_>, dice: &mut Dice) -> Result<(), Fault> {
    let heads = several(&mut peer, dice, 3);
    let mut bytes = frames(&heads);
    let cut = peer.head(plain(dice), 0, dice.length(65_536)).frame();
    bytes.extend_from_slice(&cut[..dice.roll(cut.len() as u64) as usize]);
    peer.send(&bytes)?;
    let way = dice.roll(4);
    if way == 0 {
        peer.finish()?;
    }
    heads.iter().try_for_each(|head| peer.expect(head))?;
    match way {
        0 => return peer.expect_end(),
        1 => {
            peer.finish()?;
            return peer.expect_end();
        }
        2 => peer.reset(),
        _ => drop(peer),
    }
    Ok(())
}

fn fragments(peer: &mut Peer<'_>, dice: &mut Dice) -> Result<(), Fault> {
    let heads = several(peer, dice, 3);
    let bytes = frames(&heads);
    let longest = 1 + bytes.len() as u64 / 8;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rest.len().min(1 + dice.roll(longest) as usize));
        peer.send(piece)?;
        rest = more;
        if dice.once_in(2) {
            thread::sleep(Duration::from_micros(dice.roll(1000)));
        }
    }
    heads.iter().try_for_each(|head| peer.expect(head))
}

fn stall(peer: &mut Peer<'_>, dice: &mut Dice) -> Result<(), Fault> {
    let mut heads = Vec::new();
    let mut left = (1 << 20) + dice.roll(1 << 20) as usize;
    while left > 0 {
        let size = left.min(1 + dice.length(200_000));
        left -= size;
        heads.push(peer.head(plain(dice), 0, size));
    }
    let pause = Duration::from_millis(200 + dice.roll(1500));
    peer.pass(&heads, pause, dice.once_in(2))
}

/// Some answers, then a frame with which the server has to end the connection.
fn ended(mut peer: Peer<'_>, order: Order, dice: &mut Dice) -> Result<(), Fault> {
    pings(&mut peer, dice)?;
    let frame = peer.head(order, 0, dice.length(1000)).frame();
    peer.send(&frame)?;
    peer.expect_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_act_of_a_peer_is_chosen_about_as_often_as_it_should() {
        let mut dice = Dice::new(1, 1);
        let total: u64 = SHARES.iter().map(|(_, share)| share).sum();
        let mut counts = [0u64; Act::ALL.len()];
        for _ in 0..total * 100 {
            counts[choose(&mut dice) as usize] += 1;
        }
        for (act, share) in SHARES {
            let count = counts[act as usize];
            assert!(
                (share * 60..=share * 140).contains(&count),
                "{act:?}: {count}"
            );
        }
        let others = counts.iter().sum::<u64>()
            - SHARES
                .iter()
                .map(|(act, _)| counts[*act as usize])
                .sum::<u64>();
        assert_eq!(others, 0);
    }
}
