//! Pure functions over slices and strings. Nothing here knows a device or a file.

pub mod membership;
pub mod recovery;
pub mod rouge;
