//! The summary in Markdown.

use super::{Case, Report, shown};

/// The summary: configuration, scores, and `count` worst and best cases.
pub fn markdown(report: &Report, count: usize) -> String {
    let mut text = format!("# Evaluation\n\n{}\n\n| score | value |\n|---|---|\n", report.sentence());
    for (name, value) in &report.scores {
        text += &format!("| {name} | {} |\n", escape(&shown(value)));
    }
    text += "\n## Configuration\n\n| option | value |\n|---|---|\n";
    for (name, value) in &report.config {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &format!("| {name} | {} |\n", escape(&value));
    }
    let (worst, best) = report.extremes(count);
    for (title, cases) in [("Worst", worst), ("Best", best)] {
        text += &format!("\n## {title} by CIDEr\n\n| image | CIDEr | transcript | reference |\n|---|---|---|---|\n");
        text.extend(cases.into_iter().map(row));
    }
    if !report.missing.is_empty() {
        text += "\n## Without a transcript\n\n";
        text.extend(report.missing.iter().map(|name| format!("- {}\n", escape(name))));
    }
    text
}

fn row(case: &Case) -> String {
    let reference = case.references.first().map_or("", String::as_str);
    let [name, transcript, said] = [&case.name, &case.transcript, reference].map(escape);
    format!("| {name} | {:.4} | {transcript} | {said} |\n", case.scores.cider)
}

/// `text` on one line of a table, without markup.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, c| {
        match c {
            '\n' | '\r' => escaped.push(' '),
            '|' | '\\' | '`' | '*' | '_' | '<' | '>' | '[' | ']' | '&' | '#' | '~' => escaped.extend(['\\', c]),
            other => escaped.push(other),
        }
        escaped
    })
}
