//! Choices for generators: from bytes while there are some, from a seed behind them.
//!
//! The idea: one generator serves a law test (a seed: every choice is random) and a fuzz target (an
//! input: the fuzzer makes the choices, and a small change of the input is a small change of what
//! is made). Choices never run out, so that no generator waits for one that does not come.

/// See the module.
#[derive(Debug, Clone)]
pub struct Dice {
    bytes: Vec<u8>,
    at: usize,
    state: u64,
}

impl Dice {
    /// Random choices.
    pub fn seeded(seed: u64) -> Dice {
        Dice {
            bytes: Vec::new(),
            at: 0,
            state: seed,
        }
    }

    /// The choices that these bytes make.
    pub fn of(bytes: &[u8]) -> Dice {
        let mix = |state: u64, byte: &u8| state.rotate_left(8) ^ u64::from(*byte);
        Dice {
            bytes: bytes.to_vec(),
            at: 0,
            state: bytes.iter().fold(0, mix),
        }
    }

    /// Whether bytes are left that choose.
    pub fn has_bytes(&self) -> bool {
        self.at < self.bytes.len()
    }

    /// A number below `count`: one byte chooses among 256, two among 65,536, eight among more.
    ///
    /// # Panics
    /// When `count` is 0.
    pub fn below(&mut self, count: u64) -> u64 {
        let width = match count {
            0 => panic!("a choice among nothing"),
            1 => return 0,
            2..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 8,
        };
        let left = &self.bytes[self.at.min(self.bytes.len())..];
        let number = match left.get(..width) {
            Some(taken) => taken.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)),
            None => self.random(),
        };
        self.at += width;
        number % count
    }

    /// As [`Dice::below`], for places in a list.
    pub fn index(&mut self, count: usize) -> usize {
        self.below(count as u64) as usize
    }

    /// A number from `from` up to but not `to`.
    pub fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.below((to - from) as u64) as i64
    }

    /// True in `percent` of the cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.below(u64::MAX)
    }

    /// Some bytes, at most `most`.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = self.index(most + 1);
        (0..count).map(|_| self.below(256) as u8).collect()
    }

    /// All bytes that have not chosen anything.
    pub fn rest(&mut self) -> Vec<u8> {
        let rest = self.bytes.split_off(self.at.min(self.bytes.len()));
        self.at = self.bytes.len();
        rest
    }

    /// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
