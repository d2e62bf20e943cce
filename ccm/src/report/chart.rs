//! Line charts as inline SVG. Charts are drawn in the colours of the light theme, and `page.css` replaces these colours
//! by those of the reader's theme. A test checks that both lists agree.

use std::io;
use std::ops::Range;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::ReportError;
use super::axis::{Axis, Scale};
use super::series::{self, Points};

/// Colour of tick labels and axis titles.
const LABEL: RGBColor = RGBColor(0x5D, 0x61, 0x67);
/// Colour of grid lines and axes.
const GRID: RGBColor = RGBColor(0xE3, 0xE3, 0xDF);
/// Colour of the threshold line.
const MARK: RGBColor = RGBColor(0x86, 0x8A, 0x90);

/// Drawing units per CSS pixel at the chart's natural size. Plotters rounds to whole units, so at one unit per pixel a
/// smooth curve would show steps.
const FINE: u32 = 4;
const WIDTH: u32 = 480 * FINE;
const HEIGHT: u32 = 270 * FINE;

/// A series of a chart. The variants are the data colours of the theme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    /// The run, or the curriculum.
    Main,
    /// The fixed step that the curriculum is compared with.
    Baseline,
}

impl Series {
    fn color(self) -> RGBColor {
        match self {
            Series::Main => RGBColor(0x1F, 0x69, 0xB3),
            Series::Baseline => RGBColor(0xBF, 0x5B, 0x17),
        }
    }
}

/// The points of a series that can be drawn, and the number of the others.
struct Placed {
    points: Points,
    left_out: usize,
}

/// A finished chart.
pub(super) struct Drawing {
    /// Inline SVG without a fixed size; `None` if there is nothing to draw.
    pub(super) svg: Option<String>,
    /// Number of values that cannot be drawn: not finite, or not positive on a logarithmic axis.
    pub(super) left_out: usize,
}

/// A quantity over the course of training: a thin line with extremes, a smooth line on top, and the threshold if there
/// is one.
///
/// # Errors
/// [`ReportError::Chart`] if drawing fails.
pub(super) fn over_training(
    name: &str,
    points: impl Iterator<Item = (u64, f64)>,
    scale: Scale,
    threshold: Option<f64>,
) -> Result<Drawing, ReportError> {
    let Placed { points, left_out } = place(points.map(|(images, y)| (images as f64, y)), scale);
    let threshold = threshold.filter(|height| scale.place(*height).is_some());
    let (thin, smooth) = (series::thin(&points), series::smooth(&points));
    let ys = thin.iter().map(|p| p.1).chain(threshold);
    let axes = Axis::tight(Scale::Linear, thin.iter().map(|p| p.0).chain([0.0])).zip(Axis::padded(scale, ys));
    let Some((x, y)) = axes.filter(|_| !points.is_empty()) else {
        return Ok(Drawing { svg: None, left_out });
    };
    let svg = draw(name, x, y, "training images", |canvas| {
        canvas.line(&thin, Series::Main, 0.3, 1)?;
        canvas.line(&smooth, Series::Main, 1.0, 2)?;
        canvas.threshold(threshold)
    })?;
    Ok(Drawing { svg: Some(svg), left_out })
}

/// A quantity over `t` in [0, 1]: the curriculum and the fixed step.
///
/// # Errors
/// [`ReportError::Chart`] if drawing fails.
pub(super) fn over_time(
    name: &str,
    curriculum: impl Iterator<Item = (f64, f64)>,
    fixed: impl Iterator<Item = (f64, f64)>,
    from_zero: bool,
    threshold: Option<f64>,
) -> Result<Drawing, ReportError> {
    let (curriculum, fixed) = (place(curriculum, Scale::Linear), place(fixed, Scale::Linear));
    let threshold = threshold.filter(|height| Scale::Linear.place(*height).is_some());
    let left_out = curriculum.left_out + fixed.left_out;
    let [curriculum, fixed] = [curriculum, fixed].map(|series| series.points);
    let both = || curriculum.iter().chain(&fixed);
    let ys = both().map(|p| p.1).chain(threshold).chain(from_zero.then_some(0.0));
    let axes = Axis::tight(Scale::Linear, both().map(|p| p.0).chain([0.0, 1.0]))
        .zip(Axis::padded(Scale::Linear, ys));
    let Some((x, y)) = axes.filter(|_| both().next().is_some()) else {
        return Ok(Drawing { svg: None, left_out });
    };
    let svg = draw(name, x, y, "time t (0 is noise, 1 is data)", |canvas| {
        canvas.threshold(threshold)?;
        for (points, series) in [(&fixed, Series::Baseline), (&curriculum, Series::Main)] {
            canvas.line(points, series, 1.0, 2)?;
            canvas.dots(points, series)?;
        }
        Ok(())
    })?;
    Ok(Drawing { svg: Some(svg), left_out })
}

/// Keeps the points that can be drawn on a linear x axis and the given y axis, sorted by x. A resumed run may have
/// logged a step twice.
fn place(points: impl Iterator<Item = (f64, f64)>, scale: Scale) -> Placed {
    let usable = |p: &(f64, f64)| Scale::Linear.place(p.0).is_some() && scale.place(p.1).is_some();
    let (mut points, rest): (Points, Points) = points.partition(usable);
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    Placed { points, left_out: rest.len() }
}

/// The plotting area of a chart.
struct Canvas<'a, 'b> {
    chart: ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>,
    /// Range of the x axis.
    x: Range<f64>,
}

/// An error of the SVG backend.
type Fault = DrawingAreaErrorKind<io::Error>;
type Drawn = Result<(), Fault>;

impl Canvas<'_, '_> {
    /// A polyline `width` CSS pixels wide. A single point is drawn as a dot, because a line of one point is invisible.
    fn line(&mut self, points: &[(f64, f64)], series: Series, opacity: f64, width: u32) -> Drawn {
        if points.len() == 1 {
            return self.dots(points, series);
        }
        let style = series.color().mix(opacity).stroke_width(width * FINE);
        self.chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        Ok(())
    }

    fn dots(&mut self, points: &[(f64, f64)], series: Series) -> Drawn {
        let dot = |p: &(f64, f64)| Circle::new(*p, 3 * FINE, series.color().filled());
        self.chart.draw_series(points.iter().map(dot))?;
        Ok(())
    }

    /// A dashed line at T with a label at its right end, where the curriculum's curve is below T.
    fn threshold(&mut self, threshold: Option<f64>) -> Drawn {
        let Some(height) = threshold else { return Ok(()) };
        let ends = [(self.x.start, height), (self.x.end, height)];
        let style = MARK.stroke_width(FINE * 3 / 2);
        self.chart.draw_series(DashedLineSeries::new(ends, 5 * FINE, 4 * FINE, style))?;
        let right = font(LABEL).pos(Pos::new(HPos::Right, VPos::Bottom));
        let above =
            EmptyElement::at(ends[1]) + Text::new("T", (-(2 * FINE as i32), -(3 * FINE as i32)), right);
        self.chart.draw_series([above])?;
        Ok(())
    }
}

/// Draws axes and grid, calls `fill`, and returns one SVG element that scales to its container's width.
fn draw(
    name: &str,
    x: Axis,
    y: Axis,
    x_title: &str,
    fill: impl Fn(&mut Canvas) -> Drawn,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    onto(&mut svg, x, y, x_title, fill)
        .map_err(|fault| ReportError::Chart { chart: name.to_owned(), reason: fault.to_string() })?;
    // Remove plotters' fixed size and the namespace, which HTML implies.
    let body = svg.split_once('>').map_or("", |(_, body)| body);
    Ok(format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{name}\">{body}"))
}

fn onto(svg: &mut String, x: Axis, y: Axis, x_title: &str, fill: impl Fn(&mut Canvas) -> Drawn) -> Drawn {
    let ends = x.range();
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let chart = ChartBuilder::on(&root)
        .margin_top(8 * FINE)
        .margin_right(14 * FINE)
        .x_label_area_size(45 * FINE)
        .y_label_area_size(46 * FINE)
        .build_cartesian_2d(x, y)?;
    let mut canvas = Canvas { chart, x: ends };
    canvas
        .chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID.stroke_width(FINE))
        .axis_style(GRID.stroke_width(FINE))
        .set_all_tick_mark_size(5 * FINE)
        .label_style(font(LABEL))
        .axis_desc_style(font(LABEL))
        .x_desc(x_title)
        .draw()?;
    fill(&mut canvas)?;
    root.present()
}

fn font(color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", 13 * FINE).into_font().color(&color)
}
