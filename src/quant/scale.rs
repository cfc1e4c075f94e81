//! Scales by exact integer division, and codes settled by multiplication.
