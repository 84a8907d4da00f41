//! The Kafka front's requests.

use anyhow::{Result, ensure};
use quipu_kafka::{served, try_frame};

use crate::{
    Target,
    mutate::{Random, mutate},
};

pub(crate) struct Frames;

impl Target for Frames {
    /// A request is read or refused, and takes no more memory than its size allows.
    fn feed(&mut self, random: &mut Random) -> Result<()> {
        let frame = input(random);
        let length = frame.len();
        if let Some(taken) = try_frame(frame.into()) {
            ensure!(taken <= length * 32, "{length} bytes took {taken}");
        }
        Ok(())
    }
}

/// A frame, broken as often as not.
pub(crate) fn input(random: &mut Random) -> Vec<u8> {
    let mut frame = frame(random);
    if random.chance(2) {
        mutate(&mut frame, random);
    }
    frame
}

/// Something with the header of a request that is served, and behind it what such requests are made of.
fn frame(random: &mut Random) -> Vec<u8> {
    let requests = served();
    let (key, first, last) = requests[random.below(requests.len())];
    let version = first + random.below((last - first + 1) as usize) as i16;
    let mut frame = Vec::new();
    frame.extend(key.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(7_i32.to_be_bytes());
    frame.extend([0, 1, b'c']);
    for _ in 0..random.below(60) {
        match random.below(9) {
            0 => frame.extend((random.below(4) as i32).to_be_bytes()),
            1 => frame.extend([0, 2, b'a', b'b']),
            2 => frame.push(random.below(5) as u8),
            3 => frame.extend([3, b'a', b'b']),
            4 => frame.extend([0; 16]),
            5 => frame.extend([0xff, 0xff, 0xff, 0xff]),
            6 => frame.extend([0xff, 0xff, 0xff, 0xff, 0x0f]),
            7 => frame.extend((random.next() as i32 >> random.below(32)).to_be_bytes()),
            _ => frame.push(random.next() as u8),
        }
    }
    frame
}
