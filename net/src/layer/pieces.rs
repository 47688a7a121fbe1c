//! Parts of a vectored write.

use std::io::IoSlice;

/// Pieces of one part at most; the rest goes with the next part.
pub(super) const PIECES_MAX: usize = 66;

/// Calls `take` with `head` and at most `bytes_max` bytes of `pieces` from `skip` on, and their length. Returns how many bytes
/// of `pieces` that were.
///
/// # Errors
/// Those of `take`.
pub(super) fn with_part<E>(
    pieces: &[impl AsBytes],
    mut skip: usize,
    bytes_max: usize,
    head: &[u8],
    take: impl FnOnce(&[&[u8]], usize) -> Result<(), E>,
) -> Result<usize, E> {
    let mut part: [&[u8]; PIECES_MAX] = [&[]; PIECES_MAX];
    part[0] = head;
    let (first, mut count) = (usize::from(head.is_empty()), 1);
    let mut length = 0;
    for piece in pieces.iter().map(AsBytes::bytes) {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let rest = &piece[skip..];
        skip = 0;
        let fits = &rest[..rest.len().min(bytes_max - length)];
        if fits.is_empty() || count == PIECES_MAX {
            break;
        }
        part[count] = fits;
        count += 1;
        length += fits.len();
    }
    take(&part[first..count], head.len() + length)?;
    Ok(length)
}

/// Returns the pieces as the system wants them.
pub(super) fn slices<'a>(part: &[&'a [u8]]) -> [IoSlice<'a>; PIECES_MAX] {
    let mut slices = [IoSlice::new(&[]); PIECES_MAX];
    for (slice, piece) in slices.iter_mut().zip(part) {
        *slice = IoSlice::new(piece);
    }
    slices
}

/// A piece of a write.
pub(super) trait AsBytes {
    fn bytes(&self) -> &[u8];
}

impl AsBytes for IoSlice<'_> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl AsBytes for &[u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(pieces: &[&[u8]], bytes_max: usize, head: &[u8]) -> Vec<Vec<u8>> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let (mut parts, mut taken) = (Vec::new(), 0);
        while taken < length {
            let take = |part: &[&[u8]], bytes: usize| {
                parts.push(part.concat());
                assert_eq!(parts.last().map(Vec::len), Some(bytes));
                Ok::<_, ()>(())
            };
            taken += with_part(pieces, taken, bytes_max, head, take).expect("taken");
        }
        parts
    }

    #[test]
    fn parts_are_whole_and_in_order_however_the_pieces_are_cut() {
        let all = parts(&[b"ab", b"", b"cdefg", b"h"], 3, b"");
        assert_eq!(all, [b"abc".to_vec(), b"def".into(), b"gh".into()]);
        assert_eq!(parts(&[b"abcd"], 2, b"-"), [b"-ab".to_vec(), b"-cd".into()]);
        let many: Vec<&[u8]> = vec![b"x"; 200];
        let lengths: Vec<_> = parts(&many, 1_000, b"").iter().map(Vec::len).collect();
        assert_eq!(lengths, [65, 65, 65, 5]);
    }
}
