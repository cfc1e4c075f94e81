//! One file a kernel.
