//! Search, measuring, records and reports.
