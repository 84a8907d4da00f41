//! Random numbers that follow from a seed, and the ways in which bytes go wrong.

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of one input.
    pub(crate) fn new(seed: u64, input: u64) -> Self {
        let mut random = Self(seed ^ input.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % (end as u64).max(1)) as usize
    }

    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

/// Numbers that decoders trip over.
const NASTY: [u32; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
];

/// Lets a few things go wrong in `bytes`.
pub(crate) fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            3 => {
                let noise: Vec<u8> = (at..end).map(|_| random.next() as u8).collect();
                bytes.splice(at..at, noise);
            }
            _ => overwrite(&mut bytes[at..end], random),
        }
    }
}

/// Changes some of `bytes`, not their number.
pub(crate) fn overwrite(bytes: &mut [u8], random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    match random.below(4) {
        0 => bytes[0] ^= 1 << random.below(8),
        1 => bytes.fill(0),
        2 => {
            let number = NASTY[random.below(NASTY.len())].to_be_bytes();
            let len = bytes.len().min(4);
            bytes[..len].copy_from_slice(&number[4 - len..]);
        }
        _ => bytes.iter_mut().for_each(|b| *b = random.next() as u8),
    }
}
