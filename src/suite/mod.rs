//! Suites: files to tasks, observations to metric values.
