//! oneport.
fn main() {}
