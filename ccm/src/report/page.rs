//! The HTML of the page. Its style is in `page.css`; charts are drawn by `chart`. Every string from outside passes
//! through [`escape`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::axis::{Scale, count};
use super::chart::{self, Drawing};
use super::{Curves, Grid, Growth, KdcBin, Pictures, Report, ReportError};

/// A tile spans two columns if its value, such as a device name, is longer than this.
const WIDE: usize = 16;

/// Renders the whole page.
pub(super) fn write(report: &Report) -> Result<String, ReportError> {
    Ok(format!(
        include_str!("page.html"),
        style = include_str!("page.css"),
        title = escape(&report.title),
        reload = report.reload_seconds.map_or_else(String::new, |seconds| format!(
            "<meta http-equiv=\"refresh\" content=\"{seconds}\">\n"
        )),
        summary = escape(&report.summary),
        tiles = tiles(&report.tiles),
        pictures = pictures(&report.pictures)? + &growth(&report.growth)?,
        training = training(report)?,
        curriculum = curriculum(report.curriculum.as_ref())?,
        configuration = configuration(report),
    ))
}

/// Escapes text for HTML content and quoted attributes.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(c),
        }
    }
    safe
}

fn tiles(tiles: &[(String, String)]) -> String {
    if tiles.is_empty() {
        return String::new();
    }
    let tile = |(label, value): &(String, String)| {
        let wide = if value.chars().count() > WIDE { " class=\"wide\"" } else { "" };
        format!("<div{wide}><dt>{}</dt><dd>{}</dd></div>\n", escape(label), escape(value))
    };
    format!("<dl class=\"tiles\">\n{}</dl>\n", tiles.iter().map(tile).collect::<String>())
}

/// Student and teacher side by side, the student first.
fn pictures(pictures: &Pictures) -> Result<String, ReportError> {
    let grids = [("Student", &pictures.student), ("Teacher", &pictures.teacher)];
    let mut figures = String::new();
    for (name, grid) in grids {
        if let Some(grid) = grid {
            figures += &grid_figure(name, grid, &pictures.rows)?;
        }
    }
    if figures.is_empty() {
        return Ok(no_data("samples appear with the first checkpoint"));
    }
    let note = match pictures.note.as_str() {
        "" => String::new(),
        note => format!("<p class=\"note\">{}</p>\n", escape(note)),
    };
    Ok(format!("<div class=\"pair\">\n{figures}</div>\n{note}"))
}

fn grid_figure(name: &str, grid: &Grid, rows: &[String]) -> Result<String, ReportError> {
    let steps = if grid.steps == 1 { "1 step".to_owned() } else { format!("{} steps", grid.steps) };
    let cost = match grid.ms_per_image {
        Some(ms) if ms.is_finite() => format!(" · {} ms an image", milliseconds(ms)),
        _ => String::new(),
    };
    let rows: String = rows.iter().map(|row| format!("<li>{}</li>", escape(row))).collect();
    let rows = if rows.is_empty() { rows } else { format!("<ol>{rows}</ol>") };
    let image = image(name, &format!("Samples of the {}, {steps}", name.to_lowercase()), &grid.png)?;
    Ok(format!(
        "<figure><div class=\"grid\">{rows}{image}</div>\n\
         <figcaption><strong>{name}, {steps}</strong>{cost}</figcaption></figure>\n"
    ))
}

/// Formats with three significant digits.
fn milliseconds(ms: f64) -> String {
    let places = if ms < 1.0 { 3 } else { usize::from(ms < 100.0) + usize::from(ms < 10.0) };
    format!("{ms:.places$}")
}

fn growth(growth: &[Growth]) -> Result<String, ReportError> {
    if growth.is_empty() {
        return Ok(String::new());
    }
    let mut figures = String::new();
    for moment in growth {
        let images = count(moment.images);
        let image =
            image(&format!("growth at {images}"), &format!("Samples after {images} images"), &moment.png)?;
        figures += &format!("<figure>{image}<figcaption>{images} images</figcaption></figure>\n");
    }
    Ok(format!("<h3>Samples during training</h3>\n<div class=\"growth\">\n{figures}</div>\n"))
}

/// A PNG as a data URI. Width and height prevent layout shifts while the page loads.
fn image(picture: &str, alt: &str, png: &[u8]) -> Result<String, ReportError> {
    let not_png = || ReportError::NotPng { picture: picture.to_owned(), length: png.len() };
    let (width, height) = png_size(png).ok_or_else(not_png)?;
    Ok(format!(
        "<img src=\"data:image/png;base64,{}\" width=\"{width}\" height=\"{height}\" alt=\"{alt}\">",
        BASE64.encode(png)
    ))
}

/// Width and height from the header of a PNG file; `None` if it is not a PNG or has no pixels.
fn png_size(png: &[u8]) -> Option<(u32, u32)> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let width = u32::from_be_bytes(*header.first_chunk()?);
    let height = u32::from_be_bytes(*header.get(4..)?.first_chunk()?);
    (width > 0 && height > 0).then_some((width, height))
}

fn training(report: &Report) -> Result<String, ReportError> {
    let threshold = report.curriculum.as_ref().map(|curves| curves.threshold);
    let distill = &report.distill;
    let teacher = report.teacher.iter().map(|p| (p.images, p.loss));
    let loss = distill.iter().map(|p| (p.images, p.loss));
    let kdc = distill.iter().map(|p| (p.images, p.kdc));
    let steps = distill.iter().map(|p| (p.images, p.teacher_steps));
    let mut charts = over_training("Teacher: loss", teacher, Scale::Log, None)?;
    if distill.is_empty() && report.finish.is_empty() {
        charts += &chart_figure("Distillation", Drawing { svg: None, left_out: 0 });
    } else if !distill.is_empty() {
        charts += &over_training("Distillation: loss", loss, Scale::Log, None)?;
        charts += &over_training("Distillation: mean KDC", kdc, Scale::Linear, threshold)?;
        charts += &over_training("Distillation: mean teacher steps", steps, Scale::Linear, None)?;
    }
    if !report.finish.is_empty() {
        let loss = report.finish.iter().map(|p| (p.images, p.loss));
        let discriminator = report.finish.iter().map(|p| (p.images, p.discriminator));
        charts += &over_training("Fine-tuning: loss", loss, Scale::Linear, None)?;
        charts += &over_training("Fine-tuning: discriminator's loss", discriminator, Scale::Linear, None)?;
    }
    let dashed = if threshold.is_some() { " Dashed: the curriculum's threshold T." } else { "" };
    Ok(format!(
        "<p>Thin: logged steps, reduced to the extremes of each interval if there are many. Thick: moving average. \
         Losses have a logarithmic axis.{dashed}</p>\n<div class=\"pair\">\n{charts}</div>\n"
    ))
}

fn over_training(
    name: &str,
    points: impl Iterator<Item = (u64, f64)>,
    scale: Scale,
    threshold: Option<f64>,
) -> Result<String, ReportError> {
    Ok(chart_figure(name, chart::over_training(name, points, scale, threshold)?))
}

fn chart_figure(name: &str, drawing: Drawing) -> String {
    let left_out = match drawing.left_out {
        0 => String::new(),
        count => {
            let values = if count == 1 { "1 value" } else { &format!("{count} values") };
            format!(
                "<figcaption>{values} left out: not finite, or not positive on a logarithmic axis.</figcaption>"
            )
        }
    };
    let chart = drawing.svg.unwrap_or_else(|| no_data(""));
    format!("<figure><h3>{name}</h3>\n{chart}{left_out}</figure>\n")
}

fn no_data(why: &str) -> String {
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    format!("<p class=\"empty\">no data yet{why}</p>\n")
}

fn curriculum(curves: Option<&Curves>) -> Result<String, ReportError> {
    let Some(curves) = curves else {
        return Ok(no_data("measured when the student is trained"));
    };
    let threshold = curves.threshold;
    let pairs = |value: fn(&KdcBin) -> f64| {
        [&curves.curriculum, &curves.fixed]
            .map(|bins| bins.iter().filter(|bin| bin.images > 0).map(move |bin| (bin.t, value(bin))))
    };
    let [kdc, kdc_fixed] = pairs(|bin| bin.kdc);
    let [steps, steps_fixed] = pairs(|bin| bin.teacher_steps);
    let (kdc_name, steps_name) = ("KDC against time", "Teacher steps against time");
    let kdc = chart::over_time(kdc_name, kdc, kdc_fixed, false, Some(threshold))?;
    let steps = chart::over_time(steps_name, steps, steps_fixed, true, None)?;
    Ok(format!(
        "<p>KDC is 100 minus the PSNR between the student's prediction at time t and its target, which is the \
         target network's prediction at a later time: a high KDC means that the student has much to learn from \
         the pair. With a fixed step, the teacher takes one step. With the curriculum, it takes steps until KDC \
         reaches the threshold T = {threshold} or until the end of the trajectory. According to the paper, KDC \
         falls steeply with t with a fixed step, and stays near T until the end of the trajectory is close with the \
         curriculum. The charts show the measurements of this run.</p>\n\
         <ul class=\"legend\"><li class=\"main\">curriculum</li><li class=\"baseline\">fixed step</li>\
         <li class=\"threshold\">threshold T = {threshold}</li></ul>\n\
         <div class=\"pair\">\n{}{}</div>\n{}",
        chart_figure(kdc_name, kdc),
        chart_figure(steps_name, steps),
        numbers(curves),
    ))
}

/// The curves as a table.
fn numbers(curves: &Curves) -> String {
    let mut times: Vec<f64> = curves.curriculum.iter().chain(&curves.fixed).map(|bin| bin.t).collect();
    times.retain(|t| t.is_finite());
    times.sort_by(f64::total_cmp);
    times.dedup();
    let cells = |bins: &[KdcBin], t: f64| match bins.iter().find(|bin| bin.t == t && bin.images > 0) {
        Some(bin) => {
            format!("<td>{:.1}</td><td>{:.2}</td><td>{}</td>", bin.kdc, bin.teacher_steps, bin.images)
        }
        None => "<td>–</td><td>–</td><td>0</td>".to_owned(),
    };
    let rows: String = times
        .into_iter()
        .map(|t| {
            let (curriculum, fixed) = (cells(&curves.curriculum, t), cells(&curves.fixed, t));
            format!("<tr><td>{t:.3}</td>{curriculum}{fixed}</tr>\n")
        })
        .collect();
    format!(
        "<details><summary>Values</summary><div class=\"scroll\"><table>\n\
         <thead><tr><th></th><th colspan=\"3\">curriculum</th><th colspan=\"3\">fixed step</th></tr>\n\
         <tr><th>t</th><th>KDC</th><th>steps</th><th>images</th><th>KDC</th><th>steps</th><th>images</th></tr>\
         </thead>\n<tbody>\n{rows}</tbody></table></div></details>\n"
    )
}

fn configuration(report: &Report) -> String {
    let mut html = String::new();
    if !report.command.is_empty() {
        let version = match report.version.as_str() {
            "" => String::new(),
            version => format!(", version {}", escape(version)),
        };
        let command = escape(&report.command);
        html += &format!("<p>Command{version}:</p>\n<pre class=\"wrap\">{command}</pre>\n");
    }
    let settings = escape(&report.config_toml);
    html += "<details><summary>Resolved configuration</summary>\n";
    html + &format!("<pre>{settings}</pre></details>\n")
}
