//! Spans, span sets, tag protocols and decode traces.
