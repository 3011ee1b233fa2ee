//! Key providers: where key encryption keys come from
