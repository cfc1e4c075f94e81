//! The `undertext` program.

fn main() {}
