//! `distill inspect`: prints the contents of a model file.

use std::path::PathBuf;

use ccm::disk::read_model;

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

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
