//! waypoint.
fn main() {}
