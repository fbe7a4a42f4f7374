//! TODO

fn main() {}
