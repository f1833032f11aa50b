//! The oracle: attention over spans in f64, error metrics and tolerances.
