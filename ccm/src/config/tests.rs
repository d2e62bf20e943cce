#![allow(clippy::unwrap_used)]
use super::*;
use crate::method::curriculum::{Mode, Scope};
use crate::method::distance::DistanceKind;
use std::collections::BTreeSet;

fn shapes() -> Config {
    Config::preset("shapes").unwrap()
}

fn changed(text: &str) -> Result<Config, ConfigError> {
    shapes().with_overrides(&[text.to_owned()])
}

/// The message of a change that must fail. Checks that it is one line.
fn refused(text: &str) -> String {
    let message = changed(text).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn every_preset_is_valid() {
    for name in PRESETS {
        Config::preset(name).unwrap().validate().unwrap();
    }
}

#[test]
fn every_preset_opens_with_what_it_is_for_and_holds_every_setting() {
    let known = Known::new().unwrap().keys;
    for (name, text) in PRESETS.iter().zip(PRESET_TEXTS) {
        assert!(text.starts_with("# ") && text.contains("Cost: "), "{name}");
        let given = keys::parse(text).unwrap();
        let is_of_pipeline = given.contains_key("data.captions");
        for key in known.iter().filter(|key| !keys::is_optional(key)) {
            let is_there = !(is_of_pipeline && keys::is_pipeline_key(key));
            assert_eq!(given.contains_key(key), is_there, "{name}: {key}");
        }
    }
}

#[test]
fn the_cifar10_preset_is_the_papers() {
    let config = Config::preset("cifar10").unwrap();
    assert_eq!((config.spec().parameters() as f64 / 1e5).round() / 10.0, 35.7);
    let teacher = &config.teacher;
    assert_eq!((teacher.steps(), teacher.batch, teacher.stage().warmup_steps()), (400_000, 128, 5000));
    assert_eq!((teacher.learning_rate, teacher.gradient_clip, teacher.decay()), (2e-4, 1.0, 0.9999));
    let distill = &config.distill;
    assert_eq!((distill.steps(), distill.batch, distill.stage().warmup_steps()), (300_000, 128, 5000));
    assert_eq!((distill.threshold, distill.step_size, distill.time_alpha), (65.0, 0.03, 2.0));
    assert_eq!((distill.target_decay(), distill.sample_decay()), (0.9, 0.9999));
    assert_eq!((distill.mode, distill.scope), (Mode::Cd, Scope::Image));
    assert_eq!(
        (teacher.coupling, distill.coupling),
        (Coupling::OptimalTransport, Coupling::OptimalTransport)
    );
    assert!(config.data.horizontal_flip && !config.data.class_conditional);
}

#[test]
fn an_unknown_preset_is_told_all_names_and_the_nearest() {
    let message = Config::preset("cifar-10").unwrap_err().to_string();
    assert_eq!(
        message,
        "preset `cifar-10`: expected one of `shapes`, `mnist`, `cifar10-small`, `avatars`, `emoji`, `cifar10`, `imagenet64`, `sd15`, `sd3`, `sdxl`; the nearest is `cifar10`"
    );
}

#[test]
fn a_configuration_survives_its_own_toml_byte_for_byte() {
    for name in PRESETS {
        let mut config = Config::preset(name).unwrap();
        if !config.data.captions {
            config.network.num_classes = Some(8);
            config.network.channel_mult[0] = 1.1;
            config.network.num_heads_upsample = Some(2);
        }
        config.teacher.micro_batch = Some(16);
        config.distill.learning_rate = 1.0 / 3.0;
        config.data.source = Some("a \"quoted\"\\path\nof two lines".into());
        let text = config.to_toml().unwrap();
        let again = Config::from_toml(&text).unwrap();
        assert_eq!(again, config);
        assert_eq!(again.to_toml().unwrap(), text);
        assert!(config.data.captions != text.contains("channel_mult = [1.1, "), "{text}");
    }
}

#[test]
fn a_configuration_from_before_fine_tuning_has_none() {
    let text = shapes().to_toml().unwrap();
    let older = Config::from_toml(text.split("[finish]").next().unwrap()).unwrap();
    assert_eq!(older.finish.steps(), 0);
    assert_eq!(Config { finish: shapes().finish, ..older.clone() }, shapes());
    // Such a run can be resumed with its preset.
    assert_ne!(older.finish, shapes().finish);
    assert!(older.differences(&shapes()).is_empty());
    let finished = changed("finish.kimg=1").unwrap();
    assert_eq!(older.differences(&finished)[0], "finish.cooldown: 0 before, 0.5 now");
}

#[test]
fn the_largest_seed_of_toml_survives_and_a_larger_one_is_refused() {
    let mut config = shapes();
    config.run.seed = i64::MAX as u64;
    config.validate().unwrap();
    assert_eq!(Config::from_toml(&config.to_toml().unwrap()).unwrap(), config);
    config.run.seed += 1;
    assert!(
        config.validate().unwrap_err().to_string().starts_with("run.seed: expected a whole number from 0 to")
    );
    assert_eq!(shapes().differences(&config).len(), 1);
}

/// For an unknown field, serde's error lists all fields of the section.
#[test]
fn the_known_keys_are_all_the_fields_there_are() {
    let text = shapes().to_toml().unwrap();
    let mut fields = BTreeSet::new();
    for section in ["run", "data", "network", "path", "teacher", "distill", "finish"] {
        let stray = text.replace(&format!("[{section}]\n"), &format!("[{section}]\n_ = 0\n"));
        let error = toml::from_str::<Config>(&stray).unwrap_err();
        let names = error.message().split_once("expected one of ").unwrap().1.split(", ");
        fields.extend(names.map(|name| format!("{section}.{}", name.trim_matches('`'))));
    }
    assert_eq!(Known::new().unwrap().keys.into_iter().collect::<BTreeSet<_>>(), fields);
}

#[test]
fn exactly_the_optional_keys_may_be_absent() {
    for key in Known::new().unwrap().keys {
        let mut entries = keys::entries_of(&shapes()).unwrap();
        entries.remove(&key);
        let text =
            entries.iter().fold(String::new(), |text, (key, value)| format!("{text}{key} = {value}\n"));
        let read = Config::from_toml(&text);
        if keys::is_optional(&key) {
            read.unwrap();
        } else {
            assert_eq!(read.unwrap_err().to_string(), format!("`{key}`: expected a value, found none"));
        }
    }
}

#[test]
fn text_that_is_no_configuration_names_the_line_or_key() {
    let text = shapes().to_toml().unwrap();
    let message = |text: &str| {
        let message = Config::from_toml(text).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    };
    assert!(message("[run]\nseed = 0\nlog_every_kimg =\n").starts_with("line 3: "));
    assert!(message("[run]\nseed = 0\nseed = 1\n").starts_with("line 3: "));
    assert_eq!(message(""), "`data.class_conditional`: expected a value, found none");
    assert_eq!(message("distill = 3"), "`distill`: no such key; the nearest is `distill.mode`");
    assert_eq!(
        message(&text.replace("threshold = 60.0", "treshold = 60.0")),
        "`distill.treshold`: no such key; the nearest is `distill.threshold`"
    );
    assert_eq!(
        message(&text.replace("threshold = 60.0", "threshold = { decibel = 60 }")),
        "distill.threshold: expected a number, found { decibel = 60 }"
    );
    assert_eq!(
        message(&text.replace("mode = \"cd\"", "mode = \"cm\"")),
        "distill.mode: expected one of `cd`, `ct`, `fixed`, found \"cm\""
    );
}

#[test]
fn an_override_reaches_its_setting_by_dotted_key_or_by_an_unambiguous_leaf() {
    assert_eq!(changed("distill.threshold=65").unwrap().distill.threshold, 65.0);
    assert_eq!(changed(" threshold = 65.5 ").unwrap().distill.threshold, 65.5);
    assert_eq!(changed("teacher.kimg=7").unwrap().teacher.kimg, 7.0);
    assert_eq!(changed("distill.micro_batch=16").unwrap().distill.micro_batch, Some(16));
    assert_eq!(changed("horizontal_flip=true").unwrap().data.horizontal_flip, !shapes().data.horizontal_flip);
    assert_eq!(changed("teacher.kimg=1_000").unwrap().teacher.kimg, 1000.0);
}

#[test]
fn only_what_is_overridden_changes_and_the_last_one_counts() {
    let overrides = ["teacher.kimg=7".to_owned(), "mode=ct".to_owned(), "teacher.kimg=8".to_owned()];
    let config = shapes().with_overrides(&overrides).unwrap();
    let mut expected = shapes();
    expected.teacher.kimg = 8.0;
    expected.distill.mode = Mode::Ct;
    assert_eq!(config, expected);
    assert_eq!(shapes().with_overrides(&[]).unwrap(), shapes());
}

#[test]
fn a_whole_number_stands_where_a_fraction_is_expected() {
    assert_eq!(changed("teacher.learning_rate=1").unwrap().teacher.learning_rate, 1.0);
    assert_eq!(changed("channel_mult=[1, 2]").unwrap().network.channel_mult, [1.0, 2.0]);
    assert_eq!(changed("channel_mult=[1, 1.5]").unwrap().network.channel_mult, [1.0, 1.5]);
}

#[test]
fn strings_need_no_quotes_even_where_they_look_like_something_else() {
    for (text, source) in [
        ("data.source=images/cats", "images/cats"),
        ("data.source=C:\\images\\cats", "C:\\images\\cats"),
        ("data.source=\"images/cats\"", "images/cats"),
        ("data.source=2024", "2024"),
        ("data.source=2024-01-01", "2024-01-01"),
        ("data.source=true", "true"),
        ("data.source=a=b", "a=b"),
        ("data.source=\"none\"", "none"),
    ] {
        assert_eq!(changed(text).unwrap().data.source.as_deref(), Some(source), "{text}");
    }
    assert_eq!(changed("distill.coupling=independent").unwrap().distill.coupling, Coupling::Independent);
    assert_eq!(changed("distance=l2").unwrap().distill.distance, DistanceKind::L2);
    assert_eq!(changed("scope='batch'").unwrap().distill.scope, Scope::Batch);
}

#[test]
fn none_takes_an_optional_setting_away_and_no_other() {
    assert_eq!(changed("source=none").unwrap().data.source, None);
    assert_eq!(changed("num_head_channels=none").unwrap().network.num_head_channels, None);
    assert_eq!(refused("threshold=none"), "distill.threshold: expected a number, found \"none\"");
}

#[test]
fn an_unknown_key_is_told_the_nearest_of_all_keys() {
    for (text, nearest) in [
        ("distill.treshold=60", "distill.threshold"),
        ("treshold=60", "distill.threshold"),
        ("distil.step_size=0.1", "distill.step_size"),
        ("stepsize=0.1", "distill.step_size"),
        ("teacher.microbatch=8", "teacher.micro_batch"),
        ("data.sources=x", "data.source"),
        ("numclasses=8", "network.num_classes"),
        ("distill.mo\nde=cd", "distill.mode"),
    ] {
        let key = text.split_once('=').unwrap().0.replace('\n', " ");
        assert_eq!(refused(text), format!("`{key}`: no such key; the nearest is `{nearest}`"));
    }
    assert!(refused("=8").starts_with("``: no such key; the nearest is "));
}

#[test]
fn a_leaf_in_two_sections_is_told_both() {
    assert_eq!(
        refused("kimg=9"),
        "`kimg`: expected its section too, one of `distill.kimg`, `finish.kimg`, `teacher.kimg`"
    );
}

#[test]
fn a_setting_in_steps_or_a_decay_is_told_its_new_key_and_the_conversion() {
    let steps = "thousands of images, that is steps * batch / 1000";
    assert_eq!(refused("teacher.steps=100"), format!("`teacher.steps`: replaced by `teacher.kimg`: {steps}"));
    assert_eq!(refused("steps=100"), format!("`steps`: replaced by `teacher.kimg`, `distill.kimg`: {steps}"));
    assert_eq!(
        refused("adversarial_from=6"),
        format!("`adversarial_from`: replaced by `distill.adversarial_from_kimg`: {steps}")
    );
    assert_eq!(
        refused("log_every=10"),
        format!("`log_every`: replaced by `run.log_every_kimg`: {steps} with the batch of the stage")
    );
    assert_eq!(
        refused("teacher.ema=0.9"),
        "`teacher.ema`: replaced by `teacher.ema_halflife_kimg`: a half-life in thousands of images, that is \
         -0.000693147 * batch / ln(decay), or 0 for a decay of 0"
    );
    // The `config.toml` of a run by an earlier version.
    let text = shapes().to_toml().unwrap().replace("sample_halflife_kimg = 1.09791", "sample_ema = 0.98");
    let message = Config::from_toml(&text).unwrap_err().to_string();
    assert!(
        message.starts_with("`distill.sample_ema`: replaced by `distill.sample_halflife_kimg`: "),
        "{message}"
    );
}

#[test]
fn no_replaced_setting_still_exists_and_every_replacement_does() {
    let known = Known::new().unwrap().keys;
    for old in &keys::REPLACED {
        assert!(!known.contains(&old.key.to_owned()), "{}", old.key);
        assert!(known.contains(&old.by.to_owned()), "{}", old.by);
    }
}

#[test]
fn a_change_without_a_value_is_told_the_form() {
    assert_eq!(refused("threshold"), "`threshold`: expected key=value, such as distill.threshold=60");
}

#[test]
fn a_value_of_the_wrong_type_names_key_expected_and_found() {
    for (text, message) in [
        ("threshold=expected f32", "distill.threshold: expected a number, found \"expected f32\""),
        ("threshold=high", "distill.threshold: expected a number, found \"high\""),
        ("threshold=", "distill.threshold: expected a number, found \"\""),
        ("threshold=[60]", "distill.threshold: expected a number, found [60]"),
        ("distill.batch=1.5", "distill.batch: expected a whole number, 0 or more, found 1.5"),
        ("seed=-1", "run.seed: expected a whole number, 0 or more, found -1"),
        ("distill.micro_batch=few", "distill.micro_batch: expected a whole number, 0 or more, found \"few\""),
        ("horizontal_flip=yes", "data.horizontal_flip: expected true or false, found \"yes\""),
        ("channel_mult=2", "network.channel_mult: expected a list, such as [1, 2], found 2"),
        ("mode=cm", "distill.mode: expected one of `cd`, `ct`, `fixed`, found \"cm\""),
        ("scope=pixel", "distill.scope: expected `image` or `batch`, found \"pixel\""),
        (
            "distance=lpips",
            "distill.distance: expected one of `pseudo-huber`, `l2`, `l1`, `lpips-vgg16`, `lpips-alexnet`, `teacher-features`, found \"lpips\"",
        ),
        (
            "teacher.coupling=ot",
            "teacher.coupling: expected `independent` or `optimal-transport`, found \"ot\"",
        ),
        ("threshold=1\nseed=2", "distill.threshold: expected a number, found \"1\\nseed=2\""),
    ] {
        assert_eq!(refused(text), message);
    }
    assert!(refused("mode=1").starts_with("distill.mode: expected "));
}

/// What is wrong with the preset `shapes` after these changes.
fn complaint(changes: &[&str]) -> Result<(), String> {
    let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
    let config = Config::preset("shapes").unwrap().with_overrides(&changes).unwrap();
    config.validate().map_err(|error| error.to_string())
}

#[test]
fn lpips_wants_its_weights() {
    let vgg = "distance=lpips-vgg16";
    assert!(complaint(&[vgg]).unwrap_err().starts_with("distill.lpips_trunk: expected a file of weights"));
    let trunk = "lpips_trunk=vgg16.pth";
    assert!(
        complaint(&[vgg, trunk]).unwrap_err().starts_with("distill.lpips_heads: expected a file of weights")
    );
    assert_eq!(complaint(&[vgg, trunk, "lpips_heads=vgg.pth"]), Ok(()));
}

#[test]
fn autoguidance_wants_one_weaker_teacher() {
    let (scale, until, file, kimg) =
        ("autoguidance=2", "autoguidance_until=0.4", "weaker_model=weak.safetensors", "weaker_kimg=3.2");
    assert_eq!(complaint(&[scale, until, file]), Ok(()));
    assert_eq!(complaint(&[scale, kimg]), Ok(()));
    assert_eq!(complaint(&[scale, kimg, "teacher.model=teacher.safetensors"]), Ok(()));
    for (changes, message) in [
        (
            &[scale][..],
            "distill.weaker_model: expected a weaker teacher, as distill.autoguidance is given, found none",
        ),
        (
            &[scale, file, kimg],
            "teacher.weaker_kimg: expected none, as distill.weaker_model is given, found 3.2",
        ),
        (
            &[file],
            "distill.weaker_model: expected none, as distill.autoguidance is not given, found weak.safetensors",
        ),
        (
            &[until],
            "distill.autoguidance_until: expected none, as distill.autoguidance is not given, found 0.4",
        ),
        (&[kimg], "teacher.weaker_kimg: expected none, as distill.autoguidance is not given, found 3.2"),
        (&["autoguidance=0.9", file], "distill.autoguidance: expected a finite scale, 1 or more, found 0.9"),
        (
            &[scale, file, "autoguidance_until=0"],
            "distill.autoguidance_until: expected a flow time above 0 and at most 1, found 0",
        ),
        (
            &[scale, file, "mode=ct"],
            "distill.autoguidance: expected none, as distill.mode is `ct`, which has no teacher, found 2",
        ),
        (
            &[scale, "weaker_kimg=1000"],
            "teacher.weaker_kimg: expected thousands of images, above 0 and less than teacher.kimg, found 1000",
        ),
        (
            &[scale, kimg, "teacher.model=teacher.safetensors", "teacher.training=from-weights"],
            "teacher.weaker_kimg: expected none, as teacher.training is `from-weights`, and its first weights are not weaker, found 3.2",
        ),
    ] {
        assert_eq!(complaint(changes).unwrap_err(), message);
    }
    let of_text =
        Config::preset("sd15").unwrap().with_overrides(&[scale.to_owned(), file.to_owned()]).unwrap();
    assert_eq!(
        of_text.validate().unwrap_err().to_string(),
        "distill.autoguidance: expected none, as data.captions is true, found 2"
    );
}

#[test]
fn each_setting_out_of_range_is_named_with_what_was_found() {
    for (text, found) in [
        ("run.threads=0", "0"),
        ("run.threads=1025", "1025"),
        ("run.sample_every_kimg=0", "0"),
        ("run.checkpoint_every_kimg=-1", "-1"),
        ("run.log_every_kimg=nan", "NaN"),
        ("run.report_steps=0", "0"),
        ("run.report_images=1025", "1025"),
        ("data.source=", "an empty string"),
        ("data.count=none", "none"),
        ("data.count=0", "0"),
        ("network.dropout=1", "1"),
        ("teacher.kimg=0", "0"),
        ("teacher.kimg=inf", "inf"),
        ("teacher.kimg=9007199254741", "9007199254741"),
        ("teacher.warmup_kimg=-0.1", "-0.1"),
        ("teacher.batch=0", "0"),
        ("teacher.batch=65537", "65537"),
        ("teacher.micro_batch=0", "0"),
        ("teacher.learning_rate=0", "0"),
        ("teacher.learning_rate=inf", "inf"),
        ("teacher.cooldown=1.1", "1.1"),
        ("teacher.gradient_clip=0", "0"),
        ("teacher.ema_halflife_kimg=inf", "inf"),
        ("teacher.ema_halflife_kimg=-0.1", "-0.1"),
        ("teacher.coupling_images=16385", "16385"),
        ("distill.coupling_images=0", "0"),
        ("distill.coupling_images=32768", "32768"),
        ("distill.kimg=0", "0"),
        ("distill.batch=0", "0"),
        ("distill.micro_batch=0", "0"),
        ("distill.learning_rate=nan", "NaN"),
        ("distill.cooldown=nan", "NaN"),
        ("distill.gradient_clip=-1", "-1"),
        ("distill.threshold=100.5", "100.5"),
        ("distill.threshold=-1", "-1"),
        ("distill.threshold=nan", "NaN"),
        ("distill.step_size=1e-4", "0.0001"),
        ("distill.step_size=1.01", "1.01"),
        ("distill.step_shift=0.5", "0.5"),
        ("data.shuffle_buffer=40", "40"),
        ("distill.step_shift=nan", "NaN"),
        ("distill.time_alpha=0", "0"),
        ("distill.warmup_kimg=nan", "NaN"),
        ("distill.adversarial_from_kimg=inf", "inf"),
        ("distill.adversarial_warmup_kimg=-1", "-1"),
        // With a batch of 32, the decay rounds to 1 for half-lives above 44361.
        ("distill.target_halflife_kimg=44362", "44362"),
        ("distill.sample_halflife_kimg=nan", "NaN"),
    ] {
        let key = text.split_once('=').unwrap().0;
        let message = changed(text).unwrap().validate().unwrap_err().to_string();
        assert!(message.starts_with(&format!("{key}: expected ")), "{message}");
        assert!(message.ends_with(&format!(", found {found}")), "{message}");
    }
}

#[test]
fn a_preset_for_pipelines_has_captions() {
    let overrides = ["data.captions=false".to_owned()];
    let message = Config::preset("sd15").unwrap().with_overrides(&overrides).unwrap_err().to_string();
    assert_eq!(message, "data.captions: expected true, as there is no section `network`, found false");
}

#[test]
fn consistency_training_has_no_solver() {
    let overrides = ["mode=ct", "solver=heun"].map(str::to_owned);
    let message = shapes().with_overrides(&overrides).unwrap().validate().unwrap_err().to_string();
    assert_eq!(
        message,
        "distill.solver: expected euler, as distill.mode is `ct`, which has no teacher, found heun"
    );
}

#[test]
fn the_ends_of_the_ranges_are_in_range() {
    for text in [
        "threshold=0",
        "threshold=100",
        "step_size=1",
        "step_shift=100",
        "teacher.ema_halflife_kimg=0",
        "teacher.batch=65536",
        "teacher.coupling_images=512",
        "teacher.micro_batch=64",
        "teacher.micro_batch=1",
        "teacher.warmup_kimg=0",
        "teacher.cooldown=1",
        "distill.cooldown=0",
        "teacher.kimg=1e-9",
        "teacher.kimg=9007199254740",
        "distill.target_halflife_kimg=44361",
        "distill.adversarial_from_kimg=0",
    ] {
        changed(text).unwrap().validate().unwrap();
    }
}

#[test]
fn labels_that_the_network_would_not_be_told_are_refused() {
    let overrides = ["num_classes=8".to_owned(), "class_conditional=false".to_owned()];
    let message = shapes().with_overrides(&overrides).unwrap().validate().unwrap_err().to_string();
    assert_eq!(message, "network.num_classes: expected none, as data.class_conditional is false, found 8");
    changed("num_classes=8").unwrap().validate().unwrap();
}

#[test]
fn differences_name_each_changed_setting_and_nothing_else() {
    let overrides =
        ["threshold=65", "channel_mult=[1, 1.1]", "teacher.micro_batch=16", "source=cats", "mode=ct"];
    let now = shapes().with_overrides(&overrides.map(str::to_owned)).unwrap();
    assert_eq!(
        shapes().differences(&now),
        [
            "data.source: \"shapes\" before, \"cats\" now",
            "distill.mode: \"cd\" before, \"ct\" now",
            "distill.threshold: 60 before, 65 now",
            "network.channel_mult: [1, 2] before, [1, 1.1] now",
            "teacher.micro_batch: none before, 16 now",
        ]
    );
    assert_eq!(now.differences(&shapes())[4], "teacher.micro_batch: 16 before, none now");
    assert!(now.differences(&now).is_empty());
}
