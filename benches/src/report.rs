//! What the driver prints: one Markdown table.

use std::fmt;

/// The middle of the values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The rows so far.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<[String; 4]>,
}

impl Report {
    /// Adds a row, and says it at once for whoever watches.
    pub fn row(
        &mut self,
        what: impl Into<String>,
        measured: impl Into<String>,
        limit: impl Into<String>,
        ratio: impl Into<String>,
    ) {
        let row = [what.into(), measured.into(), limit.into(), ratio.into()];
        eprintln!("  {}", row.join(" · "));
        self.rows.push(row);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| what | measured | beside it, same run | ratio or goal |"
        )?;
        writeln!(f, "|---|---|---|---|")?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.join(" | "))?;
        }
        Ok(())
    }
}

/// `1234567.0` as `1.23 M`.
pub fn count(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e3 => format!("{:.1} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// `0.5` as `50 %`.
pub fn percent(value: f64) -> String {
    format!("{:.0} %", value * 100.0)
}
