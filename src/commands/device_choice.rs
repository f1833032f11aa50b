//! The device that a verb works on, or several.

use crate::notice;
use clap::Args;
use std::convert::Infallible;
use std::str::FromStr;

/// The device to run on.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgument {
    /// Device: cuda:<n>, or emulated:<gpu> [default: cuda:0 where there is one, else emulated:h200];
    /// emulated:<gpu>,mma=hopper (or ampere) adds as the tensor cores of that architecture do
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

impl DeviceArgument {
    /// The name that was given, if one was.
    pub fn given(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// The device's name; where none was given, the default one, which is announced.
    pub fn name(&self) -> String {
        match &self.device {
            Some(name) => name.clone(),
            None => {
                let name = spanforge_device::default_spec();
                notice::say(format_args!("device: {name} (choose another with --device)"));
                name.to_owned()
            }
        }
    }
}

/// Names of devices with commas between them. The name of an emulated one may hold a comma itself:
/// `emulated:h200,mma=hopper`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceList(pub Vec<String>);

impl FromStr for DeviceList {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let mut names: Vec<String> = Vec::new();
        for part in text.split(',') {
            match names.last_mut() {
                Some(name) if part.starts_with("mma=") => *name = format!("{name},{part}"),
                _ => names.push(part.to_owned()),
            }
        }
        Ok(Self(names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_device_name_does_not_end_it() {
        let parsed = |text: &str| text.parse::<DeviceList>().map(|list| list.0);
        let three = parsed("cuda:0,emulated:h200,mma=hopper,cuda:1");
        assert_eq!(three.unwrap(), ["cuda:0", "emulated:h200,mma=hopper", "cuda:1"]);
        assert_eq!(parsed("mma=hopper").unwrap(), ["mma=hopper"]);
        assert_eq!(parsed("").unwrap(), [""]);
    }
}
