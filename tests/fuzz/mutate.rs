//! Mutations of known inputs, the same for the same seed.

use moorline_proto::random::Random;

/// Inputs do not grow beyond this.
const BYTES_MAX: usize = 2_048;
/// Values at which code tends to be wrong.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x10_0000, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

pub(crate) struct Mutator {
    random: Random,
}

impl Mutator {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { random: Random::new(seed) }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).expect("below a usize")
    }

    /// Writes the next input: now and then noise, else one of the corpus, changed a few times.
    pub(crate) fn next(&mut self, corpus: &[Vec<u8>], input: &mut Vec<u8>) {
        input.clear();
        if self.random.one_in(64) {
            let length = self.below(64);
            input.extend((0..length).map(|_| self.byte()));
            return;
        }
        input.extend_from_slice(&corpus[self.below(corpus.len())]);
        for _ in 0..=self.below(4) {
            self.mutate(corpus, input);
        }
        input.truncate(BYTES_MAX);
    }

    fn byte(&mut self) -> u8 {
        self.random.next_u64().to_le_bytes()[0]
    }

    fn mutate(&mut self, corpus: &[Vec<u8>], input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let length = self.below(16).min(input.len() - at);
        match self.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 => input.truncate(at),
            3 => drop(input.drain(at..at + length)),
            4 => {
                let piece = input[at..at + length].to_vec();
                input.splice(at..at, piece);
            }
            5 => {
                let bytes: Vec<u8> = (0..length).map(|_| self.byte()).collect();
                input.splice(at..at, bytes);
            }
            6 => self.put_edge(at, input),
            // The head of this one, the tail of another; or both, one after the other.
            7 => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.extend_from_slice(&corpus[self.below(corpus.len())]),
        }
    }

    /// An edge value over what stands there, one to eight bytes wide, either end first.
    fn put_edge(&mut self, at: usize, input: &mut [u8]) {
        let width = (1usize << self.below(4)).min(input.len() - at);
        let value = EDGES[self.below(EDGES.len())];
        let bytes = if self.random.one_in(2) { value.to_le_bytes() } else { value.to_be_bytes() };
        let from = if bytes[0] == 0 { 8 - width } else { 0 };
        input[at..at + width].copy_from_slice(&bytes[from..from + width]);
    }
}
