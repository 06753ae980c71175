//! A global allocator that asks for huge pages behind large tables.
//!
//! Look-ups in a table of many megabytes spend a quarter of their time finding out where its pages are. Linux backs memory with
//! 2 MiB pages where it is asked to (`madvise(2)`, `MADV_HUGEPAGE`) and has them; where not, nothing is lost. The libraries ask
//! for the memory of a table at once and know nothing of pages: this is the embedder's side of it.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait; every block says why it is sound")]

use std::alloc::{GlobalAlloc, Layout, System};

use rustix::mm::Advice;

/// The system's allocator, but for large blocks: those begin at a huge page, and the kernel is advised to use such.
///
/// ```
/// use sandbox_demo::parts::HugePages;
///
/// #[global_allocator]
/// static ALLOCATOR: HugePages = HugePages;
/// ```
#[derive(Debug)]
pub struct HugePages;

// SAFETY: every block comes from `System` by a layout that follows from the caller's alone, and goes back by the same.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise that the size is not zero holds for the widened layout, too.
        let block = unsafe { System.alloc(widened(layout)) };
        advise(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above. Fresh pages are zero, so the system need not touch them before the advice.
        let block = unsafe { System.alloc_zeroed(widened(layout)) };
        advise(block, layout.size());
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` was allocated by the widened form of the same layout.
        unsafe { System.dealloc(block, widened(layout)) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() < LARGE && size < LARGE {
            // SAFETY: neither layout is widened, so this is the system's own contract.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the caller promises that `size`, rounded up to the alignment, fits.
        let moved = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both blocks hold as many bytes, and are two blocks; the old one is the caller's to give back.
            unsafe {
                std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
        }
        moved
    }
}

/// The layout by which a block is really allocated: large ones begin at a huge page.
fn widened(layout: Layout) -> Layout {
    if layout.size() < LARGE { layout } else { layout.align_to(HUGE).unwrap_or(layout) }
}

fn advise(block: *mut u8, size: usize) {
    if size >= LARGE && !block.is_null() {
        // SAFETY: the range is one block that was just allocated, and the advice changes no byte of it. A kernel without huge
        // pages refuses, which is as good.
        let _refused = unsafe { rustix::mm::madvise(block.cast(), size & !(HUGE - 1), Advice::LinuxHugepage) };
    }
}

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Blocks of so many bytes are worth it.
const LARGE: usize = 2 * HUGE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_its_bytes_while_it_grows_and_shrinks_past_the_size_that_counts_as_large() {
        let mut layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: the layout is not of size zero, and every block is used within its size and given back once.
        unsafe {
            let mut block = HugePages.alloc(layout);
            for at in 0..100 {
                block.add(at).write(at as u8);
            }
            for size in [LARGE - 1, LARGE, 3 * LARGE + 5, LARGE, 100] {
                block = HugePages.realloc(block, layout, size);
                layout = Layout::from_size_align(size, 8).unwrap();
                assert!((0..100).all(|at| block.add(at).read() == at as u8), "{size} bytes");
                assert!(size < LARGE || block.addr().is_multiple_of(HUGE), "{size} bytes");
            }
            HugePages.dealloc(block, layout);
            let layout = Layout::from_size_align(LARGE, 64).unwrap();
            let zeroed = HugePages.alloc_zeroed(layout);
            assert!((0..LARGE).step_by(4096).all(|at| zeroed.add(at).read() == 0));
            HugePages.dealloc(zeroed, layout);
        }
    }
}
