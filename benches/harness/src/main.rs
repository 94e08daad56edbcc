//! Load generator and peers (under construction).
fn main() {}
