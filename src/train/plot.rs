//! Loss curves as an SVG drawing.

use std::fmt::Write as _;

/// A curve: its name and its points (update, value), in order.
pub struct Curve<'a> {
    /// Shown in the legend.
    pub name: &'a str,
    /// Points, x rising; those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 420.0;
/// Left, right, top and bottom of the field.
const FIELD: [f64; 4] = [70.0, 780.0, 40.0, 370.0];
/// Distinguishable with every kind of colour vision (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
/// Two curves that coincide are both visible.
const DASHES: [&str; 4] = ["none", "6 4", "2 3", "9 3 2 3"];
/// More points than pixels show nothing more.
const MAX_POINTS: usize = 1400;

/// Draws curves over the same axes. `x` and `y` name the axes.
pub fn svg(title: &str, [x, y]: [&str; 2], curves: &[Curve<'_>]) -> String {
    let all = || curves.iter().flat_map(|curve| finite(&curve.points));
    let [left, right, top, bottom] = FIELD;
    let xs = Axis::new(all().map(|point| point.0), [left, right]);
    let ys = Axis::new(all().map(|point| point.1), [bottom, top]);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n<title>{0}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n<text x=\"{left}\" y=\"24\" font-size=\"16\">{0}</text>\n",
        escaped(title)
    );
    for value in xs.ticks() {
        let at = xs.place(value);
        let _ = writeln!(out, "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#e0e0e0\"/>");
        let _ =
            writeln!(out, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", bottom + 18.0, label(value));
    }
    for value in ys.ticks() {
        let at = ys.place(value);
        let _ = writeln!(out, "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#e0e0e0\"/>");
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            at + 4.0,
            label(value)
        );
    }
    let (centre, middle) = ((left + right) / 2.0, (top + bottom) / 2.0);
    let _ = writeln!(out, "<text x=\"{centre}\" y=\"{}\" text-anchor=\"middle\">{}</text>", HEIGHT - 12.0, escaped(x));
    let _ = writeln!(
        out,
        "<text transform=\"translate(18 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        escaped(y)
    );
    let styles = COLOURS.iter().cycle().zip(DASHES.iter().cycle());
    for (n, (curve, (colour, dashes))) in curves.iter().zip(styles).enumerate() {
        let points = thinned(&finite(&curve.points).collect::<Vec<_>>());
        let place = |point: &(f64, f64)| format!("{:.1},{:.1}", xs.place(point.0), ys.place(point.1));
        let path: Vec<String> = points.iter().map(place).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-dasharray=\"{dashes}\" points=\"{}\"/>",
            path.join(" ")
        );
        let at = top + 16.0 + 20.0 * n as f64;
        let _ = writeln!(
            out,
            "<path d=\"M{} {at}h24\" stroke=\"{colour}\" stroke-width=\"3\" stroke-dasharray=\"{dashes}\"/>",
            right - 200.0
        );
        let _ = writeln!(out, "<text x=\"{}\" y=\"{}\">{}</text>", right - 170.0, at + 4.0, escaped(curve.name));
    }
    out + "</svg>\n"
}

fn finite(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + '_ {
    points.iter().copied().filter(|point| point.0.is_finite() && point.1.is_finite())
}

/// Means of neighbouring points where there are too many.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let share = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |points: &[(f64, f64)]| {
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / points.len() as f64, sum.1 / points.len() as f64)
    };
    points.chunks(share).map(mean).collect()
}

/// A linear axis from a range of values to a range of pixels.
struct Axis {
    values: [f64; 2],
    pixels: [f64; 2],
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, pixels: [f64; 2]) -> Axis {
        let [low, high] = values.fold([f64::INFINITY, f64::NEG_INFINITY], |all, v| [all[0].min(v), all[1].max(v)]);
        let values = match high - low {
            span if span > 0.0 => [low, high],
            _ if low.is_finite() => [low - 0.5, low + 0.5],
            _ => [0.0, 1.0],
        };
        Axis { values, pixels }
    }

    fn place(&self, value: f64) -> f64 {
        let [[low, high], [from, to]] = [self.values, self.pixels];
        from + (value - low) / (high - low) * (to - from)
    }

    /// Four to ten multiples of 1, 2 or 5 times a power of ten.
    fn ticks(&self) -> Vec<f64> {
        let [low, high] = self.values;
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = power * [1.0, 2.0, 5.0].into_iter().rfind(|factor| factor * power <= rough).unwrap_or(1.0);
        let first = (low / step).ceil() as i64;
        (first..).map(|n| n as f64 * step).take_while(|value| *value <= high + 1e-9 * step).collect()
    }
}

fn label(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if value.abs() < 1e-3 && value != 0.0 { format!("{value:.1e}") } else { text.to_string() }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_hold_every_curve_within_the_field() {
        let points = (0..5000).map(|n| (f64::from(n), 5.0 / (1.0 + f64::from(n)))).collect();
        let curves = [Curve { name: "a <b>", points }, Curve { name: "c", points: vec![(0.0, f64::NAN), (9.0, 2.0)] }];
        let svg = svg("Loss & more", ["update", "loss"], &curves);
        assert!(svg.contains("Loss &amp; more") && svg.contains("a &lt;b&gt;") && !svg.contains("NaN"), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("stroke-dasharray=\"6 4\"").count(), 2, "the second curve and its legend: {svg}");
        let places = svg.split("points=\"").skip(1).flat_map(|rest| rest.split('"').next().unwrap_or("").split(' '));
        for place in places {
            let (x, y) = place.split_once(',').expect("two numbers");
            let (x, y): (f64, f64) = (x.parse().expect("x"), y.parse().expect("y"));
            assert!((FIELD[0]..=FIELD[1]).contains(&x) && (FIELD[2]..=FIELD[3]).contains(&y), "{place}");
        }
    }

    #[test]
    fn nothing_and_one_point_can_be_drawn() {
        for points in [vec![], vec![(1.0, 2.0)], vec![(1.0, 2.0), (1.0, 2.0)]] {
            let svg = svg("", ["x", "y"], &[Curve { name: "n", points }]);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn ticks_are_few_and_round() {
        for values in [[0.0, 1.0], [3.7, 5.2], [1e-5, 2e-5], [0.0, 100_000.0], [-3.0, 4.0]] {
            let ticks = Axis { values, pixels: [0.0, 1.0] }.ticks();
            assert!((3..=11).contains(&ticks.len()), "{values:?}: {ticks:?}");
        }
    }
}
