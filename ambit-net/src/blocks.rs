//! Large read buffers that a thread lends to whichever connection has something to read right now.
//!
//! Called by TLS streams and the relay around one read. An idle connection holds no buffer, and a large flow reads much
//! at once; what a block is used for and what becomes of the bytes is the borrower's matter.

use std::cell::RefCell;

use bytes::BytesMut;

/// Bytes that one read can return at most (measured: beyond 128 to 256 KiB nothing is gained, docs/performance.md).
pub(crate) const BLOCK: usize = 256 * 1024;

/// Blocks kept per thread: a read for an app and one for its tunnel can be under way at once, the rest is slack.
const KEPT: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Lends an empty block with room for at least half of [`BLOCK`].
pub(crate) fn take() -> BytesMut {
    let mut block = SPARE
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| BytesMut::with_capacity(BLOCK));
    if block.capacity() < BLOCK / 2 {
        // Reuses the memory when everything that was split off it is gone, else takes new memory.
        block.reserve(BLOCK);
    }
    block
}

/// Takes a block back; what is still in it is forgotten.
pub(crate) fn give(mut block: BytesMut) {
    block.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < KEPT {
            spare.push(block);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lends_the_same_memory_again_once_nobody_uses_it() {
        let mut block = take();
        block.extend_from_slice(&[1; BLOCK * 3 / 4]);
        let part = block.split().freeze();
        let first = part.as_ptr();
        drop(part);
        give(block);
        let again = take();
        assert!(again.is_empty());
        assert!(again.capacity() >= BLOCK);
        assert_eq!(again.as_ptr(), first);
    }

    #[test]
    fn lends_other_memory_while_a_part_is_in_use() {
        let mut block = take();
        block.extend_from_slice(&[1; BLOCK * 3 / 4]);
        let part = block.split().freeze();
        give(block);
        let mut again = take();
        assert!(again.capacity() >= BLOCK / 2);
        again.extend_from_slice(&[2; BLOCK / 2]);
        assert!(part.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn keeps_a_few_blocks_only() {
        let blocks: Vec<_> = (0..KEPT + 3).map(|_| take()).collect();
        blocks.into_iter().for_each(give);
        assert_eq!(SPARE.with_borrow(Vec::len), KEPT);
    }
}
