//! controller.
fn main() {}
