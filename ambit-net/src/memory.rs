//! Memory of the process: small pages, so that what is resident is what is used.
//!
//! Called first thing by programs that are to be small. The allocator asks for huge pages for its arenas, and the first
//! byte in one makes 2 MiB resident: an idle proxy was twice as large for it. `man 2 prctl`, PR_SET_THP_DISABLE.

use std::io;

/// Keeps the kernel from backing this process's memory with transparent huge pages, from now on and for all threads.
///
/// # Errors
/// When the kernel has no such switch; the process is only larger then.
pub fn without_huge_pages() -> io::Result<()> {
    Ok(nix::sys::prctl::set_thp_disable(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_switch() {
        let before = nix::sys::prctl::get_thp_disable().unwrap();
        without_huge_pages().unwrap();
        assert!(nix::sys::prctl::get_thp_disable().unwrap());
        nix::sys::prctl::set_thp_disable(before).unwrap();
    }
}
