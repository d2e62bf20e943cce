//! `distill inspect`: prints the contents of a model file.

use std::path::PathBuf;

use ccm::disk::read_model;
use ccm::import::text_to_image::{self, PartWeights};
use ccm::pipeline::part_name;

use crate::Failure;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model file
    model: PathBuf,
    /// List every tensor with its shape
    #[arg(long)]
    tensors: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    if arguments.model.is_file() && text_to_image::is_text_to_image(&arguments.model) {
        return pipeline(&arguments);
    }
    let model = read_model(&arguments.model)?;
    let (spec, card) = (&model.spec, &model.card);
    let [channels, height, width] = spec.image();
    let bytes = std::fs::metadata(&arguments.model)?.len();
    println!("{}", arguments.model.display());
    println!(
        "  file        {:.2} MB, {} tensors, {}",
        bytes as f64 / 1e6,
        model.tensors.len(),
        model.precision
    );
    if let Some(rounding) = card.rounding {
        println!("  rounding    {rounding}");
    }
    println!("  parameters  {} ({:.2} M)", spec.parameters(), spec.parameters() as f64 / 1e6);
    println!("  images      {} x {} x {} (channels, height, width)", channels, height, width);
    match spec.num_classes() {
        Some(classes) if !card.classes.is_empty() => {
            println!("  classes     {classes}: {}", card.classes.join(", "))
        }
        Some(classes) => println!("  classes     {classes}"),
        None => println!("  classes     none"),
    }
    println!("network");
    let network = serde_json::to_string_pretty(&spec.to_json()?)?;
    println!("{}", indented(&network));
    println!("prediction");
    println!("{}", indented(&serde_json::to_string_pretty(&model.prediction.to_json())?));
    println!("card");
    println!("{}", indented(&serde_json::to_string_pretty(card)?));
    if arguments.tensors {
        println!("tensors");
        for tensor in spec.tensors() {
            println!("  {:<48} {:?}", tensor.name, tensor.shape);
        }
    }
    Ok(())
}

/// Prints what a file with a pipeline holds.
fn pipeline(arguments: &Arguments) -> Result<(), Failure> {
    let file = text_to_image::open_packed(&arguments.model)?;
    let (spec, bytes) = (&file.spec, std::fs::metadata(&arguments.model)?.len());
    let PartWeights::Packed { packed, .. } = &file.weights else {
        return Err(format!("{}: expected a pipeline in one file", arguments.model.display()).into());
    };
    println!("{}", arguments.model.display());
    println!("  file        {:.2} MB, {:?}, {}", bytes as f64 / 1e6, spec.kind, file.precision);
    let [height, width] = spec.image_size();
    println!("  images      {} x {height} x {width} (channels, height, width)", spec.image_channels());
    println!("parts");
    for (part, graph) in spec.parts(true) {
        let (tensors, bytes) = packed.size_of(part);
        let parameters: usize = graph.parameters.iter().map(|of| of.shape.iter().product::<usize>()).sum();
        let name = part_name(part);
        match tensors {
            0 => println!("  {name:<15} none"),
            _ => println!("  {name:<15} {parameters} parameters, {:.2} MB", bytes as f64 / 1e6),
        }
    }
    println!("prediction");
    println!("{}", indented(&serde_json::to_string_pretty(&spec.prediction.to_json())?));
    println!("card");
    println!("{}", indented(&serde_json::to_string_pretty(&file.card)?));
    if arguments.tensors {
        println!("tensors");
        for (part, graph) in spec.parts(file.has_encoder()) {
            for parameter in graph.parameters {
                println!("  {:<64} {:?}", format!("{}.{}", part_name(part), parameter.name), parameter.shape);
            }
        }
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
