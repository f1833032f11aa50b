//! One-line notices and progress on standard error, where they disturb no data.

use indicatif::{ProgressBar, ProgressStyle};
use spanforge_device::Settings;
use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

/// Writes a line to standard error. Where that is closed or full nobody is reading, which is no
/// reason to fail.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Settings of the environment whose slow steps, such as fetching the compiler, are announced.
pub fn settings() -> Settings {
    Settings::from_environment().with_progress(|line| say(line))
}

/// A bar over `steps` steps; it draws itself only where standard error is a terminal.
pub fn bar(steps: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(steps).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
