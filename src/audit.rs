//! Plan to tasks to observations to findings.
