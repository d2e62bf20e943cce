//! Tests of the report's page.
#![allow(clippy::unwrap_used)]

use super::*;

/// A PNG file of one grey pixel, from a published base64 constant.
const PIXEL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

fn pixel() -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(PIXEL).unwrap()
}

fn bins(kdc: f64) -> Vec<KdcBin> {
    (0..4).map(|i| KdcBin { t: 0.125 + 0.25 * f64::from(i), kdc, teacher_steps: 2.0, images: 8 }).collect()
}

fn grid(steps: u32) -> Option<Grid> {
    Some(Grid { steps, ms_per_image: Some(1.25), png: pixel() })
}

/// The report of a finished run with `count` logged steps.
fn run(count: u64) -> Report {
    let loss = |i: u64| 1.0 / (1.0 + i as f64) + 0.01 * (i % 7) as f64;
    Report {
        reload_seconds: None,
        title: "shapes".into(),
        summary: "A network that draws shapes.".into(),
        command: "distill run --preset shapes".into(),
        version: "9.8.7".into(),
        tiles: vec![("parameters".into(), "1.1 M".into())],
        config_toml: "threshold = 65".into(),
        pictures: Pictures {
            student: grid(1),
            teacher: grid(50),
            rows: vec!["circle".into(), "square".into()],
            note: "Seeds 0 to 7.".into(),
        },
        growth: vec![Growth { images: 20_000, png: pixel() }],
        teacher: (0..count).map(|i| TeacherPoint { images: i * 128, loss: loss(i) }).collect(),
        finish: (0..count)
            .map(|i| FinishPoint { images: i * 128, loss: loss(i), discriminator: 1.39 })
            .collect(),
        distill: (0..count)
            .map(|i| DistillPoint { images: i * 128, loss: loss(i), kdc: 66.0 + loss(i), teacher_steps: 3.0 })
            .collect(),
        curriculum: Some(Curves { threshold: 65.0, curriculum: bins(66.0), fixed: bins(50.0) }),
    }
}

#[test]
fn a_finished_run_shows_every_section_in_order() {
    let html = run(100).to_html().unwrap();
    let parts = [
        "<h1>shapes</h1>",
        "A network that draws shapes.",
        "<dt>parameters</dt><dd>1.1 M</dd>",
        "circle",
        "Student, 1 step</strong> · 1.25 ms an image",
        "Teacher, 50 steps</strong>",
        "Seeds 0 to 7.",
        "20k images",
        "Teacher: loss",
        "Distillation: loss",
        "Distillation: mean KDC",
        "Distillation: mean teacher steps",
        "Fine-tuning: discriminator",
        "T = 65",
        "KDC against time",
        "Teacher steps against time",
        "version 9.8.7",
        "distill run --preset shapes",
        "threshold = 65",
    ];
    let mut rest = html.as_str();
    for part in parts {
        let (_, after) =
            rest.split_once(part).unwrap_or_else(|| panic!("{part:?} is missing or out of order"));
        rest = after;
    }
    assert_eq!(html.matches("<svg").count(), 8);
    assert_eq!(html.matches(PIXEL).count(), 3);
    assert!(!html.contains("no data yet"));
}

#[test]
fn all_strings_are_escaped() {
    let evil = || "</pre></style><script>alert(\"1\")</script>&'".to_owned();
    let report = Report {
        title: evil(),
        summary: evil(),
        command: evil(),
        version: evil(),
        tiles: vec![(evil(), evil())],
        config_toml: evil(),
        pictures: Pictures { student: grid(1), teacher: None, rows: vec![evil()], note: evil() },
        ..run(3)
    };
    let html = report.to_html().unwrap();
    assert!(!html.contains("<script"));
    let escaped = "&lt;/pre&gt;&lt;/style&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;";
    assert_eq!(html.matches(escaped).count(), 10);
}

#[test]
fn braces_in_a_configuration_are_kept() {
    let report = Report { config_toml: "a = { title = '{style}' }".into(), ..run(3) };
    assert!(report.to_html().unwrap().contains("a = { title = &#39;{style}&#39; }"));
}

#[test]
fn the_page_loads_nothing() {
    let html = run(100).to_html().unwrap();
    for load in ["http://", "https://", "href=", "url(", "@import", "<script", "<link", "src=\"/"] {
        assert!(!html.contains(load), "{load}");
    }
    assert_eq!(html.matches("src=\"").count(), html.matches("src=\"data:image/png;base64,").count());
}

#[test]
fn an_empty_report_renders() {
    let html = Report::default().to_html().unwrap();
    assert!(!html.contains("<svg"));
    assert_eq!(html.matches("no data yet").count(), 4);
}

#[test]
fn a_report_with_only_a_teacher_renders() {
    let pictures = Pictures { student: None, ..run(0).pictures };
    let report =
        Report { pictures, growth: vec![], distill: vec![], finish: vec![], curriculum: None, ..run(100) };
    let html = report.to_html().unwrap();
    assert_eq!(html.matches("<svg").count(), 1);
    assert!(html.contains("Teacher, 50 steps") && !html.contains("Student, "));
}

#[test]
fn values_that_are_not_finite_are_left_out_and_counted() {
    let strange = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 0.0, -1.0, 5e-324, 0.5];
    let mut report = run(0);
    for (i, value) in strange.into_iter().enumerate() {
        let images = if i % 2 == 0 { u64::MAX } else { i as u64 };
        report.teacher.push(TeacherPoint { images, loss: value });
        report.distill.push(DistillPoint { images, loss: value, kdc: value, teacher_steps: value });
        let bin = KdcBin { t: 0.5, kdc: value, teacher_steps: value, images: 1 };
        report.curriculum.as_mut().unwrap().curriculum.extend([bin, KdcBin { t: value, ..bin }]);
        report.curriculum.as_mut().unwrap().threshold = value;
        let html = report.to_html().unwrap();
        assert!(!html.split("<svg").skip(1).any(|svg| svg.split("</svg>").next().unwrap().contains("NaN")));
    }
    // Only one of the nine values can be drawn on a logarithmic axis.
    assert!(report.to_html().unwrap().contains("8 values left out"));
}

#[test]
fn a_single_logged_step_is_drawn_as_a_dot() {
    let html = run(1).to_html().unwrap();
    assert_eq!(html.matches("<svg").count(), 8);
    assert!(html.matches("<circle").count() >= 4);
}

#[test]
fn the_page_of_a_long_run_is_small() {
    let html = Report { pictures: Pictures::default(), growth: vec![], ..run(100_000) }.to_html().unwrap();
    assert!(html.len() < 200_000, "{} bytes", html.len());
}

#[test]
fn an_image_that_is_not_a_png_is_named() {
    let mut empty = pixel();
    empty[16..20].fill(0);
    for png in [Vec::new(), b"GIF89a".to_vec(), pixel()[..20].to_vec(), empty] {
        let length = png.len();
        let student = Some(Grid { steps: 1, ms_per_image: None, png });
        let report = Report { pictures: Pictures { student, ..Pictures::default() }, ..run(3) };
        let error = report.to_html().unwrap_err().to_string();
        assert!(error.contains("Student") && error.contains(&format!("{length} bytes")), "{error}");
    }
}

#[test]
fn every_colour_of_a_chart_is_in_the_style_sheet() {
    let html = run(100).to_html().unwrap();
    let (style, body) = html.split_once("</style>").unwrap();
    let mut colours = 0;
    for attribute in ["fill=\"#", "stroke=\"#"] {
        for colour in body.split(attribute).skip(1).map(|rest| &rest[..6]) {
            assert!(style.contains(&format!("svg [{attribute}{colour}\"]")), "{attribute}{colour}");
            colours += 1;
        }
    }
    assert!(colours > 20);
}
