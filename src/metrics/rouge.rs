//! ROUGE-L F as MUSE scores it.
