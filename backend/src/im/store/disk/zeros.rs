//! Zeros at the end of a file: the engine makes room in advance.

/// Zeros that are compared at once.
static PIECE: [u8; 4096] = [0; 4096];

/// Returns the place of the last byte that is not zero; `None`: all are.
pub(super) fn last_used(block: &[u8]) -> Option<usize> {
    let mut end = block.len();
    for piece in block.rchunks(PIECE.len()) {
        if *piece != PIECE[..piece.len()] {
            let last = piece.iter().rposition(|byte| *byte != 0);
            return last.map(|last| end - piece.len() + last);
        }
        end -= piece.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_is_found_wherever_it_is() {
        for length in [0, 1, 4095, 4096, 4097, 3 * 4096, 3 * 4096 + 5] {
            let mut block = vec![0; length];
            assert_eq!(last_used(&block), None, "{length} zeros");
            let near = |at: &usize| at % 4096 < 3 || at % 4096 > 4093 || at.is_multiple_of(509);
            for at in (0..length).filter(near) {
                block[at] = 7;
                assert_eq!(last_used(&block), Some(at), "of {length}");
                block[..at].fill(1);
                assert_eq!(last_used(&block), Some(at), "of {length}, none of those before it zero");
                block[..=at].fill(0);
            }
        }
    }
}
