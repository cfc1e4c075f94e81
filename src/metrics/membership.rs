//! Membership inference: Min-K %, AUC, PrivLeak.
