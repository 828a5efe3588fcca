//! What was measured: medians and spread of each figure, and the ratios between them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Figures by name; each round adds one to a name.
#[derive(Default)]
pub struct Report {
    figures: BTreeMap<String, (&'static str, Vec<f64>)>,
    ratios: Vec<Ratio>,
}

struct Ratio {
    name: String,
    goal: Goal,
    value: f64,
}

/// What a ratio should be.
#[derive(Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Report {
    /// Adds a figure, and tells it as it comes.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        let name = name.into();
        eprintln!("  {name}: {value:.0} {unit}");
        self.figures.entry(name).or_insert_with(|| (unit, Vec::new())).1.push(value);
    }

    /// Compares a figure with another. Both were taken in the same rounds, one after the other, so
    /// the ratio of each round is taken, and the median of those: a slow minute of the machine is
    /// in both. Where one is missing there is no ratio.
    pub fn ratio(&mut self, figure: &str, baseline: &str, goal: Goal) {
        let values = |name| self.figures.get(name).map(|(_, values)| values.as_slice());
        let (Some(ours), Some(theirs)) = (values(figure), values(baseline)) else { return };
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        let name = format!("{figure} ÷ {baseline}");
        self.ratios.push(Ratio { name, goal, value: median(&ratios) });
    }

    /// Adds a figure that has a goal of its own.
    pub fn judge(&mut self, name: &str, value: f64, goal: Goal) {
        self.ratios.push(Ratio { name: name.to_owned(), goal, value });
    }

    /// The tables, in Markdown.
    pub fn table(&self) -> String {
        let mut text: String =
            "| measured | median | lowest to highest | unit |\n|---|---|---|---|\n".into();
        for (name, (unit, values)) in &self.figures {
            let (low, high) = spread(values);
            let line =
                format!("| {name} | {:.0} | {low:.0} to {high:.0} | {unit} |\n", median(values));
            text += &line;
        }
        text += "\n| compared | value | goal | reached |\n|---|---|---|---|\n";
        for Ratio { name, goal, value } in &self.ratios {
            let reached = if goal.holds(*value) { "yes" } else { "no" };
            let goal = goal.text();
            let line = format!("| {name} | {value:.2} | {goal} | {reached} |\n");
            text += &line;
        }
        text
    }

    pub fn json(&self, about: Value) -> Value {
        let figures = self.figures.iter().map(|(name, (unit, values))| {
            json!({"name": name, "unit": unit, "median": median(values), "values": values})
        });
        let ratios = self.ratios.iter().map(|Ratio { name, goal, value }| {
            json!({"name": name, "value": value, "goal": goal.text(), "reached": goal.holds(*value)})
        });
        let (figures, ratios): (Vec<_>, Vec<_>) = (figures.collect(), ratios.collect());
        json!({"about": about, "figures": figures, "ratios": ratios})
    }
}

impl Goal {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("at least {least}"),
            Self::AtMost(most) => format!("at most {most}"),
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(low, high), value| (value.min(low), value.max(high)))
}
