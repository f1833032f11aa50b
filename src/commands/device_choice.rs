//! The device that a verb works on.

use crate::notice;
use clap::Args;

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
