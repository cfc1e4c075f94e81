//! Flags to a validated plan.
