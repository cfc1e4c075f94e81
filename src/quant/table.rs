//! bitsandbytes' FP4 and NF4 tables and thresholds.
