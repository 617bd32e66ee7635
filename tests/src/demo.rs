//! The demonstration behind `make demo`: a mesh of two nodes on this machine, shown with real traffic.
//!
//! Called by the program `ambit-demo`. `life.rs` sees to it that nothing is left behind, `scene.rs` sets the mesh up,
//! `acts.rs` shows it: each figure it prints was read from a recording, a log or a metric, and is checked.

mod acts;
mod life;
mod link;
mod meter;
mod scene;

pub use life::main;

/// What the demonstration is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave everything running at the end.
    pub keep: bool,
    /// Remove the capture in the client's pod after it was set up (`--break encryption`): the demonstration must fail.
    pub break_encryption: bool,
}
