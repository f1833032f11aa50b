//! The `spanforge` command.
fn main() {}
