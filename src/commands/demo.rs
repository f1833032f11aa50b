//! `demo`: the story in four commands, with the trained model that the binary carries.

use super::{Outcome, Verb};
use anyhow::Result;
use clap::{Args, Command, FromArgMatches, Subcommand};
use fs_err as fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// See a model select its own spans, on the CPU and by a CUDA kernel on an emulated GPU
///
/// Runs four commands with the arithmetic model of the repository, which this binary carries, and says
/// what to look at. It takes less than a minute, and fetches NVRTC where it is not here.
#[derive(Args)]
#[command(after_help = "Example:\n  spanforge demo")]
pub struct Arguments {}

/// The files of the model, as they are in the repository.
const MODEL: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("../../models/arithmetic/config.json")),
    ("tokenizer.json", include_bytes!("../../models/arithmetic/tokenizer.json")),
    ("model.safetensors", include_bytes!("../../models/arithmetic/model.safetensors")),
];

/// The shape of the paper's model.
const SHAPE: (&str, &[u8]) =
    ("config.json", include_bytes!("../../models/shapes/llama-2-7b/config.json"));

/// A command and what there is to see.
const STEPS: [(&str, &str); 4] = [
    (
        "A model of 238 thousand weights evaluates an expression step by step. Each step declares \
         between < and >\nthe earlier lines that it needs; its computation attends to these tokens \
         and no others:",
        "generate --model models/arithmetic --prompt ^((((8-2)+(1*9))+4)*(7-5));",
    ),
    (
        "It answers as well as with everything in sight, and needs what it declares: without the \
         declared lines it fails.",
        "eval --model models/arithmetic --task arithmetic --count 200 --attention dense,span,withheld",
    ),
    (
        "The same decode with the span-attention kernel: CUDA C++ compiled by NVRTC, its PTX run \
         instruction by\ninstruction on an emulated H200, every access checked. The text is the same:",
        "generate --model models/arithmetic --prompt ^((((8-2)+(1*9))+4)*(7-5)); --plain \
         --attention emulated:h200",
    ),
    (
        "What reading less is worth in the shape of the paper's model (Llama 2 7B, 2 of 32 layers, \
         random weights),\nwith spans like the paper's, measured on this CPU:",
        "bench decode --model models/shapes/llama-2-7b --trace ssas-llama2 --layers 2 --batch 8 \
         --steps 5",
    ),
];

const NEXT: &str = "Next: `spanforge tune` finds the fastest kernel for a workload and exports it; \
                    `spanforge check --help` and\n`spanforge fuzz --help` prove kernels against the \
                    oracle; docs/models.md trains a model like this one.";

pub fn run(_: &Arguments, out: &mut dyn Write) -> Result<Outcome> {
    let begun = Instant::now();
    let folder = tempfile::tempdir()?;
    let unpack = |place: &str, files: &[(&str, &[u8])]| -> Result<()> {
        let place = folder.path().join(place);
        fs::create_dir_all(&place)?;
        files.iter().try_for_each(|(name, bytes)| Ok(fs::write(place.join(name), bytes)?))
    };
    unpack("models/arithmetic", &MODEL)?;
    unpack("models/shapes/llama-2-7b", &[SHAPE])?;
    for (number, (story, command)) in STEPS.iter().enumerate() {
        writeln!(out, "{}. {story}\n\n$ spanforge {}\n", number + 1, quoted(command))?;
        out.flush()?;
        super::run(verb(command, folder.path())?, out)?;
        writeln!(out)?;
    }
    writeln!(out, "{NEXT}\n\n{:.0} s in all.", begun.elapsed().as_secs_f64())?;
    Ok(Outcome::Done)
}

/// The command as a shell takes it.
fn quoted(command: &str) -> String {
    let word = |word: &str| if word.contains('(') { format!("'{word}'") } else { word.to_owned() };
    command.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// The verb of a command whose models are in `folder`.
fn verb(command: &str, folder: &Path) -> Result<Verb> {
    let words = command.split_whitespace().map(|word| match word.starts_with("models/") {
        true => folder.join(word).display().to_string(),
        false => word.to_owned(),
    });
    let command = Verb::augment_subcommands(Command::new("spanforge").no_binary_name(true));
    Ok(Verb::from_arg_matches(&command.try_get_matches_from(words)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_commands_are_commands() {
        for (_, command) in STEPS {
            assert!(verb(command, Path::new("/nowhere")).is_ok(), "{command}");
        }
        assert_eq!(quoted("generate --prompt ^(1+2);"), "generate --prompt '^(1+2);'");
    }
}
