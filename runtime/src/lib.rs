//! The model runtime: loads artifacts and computes attention over spans.
