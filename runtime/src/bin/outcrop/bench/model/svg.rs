//! Profiles as a picture: a row for every part of the network, as long as it took, cut into its kernels. No script and no other file; in
//! light and dark.

use std::fmt::Write as _;

use outcrop::bench::Ceilings;
use outcrop::profile::Profile;

use super::parts::{Cell, names, parts, total_ms};

const LEFT: f64 = 110.0;
/// Where the longest row ends.
const SPAN: f64 = 960.0;
const WIDTH: f64 = 1200.0;
const ROW: f64 = 18.0;

/// Told apart also by those who see few colours, on white and on black (after Okabe and Ito 2008, with greys); kernels beyond them
/// share the last.
const COLOURS: [&str; 12] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#7a5195", "#8c8c8c",
    "#a0522d", "#5f8f3f", "#4f6f8f",
];

const STYLE: &str = "\
svg { background: #ffffff } text { font: 12px system-ui, sans-serif; fill: #1c1c1c } .title { font-weight: 600 } \
.in { font-size: 10px; fill: #ffffff; stroke: #000000; stroke-opacity: 0.6; stroke-width: 2px; paint-order: stroke; \
pointer-events: none } rect { shape-rendering: crispEdges } rect:hover { opacity: 0.75 } \
@media (prefers-color-scheme: dark) { svg { background: #141414 } text { fill: #e6e6e6 } }";

/// The picture of named profiles, one below the other on one scale of time.
pub(super) fn picture(profiles: &[(String, Profile)], ceilings: Ceilings) -> String {
    let mut kernels: Vec<&str> = Vec::new();
    for name in profiles.iter().flat_map(|(_, profile)| names(profile)) {
        if !kernels.contains(&name) {
            kernels.push(name);
        }
    }
    let all = profiles.iter().flat_map(|(_, profile)| parts(profile));
    let longest = all.map(|part| part.ms()).fold(f64::MIN_POSITIVE, f64::max);
    let mut drawing = Drawing { text: String::new(), y: 10.0, kernels, ceilings };
    drawing.legend();
    for (name, profile) in profiles {
        drawing.profile(name, profile, longest);
    }
    let colours: String =
        COLOURS.iter().enumerate().map(|(i, colour)| format!(" .k{i} {{ fill: {colour} }}")).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">\n\
         <title>outcrop bench model: time per kernel per layer</title>\n<style>{STYLE}{colours}</style>\n{}</svg>\n",
        drawing.text,
        height = drawing.y + 10.0
    )
}

struct Drawing<'a> {
    text: String,
    y: f64,
    kernels: Vec<&'a str>,
    ceilings: Ceilings,
}

impl Drawing<'_> {
    fn legend(&mut self) {
        let mut x = LEFT;
        for (i, kernel) in self.kernels.clone().into_iter().enumerate() {
            // About seven pixels to a letter.
            let width = 30.0 + 7.0 * kernel.len() as f64;
            if x + width > WIDTH && x > LEFT {
                (x, self.y) = (LEFT, self.y + ROW);
            }
            let (class, y) = (colour(i), self.y);
            self.line(&format!(
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"12\" height=\"12\"/>"
            ));
            self.words("", x + 16.0, y + 11.0, "start", kernel);
            x += width;
        }
        self.y += ROW;
    }

    fn profile(&mut self, name: &str, profile: &Profile, longest: f64) {
        let total = total_ms(profile);
        self.y += 12.0;
        let title = format!("{name}: {total:.3} ms in {} kernel calls", profile.kernels.len());
        self.words("title", LEFT, self.y + 12.0, "start", &title);
        self.y += ROW;
        for part in parts(profile) {
            let (label, ms) = (part.label.to_string(), part.ms());
            self.words("", LEFT - 8.0, self.y + 13.0, "end", &label);
            let mut x = LEFT;
            for cell in &part.cells {
                let width = SPAN * cell.ms / longest;
                self.cell(&label, cell, x, width);
                x += width;
            }
            let share = 100.0 * ms / total;
            self.words("", x + 6.0, self.y + 13.0, "start", &format!("{ms:.3} ms, {share:.1} %"));
            self.y += ROW;
        }
    }

    fn cell(&mut self, label: &str, cell: &Cell, x: f64, width: f64) {
        let class = colour(self.kernels.iter().position(|kernel| *kernel == cell.kernel).unwrap_or(0));
        let (name, ms, y) = (cell.name(), cell.ms, self.y + 1.0);
        let of_ceiling = 1e5 * self.ceilings.least_seconds(cell.cost).0 / ms;
        let calls = if cell.calls == 1 { String::new() } else { format!(", {} calls", cell.calls) };
        let instances: String = cell.instances.iter().map(|instance| format!(", {instance}")).collect();
        let about =
            format!("{label}: {name}{calls}, {ms:.4} ms, {of_ceiling:.0} % of the ceiling{instances}");
        let about = escaped(&about);
        self.line(&format!(
            "<rect class=\"{class}\" x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height}\" data-ms=\"{ms:.6}\"><title>{about}</title></rect>",
            height = ROW - 2.0
        ));
        if width > 6.5 * name.len() as f64 {
            self.words("in", x + 3.0, y + 12.0, "start", &name);
        }
    }

    fn words(&mut self, class: &str, x: f64, y: f64, anchor: &str, words: &str) {
        let words = escaped(words);
        self.line(&format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
        ));
    }

    fn line(&mut self, element: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{element}");
    }
}

fn colour(kernel: usize) -> String {
    format!("k{}", kernel.min(COLOURS.len() - 1))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
