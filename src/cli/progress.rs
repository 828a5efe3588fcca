//! Bars that show how far a long command is; nothing where nobody looks at a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);

/// For work whose end nobody knows: counts.
pub(super) fn rows(what: &'static str) -> ProgressBar {
    let style = "{spinner} {msg}: {human_pos} ({per_sec}, {elapsed})";
    let bar = ProgressBar::no_length().with_style(template(style)).with_message(what);
    bar.enable_steady_tick(TICK);
    bar
}

/// For work on a file of so many bytes.
pub(super) fn bytes(what: &'static str, bytes: u64) -> ProgressBar {
    let style = "{msg} [{wide_bar}] {bytes}/{total_bytes} ({eta})";
    ProgressBar::new(bytes).with_style(template(style)).with_message(what)
}

/// Says a line beside a bar, or where there is none.
pub(super) fn tell(bar: &ProgressBar, line: &str) {
    match bar.is_hidden() {
        true => eprintln!("{line}"),
        false => bar.println(line),
    }
}

fn template(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is sound")
}
