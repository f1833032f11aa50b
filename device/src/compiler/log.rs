//! The text that NVRTC writes: what only the log of `ptxas -v` has (bytes spilled to local memory),
//! and what makes log and PTX differ from run to run though the code is the same.

use std::collections::BTreeMap;
use std::path::Path;

/// Bytes that one function spills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spills {
    pub(super) stored: u32,
    pub(super) loaded: u32,
}

/// Spills by function name.
pub(super) fn spills(log: &str) -> BTreeMap<String, Spills> {
    let mut found = BTreeMap::new();
    let mut function = None;
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            function = Some(name.trim().trim_matches('\'').to_owned());
        } else if line.contains(" bytes spill stores")
            && let Some(function) = function.take()
        {
            let bytes = |what| number_before(line, what).unwrap_or(0);
            let stored = bytes(" bytes spill stores");
            found.insert(function, Spills { stored, loaded: bytes(" bytes spill loads") });
        }
    }
    found
}

/// The number right before `what` in `line`.
fn number_before(line: &str, what: &str) -> Option<u32> {
    let before = &line[..line.find(what)?];
    before[before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1)..].parse().ok()
}

/// The log without the lines that say how long the compiler took.
pub(super) fn without_times(log: &str) -> String {
    let lines = log.lines().filter(|line| !line.contains(": Compile time = "));
    lines.collect::<Vec<_>>().join("\n")
}

/// PTX with the names of sources as they were given. NVRTC puts the working folder before a
/// relative name, though no such file need exist and the code does not depend on the folder.
pub(super) fn relative_files(ptx: &str, source: &str) -> String {
    let Ok(folder) = std::env::current_dir() else { return ptx.into() };
    if Path::new(source).is_absolute() || folder.parent().is_none() {
        return ptx.into();
    }
    without_folder(ptx, &format!("{}/", folder.display()))
}

fn without_folder(ptx: &str, folder: &str) -> String {
    let mut text = String::with_capacity(ptx.len());
    for line in ptx.split_inclusive('\n') {
        match line.split_once('"') {
            Some((before, name)) if before.trim_start().starts_with(".file") => {
                text.push_str(before);
                text.push('"');
                text.push_str(name.strip_prefix(folder).unwrap_or(name));
            }
            _ => text.push_str(line),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spills_are_read_by_function() {
        let log = "a.cu(3): warning #177-D: variable \"x\" was declared but never referenced\n\
            ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'second' for 'sm_80'\n\
            ptxas info    : Function properties for second\n\
            ptxas         .     160 bytes stack frame, 372 bytes spill stores, 400 bytes spill \
            loads\n\
            ptxas info    : Used 32 registers, used 1 barriers, 160 bytes cumulative stack size\n\
            ptxas info    : Function properties for _Z6helperf\n\
            ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
        let found = spills(log);
        assert_eq!(found.len(), 2);
        assert_eq!(found["second"], Spills { stored: 372, loaded: 400 });
        assert_eq!(found["_Z6helperf"], Spills::default());
        assert!(spills("").is_empty());
    }

    #[test]
    fn only_file_names_below_the_folder_are_shortened() {
        let ptx = "// \"/w/k.cu\"\n\t.file\t1 \"/w/k.cu\"\n\t.file\t2 \"/usr/cuda_fp16.hpp\"\n";
        let expected = "// \"/w/k.cu\"\n\t.file\t1 \"k.cu\"\n\t.file\t2 \"/usr/cuda_fp16.hpp\"\n";
        assert_eq!(without_folder(ptx, "/w/"), expected);
    }

    #[test]
    fn times_leave_the_log() {
        let log = "ptxas info    : Used 12 registers\nptxas info    : Compile time = 1.750 ms";
        assert_eq!(without_times(log), "ptxas info    : Used 12 registers");
    }
}
